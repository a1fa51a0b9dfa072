"""Structures of well-known models with random weights, for measuring speed and memory."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


def resnet50(image_size: int = 224, seed: int = 0) -> onnx.ModelProto:
    """ResNet-50 with BatchNormalization folded: input x [N, 3, size, size], output y [N, 1000].

    The structure is that of https://arxiv.org/abs/1512.03385, with the stride in the 3x3
    convolutions. Weights are drawn as in https://arxiv.org/abs/1502.01852, those of a block's last
    convolution a third as wide, so that values keep their size along the residuals.
    """
    builder = _Builder(np.random.default_rng(seed))
    value = builder.relu(builder.conv("x", 3, 64, 7, stride=2))
    value = builder.node("MaxPool", [value], kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4)
    channels = 64
    for width, blocks, stride in ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2)):
        for block in range(blocks):
            step = stride if block == 0 else 1
            inner = builder.relu(builder.conv(value, channels, width, 1))
            inner = builder.relu(builder.conv(inner, width, width, 3, stride=step))
            inner = builder.conv(inner, width, width * 4, 1, gain=1 / 3)
            if block == 0:
                value = builder.conv(value, channels, width * 4, 1, stride=step)
            value = builder.relu(builder.node("Add", [inner, value]))
            channels = width * 4
    value = builder.node("Flatten", [builder.node("GlobalAveragePool", [value])])
    weight = builder.weight((1000, channels), channels)
    bias = builder.constant(np.zeros(1000, np.float32))
    builder.nodes.append(helper.make_node("Gemm", [value, weight, bias], ["y"], "head", transB=1))
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, image_size, image_size])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 1000])
    graph = helper.make_graph(builder.nodes, "resnet50", [x], [y], builder.constants)
    return helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)])


class _Builder:
    """Adds nodes and random weights, and names them."""

    def __init__(self, generator: np.random.Generator) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self._generator = generator

    def node(self, op_type: str, inputs: list[str], **attributes: object) -> str:
        name = f"{op_type.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(op_type, inputs, [name], name, **attributes))
        return name

    def relu(self, value: str) -> str:
        return self.node("Relu", [value])

    def conv(
        self, value: str, inputs: int, outputs: int, size: int, stride: int = 1, gain: float = 1.0
    ) -> str:
        weight = self.weight((outputs, inputs, size, size), inputs * size * size, gain)
        bias = self.constant(np.zeros(outputs, np.float32))
        return self.node(
            "Conv",
            [value, weight, bias],
            kernel_shape=[size, size],
            strides=[stride, stride],
            pads=[size // 2] * 4,
        )

    def weight(self, shape: tuple[int, ...], fan_in: int, gain: float = 1.0) -> str:
        drawn = self._generator.standard_normal(shape, dtype=np.float32)
        return self.constant(drawn * np.float32(gain * (2 / fan_in) ** 0.5))

    def constant(self, array: np.ndarray) -> str:
        name = f"weight_{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(array, name))
        return name
