"""If, Loop and Scan: operators that run the graphs they hold."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

from onnxq.ir import Node, attribute_value
from onnxq.tune.train.operators.registry import Run, UnsupportedError, control

_Call: TypeAlias = Callable[[str, Sequence[Tensor]], list[Tensor]]
"""Runs the graph in an attribute."""


@control("If")
def _if(node: Node) -> Run:
    def run(call: _Call, condition: Tensor) -> list[Tensor]:
        return call("then_branch" if condition.item() else "else_branch", ())

    return run


@control("Loop")
def _loop(node: Node) -> Run:
    def run(call: _Call, limit: Tensor | None, condition: Tensor | None, *states: Any) -> Any:
        count = None if limit is None else int(limit)
        goes_on = condition is None or bool(condition)
        held, made, at = list(states), [], 0
        while goes_on and (count is None or at < count):
            step = torch.tensor(at, dtype=torch.int64)
            again, *rest = call("body", [step, torch.tensor(True), *held])
            held, given = rest[: len(states)], rest[len(states) :]
            made.append(given)
            goes_on, at = bool(again), at + 1
        stacks = [torch.stack(parts) for parts in zip(*made, strict=True)]
        nothing = len(node.outputs) - len(states) - len(stacks)
        return [*held, *stacks, *[torch.empty(0)] * nothing]

    return run


@control("Scan")
def _scan(node: Node) -> Run:
    if node.graph.opset < 9:
        raise UnsupportedError("has the form of before opset 9")
    count = attribute_value(node, "num_scan_inputs")
    names = ("scan_input_axes", "scan_input_directions")
    axes, turned = (attribute_value(node, name) or [0] * count for name in names)
    body = node.get("body")
    given = len(body.outputs) - (len(body.inputs) - count)
    names = ("scan_output_axes", "scan_output_directions")
    out_axes, out_turned = (attribute_value(node, name) or [0] * given for name in names)

    def run(call: _Call, *inputs: Tensor) -> list[Tensor]:
        states = list(inputs[: len(inputs) - count])
        rows = []
        for x, axis, back in zip(inputs[len(states) :], axes, turned, strict=True):
            parts = x.unbind(axis)
            rows.append(parts[::-1] if back else parts)
        made: list[list[Tensor]] = []
        for parts in zip(*rows, strict=True):
            results = call("body", [*states, *parts])
            states = results[: len(states)]
            made.append(results[len(states) :])
        stacks = []
        for column, axis, back in zip(zip(*made, strict=True), out_axes, out_turned, strict=True):
            stacks.append(torch.stack(column[::-1] if back else column, axis))
        return [*states, *stacks]

    return run
