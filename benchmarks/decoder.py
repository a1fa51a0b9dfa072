"""Write a decoder like Llama with random weights, of any size, and a few windows of tokens.

Usage: python benchmarks/decoder.py OUTPUT.onnx [--gigabytes 10] [--width 2048] [--tokens 64]

The weights go to OUTPUT.onnx.data piece by piece, within 0.2 GB of memory; OUTPUT.npz holds four
windows. One row of tokens gives logits. Every layer has RMSNormalization in its parts, rotary
embeddings, attention in which four heads share keys and values, under a causal mask, and a gated
SiLU network, as exporters write them at opset 20; there are as many layers as the size asks for.
Weights are scaled so that activations keep their size from layer to layer. What it is for:

    onnxq optimize OUTPUT.onnx --data OUTPUT.npz --recipe int4-weight -o SMALL.onnx
"""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from onnx import TensorProto, helper
from streamed import Writer

OPSET, IR_VERSION = 20, 9
VOCABULARY = 32_000
HEAD = 64
SHARED = 4
"""Heads that share keys and values."""

WINDOWS = 4


def main() -> None:
    """Write model and data."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("output", type=Path, metavar="OUTPUT.onnx", help="the model to write")
    parser.add_argument("--gigabytes", type=float, default=10.0, help="size of the weights, in GB")
    parser.add_argument("--width", type=int, default=2048, help="of the hidden states")
    parser.add_argument("--tokens", type=int, default=64, help="in a window of the data")
    parsed = parser.parse_args()
    if parsed.width < 1 or parsed.width % (HEAD * SHARED):
        parser.error(f"--width must be a multiple of {HEAD * SHARED}, not {parsed.width}")
    layers = build(parsed.output, int(parsed.gigabytes * 1e9), parsed.width)
    shape = (WINDOWS, parsed.tokens)
    tokens = np.random.default_rng(1).integers(0, VOCABULARY, shape, dtype=np.int64)
    np.savez(parsed.output.with_suffix(".npz"), input_ids=tokens)
    print(f"{layers} layers in {parsed.output}")


def build(path: Path, size: int, width: int) -> int:
    """Write a decoder with about ``size`` bytes of weights; gives its number of layers."""
    hidden = -(-width * 8 // 3 // 256) * 256
    ends = 2 * VOCABULARY * width
    of_layer = 2 * width * width + 2 * width * width // SHARED + 3 * width * hidden
    layers = max(1, round((size / 4 - ends) / of_layer))
    with Writer(path) as writer:
        decoder = _Decoder(writer, width, hidden, 1 / math.sqrt(2 * layers))
        x = writer.op("Gather", writer.weight(VOCABULARY, width, spread=1.0), "input_ids")
        for _ in range(layers):
            x = decoder.attention(x)
            x = decoder.gated(x)
        logits = decoder.product(decoder.norm(x), width, VOCABULARY)
        writer.save(
            [helper.make_tensor_value_info("input_ids", TensorProto.INT64, [1, "tokens"])],
            [helper.make_tensor_value_info(logits, TensorProto.FLOAT, [1, "tokens", VOCABULARY])],
            OPSET,
            IR_VERSION,
        )
    return layers


@dataclass
class _Decoder:
    """Adds the parts of a layer; ``damping`` scales what is added to the residual stream."""

    writer: Writer
    width: int
    hidden: int
    damping: float

    def __post_init__(self) -> None:
        self._heads = self.width // HEAD
        op, constant = self.writer.op, self.writer.constant
        length = op("Squeeze", op("Shape", "input_ids", start=1, end=2))
        zero, one = constant(0, np.int64), constant(1, np.int64)
        steps = op("Range", zero, length, one)
        column = op("Unsqueeze", steps, constant([1], np.int64))
        row = op("Unsqueeze", steps, constant([0], np.int64))
        # Smaller than 1e8, yet far below any score.
        self._mask = op("Where", op("Greater", row, column), constant(-1e4), constant(0.0))
        frequencies = 10_000.0 ** (-np.arange(0, HEAD, 2) / HEAD)
        angles = op("Mul", op("Cast", column, to=TensorProto.FLOAT), constant(frequencies))
        angles = op("Concat", angles, angles, axis=-1)
        self._cosine, self._sine = op("Cos", angles), op("Sin", angles)

    def product(self, x: str, inputs: int, outputs: int, gain: float = 1.0) -> str:
        """A matrix product that keeps the size of what it multiplies, times ``gain``."""
        spread = gain * math.sqrt(3 / inputs)
        return self.writer.op("MatMul", x, self.writer.weight(inputs, outputs, spread=spread))

    def norm(self, x: str) -> str:
        """RMSNormalization in its parts."""
        op, constant = self.writer.op, self.writer.constant
        square = op("ReduceMean", op("Pow", x, constant(2.0)), constant([-1], np.int64))
        root = op("Sqrt", op("Add", square, constant(1e-5)))
        scaled = op("Mul", x, op("Reciprocal", root))
        return op("Mul", constant(np.ones(self.width)), scaled)

    def attention(self, x: str) -> str:
        """Causal self-attention, added to its input."""
        op, constant = self.writer.op, self.writer.constant
        normed = self.norm(x)
        shared = self._heads // SHARED
        query = self._turned(self._split(normed, self._heads))
        key, value = self._turned(self._split(normed, shared)), self._split(normed, shared)
        key, value = self._repeated(key), self._repeated(value)
        scores = op("MatMul", query, op("Transpose", key, perm=[0, 1, 3, 2]))
        scores = op("Add", op("Mul", scores, constant(HEAD**-0.5)), self._mask)
        mixed = op("MatMul", op("Softmax", scores, axis=-1), value)
        joined = op("Transpose", mixed, perm=[0, 2, 1, 3])
        joined = op("Reshape", joined, constant([0, 0, self.width], np.int64))
        return op("Add", x, self.product(joined, self.width, self.width, self.damping))

    def gated(self, x: str) -> str:
        """The gated network, added to its input."""
        op = self.writer.op
        normed = self.norm(x)
        gate = self.product(normed, self.width, self.hidden)
        inner = op("Mul", gate, op("Sigmoid", gate))
        inner = op("Mul", inner, self.product(normed, self.width, self.hidden))
        return op("Add", x, self.product(inner, self.hidden, self.width, self.damping))

    def _split(self, x: str, heads: int) -> str:
        op, constant = self.writer.op, self.writer.constant
        projected = self.product(x, self.width, heads * HEAD)
        split = op("Reshape", projected, constant([0, 0, heads, HEAD], np.int64))
        return op("Transpose", split, perm=[0, 2, 1, 3])

    def _turned(self, x: str) -> str:
        """Rotary embeddings: halves change places and one its sign."""
        op, constant = self.writer.op, self.writer.constant
        axis, start = constant([3], np.int64), constant([0], np.int64)
        half, end = constant([HEAD // 2], np.int64), constant([HEAD], np.int64)
        first, second = op("Slice", x, start, half, axis), op("Slice", x, half, end, axis)
        turned = op("Concat", op("Neg", second), first, axis=-1)
        return op("Add", op("Mul", x, self._cosine), op("Mul", turned, self._sine))

    def _repeated(self, x: str) -> str:
        """Every head as often as others share it."""
        op, constant = self.writer.op, self.writer.constant
        wide = op("Unsqueeze", x, constant([2], np.int64))
        wide = op("Expand", wide, constant([1, 1, SHARED, 1, 1], np.int64))
        return op("Reshape", wide, constant([0, self._heads, -1, HEAD], np.int64))


if __name__ == "__main__":
    main()
