"""What is altered, and how it is then used: bundles that are loaded, and folders and files that are exported."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.fuzz import changes
from benchmarks.fuzz.inputs import OPTIONS, Inputs
from pad_export.export import export_bundle
from pad_rt import Generator, Preference
from pad_runtime.bundle.file_info import describe_file
from pad_runtime.bundle.manifest import checksum

Tokens = list[list[int]]
Alter = Callable[[Path, random.Random | None, int], str]
# Parts of a manifest that say how to generate: other ones give other tokens by right.
_SETTINGS = ("eos_token_ids", "persrms", "tokenizer", "versions", "base", "reference", "files")


@dataclass(frozen=True)
class Target:
    """One kind of change.

    Attributes:
        name: of its row.
        strict: whether an altered input must be refused, or give the tokens of the unaltered one; else what is altered
            may be another valid input.
        copy: makes a copy of the input in a folder, and gives its path.
        alter: changes a copy, by a random generator and the number of the case, and tells what it did. With no random
            generator it reads what it would change and writes it back unaltered: the control.
        use: gives tokens, or raises.
        num_cases: how many there are, if they can be counted.
    """

    name: str
    strict: bool
    copy: Callable[[Path], Path]
    alter: Alter
    use: Callable[[Path], Tokens]
    num_cases: int | None = None


def reply(bundle: Path) -> Tokens:
    """Tokens with and without guidance, by words and by weights."""
    generator = Generator.load(bundle, device="cpu", num_threads=1)
    preferences: list[Any] = [None, "be kind"]
    if len(generator.manifest.persrms) > 1:
        preferences.append(Preference(text="be kind", weights={"one-0": 1.0, "one-1": -0.5}))
        preferences.append(Preference(weights={"two": 0.7}))
    config = {"max_new_tokens": 5, "top_k": 8}
    turns = [{"role": "user", "content": "the egg"}, {"role": "assistant", "content": "boils"}]
    turns.append({"role": "user", "content": "the naïve cook <tool call>"})
    return [list(generator.generate(turns, preference=p, config=config).token_ids) for p in preferences]


def make_targets(inputs: Inputs) -> list[Target]:
    """All of them, in the order of the table."""
    targets = [*_bundle_bytes(inputs), *_rehashed(inputs), *_manifest(inputs), *_large_weights(inputs)]
    return [*targets, *_persrm_inputs(inputs), *_base_inputs(inputs), *_gguf_input(inputs)]


# -- bundles --------------------------------------------------------------------------------------------------------


def _bundle_bytes(inputs: Inputs) -> Iterator[Target]:
    for file in sorted(
        path.relative_to(inputs.bundle).as_posix() for path in inputs.bundle.rglob("*") if path.is_file()
    ):
        for name, change in changes.BYTES.items():
            yield Target(
                f"bundle, {file}: {name}", True, _copier(inputs.bundle, file), _byte_change(file, change), reply
            )


def _rehashed(inputs: Inputs) -> Iterator[Target]:
    """The same, and a manifest that says of the altered file what it is now."""
    for file in json.loads((inputs.bundle / "pad.json").read_text(encoding="utf-8"))["files"]:
        hostile = {"hostile": changes.hostile_template} if file.endswith(".jinja") else {}
        for name, change in {**changes.BYTES, **hostile}.items():
            yield Target(
                f"bundle, {file}, rehashed: {name}",
                False,
                _copier(inputs.bundle, file, "pad.json"),
                _byte_change(file, change, rehash=True),
                reply,
            )
        if file.endswith(".safetensors"):
            copy = _copier(inputs.bundle, file, "pad.json")
            yield _edited(f"bundle, {file}, rehashed: header", copy, inputs.bundle, file, reply, rehash=True)


def _manifest(inputs: Inputs) -> Iterator[Target]:
    """Each value of the manifest, with the checksum that goes with it."""
    document = json.loads((inputs.bundle / "pad.json").read_text(encoding="utf-8"))
    for settings in (False, True):
        edits = [
            edit
            for edit in changes.edits(document)
            if (edit.path[0] if edit.path else "") not in ("checksum", "files") and bool(edit.path) and
            (edit.path[0] in _SETTINGS) == settings
        ]  # fmt: skip
        yield Target(
            f"manifest: {'settings' if settings else 'sizes and names'}",
            not settings,
            _copier(inputs.bundle, "pad.json"),
            _json_change("pad.json", edits, _write_manifest),
            reply,
            len(edits),
        )


def _large_weights(inputs: Inputs) -> Iterator[Target]:
    """Weights that loading only samples: every 64 KiB that were lost are noticed, single bytes need not be."""
    for name, strict, change in (
        ("64 KiB of zeros", True, changes.zero_blocks),
        ("cut", True, changes.cut),
        ("one byte (not promised)", False, changes.one_byte),
    ):
        copy = _copier(inputs.large, "weights.bin")
        yield Target(f"large weights: {name}", strict, copy, _byte_change("weights.bin", change), reply)


# -- what is exported -----------------------------------------------------------------------------------------------


def _persrm_inputs(inputs: Inputs) -> Iterator[Target]:
    persrm, use = inputs.persrms[0], _exporter(inputs.base)
    for file in ("adapter_model.safetensors", "adapter_config.json", "value_head.safetensors", "pad_persrm.json"):
        yield from _file_targets("export, PersRM", persrm, file, use)


def _base_inputs(inputs: Inputs) -> Iterator[Target]:
    for file in sorted(path.name for path in inputs.base.iterdir()):
        yield from _file_targets("export, base", inputs.base, file, _exporter())


def _file_targets(label: str, folder: Path, file: str, use: Callable[[Path], Tokens]) -> Iterator[Target]:
    copy = _copier(folder, file)
    hostile = {"hostile": changes.hostile_template} if file.endswith(".jinja") else {}
    for name, change in {**changes.BYTES, **hostile}.items():
        yield Target(f"{label} {file}: {name}", False, copy, _byte_change(file, change), use)
    if file.endswith((".json", ".safetensors")):
        yield _edited(f"{label} {file}: values", copy, folder, file, use)
    if file.endswith(".safetensors"):
        yield Target(f"{label} {file}: header length", False, copy, _byte_change(file, changes.other_length), use)


def _gguf_input(inputs: Inputs) -> Iterator[Target]:
    copy = _copier(inputs.gguf)
    kinds = {**changes.BYTES, "header": changes.other_field, "header bytes": _in_header}
    for name, change in kinds.items():
        yield Target(f"export, GGUF: {name}", False, copy, _byte_change("", change), _exporter())


def _in_header(data: bytes, rng: random.Random) -> bytes:
    size = changes.GgufLayout(data).size
    return changes.one_byte(data[:size], rng) + data[size:]


def _exporter(base: Path | None = None) -> Callable[[Path], Tokens]:
    """Export what was altered, a base, or the PersRM of the base that is given, and use the bundle."""

    def use(altered: Path) -> Tokens:
        output = altered.parent / "exported"
        model, persrms = (base, [altered]) if base else (altered, [])
        export_bundle(model, output, persrms=persrms, options=OPTIONS)
        return reply(output)

    return use


# -- copies and changes ---------------------------------------------------------------------------------------------


def _copier(source: Path, *written: str) -> Callable[[Path], Path]:
    """Copy a folder or a file: what will be written to in truth, the rest as hard links."""

    def copy(scratch: Path) -> Path:
        target = scratch / source.name
        if source.is_file():
            shutil.copyfile(source, target)
            return target
        for path in source.rglob("*"):
            name = path.relative_to(source).as_posix()
            if path.is_file():
                (target / name).parent.mkdir(parents=True, exist_ok=True)
                (shutil.copyfile if name in written else os.link)(path, target / name)
        return target

    return copy


def _byte_change(file: str, change: changes.Change, *, rehash: bool = False) -> Alter:
    def alter(copy: Path, rng: random.Random | None, _: int) -> str:
        path = copy / file if file else copy
        data = path.read_bytes()
        path.write_bytes(change(data, rng) if rng else data)
        if rehash:
            _rehash(copy, file)
        return f"{change.__name__} in {file or copy.name}"

    return alter


def _edited(
    name: str,
    copy: Callable[[Path], Path],
    source: Path,
    file: str,
    use: Callable[[Path], Tokens],
    *,
    rehash: bool = False,
) -> Target:
    """A target of all edits of a JSON file, or of a safetensors header."""
    data = (source / file).read_bytes()
    tensors = file.endswith(".safetensors")
    edits = list(changes.edits(changes.read_safetensors(data) if tensors else json.loads(data)))

    def write(path: Path, document: Any) -> None:
        if tensors:
            path.write_bytes(changes.put_safetensors(data, document))
        else:
            path.write_text(json.dumps(document), encoding="utf-8")
        if rehash:
            _rehash(path.parents[file.count("/")], file)

    return Target(name, False, copy, _json_change(file, edits, write), use, len(edits))


def _json_change(file: str, edits: list[changes.Edit], write: Callable[[Path, Any], None]) -> Alter:
    edits = random.Random(0).sample(edits, len(edits))  # so that some of them are of all kinds

    def alter(copy: Path, rng: random.Random | None, index: int) -> str:
        path = copy / file
        data = path.read_bytes()
        document = changes.read_safetensors(data) if file.endswith(".safetensors") else json.loads(data)
        edit = edits[index] if rng else None
        write(path, edit.apply(document) if edit else document)
        return f"{file}: {edit}"

    return alter


def _rehash(bundle: Path, file: str) -> None:
    path = bundle / "pad.json"
    document = json.loads(path.read_text(encoding="utf-8"))
    document["files"][file] = asdict(describe_file(bundle / file))
    _write_manifest(path, document)


def _write_manifest(path: Path, document: Any) -> None:
    if isinstance(document, dict):
        document = {**document, "checksum": checksum(document)}
    path.write_text(json.dumps(document), encoding="utf-8")
