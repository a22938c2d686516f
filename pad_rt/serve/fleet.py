"""A fleet: the server as a Ray Serve deployment, whose replicas come and go with the queue."""

from __future__ import annotations

import asyncio
import math
import os
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from ray import serve
from ray.serve import Application
from starlette.applications import Starlette

from pad_rt.api.guidance import Guidance
from pad_rt.api.people import read_people
from pad_rt.generator import Generator
from pad_rt.hub import bundle_name, find_bundle
from pad_rt.serve.app import create_app
from pad_rt.serve.models import ServedModel, describe_model, load_generator, unknown_model
from pad_rt.serve.settings import ServeSettings, flags
from pad_runtime.bundle.manifest import read_manifest
from pad_runtime.errors import OptionError

_SESSION_ROUTER = "ray.serve.experimental.consistent_hash_router.ConsistentHashRouter"
_RETRY_AFTER_S = 1.0  # of a request that the queue has no place for


@dataclass(frozen=True, kw_only=True)
class FleetOptions:
    """How many replicas there are, and what each of them takes.

    Args:
        min_replicas, max_replicas: how few and how many; in between, as many as keep each one's batch full.
        cpus, gpus: of the cluster, for each replica.
        max_bundles: bundles that a replica has in memory; the one that was asked for least recently makes room.
        max_queued: requests that wait at each proxy for a place at a replica; further ones get 429.
        upscale_delay, downscale_delay: seconds for which the queue calls for another number of replicas before it
            changes.
        route_by: "queue", to the replica with the fewest requests, and among those that have the bundle; or "session",
            to the same one for each value of the header x-session-id, which has read the chat so far.

    Raises:
        OptionError: a value outside its range.
    """

    min_replicas: int = 1
    max_replicas: int = 1
    cpus: float = 1.0
    gpus: float = 0.0
    max_bundles: int = 1
    max_queued: int = 256
    upscale_delay: float = 10.0
    downscale_delay: float = 300.0
    route_by: str = "queue"

    def __post_init__(self) -> None:
        for option in fields(self):
            value = getattr(self, option.name)
            if type(option.default) is int and (type(value) is not int or value < 1):
                raise OptionError(f"{option.name}={value!r}", expected="an integer >= 1")
            if type(option.default) is float and not 0 <= value < math.inf:
                raise OptionError(f"{option.name}={value!r}", expected="a number >= 0")
        if self.route_by not in ("queue", "session"):
            raise OptionError(f"route_by={self.route_by!r}", expected="queue or session")
        if self.max_replicas < self.min_replicas:
            raise OptionError(
                f"max_replicas={self.max_replicas}", expected=f"min_replicas, {self.min_replicas}, or more"
            )


def application(arguments: Mapping[str, Any]) -> Application:
    """The deployment, for `serve run pad_rt.serve.fleet:application bundles=/models/a,/models/b max_replicas=8`, or as
    `import_path` and `args` of a config file.

    Args:
        arguments: `bundles`, paths at which each machine has them, or names on the hub; the fields of `FleetOptions`;
            and the other options of `pad serve`, by their names in `ServeSettings`. Environment variables count, too.

    Raises:
        OptionError: an argument that does not exist, or a value outside its range.
        BundleError: a bundle cannot be opened here.
    """
    options, settings = read_arguments(arguments)
    bundles = {settings.name or bundle_name(bundle): bundle for bundle in settings.bundles}
    if not bundles or len(bundles) < len(settings.bundles):
        raise OptionError(f"bundles={arguments.get('bundles')!r}", expected="bundles, each with a name of its own")
    max_batch = max(read_manifest(find_bundle(bundle)).max_batch for bundle in bundles.values())
    deployment = serve.deployment(
        name="pad",
        ray_actor_options={"num_cpus": options.cpus, "num_gpus": options.gpus},
        autoscaling_config={
            "min_replicas": options.min_replicas,
            "max_replicas": options.max_replicas,
            "target_ongoing_requests": max_batch,
            "upscale_delay_s": options.upscale_delay,
            "downscale_delay_s": options.downscale_delay,
        },
        max_ongoing_requests=2 * max_batch,  # a replica's own queue is short: behind it, any replica takes what waits
        max_queued_requests=options.max_queued,
        backpressure_config={"status_code": 429, "retry_after_s": _RETRY_AFTER_S},
        graceful_shutdown_timeout_s=settings.drain_timeout,
        **(
            {"request_router_config": {"request_router_class": _SESSION_ROUTER}}
            if options.route_by == "session"
            else {}
        ),
    )
    return deployment(_replica(options.max_bundles)).bind(settings, bundles)


