"""The command `pad-export`: checkpoints in, a verified bundle out; also engines for bundles, and cleaning up."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import get_args

from pad_export.options import DEFAULT_OPTIONS, ExportOptions, Target, TopologyChoice
from pad_export.output.staging import clean
from pad_runtime.bundle import contract
from pad_runtime.bundle.manifest import Activations, DialectName, Precision, Reference, read_manifest
from pad_runtime.command import add_quiet, run_interruptible, silent, take_options, with_extra
from pad_runtime.errors import OptionError

_PACKAGES = ("torch", "transformers", "peft", "onnx", "gguf", "tqdm")  # packages that pad-rt[export] adds


def main(argv: list[str] | None = None) -> int:
    """Run `pad-export` with these arguments (None: the process's own) and give its exit code."""
    arguments = sys.argv[1:] if argv is None else argv
    if arguments[:1] == ["engines"]:
        return _run("pad-export engines", lambda: _engines(_engines_parser().parse_args(arguments[1:])))
    if arguments[:1] == ["--clean"]:
        return run_interruptible("pad-export --clean", lambda: _clean(_clean_parser().parse_args(arguments[1:])))
    return _run("pad-export", lambda: _export(_parser().parse_args(arguments)))


def _run(name: str, command: Callable[[], None]) -> int:
    return run_interruptible(name, lambda: with_extra("export", _PACKAGES, command))


def _clean(options: argparse.Namespace) -> None:
    folder: Path = options.folder
    if not folder.is_dir():
        raise OptionError(f"{folder} is no folder", expected="one that bundles are in")
    left = clean(folder)
    size = sum(leftover.num_bytes for leftover in left) / 2**20
    removed = ", ".join(leftover.output.name for leftover in left)
    print(f"removed what was left of {removed} ({size:,.1f} MiB)" if left else f"nothing was left in {folder}")
    for leftover in left:
        if leftover.put_back:
            print(f"put back {leftover.output}")


def _engines(options: argparse.Namespace) -> None:
    from pad_export.engines.add import add_engines
    from pad_export.engines.build import EngineBuilder

    manifest = read_manifest(options.bundle)
    builder = EngineBuilder(options.target, options.compute_capabilities, timing_cache=options.timing_cache)
    add_engines(options.bundle, manifest, builder, options.report)
    print(f"wrote the {options.target} engines of {options.bundle}")


def _export(arguments: argparse.Namespace) -> None:
    arguments.report("loading torch")
    from pad_export.export import export_bundle
    from pad_export.read.hub_model import find_model

    find = partial(find_model, quiet=arguments.report is silent)
    arguments.backbone = arguments.backbone and find(arguments.backbone)
    manifest = export_bundle(
        find(arguments.base),
        arguments.output,
        persrms=[find(persrm) for persrm in arguments.persrm],
        options=take_options(ExportOptions, arguments),
        report=arguments.report,
    )
    size = sum(file.size for file in manifest.files.values()) / 2**20
    print(f"wrote {arguments.output} ({size:,.1f} MiB)")
    bundle, persrm = shlex.quote(str(arguments.output)), manifest.persrms[0]
    wish = "--preference 'cheerful and concise'" if persrm.takes_text else f"--weight {persrm.features[0]}=1"
    print(f"try: pad generate {bundle} 'How do I boil an egg?' {wish}")


def _clean_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="pad-export --clean",
        description="Remove what exports that were killed left beside their bundles. The next export in the folder "
        "does so too; what a running one writes is never touched.",
        allow_abbrev=False,
    )
    parser.add_argument("folder", metavar="DIR", type=Path, help="folder that the bundles are in")
    return parser


def _engines_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="pad-export engines",
        description="Build the engines of a bundle in the standard dialect, in place of its old ones.",
        allow_abbrev=False,
    )
    parser.add_argument("bundle", metavar="BUNDLE", type=Path, help="folder that pad-export wrote")
    parser.add_argument("--target", choices=contract.ENGINE_TARGETS, required=True, help="library to build with")
    _add_engine_options(parser)
    add_quiet(parser)
    return parser


