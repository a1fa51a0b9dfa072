"""The plan: a small, readable file that says what precision every node gets, and why."""

from __future__ import annotations

import fnmatch
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import tomli_w

from onnxq.errors import InputError
from onnxq.ir.saving import replacing
from onnxq.passes.tuned import Tuned
from onnxq.plain import entry, read, read_toml
from onnxq.saved import Saved, read_text, write_text
from onnxq.time_budget import Untried
from onnxq.tune.tuned import read_tuned, sha256, to_bytes

BY_HAND = "pinned by hand"

_COMPARED = (
    *("model_sha256", "target", "passes", "opset", "keep_overridable", "calibrator"),
    *("promise", "tuned_sha256"),
)
_ORDER = ("planned", "loss", "cost", "float_cost", "reason", "pinned", "method", "gain_db")


@dataclass(frozen=True)
class PlanNode:
    """One node of the plan.

    Attributes:
        name: The node's name, after the float passes.
        op_type: Its operator.
        precision: What it is to compute in.
        reason: Why, in words.
        loss: Predicted loss in this precision.
        cost: Cost in this precision, without borders.
        float_cost: Cost in float.
        pinned: Whether the precision was set by hand.
        planned: What the plan chose; another ``precision`` than that was written by hand. Empty
            for the same.
        method: Tuner that computed tensors for the node; empty for none.
        gain_db: By how much it lowers the error of what the node gives, on samples that it was not
            fitted to.
    """

    name: str
    op_type: str
    precision: str
    reason: str = entry(sparse=True, default="")
    loss: float = entry(sparse=True, default=0.0)
    cost: float = entry(sparse=True, default=0.0)
    float_cost: float = entry(sparse=True, default=0.0)
    pinned: bool = entry(sparse=True, default=False)
    planned: str = ""
    method: str = entry(sparse=True, default="")
    gain_db: float = entry(sparse=True, default=0.0)

    @property
    def is_by_hand(self) -> bool:
        """Whether a person chose the precision."""
        return self.pinned or self.planned not in ("", self.precision)


@dataclass(frozen=True)
class PlanTransformation:
    """One equivalent transformation of the float graph.

    Attributes:
        kind: Name of the pass that makes it.
        tensor: The tensor, as the transformations of other kinds before it left it.
        method: What computed its numbers, which lie among the plan's tensors.
        nodes: Nodes whose constants change.
        gain_db: By how much it lowers the error that it was chosen by.
    """

    kind: str
    tensor: str
    method: str = entry(sparse=True, default="")
    nodes: tuple[str, ...] = entry(sparse=True, default=())
    gain_db: float = entry(sparse=True, default=0.0)


@dataclass(frozen=True)
class _Beside:
    """The file with what tuners computed."""

    file: str
    sha256: str


@dataclass(frozen=True)
class Pin:
    """A precision set by hand for all nodes whose name matches a pattern, as in shells."""

    nodes: str
    precision: str

    @classmethod
    def parse(cls, text: str) -> Pin:
        """Read ``PATTERN=PRECISION``.

        Raises:
            InputError: it is not of that form.
        """
        before, brace, options = text.partition("{")
        nodes, separator, precision = before.rpartition("=")
        if not separator or not nodes.strip() or not precision.strip():
            raise InputError(
                f"cannot read the pin '{text}'; write PATTERN=PRECISION, as 'head*=float32'"
            )
        return cls(nodes.strip(), (precision + brace + options).strip())


def _distinct(nodes: tuple[PlanNode, ...]) -> tuple[PlanNode, ...]:
    if len({node.name for node in nodes}) < len(nodes):
        raise ValueError("has two nodes of one name")
    return nodes


def _once(given: tuple[PlanTransformation, ...]) -> tuple[PlanTransformation, ...]:
    if len({(t.kind, t.tensor) for t in given}) < len(given):
        raise ValueError("transforms one tensor twice")
    return given


def _rising(ends: tuple[float, float]) -> tuple[float, float]:
    if not -math.inf < ends[0] <= ends[1] < math.inf:
        raise ValueError(f"is {ends[0]} to {ends[1]}, no finite range")
    return ends


