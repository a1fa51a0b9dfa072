"""Folding constant factors and addends of what convolutions and products read into these."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from onnxq.ir import Context, Graph, Node, Pass, Use, Value, attribute_value, remove_unused
from onnxq.passes.fusion.weighted import (
    WITH_FACTORS,
    along_inputs,
    are_finite,
    changed_weight,
    moved_bias,
    rounded,
    scaled_weight,
)
from onnxq.passes.nodes import made_by, visit

_FIRST_OPSET = 7
"""Before it Mul and Add broadcast by attributes."""

_READERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")


@dataclass(frozen=True)
class FuseConvInput(Pass):
    """Fold multiplication and addition of constants into all that reads the result.

    Computed in float64, rounded once to the dtype of the weight.

    Rewritten, where all that reads the result is Conv, ConvTranspose, Gemm or MatMul with constant
    weights:

    - Mul and Div by one number; before Conv and ConvTranspose also by one for each channel.
    - Add and Sub of one number before Gemm without transA, of one number or one for each channel
      before Conv without padding, if its bias is constant or missing.
    - Mul or Div before an Add or Sub that stays: the addend is divided by the factor.

    Not rewritten:

    - Addends before padding, which is of zeros and lies behind the addition, and before
      ConvTranspose, whose outputs read unequal numbers of inputs. A Pad of its own, with what the
      addition makes zero, would be exact, but costs more than the Add: between a HardSwish and a
      Conv of 3x3, depthwise or not, with 48 to 192 channels, the form with Pad runs at 0.89 to
      0.95 times the speed in float and at 0.77 to 0.90 in static integers (onnxruntime 1.32).
    - Numbers by channel before products: runtimes fuse normalizations that end with such.
    - A factor on a product of two computed tensors, as the half of a Gelu is. In opsets without
      this operator runtimes look for the factor there; a transformer in integers lost 7 % of its
      speed to this. The product of a tensor and its Sigmoid or HardSigmoid is none of these.
    - A weight, or bias, that would become infinite, or in which numbers would become subnormal or
      zero: there the factor may keep a computation in range.
    - A weight of more than 64 KiB that something else reads too, which would be stored twice, and
      one of more than 16 MiB in a file beside the model, which would have to be held in memory.
    - Opsets below 7, where Mul and Add broadcast in another way.

    A Mul and an Add between two float Convs of 1x1 gone, these run at 1.04 to 1.44 times the speed;
    a Mul before a float MatMul costs nothing (1.00 to 1.02), before an integer one 1.01 to 1.06.
    """

    name = "fuse-conv-input"
    numerics = "reassociates"
    default = True
    after = WITH_FACTORS
    needs_types = True

    def run(self, graph: Graph, ctx: Context) -> int:
        """See `Pass.run`; counts the operators folded."""
        if graph.opset < _FIRST_OPSET:
            return 0
        return visit(graph, ctx, {"Mul", "Div", "Add", "Sub"}, _fold, last_first=True)


def _fold(node: Node) -> str | None:
    source, numbers = _operands(node)
    if source is None or numbers is None or node.output.is_output or not node.output.uses:
        return None
    if node.is_op("Mul", "Div"):
        return _fold_factor(node, source, numbers)
    if done := _fold_addend(node, source, numbers):
        return done
    while source is not None and numbers is not None and _pass_factor(node, source, numbers):
        done = "the factor before it is folded into the weights of what reads it"
        source, numbers = _operands(node)
    return done


def _operands(node: Node) -> tuple[Value | None, np.ndarray | None]:
    """What is computed, and the constant that multiplies it or is added to it."""
    first, second = node.input(0), node.input(1)
    if first is None or second is None or first.is_constant == second.is_constant:
        return None, None
    source, constant = (second, first) if first.is_constant else (first, second)
    if (source is second and node.is_op("Div", "Sub")) or source.rank is None:
        return None, None
    if constant.rank is None or constant.rank > source.rank:
        return None, None
    if constant.dtype is None or not constant.dtype.is_float:
        return None, None
    numbers = constant.numpy().astype(np.float64)
    numbers = numbers.reshape((1,) * (source.rank - numbers.ndim) + numbers.shape)
    sizes = zip(numbers.shape, source.shape or (), strict=True)
    if any(size not in (1, of) for size, of in sizes):
        return None, None
    with np.errstate(all="ignore"):
        numbers = 1 / numbers if node.is_op("Div") else numbers
    return source, -numbers if node.is_op("Sub") else numbers


def _fold_factor(node: Node, source: Value, factor: np.ndarray) -> str | None:
    weights = None if _is_gated(source) else _multiplied(node.output, factor)
    if weights is None:
        return None
    _set_weights(weights)
    node.graph.replace_uses(node.output, source)
    remove_unused(node.graph, [node])
    return "folded into the weights of what reads it"


def _fold_addend(node: Node, source: Value, addend: np.ndarray) -> str | None:
    biases: dict[Node, np.ndarray] = {}
    for use in node.output.uses:
        bias = _moved_bias(use, addend)
        if bias is None:
            return None
        biases[use.node] = bias
    for reader, bias in biases.items():
        if reader.is_op("Gemm"):
            reader.graph.set_attribute(reader, "beta", None)
        reader.graph.set_constant(reader, 2, bias, f"{reader.output.name}_bias")
    node.graph.replace_uses(node.output, source)
    remove_unused(node.graph, [node])
    return "folded into the biases of what reads it"


def _pass_factor(node: Node, source: Value, addend: np.ndarray) -> bool:
    """Let a factor go past an addend that stays into the weights of what reads the sum."""
    scale = made_by(source, "Mul", "Div")
    if scale is None or scale.graph is not node.graph:
        return False
    if len(source.uses) != 1 or source.is_output:
        return False
    inner, factor = _operands(scale)
    if inner is None or factor is None or not factor.all() or _is_gated(inner):
        return False
    constant = next(v for v in node.inputs if v is not None and v.is_constant)
    assert constant.dtype is not None
    quotient = (addend / factor).astype(constant.dtype.numpy)
    weights = _multiplied(node.output, factor)
    if weights is None or not are_finite([quotient]):
        return False
    _set_weights(weights)
    graph, at = node.graph, node.inputs.index(constant)
    # It is another value from now on, and has another name.
    graph.rename(node.output, graph.fresh_name(f"{node.output.name}_unscaled"))
    # One number keeps its shape; a Sub takes away what is added otherwise.
    shape = constant.shape if quotient.size == 1 else quotient.shape
    quotient = -quotient if node.is_op("Sub") else quotient
    graph.set_constant(node, at, quotient.reshape([d for d in shape or () if isinstance(d, int)]))
    node.set_input(1 - at, inner)
    remove_unused(graph, [scale])
    return True


def _multiplied(value: Value, factor: np.ndarray) -> dict[Use, np.ndarray] | None:
    """The weights of all that reads a value, by the slots at which they are read."""
    found: dict[Use, np.ndarray] = {}
    for use in value.uses:
        node = use.node
        if not node.is_op(*_READERS) or use.slot > 1 or (use.slot and not node.is_op("MatMul")):
            return None
        weight = node.input(1 - use.slot)
        own = None if weight is None else _scaled(node, weight, factor)
        if own is None:
            return None
        found[Use(node, 1 - use.slot)] = own
    return found or None


def _scaled(node: Node, weight: Value, factor: np.ndarray) -> np.ndarray | None:
    if weight.dtype is None or not weight.dtype.is_float or weight.dtype.bits < 16:
        return None
    if factor.size == 1:
        return changed_weight(node, weight, lambda w: scaled_weight(node, w, factor))
    by_channel = _by_channel(node, factor)
    if by_channel is None:
        return None

    def change(w: np.ndarray) -> np.ndarray:
        wide = w.astype(np.float64) * along_inputs(node, by_channel, w.shape)
        return rounded(wide, w.dtype)

    return changed_weight(node, weight, change)


def _by_channel(node: Node, numbers: np.ndarray) -> np.ndarray | None:
    """One number for each channel that a convolution reads; None if they are not that."""
    weight = node.input(1)
    if not node.is_op("Conv", "ConvTranspose") or weight is None or weight.shape is None:
        return None
    ins = weight.shape[0]
    if node.is_op("Conv"):
        ins = int(node.get("group", 1)) * weight.shape[1] if isinstance(weight.shape[1], int) else 0
    fits = numbers.ndim == len(weight.shape) and numbers.shape[1] == numbers.size == ins
    return numbers.reshape(-1) if fits else None


def _moved_bias(use: Use, addend: np.ndarray) -> np.ndarray | None:
    """The bias of a reader with what it makes of an addend; None if it cannot take that."""
    node = use.node
    weight, bias = node.input(1), node.input(2)
    if not node.is_op("Conv", "Gemm") or use.slot or weight is None or not weight.is_constant:
        return None
    if weight.dtype is None or not weight.dtype.is_float or (bias and not bias.is_constant):
        return None
    if node.is_op("Gemm"):
        if addend.size != 1 or attribute_value(node, "transA"):
            return None
        rows = 1 if attribute_value(node, "transB") else 0
        sums = weight.numpy().sum(axis=rows, dtype=np.float64)
        sums = sums * addend.reshape(()) * float(attribute_value(node, "alpha"))
    else:
        padded = any(node.get("pads", ())) or node.get("auto_pad", "NOTSET").startswith("SAME")
        if padded or (addend.size > 1 and _by_channel(node, addend) is None):
            return None
        w, groups = weight.numpy(), int(node.get("group", 1))
        each = np.broadcast_to(addend.reshape(-1), groups * w.shape[1]).reshape(groups, -1)
        by_group = w.reshape(groups, -1, w.shape[1], math.prod(w.shape[2:]))
        # A copy of the weight in this dtype would take twice its memory.
        sums = np.einsum("goik,gi->go", by_group, each, dtype=np.float64).reshape(-1)
    given = None if bias is None else bias.numpy()
    if given is not None and given.size != max(given.shape, default=1):
        return None
    moved = moved_bias(node, given, np.ones(1), sums, weight.dtype.numpy)
    return np.ascontiguousarray(moved) if are_finite([moved]) else None


def _set_weights(weights: dict[Use, np.ndarray]) -> None:
    for use, numbers in weights.items():
        use.node.graph.set_constant(use.node, use.slot, numbers)


def _is_gated(value: Value) -> bool:
    """Whether a value is a product of two computed ones, none of which a sigmoid gives."""
    node = made_by(value, "Mul")
    return node is not None and not any(
        v is None or v.is_constant or made_by(v, "Sigmoid", "HardSigmoid") for v in node.inputs
    )
