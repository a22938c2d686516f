"""The arguments of a fleet; no cluster is needed."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from pad_rt.api.error import ApiError
from pad_rt.serve.fleet import FleetOptions, MultiplexedModels, application, read_arguments
from pad_rt.serve.settings import ServeSettings
from pad_runtime.errors import BundleError, OptionError
from tests.fleet.conftest import Bundles
from tests.support.error_checks import refused


def test_arguments_may_be_texts_or_values(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PAD_API_KEY", "one,two")
    texts = {"bundles": "/a,/b", "max_replicas": "3", "cpus": "2.5", "no_page": "true", "max_waiting": "9"}
    values = {"bundles": ["/a", "/b"], "max_replicas": 3, "cpus": 2.5, "no_page": True, "max_waiting": 9}
    assert read_arguments(texts) == read_arguments(values)
    options, settings = read_arguments(texts)
    assert options == FleetOptions(max_replicas=3, cpus=2.5)
    assert settings.bundles == ("/a", "/b")
    assert (settings.api_keys, settings.no_page, settings.max_waiting) == (("one", "two"), True, 9)
    assert (settings.threads, settings.host) == (2, "127.0.0.1")


@pytest.mark.parametrize(
    ("arguments", "given", "expected"),
    [
        ({"max_replica": 2}, "unknown argument 'max_replica'", "one of bundles, min_replicas"),
        ({"max_replicas": "many"}, "max_replicas='many'", "an integer"),
        ({"max_replicas": 0}, "max_replicas=0", "an integer >= 1"),
        ({"max_bundles": 1.5}, "max_bundles=1.5", "an integer"),
        ({"cpus": "nan"}, "cpus=nan", "a number >= 0"),
        ({"gpus": -1}, "gpus=-1.0", "a number >= 0"),
        ({"min_replicas": 3, "max_replicas": 2}, "max_replicas=2", "min_replicas, 3, or more"),
        ({"route_by": "luck"}, "route_by='luck'", "queue or session"),
        ({"max_waiting": 0}, "--max-waiting '0'", "an integer >= 1"),
        ({}, "bundles=None", "bundles, each with a name of its own"),
        ({"bundles": ["/a/x", "/b/x"]}, "bundles=['/a/x', '/b/x']", "bundles, each with a name of its own"),
    ],
)
def test_what_is_wrong_is_named(arguments: dict[str, Any], given: str, expected: str) -> None:
    with refused(OptionError, given=given, expected=expected):
        application(arguments)


def test_a_bundle_that_is_none(tmp_path: Path, bundles: Bundles) -> None:
    with refused(BundleError, given="no bundle at", expected="a folder"):
        application({"bundles": [str(bundles.folders["sunny"]), str(tmp_path / "absent")]})


def test_every_model_that_is_listed_is_there(tmp_path: Path, bundles: Bundles) -> None:
    people = tmp_path / "people.json"
    people.write_text('{"anna": {"weights": {"cheerful": 1.0}}, "ben": {"beta": 2}}')
    loaded = []

    async def load(name: str) -> Any:
        loaded.append(name)

    folders = {"sunny": bundles.folders["sunny"], "a:b": bundles.folders["cloudy"]}
    models = MultiplexedModels(ServeSettings(people=people), folders, load)
    ids = [entry["id"] for entry in models.describe()]
    assert ids == ["sunny", "sunny:anna", "sunny:ben", "a:b", "a:b:anna", "a:b:ben"]
    found = [asyncio.run(models.get(id)) for id in ids]
    assert [model.id for model in found] == ids
    assert [model.guidance and model.guidance.beta for model in found] == [None, None, 2] * 2
    assert loaded == ["sunny"] * 3 + ["a:b"] * 3
    for missing in ("", "sunny:", "sunny:carl", "a", "a:anna", ":anna"):
        with pytest.raises(ApiError, match="does not exist"):
            asyncio.run(models.get(missing))