def _add_engine_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--compute-capability",
        metavar="SM",
        dest="compute_capabilities",
        action="append",
        default=[],
        help="GPU that a tensorrt-rtx engine is for, such as sm89; may be given several times, for one engine of all",
    )
    parser.add_argument(
        "--timing-cache", metavar="FILE", type=Path, help="keep what tensorrt timed, so that the next build is quicker"
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="pad-export",
        description="Write a bundle that `pad generate` runs: a base model and its PersRMs in one step graph.",
        epilog="pad-export engines BUNDLE builds the engines of a bundle again, on the machine that is to run them. "
        "pad-export --clean DIR removes what exports that were killed left in a folder.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"pad-export {version('pad-rt')}")
    parser.add_argument(
        "--base",
        metavar="MODEL",
        required=True,
        help="Hugging Face model folder, a .gguf file, or OWNER/NAME or OWNER/NAME/FILE.gguf on the hub",
    )
    parser.add_argument(
        "--persrm",
        metavar="MODEL",
        action="append",
        default=[],
        help="LoRA adapter folder (may be given several times) or one merged model, or its name on the hub; "
        "without any, the base is contrasted with itself on the prompt with the preference",
    )
    parser.add_argument(
        "-o", "--output", metavar="BUNDLE", type=Path, required=True, help="folder to create, or bundle to replace"
    )
    parser.add_argument(
        "--topology",
        choices=get_args(TopologyChoice),
        default=DEFAULT_OPTIONS.topology,
        help="shared: adapters run on the base's own weights; pair: the PersRM has weights of its own; "
        "auto (default): shared where the adapters were trained on the given base",
    )
    parser.add_argument(
        "--reference",
        choices=get_args(Reference),
        default=DEFAULT_OPTIONS.reference,
        help="what the reward is measured against: base (default), or the PersRM's frozen backbone, a row more",
    )
    parser.add_argument(
        "--backbone",
        metavar="MODEL",
        help="model that the PersRMs were trained on, where it is not the base",
    )
    parser.add_argument(
        "--precision",
        choices=get_args(Precision),
        default=DEFAULT_OPTIONS.precision,
        help="element type of the weights (default %(default)s)",
    )
    parser.add_argument(
        "--activations",
        choices=get_args(Activations),
        help="element type of activations, KV cache and adapters beside weights of int8 or int4: fp32 is for a CPU "
        "(default), fp16 (default in the standard dialect) and bf16 are for a GPU",
    )
    parser.add_argument(
        "--dialect",
        choices=get_args(DialectName),
        help="ort: ONNX Runtime's fused operators (default); standard: ONNX opset 24 alone (default with engines)",
    )
    parser.add_argument(
        "--target",
        choices=get_args(Target),
        default=DEFAULT_OPTIONS.target,
        help="onnx (default): the graphs alone; tensorrt: engines for the GPU here, too; "
        "tensorrt-rtx: engines for named GPUs, which need not be here",
    )
    _add_engine_options(parser)
    parser.add_argument(
        "--max-length",
        metavar="N",
        type=int,
        help="most tokens of prompt and reply together (default: the model's own limit, at most 4096)",
    )
    parser.add_argument(
        "--max-batch",
        metavar="N",
        type=int,
        default=DEFAULT_OPTIONS.max_batch,
        help="most sequences at once (default %(default)s)",
    )
    parser.add_argument(
        "--max-top-k",
        metavar="K",
        type=int,
        default=DEFAULT_OPTIONS.max_top_k,
        help="most candidates for each token (default %(default)s)",
    )
    parser.add_argument(
        "--no-verify", dest="verify", action="store_false", help="do not compare the bundle with the torch models"
    )
    add_quiet(parser)
    return parser
