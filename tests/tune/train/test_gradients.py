"""Gradients against finite differences, in 64 bits."""

from __future__ import annotations

import math

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason='needs torch: pip install "onnxq[train]"')

from onnxq.ir import Graph, infer_types, load
from onnxq.tune.train.executor import Executor
from tests.helpers import random_feeds

OPERATORS = {
    "Add": ("Add(a, b)", [(2, 3), (3,)]),
    "Attention": (
        "Attention<is_causal=1, q_num_heads=2, kv_num_heads=1>(a, b, c)",
        [(1, 3, 4), (1, 3, 2), (1, 3, 2)],
    ),
    "AveragePool": (
        "AveragePool<kernel_shape=[2, 2], pads=[1, 0, 0, 1], strides=[2, 1]>(a)",
        [(1, 2, 4, 3)],
    ),
    "BatchNormalization": ("BatchNormalization(a, b, c, d, e)", [(2, 3, 2), *[(3,)] * 4]),
    "Concat": ("Concat<axis=1>(a, b)", [(2, 3), (2, 1)]),
    "Conv": (
        "Conv<pads=[1, 0, 2, 1], dilations=[1, 2], strides=[2, 1], group=2>(a, b, c)",
        [(1, 4, 4, 5), (4, 2, 2, 2), (4,)],
    ),
    "ConvTranspose": (
        "ConvTranspose<strides=[2], pads=[1, 0], output_padding=[1]>(a, b, c)",
        [(1, 2, 3), (2, 3, 3), (3,)],
    ),
    "DepthToSpace": ("DepthToSpace<blocksize=2>(a)", [(1, 4, 2, 1)]),
    "Div": ("Div(a, b)", [(2, 3), (2, 1)]),
    "Einsum": ('Einsum<equation="bij,bjk->bik">(a, b)', [(2, 2, 3), (2, 3, 2)]),
    "Erf": ("Erf(a)", [(4,)]),
    "GRU": (
        "GRU<hidden_size=2, linear_before_reset=1>(a, b, c, d)",
        [(2, 1, 3), (1, 6, 3), (1, 6, 2), (1, 12)],
    ),
    "Gelu": ("Gelu(a)", [(4,)]),
    "Gemm": ("Gemm<alpha=0.5, beta=2.0, transA=1>(a, b, c)", [(3, 2), (3, 4), (2, 1)]),
    "GroupNormalization": ("GroupNormalization<num_groups=2>(a, b, c)", [(1, 4, 3), (4,), (4,)]),
    "HardSwish": ("HardSwish(a)", [(5,)]),
    "InstanceNormalization": ("InstanceNormalization(a, b, c)", [(1, 2, 4), (2,), (2,)]),
    "LRN": ("LRN<size=3>(a)", [(1, 4, 2, 1)]),
    "LSTM": (
        'LSTM<hidden_size=2, direction="bidirectional">(a, b, c, d)',
        [(2, 1, 3), (2, 8, 3), (2, 8, 2), (2, 16)],
    ),
    "LayerNormalization": ("LayerNormalization<axis=1>(a, b, c)", [(2, 3), (3,), (3,)]),
    "MatMul": ("MatMul(a, b)", [(2, 1, 3), (3, 2)]),
    "MaxPool": ("MaxPool<kernel_shape=[2], pads=[1, 0], ceil_mode=1, strides=[2]>(a)", [(1, 2, 6)]),
    "PRelu": ("PRelu(a, b)", [(2, 3), (3,)]),
    "Pow": ("Pow(Exp(a), b)", [(2, 3), (3,)]),
    "RMSNormalization": ("RMSNormalization(a, b)", [(2, 3), (3,)]),
    "RNN": ("RNN<hidden_size=2>(a, b, c)", [(2, 1, 3), (1, 2, 3), (1, 2, 2)]),
    "ReduceL2": ("ReduceL2(a)", [(2, 3)]),
    "ReduceLogSumExp": ("ReduceLogSumExp(a)", [(2, 3)]),
    "ReduceMax": ("ReduceMax(a)", [(2, 3)]),
    "ReduceProd": ("ReduceProd(a)", [(2, 3)]),
    "Softmax": ("Softmax<axis=0>(a)", [(3, 2)]),
    "Softplus": ("Softplus(a)", [(4,)]),
    "Transpose": ("Transpose(a)", [(2, 3)]),
    "Where": ("Where(Less(a, b), Mul(a, b), b)", [(2, 3), (3,)]),
}
"""Expressions of ONNX over inputs a, b, ..., and the shapes of these."""

