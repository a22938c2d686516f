"""The model whose replies are sampled, made once a session and shared."""

from __future__ import annotations

import pytest

from pad_train.pairs import pair_choice
from pad_train.train.backbone import Backbone
from tests.support import tiny_training


@pytest.fixture(scope="session")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    return tiny_training.make_backbone(tmp_path_factory.mktemp("pairs") / "base", num_hidden_layers=1)


@pytest.fixture(autouse=True)
def any_text(monkeypatch: pytest.MonkeyPatch) -> None:
    """A random model writes no words; what a pair needs of them is another test's subject."""
    monkeypatch.setattr(pair_choice, "repeats_itself", lambda _: False)
