"""Facts about model files, packages and this process."""

from __future__ import annotations

import hashlib
import platform
import sys
from importlib.metadata import version
from pathlib import Path

from onnxq.ir import Graph
from onnxq.runtime import COMPILED, load_backend
from onnxq.verify.result import ModelFacts


def model_facts(
    graph: Graph, path: Path, provider: str, backend: str = "onnxruntime", *, operators: bool = True
) -> ModelFacts:
    """Path, hash, opset and bytes of a model file, and, of ``operators``, what runs as what."""
    runs = load_backend(backend)
    counts = sorted(runs.operators(path, provider=provider).items()) if operators else []
    return ModelFacts(
        path=str(path),
        sha256=file_sha256(path),
        nodes=sum(len(nested) for nested in graph.all_graphs()),
        opset=graph.opset,
        bytes=model_bytes(graph, path),
        integer_operators={n: amount for n, amount in counts if n in runs.integer_operators},
        compiled=sum(amount for name, amount in counts if name.startswith(COMPILED)),
        provider=provider,
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


def versions(backend: str = "onnxruntime") -> dict[str, str]:
    """Versions of everything that takes part in a result."""
    packages = {name: version(name) for name in ("onnxq", "onnx", "numpy", "networkx")}
    runs = {name: load_backend(name).version for name in ("onnxruntime", backend)}
    return {"python": platform.python_version(), **packages, **runs}


def peak_rss_bytes() -> int:
    """Most memory this process has held so far, in bytes; 0 where the system does not tell."""
    if sys.platform == "win32":
        return 0
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
