"""The features that a taste is about, and what tells their PersRMs from others."""

from __future__ import annotations

import hashlib

from pad_runtime.bundle.manifest import Manifest
from pad_runtime.errors import TasteError


def taste_features(manifest: Manifest) -> tuple[str, ...]:
    """All features of a bundle, in the order in which a `ReplyScore` has them.

    Raises:
        TasteError: it has none.
    """
    persrms = [persrm for persrm in manifest.persrms if not manifest.is_contrast(persrm)]
    features = tuple(feature for persrm in persrms for feature in persrm.features)
    if not features:
        raise TasteError(
            f"a bundle of {manifest.base} without a PersRM",
            expected="one whose PersRM has features",
            hint="export it with --persrm",
        )
    return features


def persrms_digest(manifest: Manifest) -> str:
    """SHA-256 of the PersRMs: of their adapters and feature heads, or, of a merged one, of the bundle's weights."""
    files = {name: info.sha256 for name, info in manifest.files.items()}
    told = [
        (persrm.features, [files[name] for name in (persrm.adapter, persrm.feature_head) if name])
        for persrm in manifest.persrms
    ]
    merged = any(persrm.adapter is None for persrm in manifest.persrms)
    weights = sorted(value for name, value in files.items() if name.endswith(".bin")) if merged else []
    return hashlib.sha256(repr((told, weights)).encode()).hexdigest()
