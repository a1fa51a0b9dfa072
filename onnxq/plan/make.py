"""Making a plan from what was predicted and measured, with a reason in words for every node."""

from __future__ import annotations

import math
from collections.abc import Mapping

from onnxq.plan.assignment import Assignment, Problem
from onnxq.plan.plan import BY_HAND, PlanNode
from onnxq.precision import FLOAT


def plan_nodes(
    problem: Problem,
    op_types: Mapping[str, str],
    chosen: Assignment,
    free: Assignment,
    pinned: Mapping[str, str],
    kind: str = "latency",
) -> tuple[PlanNode, ...]:
    """The nodes of a plan.

    Args:
        problem: The program that was solved.
        op_types: Operator by node name.
        chosen: The assignment within the budget.
        free: The cheapest assignment without a budget: tells what the budget is the reason for.
        pinned: Precisions set by hand.
        kind: What costs are.
    """
    nodes = []
    for item in problem.items:
        precision = chosen.precisions[item.name]
        choices = {c.precision: c for c in item.choices}
        choice = choices[precision]
        float_cost = choices[FLOAT].cost if FLOAT in choices else 0.0
        if item.name in pinned:
            reason = BY_HAND
        elif precision == FLOAT:
            wished = choices.get(free.precisions[item.name], choice)
            reason = _why_float(len(choices), wished.precision, wished.loss, kind)
        else:
            reason = _why(choice.cost, float_cost, choice.loss, kind)
        nodes.append(
            PlanNode(
                item.name,
                op_types.get(item.name, ""),
                precision,
                reason,
                choice.loss,
                choice.cost,
                float_cost,
                item.name in pinned,
            )
        )
    return tuple(nodes)


def decibels(loss: float) -> str:
    """A loss as the SQNR it would leave by itself."""
    return f"{-10 * math.log10(loss):.1f} dB" if loss > 0 else "no noise"


def _why_float(choices: int, wished: str, loss: float, kind: str) -> str:
    if choices == 1:
        return "no other precision is possible here"
    if wished != FLOAT:
        return f"{wished} alone would leave an SQNR of {decibels(loss)}: too much for the promise"
    if kind == "size":
        return "nothing to save: it holds no weights"
    return "integers would not be faster here, their borders counted"


def _why(cost: float, float_cost: float, loss: float, kind: str) -> str:
    noise = "adds no noise" if loss == 0 else f"alone leaves an SQNR of {decibels(loss)}"
    if cost <= 0 or float_cost <= 0:
        return f"spares its neighbours a border; {noise}"
    ratio = float_cost / cost
    if kind == "size":
        return f"takes 1/{ratio:.3g} of the bytes; {noise}"
    if kind == "flops":
        return f"counts as 1/{ratio:.3g} of the operations; {noise}"
    if ratio >= 1.0:
        return f"{ratio:.2f} times as fast as in float; {noise}"
    return f"{1 / ratio:.2f} times as slow as in float, but spares its neighbours a border; {noise}"
