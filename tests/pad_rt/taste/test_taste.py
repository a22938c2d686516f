"""A taste: what it learns from each kind of choice, what it asks, and what it keeps."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from pad_rt import GenerationConfig, Generator, Prior, Question, ReplyPool, Taste
from pad_rt.taste.reply_pool import PooledPrompt, PooledReply
from pad_rt.taste.taste import MAX_ANSWERS
from pad_runtime.errors import OptionError, PromptError, TasteError
from tests.support import tiny_bundles, tiny_models
from tests.support.error_checks import edit_manifest, refused
from tests.support.guided_models import Models

PROMPT = "How do I boil an egg?"
FEATURES = ("plain", "official", "kind", "brief", "odd")


@pytest.fixture(scope="module")
def generator(models: Models, tmp_path_factory: pytest.TempPathFactory) -> Generator:
    """One whose base has an end of turn."""
    bundle = tmp_path_factory.mktemp("taste") / "bundle"
    shutil.copytree(models.bundle("base"), bundle)
    return tiny_bundles.load(tiny_bundles.set_eos(bundle, [2]))


@pytest.fixture
def taste(generator: Generator) -> Taste:
    return Taste(generator, half_life=None)


def pool(*phis: tuple[float, ...]) -> ReplyPool:
    """One prompt with a reply for each phi."""
    return ReplyPool(FEATURES, (PooledPrompt(PROMPT, tuple(PooledReply(f"reply {phi}", True, phi) for phi in phis)),))


def question(*difference: float) -> Question:
    return Question(PROMPT, "one", "other", (False, False), difference, 1.0)


def differences(taste: Taste) -> list[tuple[float, ...]]:
    return taste._answers


# -- learning ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ended", [True, False])
def test_a_preference_is_the_difference_of_the_scores(taste: Taste, generator: Generator, ended: bool) -> None:
    assert taste.features == FEATURES
    assert taste.prefer(PROMPT, "the cook", "a kind egg", ended=ended)
    better, worse = (generator.score(PROMPT, text, ended=ended).features for text in ("the cook", "a kind egg"))
    assert differences(taste) == [pytest.approx([better[name] - worse[name] for name in FEATURES])]
    assert taste.num_answers == 1


def test_an_edit_prefers_what_came_of_it(taste: Taste, generator: Generator) -> None:
    other = Taste(generator)
    taste.edit(PROMPT, before="the cook", after="a kind egg")
    other.prefer(PROMPT, "a kind egg", "the cook")
    assert differences(taste) == differences(other)


def test_a_rating_is_against_what_the_base_would_have_replied(taste: Taste, generator: Generator) -> None:
    own = generator.generate(PROMPT, config=GenerationConfig(max_new_tokens=256))
    assert taste.rate(PROMPT, "the cook", +1)
    assert taste.rate(PROMPT, "the cook", -1)
    up, down = differences(taste)
    assert up == tuple(-value for value in down)
    usual = generator.score(PROMPT, own.token_ids, ended=own.finish_reason == "stop").features
    rated = generator.score(PROMPT, "the cook", ended=True).features
    assert up == pytest.approx([rated[name] - usual[name] for name in FEATURES])


def test_what_tells_nothing_is_not_counted(taste: Taste, generator: Generator) -> None:
    own = generator.generate(PROMPT, config=GenerationConfig(max_new_tokens=256))
    assert not taste.prefer(PROMPT, "the cook", "the cook")
    assert not taste.edit(PROMPT, "the cook", "the cook")
    assert not taste.rate(PROMPT, own.token_ids, +1)
    assert not taste.answer(question(1.0, 0, 0, 0, 0), None)
    assert not taste.answer(question(0, 0, 0, 0, 0), "a")
    assert taste.num_answers == 0


def test_answers_move_the_preference_and_its_strength_grows(taste: Taste) -> None:
    lengths = []
    for _ in range(6):
        taste.answer(question(0, 0, 60.0, -60.0, 0), "a")
        weights = taste.preference().weights
        lengths.append(np.linalg.norm(list(weights.values())))
        assert weights["kind"] > 0.1
        assert weights["brief"] < -0.1
        assert abs(weights["odd"]) < 0.05
    assert lengths == sorted(lengths)
    assert lengths[-1] < 1
    estimates = taste.uncertainty()
    assert estimates["kind"].low > estimates["odd"].low + 0.3  # what is known is the difference of kind and brief
    assert estimates["kind"].mean == pytest.approx(taste.preference().weights["kind"])
    assert taste.preference(strength=2.0).weights["kind"] == pytest.approx(2 * estimates["kind"].mean)
    opposite = taste.num_answers
    for _ in range(2 * opposite):
        taste.answer(question(0, 0, 60.0, -60.0, 0), "b")
    assert taste.preference().weights["kind"] < -0.1


def test_an_old_answer_counts_less(generator: Generator) -> None:
    """Someone who changes: with a half-life of two answers the new wish wins, without one it does not."""
    weights = {}
    for half_life in (2.0, None):
        changed = Taste(generator, half_life=half_life)
        for choice in "aaaaaabbb":
            changed.answer(question(0, 0, 25.0, 0, 0), choice)  # type: ignore[arg-type]
        weights[half_life] = changed.preference().weights["kind"]
    assert weights[2.0] < 0 < weights[None]


def test_answers_that_no_feature_explains_are_not_foretold(taste: Taste, generator: Generator) -> None:
    rng = np.random.default_rng(3)
    other = Taste(generator)
    for _ in range(30):
        asked = 25 * rng.standard_normal(5)
        taste.answer(question(*asked.tolist()), "a" if asked[2] > 0 else "b")
        other.answer(question(*asked.tolist()), "a" if rng.random() < 0.5 else "b")
    explained, unexplained = taste.agreement(), other.agreement()
    assert explained
    assert explained.right > 0.85
    assert unexplained
    assert unexplained.right < 0.65
    assert Taste(generator).agreement() is None
    widths = [max(one.high - one.low for one in each.uncertainty().values()) for each in (taste, other)]
    assert widths[1] > 2 * widths[0]


def test_ten_thousand_answers_cost_what_a_thousand_do(taste: Taste, generator: Generator, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for asked in 20 * rng.standard_normal((10_000, 5)):
        taste.answer(question(*asked.tolist()), "a" if asked[0] > 0 else "b")
    assert taste.num_answers == len(taste.answers) == MAX_ANSWERS
    assert taste.preference().weights["plain"] > 0.95
    late = Taste(generator, half_life=None, answers=taste.answers)
    assert late.preference() == taste.preference(), "what was dropped counts no more"
    taste.save(tmp_path / "me.json")
    assert (tmp_path / "me.json").stat().st_size < 150 * MAX_ANSWERS


def test_forgetting(taste: Taste, generator: Generator) -> None:
    asked = pool((9.0, 0, 0, 0, 0), (-9.0, 0, 0, 0, 0))
    first = taste.ask(asked)
    assert first
    taste.answer(first, "a")
    taste.forget()
    assert taste.num_answers == 0
    assert taste.preference() == Taste(generator).preference()
    assert taste.ask(asked) == first


def test_a_population(generator: Generator) -> None:
    people = [{"kind": 1.0}, {"kind": 0.9, "odd": 0.1}, {"kind": 0.8, "brief": 0.1}]
    known = Taste(generator, prior=Prior.of_people(people))
    assert known.preference().weights["kind"] > 0.5
    for _ in range(20):
        known.answer(question(0, 0, -60.0, 0, 0), "a")
    assert known.preference().weights["kind"] < 0.5


# -- asking -----------------------------------------------------------------------------------------------------------


def test_the_pair_that_tells_most_is_asked_and_no_pair_twice(taste: Taste) -> None:
    asked = pool((0, 0, 40.0, 0, 0), (0, 0, -40.0, 0, 0), (0, 0, 38.0, 0, 0))
    first = taste.ask(asked)
    assert first
    assert first.difference == (0, 0, 80.0, 0, 0)
    assert (first.a, first.b) == ("reply (0, 0, 40.0, 0, 0)", "reply (0, 0, -40.0, 0, 0)")
    assert 0 < first.bits < 1
    second = taste.ask(asked)
    assert second
    assert second.difference in {(0, 0, 78.0, 0, 0), (0, 0, -78.0, 0, 0)}
    assert taste.ask(asked) is None  # the last pair hardly differs
    assert taste.ask(asked, least_bits=0.0) is not None
    assert taste.ask(asked, least_bits=0.0) is None  # all were asked


def test_what_is_known_is_not_asked_again(taste: Taste) -> None:
    for _ in range(10):
        taste.answer(question(0, 0, 60.0, 0, 0), "a")
    asked = taste.ask(pool((0, 0, 60.0, 0, 0), (0, 0, 0, 30.0, 0), (0, 0, 0, 0, 0)))
    assert asked
    assert asked.difference == (0, 0, 0, 30.0, 0)


def test_the_bundle_writes_the_replies(taste: Taste, generator: Generator) -> None:
    config = GenerationConfig(max_new_tokens=5, beta=3.0)
    written = ReplyPool.write(generator, [PROMPT, "the cook"], num_replies=6, config=config)
    assert written == ReplyPool.write(generator, [PROMPT, "the cook"], num_replies=6, config=config)
    alone = ReplyPool.write(generator, ["the cook"], num_replies=6, config=config)
    assert (written.prompts[1], written.features) == (alone.prompts[0], FEATURES)
    for one in written.prompts:
        assert len({reply.text for reply in one.replies}) == len(one.replies) >= 2
        for reply in one.replies:
            score = generator.score(one.prompt, generator.encode(reply.text)[1:], ended=not reply.cut)
            assert reply.cut
            if len(score.per_token) == 5:  # the text gives the tokens that were written
                assert reply.phi == pytest.approx(tuple(score.features.values()), abs=1e-4)
    both = alone + written
    assert len(both.prompts) == 3
    asked = taste.ask(both, least_bits=0.0)
    assert asked
    assert taste.answer(asked, "b")
    assert differences(taste) == [tuple(-value for value in asked.difference)]


# -- keeping ----------------------------------------------------------------------------------------------------------


def test_a_saved_taste_goes_on_as_it_was(taste: Taste, generator: Generator, tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    taste = Taste(generator, prior=Prior({"kind": 0.3}, {"odd": 0.2}), half_life=50.0)
    for asked in 20 * rng.standard_normal((7, 5)):
        taste.answer(question(*asked.tolist()), "a")
    taste.prefer("my secret plan", "the cook is Anna", "nobody")
    taste.save(tmp_path / "me.json")
    text = (tmp_path / "me.json").read_text()
    assert "secret" not in text
    assert "Anna" not in text
    assert len(text) < 3000
    loaded = Taste.load(tmp_path / "me.json", generator)
    assert loaded.preference() == taste.preference()
    assert loaded.uncertainty() == taste.uncertainty()
    for each in (taste, loaded):
        each.answer(question(1.0, 2.0, 3.0, 4.0, 5.0), "b")
        each.save(tmp_path / "again.json")
        text = (tmp_path / "again.json").read_text() if each is taste else text
    assert (tmp_path / "again.json").read_text() == text


def test_files_of_other_persrms(taste: Taste, generator: Generator, models: Models, tmp_path: Path) -> None:
    taste.answer(question(1.0, 2.0, 3.0, 4.0, 5.0), "b")
    taste.save(tmp_path / "me.json")
    fewer = tiny_bundles.export(tmp_path / "fewer", models.folder / "base", [models.folder / "many"])
    with refused(TasteError, given="features plain, official, kind, brief, odd", expected="this bundle's, kind, brief"):
        Taste.load(tmp_path / "me.json", tiny_bundles.load(fewer))
    tiny_models.make_adapter(tmp_path / "plain", models.folder / "base", seed=99)
    persrms = [tmp_path / "plain", models.folder / "official", models.folder / "many"]
    other = tiny_bundles.load(tiny_bundles.export(tmp_path / "other", models.folder / "base", persrms))
    with refused(TasteError, given="other weights of the PersRM", hint="retrained=True"):
        Taste.load(tmp_path / "me.json", other)
    assert Taste.load(tmp_path / "me.json", other, retrained=True).preference() == taste.preference()
    other.close()


def test_a_file_is_of_its_persrms_whatever_else_the_bundle_has(taste: Taste, models: Models, tmp_path: Path) -> None:
    taste.answer(question(1.0, 2.0, 3.0, 4.0, 5.0), "b")
    taste.save(tmp_path / "me.json")
    persrms = [models.folder / name for name in models.persrms]
    longer = tiny_bundles.export(tmp_path / "longer", models.folder / "base", persrms, max_length=64)
    edit_manifest(longer, eos_token_ids=[2])
    assert Taste.load(tmp_path / "me.json", tiny_bundles.load(longer)).preference() == taste.preference()


@pytest.mark.parametrize(
    ("change", "given"),
    [
        (lambda text: text[:-40], "is no JSON, or not all of it"),
        (lambda text: text.replace("5.0", "6.0"), "was altered"),
        (lambda text: text.replace('"version": 1', '"version": 2'), "is of version 2"),
        (lambda text: "[1, 2]", "is no saved taste"),
        (lambda text: "{}", "is no saved taste"),
    ],
)
def test_files_that_are_not_right(
    taste: Taste, generator: Generator, tmp_path: Path, change: object, given: str
) -> None:
    taste.answer(question(1.0, 2.0, 3.0, 4.0, 5.0), "a")
    path = tmp_path / "me.json"
    taste.save(path)
    path.write_text(change(path.read_text()))  # type: ignore[operator]
    with refused(TasteError, given=given):
        Taste.load(path, generator)


def test_files_that_cannot_be_read_or_written(taste: Taste, generator: Generator, tmp_path: Path) -> None:
    with refused(TasteError, given="no taste at", expected="pad taste"):
        Taste.load(tmp_path / "none.json", generator)
    with refused(TasteError, given="cannot be written: it is a folder"):
        taste.save(tmp_path)
    with refused(TasteError, given="cannot be written"):
        taste.save(tmp_path / "none" / "me.json")
    (tmp_path / "me.json").write_text(json.dumps({"format": "pad-rt-taste", "version": 1, "checksum": "x"}))
    with refused(TasteError, given="was altered"):
        Taste.load(tmp_path / "me.json", generator)


# -- bad input --------------------------------------------------------------------------------------------------------


def test_what_is_refused(taste: Taste, generator: Generator) -> None:
    with refused(OptionError, given="verdict 0", expected="1 or -1"):
        taste.rate(PROMPT, "the cook", 0)
    with refused(OptionError, given="answer 'c'", expected="'a', 'b' or None"):
        taste.answer(question(1.0, 0, 0, 0, 0), "c")  # type: ignore[arg-type]
    with refused(OptionError, given="a question of other features", expected="plain"):
        taste.answer(question(1.0), "a")
    with refused(OptionError, given="a pool of kind", expected="plain"):
        taste.ask(ReplyPool(("kind",), ()))
    with refused(OptionError, given="num_replies 1", expected="at least 2"):
        ReplyPool.write(generator, [PROMPT], num_replies=1)
    with refused(OptionError, given="half_life 0", expected="above 0"):
        Taste(generator, half_life=0)
    with refused(OptionError, given="strength -1", expected="0 or more"):
        taste.preference(-1)
    with refused(OptionError, given="level 1", expected="between 0 and 1"):
        taste.uncertainty(1)
    with refused(PromptError, given="an empty prompt"):
        taste.prefer("", "the cook", "egg")
    assert taste.num_answers == 0
    assert taste.ask([]) is None


def test_a_bundle_without_features(models: Models, tmp_path: Path) -> None:
    contrast = tiny_bundles.load(tiny_bundles.export(tmp_path / "contrast", models.folder / "base", []))
    with refused(TasteError, given="without a PersRM", hint="--persrm"):
        Taste(contrast)
