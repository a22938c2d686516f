"""Graphs of a bundle, as a provider opens them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pad_runtime.bundle.graph_file import GraphFile
from pad_runtime.bundle.manifest import open_bundle


def read_graph(bundle: Path, name: str) -> GraphFile:
    """One graph of a bundle."""
    manifest, files = open_bundle(bundle)
    return GraphFile.read(files, manifest, name)


def open_graph(provider: Any, bundle: Path, name: str) -> Any:
    """One graph of a bundle, opened by a provider."""
    manifest, files = open_bundle(bundle)
    return provider.open(GraphFile.read(files, manifest, name), manifest)
