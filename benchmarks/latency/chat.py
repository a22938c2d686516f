"""Ten turns of a guided chat: the time to the first token of each, with what is cached and with all read again.

Both sides take turns, turn by turn, with the same messages: the kept side's replies. At fp32 the ids must be the same;
at int4 kernels round a run of one row otherwise than one of several, and tokens that are as good as tied may change
places. Writes benchmarks/results/chat.json and prints the table. Ends with 1 if ids differ at fp32.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.common.caches import forget
from benchmarks.common.machine import describe_machine
from benchmarks.common.records import RESULTS, markdown, versions, write_record
from benchmarks.common.settings import Settings, pinned
from benchmarks.latency.bundles import demo_bundle
from pad_rt import GenerationResult, Generator, Preference
from pad_rt.bench.rounds import turn

KEPT, READ_AGAIN = "kept", "read again"
PRECISIONS = ("int4", "fp32")
_PREFERENCE = Preference(weights={"cheerful": 0.8, "simple": 0.4})
_TURNS = (
    "I have a free weekend. What could I do in a small town by a river?",
    "I like the second idea. What would I need for it?",
    "Can my two children, who are six and nine, come along?",
    "And if it rains all day?",
    "What should we eat in the evening?",
    "How do I cook that for four people?",
    "One of us eats no meat. What do I change?",
    "What could we play after dinner?",
    "Explain the rules to a six-year-old, please.",
    "Thank you. Sum up our whole plan in a few sentences.",
)


@dataclass(frozen=True)
class Difference:
    """Where a reply that was read again differs from the one behind the cache.

    Attributes:
        turn: of the chat, from 1.
        token: of the reply, from 0.
        gap: score of the best candidate there less that of the second best, read again.
    """

    turn: int
    token: int
    gap: float


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=[*PRECISIONS])
    parser.add_argument("--bundle", type=Path, help="a bundle of the one precision; exported if not given")
    parser.add_argument("--rounds", type=int, default=3, help="chats")
    parser.add_argument("--turns", type=int, default=len(_TURNS), help="of each chat")
    parser.add_argument("--new-tokens", type=int, default=48, help="most of each reply")
    parser.add_argument("--threads", type=int, default=1, help="1 keeps everything on one core")
    parser.add_argument("--out", type=Path, default=RESULTS / "chat.json")
    options = parser.parse_args()
    if options.bundle and len(options.precisions) > 1:
        parser.error("--bundle is of one precision: name it by --precisions")
    settings = Settings(options.rounds, options.new_tokens, options.threads)
    with pinned(settings.core):
        measured = [
            measure(precision, options.bundle or demo_bundle(precision), settings, _TURNS[: options.turns])
            for precision in options.precisions
        ]
    record = {
        "what": "SmolLM2-135M-Instruct, guided by weights, one chat at a time",
        "threads": options.threads,
        "new_tokens": options.new_tokens,
        "machine": describe_machine(),
        "versions": versions("pad-rt", "onnxruntime", "numpy"),
        "precisions": measured,
    }
    write_record(options.out, record)
    print(table(record))
    return int(any(one["precision"] == "fp32" and one["differences"] for one in measured))


def measure(precision: str, folder: Path, settings: Settings, said: tuple[str, ...]) -> dict[str, Any]:
    """The record of one bundle: chats of both sides, in turns."""
    first: dict[str, list[list[float]]] = {side: [[] for _ in said] for side in (KEPT, READ_AGAIN)}
    differences: list[Difference] = []
    replies: list[dict[str, GenerationResult]] = []
    for round_ in range(settings.rounds):
        messages: list[dict[str, str]] = []
        replies = []
        with (  # a chat finds nothing of the chats before it
            Generator.load(folder, num_threads=settings.threads) as kept,
            Generator.load(folder, num_threads=settings.threads, keep_mib=0) as again,
        ):
            sides = {KEPT: kept, READ_AGAIN: again}
            for number, words in enumerate(said):
                messages.append({"role": "user", "content": words})
                reply = {}
                for side in turn(list(sides), round_ + number):
                    if side == READ_AGAIN:
                        forget(again)
                    reply[side] = _reply(sides[side], messages, settings.new_tokens)
                    first[side][number].append(1e3 * reply[side].timing.first_token_s)
                replies.append(reply)
                if not round_ and (found := _difference(number + 1, reply, again, messages)):
                    differences.append(found)
                messages.append({"role": "assistant", "content": reply[KEPT].text})
    times = {side: [statistics.median(values) for values in turns] for side, turns in first.items()}
    return {
        "precision": precision,
        "turns": [
            {
                "turn": number + 1,
                "prompt_tokens": reply[KEPT].usage.prompt_tokens,
                "cached_tokens": {side: reply[side].usage.cached_tokens for side in first},
                "reply_tokens": reply[KEPT].usage.completion_tokens,
                "first_token_ms": {side: round(times[side][number], 1) for side in first},
            }
            for number, reply in enumerate(replies)
        ],
        "times_turn_2": round(max(times[KEPT][1:]) / times[KEPT][1], 3),
        "differences": [vars(difference) for difference in differences],
    }


def _reply(
    generator: Generator, messages: list[dict[str, str]], new_tokens: int, *, trace: bool = False
) -> GenerationResult:
    return generator.generate(messages, preference=_PREFERENCE, config={"max_new_tokens": new_tokens}, trace=trace)


def _difference(
    number: int, reply: dict[str, GenerationResult], generator: Generator, messages: list[dict[str, str]]
) -> Difference | None:
    """The first token of a turn that is another when all is read again; None if all are the same."""
    kept, again = reply[KEPT].token_ids, reply[READ_AGAIN].token_ids
    if kept == again:
        return None
    pairs = enumerate(zip(kept, again, strict=False))
    token = next((index for index, (one, other) in pairs if one != other), min(len(kept), len(again)))
    forget(generator)
    traced = _reply(generator, messages, token + 1, trace=True).trace
    scores = sorted(traced[token].scores.tolist(), reverse=True)
    return Difference(number, token, round(scores[0] - scores[1], 5))


def table(record: dict[str, Any]) -> str:
    """The record as Markdown: turns, then what differed."""
    head = ("weights", "turn", "prompt, tokens", "of them cached", "first token, ms: kept", "read again")
    lines, notes = [], []
    for one in record["precisions"]:
        for row in one["turns"]:
            times = [f"{row['first_token_ms'][side]:.0f}" for side in (KEPT, READ_AGAIN)]
            counts = [row["turn"], row["prompt_tokens"], row["cached_tokens"][KEPT]]
            lines.append([one["precision"], *map(str, counts), *times])
        gaps = ", ".join(f"turn {d['turn']} by {d['gap']:.5f}" for d in one["differences"])
        notes.append(
            f"{one['precision']}: the slowest turn takes {one['times_turn_2']:.2f} times turn 2; "
            f"ids differ in {len(one['differences'])} turns" + (f" (best candidates apart: {gaps})" if gaps else "")
        )
    return "\n\n".join([markdown(head, lines), *notes])


if __name__ == "__main__":
    sys.exit(main())
