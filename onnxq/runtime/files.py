"""Graphs on their way into sessions: as files, so that no message holds their weights.

onnxruntime maps external data into memory, whereas it keeps several copies of what is in a model.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Self

from onnxq.ir import Graph, infer_types, load, save, to_proto
from onnxq.ir.saving import SharedData, constant_bytes
from onnxq.ir.stored import keep_readable
from onnxq.runtime.pool import give_back
from onnxq.runtime.session import AS_STORED, Session
from onnxq.scratch import scratch_folder

LARGE = 1 << 26
"""Bytes of constants from which they lie beside the model."""


class ModelFiles:
    """Models in a folder; large ones share their weights.

    Args:
        folder: The folder, for nothing else than these and what goes by other names.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._weights = SharedData(folder / "weights.data")
        self._count = 0

    @classmethod
    @contextmanager
    def temporary(cls) -> Iterator[Self]:
        """A folder of its own, for a while."""
        with scratch_folder() as folder:
            yield cls(folder)
        give_back()

    def save(self, graph: Graph, name: str) -> Path:
        """Write a model under a name of its own."""
        path = self._folder / name
        save(graph, path, shared=self._weights if constant_bytes(graph) >= LARGE else None)
        return path

    def beside(self, graph: Graph, path: Path) -> Path:
        """A model's file with its weights beside it: the one that it came from, if it is small."""
        if path.stat().st_size < LARGE:
            return path
        self._count += 1
        return self.save(graph, f"model-{self._count}.onnx")

    def optimized(self, graph: Graph) -> Graph:
        """What onnxruntime makes of a graph when it loads it, with its weights in files.

        What is still a value of the graph has its type, as far as that can be inferred.
        """
        self._count += 1
        path = self._folder / f"optimized-{self._count}.onnx"
        source = self._folder / f"source-{self._count}.onnx"
        save(graph, source, external_data=True)
        config = {
            **AS_STORED,
            "session.optimized_model_external_initializers_file_name": f"{path.name}.data",
            "session.optimized_model_external_initializers_min_size_in_bytes": "1024",
        }
        Session(source, config=config, save_optimized=path)
        optimized, typed = load(path), graph.copy()
        data = path.with_name(f"{path.name}.data")
        # The graph reads on, and the disk has its room back as soon as the graph is gone.
        keep_readable(data)
        for file in (source, source.with_name(f"{source.name}.data"), path, data):
            with suppress(OSError):
                file.unlink()
        infer_types(typed)
        for name, value in optimized.values.items():
            # onnxruntime writes the types that were in the file, and declaring more there would
            # change what it fuses.
            if value.type is None and name in typed.values:
                value.type = typed.values[name].type
        return optimized

    def share(self, graph: Graph) -> None:
        """Put the weights of a graph where sessions of its parts and changed copies find them."""
        if constant_bytes(graph) >= LARGE:
            self._weights.add(graph)

    def session(self, graph: Graph, **options: Any) -> Session:
        """A session of a graph, see `Session` for the options; it leaves no file behind."""
        if constant_bytes(graph) < LARGE:
            return Session(to_proto(graph), **options)
        self._count += 1
        path = self._folder / f"session-{self._count}.onnx"
        own = SharedData(path.with_suffix(".data"), self._weights)
        try:
            save(graph, path, shared=own)
            return Session(path, **options)
        finally:
            for file in (path, own.path):
                # What is mapped cannot be removed everywhere; the folder goes anyway.
                with suppress(OSError):
                    file.unlink()
