"""A chat that its user steers while it runs: a line such as `cheerful=1 simple=-0.5` moves sliders, any other is said.

python examples/chat.py BUNDLE        a bundle's folder, or OWNER/NAME on the hub
"""

import sys

from pad_rt import GenerationConfig, Generator, PadError, Preference


def main() -> None:
    """Read lines until stdin ends."""
    generator = Generator.load(sys.argv[1])
    features = [feature for persrm in generator.manifest.persrms for feature in persrm.features]
    chat = generator.conversation(config=GenerationConfig(offer_end=True))
    print("sliders:", ", ".join(features))
    for line in map(str.strip, sys.stdin):
        words = dict(word.partition("=")[::2] for word in line.split())
        try:
            if words and set(words) <= set(features):
                chat.preference = Preference(weights={name: float(weight) for name, weight in words.items()})
            elif line:
                for piece in chat.stream(line):
                    print(piece, end="", flush=True)
                print()
        except (PadError, ValueError) as error:
            print(error)


if __name__ == "__main__":
    main()
