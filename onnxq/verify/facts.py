"""Facts about model files, packages and this process."""

from __future__ import annotations

import hashlib
import platform
import sys
from importlib.metadata import version
from pathlib import Path

from onnxq.ir import Graph
from onnxq.runtime import integer_operators
from onnxq.verify.result import ModelFacts


def model_facts(graph: Graph, path: Path, provider: str) -> ModelFacts:
    """Path, hash, operators, opset and bytes of a model file."""
    return ModelFacts(
        path=str(path),
        sha256=file_sha256(path),
        nodes=sum(len(nested) for nested in graph.all_graphs()),
        opset=graph.opset,
        bytes=model_bytes(graph, path),
        integer_operators=dict(sorted(integer_operators(path, provider=provider).items())),
    )


def model_bytes(graph: Graph, path: Path) -> int:
    """Bytes of a model file and of the external data that it uses."""
    return path.stat().st_size + sum(
        value.data.nbytes
        for nested in graph.all_graphs()
        for value in nested.initializers()
        if value.data is not None and value.data.is_external
    )


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def versions() -> dict[str, str]:
    """Versions of everything that takes part in a result."""
    packages = ("onnxq", "onnx", "onnxruntime", "numpy", "networkx")
    return {"python": platform.python_version(), **{name: version(name) for name in packages}}


def peak_rss_bytes() -> int:
    """Most memory this process has held so far, in bytes; 0 where the system does not tell."""
    if sys.platform == "win32":
        return 0
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
