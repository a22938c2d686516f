"""A graph of a loaded bundle: its ONNX file, and the files that hold its weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pad_runtime.bundle.held_file import BundleFiles, HeldFile
from pad_runtime.bundle.manifest import Manifest
from pad_runtime.bundle.onnx_file import OnnxFile, rename_file
from pad_runtime.errors import BundleError


@dataclass(frozen=True)
class GraphFile:
    """A graph as it was when its bundle was loaded.

    Attributes:
        name: the graph's name in the manifest.
        file: the ONNX file.
        content: bytes of the ONNX file.
        model: the parsed content: nodes, and places of the weights.
        weights: the files that hold the weights.
        files: all files of the bundle.
    """

    name: str
    file: HeldFile
    content: bytes
    model: OnnxFile
    weights: tuple[HeldFile, ...]
    files: BundleFiles

    @classmethod
    def read(cls, files: BundleFiles, manifest: Manifest, name: str) -> GraphFile:
        """Read a graph of a bundle.

        Raises:
            BundleError: the file is no graph or was changed since it was loaded, or its weights are in a file that the
                manifest does not list.
        """
        file = files[manifest.graphs[name].file]
        content = file.read()
        model = OnnxFile.parse(content, file.path)
        names = sorted({tensor.file for tensor in model.tensors})
        return cls(name, file, content, model, tuple(files[each] for each in names), files)

    @property
    def path(self) -> Path:
        """Path of the ONNX file."""
        return self.file.path

    def placed(self) -> tuple[bytes, Path]:
        """The model with links to weight files followed, and the folder that the weight files are in.

        For libraries that open weight files by name: ONNX Runtime takes them from one folder, and refuses links that
        lead out of it.

        Raises:
            BundleError: links lead into several folders.
        """
        content, folder = self.content, self.path.parent
        for file in self.weights:
            if file is not self.weights[0] and file.real.parent != folder:
                raise BundleError(
                    f"{file.path} leads to {file.real}",
                    expected=f"it in {folder}, with {self.weights[0].path.name}",
                    hint="copy both into the bundle",
                )
            folder = file.real.parent
            content = rename_file(content, file.path.name, file.real.name)
        return content, folder
