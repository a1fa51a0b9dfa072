"""Well-known network structures with random weights, for benchmarks that need no trained model.

The graphs are as exporters write them: batch normalization folded into the convolutions, SiLU as
Sigmoid and Mul, Gelu in its parts, one image or one sentence a time. Weights keep the variance of
what they multiply (He et al. 2015), so activations have ranges like those of trained models.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import onnx
import onnx.helper
import onnx.numpy_helper

OPSET = 17

CLASSES = 1000


class _Builder:
    """A graph in the making; every method gives the name of the value it makes."""

    def __init__(self, seed: int) -> None:
        self._rng = np.random.default_rng(seed)
        self._nodes: list[onnx.NodeProto] = []
        self._constants: list[onnx.TensorProto] = []

    def op(self, op_type: str, *inputs: str, **attributes: object) -> str:
        name = f"{op_type.lower()}_{len(self._nodes)}"
        self._nodes.append(
            onnx.helper.make_node(op_type, inputs, [f"{name}_out"], name, **attributes)
        )
        return f"{name}_out"

    def constant(self, array: np.ndarray) -> str:
        name = f"constant_{len(self._constants)}"
        self._constants.append(onnx.numpy_helper.from_array(array, name))
        return name

    def scalar(self, number: float) -> str:
        return self.constant(np.float32(number))

    def weights(self, *shape: int, fan_in: int, gain: float = 2.0) -> str:
        spread = math.sqrt(gain / fan_in)
        return self.constant((self._rng.standard_normal(shape) * spread).astype(np.float32))

    def table(self, *shape: int) -> str:
        return self.constant(self._rng.standard_normal(shape).astype(np.float32))

    def biases(self, size: int) -> str:
        return self.constant((self._rng.standard_normal(size) * 0.02).astype(np.float32))

    def conv(
        self,
        x: str,
        inputs: int,
        outputs: int,
        kernel: int,
        stride: int = 1,
        group: int = 1,
        gain: float = 2.0,
    ) -> str:
        fan_in = inputs // group * kernel * kernel
        return self.op(
            "Conv",
            x,
            self.weights(outputs, inputs // group, kernel, kernel, fan_in=fan_in, gain=gain),
            self.biases(outputs),
            kernel_shape=[kernel, kernel],
            strides=[stride, stride],
            pads=[kernel // 2] * 4,
            group=group,
        )

    def linear(self, x: str, inputs: int, outputs: int) -> str:
        weight = self.weights(inputs, outputs, fan_in=inputs, gain=1.0)
        return self.op("Add", self.op("MatMul", x, weight), self.biases(outputs))

    def classifier(self, x: str, channels: int) -> str:
        """Logits of a feature map."""
        flat = self.op("Flatten", self.op("GlobalAveragePool", x), axis=1)
        return self.gemm(flat, channels, CLASSES)

    def gemm(self, x: str, inputs: int, outputs: int) -> str:
        weight = self.weights(outputs, inputs, fan_in=inputs, gain=1.0)
        return self.op("Gemm", x, weight, self.biases(outputs), transB=1)

    def model(
        self, output: str, inputs: onnx.ValueInfoProto, shape: Sequence[int | str]
    ) -> onnx.ModelProto:
        self._nodes[-1].output[0] = "logits"
        assert output == f"{self._nodes[-1].name}_out"
        graph = onnx.helper.make_graph(
            self._nodes,
            "structure",
            [inputs],
            [onnx.helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, shape)],
            self._constants,
        )
        opsets = [onnx.helper.make_opsetid("", OPSET)]
        model = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=8)
        onnx.checker.check_model(model, full_check=True)
        return model

    def image_model(self, output: str, size: int = 224, batch: int | str = 1) -> onnx.ModelProto:
        image = onnx.helper.make_tensor_value_info(
            "image", onnx.TensorProto.FLOAT, [batch, 3, size, size]
        )
        return self.model(output, image, [batch, CLASSES])


Activation = Callable[[_Builder, str], str]


def _relu(b: _Builder, x: str) -> str:
    return b.op("Relu", x)


def _relu6(b: _Builder, x: str) -> str:
    return b.op("Clip", x, b.scalar(0.0), b.scalar(6.0))


def _hard_swish(b: _Builder, x: str) -> str:
    return b.op("HardSwish", x)


def _silu(b: _Builder, x: str) -> str:
    return b.op("Mul", x, b.op("Sigmoid", x))


def _squeeze_excite(
    b: _Builder, x: str, channels: int, squeezed: int, activation: Activation, gate: str
) -> str:
    pooled = b.op("GlobalAveragePool", x)
    hidden = activation(b, b.conv(pooled, channels, squeezed, 1))
    attributes = {"alpha": 1 / 6} if gate == "HardSigmoid" else {}
    return b.op("Mul", b.op(gate, b.conv(hidden, squeezed, channels, 1), **attributes), x)


def resnet50(seed: int = 0, image_size: int = 224, batch: int | str = 1) -> onnx.ModelProto:
    """ResNet-50 (He et al. 2016, table 1), stride in the 3x3 convolutions."""
    b = _Builder(seed)
    x = _relu(b, b.conv("image", 3, 64, 7, 2))
    x = b.op("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    channels = 64
    for stage, blocks in enumerate((3, 4, 6, 3)):
        width = 64 << stage
        for block in range(blocks):
            stride = 2 if stage and not block else 1
            y = _relu(b, b.conv(x, channels, width, 1))
            y = _relu(b, b.conv(y, width, width, 3, stride))
            y = b.conv(y, width, 4 * width, 1, gain=0.2)
            shortcut = x if block else b.conv(x, channels, 4 * width, 1, stride)
            x = _relu(b, b.op("Add", y, shortcut))
            channels = 4 * width
    return b.image_model(b.classifier(x, channels), image_size, batch)


def mobilenet_v2(seed: int = 0) -> onnx.ModelProto:
    """MobileNetV2 (Sandler et al. 2018, table 2)."""
    b = _Builder(seed)
    x, channels = _relu6(b, b.conv("image", 3, 32, 3, 2)), 32
    for factor, outputs, repeats, first_stride in (
        (1, 16, 1, 1),
        (6, 24, 2, 2),
        (6, 32, 3, 2),
        (6, 64, 4, 2),
        (6, 96, 3, 1),
        (6, 160, 3, 2),
        (6, 320, 1, 1),
    ):
        for repeat in range(repeats):
            stride = 1 if repeat else first_stride
            y, width = x, channels * factor
            if factor > 1:
                y = _relu6(b, b.conv(y, channels, width, 1, gain=1.0))
            y = _relu6(b, b.conv(y, width, width, 3, stride, group=width))
            y = b.conv(y, width, outputs, 1, gain=1.0)
            x = b.op("Add", x, y) if stride == 1 and channels == outputs else y
            channels = outputs
    return b.image_model(b.classifier(_relu6(b, b.conv(x, channels, 1280, 1)), 1280))


def mobilenet_v3_small(seed: int = 0) -> onnx.ModelProto:
    """MobileNetV3-small (Howard et al. 2019, table 2)."""
    b = _Builder(seed)
    x, channels = _hard_swish(b, b.conv("image", 3, 16, 3, 2)), 16
    for kernel, width, outputs, excites, activation, stride in (
        (3, 16, 16, True, _relu, 2),
        (3, 72, 24, False, _relu, 2),
        (3, 88, 24, False, _relu, 1),
        (5, 96, 40, True, _hard_swish, 2),
        (5, 240, 40, True, _hard_swish, 1),
        (5, 240, 40, True, _hard_swish, 1),
        (5, 120, 48, True, _hard_swish, 1),
        (5, 144, 48, True, _hard_swish, 1),
        (5, 288, 96, True, _hard_swish, 2),
        (5, 576, 96, True, _hard_swish, 1),
        (5, 576, 96, True, _hard_swish, 1),
    ):
        y = x if width == channels else activation(b, b.conv(x, channels, width, 1, gain=1.0))
        y = activation(b, b.conv(y, width, width, kernel, stride, group=width))
        if excites:
            squeezed = max(8, (width // 4 + 4) // 8 * 8)
            y = _squeeze_excite(b, y, width, squeezed, _relu, "HardSigmoid")
        y = b.conv(y, width, outputs, 1, gain=8.0 if excites else 2.0)
        x = b.op("Add", x, y) if stride == 1 and channels == outputs else y
        channels = outputs
    x = b.op("GlobalAveragePool", _hard_swish(b, b.conv(x, channels, 576, 1)))
    x = _hard_swish(b, b.gemm(b.op("Flatten", x, axis=1), 576, 1024))
    return b.image_model(b.gemm(x, 1024, CLASSES))


def efficientnet_b0(seed: int = 0) -> onnx.ModelProto:
    """EfficientNet-B0 (Tan and Le 2019, table 1)."""
    b = _Builder(seed)
    x, channels = _silu(b, b.conv("image", 3, 32, 3, 2)), 32
    for factor, outputs, repeats, first_stride, kernel in (
        (1, 16, 1, 1, 3),
        (6, 24, 2, 2, 3),
        (6, 40, 2, 2, 5),
        (6, 80, 3, 2, 3),
        (6, 112, 3, 1, 5),
        (6, 192, 4, 2, 5),
        (6, 320, 1, 1, 3),
    ):
        for repeat in range(repeats):
            stride = 1 if repeat else first_stride
            y, width = x, channels * factor
            if factor > 1:
                y = _silu(b, b.conv(y, channels, width, 1, gain=1.0))
            y = _silu(b, b.conv(y, width, width, kernel, stride, group=width))
            y = _squeeze_excite(b, y, width, channels // 4, _silu, "Sigmoid")
            y = b.conv(y, width, outputs, 1, gain=8.0)
            x = b.op("Add", x, y) if stride == 1 and channels == outputs else y
            channels = outputs
    return b.image_model(b.classifier(_silu(b, b.conv(x, channels, 1280, 1)), 1280))


def bert(
    seed: int = 0, layers: int = 4, tokens: int = 128, width: int = 768, heads: int = 12
) -> onnx.ModelProto:
    """An encoder like BERT's (Devlin et al. 2019): post-norm, Gelu, a head over 1,000 classes."""
    b = _Builder(seed)
    words = b.table(2000, width)
    positions = b.table(1, tokens, width)
    x = _normalize(b, b.op("Add", b.op("Gather", words, "tokens"), positions), width)
    split = b.constant(np.array([1, tokens, heads, width // heads], np.int64))
    merged = b.constant(np.array([1, tokens, width], np.int64))
    for _ in range(layers):
        q, k, v = (b.op("Reshape", b.linear(x, width, width), split) for _ in range(3))
        q, v = (b.op("Transpose", each, perm=[0, 2, 1, 3]) for each in (q, v))
        scores = b.op("MatMul", q, b.op("Transpose", k, perm=[0, 2, 3, 1]))
        scores = b.op("Div", scores, b.scalar(math.sqrt(width / heads)))
        mixed = b.op("MatMul", b.op("Softmax", scores, axis=-1), v)
        mixed = b.op("Reshape", b.op("Transpose", mixed, perm=[0, 2, 1, 3]), merged)
        x = _normalize(b, b.op("Add", b.linear(mixed, width, width), x), width)
        hidden = b.linear(x, width, 4 * width)
        erf = b.op("Erf", b.op("Div", hidden, b.scalar(math.sqrt(2))))
        hidden = b.op("Mul", b.op("Mul", hidden, b.op("Add", erf, b.scalar(1))), b.scalar(0.5))
        x = _normalize(b, b.op("Add", b.linear(hidden, 4 * width, width), x), width)
    first = b.op("Gather", x, b.constant(np.int64(0)), axis=1)
    logits = b.gemm(first, width, CLASSES)
    ids = onnx.helper.make_tensor_value_info("tokens", onnx.TensorProto.INT64, [1, tokens])
    return b.model(logits, ids, [1, CLASSES])


def _normalize(b: _Builder, x: str, width: int) -> str:
    ones, zeros = np.ones(width, np.float32), np.zeros(width, np.float32)
    return b.op("LayerNormalization", x, b.constant(ones), b.constant(zeros), axis=-1)


STRUCTURES: dict[str, Callable[[], onnx.ModelProto]] = {
    "resnet50": resnet50,
    "mobilenet_v2": mobilenet_v2,
    "mobilenet_v3_small": mobilenet_v3_small,
    "efficientnet_b0": efficientnet_b0,
    "bert": bert,
}


def samples(model: onnx.ModelProto, count: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Random inputs for a structure: smooth images like photographs', or token numbers."""
    rng = np.random.default_rng(seed)
    inputs = model.graph.input[0]
    shape = [d.dim_value for d in inputs.type.tensor_type.shape.dim]
    if inputs.type.tensor_type.elem_type == onnx.TensorProto.INT64:
        return {inputs.name: rng.integers(0, 2000, (count, *shape[1:]))}
    coarse = rng.standard_normal((count, *shape[1:-2], shape[-2] // 8, shape[-1] // 8))
    fine = rng.standard_normal((count, *shape[1:])) * 0.3
    images = coarse.repeat(8, axis=-2).repeat(8, axis=-1) + fine
    return {inputs.name: images.astype(np.float32)}
