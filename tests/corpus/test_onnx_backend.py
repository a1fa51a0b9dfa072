"""ONNX's own backend tests: what onnxruntime gets right it still gets right after onnxq."""

from __future__ import annotations

import functools
import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.numpy_helper
import pytest
from onnx.backend.test.loader import load_model_tests

from onnxq.errors import InputError, OnnxqError
from onnxq.ir import Graph, Pipeline, Tensor, default_passes, load, save
from onnxq.runtime import Session
from tests.helpers import assert_same_outputs

NEWEST_IR_VERSION = 13
"""The newest that onnxruntime takes; nothing in these models needs a newer one."""

NEWEST_OPSET = 26
"""The newest that onnxruntime takes."""


FEWEST = {"node": 1500, "simple": 15, "pytorch-converted": 50, "pytorch-operator": 20}
"""How many at least onnxruntime runs, per kind of test that comes with the onnx package."""

KINDS = tuple(FEWEST)


@dataclass(frozen=True)
class Case:
    """A model with one set of inputs and the outputs ONNX expects, in the model's order."""

    name: str
    model: onnx.ModelProto
    inputs: list[Any]
    outputs: list[Any]
    rtol: float
    atol: float

    def feeds(self, graph: Graph) -> dict[str, Any]:
        """The inputs under the names the graph has; optional ones without a value are left out."""
        fed = [v.name for v in graph.inputs if v.data is None]
        return {
            name: value for name, value in zip(fed, self.inputs, strict=False) if value is not None
        }


@functools.cache
def cases(kind: str) -> tuple[Case, ...]:
    """The first data set of every test of a kind."""
    return tuple(_cases(kind))


def _cases(kind: str) -> Iterator[Case]:
    for test in load_model_tests(kind=kind):
        if test.model is not None:
            inputs, outputs = test.data_sets[0]
            _stamp_older(test.model)
            fed, wanted = ([_array(v) for v in values] for values in (inputs, outputs))
            yield Case(test.name, test.model, fed, wanted, test.rtol, test.atol)
            continue
        folder = Path(test.model_dir or "")
        model = onnx.load(folder / "model.onnx")
        data = folder / "test_data_set_0"
        inputs = _read(data, "input", model.graph.input)
        outputs = _read(data, "output", model.graph.output)
        yield Case(test.name, model, inputs, outputs, test.rtol, test.atol)


def _stamp_older(model: onnx.ModelProto) -> None:
    """Give a model versions that onnxruntime takes, where no operator changed since."""
    model.ir_version = min(model.ir_version, NEWEST_IR_VERSION)
    scopes = [model, *model.functions]
    nodes = [*_nodes(model.graph.node), *(n for f in model.functions for n in _nodes(f.node))]
    imports = [entry for scope in scopes for entry in scope.opset_import if not entry.domain]
    if all(_since(node, imports) <= NEWEST_OPSET for node in nodes if not node.domain):
        for entry in imports:
            entry.version = min(entry.version, NEWEST_OPSET)


