"""A fleet of two replicas, through the official client."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import openai
import pytest
import ray
from ray import serve

from tests.fleet.conftest import CHEERFUL, MAX_BATCH, Bundles, Deploy, client_of
from tests.fleet.streams import Stream, wait_for

TWO = {"min_replicas": 2, "max_replicas": 2}


def ask(
    prompt: str, pad: dict[str, Any] | None = None, *, model: str = "sunny", max_tokens: int = 24
) -> dict[str, Any]:
    """The body of a greedy request."""
    return {
        "model": model,
        "messages": [{"role": "user", "content": prompt}],
        "max_tokens": max_tokens,
        "temperature": 0,
        "extra_body": {} if pad is None else {"pad": pad},
    }


def names_of_replicas() -> list[str]:
    """Of those that have not died, begun or not."""
    names = [each["name"] for each in ray.util.list_named_actors(all_namespaces=True)]
    return [name for name in names if name.startswith("SERVE_REPLICA::")]


def replicas() -> dict[str, int]:
    """Process ids of the replicas, by their names."""
    handles = {name: ray.get_actor(name, namespace="serve") for name in names_of_replicas()}
    return {name: ray.get(handle.__ray_call__.remote(lambda _: os.getpid())) for name, handle in handles.items()}


def num_running() -> int:
    """Replicas that take requests."""
    (app,) = serve.status().applications.values()
    return app.deployments["pad"].replica_states.get("RUNNING", 0)


def test_streamed_guided_replies_are_those_of_a_generator_alone(deploy: Deploy, bundles: Bundles) -> None:
    client = client_of(deploy("sunny", **TWO))
    assert num_running() == 2
    prompts = [f"egg {number}" for number in range(8)]
    weights = [1.0, -1.0, None, 0.5] * 2
    streams = [
        Stream(client, **ask(prompt, None if weight is None else {"weights": {"cheerful": weight}}))
        for prompt, weight in zip(prompts, weights, strict=True)
    ]
    for stream in streams:
        stream.join()
    assert [stream.error for stream in streams] == [None] * 8
    expected = [
        bundles.reply("sunny", prompt, weight, max_new_tokens=24)
        for prompt, weight in zip(prompts, weights, strict=True)
    ]
    assert [stream.text for stream in streams] == expected
    assert bundles.reply("sunny", prompts[0], -1.0, max_new_tokens=24) != expected[0], "the preference matters"


def test_a_replica_that_is_killed_fails_its_replies_alone(deploy: Deploy, bundles: Bundles) -> None:
    client = client_of(deploy("sunny", **TWO))
    before = replicas()
    assert len(before) == 2
    prompts = [f"egg {number}" for number in range(3 * MAX_BATCH)]  # one replica has places for 2 * MAX_BATCH
    streams = [Stream(client, **ask(prompt, CHEERFUL, max_tokens=1000)) for prompt in prompts]
    wait_for("both reply", lambda: sum(bool(each.text or each.error) for each in streams) >= 2 * MAX_BATCH)
    assert all(stream.is_alive() for stream in streams)
    name, victim = next(iter(before.items()))
    os.kill(victim, signal.SIGKILL)

    later = client.chat.completions.create(**ask("and now?", CHEERFUL))
    assert later.choices[0].message.content == bundles.reply("sunny", "and now?", 1.0, max_new_tokens=24)
    for stream in streams:
        stream.join()
    failed = [stream.error for stream in streams if stream.error is not None]
    assert MAX_BATCH <= len(failed) <= 2 * MAX_BATCH
    assert all(isinstance(error, openai.APIConnectionError) for error in failed), failed
    for prompt, stream in zip(prompts, streams, strict=True):
        whole = bundles.reply("sunny", prompt, 1.0, max_new_tokens=1000)
        assert stream.text == whole if stream.error is None else whole.startswith(stream.text)

    wait_for("the replica is missed", lambda: name not in names_of_replicas())
    wait_for("a new replica comes", lambda: len(names_of_replicas()) == num_running() == 2)
    assert len(set(replicas().values()) - set(before.values())) == 1
    for prompt in prompts:
        reply = client.chat.completions.create(**ask(prompt, CHEERFUL))
        assert reply.choices[0].message.content == bundles.reply("sunny", prompt, 1.0, max_new_tokens=24)


def test_a_replica_has_some_of_many_bundles_in_memory(deploy: Deploy, bundles: Bundles, people: Path) -> None:
    url = deploy("sunny", "cloudy", max_bundles=1, people=people)
    client = client_of(url)
    names = ["sunny", "sunny:anna", "cloudy", "cloudy:anna"]
    assert [model.id for model in client.models.list()] == names
    assert client.models.retrieve("cloudy:anna").model_extra["pad"]["person"] == CHEERFUL
    expected = {
        name: bundles.reply(name.partition(":")[0], "egg", 1.0 if ":" in name else None, max_new_tokens=24)
        for name in names
    }
    assert len(set(expected.values())) == 3, "the bundles differ in their PersRMs alone"
    for name in [*names, *reversed(names)]:
        reply = client.chat.completions.create(
            **ask("egg", model=name), extra_headers={"serve-multiplexed-model-id": name.partition(":")[0]}
        )
        assert reply.choices[0].message.content == expected[name]
    for wrong in ("rainy", "sunny:bob", "sunny:"):
        with pytest.raises(openai.NotFoundError, match="does not exist"):
            client.chat.completions.create(**ask("egg", model=wrong))


def test_a_client_that_leaves_frees_its_place(deploy: Deploy) -> None:
    client = client_of(deploy("sunny", max_new_tokens=1900))
    for _ in range(3 * MAX_BATCH):  # more than there are places
        stream = client.chat.completions.create(stream=True, n=16, **ask("egg", CHEERFUL, max_tokens=1900))
        next(iter(stream))
        stream.close()
    metrics = client.with_options(base_url=str(client.base_url).removesuffix("v1/"))
    left = f'pad:request_failure_total{{model_name="sunny",status="499"}} {3 * MAX_BATCH}'
    wait_for("all have left", lambda: left in metrics.get("/metrics", cast_to=str))


def test_more_than_the_queue_holds_is_told_to_come_back(deploy: Deploy) -> None:
    client = client_of(deploy("sunny", max_queued=1), max_retries=0)
    streams = [Stream(client, **ask("egg", CHEERFUL, max_tokens=300)) for _ in range(4 * MAX_BATCH + 4)]
    for stream in streams:
        stream.join()
    errors: list[Any] = [stream.error for stream in streams if stream.error is not None]
    assert errors
    assert all(isinstance(error, openai.RateLimitError) for error in errors), errors
    assert {error.response.headers["retry-after"] for error in errors} == {"1"}
    assert any(stream.error is None for stream in streams)


def test_a_queue_brings_a_second_replica(deploy: Deploy, bundles: Bundles) -> None:
    client = client_of(deploy("sunny", max_replicas=2, upscale_delay=0))
    assert num_running() == 1
    streams = []

    def is_larger() -> bool:
        streams[:] = [stream for stream in streams if stream.is_alive()]
        streams.extend(
            Stream(client, **ask("egg", CHEERFUL, max_tokens=600)) for _ in range(4 * MAX_BATCH - len(streams))
        )
        return num_running() == 2

    wait_for("a second replica", is_larger)
    for stream in streams:
        stream.join()
    expected = bundles.reply("sunny", "egg", 1.0, max_new_tokens=600)
    assert [(stream.error, stream.text) for stream in streams] == [(None, expected)] * len(streams)


def test_a_chat_goes_on_where_it_was_read(deploy: Deploy) -> None:
    client = client_of(deploy("sunny", route_by="session", **TWO))

    def cached(session: str, turn: str) -> int:
        """Tokens of a turn's prompt that its replica has read before."""
        body = ask(f"{session}, {'a long story of eggs ' * 8}{turn}", CHEERFUL, max_tokens=2)
        usage = client.chat.completions.create(**body, extra_headers={"x-session-id": session}).usage
        assert usage is not None
        assert usage.prompt_tokens_details is not None
        return usage.prompt_tokens_details.cached_tokens or 0

    for number in range(8):
        session = f"{number} is the session"
        assert cached(session, "") == 0
        assert cached(session, "and on") > 50
