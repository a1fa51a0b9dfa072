"""Random quantized networks against fake quantization in numpy, onnxruntime and onnx.reference.

The oracle knows nothing of graphs or of `onnxq.quant`: it computes every operator in float64 and
rounds to the grid what an integer kernel would round.
"""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxq.ir import DataType, Graph, ModelInfo, TensorType, Value
from tests.helpers import run
from tests.quantization import observed_bounds, quantized, run_optimized, run_reference

CHANNELS, SIZE = 4, 6


class Network:
    """A float graph, and the same network in numpy with and without rounding to the grid."""

    def __init__(self, kinds: list[str], seed: int) -> None:
        self.kinds = kinds
        self.rng = np.random.default_rng(seed)
        self.graph = Graph("g", model=ModelInfo(10, {"": 21}))
        self.x = self.rng.standard_normal((1, 3, SIZE, SIZE)).astype(np.float32)
        value = self.graph.add_input("x", TensorType(DataType.FLOAT, self.x.shape))
        exact = self.x.astype(np.float64)
        rounded = self._on_grid(exact, exact)
        for at, kind in enumerate(self.kinds):
            value, exact, rounded = self._block(kind, f"{kind}{at}", value, exact, rounded)
        self.value, self.exact, self.rounded = value, exact, rounded
        self.graph.add_output(value)
        self.graph.rename(value, "y")

    def __repr__(self) -> str:
        return " ".join(self.kinds)

    def _on_grid(self, values: np.ndarray, all_values: np.ndarray) -> np.ndarray:
        """Round the values that the next block reads."""
        self.step = grid_step(all_values)
        return on_grid(values, all_values)

    def _weights(self, *shape: int) -> np.ndarray:
        fan_in = np.prod(shape[1:])
        return (self.rng.standard_normal(shape) / np.sqrt(fan_in)).astype(np.float32)

    def _conv(
        self, name: str, x: Value, exact: np.ndarray, rounded: np.ndarray, relu: bool
    ) -> tuple[Value, np.ndarray, np.ndarray]:
        w, b = self._weights(CHANNELS, exact.shape[1], 3, 3), self._weights(CHANNELS) * 2
        constants = [self.graph.constant(w, f"{name}_w"), self.graph.constant(b, f"{name}_b")]
        made = self.graph.add("Conv", [x, *constants], {"pads": [1, 1, 1, 1]}).output
        exact = conv(exact, w, b)
        steps = weight_steps(w, axes=(1, 2, 3))
        bias_steps = self.step * steps.reshape(-1)
        rounded = conv(rounded, on_weight_grid(w, steps), np.rint(b / bias_steps) * bias_steps)
        if relu:
            made = self.graph.add("Relu", [made]).output
            exact, rounded = np.maximum(exact, 0), np.maximum(rounded, 0)
        return made, exact, self._on_grid(rounded, exact)

    def _block(
        self, kind: str, name: str, x: Value, exact: np.ndarray, rounded: np.ndarray
    ) -> tuple[Value, np.ndarray, np.ndarray]:
        add = self.graph.add
        if kind in ("conv", "conv-relu"):
            return self._conv(name, x, exact, rounded, kind.endswith("relu"))
        if kind in ("residual", "residual-relu"):
            inner = self._conv(name, x, exact, rounded, True)
            made = add("Add", [x, inner[0]]).output
            exact, rounded = exact + inner[1], rounded + inner[2]
            if kind.endswith("relu"):
                made = add("Relu", [made]).output
                exact, rounded = np.maximum(exact, 0), np.maximum(rounded, 0)
            return made, exact, self._on_grid(rounded, exact)
        if kind == "scale":
            k = self._weights(1, 1, 1, 1) + np.float32(0.5)
            made = add("Mul", [x, self.graph.constant(k, f"{name}_k")]).output
            exact = exact * k
            return made, exact, self._on_grid(rounded * on_grid(k, k), exact)
        if kind == "max-pool":
            made = add("MaxPool", [x], {"kernel_shape": [2, 2]}).output
            return made, max_pool(exact), max_pool(rounded)
        if kind == "average-pool":
            made = add("AveragePool", [x], {"kernel_shape": [2, 2]}).output
            exact = windows(exact, 2).mean(axis=(-1, -2))
            return made, exact, self._on_grid(windows(rounded, 2).mean(axis=(-1, -2)), exact)
        if kind == "transpose":
            made = add("Transpose", [x], {"perm": [0, 1, 3, 2]}).output
            return made, exact.transpose(0, 1, 3, 2), rounded.transpose(0, 1, 3, 2)
        assert kind == "gemm"
        matrix, bias = self._weights(3, int(np.prod(exact.shape[1:]))), self._weights(3)
        flat = add("Flatten", [x]).output
        constants = [self.graph.constant(c, f"{name}_{n}") for c, n in ((matrix, "w"), (bias, "b"))]
        made = add("Gemm", [flat, *constants], {"transB": 1}).output
        exact = exact.reshape(1, -1) @ matrix.T + bias
        steps = weight_steps(matrix, axes=(1,))
        bias_steps = self.step * steps.reshape(-1)
        bias = np.rint(bias / bias_steps) * bias_steps
        rounded = rounded.reshape(1, -1) @ on_weight_grid(matrix, steps).T + bias
        return made, exact, rounded


