from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForSequenceClassification

from pad_runtime.errors import OptionError
from pad_train.pairs.feature import PairSampling, Style, style_of
from pad_train.pairs.scorer import checked, checked_veto, load_critic, load_scorer
from pad_train.train.backbone import Backbone
from tests.support import tiny_models, tiny_tokenizers
from tests.support.error_checks import refused


def sampling(scorer: str, **others: Any) -> PairSampling:
    return PairSampling(((scorer, 1.0),), **others)


SCORER = "def score(prompts, replies):\n    return [len(p) + 10 * len(r) for p, r in zip(prompts, replies)]\nx = 3\n"


def test_a_function_in_a_file(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(SCORER)
    assert load_scorer(f"{tmp_path / 'mine.py'}:score")(["a", "bb"], ["ccc", ""]) == [31.0, 2.0]


def test_a_function_in_a_module() -> None:
    with refused(OptionError, given="scorer operator:add gave", expected="one finite number each"):
        load_scorer("operator:add")(["a"], ["b"])  # found; that it adds lists to lists of text is another matter


@pytest.mark.parametrize(
    ("spec", "given"),
    [
        ("mine.py:other", "has no callable other"),
        ("mine.py:x", "has no callable x"),
        ("absent.py:score", "absent.py is not a Python file"),
        ("broken.py:score", "invalid syntax"),
        ("failing.py:score", "name 'nothing' is not defined"),
        ("needs.py:score", "No module named 'no_such_package'"),
        ("no_such_module:score", "No module named 'no_such_module'"),
        (".relative:score", "cannot be loaded"),
        ("score", "cannot be loaded"),
        ("hf:absent", "hf:absent does not exist"),
        ("hf:empty", "hf:empty cannot be loaded"),
    ],
)
def test_what_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spec: str, given: str) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "mine.py").write_text(SCORER)
    (tmp_path / "broken.py").write_text("def score(:\n")
    (tmp_path / "failing.py").write_text("nothing()\n")
    (tmp_path / "needs.py").write_text("import no_such_package\n")
    with refused(OptionError, given=given, expected=""):
        load_scorer(spec)


@pytest.mark.parametrize(
    "answer",
    [[1.0], [1.0, 2.0, 3.0], [1.0, float("nan")], [1.0, float("inf")], [], None, 3.0, ["high", "low"], [None, 1.0]],
)
def test_answers_that_are_no_scores(answer: Any) -> None:
    with refused(OptionError, given="scorer mine gave", expected="one finite number each"):
        checked("mine", lambda prompts, replies: answer)(["p", "p"], ["a", "b"])


@pytest.mark.parametrize("answer", [[1, 2], (1.0, 2.0), np.array([1.0, 2.0]), torch.tensor([1.0, 2.0])])
def test_answers_of_other_types(answer: Any) -> None:
    assert checked("mine", lambda prompts, replies: answer)(["p", "p"], ["a", "b"]) == [1.0, 2.0]


def test_a_bug_in_a_scorer_keeps_its_traceback() -> None:
    def broken(prompts: Any, replies: Any) -> list[float]:
        raise TypeError("mine")

    with pytest.raises(TypeError, match="mine"):
        checked("mine", broken)(["p"], ["a"])


def make_reward_model(
    folder: Path, *, num_labels: int = 1, chat_template: str | None
) -> LlamaForSequenceClassification:
    tokenizer = tiny_tokenizers.byte_level()
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=tokenizer.get_vocab_size() + 3, hidden_size=12, intermediate_size=20, num_hidden_layers=1,
        head_dim=4, num_attention_heads=3, num_key_value_heads=1, num_labels=num_labels, initializer_range=0.5,
        bos_token_id=0, eos_token_id=1,
    )  # fmt: skip
    model = LlamaForSequenceClassification(config).eval()
    model.save_pretrained(folder)
    tiny_models.save_tokenizer(tokenizer, folder, chat_template=chat_template)
    return model


@torch.no_grad()
def test_a_reward_model(tmp_path: Path) -> None:
    model = make_reward_model(tmp_path / "rm", chat_template=tiny_models.CHAT_TEMPLATE)
    prompts, replies = ["the egg", "why?", "the cook"], ["boils", "the cheerful cook boils the egg", "x"]
    scores = load_scorer(f"hf:{tmp_path / 'rm'}")(prompts, replies)
    tokenizer = tiny_tokenizers.byte_level()
    for prompt, reply, score in zip(prompts, replies, scores, strict=True):  # alone, unpadded
        text = f"<s><|user|>{prompt}<|assistant|>{reply}"
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        model.config.pad_token_id = 1
        assert score == pytest.approx(model(torch.tensor([ids])).logits[0, 0].item(), abs=1e-4)
    assert len({round(score, 3) for score in scores}) == 3


