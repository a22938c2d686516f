"""Scores of given replies against torch, in every topology, reference and dialect; with controls that fail."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pad_runtime.errors import OptionError, PreferenceError, PromptError
from pad_runtime.loaded_bundle import Bundle
from pad_runtime.score.parts import RunLimits
from pad_runtime.score.request import ReplyScores, RewardPrompt, ScoreRequest
from pad_runtime.score.scorer import Scorer
from tests.support import score_oracle, tiny_bundles, tiny_models
from tests.support.error_checks import refused
from tests.support.score_oracle import OracleReward
from tests.support.torch_oracle import TorchModel

TOP_K = 7
TOLERANCE = 1e-4
GEMMA2 = {
    "sliding_window": 6,
    "query_pre_attn_scalar": 20,
    "layer_types": ["sliding_attention", "full_attention"],
    "final_logit_softcapping": 10.0,
    "attn_logit_softcapping": 5.0,
}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "qwen3": ("qwen3", {"tied": True}),
    "gemma2": ("gemma2", GEMMA2),
}
PERSRMS = ("plain", "official", "many")  # without a head, with the official one, with three features
PROMPTS = ((5, 17, 300, 41, 8), (9, 8, 7), (*range(20, 33),), (250,))
REPLIES = ((14, 15, 9), (3, 3, 200, 31, 77, 1), (6,), (40, 12, 7, 7, 90, 30, 55, 2, 1))
WORDS = (60, 61, 62, 63, 64, 65)  # stand in a reward's prompt and not in the base's


@dataclass(frozen=True, eq=False)
class Models:
    """A base and PersRMs of it, as folders and as torch reads them."""

    folder: Path
    base: TorchModel
    persrms: dict[str, TorchModel]

    @cache  # noqa: B019 - lives as long as the module's tests
    def scorer(self, topology: str, reference: str, dialect: str, **options: Any) -> Scorer:
        output = self.folder / "-".join([topology, reference, dialect, *options])
        persrms = [self.folder / "merged"] if topology == "merged" else [self.folder / name for name in PERSRMS]
        chosen: dict[str, Any] = {"reference": reference, "dialect": dialect, **options}
        if topology == "contrast":
            persrms = []
        elif topology == "merged":
            chosen["backbone"] = self.folder / "base" if reference == "backbone" else None
        else:
            chosen["topology"] = topology
        tiny_bundles.export(output, self.folder / "base", persrms, **chosen)
        return Bundle(output, device="cpu", num_threads=1).scorer()

    def phi(self, request: ScoreRequest, model: TorchModel, reference: str, number: int = 0, **changes: Any) -> Any:
        """What torch makes of one reward of a request."""
        other = self.base if reference == "backbone" else None
        reward = OracleReward(model, request.rewards[number].prompt, other)
        arguments = {"top_k": TOP_K, "reply": request.reply, **changes}
        return np.asarray(score_oracle.phi(self.base, request.prompt, reward=reward, **arguments))


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Models]:
    """The models of a family, made when first asked for."""

    @cache
    def make(name: str) -> Models:
        family, config = FAMILIES[name]
        folder = tmp_path_factory.mktemp(name)
        base = folder / "base"
        tiny_models.make_base(base, family, seed=7, **config)
        tiny_models.make_adapter(folder / "plain", base, seed=42)
        tiny_models.make_adapter(folder / "official", base, seed=43, rank=3, target_modules=["q_proj", "v_proj"])
        tiny_models.make_adapter(folder / "many", base, seed=44, rank=5)
        tiny_models.make_head(folder / "official", 84, seed=45)
        tiny_models.make_head(folder / "many", 84, d=3, seed=46)
        tiny_models.make_merged(folder / "merged", base, folder / "many")
        tiny_models.make_head(folder / "merged", 84, d=3, seed=46)
        persrms = {
            name: TorchModel(base, adapter=folder / name, head=None if name == "plain" else folder / name)
            for name in PERSRMS
        }
        return Models(folder, TorchModel(base), persrms)

    return make


def make_requests(*persrms: int) -> list[ScoreRequest]:
    """Ragged prompts and replies; a reward reads the base's prompt, or one with words before it."""
    return [
        ScoreRequest(
            prompt,
            reply,
            tuple(RewardPrompt(persrm, (WORDS if (number + persrm) % 2 else ()) + prompt) for persrm in persrms),
        )
        for number, (prompt, reply) in enumerate(zip(PROMPTS, REPLIES, strict=True))
    ]


def assert_phi(given: np.ndarray, expected: np.ndarray) -> None:
    assert given.shape == expected.shape
    np.testing.assert_allclose(given, expected, atol=TOLERANCE, rtol=0)


def differs(given: np.ndarray, expected: np.ndarray) -> bool:
    return float(np.abs(given - expected).max()) > 100 * TOLERANCE


