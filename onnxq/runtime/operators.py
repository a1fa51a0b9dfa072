"""Which operators onnxruntime really runs, once its own optimizer is done."""

from __future__ import annotations

import tempfile
from collections import Counter
from pathlib import Path

import onnx

from onnxq.errors import InputError
from onnxq.ir.load import called
from onnxq.runtime.backend import ModelLike
from onnxq.runtime.session import Session, operator_name

INTEGER_OPERATORS: frozenset[str] = frozenset(
    {
        "ConvInteger",
        "MatMulInteger",
        "QLinearConv",
        "QLinearMatMul",
        "com.microsoft:DynamicQuantizeLSTM",
        "com.microsoft:DynamicQuantizeMatMul",
        "com.microsoft:MatMulInteger16",
        "com.microsoft:MatMulIntegerToFloat",
        "com.microsoft:MatMulNBits",
        "com.microsoft:MulInteger",
        "com.microsoft:QAttention",
        "com.microsoft:QEmbedLayerNormalization",
        "com.microsoft:QGemm",
        "com.microsoft:QLinearAdd",
        "com.microsoft:QLinearAveragePool",
        "com.microsoft:QLinearConcat",
        "com.microsoft:QLinearConv",
        "com.microsoft:QLinearGlobalAveragePool",
        "com.microsoft:QLinearLeakyRelu",
        "com.microsoft:QLinearMul",
        "com.microsoft:QLinearReduceMean",
        "com.microsoft:QLinearSigmoid",
        "com.microsoft:QLinearSoftmax",
        "com.microsoft:QLinearWhere",
        "com.microsoft:QMoE",
        "com.microsoft:QOrderedAttention",
        "com.microsoft:QOrderedGelu",
        "com.microsoft:QOrderedLayerNormalization",
        "com.microsoft:QOrderedLongformerAttention",
        "com.microsoft:QOrderedMatMul",
        "com.microsoft:ReduceSumInteger",
        "com.ms.internal.nhwc:QLinearAveragePool",
        "com.ms.internal.nhwc:QLinearConv",
        "com.ms.internal.nhwc:QLinearConvTranspose",
    }
)
"""Operator types, qualified by domain, that compute on integers."""


def optimized_operators(model: ModelLike, *, provider: str = "cpu") -> Counter[str]:
    """Count the operators, subgraphs included, of the graph that onnxruntime runs.

    onnxruntime optimizes the model as far as it does by default, writes the result to a temporary
    folder, and the operators are counted there by type, qualified by the domain unless that is
    ONNX's own. It cannot write what a provider compiled; then the operators are those that it
    gave to the providers, see `Session.assigned_operators`.

    Raises:
        InputError: onnxruntime cannot load the model on that provider.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "optimized.onnx"
        # Weights go to a file of their own: the graph is then small, also for models over 2 GB.
        config = {
            "session.optimized_model_external_initializers_file_name": "weights.bin",
            "session.optimized_model_external_initializers_min_size_in_bytes": "1024",
        }
        try:
            Session(model, provider=provider, config=config, save_optimized=path)
        except InputError:
            # A model that cannot be loaded at all fails again.
            return Session(model, provider=provider, record=True).assigned_operators()
        graph = onnx.load(path, load_external_data=False).graph
    return Counter(operator_name(domain, op_type) for domain, op_type, _ in called(graph.node))


def integer_operators(model: ModelLike, *, provider: str = "cpu") -> Counter[str]:
    """Count the operators of the optimized graph that compute on integers.

    Raises:
        InputError: onnxruntime cannot load the model on that provider.
    """
    counts = optimized_operators(model, provider=provider)
    return Counter({name: count for name, count in counts.items() if name in INTEGER_OPERATORS})