def test_a_classifier_is_no_reward_model(tmp_path: Path) -> None:
    make_reward_model(tmp_path / "rm", num_labels=2, chat_template=None)
    with refused(OptionError, given="has 2 labels", expected="with one"):
        load_scorer(f"hf:{tmp_path / 'rm'}")


def test_a_veto_and_a_scorer_of_one_file(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(SCORER + "def veto(prompts, replies):\n    return [r[1:] for r in replies]\n")
    critic = load_critic(sampling(f"{tmp_path / 'mine.py'}:score", veto=f"{tmp_path / 'mine.py'}:veto"), None)
    assert (critic.scorer(["a"], ["bc"]), critic.veto(["a"], ["bc"])) == ([21.0], ["c"])
    assert load_critic(sampling("operator:add"), None).veto(["a", "b"], ["c", "d"]) == ["", ""]


@pytest.mark.parametrize("answer", [["only one"], ["", "", ""], [None, ""], [1.0, 2.0], "ab!"])
def test_answers_that_are_no_reasons(answer: Any) -> None:
    with refused(OptionError, given="veto m:f gave", expected="one text each"):
        checked_veto("m:f", lambda prompts, replies: answer)(["p", "q"], ["r", "s"])


def test_a_veto_that_is_not_there() -> None:
    with refused(OptionError, given="veto operator:absent: operator has no callable absent", expected="a function"):
        load_critic(sampling("operator:add", veto="operator:absent"), None)


STYLES = ((Style("boil the egg"), Style("a cold potato")), (Style(), Style("the pan", (("why", "the egg"),))))


def test_contrast_is_the_difference_of_log_probabilities(backbone: Backbone) -> None:
    prompts, replies = (
        ["an egg", "a much longer prompt about soft eggs", "an egg"],
        ["boil it", "the egg is in the pan", ""],
    )
    assert len({style_of(prompt, STYLES) for prompt in prompts}) == 2
    scores = load_critic(sampling("contrast", styles=STYLES), backbone).scorer(prompts, replies)
    for prompt, reply, score in zip(prompts[:2], replies, scores, strict=False):
        ids = torch.tensor(backbone.encode_reply(reply, finished=False))
        means = []
        for style in style_of(prompt, STYLES):
            turns = [("system", style.system)] if style.system else []
            for question, answer in style.examples:
                turns += [("user", question), ("assistant", answer)]
            said = [{"role": role, "content": text} for role, text in [*turns, ("user", prompt)]]
            head = torch.tensor(backbone.encode_prompt(said))
            with torch.inference_mode():
                log_probs = backbone.model(torch.cat([head, ids])[None]).logits[0, len(head) - 1 : -1].log_softmax(-1)
            means.append(log_probs[torch.arange(len(ids)), ids].mean())
        assert score == pytest.approx(float(means[0] - means[1]), abs=1e-4)
        assert abs(score) > 1e-3
    assert scores[2] == 0
    swapped = tuple((less, more) for more, less in STYLES)
    turned = load_critic(sampling("contrast", styles=swapped), backbone).scorer(prompts, replies)
    assert turned == pytest.approx([-score for score in scores], abs=1e-5)


def test_contrast_needs_a_base() -> None:
    with refused(OptionError, given="no base for the scorer contrast", expected="--base"):
        load_critic(sampling("contrast", styles=STYLES), None)


def test_a_sum_of_scorers(backbone: Backbone, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(SCORER)
    mine = f"{tmp_path / 'mine.py'}:score"
    asked = ["an egg", "the pan"], ["boil it", "the egg is in the pan"]
    contrast, alone = (
        load_critic(sampling(name, styles=STYLES), backbone).scorer(*asked) for name in ("contrast", mine)
    )
    both = load_critic(PairSampling((("contrast", 3.0), (mine, 0.5)), styles=STYLES), backbone).scorer(*asked)
    assert both == pytest.approx([3 * one + other / 2 for one, other in zip(contrast, alone, strict=True)])
