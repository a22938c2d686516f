"""What a server serves: bundles by their names, and people as models of their own."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from pad_rt.api.error import ApiError
from pad_rt.api.guidance import Guidance
from pad_rt.api.people import may_name_a_person, read_people
from pad_rt.api.reply import fingerprint_of
from pad_rt.generator import Generator
from pad_rt.hub import bundle_name
from pad_rt.serve.settings import ServeSettings
from pad_rt.taste.taste import Taste
from pad_runtime.bundle.manifest import Manifest
from pad_runtime.errors import OptionError, PadError


@dataclass(frozen=True)
class ServedModel:
    """What a name stands for.

    Attributes:
        name: of the bundle.
        generator: that replies.
        guidance: of the person; None for the bundle by itself.
        person: their name.
        created: when it was loaded, in seconds since 1970.
    """

    name: str
    generator: Generator
    guidance: Guidance | None = None
    person: str | None = None
    created: int = field(default_factory=lambda: int(time.time()))

    @property
    def id(self) -> str:
        """The name that a body gives: "bundle", or "bundle:person"."""
        return self.name if self.person is None else f"{self.name}:{self.person}"

    @cached_property
    def fingerprint(self) -> str:
        """Tells this bundle from every other."""
        return fingerprint_of(self.generator.manifest)

    def describe(self) -> dict[str, Any]:
        """The entry of GET /v1/models."""
        return describe_model(self.id, self.generator.manifest, self.guidance, self.created)


class Models(Protocol):
    """The models of a server."""

    async def open(self) -> None:
        """Load them; nothing else is called before."""

    async def get(self, name: str) -> ServedModel:
        """The model of a body.

        Raises:
            ApiError: there is none of this name.
        """

    def describe(self) -> list[dict[str, Any]]:
        """The entries of GET /v1/models, each bundle before its people."""

    def served(self) -> list[ServedModel]:
        """Those that are in memory as long as the server runs, each bundle before its people."""

    def close(self) -> None:
        """Cancel what runs, and free memory."""


class LoadedModels:
    """Models that are loaded when the server starts, and stay.

    Args:
        load: gives the generators, by the bundles' names.
        people: by name, guidance or the file of a saved taste. A person is served with each bundle that has what the
            guidance calls on, or that the taste was learned with.
    """

    def __init__(self, load: Callable[[], Mapping[str, Generator]], people: Mapping[str, Guidance | Path]) -> None:
        self._load, self._people = load, people
        self._models: dict[str, ServedModel] = {}

    @classmethod
    def of(cls, settings: ServeSettings) -> LoadedModels:
        """Those of a server's settings.

        Raises:
            OptionError: the file of people cannot be read, or two bundles have one name.
        """
        names = [settings.name or bundle_name(bundle) for bundle in settings.bundles]
        if len(set(names)) < len(names):
            raise OptionError(f"bundles named {', '.join(names)}", expected="a folder name for each")
        people: dict[str, Guidance | Path] = {} if settings.people is None else dict(read_people(settings.people))
        for file in settings.tastes:
            if file.stem in people or not may_name_a_person(file.stem):
                raise OptionError(f"--taste {file}", expected="a file whose name is a person's, and nobody else's")
            people[file.stem] = file
        named = dict(zip(names, settings.bundles, strict=True))
        return cls(lambda: {name: load_generator(bundle, settings) for name, bundle in named.items()}, people)

    async def open(self) -> None:
        """Load the bundles, and check the people with them.

        Raises:
            PadError: a bundle cannot be loaded, or a person fits none of them.
        """
        generators = await asyncio.to_thread(self._load)
        for name, generator in generators.items():
            self._models[name] = ServedModel(name, generator)
        for person, told in self._people.items():
            await asyncio.to_thread(self._add, person, told, generators)

    def _add(self, person: str, told: Guidance | Path, generators: Mapping[str, Generator]) -> None:
        errors = []
        for name, generator in generators.items():
            try:
                guidance = taste_of(told, generator) if isinstance(told, Path) else told
                check(guidance, generator)
            except PadError as error:
                errors.append(error)
            else:
                model = ServedModel(name, generator, guidance, person)
                self._models[model.id] = model
        if len(errors) == len(generators):
            hint = "or leave this --taste out" if isinstance(told, Path) else "correct the file of people"
            raise OptionError(f"the person {person!r}: {errors[0]}", hint=hint)

    async def get(self, name: str) -> ServedModel:
        """The model of this name."""
        if name not in self._models:
            raise unknown_model(name)
        return self._models[name]

    def describe(self) -> list[dict[str, Any]]:
        """The entries of GET /v1/models."""
        return [model.describe() for model in self.served()]

    def served(self) -> list[ServedModel]:
        """All of them."""
        return list(self._models.values())

    def close(self) -> None:
        """Close the generators."""
        for model in self.served():
            model.generator.close()


def unknown_model(name: str) -> ApiError:
    """The error of a name that nothing is served under."""
    message = f"the model {name!r:.200} does not exist; GET /v1/models names those that do"
    return ApiError(404, "invalid_request_error", "model_not_found", "model", message)


def describe_model(id: str, manifest: Manifest, guidance: Guidance | None, created: int) -> dict[str, Any]:
    """The entry of GET /v1/models for a bundle, or for a person who is served with it."""
    return {
        "id": id,
        "object": "model",
        "created": created,
        "owned_by": "pad-rt",
        "pad": {
            "base": manifest.base,
            "features": [feature for persrm in manifest.persrms for feature in persrm.features],
            "reads_words": any(persrm.takes_text for persrm in manifest.persrms),
            "max_length": manifest.max_length,
            "max_top_k": manifest.max_top_k,
            "person": None if guidance is None else guidance.as_dict(),
        },
    }


def taste_of(file: Path, generator: Generator) -> Guidance:
    """What a saved taste wishes.

    Raises:
        TasteError: it cannot be read, or is of other PersRMs.
    """
    return Guidance(weights=Taste.load(file, generator).preference().weights)


def check(guidance: Guidance, generator: Generator) -> None:
    """Refuse guidance that a bundle cannot follow.

    Raises:
        PadError: an unknown feature, words where no PersRM reads them, or an option out of range.
    """
    most = generator.manifest.max_top_k
    if guidance.top_k is not None and guidance.top_k > most:
        raise OptionError(f"top_k {guidance.top_k}", expected=f"at most {most}")
    generator.room("?", preference=guidance.wish(), config=guidance.options)


def load_generator(bundle: str | Path, settings: ServeSettings) -> Generator:
    """A generator whose graphs are all open, so that no request waits for them."""
    generator = Generator.load(
        bundle,
        device=settings.device,
        num_threads=settings.threads,
        max_waiting=settings.max_waiting,
        max_cache_mib=settings.max_cache_mib,
        keep_mib=settings.keep_mib,
    )
    generator.open(guided=False)
    return generator
