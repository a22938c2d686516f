"""A generator that answers the lines of a batch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pad_rt.api.chat_request import read_chat_request
from pad_rt.api.completion_request import read_completion_request
from pad_rt.api.error import ApiError
from pad_rt.api.people import read_people
from pad_rt.api.reply import Reply, fingerprint_of
from pad_rt.batch.lines import BatchLine
from pad_rt.generator import Generator
from pad_rt.hub import bundle_name
from pad_runtime.bundle.manifest import Manifest
from pad_runtime.errors import OutOfMemoryError, PadError

_ANY_NUMBER = 2**31  # of requests may wait: as many lines as there are threads, with all their choices


@dataclass(frozen=True, kw_only=True)
class BatchOptions:
    """What answers a batch.

    Args:
        bundle: a folder written by pad-export, or OWNER/NAME on the hub.
        name: what requests call it; None: as its folder, or as on the hub without the owner.
        people: the file of named people.
        max_new_tokens: most tokens that a request may ask for, and those that it gets if it does not say.
        device, threads: as of `Generator.load`.
    """

    bundle: str | Path
    name: str | None = None
    people: Path | None = None
    max_new_tokens: int = 1024
    device: str = "auto"
    threads: int | None = None


class Answerer:
    """Answers lines with one bundle. Any number of threads may ask; their lines run side by side.

    Raises:
        PadError: the bundle or the file of people cannot be opened.
    """

    def __init__(self, options: BatchOptions) -> None:
        name, people = options.name or bundle_name(options.bundle), {}
        if options.people is not None:
            people = {f"{name}:{person}": pad for person, pad in read_people(options.people).items()}
        self._models = {name: None, **people}
        self._max_new_tokens = options.max_new_tokens
        self._generator = Generator.load(
            options.bundle, device=options.device, num_threads=options.threads, max_waiting=_ANY_NUMBER
        )
        self._fingerprint = fingerprint_of(self._generator.manifest)

    @property
    def num_places(self) -> int:
        """Lines that it is worth giving it at a time."""
        return places_of(self._generator.manifest)

    def answer(self, line: BatchLine) -> dict[str, Any]:
        """Wait for the result of a line: an object as OpenAI's batches have them.

        Raises:
            PadError: no line can be answered any more. What is wrong with this one is in its result.
        """
        result = {"id": line.id, "custom_id": line.custom_id, "response": None, "error": None}
        if line.fault is not None:
            code, message = line.fault
            return {**result, "error": {"code": code, "message": message, "param": None, "line": line.number}}
        try:
            status, body = 200, self._reply(line)
        except ApiError as error:
            if error.status >= 500 and not isinstance(error.__cause__, OutOfMemoryError):
                raise (error.__cause__ or error) from None
            status, body = error.status, error.body
        request_id = line.id.replace("batch_req", "req")
        return {**result, "response": {"status_code": status, "request_id": request_id, "body": body}}

    def _reply(self, line: BatchLine) -> dict[str, Any]:
        read = read_chat_request if line.url == "/v1/chat/completions" else read_completion_request
        request = read(line.body)
        if request.stream:
            raise ApiError(400, "invalid_request_error", None, "stream", "stream=true in a batch; leave it out")
        if request.model not in self._models:
            message = f"no model {request.model!r:.80}; expected one of {', '.join(list(self._models)[:8])}"
            raise ApiError(404, "invalid_request_error", "model_not_found", "model", message)
        person = self._models[request.model]
        tickets = request.submit(self._generator, person, max_new_tokens=self._max_new_tokens)
        explains = bool(request.guidance_of(person).explain)
        reply = Reply(request, self._generator, request.model, explains=explains, fingerprint=self._fingerprint)
        try:
            events = [list(ticket) for ticket in tickets]
            for ticket in tickets:
                ticket.result()  # raises what ended it
        except PadError as error:
            raise request.to_api_error(error) from error
        finally:
            for ticket in tickets:
                ticket.cancel()
        return reply.whole(events)

    def close(self) -> None:
        """End the replies that run."""
        self._generator.close()


def places_of(manifest: Manifest) -> int:
    """Lines that it is worth giving one generator at a time: while its batch is full, the next ones are got ready."""
    return 2 * manifest.max_batch
