from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks.quality.methods import PENALTIES, Cell
from benchmarks.quality.replies import JudgedReply
from benchmarks.quality.rivals import soup as soup_module
from benchmarks.quality.rivals.best_of import ScoredSample, best_of, draw_samples
from benchmarks.quality.rivals.soup import IDENTITY_HEAD, ensure_loras, pairs_of, read_lora, stirred
from benchmarks.quality.rivals.torch_replies import TorchRivals
from benchmarks.quality.rivals.vector import mean_difference, middle_layer, steered
from benchmarks.quality.torch_decoding import Greedy, decode
from pad_export.read.checkpoint import open_checkpoint
from pad_export.read.persrm import read_persrm
from pad_rt import GenerationConfig, Preference
from pad_train.train.backbone import Backbone
from pad_train.train.persrm_folder import read_reward_model
from tests.support import tiny_bundles, tiny_training

FEATURES = ("a", "b")
PROMPTS = ["the cook", "boil an egg and wait", "why"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A tiny base, and a PersRM of it."""
    root = tmp_path_factory.mktemp("rivals")
    return tiny_training.write_random_persrm(root, FEATURES)


@pytest.fixture
def backbone(folders: tuple[Path, Path]) -> Backbone:
    return tiny_training.load(folders[0])


def replies(backbone: Backbone, frequency_penalty: float = 0.0) -> list[tuple[int, ...]]:
    prompts = [backbone.encode_prompt(({"role": "user", "content": prompt},)) for prompt in PROMPTS]
    decoded = decode(prompts, Greedy(backbone, frequency_penalty), eos_id=backbone.eos_id, max_new_tokens=10)
    return [reply.token_ids for reply in decoded]


def logits(backbone: Backbone) -> torch.Tensor:
    with torch.no_grad():
        return backbone.model(torch.tensor([[5, 9, 12, 7]])).logits  # type: ignore[no-any-return]


# -- greedy in torch --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("penalty", [0.0, 0.9])
def test_a_batch_in_torch_gives_the_tokens_of_the_bundle(
    folders: tuple[Path, Path], backbone: Backbone, tmp_path: Path, penalty: float
) -> None:
    bundle = tiny_bundles.export(tmp_path / "bundle", *folders[:1], [folders[1]], eos=[backbone.eos_id])
    generator = tiny_bundles.load(bundle)
    config = GenerationConfig(max_new_tokens=10, frequency_penalty=penalty)
    found = [generator.generate(prompt, config=config).token_ids for prompt in PROMPTS]
    assert replies(backbone, penalty) == found
    assert (replies(backbone) == found) == (penalty == 0)


# -- the soup ---------------------------------------------------------------------------------------------------------


def test_a_soup_of_one_lora_is_that_persrm_s_trunk(folders: tuple[Path, Path], backbone: Backbone) -> None:
    base, taste = folders
    plain = logits(backbone)
    with stirred(backbone, {"a": read_lora(taste)}, {"a": 1.0}):
        soup = logits(backbone)
    trunk = read_reward_model(taste, tiny_training.load(base)).trunk
    with torch.no_grad():
        torch.testing.assert_close(soup, trunk(torch.tensor([[5, 9, 12, 7]])).logits, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(soup, plain, atol=1e-2)
    assert torch.equal(logits(backbone), plain)  # the base again, to the last bit


def test_a_soup_weighs_its_loras(folders: tuple[Path, Path], backbone: Backbone) -> None:
    lora = read_lora(folders[1])
    plain = logits(backbone)

    def soup(weights: dict[str, float]) -> torch.Tensor:
        with stirred(backbone, {"a": lora, "b": lora}, weights):
            return logits(backbone)

    torch.testing.assert_close(soup({"a": 0.3, "b": 0.4}), soup({"a": 0.7}), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(soup({"a": 1.0, "b": -1.0}), plain)
    assert not torch.allclose(soup({"a": 0.3}), soup({"a": 0.7}), atol=1e-3)


def test_each_lora_is_trained_on_its_feature_alone(
    folders: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs = tiny_training.make_pairs(8)
    options = replace(tiny_training.QUICK, head_lr=0.0, head_epochs=0.0)
    assert (IDENTITY_HEAD.head_lr, IDENTITY_HEAD.head_epochs) == (0.0, 0.0)
    checkpoint = open_checkpoint(folders[0])
    made = ensure_loras(checkpoint, pairs, ("eggs", "noise"), tmp_path / "loras", options)
    with monkeypatch.context() as patched:
        patched.setattr(soup_module, "train_persrm", None)  # nothing is left to train
        again = ensure_loras(checkpoint, pairs, ("eggs", "noise"), tmp_path / "loras", options)
    for feature, lora in made.items():
        assert {pair.weights[feature] for pair in pairs_of(pairs, feature)} == {1.0}
        head = read_persrm(tmp_path / "loras" / feature).feature_head
        assert head is not None
        assert torch.equal(head.weight[0].float(), torch.eye(84))  # so that the trunk is the whole policy
        for name, change in lora.items():
            assert torch.equal(change.b, again[feature][name].b)
    fewer = ensure_loras(checkpoint, pairs[:6], ("eggs",), tmp_path / "loras", options)["eggs"]
    assert not all(torch.equal(change.b, fewer[name].b) for name, change in made["eggs"].items())  # trained anew
    one, other = ({name: change.b for name, change in made[feature].items()} for feature in ("eggs", "noise"))
    assert not any(torch.equal(one[name], other[name]) for name in one)


# -- the vector -------------------------------------------------------------------------------------------------------


def test_a_vector_of_strength_0_is_the_base(backbone: Backbone) -> None:
    vectors = {"eggs": torch.ones(84)}
    plain = replies(backbone)
    for strength, same in ((0.0, True), (5.0, False)):
        with steered(backbone, vectors, {"eggs": 1.0}, strength=strength, layer=middle_layer(backbone)):
            assert (replies(backbone) == plain) == same
    assert replies(backbone) == plain


def test_the_vector_is_the_mean_difference_of_hidden_states(backbone: Backbone) -> None:
    pairs = tiny_training.make_pairs(3, features=("eggs",))
    pairs[1] = replace(pairs[1], chosen=pairs[1].rejected, rejected=pairs[1].chosen, weights={"eggs": -1.0})
    layer = middle_layer(backbone)
    expected = []
    for index, pair in enumerate(pairs):
        means = []
        for reply in (pair.chosen, pair.rejected):
            prompt = backbone.encode_prompt(pair.messages)
            ids = torch.tensor([[*prompt, *backbone.encode_reply(reply, finished=False)]])
            with torch.no_grad():
                states = backbone.model(ids, output_hidden_states=True).hidden_states[layer + 1]
            means.append(states[0, len(prompt) :].mean(0))
        expected.append((means[0] - means[1]) * (-1 if index == 1 else 1))
    found = mean_difference(backbone, pairs, "eggs", layer)
    torch.testing.assert_close(found, torch.stack(expected).mean(0), atol=1e-5, rtol=1e-4)
    assert not torch.allclose(found, -torch.stack(expected).mean(0), atol=1e-2)


def test_two_vectors_add_up(backbone: Backbone) -> None:
    seen: list[torch.Tensor] = []
    vectors = {"a": torch.ones(84), "b": torch.arange(84.0)}
    layer = middle_layer(backbone)
    for weights in ({}, {"a": 0.5, "b": -2.0}):
        asked = weights or {"a": 0.0}
        with steered(backbone, vectors, asked, strength=3.0, layer=layer), torch.no_grad():
            seen.append(backbone.model(torch.tensor([[5, 9]]), output_hidden_states=True).hidden_states[layer + 1][0])
    difference = seen[1] - seen[0]
    torch.testing.assert_close(difference[-1], 1.5 * vectors["a"] - 6 * vectors["b"], atol=1e-3, rtol=1e-4)
    assert torch.equal(difference[0], torch.zeros(84))  # of the prompt, only its end


# -- cells ------------------------------------------------------------------------------------------------------------


def test_cells_in_torch_are_answered_in_the_order_of_the_questions(
    folders: tuple[Path, Path], backbone: Backbone
) -> None:
    rivals = TorchRivals(backbone, {"a": read_lora(folders[1])}, {"a": torch.ones(84)})
    plain = replies(backbone, **dict(PENALTIES))
    for method, beta, same in (("base", 1.0, True), ("soup", 0.0, True), ("soup", 2.0, False), ("vector", 0.0, True)):
        cell = Cell(method=method, weights=(("a", 1.0),), beta=beta, max_new_tokens=10)
        made = rivals(cell, PROMPTS).replies
        assert [reply.prompt for reply in made] == PROMPTS
        assert ([reply.token_ids for reply in made] == plain) == same
        texts = [backbone.tokenizer.decode(reply.token_ids, skip_special_tokens=True) for reply in made]
        assert [reply.text for reply in made] == texts


# -- best of n --------------------------------------------------------------------------------------------------------


def test_best_of_1_is_the_sample_and_best_of_n_has_most_of_phi(folders: tuple[Path, Path], tmp_path: Path) -> None:
    generator = tiny_bundles.load(tiny_bundles.export(tmp_path / "bundle", folders[0], [folders[1]], max_batch=4))
    configs = [GenerationConfig(max_new_tokens=6, temperature=2.0, seed=seed) for seed in range(4)]
    samples = draw_samples(generator, PROMPTS, FEATURES, [configs] * len(PROMPTS))
    weights = {"a": 0.8, "b": -0.6}
    for prompt, own in zip(PROMPTS, samples, strict=True):
        texts = [generator.generate(prompt, config=config).text for config in configs]
        assert best_of(own, weights, 1).text == texts[0]
        wanted = Preference(weights=weights)
        rewards = [generator.score(prompt, sample.reply.token_ids, wanted).reward or 0.0 for sample in own]
        assert best_of(own, weights, 4) is own[rewards.index(max(rewards))].reply
        assert (
            best_of(own, {name: -weight for name, weight in weights.items()}, 4)
            is own[rewards.index(min(rewards))].reply
        )


def test_the_first_of_equals_is_taken() -> None:
    samples = [ScoredSample(JudgedReply("?", text, (1,), False), {"a": 1.0}) for text in ("one", "two")]
    assert best_of(samples, {"a": 1.0}, 2).text == "one"
