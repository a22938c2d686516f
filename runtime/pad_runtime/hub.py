"""Repositories on the Hugging Face hub: which texts name one, and its files.

huggingface_hub fetches them, and what steers it elsewhere steers it here: HF_HOME, HF_TOKEN, HF_ENDPOINT,
HF_HUB_OFFLINE. It is imported when a repository is asked for files, and not before.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from pad_runtime.errors import HubError

_WORD = r"[A-Za-z0-9_](?:[A-Za-z0-9_]|[-.](?=[A-Za-z0-9_])){0,95}"
_NAME = re.compile(
    rf"(?P<name>{_WORD}/{_WORD})(?<!\.git)(?:/(?P<file>[^@]+\.gguf))?(?:@(?P<revision>[A-Za-z0-9_][\w./+-]*))?"
)
_LIBRARY = {"library_name": "pad-rt", "library_version": version("pad-rt")}


@dataclass(frozen=True)
class Repository:
    """A model repository.

    Attributes:
        name: "OWNER/NAME".
        file: path of a GGUF file in it, None for the repository as a whole.
        revision: branch, tag or commit; None is the main branch.
    """

    name: str
    file: str | None = None
    revision: str | None = None

    @classmethod
    def parse(cls, text: str) -> Repository | None:
        """OWNER/NAME or OWNER/NAME/FILE.gguf, either with @REVISION; None for any other text."""
        match = _NAME.fullmatch(text)
        return None if match is None else cls(**match.groupdict())

    def __str__(self) -> str:
        return self.name + (f"/{self.file}" if self.file else "") + (f"@{self.revision}" if self.revision else "")

    def fetch_file(self, file: str, *, expected: str, folder: Path | None = None) -> Path:
        """A file of the repository in the hub's cache, fetched if it is not there as the revision has it.

        Args:
            file: path in the repository.
            expected: what a repository is that has the file, for the error.
            folder: where the file is to be instead of the cache.

        Raises:
            HubError: there is no such repository, revision or file, or it cannot be fetched.
        """
        with _asking(self, file, expected):
            from huggingface_hub import hf_hub_download

            return Path(hf_hub_download(self.name, file, revision=self.revision, local_dir=folder, **_LIBRARY))

    def fetch(self, files: Sequence[str], *, ignore: Sequence[str] = (), quiet: bool = False) -> Path:
        """The folder of a commit in the hub's cache, with all files that match a pattern: missing ones are fetched.

        Args:
            files: patterns of paths in the repository, whose `*` matches `/`, too.
            ignore: patterns of paths to leave out of these.
            quiet: show no progress.

        Raises:
            HubError: there is no such repository or revision, or files are missing and cannot be fetched.
        """
        patterns = {"allow_patterns": list(files), "ignore_patterns": list(ignore)}
        with _asking(self):
            from huggingface_hub import snapshot_download
            from huggingface_hub.utils import disable_progress_bars

            with disable_progress_bars() if quiet else nullcontext():
                return Path(snapshot_download(self.name, revision=self.revision, **patterns, **_LIBRARY))


def find_repository(given: str | os.PathLike[str]) -> Repository | None:
    """The repository that a text names, as `Repository.parse`.

    Returns:
        None for a path: for whatever exists here, every `Path`, and every other text, such as "./OWNER/NAME" or "NAME".
    """
    return Repository.parse(given) if isinstance(given, str) and not os.path.lexists(given) else None


@contextmanager
def _asking(repository: Repository, file: str = "", expected: str = "") -> Iterator[None]:
    """The block asks the hub for files of a repository, and raises its errors as `HubError`s."""
    try:
        import httpx2
        import huggingface_hub  # noqa: F401 - both are of one extra
    except ModuleNotFoundError as error:
        raise HubError(
            f"no path {repository} here, and {error.name} is not installed, which fetches repositories from the hub",
            hint="pip install 'pad-rt[hub]', or give a path that exists",
        ) from None
    try:
        yield
    except (httpx2.HTTPError, OSError, RuntimeError, ValueError) as error:  # hf_xet raises the last two
        raise _translate(error, repository, file, expected) from None


def _translate(error: BaseException, repository: Repository, file: str, expected: str) -> HubError:
    """The `HubError` for one of huggingface_hub."""
    from huggingface_hub import constants, errors

    if isinstance(error, errors.GatedRepoError):
        return HubError(
            f"{repository} is gated",
            expected="the token of an account that was given access",
            hint="ask for access on the repository's page, then `hf auth login` or set HF_TOKEN",
        )
    if isinstance(error, errors.RepositoryNotFoundError):
        return HubError(
            f"no path {repository} here, and no such repository on the hub",
            expected="a path, or OWNER/NAME of a repository",
            hint="a private one needs `hf auth login` or HF_TOKEN",
        )
    if isinstance(error, errors.RevisionNotFoundError):
        revision = repository.revision or "main"
        return HubError(f"{repository.name} has no revision {revision}", expected="a branch, tag or commit")
    if isinstance(error, errors.RemoteEntryNotFoundError):
        return HubError(f"{repository} has no {file}", expected=expected)
    if isinstance(error, errors.HfHubHTTPError):
        status = error.response.status_code
        hint = "check HF_TOKEN, or `hf auth login`" if status in (401, 403) else "try again later"
        return HubError(f"the hub answered {status} when asked for {repository}", hint=hint)
    if isinstance(error, errors.LocalEntryNotFoundError | errors.OfflineModeIsEnabled):
        if isinstance(error.__cause__, errors.HfHubHTTPError):
            return _translate(error.__cause__, repository, file, expected)
        offline = constants.is_offline_mode()
        return HubError(
            f"{repository} is not whole in the hub's cache, and "
            + ("HF_HUB_OFFLINE is set" if offline else "the hub cannot be reached"),
            hint=("unset it once" if offline else "check the network and try again") + ", or give a path that exists",
        )
    reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return HubError(f"{repository} cannot be fetched: {reason}", hint="try again: files that are whole are kept")
