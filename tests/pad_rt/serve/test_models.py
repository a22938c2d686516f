"""What a server serves, by which names."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from pad_rt import Generator, Taste
from pad_rt.api.error import ApiError
from pad_rt.api.guidance import Guidance
from pad_rt.serve.models import LoadedModels
from pad_rt.serve.settings import ServeSettings
from pad_runtime.errors import BundleError, OptionError
from tests.support.error_checks import refused


def open_models(settings: ServeSettings) -> LoadedModels:
    models = LoadedModels.of(settings)
    asyncio.run(models.open())
    return models


def names(models: LoadedModels) -> list[str]:
    return [model.id for model in models.served()]


def test_a_bundle_is_called_as_its_folder_or_as_one_says(served_bundle: Path) -> None:
    for settings, name in (
        (ServeSettings(bundles=(served_bundle,), threads=1), "tiny"),
        (ServeSettings(bundles=(served_bundle,), threads=1, name="org/eggs"), "org/eggs"),
    ):
        models = open_models(settings)
        assert names(models) == [name]
        model = asyncio.run(models.get(name))
        assert (model.id, model.guidance, model.person) == (name, None, None)
        assert model.generator.generate("a", config={"max_new_tokens": 2}).text
        models.close()


def test_people_are_served_with_each_bundle_that_has_what_they_ask_for(
    served_bundle: Path, tiny_bundle: Path, tmp_path: Path
) -> None:
    """One bundle has the features kind, brief and odd; both have a PersRM that reads words."""
    file = tmp_path / "people.json"
    file.write_text(json.dumps({"anna": {"weights": {"kind": 1}}, "ben": {"preference": "be kind"}}))
    models = open_models(ServeSettings(bundles=(served_bundle, tiny_bundle), people=file, threads=1))
    assert names(models) == ["tiny", "bundle", "tiny:anna", "tiny:ben", "bundle:ben"]
    anna = asyncio.run(models.get("tiny:anna"))
    assert (anna.name, anna.person, anna.guidance) == ("tiny", "anna", Guidance(weights={"kind": 1}))
    assert anna.fingerprint == asyncio.run(models.get("tiny")).fingerprint
    assert anna.fingerprint != asyncio.run(models.get("bundle")).fingerprint
    for missing in ("bundle:anna", "anna", "tiny:", "", "TINY"):
        with pytest.raises(ApiError, match="does not exist") as caught:
            asyncio.run(models.get(missing))
        assert (caught.value.status, caught.value.code) == (404, "model_not_found")
    models.close()


@pytest.mark.parametrize(
    ("person", "words"),
    [
        (Guidance(weights={"nothing": 1.0}), "unknown feature 'nothing'"),
        (Guidance(weights={"kind": 1.0}, top_k=21), "top_k 21"),
        (Guidance(weights={"kind": 1e300}), "strength"),
        (Guidance(preference="x", beta=float("inf")), "beta"),
    ],
)
def test_a_person_that_fits_no_bundle(served_bundle: Path, person: Guidance, words: str) -> None:
    with Generator.load(served_bundle, num_threads=1) as generator:
        models = LoadedModels(lambda: {"tiny": generator}, {"anna": person})
        with refused(OptionError, given=f"the person 'anna': {words}" if "strength" not in words else "'anna'"):
            asyncio.run(models.open())


def test_bundles_that_cannot_be_served(served_bundle: Path, tmp_path: Path) -> None:
    with refused(OptionError, given="bundles named tiny, tiny", expected="for each"):
        LoadedModels.of(ServeSettings(bundles=(served_bundle, served_bundle)))
    with refused(BundleError, given="no bundle at"):
        open_models(ServeSettings(bundles=(tmp_path / "none",)))


def test_a_saved_taste_is_a_person(served_bundle: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    file = tmp_path / "anna.json"
    with Generator.load(served_bundle, num_threads=1) as generator:
        taste = Taste(generator)
        taste.prefer("How do I boil an egg?", "a kind egg", "the cook")
        taste.save(file)
        expected = Guidance(weights=taste.preference().weights)
    models = open_models(ServeSettings(bundles=(served_bundle, tiny_bundle), tastes=(file,), threads=1))
    assert names(models) == ["tiny", "bundle", "tiny:anna"]
    assert asyncio.run(models.get("tiny:anna")).guidance == expected
    models.close()
    with refused(OptionError, given="is a taste of the features plain, kind"):
        open_models(ServeSettings(bundles=(tiny_bundle,), tastes=(file,), threads=1))
    people = tmp_path / "people.json"
    people.write_text('{"anna": {}}')
    for settings in (
        ServeSettings(bundles=(served_bundle,), tastes=(file, file)),
        ServeSettings(bundles=(served_bundle,), tastes=(file,), people=people),
        ServeSettings(bundles=(served_bundle,), tastes=(tmp_path / "a b.json",)),
    ):
        with refused(OptionError, given="--taste", expected="a person's"):
            LoadedModels.of(settings)