def on_grid(values: np.ndarray, all_values: np.ndarray) -> np.ndarray:
    """Values rounded to the 256 numbers that uint8 has for the range of ``all_values``."""
    step = grid_step(all_values)
    zero = np.rint(-min(0.0, all_values.min()) / step)
    return (np.clip(np.rint(values / step) + zero, 0, 255) - zero) * step


def grid_step(all_values: np.ndarray) -> float:
    return float(np.ptp([0.0, *all_values.reshape(-1)])) / 255 or 1.0


def weight_steps(weight: np.ndarray, axes: tuple[int, ...]) -> np.ndarray:
    low = weight.min(axis=axes, keepdims=True).astype(np.float64)
    high = weight.max(axis=axes, keepdims=True).astype(np.float64)
    return np.maximum(high / 127, -low / 128)


def on_weight_grid(weight: np.ndarray, steps: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(weight / steps), -128, 127) * steps


def windows(x: np.ndarray, size: int) -> np.ndarray:
    return np.lib.stride_tricks.sliding_window_view(x, (size, size), axis=(2, 3))


def conv(x: np.ndarray, w: np.ndarray, b: np.ndarray) -> np.ndarray:
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    return np.einsum("nchwij,ocij->nohw", windows(padded, 3), w) + b[:, None, None]


def max_pool(x: np.ndarray) -> np.ndarray:
    return windows(x, 2).max(axis=(-1, -2))


BLOCKS = (
    "conv",
    "conv-relu",
    "residual",
    "residual-relu",
    "scale",
    "max-pool",
    "average-pool",
    "transpose",
)


@st.composite
def networks(draw: st.DrawFn) -> Network:
    """From convolution to convolution or Gemm, so that all between runs on integers."""
    seed = draw(st.integers(0, 10_000))
    middle = draw(st.lists(st.sampled_from(BLOCKS), max_size=4))
    last = draw(st.sampled_from(["conv", "conv-relu", "gemm"]))
    return Network(["conv-relu", *middle, last], seed)


@settings(max_examples=60)
@given(networks())
def test_a_quantized_network_is_the_float_one_on_the_grid(network: Network) -> None:
    feeds = {"x": network.x}
    before = network.graph
    np.testing.assert_allclose(run(before, feeds)["y"], network.exact, rtol=1e-3, atol=1e-4)
    after = quantized(before, observed_bounds(before.copy(), feeds))
    step = grid_step(network.exact)
    fastest, plain, reference = (
        way(after, feeds)["y"].astype(np.float64) for way in (run_optimized, run, run_reference)
    )
    # Sums in another order may turn a number that lies between two of the grid the other way.
    for one in (plain, reference):
        assert np.abs(fastest - one).max() <= 1.01 * step
    assert np.abs(plain - network.rounded).max() <= 1.01 * step
    # And most of the numbers are the very same.
    assert np.mean(np.abs(plain - network.rounded) < 0.5 * step) > 0.9


@settings(max_examples=20)
@given(networks())
def test_no_operator_but_the_borders_computes_in_float(network: Network) -> None:
    from onnxq.ir import to_proto
    from onnxq.runtime import optimized_operators

    feeds = {"x": network.x}
    after = quantized(network.graph, observed_bounds(network.graph.copy(), feeds))
    counts = optimized_operators(to_proto(after))
    assert counts["QuantizeLinear"] == 1
    assert counts["DequantizeLinear"] == (network.kinds[-1] != "gemm")
    floats = {"Conv", "FusedConv", "Add", "Mul", "Gemm", "FusedGemm", "AveragePool", "Relu"}
    assert not [name for name in counts if name.rpartition(":")[2] in floats]