def read_arguments(arguments: Mapping[str, Any]) -> tuple[FleetOptions, ServeSettings]:
    """What `application` is given, in two parts: how many replicas, and what each of them serves.

    Raises:
        OptionError: an argument that does not exist, or a value outside its range.
    """
    kinds = {option.name: type(option.default) for option in fields(FleetOptions)}
    given: dict[str, Any] = {}
    served: dict[str, Any] = {}
    for name, value in arguments.items():
        if name in kinds:
            given[name] = _read_option(name, value, kinds[name])
        elif name in flags():
            texts = value if isinstance(value, list) else [value]
            served[name] = [str(text) for text in texts] if flags()[name].is_list else str(value)
        elif name != "bundles":
            known = ", ".join(["bundles", *kinds, *flags()])
            raise OptionError(f"unknown argument {name!r}", expected=f"one of {known}")
    bundles = arguments.get("bundles", [])
    paths = bundles.split(",") if isinstance(bundles, str) else bundles
    options = FleetOptions(**given)
    served.setdefault("threads", str(max(1, int(options.cpus))))
    return options, ServeSettings.read(paths, served, os.environ)


def _read_option(name: str, value: object, kind: type) -> Any:
    """A value, or its text, as `serve run` gives it."""
    try:
        return kind(str(value))
    except ValueError:
        raise OptionError(f"{name}={value!r}", expected="an integer" if kind is int else "a number") from None


def _replica(max_bundles: int) -> type:
    """The class of replicas. Ray takes the number of bundles where a class is made."""

    @serve.ingress()
    class Replica:
        """The app in a process of its own. It is ready once the bundles that it has room for are loaded."""

        def __init__(self, settings: ServeSettings, bundles: dict[str, str | Path]) -> None:
            self._settings, self._bundles = settings, bundles

        @serve.multiplexed(max_num_models_per_replica=max_bundles)  # type: ignore[untyped-decorator]
        async def load(self, name: str) -> Generator:
            """A bundle by its name; Ray forgets it again, and its memory is free once its last reply has ended."""
            return await asyncio.to_thread(load_generator, self._bundles[name], self._settings)

        async def __serve_build_asgi_app__(self) -> Starlette:
            for name in list(self._bundles)[:max_bundles]:
                await self.load(name)
            return create_app(self._settings, MultiplexedModels(self._settings, self._bundles, self.load))

    return Replica


class MultiplexedModels:
    """Models that a replica loads when they are asked for.

    Each person is served with each bundle: that guidance does not fit is told to the request that asks for it.

    Args:
        settings: whose people are served.
        bundles: folders, or names on the hub, by the names that clients use.
        load: gives the generator of a bundle by its name.
    """

    def __init__(
        self, settings: ServeSettings, bundles: Mapping[str, str | Path], load: Callable[[str], Awaitable[Generator]]
    ) -> None:
        if settings.tastes:
            raise OptionError(
                "tastes in a fleet", expected="people, or learn=URL of a database that all replicas reach"
            )
        self._manifests = {name: read_manifest(find_bundle(bundle)) for name, bundle in bundles.items()}
        self._people = {} if settings.people is None else read_people(settings.people)
        self._named: dict[str, tuple[str, str | None]] = {}  # bundle and person, each bundle before its people
        for bundle in bundles:
            self._named |= {bundle: (bundle, None)} | {
                f"{bundle}:{person}": (bundle, person) for person in self._people
            }
        self._load, self._created = load, int(time.time())

    async def open(self) -> None:
        """Nothing is loaded yet."""

    async def get(self, name: str) -> ServedModel:
        """The model of this name, loaded if it is not."""
        if name not in self._named:
            raise unknown_model(name)
        bundle, person = self._named[name]
        generator = await self._load(bundle)
        return ServedModel(bundle, generator, self._guidance_of(person), person, created=self._created)

    def describe(self) -> list[dict[str, Any]]:
        """The entries of GET /v1/models."""
        return [
            describe_model(id, self._manifests[bundle], self._guidance_of(person), self._created)
            for id, (bundle, person) in self._named.items()
        ]

    def _guidance_of(self, person: str | None) -> Guidance | None:
        return None if person is None else self._people[person]

    def served(self) -> list[ServedModel]:
        """None: each may be forgotten."""
        return []

    def close(self) -> None:
        """Nothing is left to do: the replica's process ends."""
