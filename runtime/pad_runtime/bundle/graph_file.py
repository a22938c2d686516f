"""A graph of a loaded bundle: its content, and the files of its weights."""

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
        name: in the manifest.
        file: the ONNX file.
        content: of that file.
        model: what it says.
        weights: the files that its weights lie in.
        files: all of the bundle.
    """

    name: str
    file: HeldFile
    content: bytes
    model: OnnxFile
    weights: tuple[HeldFile, ...]
    files: BundleFiles

    @classmethod
    def read(cls, files: BundleFiles, manifest: Manifest, name: str) -> GraphFile:
        """Read one.

        Raises:
            BundleError: the file is no graph, is not what the manifest says any more, or its weights lie in a file that
                the manifest does not list.
        """
        file = files[manifest.graphs[name].file]
        content = file.read()
        model = OnnxFile.parse(content, file.path)
        names = sorted({tensor.file for tensor in model.tensors})
        return cls(name, file, content, model, tuple(files[each] for each in names), files)

    @property
    def path(self) -> Path:
        """Of the ONNX file."""
        return self.file.path

    def placed(self) -> tuple[bytes, Path]:
        """The model as who reads the weights by their names needs it, and the folder where these are.

        ONNX Runtime takes weights from one folder, and none that a link there leads out of. A link of the bundle is
        followed here.

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