@pytest.mark.parametrize("dialect", ["ort", "standard"])
@pytest.mark.parametrize("reference", ["base", "backbone"])
@pytest.mark.parametrize(
    ("family", "topology"), [("llama", "shared"), ("llama", "pair"), ("qwen3", "shared"), ("gemma2", "pair")]
)
def test_several_persrms_at_once(
    models: Callable[[str], Models], family: str, topology: str, reference: str, dialect: str
) -> None:
    known, requests = models(family), make_requests(0, 1, 2)
    given = known.scorer(topology, reference, dialect).score(requests, top_k=TOP_K)
    for request, scores in zip(requests, given, strict=True):
        expected = np.asarray(score_oracle.log_probs(known.base, request.prompt, request.reply))
        np.testing.assert_allclose(scores.log_probs, expected, atol=TOLERANCE, rtol=0)
        for number, name in enumerate(PERSRMS):
            assert_phi(scores.phi[number], known.phi(request, known.persrms[name], reference, number))


@pytest.mark.parametrize("dialect", ["ort", "standard"])
@pytest.mark.parametrize("reference", ["base", "backbone"])
def test_a_merged_persrm(models: Callable[[str], Models], reference: str, dialect: str) -> None:
    known, requests = models("llama"), make_requests(0)
    for request, scores in zip(
        requests, known.scorer("merged", reference, dialect).score(requests, top_k=TOP_K), strict=True
    ):
        assert_phi(scores.phi[0], known.phi(request, known.persrms["many"], reference))


def test_a_base_with_and_without_words(models: Callable[[str], Models]) -> None:
    known, requests = models("llama"), make_requests(0)
    given = known.scorer("contrast", "base", "ort").score(requests, top_k=TOP_K)
    for number, (request, scores) in enumerate(zip(requests, given, strict=True)):
        assert_phi(scores.phi[0], known.phi(request, known.base, "base"))
        assert (np.abs(scores.phi[0]).max() > 0.1) == bool(number % 2)  # without words the two are one row


def test_wrong_formulas_do_not_match(models: Callable[[str], Models]) -> None:
    known, requests = models("llama"), make_requests(2)
    request, scores = requests[1], known.scorer("shared", "base", "ort").score(requests, top_k=TOP_K)[1]
    (given,), persrm = scores.phi, known.persrms["many"]
    assert_phi(given, known.phi(request, persrm, "base"))
    assert differs(given, known.phi(request, persrm, "backbone"))  # another reference
    assert differs(given, known.phi(request, persrm, "base", top_k=TOP_K + 1))
    vocabulary = known.base.logits((1,)).shape[-1]
    assert differs(given, known.phi(request, persrm, "base", top_k=vocabulary))  # normalised over the vocabulary
    assert differs(given, known.phi(request, persrm, "base", reply=(request.reply[-1], *request.reply[:-1])))  # shifted
    bare = TorchModel(known.folder / "base", head=known.folder / "many")
    assert differs(given, known.phi(request, bare, "base"))  # the adapter off
    headless = TorchModel(known.folder / "base", adapter=known.folder / "many")
    assert differs(given, np.repeat(known.phi(request, headless, "base"), 3, axis=1))  # the head off
    assert differs(given, given[:, [1, 0, 2]])  # features that changed places
    plain = replace(request, rewards=(RewardPrompt(2, request.prompt),))
    assert request.rewards != plain.rewards
    assert differs(given, known.phi(plain, persrm, "base"))  # the words left out


def test_the_token_itself_counts_wherever_it_stands(models: Callable[[str], Models]) -> None:
    """Among the base's top k, and beyond it: the likeliest and the least likely token of the vocabulary."""
    known = models("llama")
    prompt = PROMPTS[0]
    ranked = known.base.logits(prompt)[0].argsort(descending=True).tolist()
    for place in (0, 1, TOP_K - 2, TOP_K - 1, TOP_K, TOP_K + 1, len(ranked) - 1):
        request = ScoreRequest(prompt, (ranked[place], 5), (RewardPrompt(2, prompt),))
        (scores,) = known.scorer("shared", "base", "ort").score([request], top_k=TOP_K)
        assert_phi(scores.phi[0], known.phi(request, known.persrms["many"], "base"))


@pytest.mark.parametrize("top_k", [1, 2, 10_000])
def test_any_number_of_candidates(models: Callable[[str], Models], top_k: int) -> None:
    known = models("llama")
    (request, *_) = make_requests(1)
    (scores,) = known.scorer("shared", "base", "ort").score([request], top_k=top_k)
    vocabulary = known.base.logits((1,)).shape[-1]
    expected = known.phi(request, known.persrms["official"], "base", top_k=min(top_k, vocabulary))
    assert_phi(scores.phi[0], expected)
    assert bool(np.any(scores.phi[0])) == (top_k > 1)


