"""Float passes alone, and finding the pass that changes a model's outputs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from onnxq.benchmark import random_feeds
from onnxq.cost import Bench
from onnxq.errors import InputError, InvariantError
from onnxq.forms import FloatForm, Trial, fastest_form
from onnxq.ir import (
    Context,
    Graph,
    ModelLike,
    Pass,
    PassRecord,
    Pipeline,
    default_passes,
    load,
    raise_opset,
)
from onnxq.passes.cleanup.constant_initializers import settle_overridable
from onnxq.plan.apply import float_passes
from onnxq.runtime.files import ModelFiles
from onnxq.runtime.session import AS_STORED
from onnxq.targets import load_target

TOLERANCE = 1e-5
"""Largest difference, relative to the output's largest magnitude, that counts as none."""


@dataclass(frozen=True)
class Rewritten:
    """A rewritten model, what each pass did to it, and sentences about its interface."""

    graph: Graph
    records: tuple[PassRecord, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class PassDifference:
    """How far the outputs were from the original's after a pass ran.

    Where there is nothing to compare, the difference is infinite and ``error`` says why: the
    graph is not valid any more, onnxruntime cannot run it, or an output is gone.
    """

    name: str
    difference: float
    error: str = ""


@dataclass(frozen=True)
class BisectResult:
    """The differences after each pass, and the first pass that is to blame, if any."""

    checked: tuple[PassDifference, ...]
    first_bad: str | None


def rewrite(
    model: ModelLike | Graph,
    passes: str | Sequence[Pass] | None = None,
    *,
    opset: int | Literal["fastest"] | None = None,
    keep_overridable: bool = False,
    debug: int = 0,
) -> Rewritten:
    """Rewrite a model with float passes.

    Args:
        model: Path, serialized bytes, ``ModelProto`` or a graph, which is left as it is.
        passes: Passes, or their text form ``"fold-constants,fuse-batch-norm"``, in which
            ``default`` stands for the default float pipeline; that if None.
        opset: Raise the model to at least this opset. ``fastest`` is the lowest at which it is
            the fastest on this machine, with random inputs: those are timed at which a pass finds
            more. What was timed is remembered, so that another run here gives the same.
        keep_overridable: Keep weights that are all listed as inputs overridable; they are made
            constants otherwise.
        debug: Level of the passes' log, see `onnxq.ir.Context`.

    Raises:
        InputError: the model, a pass or the opset cannot be used.
    """
    graph = model.copy() if isinstance(model, Graph) else load(model)
    steps, ctx = _passes(passes), Context(debug)
    notes = settle_overridable(graph, ctx, keep=keep_overridable)
    if opset == "fastest":
        opset, found = _fastest_opset(graph, steps)
        notes += found
    graph = raise_opset(graph, opset or 0)
    return Rewritten(graph, tuple(Pipeline(steps).run(graph, ctx)), notes)


def _fastest_opset(graph: Graph, steps: Sequence[Pass]) -> tuple[int, tuple[str, ...]]:
    """The opset at which the rewritten model is the fastest, and what was found, in sentences."""
    # Nothing follows the float passes: neither other forms nor integers.
    target = replace(load_target("auto"), passes="", forms=(), operators={})
    form = FloatForm(",".join(map(str, steps)), graph.opset)

    def feeds() -> Mapping[str, np.ndarray]:
        with ModelFiles.temporary() as files:
            return random_feeds(files.session(graph, optimization="none", config=AS_STORED).inputs)

    try:
        form, notes = fastest_form(graph, form, Trial(target, feeds, Bench()))
    except InputError as error:
        why = str(error).partition(";")[0]
        return graph.opset, (
            f"Opset {graph.opset} stays, since no other can be timed on random inputs: {why}.",
        )
    return form.opset, notes


def bisect_passes(
    model: ModelLike | Graph,
    passes: str | Sequence[Pass] | None = None,
    *,
    feeds: Mapping[str, np.ndarray] | None = None,
    keep_overridable: bool = False,
    seed: int = 0,
    tolerance: float = TOLERANCE,
) -> BisectResult:
    """Find the first pass that changes a model's outputs.

    The passes run one after another, each once, and after each the outputs are compared with
    the original model's on the same inputs.

    Args:
        model: The model, see `rewrite`.
        passes: The passes to check, see `rewrite`.
        feeds: Inputs to run with; random ones drawn from ``seed`` if None.
        keep_overridable: See `rewrite`.
        seed: Chooses the random inputs.
        tolerance: Largest difference relative to an output's largest magnitude.

    Raises:
        InputError: the model or a pass cannot be used, or onnxruntime cannot run the model.
    """
    graph = model.copy() if isinstance(model, Graph) else load(model)
    with ModelFiles.temporary() as files:
        session = files.session(graph, optimization="none")
        fed = dict(feeds) if feeds is not None else random_feeds(session.inputs, seed=seed)
        expected = session.run(fed)
        del session
        settle_overridable(graph, Context(), keep=keep_overridable)
        checked = []
        for step in _passes(passes):
            checked.append(_check(step, graph, files, fed, expected))
            if not checked[-1].difference <= tolerance:
                return BisectResult(tuple(checked), step.name)
    return BisectResult(tuple(checked), None)


def _check(
    step: Pass,
    graph: Graph,
    files: ModelFiles,
    feeds: Mapping[str, np.ndarray],
    expected: Mapping[str, Any],
) -> PassDifference:
    """Run a pass over a graph in place and compare the outputs."""
    try:
        Pipeline((step,), fixed_point=False).run(graph)
    except InvariantError as error:
        return PassDifference(step.name, math.inf, str(error))
    try:
        session = files.session(graph, optimization="none")
        wanted = {spec.name for spec in session.inputs}
        found = session.run({name: array for name, array in feeds.items() if name in wanted})
    except InputError as error:
        return PassDifference(step.name, math.inf, str(error))
    gone = next((name for name in expected if name not in found), None)
    if gone is not None:
        return PassDifference(step.name, math.inf, f"the output '{gone}' is gone")
    worst = max((_relative(wanted, found[name]) for name, wanted in expected.items()), default=0.0)
    return PassDifference(step.name, worst)


def _passes(passes: str | Sequence[Pass] | None) -> tuple[Pass, ...]:
    if passes is None:
        return default_passes()
    return float_passes(passes) if isinstance(passes, str) else tuple(passes)


def _relative(wanted: Any, given: Any) -> float:
    """Largest difference relative to the largest magnitude that was wanted."""
    if isinstance(wanted, list):
        pairs = zip(wanted, given, strict=False)
        same_length = len(wanted) == len(given)
        return max((_relative(a, b) for a, b in pairs), default=0.0) if same_length else math.inf
    a, b = np.asarray(wanted), np.asarray(given)
    if a.shape != b.shape or a.dtype != b.dtype:
        return math.inf
    if a.dtype.kind in "OUS":
        return 0.0 if np.array_equal(a, b) else math.inf
    a, b = a.astype(np.float64), b.astype(np.float64)
    finite = np.isfinite(a) & np.isfinite(b)
    if not np.array_equal(a[~finite], b[~finite], equal_nan=True):
        return math.inf
    scale = float(np.abs(a[finite]).max(initial=0.0)) or 1.0
    return float(np.abs(a[finite] - b[finite]).max(initial=0.0)) / scale
