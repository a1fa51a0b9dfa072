"""Why a rule of a target does not apply to a node, whatever surrounds that."""

from __future__ import annotations

import numpy as np

from onnxq.ir import DataType, Node, attribute_value
from onnxq.passes.notes import NOT_FINITE, OVERRIDABLE, Reason
from onnxq.passes.static.lines import line_of
from onnxq.passes.static.operands import (
    activation_slots,
    channel_bias,
    operand,
    reads_weight,
    weight_of,
)
from onnxq.targets import OperatorRule, Target

_FACTORS = ("alpha", "beta")


def no_rule(node: Node, target: Target) -> Reason:
    """That a target has no rule for an operator, and why if its table says so."""
    text = f"target {target.label} does not quantize {node.op_type}"
    known = target.reasons.get(node.op_type) if not node.domain else None
    return Reason("operator", f"{text}: {known}" if known else text)


def no_line(node: Node, rule: OperatorRule, target: Target) -> Reason | None:
    """Why a node that can be nothing but a line stays in float if it is none; None otherwise."""
    if rule.form != "line" or rule.role != "share" or line_of(node) is not None:
        return None
    text = f"target {target.label} quantizes {node.op_type} of a tensor and one number only"
    return Reason("operator", text)


def refusal(node: Node, rule: OperatorRule, target: Target) -> Reason | None:
    """Why a computing node cannot be quantized; None if it can."""
    for slot in activation_slots(node, rule):
        value = node.input(slot)
        if value is None or value.dtype is not DataType.FLOAT:
            return Reason("type", f"its input {slot} is not float32")
        if value.is_constant:
            return Reason("neighbours", f"its input {slot} is constant")
        maker = value.producer
        before = target.operators.get(maker.op_type) if maker and not maker.domain else None
        if maker and before and (broken := _breaking_attribute(maker, before)):
            text = f"a pair on its input would fuse {maker.op_type}, which {broken} breaks"
            return Reason("neighbours", text)
    if not reads_weight(node, rule):
        if rule.two_activations:
            return None
        weight = operand(node, rule.weight)
        if weight is not None and weight.data is not None:
            return OVERRIDABLE
        return Reason("computed", "its weight is not constant")
    numbers = weight_of(node, rule).numpy()
    if numbers.dtype != np.float32 or numbers.ndim < 2:
        return Reason("type", "its weight is no float32 matrix")
    if not np.isfinite(numbers).all():
        return NOT_FINITE
    bias = operand(node, rule.bias)
    if bias is not None and target.bias == "int32":
        if bias.dtype is not DataType.FLOAT or channel_bias(node, rule) is None:
            text = "its bias is not a float32 constant with one number per output channel"
            return Reason("type", text)
        if not np.isfinite(bias.numpy()).all():
            return Reason("finite", "its bias has infinite or NaN values")
        if node.op_type == "Gemm" and any(attribute_value(node, a) != 1.0 for a in _FACTORS):
            text = "it scales its product or its bias, which it adds up as integers"
            return Reason("attribute", text)
    return unfit(node, rule)


def unfit(node: Node, rule: OperatorRule) -> Reason | None:
    """Why a rule does not apply to a node's attributes or opset; None if it does."""
    if rule.form == "clipped-line" and node.is_op("HardSigmoid"):
        alpha, beta = attribute_value(node, "alpha"), attribute_value(node, "beta")
        if not (1e-3 <= alpha <= 1e3 and abs(beta) <= 1e3):
            return Reason("attribute", "its slope or offset is beyond what integers can add")
    for name, wanted in rule.attributes.items():
        if attribute_value(node, name) != wanted:
            return Reason("attribute", f"its attribute {name} is not {wanted!r}")
    if broken := _breaking_attribute(node, rule):
        return Reason("attribute", f"its attribute {broken} breaks the integer kernel")
    if any(v is not None and v.dtype is not DataType.FLOAT for v in node.outputs):
        return Reason("type", "not all of its outputs are float32")
    if node.graph.opset < rule.minimum_opset:
        text = f"{node.op_type} takes integers only from opset {rule.minimum_opset} on"
        return Reason("opset", text)
    return None


def _breaking_attribute(node: Node, rule: OperatorRule) -> str:
    return next((name for name in rule.broken_by if node.get(name)), "")
