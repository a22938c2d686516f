"""A tiny PersRM that was trained, made once a session and shared."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pad_train.train.example import feature_names, with_words
from tests.support import tiny_bundles, tiny_models, tiny_training
from tests.support.tiny_training import Trained


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    root = tmp_path_factory.mktemp("trained")
    tiny_models.make_base(root / "base", "llama", seed=1)
    pairs = with_words(tiny_training.make_pairs(24), tiny_training.FEATURES, 0)
    options = replace(tiny_training.QUICK, epochs=3.0, head_epochs=2.0)
    names = feature_names(pairs)
    metrics = tiny_training.train(root / "base", pairs, root / "taste", options, features=names)
    bundle = tiny_bundles.export(root / "bundle", root / "base", [root / "taste"], max_top_k=20)
    return Trained(root / "base", root / "taste", bundle, metrics, tiny_bundles.load(bundle))