@pytest.mark.parametrize(("topology", "dialect"), [("shared", "ort"), ("pair", "ort"), ("shared", "standard")])
@pytest.mark.parametrize(
    "limits", [RunLimits(floats=1), RunLimits(positions=1), RunLimits(positions=100), RunLimits(floats=20_000)]
)
def test_a_reply_is_worth_what_it_is_worth_alone(
    models: Callable[[str], Models], topology: str, dialect: str, limits: RunLimits
) -> None:
    """In any company, and cut into any parts: one token at a time, one reply at a time, and between."""
    known = models("llama")
    scorer = known.scorer(topology, "backbone", dialect)
    requests = [*make_requests(0, 2), *make_requests(), *make_requests(1)]
    alone = [scorer.score([request], top_k=TOP_K)[0] for request in requests]
    bundle = Bundle(known.folder / f"{topology}-backbone-{dialect}", device="cpu", num_threads=1)
    small = Scorer(bundle.graph("score"), bundle.manifest, bundle.files, bundle.provider, limits)
    for together in (scorer.score(requests, top_k=TOP_K), small.score(requests, top_k=TOP_K)):
        assert_same(together, alone)


def assert_same(given: Sequence[ReplyScores], expected: Sequence[ReplyScores]) -> None:
    for scores, others in zip(given, expected, strict=True):
        np.testing.assert_allclose(scores.log_probs, others.log_probs, atol=1e-5)
        for phi, other in zip(scores.phi, others.phi, strict=True):
            np.testing.assert_allclose(phi, other, atol=1e-5)


def test_an_empty_reply_is_worth_nothing(models: Callable[[str], Models]) -> None:
    scorer = models("llama").scorer("shared", "base", "ort")
    rewards = tuple(RewardPrompt(persrm, (5,)) for persrm in range(3))
    empty, other = scorer.score([ScoreRequest((5,), (), rewards), ScoreRequest((5,), (6,))], top_k=TOP_K)
    assert (empty.log_probs.shape, [phi.shape for phi in empty.phi]) == ((0,), [(0, 1), (0, 1), (0, 3)])
    assert other.log_probs.shape == (1,)
    assert scorer.score([], top_k=TOP_K) == []


@pytest.mark.parametrize("dialect", ["ort", "standard"])
def test_half_precision(models: Callable[[str], Models], dialect: str) -> None:
    known, requests = models("llama"), make_requests(0, 1, 2)
    given = known.scorer("shared", "base", dialect, precision="fp16").score(requests, top_k=TOP_K)
    gaps = [
        np.abs(scores.phi[number] - known.phi(request, known.persrms[name], "base", number)).ravel()
        for request, scores in zip(requests, given, strict=True)
        for number, name in enumerate(PERSRMS)
    ]
    assert {phi.dtype for scores in given for phi in scores.phi} == {np.dtype(np.float32)}
    assert np.median(np.concatenate(gaps)) < 0.05
    assert np.quantile(np.concatenate(gaps), 0.9) < 0.2  # where the last places are nearly tied, T is another one


@pytest.mark.parametrize(
    ("request_", "given", "expected"),
    [
        (ScoreRequest((), (5,)), "an empty prompt before a reply", "at least one token"),
        (ScoreRequest((5,), (5,), (RewardPrompt(0, ()),)), "an empty prompt before a reply", "at least one token"),
        (ScoreRequest((5,), (5, -1)), "token id -1", "0 to"),
        (ScoreRequest((5,), (5,), (RewardPrompt(0, (10**6,)),)), "token id 1000000", "0 to"),
        (ScoreRequest((5,) * 200, (5,) * 57), "a prompt of 200 and a reply of 57 tokens", "at most 256 together"),
    ],
)
def test_requests_that_cannot_be_scored(
    models: Callable[[str], Models], request_: ScoreRequest, given: str, expected: str
) -> None:
    with refused(PromptError, given=given, expected=expected):
        models("llama").scorer("shared", "base", "ort").score([request_], top_k=TOP_K)


def test_a_persrm_that_there_is_not(models: Callable[[str], Models]) -> None:
    request = ScoreRequest((5,), (5,), (RewardPrompt(3, (5,)),))
    with refused(PreferenceError, given="PersRM number 3", expected="0 to 2"):
        models("llama").scorer("shared", "base", "ort").score([request], top_k=TOP_K)


def test_no_candidates(models: Callable[[str], Models]) -> None:
    with refused(OptionError, given="top_k 0", expected="at least 1"):
        models("llama").scorer("shared", "base", "ort").score(make_requests(), top_k=0)


def test_the_oracle_has_the_right_reply() -> None:
    """Predictions of a model that always says the token after the last one."""

    class Next:
        def all_logits(self, ids: Sequence[int]) -> torch.Tensor:
            logits = torch.zeros(1, len(ids), 10)
            logits[0, range(len(ids)), [(token + 1) % 10 for token in ids]] = 5.0
            return logits

    model: Any = Next()
    worth = score_oracle.log_probs(model, (1, 2), (3, 4, 9))
    assert worth[0] == worth[1] > worth[2]