@dataclass(frozen=True)
class Plan(Saved):
    """What `apply` does to a model.

    Attributes:
        model_sha256: Hash of the model file that the plan is for.
        target: Name of the target; a file is looked for beside the plan's, too.
        target_sha256: Hash of the target's table; empty for any.
        passes: Float passes in text form, forms of regions included; empty, and without nodes,
            for a plan that leaves the model as it is.
        opset: Opset that the model is raised to.
        keep_overridable: Whether weights that are all listed as inputs stay inputs.
        calibrator: How the ranges were found.
        seed: Chose the calibration samples.
        promise: Gates that the plan was made for.
        cost_kind: What costs are: ``latency`` in milliseconds, ``size``, ``flops``; empty where
            nothing was predicted, as for the plan of a recipe.
        cost: Predicted cost of the whole, borders included.
        float_cost: Predicted cost of the float model.
        proxy: What losses are.
        loss: Predicted loss.
        exact: Whether the assignment is proven best for the costs and losses.
        measured: What verification measured: speedup, sqnr, drop, ...
        measured_on: Where costs were measured.
        pins: Precisions set by hand; of two for one node the later one counts.
        transformations: What the float graph is turned into first, in this order.
        nodes: Every node that has a choice.
        ranges: Smallest and largest value of each tensor that is quantized statically.
        tuned: What tuners computed, by node, and what transformations take, by tensor and kind;
            kept in a file beside the plan's.
        time_budget: Minutes after which no optional work began; 0 for no such limit.
        untried: What was left out for want of time.
    """

    schema = "onnxq/plan/1"
    what = "plan"
    remedy = "correct it, or make another with `onnxq plan`"

    model_sha256: str
    target: str
    target_sha256: str = entry(sparse=True, default="")
    passes: str = "default"
    opset: int = 0
    keep_overridable: bool = False
    calibrator: str = "minmax"
    seed: int = 0
    promise: tuple[str, ...] = entry(sparse=True, default=())
    cost_kind: str = entry("predicted.kind", sparse=True, default="")
    cost: float = entry("predicted.cost", sparse=True, default=0.0)
    float_cost: float = entry("predicted.float_cost", sparse=True, default=0.0)
    proxy: str = entry("predicted.proxy", sparse=True, default="")
    loss: float = entry("predicted.loss", sparse=True, default=0.0)
    exact: bool = entry("predicted.exact", sparse=True, default=False)
    measured: Mapping[str, float] = entry(sparse=True, default_factory=dict)
    measured_on: Mapping[str, str] = entry(sparse=True, default_factory=dict)
    pins: tuple[Pin, ...] = entry("pin", sparse=True, default=())
    transformations: Annotated[tuple[PlanTransformation, ...], _once] = entry(
        "transformation", sparse=True, default=()
    )
    nodes: Annotated[tuple[PlanNode, ...], _distinct] = entry("node", sparse=True, default=())
    ranges: Mapping[str, Annotated[tuple[float, float], _rising]] = entry(
        sparse=True, default_factory=dict
    )
    tuned: Tuned = entry(sparse=True, default_factory=dict, compare=False)
    time_budget: float = entry(sparse=True, default=0.0)
    untried: tuple[Untried, ...] = entry(sparse=True, default=())

    @property
    def tuned_sha256(self) -> str:
        """Hash of what tuners computed; empty if they computed nothing."""
        return sha256(self.tuned)

    @property
    def weights(self) -> Tuned:
        """What tuners computed, by node, without what is for transformations."""
        taken = {(t.tensor, t.kind) for t in self.transformations}
        found = {
            name: {what: array for what, array in own.items() if (name, what) not in taken}
            for name, own in self.tuned.items()
        }
        return {name: own for name, own in found.items() if own}

    @property
    def changes_nothing(self) -> bool:
        """Whether the float model itself, as it was, is what the plan makes."""
        return not self.nodes and not self.passes

    def precisions(self) -> dict[str, str]:
        """Precision of every node, pins respected.

        Raises:
            InputError: a pin matches no node.
        """
        found = {node.name: node.precision for node in self.nodes}
        for pin in self.pins:
            matching = fnmatch.filter(found, pin.nodes)
            if not matching:
                raise InputError(
                    f"the pin '{pin.nodes}' matches no node of the plan; its nodes are those "
                    "listed under [[node]]"
                )
            found.update(dict.fromkeys(matching, pin.precision))
        return found

    def by_hand(self) -> list[str]:
        """Names of the nodes whose precision a person chose."""
        return [name for name, reason in self.reasons().items() if reason == BY_HAND]

    def reasons(self) -> dict[str, str]:
        """Why every node has its precision, by name."""
        found = {
            node.name: BY_HAND if node.is_by_hand else node.reason
            for node in self.nodes
            if node.reason or node.is_by_hand
        }
        for pin in self.pins:
            found.update(
                dict.fromkeys(fnmatch.filter([n.name for n in self.nodes], pin.nodes), BY_HAND)
            )
        return found

    def to_toml(self, tensors: str = "plan.safetensors") -> str:
        """The file's text; the same plan gives the same text.

        Args:
            tensors: Name of the file beside it that holds what tuners computed.
        """
        nodes = tuple(replace(n, planned=n.planned or n.precision) for n in self.nodes)
        ranges = dict(sorted(self.ranges.items()))
        body = replace(self, nodes=nodes, ranges=ranges, tuned={}).to_dict()
        for node in body.get("node", ()):
            node |= {key: node.pop(key) for key in _ORDER if key in node}
        if self.tuned:
            body["tuned"] = {"file": tensors, "sha256": self.tuned_sha256}
        return tomli_w.dumps({k: v if k == "ranges" else _rounded(v) for k, v in body.items()})

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the file, complete or not at all, and beside it what tuners computed.

        Raises:
            InputError: it cannot be written.
        """
        beside = Path(path).with_suffix(".safetensors")
        if beside == Path(path):
            raise InputError(f"the plan '{path}' has the ending of its tensors; name a .toml file")
        if self.tuned:
            with replacing(beside) as file:
                file.write(to_bytes(self.tuned))
        write_text(path, self.to_toml(beside.name))

    @classmethod
    def from_toml(cls, text: str, where: str = "the plan", folder: Path = Path()) -> Plan:
        """Read the file's text.

        Args:
            text: The text.
            where: What messages call the file.
            folder: Where the file with what tuners computed lies.

        Raises:
            InputError: it is no TOML, an entry is unknown, missing or wrong, or the tensors are
                missing or were altered.
        """
        body = read_toml(text, where)
        plan_target = folder / str(body.get("target", ""))
        if plan_target.suffix == ".toml" and plan_target.is_file():
            body["target"] = str(plan_target)
        beside = read(_Beside | None, body.pop("tuned", None), where, "tuned")
        plan = cls.from_dict(body, where)
        if beside is None:
            return plan
        return replace(plan, tuned=read_tuned(folder / beside.file, beside.sha256))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Plan:
        """Read a file.

        Raises:
            InputError: it is missing or no plan.
        """
        text = read_text(path, "the plan")
        return cls.from_toml(text, f"the plan '{path}'", Path(path).parent)


@dataclass(frozen=True)
class Difference:
    """One thing in which two plans differ: where, and what each says."""

    what: str
    first: str
    second: str


def difference(first: Plan, second: Plan) -> list[Difference]:
    """In what two plans differ: entries about the whole, then node by node, then ranges."""
    found = []
    for says in (_whole, _transformations, Plan.precisions, _ranges):
        ours, theirs = says(first), says(second)
        found += [
            Difference(what, _shown(ours.get(what)), _shown(theirs.get(what)))
            for what in {**ours, **theirs}
            if ours.get(what) != theirs.get(what)
        ]
    return found


def _whole(plan: Plan) -> Mapping[str, Any]:
    return {name: getattr(plan, name) for name in _COMPARED}


def _transformations(plan: Plan) -> Mapping[str, Any]:
    return {f"{t.kind} of {t.tensor}": f"by {t.method}" for t in plan.transformations}


def _ranges(plan: Plan) -> Mapping[str, Any]:
    return {f"range of {name}": ends for name, ends in plan.ranges.items()}


def _shown(said: object) -> str:
    match said:
        case None:
            return "absent"
        case (float(low), float(high)):
            return f"{low:.6g} to {high:.6g}"
        case tuple():
            return ", ".join(said)
    return str(said)


def _rounded(value: Any) -> Any:
    """Six digits: more would only be noise in a diff."""
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_rounded(item) for item in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value
