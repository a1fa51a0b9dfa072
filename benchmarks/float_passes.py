"""Print what the default float passes save, beside other optimizers of ONNX models.

Usage: python benchmarks/float_passes.py [FOLDER] [--seconds S] [--threads N]

Takes every model of FOLDER (models/ by default), and of the folder zoo in ONNXQ_CORPUS if that is
set. For onnxq, onnxslim, onnxsim and the optimizer of onnxscript, those that are installed, the
table has the operators that are left, those in subgraphs and functions counted, and the latency
of the original divided by that of the result, both in onnxruntime with all of its own
optimizations. All sessions of a model are measured in turn in one process; a ratio above 1 means
faster than the original. A result whose outputs differ from the original's is not measured.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import io
import logging
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from onnxq.errors import InputError
from onnxq.ir import Pipeline, default_passes, load, save
from onnxq.runtime import Session
from onnxq.runtime.specs import TensorSpec
from onnxq.runtime.timing import interleaved

ROOT = Path(__file__).resolve().parent.parent
TRIALS = 5

_FREE_DIMENSION = 2
_VOCABULARY = 10
_TOLERANCE = 1e-3

# What random numbers would not do for: sampling rates that the speech model knows.
_FIXED_INPUTS = {"sr": np.array(16000)}
_FIXED_SHAPES = {"silero": {"input": (1, 512), "state": (2, 1, 128)}}

Optimizer = Callable[[Path, Path], None]


def main() -> None:
    """Measure every model and print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("folder", nargs="?", type=Path, default=ROOT / "models")
    parser.add_argument("--seconds", type=float, default=5.0, help="time to measure each model")
    parser.add_argument("--threads", type=int, default=1, help="threads inside one operator")
    options = parser.parse_args()
    # onnxscript warns of every initializer that it leaves alone.
    logging.disable(logging.WARNING)
    installed = {n: o for n, o in OPTIMIZERS.items() if importlib.util.find_spec(n) is not None}
    for name in OPTIMIZERS.keys() - installed.keys():
        print(f"{name} is not installed and left out")
    print("| model | operators | " + " | ".join(f"{n}: left, speed" for n in installed) + " |")
    print("|---|---|" + "---|" * len(installed))
    for path in _models(options.folder):
        print(_row(path, installed, options.seconds, options.threads), flush=True)


def _models(folder: Path) -> list[Path]:
    found = sorted(folder.glob("*.onnx"))
    corpus = os.environ.get("ONNXQ_CORPUS")
    return found + (sorted((Path(corpus) / "zoo").glob("*.onnx")) if corpus else [])


def _row(path: Path, optimizers: dict[str, Optimizer], seconds: float, threads: int) -> str:
    cells = [path.stem, str(_count(path))]
    with tempfile.TemporaryDirectory() as name:
        try:
            original = Session(path, threads=threads)
            feeds = {spec.name: _array(spec, path.stem) for spec in original.inputs}
            expected = original.run(feeds)
        except InputError:
            return f"| {path.stem} | {cells[1]} |" + " does not run |" * len(optimizers)
        results: dict[str, Path] = {}
        left: dict[str, str] = {}
        for optimizer, optimize in optimizers.items():
            target = Path(name) / f"{optimizer}.onnx"
            try:
                with contextlib.redirect_stdout(io.StringIO()):
                    optimize(path, target)
                equal = _are_equal(expected, Session(target, threads=threads).run(feeds))
            except Exception as error:
                # Any of them may fail in any way on some model: that is part of the result.
                left[optimizer] = f"fails ({type(error).__name__})"
                continue
            if not equal:
                left[optimizer] = "differs"
                continue
            results[optimizer], left[optimizer] = target, str(_count(target))
        speedups = _speedups([path, *results.values()], feeds, seconds, threads)[1:]
    measured = dict(zip(results, speedups, strict=True))
    for optimizer in optimizers:
        speed = f", {measured[optimizer]:.3f}x" if optimizer in measured else ""
        cells.append(left[optimizer] + speed)
    return f"| {' | '.join(cells)} |"


def _speedups(
    paths: list[Path], feeds: dict[str, np.ndarray], seconds: float, threads: int
) -> list[float]:
    """Speed of each model relative to the first: medians of trials.

    Each trial has new sessions, created in another order: where a session's weights happen to lie
    in memory can outweigh what is measured.
    """
    trials = []
    for trial in range(TRIALS):
        order = [(trial + at) % len(paths) for at in range(len(paths))]
        sessions = {at: Session(paths[at], threads=threads) for at in order}
        every = [sessions[at] for at in range(len(paths))]
        trials.append([t.speedup for t in interleaved(every, feeds, seconds=seconds / TRIALS)])
    return [float(median) for median in np.median(np.array(trials), axis=0)]


def _are_equal(expected: dict[str, Any], found: dict[str, Any]) -> bool:
    """Whether all outputs are the same up to rounding."""
    return all(
        np.allclose(found[name], wanted, rtol=0, atol=_TOLERANCE * np.abs(wanted).max(initial=1e-9))
        for name, wanted in expected.items()
    )


def _array(spec: TensorSpec, model: str) -> np.ndarray:
    """Seeded random numbers for an input, free dimensions at a small size."""
    if spec.name in _FIXED_INPUTS:
        return _FIXED_INPUTS[spec.name]
    fixed = next((s for n, s in _FIXED_SHAPES.items() if model.startswith(n)), {})
    shape = fixed.get(spec.name) or [
        d if isinstance(d, int) else _FREE_DIMENSION for d in spec.shape or ()
    ]
    generator = np.random.default_rng(0)
    if spec.dtype is not None and spec.dtype.kind == "f":
        return np.asarray(generator.standard_normal(shape)).astype(spec.dtype)
    high = 2 if spec.dtype == np.dtype(bool) else _VOCABULARY
    return np.asarray(generator.integers(0, high, shape)).astype(spec.dtype)


def _count(path: Path) -> int:
    model = onnx.load(path, load_external_data=False)
    return _count_nodes(model.graph.node) + sum(_count_nodes(f.node) for f in model.functions)


def _count_nodes(nodes: object) -> int:
    count = 0
    for node in nodes:  # type: ignore[attr-defined]
        count += 1
        for attribute in node.attribute:
            count += _count_nodes(attribute.g.node)
            count += sum(_count_nodes(graph.node) for graph in attribute.graphs)
    return count


def _onnxq(source: Path, target: Path) -> None:
    graph = load(source)
    Pipeline(default_passes()).run(graph)
    save(graph, target)


def _onnxslim(source: Path, target: Path) -> None:
    import onnxslim

    onnx.save(onnxslim.slim(onnx.load(source)), target)


def _onnxsim(source: Path, target: Path) -> None:
    import onnxsim

    simplified, valid = onnxsim.simplify(onnx.load(source))
    if not valid:
        raise ValueError("onnxsim finds its own result to differ")
    onnx.save(simplified, target)


def _onnxscript(source: Path, target: Path) -> None:
    import onnxscript.optimizer

    onnx.save(onnxscript.optimizer.optimize(onnx.load(source)), target)


OPTIMIZERS: dict[str, Optimizer] = {
    "onnxq": _onnxq,
    "onnxslim": _onnxslim,
    "onnxsim": _onnxsim,
    "onnxscript": _onnxscript,
}

if __name__ == "__main__":
    main()
