"""Bundles on the Hugging Face hub."""

from __future__ import annotations

import json
import shutil
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from pad_runtime.bundle import contract
from pad_runtime.bundle.manifest import Manifest, open_bundle, parse_manifest
from pad_runtime.bundle.whole_file import write_whole
from pad_runtime.errors import BundleError, OptionError
from pad_runtime.hub import Repository, find_repository

_BY_HUB = Path(".cache", "huggingface")  # of huggingface_hub in a folder outside its cache; in a home, the cache
_OF_A_FETCH = "download"  # what it keeps there of a fetch
_BESIDE = {".gitignore", "CACHEDIR.TAG"}  # and what it puts beside that


def find_bundle(given: str | Path) -> Path:
    """The folder of a bundle.

    Args:
        given: a path, or OWNER/NAME of a repository on the hub, with @REVISION or without (`find_repository` tells them
            apart). A repository's bundle is fetched into the hub's cache, as far as it is not there.

    Raises:
        HubError, BundleError: as `pull_bundle`. Whether there is a bundle at a path is not looked at.
    """
    repository = _find(given)
    return Path(given) if repository is None else pull_bundle(repository)


def bundle_name(given: str | Path) -> str:
    """What the bundle is called that `find_bundle` finds: as its folder, or as its repository without the owner."""
    repository = _find(given)
    return Path(given).resolve().name if repository is None else repository.name.rpartition("/")[2]


def pull_bundle(repository: Repository, folder: Path | None = None) -> Path:
    """Fetch the bundle that is a repository: the files of its manifest and no others, all of one commit.

    Every file is hashed once, and again only if its size or time is no longer what it was then.

    Args:
        repository: with `pad.json` at its top.
        folder: where to put the bundle; None is the hub's cache.

    Returns:
        The bundle's folder.

    Raises:
        HubError: there is no such repository or revision, it has no `pad.json`, or cannot be fetched.
        BundleError: the files are not those of the manifest.
        OptionError: `folder` holds something else.
    """
    if folder is not None:
        _check_replaceable(folder)
    path = repository.fetch_file(contract.MANIFEST_FILE, expected="a repository with a bundle of pad-export at its top")
    manifest = parse_manifest(path)
    commit = replace(repository, revision=path.parent.name)
    for name in (contract.MANIFEST_FILE, *manifest.files):
        commit.fetch_file(name, expected=f"every file of its {contract.MANIFEST_FILE}", folder=folder)
    bundle = path.parent if folder is None else folder.resolve()
    try:
        _check_once(bundle, manifest, commit)
    except BundleError as error:
        old = f"`hf cache rm model/{repository.name}`" if folder is None else f"remove {folder}"
        hint = f"{old} and fetch it again; if that does not help, the repository's files are not those of its pad.json"
        raise BundleError(error.given, expected=error.expected, hint=hint) from None
    if folder is not None:
        _remove_traces(folder / _BY_HUB)
    return bundle


def _find(given: str | Path) -> Repository | None:
    repository = find_repository(given)
    return None if repository is None or repository.file else repository  # a file is no bundle


def _check_replaceable(folder: Path) -> None:
    """Refuse any folder but an empty one, a bundle, and a bundle that was not fetched to its end."""
    if folder.is_dir() and ((folder / contract.MANIFEST_FILE).exists() or _names(folder) <= {_BY_HUB.parts[0]}):
        return
    if folder.exists():
        raise OptionError(f"-o {folder} exists and is not a bundle", hint="choose another folder, or remove that one")


def _remove_traces(kept: Path) -> None:
    """Remove what huggingface_hub kept of a fetch into a folder, and nothing else that is there."""
    shutil.rmtree(kept / _OF_A_FETCH, ignore_errors=True)
    with suppress(OSError):  # other files are there
        if _names(kept) <= _BESIDE:
            shutil.rmtree(kept)
            kept.parent.rmdir()


def _names(folder: Path) -> set[str]:
    return {each.name for each in folder.iterdir()}


def _check_once(bundle: Path, manifest: Manifest, commit: Repository) -> None:
    """Hash every file, unless a record in the hub's cache says that files of these sizes and times were found whole."""
    from huggingface_hub import cached_assets_path

    stats = {name: (bundle / name).stat() for name in manifest.files if (bundle / name).is_file()}
    seen = {str(bundle / name): [stat.st_size, stat.st_mtime_ns] for name, stat in stats.items()}
    record: Path | None = None
    with suppress(OSError, ValueError):  # a cache that cannot be written, or no JSON
        record = cached_assets_path("pad-rt", commit.name) / f"{commit.revision}.json"
        if json.loads(record.read_text(encoding="utf-8")) == seen:
            return
    open_bundle(bundle, check=True)
    with suppress(OSError):
        if record is not None:
            write_whole(record, json.dumps(seen, indent=1).encode())
