"""Objects that other processes read from a folder: small files, with models and weights beside.

Graphs are written as models, under their hash, and nodes and values go by their place in them. So
a file holds no weights, and processes that read it map these into memory.
"""

from __future__ import annotations

import hashlib
import io
import os
import pickle
import shutil
import uuid
from collections.abc import Iterator, Mapping, Set
from dataclasses import fields, is_dataclass
from enum import Enum
from functools import cache, lru_cache
from importlib.metadata import version
from pathlib import Path
from types import MappingProxyType
from typing import Any, cast

import numpy as np

from onnxq.errors import InputError
from onnxq.ir import Graph, Node, Value, load, save
from onnxq.runtime.backend import load_backend

_MODEL = "model.onnx"

_OPEN_MODELS = 4
"""Models that a process keeps open, so that what refers to one of them shares it."""


class Sharing:
    """Writes what other processes read.

    Graphs that it has written must not change any more.

    Args:
        folder: A folder that all of them see under this name.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._models: dict[Graph, Path] = {}

    def model(self, graph: Graph) -> Path:
        """The folder of a main graph's model, which has the name of its hash.

        Raises:
            InputError: it cannot be written.
        """
        if graph not in self._models:
            made = self._folder / "models" / f"making-{uuid.uuid4().hex}"
            try:
                made.mkdir(parents=True)
                save(graph, made / _MODEL, external_data=True)
                digest = hashlib.sha256()
                for file in sorted(made.iterdir()):
                    digest.update(file.name.encode())
                    with file.open("rb") as opened:
                        digest.update(hashlib.file_digest(opened, "sha256").digest())
                path = made.with_name(digest.hexdigest()[:32])
                self._models[graph] = path
                if not path.is_dir():
                    os.rename(made, path)
                # It is still wanted.
                os.utime(path)
            except OSError as error:
                raise _unwritable(self._folder, error) from error
            finally:
                shutil.rmtree(made, ignore_errors=True)
        return self._models[graph]

    def dump(self, what: object) -> bytes:
        """An object as bytes, of which `loads` makes it again."""
        file = io.BytesIO()
        _Pickler(file, self).dump(what)
        return file.getvalue()

    def fingerprint(self, *what: object) -> str:
        """Hash of the contents of objects, and of the versions of the software."""
        digest = hashlib.sha256()
        for piece in (*_versions(), *self._pieces(what)):
            digest.update(piece if isinstance(piece, bytes) else piece.encode())
            digest.update(b"\0")
        return digest.hexdigest()[:32]

    def _pieces(self, what: object) -> Iterator[str | bytes]:
        match what:
            case Graph():
                main = _main(what)
                yield f"graph {self.model(main).name} {_place(main, what)}"
            case Node():
                yield f"node {_nodes(_main(what.graph)).index(what)}"
                yield from self._pieces(_main(what.graph))
            case Value():
                yield f"value {what.name}"
                yield from self._pieces(what.graph)
            case np.ndarray():
                yield f"array {what.dtype} {what.shape}"
                yield np.ascontiguousarray(what).tobytes()
            case Enum():
                yield str(what)
            case _ if not isinstance(what, type) and callable(getattr(what, "fingerprint", None)):
                yield from self._pieces(cast(Any, what).fingerprint())
            case _ if is_dataclass(what) and not isinstance(what, type):
                yield type(what).__qualname__
                for field in fields(what):
                    if not field.compare:
                        continue
                    yield from self._pieces(getattr(what, field.name))
            case Mapping():
                yield f"mapping {len(what)}"
                for key, value in what.items():
                    yield from self._pieces(key)
                    yield from self._pieces(value)
            case Set():
                yield f"set {len(what)}"
                yield from sorted(self.fingerprint(item) for item in what)
            case list() | tuple():
                yield f"sequence {len(what)}"
                for item in what:
                    yield from self._pieces(item)
            case None | bool() | int() | float() | str() | bytes() | Path() | type():
                yield f"{type(what).__name__} {what!r}"
            case np.generic() | np.dtype():
                yield f"{what!r}"
            case _:
                raise TypeError(f"{type(what).__name__} has no fingerprint")


def loads(data: bytes) -> Any:
    """The object that `Sharing.dump` made bytes of.

    They must come from one's own processes: what is pickled may run any code.
    """
    return pickle.loads(data)


class _Pickler(pickle.Pickler):
    """Puts graphs into files, and refers to nodes and values by their place."""

    def __init__(self, file: io.BytesIO, sharing: Sharing) -> None:
        super().__init__(file, protocol=5)
        self._sharing = sharing

    def reducer_override(self, obj: Any) -> Any:
        """See `pickle.Pickler`."""
        match obj:
            case Graph() if obj.outer is None:
                return _opened, (str(self._sharing.model(obj)), _types(obj))
            case Graph():
                main = _main(obj)
                return _graph_at, (main, _place(main, obj))
            case Node() if obj.in_graph:
                main = _main(obj.graph)
                return _node_at, (main, _nodes(main).index(obj))
            case Value():
                return _value_of, (obj.graph, obj.name)
            case MappingProxyType():
                return _read_only, (dict(obj),)
        return NotImplemented


@cache
def _versions() -> tuple[str, ...]:
    return version("onnxq"), load_backend("onnxruntime").version, np.__version__


def _main(graph: Graph) -> Graph:
    while graph.outer is not None:
        graph = graph.outer
    return graph


def _place(main: Graph, graph: Graph) -> int:
    return list(main.all_graphs()).index(graph)


def _nodes(main: Graph) -> list[Node]:
    return list(main.all_nodes())


def _types(main: Graph) -> tuple[tuple[int, str, Any], ...]:
    """Types of values, which files hold of those only that declare them."""
    return tuple(
        (place, value.name, value.type)
        for place, graph in enumerate(main.all_graphs())
        for value in graph.values.values()
        if value.type is not None and not value.declared
    )


@lru_cache(_OPEN_MODELS)
def _opened(folder: str, types: tuple[tuple[int, str, Any], ...]) -> Graph:
    graph = load(Path(folder) / _MODEL)
    graphs = list(graph.all_graphs())
    for place, name, type_ in types:
        graphs[place].values[name].type = type_
    return graph


def _graph_at(main: Graph, place: int) -> Graph:
    return list(main.all_graphs())[place]


def _node_at(main: Graph, place: int) -> Node:
    return _opened_nodes(main)[place]


@lru_cache(_OPEN_MODELS)
def _opened_nodes(main: Graph) -> list[Node]:
    """Nodes of a model that was opened: work with many layers refers to as many of them."""
    return _nodes(main)


def _read_only(what: dict[Any, Any]) -> Mapping[Any, Any]:
    return MappingProxyType(what)


def _value_of(graph: Graph, name: str) -> Value:
    return graph.values[name]


def _unwritable(folder: Path, error: OSError) -> InputError:
    return InputError(
        f"the folder '{folder}' cannot be written to: {error.strerror or error}; make room, or "
        "name another one by --work-dir"
    )