WITH_CONSTANTS = {
    "CumSum": "CumSum<exclusive=1, reverse=1>(a, one)",
    "Gather": "Gather<axis=1>(a, pair)",
    "GatherND": "GatherND(a, places)",
    "Pad": 'Pad<mode="reflect">(a, pads)',
    "Resize": 'Resize<mode="cubic">(a, , scales)',
    "ScatterND": 'ScatterND<reduction="mul">(a, places, few)',
    "Slice": "Slice(a, last, none, one, back)",
    "Tile": "Tile(a, pair)",
    "ScatterElements": "ScatterElements<axis=1>(a, places, some)",
}
CONSTANTS = """
    int64[1] one = {1}, int64[2] pair = {2, 2}, int64[4] pads = {0, 1, 1, 0},
    int64[2, 2] places = {0, 1, 1, 1}, float[2] scales = {2.0, 1.5}, double[2] few = {1.5, -2.0},
    double[2, 2] some = {0.5, 3.0, 2.0, 1.0},
    int64[1] last = {-1}, int64[1] none = {-9}, int64[1] back = {-2}
"""


def graph_of(expression: str, shapes: list[tuple[int, ...]], constants: str = "") -> Graph:
    inputs = ", ".join(
        f"double{list(shape)} {name}" for name, shape in zip("abcde", shapes, strict=False)
    )
    held = f"<{constants}>" if constants else ""
    # One expression within another becomes a node of its own.
    lines, count = [], 0
    while (inner := _innermost(expression)) != expression:
        count += 1
        lines.append(f"t{count} = {inner}")
        expression = expression.replace(inner, f"t{count}")
    body = "\n".join([*lines, f"y = {expression}"])
    text = f'<ir_version: 10, opset_import: ["": 23]>\ng ({inputs}) => (y) {held} {{\n{body}\n}}'
    graph = Graph.from_text(text)
    infer_types(graph)
    return graph


def _innermost(expression: str) -> str:
    start = max(at for at, char in enumerate(expression) if char == "(")
    end = expression.index(")", start)
    begin = start
    while begin and (expression[begin - 1].isalnum() or expression[begin - 1] in "<>="):
        begin -= 1
    return expression[begin : end + 1] if expression.count("(") > 1 else expression


def assert_gradients(graph: Graph) -> None:
    executor = Executor(graph)
    feeds = random_feeds(graph, seed=3)
    if "BatchNormalization" in {node.op_type for node in graph.nodes()}:
        feeds["e"] = np.abs(feeds["e"]) + 0.5
    tensors = [torch.tensor(array, requires_grad=True) for array in feeds.values()]

    def run(*given: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = executor(dict(zip(feeds, given, strict=True)))["y"]
        return found

    assert torch.autograd.gradcheck(run, tensors)


@pytest.mark.parametrize("name", OPERATORS)
def test_gradients_are_those_of_finite_differences(name: str) -> None:
    assert_gradients(graph_of(*OPERATORS[name]))


@pytest.mark.parametrize("name", WITH_CONSTANTS)
def test_gradients_pass_what_is_cut_and_joined(name: str) -> None:
    assert_gradients(graph_of(WITH_CONSTANTS[name], [(3, 4)], CONSTANTS))


@pytest.mark.parametrize(
    ("name", "step"), [("digits_resnet", 1e-7), ("digits_vit", 1e-4), ("text_lm", 1e-4)]
)
def test_gradients_of_all_weights_of_a_model(name: str, step: float) -> None:
    """The slope along a random direction in the space of all weights.

    Steps are small where Relu has corners, and large where a Cast rounds to 32 bits.
    """
    graph = load(f"models/{name}.onnx")
    infer_types(graph)
    executor = Executor(graph, trainable=lambda value: bool(value.rank)).double()
    feeds = {
        key: torch.tensor(array.astype(np.float64) if array.dtype.kind == "f" else array)
        for key, array in random_feeds(graph, dims={"batch": 2}).items()
    }
    generator = torch.Generator().manual_seed(0)
    parameters = list(executor.parameters())
    direction = [
        torch.randn(p.shape, generator=generator, dtype=p.dtype) * p.detach().abs().mean()
        for p in parameters
    ]
    assert len(parameters) > 20
    weights: list[torch.Tensor] = []

    def loss() -> torch.Tensor:
        outputs = executor(feeds)
        if not weights:
            weights.extend(
                torch.randn(o.shape, generator=generator, dtype=o.dtype) for o in outputs.values()
            )
        total = [(o * w).sum() for o, w in zip(outputs.values(), weights, strict=True)]
        return torch.stack(total).sum()

    loss().backward()
    slope = sum(
        float((p.grad * d).sum())
        for p, d in zip(parameters, direction, strict=True)
        if p.grad is not None
    )
    ends = []
    with torch.no_grad():
        for sign in (1, -2):
            for p, d in zip(parameters, direction, strict=True):
                p += sign * step * d
            ends.append(float(loss()))
    assert math.isclose(slope, (ends[0] - ends[1]) / (2 * step), rel_tol=1e-3)
