"""A batch on a Ray cluster: replicas that answer lines, wherever there is room for them."""

from __future__ import annotations

import logging
import os
import queue
import threading
from dataclasses import replace
from typing import Any

import ray
from ray.exceptions import RayActorError, RayTaskError

from pad_rt.batch.answerer import Answerer, BatchOptions, places_of
from pad_rt.batch.lines import BatchLine
from pad_rt.hub import find_bundle
from pad_runtime.bundle.manifest import read_manifest
from pad_runtime.errors import CancelledError, DeviceError, PadError

_RETRIES = 3  # of a line whose replica died: a line that kills every replica may not be tried for ever


class Cluster:
    """Answers lines on replicas of a bundle. A replica that dies is begun anew, and its lines are answered again.

    Args:
        options: of each replica. A bundle's folder is at that path on each machine, this one too.
        replicas: how many; None takes as many as the cluster has room for now. Those that it has no room for join when
            it has.
        cpus, gpus: what each of them takes of the cluster's cores and GPUs. A replica has a thread for each core.

    Raises:
        PadError: the bundle cannot be opened, or the cluster cannot be reached or has no room.
    """

    def __init__(self, options: BatchOptions, *, replicas: int | None, cpus: float, gpus: float) -> None:
        self._places = places_of(read_manifest(find_bundle(options.bundle)))
        self._was_connected = ray.is_initialized()
        if not self._was_connected:
            _connect()
        kind = ray.remote(
            num_cpus=cpus, num_gpus=gpus, max_concurrency=self._places, max_restarts=-1, max_task_retries=_RETRIES
        )(_Replica)
        options = replace(options, threads=options.threads or max(1, int(cpus)))
        self._replicas = [kind.remote(options) for _ in range(replicas or _room(cpus, gpus))]
        # Replicas that are open, once for each line that they may still take; or why no line can be answered any more.
        self._free = queue.SimpleQueue[Any]()
        for each in self._replicas:
            threading.Thread(target=self._join, args=(each,), daemon=True).start()

    @property
    def num_places(self) -> int:
        """Lines that it is worth giving it at a time."""
        return self._places * len(self._replicas)

    def answer(self, line: BatchLine) -> dict[str, Any]:
        """Wait for the result of a line. As `Answerer.answer`."""
        replica = self._free.get()
        try:
            if isinstance(replica, PadError):
                raise replica
            result: dict[str, Any] = _get(replica.answer.remote(line), f"line {line.number}")
            return result
        finally:
            self._free.put(replica)

    def close(self) -> None:
        """End the replicas, and what was begun for them."""
        self._free.put(CancelledError("the batch was ended"))
        for replica in self._replicas:
            ray.kill(replica)
        if not self._was_connected:
            ray.shutdown()

    def _join(self, replica: Any) -> None:
        """Let a replica take lines once it is open."""
        try:
            _get(replica.open.remote(), "its bundle")
        except PadError as error:
            self._free.put(error)
        else:
            for _ in range(self._places):
                self._free.put(replica)


class _Replica:
    """An `Answerer` in a process of the cluster. It is opened by a method: Ray tells a method's errors as they are."""

    def __init__(self, options: BatchOptions) -> None:
        self._options, self._opening = options, threading.Lock()
        self._answerer: Answerer | None = None

    def open(self) -> None:
        """Open the bundle, unless it is."""
        with self._opening:
            self._answerer = self._answerer or Answerer(self._options)

    def answer(self, line: BatchLine) -> dict[str, Any]:
        self.open()
        assert self._answerer is not None
        return self._answerer.answer(line)


def _get(reference: Any, what: str) -> Any:
    """What a replica returns."""
    try:
        return ray.get(reference)
    except RayTaskError as error:
        if isinstance(error.cause, PadError):
            raise error.cause from None
        raise
    except RayActorError:
        hint = "run the command again to go on, with more memory or fewer replicas a machine"
        raise DeviceError(f"a replica died {_RETRIES + 1} times over {what}", hint=hint) from None


def _connect() -> None:
    """Connect to the cluster that RAY_ADDRESS names, or one that runs on this machine, or begin one here."""
    if os.environ.get("RAY_ADDRESS"):
        os.environ.setdefault("RAY_gcs_server_port_wait_time_s", "1")  # Ray would try for a quarter of an hour
    try:
        ray.init(log_to_driver=False, logging_level=logging.ERROR, include_dashboard=False)
    except (ConnectionError, ValueError, RuntimeError) as error:
        reason = str(error).partition("\n")[0]
        raise DeviceError(f"no Ray cluster: {reason}", expected="one that answers, or RAY_ADDRESS unset") from None


def _room(cpus: float, gpus: float) -> int:
    """Replicas that the cluster has room for now."""
    free = ray.available_resources()
    room = min((int(free.get(kind, 0) / each) for kind, each in (("CPU", cpus), ("GPU", gpus)) if each), default=1)
    if room < 1:
        raise DeviceError(
            f"a cluster with {free.get('CPU', 0):g} cores and {free.get('GPU', 0):g} GPUs free",
            expected=f"{cpus:g} and {gpus:g} for a replica",
        )
    return room