def _nodes(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    for node in nodes:
        yield node
        for attribute in node.attribute:
            for body in (attribute.g, *attribute.graphs):
                yield from _nodes(body.node)


def _since(node: onnx.NodeProto, imports: list[onnx.OperatorSetIdProto]) -> int:
    newest = max(entry.version for entry in imports)
    return onnx.defs.get_schema(node.op_type, newest, "").since_version


def _array(value: Any) -> Any:
    if isinstance(value, onnx.TensorProto):
        return onnx.numpy_helper.to_array(value)
    return value if value is None or isinstance(value, list) else np.asarray(value)


def _read(folder: Path, what: str, entries: Any) -> list[Any]:
    files = [folder / f"{what}_{at}.pb" for at in range(len(entries))]
    return [
        _value(file.read_bytes(), entry.type)
        for file, entry in zip(files, entries, strict=True)
        if file.is_file()
    ]


def _value(data: bytes, kind: onnx.TypeProto) -> Any:
    if kind.HasField("sequence_type"):
        return onnx.numpy_helper.to_list(onnx.SequenceProto.FromString(data))
    if kind.HasField("optional_type"):
        return onnx.numpy_helper.to_optional(onnx.OptionalProto.FromString(data))
    return onnx.numpy_helper.to_array(onnx.TensorProto.FromString(data))


def as_it_is(case: Case, graph: Graph) -> Graph:
    """The model of the test."""
    return graph


def with_constants(case: Case, graph: Graph) -> Graph:
    """The model with every input that is a tensor made a constant, so that passes find work."""
    feeds = case.feeds(graph)
    for value in graph.inputs:
        found = feeds.get(value.name)
        if isinstance(found, np.ndarray) and value.dtype is not None:
            value.data = Tensor(found)
            graph.make_constant(value)
    return graph


def round_trip(graph: Graph) -> Graph:
    """Nothing but loading and saving."""
    return graph


def pipeline(graph: Graph) -> Graph:
    """The default float pipeline."""
    Pipeline(default_passes()).run(graph)
    return graph


def _run(path: Path, feeds: dict[str, Any]) -> dict[str, Any]:
    session = Session(path)
    wanted = {spec.name for spec in session.inputs}
    return session.run({name: value for name, value in feeds.items() if name in wanted})


def _is_expected(case: Case, found: dict[str, Any]) -> bool:
    return len(found) == len(case.outputs) and all(
        agree(one, other, case) for one, other in zip(case.outputs, found.values(), strict=True)
    )


def agree(wanted: Any, found: Any, case: Case) -> bool:
    """Whether an output is the expected one, within the test's tolerances."""
    if isinstance(wanted, list):
        return (
            isinstance(found, list)
            and len(wanted) == len(found)
            and all(agree(a, b, case) for a, b in zip(wanted, found, strict=True))
        )
    if wanted is None or found is None:
        return wanted is found
    one, other = np.asarray(wanted), np.asarray(found)
    if one.shape != other.shape:
        return False
    if one.dtype.kind in "OUST":
        return bool((one.astype(str) == other.astype(str)).all())
    if one.dtype != other.dtype:
        return False
    if one.dtype.kind == "c":
        return bool(np.allclose(one, other, case.rtol, case.atol, equal_nan=True))
    return bool(
        np.allclose(
            one.astype(np.float64), other.astype(np.float64), case.rtol, case.atol, equal_nan=True
        )
    )


def _differs(one: dict[str, Any], other: dict[str, Any]) -> bool:
    try:
        assert_same_outputs(one, other, exact=True)
    except AssertionError:
        return True
    return False


def try_case(
    case: Case,
    start: Callable[[Case, Graph], Graph],
    change: Callable[[Graph], Graph],
    folder: Path,
) -> tuple[str, str]:
    """What came of one case: ``passed``, ``skipped`` or ``failed``, and why."""
    before, after = folder / "before.onnx", folder / "after.onnx"
    before.write_bytes(case.model.SerializeToString())
    feeds = case.feeds(load(before))
    if start is not as_it_is:
        save(start(case, load(before)), before)
    try:
        wanted = _run(before, feeds)
        if _differs(wanted, _run(before, feeds)):
            return "skipped", "onnxruntime gives something else each time"
    except InputError as error:
        return "skipped", _reason(str(error))
    save(change(load(before)), after)
    found = _run(after, feeds)
    if _is_expected(case, wanted):
        if _is_expected(case, found):
            return "passed", "as ONNX expects"
        return "failed", f"{case.name}: not as ONNX expects"
    try:
        assert_same_outputs(wanted, found, exact=False, rtol=1e-5)
    except AssertionError as error:
        return "failed", f"{case.name}: {error}"
    return "passed", "as onnxruntime alone, not as ONNX expects"


_REASONS = {
    "onnxruntime has no kernel": ("Could not find an implementation", "NOT_IMPLEMENTED"),
    "onnxruntime knows no such operator or function": ("is not a registered function", "No Op"),
    "onnxruntime does not know that opset": ("opset", "Opset"),
}


def _reason(message: str) -> str:
    """A failure of onnxruntime without what only this model says."""
    for reason, marks in _REASONS.items():
        if any(mark in message for mark in marks):
            return reason
    return "onnxruntime refuses the model" if "cannot load" in message else "onnxruntime fails"


WAYS = {
    "round trip": (as_it_is, round_trip),
    "pipeline": (as_it_is, pipeline),
    "pipeline, inputs constant": (with_constants, pipeline),
}


def _combinations() -> Iterator[Any]:
    for kind, way in itertools.product(KINDS, WAYS):
        slow = kind == "node"
        yield pytest.param(kind, *WAYS[way], id=f"{kind}, {way}", marks=[pytest.mark.slow] * slow)


@pytest.mark.parametrize(("kind", "start", "change"), list(_combinations()))
def test_outputs_stay(
    kind: str,
    start: Callable[[Case, Graph], Graph],
    change: Callable[[Graph], Graph],
    tmp_path: Path,
    say: Callable[[str], None],
) -> None:
    counted: Counter[tuple[str, str]] = Counter()
    failures = []
    for case in cases(kind):
        try:
            verdict, reason = try_case(case, start, change, tmp_path)
        except OnnxqError as error:
            verdict, reason = "failed", f"{case.name}: {error}"
        if verdict == "failed":
            failures.append(reason)
            reason = ""
        counted[verdict, reason] += 1
    say(_summary(f"ONNX's {kind} tests, {change.__name__} ({start.__name__})", counted))
    assert not failures, "\n".join(failures)
    assert sum(n for (verdict, _), n in counted.items() if verdict == "passed") >= FEWEST[kind]


def _summary(title: str, counted: Counter[tuple[str, str]]) -> str:
    parts = [f"{title}: {counted.total()} tried"]
    for verdict in ("passed", "failed", "skipped"):
        reasons = {why: n for (what, why), n in counted.items() if what == verdict}
        if reasons:
            listed = ", ".join(f"{n} {why}" for why, n in sorted(reasons.items()) if why)
            parts.append(f"{sum(reasons.values())} {verdict}" + (f" ({listed})" if listed else ""))
    return "; ".join(parts)
