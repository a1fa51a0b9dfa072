"""The plan: a small, readable file that says what precision every node gets, and why."""

from __future__ import annotations

import fnmatch
import math
import os
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import tomli_w

from onnxq.errors import InputError
from onnxq.ir.save import replacing
from onnxq.ir.textfile import read_text, write_text
from onnxq.tune.tuned import Tuned, read_tuned, sha256, to_bytes

SCHEMA = "onnxq/plan/1"

BY_HAND = "pinned by hand"


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
    """

    name: str
    op_type: str
    precision: str
    reason: str = ""
    loss: float = 0.0
    cost: float = 0.0
    float_cost: float = 0.0
    pinned: bool = False
    planned: str = ""
    method: str = ""

    @property
    def is_by_hand(self) -> bool:
        """Whether a person chose the precision."""
        return self.pinned or self.planned not in ("", self.precision)


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


@dataclass(frozen=True)
class Plan:
    """What `apply` does to a model.

    Attributes:
        model_sha256: Hash of the model file that the plan is for.
        target: Name of the target.
        passes: Float passes in text form, forms of regions included; empty, and without nodes,
            for a plan that leaves the model as it is.
        opset: Opset that the model is raised to.
        constant_initializers: Whether weights that are inputs, too, are made constants.
        calibrator: How the ranges were found.
        seed: Chose the calibration samples.
        promise: Gates that the plan was made for.
        proxy: What losses are.
        cost_kind: What costs are: ``latency`` in milliseconds, ``size``, ``flops``.
        cost: Predicted cost of the whole, borders included.
        float_cost: Predicted cost of the float model.
        loss: Predicted loss.
        exact: Whether the assignment is proven best for the costs and losses.
        measured: What verification measured: speedup, sqnr, drop, ...
        measured_on: Where costs were measured.
        nodes: Every node that has a choice.
        pins: Precisions set by hand; of two for one node the later one counts.
        ranges: Smallest and largest value of each tensor that is quantized statically.
        tuned: What tuners computed, by node; kept in a file beside the plan's.
    """

    model_sha256: str
    target: str
    passes: str = "default"
    opset: int = 0
    constant_initializers: bool = False
    calibrator: str = "minmax"
    seed: int = 0
    promise: tuple[str, ...] = ()
    proxy: str = "noise"
    cost_kind: str = "latency"
    cost: float = 0.0
    float_cost: float = 0.0
    loss: float = 0.0
    exact: bool = True
    measured: Mapping[str, float] = field(default_factory=dict)
    measured_on: Mapping[str, str] = field(default_factory=dict)
    nodes: tuple[PlanNode, ...] = ()
    pins: tuple[Pin, ...] = ()
    ranges: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    tuned: Tuned = field(default_factory=dict, compare=False)

    @property
    def tuned_sha256(self) -> str:
        """Hash of what tuners computed; empty if they computed nothing."""
        return sha256(self.tuned)

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
        body: dict[str, Any] = {
            "schema": SCHEMA,
            "model_sha256": self.model_sha256,
            "target": self.target,
            "passes": self.passes,
            "opset": self.opset,
            "constant_initializers": self.constant_initializers,
            "calibrator": self.calibrator,
            "seed": self.seed,
            "promise": list(self.promise),
            "predicted": {
                "kind": self.cost_kind,
                "cost": _rounded(self.cost),
                "float_cost": _rounded(self.float_cost),
                "proxy": self.proxy,
                "loss": _rounded(self.loss),
                "exact": self.exact,
            },
            "measured": {k: _rounded(v) for k, v in self.measured.items()},
            "measured_on": dict(self.measured_on),
            "pin": [{"nodes": p.nodes, "precision": p.precision} for p in self.pins],
            "node": [_entry(node) for node in self.nodes],
            "ranges": {name: list(ends) for name, ends in sorted(self.ranges.items())},
            "tuned": {"file": tensors, "sha256": self.tuned_sha256} if self.tuned else {},
        }
        kept = {k: v for k, v in body.items() if v not in ([], {})}
        return tomli_w.dumps(kept)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the file, complete or not at all, and beside it what tuners computed.

        Raises:
            InputError: it cannot be written.
        """
        beside = Path(path).with_suffix(".safetensors")
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
            InputError: it is no plan, an entry is unknown or of the wrong type, or the tensors are
                missing or were altered.
        """
        try:
            body = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            raise InputError(f"{where} is not valid TOML: {error}") from error
        if body.get("schema") != SCHEMA:
            raise InputError(f"{where} is no plan of schema '{SCHEMA}'; make it with `onnxq plan`")
        try:
            return _read(body, folder)
        except KeyError as error:
            raise InputError(f"{where} lacks the entry {error}") from error
        except (ValueError, TypeError, AttributeError) as error:
            raise InputError(f"{where} has a wrong entry: {error}") from error

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Plan:
        """Read a file.

        Raises:
            InputError: it is missing or no plan.
        """
        return cls.from_toml(read_text(path, "the plan"), f"'{path}'", Path(path).parent)

    def with_measured(self, measured: Mapping[str, float]) -> Plan:
        """The plan with what verification measured."""
        return replace(self, measured=dict(measured))


@dataclass(frozen=True)
class Difference:
    """One thing in which two plans differ: where, and what each says."""

    what: str
    first: str
    second: str


def difference(first: Plan, second: Plan) -> list[Difference]:
    """In what two plans differ: entries about the whole, then node by node."""
    found = []
    for name in (
        "model_sha256",
        "target",
        "passes",
        "opset",
        "constant_initializers",
        "calibrator",
        "promise",
        "tuned_sha256",
    ):
        ours, theirs = getattr(first, name), getattr(second, name)
        if ours != theirs:
            found.append(Difference(name, _shown(ours), _shown(theirs)))
    ours, theirs = first.precisions(), second.precisions()
    for name in dict.fromkeys([*ours, *theirs]):
        if ours.get(name) != theirs.get(name):
            found.append(Difference(name, ours.get(name, "absent"), theirs.get(name, "absent")))
    for name in dict.fromkeys([*first.ranges, *second.ranges]):
        if first.ranges.get(name) != second.ranges.get(name):
            found.append(Difference(f"range of {name}", _ends(first, name), _ends(second, name)))
    return found


def _shown(entry: object) -> str:
    return ", ".join(entry) if isinstance(entry, tuple) else str(entry)


def _ends(plan: Plan, name: str) -> str:
    ends = plan.ranges.get(name)
    return "absent" if ends is None else f"{ends[0]:.6g} to {ends[1]:.6g}"


def _entry(node: PlanNode) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "name": node.name,
        "op_type": node.op_type,
        "precision": node.precision,
        "planned": node.planned or node.precision,
        "loss": _rounded(node.loss),
        "cost": _rounded(node.cost),
        "float_cost": _rounded(node.float_cost),
        "reason": node.reason,
    }
    if node.pinned:
        entry["pinned"] = True
    if node.method:
        entry["method"] = node.method
    return entry


def _rounded(number: float) -> float:
    """Six digits: more would only be noise in a diff."""
    return float(f"{number:.6g}")


_KNOWN = (
    "schema",
    "model_sha256",
    "target",
    "passes",
    "opset",
    "constant_initializers",
    "calibrator",
    "seed",
    "promise",
    "predicted",
    "measured",
    "measured_on",
    "pin",
    "node",
    "ranges",
    "tuned",
)

_PREDICTED = ("kind", "cost", "float_cost", "proxy", "loss", "exact")


def _read(body: Mapping[str, Any], folder: Path) -> Plan:
    for key in body:
        if key not in _KNOWN:
            raise ValueError(f"'{key}' is unknown; known: {', '.join(_KNOWN)}")
    predicted = body.get("predicted", {})
    for key in predicted:
        if key not in _PREDICTED:
            raise ValueError(f"'{key}' of [predicted] is unknown; known: {', '.join(_PREDICTED)}")
    tuned = body.get("tuned")
    nodes = tuple(PlanNode(**_fields(n, PlanNode)) for n in body.get("node", ()))
    if len({node.name for node in nodes}) < len(nodes):
        raise ValueError("two entries [[node]] have one name")
    return Plan(
        model_sha256=_text(body["model_sha256"]),
        target=_text(body["target"]),
        passes=_text(body.get("passes", "default")),
        opset=int(body.get("opset", 0)),
        constant_initializers=bool(body.get("constant_initializers", False)),
        calibrator=_text(body.get("calibrator", "minmax")),
        seed=int(body.get("seed", 0)),
        promise=tuple(_text(g) for g in body.get("promise", ())),
        proxy=_text(predicted.get("proxy", "noise")),
        cost_kind=_text(predicted.get("kind", "latency")),
        cost=float(predicted.get("cost", 0.0)),
        float_cost=float(predicted.get("float_cost", 0.0)),
        loss=float(predicted.get("loss", 0.0)),
        exact=bool(predicted.get("exact", True)),
        measured={str(k): float(v) for k, v in body.get("measured", {}).items()},
        measured_on={str(k): _text(v) for k, v in body.get("measured_on", {}).items()},
        nodes=nodes,
        pins=tuple(Pin(**_fields(p, Pin)) for p in body.get("pin", ())),
        ranges={str(k): _range(str(k), v) for k, v in body.get("ranges", {}).items()},
        tuned=read_tuned(folder / str(tuned["file"]), str(tuned["sha256"])) if tuned else {},
    )


def _fields(entry: Mapping[str, Any], kind: type[Any]) -> dict[str, Any]:
    known = kind.__dataclass_fields__
    for key in entry:
        if key not in known:
            raise ValueError(f"'{key}' of {dict(entry)} is unknown; known: {', '.join(known)}")
    kinds: dict[str, type[Any]] = {"str": str, "float": float, "bool": bool}
    found = {}
    for key, value in entry.items():
        wanted = kinds[str(known[key].type)]
        if wanted is float and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        if not isinstance(value, wanted):
            raise ValueError(f"'{key}' of {dict(entry)} is no {wanted.__name__}")
        found[key] = value
    return found


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{value!r} is no text")
    return value


def _range(name: str, ends: Sequence[Any]) -> tuple[float, float]:
    low, high = (float(end) for end in ends)
    if not (math.isfinite(low) and math.isfinite(high) and low <= high):
        raise ValueError(f"the range of '{name}' is {low} to {high}")
    return low, high
