from __future__ import annotations

import math
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks.quality import embedding, soundness
from benchmarks.quality.replies import JudgedReply
from benchmarks.quality.soundness import Margins, Soundness
from benchmarks.quality.variety import mtld

QUESTIONS = {
    "How do I bake bread?": (
        "Mix flour, water, salt and yeast, and knead the dough for ten minutes. Let it rise for an hour, shape a loaf, "
        "and bake it in a hot oven until the crust is brown.",
        "To bake bread you need flour, yeast, water and some salt. The dough has to rest in a warm place before it "
        "goes into the oven.",
    ),
    "Why is the sky blue?": (
        "The sky looks blue because the air scatters short waves of sunlight more than long ones. Blue light reaches "
        "our eyes from every direction.",
        "Sunlight holds many colours. Molecules in the atmosphere scatter blue light far more than red light, so the "
        "sky appears blue in the daytime.",
    ),
    "What is a good exercise for the back?": (
        "Swimming is a good exercise for the back, since it strengthens the muscles without any load on the spine.",
        "Try the bridge: lie down, bend your knees and lift your hips slowly. This makes the lower back stronger.",
    ),
    "Who was Napoleon?": (
        "Napoleon Bonaparte was a French general who became emperor in 1804 and lost the battle of Waterloo in 1815.",
        "He was the emperor of France. Napoleon conquered much of Europe before he was sent to an island in exile.",
    ),
}


def replies(index: int) -> list[JudgedReply]:
    return [JudgedReply(question, texts[index], (), cut=False) for question, texts in QUESTIONS.items()]


def changed(texts: list[str]) -> list[JudgedReply]:
    return [replace(one, text=text) for one, text in zip(replies(0), texts, strict=True)]


@pytest.fixture(scope="module")
def sound() -> Soundness:
    pytest.importorskip("all_minilm_l6_v2")
    pytest.importorskip("harper")
    return Soundness(Margins(topic=0.25, errors=0.0, variety=27.0, questions=0))


# -- variety ----------------------------------------------------------------------------------------------------------


def test_mtld_by_hand() -> None:
    """Ten words, of which seven are different, make a factor (0.7)."""
    run = "a b c d e f g a b c"
    assert mtld(f"{run} {run}") == 10
    assert mtld("the cat " * 10) == 10
    assert mtld("a b c d e f g h a b") == math.inf  # 0.8


def test_a_part_of_a_factor_counts_as_a_part() -> None:
    # A factor of ten words, then four words of which three are different: (1 - 3/4) / (1 - 0.72) of another.
    text = "a b c d e f g a b c x y z x"
    assert mtld(text) == pytest.approx((14 / (1 + 0.25 / 0.28) + _backwards(text)) / 2)


def _backwards(text: str) -> float:
    words = text.split()[::-1]
    at = next(end for end in range(10, len(words) + 1) if len(set(words[:end])) / end <= 0.72)
    rest = words[at:]
    return len(words) / (1 + ((1 - len(set(rest)) / len(rest)) / 0.28 if rest else 0))


@pytest.mark.parametrize("text", ["", "Yes.", "A dog is a dog.", "Six minutes for soft, ten for hard."])
def test_a_short_text_does_not_repeat_itself(text: str) -> None:
    assert mtld(text) == math.inf


# -- embeddings -------------------------------------------------------------------------------------------------------


def test_vectors_are_the_same_in_a_batch_and_alone_and_have_length_one(sound: Soundness) -> None:
    embed = embedding.shared_embedder()
    texts = [
        "A cat sleeps.",
        "Bread is baked in an oven, and it takes about an hour until it is done.",
        "",
        "cat " * 999,
    ]
    together = embed(texts)
    assert together.shape == (4, 384)
    assert np.linalg.norm(together, axis=1) == pytest.approx(np.ones(4), abs=1e-5)
    for text, vector in zip(texts, together, strict=True):
        alone = embedding.SentenceEmbedder()([text])[0]
        assert alone == pytest.approx(vector, abs=1e-5)
    assert embed([]).shape[0] == 0


def test_near_meanings_have_near_vectors(sound: Soundness) -> None:
    embed = embedding.shared_embedder()
    cat, kitten, tax = embed(["The cat sleeps on the sofa.", "A kitten naps on the couch.", "Taxes are due in April."])
    assert cat @ kitten > 0.6
    assert cat @ tax < 0.2


def test_the_weights_are_unpacked_once(sound: Soundness, tmp_path: Path) -> None:
    embedding.unpack(tmp_path)
    first = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    embedding.unpack(tmp_path)
    assert {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == first
    assert set(first) == {"config.json", "model.safetensors", "tokenizer.json"}


# -- soundness --------------------------------------------------------------------------------------------------------


def test_the_base_is_sound_beside_itself_and_another_of_its_replies_is(sound: Soundness) -> None:
    assert sound.checks(replies(0), replies(0)).sound.all()
    assert sound.checks(replies(1), replies(0)).sound.all()


def test_a_reply_to_another_question_leaves_the_topic_and_nothing_else(sound: Soundness) -> None:
    texts = [one.text for one in replies(1)]
    found = sound.checks(changed([*texts[1:], texts[0]]), replies(0))
    assert not found.on_topic.any()
    assert found.grammatical.all()
    assert found.varied.all()
    assert not found.sound.any()


def test_bad_grammar_is_seen_and_a_name_is_none(sound: Soundness) -> None:
    broken = [one.text.replace(" the ", " the the ").replace(" a ", " an ") for one in replies(0)]
    found = sound.checks(changed(broken), replies(0))
    assert not found.grammatical.any()
    assert found.on_topic.all()
    named = sound.checks(changed([f"Mr. Zworkwik says: {one.text}" for one in replies(0)]), replies(0))
    assert named.grammatical.all()


def test_a_loop_is_not_varied(sound: Soundness) -> None:
    found = sound.checks(changed([" ".join(one.text.split()[:9] * 5) for one in replies(0)]), replies(0))
    assert not found.varied.any()
    assert not found.sound.any()


def test_shuffled_words_are_not_sound(sound: Soundness) -> None:
    draw = random.Random(0)
    shuffled = [" ".join(draw.sample(one.text.split(), len(one.text.split()))) for one in replies(0)]
    assert sound.checks(changed(shuffled), replies(0)).sound.mean() <= 0.5


def test_a_reply_without_a_word_passes_no_check(sound: Soundness) -> None:
    empty = changed(["", "...", "**", " \n"])
    for base in (replies(0), empty):
        found = sound.checks(empty, base)
        assert not (found.on_topic | found.grammatical | found.varied).any()


def test_margins_are_what_19_of_20_differences_of_the_base_lie_within(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    values = {name: rng.normal(size=(2, 2000)) for name in ("on_topic", "num_errors")}
    variety = rng.uniform(0, 100, (2, 2000))
    for name, drawn in values.items():
        monkeypatch.setattr(soundness, name, lambda replies, drawn=drawn: drawn[int(replies[0].text)])
    monkeypatch.setattr(soundness, "variety", lambda replies: variety[int(replies[0].text)])
    one, another = ([JudgedReply("?", str(side), (), cut=False)] * 2000 for side in (0, 1))
    margins = Soundness.calibrate(one, another).margins
    expected = math.sqrt(2) * 1.645  # the 95 % point of the difference of two normal numbers
    assert (margins.topic, margins.errors) == pytest.approx((expected, expected), rel=0.05)
    assert margins.variety == pytest.approx(5, abs=1)
    assert margins.questions == 2000
