"""Models and adapters on the Hugging Face hub."""

from __future__ import annotations

import glob
from pathlib import Path

from pad_export.read.adapter import CONFIG_NAME
from pad_export.read.persrm import FEATURE_HEAD_NAME, SETTINGS_NAME
from pad_runtime.errors import CheckpointError
from pad_runtime.hub import find_repository

_FILES = ("*.json", "*.safetensors", "*.jinja", "*.model", "*.txt")
_LEFT_OUT = ("*/*", "consolidated*")  # other formats, which have folders, and Mistral's second copy of the weights


def find_model(given: str | Path, *, quiet: bool = False) -> Path:
    """The folder or GGUF file of a model or an adapter.

    Args:
        given: a path, or a repository on the hub: OWNER/NAME for its files in safetensors, OWNER/NAME/FILE.gguf for
            one of its files, with @REVISION or without. What is not in the hub's cache yet is fetched.
        quiet: show no progress.

    Raises:
        HubError: there is no such repository, or it cannot be fetched.
        CheckpointError: the repository has no such file, or is neither a model nor an adapter. Whether there is
            something at a path is not looked at.
    """
    repository = find_repository(given)
    if repository is None:
        return Path(given)
    if repository.file is None:
        folder = repository.fetch(_FILES, ignore=_LEFT_OUT, quiet=quiet)
        if not any((folder / name).is_file() for name in ("config.json", CONFIG_NAME)):
            raise CheckpointError(
                f"{repository} has no config.json and no {CONFIG_NAME}",
                expected="a model or an adapter in safetensors",
                hint="of GGUF files, give one: OWNER/NAME/FILE.gguf",
            )
        return folder
    files = (glob.escape(repository.file), SETTINGS_NAME, FEATURE_HEAD_NAME)
    path = repository.fetch(files, quiet=quiet) / repository.file
    if not path.is_file():
        raise CheckpointError(f"{repository.name} has no {repository.file}", expected="a file of the repository")
    return path
