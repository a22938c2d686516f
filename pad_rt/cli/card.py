"""`pad card`: the README.md of a bundle's repository on the Hugging Face hub."""

from __future__ import annotations

import argparse
import json
import re

from pad_rt.cli.options import add_bundle
from pad_rt.hub import find_bundle
from pad_runtime.bundle.manifest import Manifest, PersRMInfo, read_manifest
from pad_runtime.errors import OptionError
from pad_runtime.hub import Repository

_LICENSE = re.compile(r"[a-z0-9][a-z0-9.+-]*")  # the hub's identifiers, such as apache-2.0


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command and its options."""
    card = commands.add_parser("card", help="print a README.md for a bundle on the hub", allow_abbrev=False)
    card.set_defaults(run=run)
    add_bundle(card)
    card.add_argument("--name", metavar="OWNER/NAME", required=True, help="repository that the bundle goes to")
    card.add_argument("--base-license", metavar="ID", required=True, help="the base's licence, such as apache-2.0")
    card.add_argument("--persrm-license", metavar="ID", help="the PersRMs' licence, where it is another")
    card.add_argument("--base", metavar="OWNER/NAME", help="the base's repository (default: as the bundle names it)")


def run(options: argparse.Namespace) -> None:
    """Print the card."""
    for option in ("--name", "--base"):
        name = getattr(options, option[2:])
        if name is not None and Repository.parse(name) != Repository(name):
            raise OptionError(f"{option} {name} is no name of a repository", expected="OWNER/NAME")
    for option in ("--base-license", "--persrm-license"):
        license = getattr(options, option[2:].replace("-", "_"))
        if license is not None and not _LICENSE.fullmatch(license):
            raise OptionError(f"{option} {license}", expected="one as the hub writes it, such as apache-2.0 or other")
    manifest = read_manifest(find_bundle(options.bundle))
    print(_card(manifest, options.name, options.base, options.base_license, options.persrm_license))


def _card(manifest: Manifest, name: str, base: str | None, base_license: str, persrm_license: str | None) -> str:
    base, persrm = base or manifest.base, manifest.persrms[0]
    licenses = list(dict.fromkeys([base_license, persrm_license or base_license]))
    metadata: dict[str, object] = {"library_name": "pad-rt", "pipeline_tag": "text-generation", "license": licenses}
    if Repository.parse(base):
        metadata["base_model"] = base
        if manifest.precision in ("int8", "int4"):
            metadata["base_model_relation"] = "quantized"
    metadata["tags"] = ["pad-rt", "onnx", "personalization", "reward-model"]
    header = "\n".join(f"{key}: {json.dumps(value)}" for key, value in metadata.items())  # JSON is YAML
    rows = "\n".join(_persrm_row(each, persrm_license or base_license) for each in manifest.persrms)
    size = sum(file.size for file in manifest.files.values()) / 2**20
    made_with = ", ".join(f"{package} {version}" for package, version in manifest.versions.items())
    limits = f"{manifest.max_length:,} tokens, {manifest.max_batch} requests at once, {manifest.max_top_k} candidates"
    feature = persrm.features[0]
    option = '--preference "cheerful and concise"' if persrm.takes_text else f"--weight {feature}=1"
    argument = '"Be cheerful."' if persrm.takes_text else f"Preference(weights={{{json.dumps(feature)}: 1.0}})"
    return f"""---
{header}
---
# {name.partition("/")[2]}

{base} and what rates its words for a person, in one ONNX graph: a bundle of PAD-RT, personalized decoding
([arXiv 2410.04070](https://arxiv.org/abs/2410.04070)).

| | |
|---|---|
| Base | {base}; {base_license} |
{rows}
| Precision | weights in {manifest.precision}, all else in {manifest.float_type} |
| Limits | {limits} |
| Size | {size:,.1f} MiB |
| Made with | {made_with} |

## Use

```
pip install "pad-rt[cpu,hub]"
pad generate {name} "How was your day?" {option}
```

```python
from pad_rt import Generator, Preference

generator = Generator.load("{name}")
print(generator.generate("How was your day?", preference={argument}).text)
```

`pad.json` has the SHA-256 of every other file of the bundle; they are checked after the download."""


def _persrm_row(persrm: PersRMInfo, license: str) -> str:
    features = ", ".join(f"`{feature}`" for feature in persrm.features)
    words = "a preference in words, and " if persrm.takes_text else ""
    return f"| PersRM `{persrm.name}` | takes {words}weights of {features}; {license} |"
