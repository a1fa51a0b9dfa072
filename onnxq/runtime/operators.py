"""Which operators onnxruntime really runs, once its own optimizer is done."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import onnx

from onnxq.errors import InputError
from onnxq.ir.loading import ModelLike, called
from onnxq.runtime.session import AS_STORED, Session, operator_name
from onnxq.scratch import scratch_folder

_INTEGER_OPERATORS = {
    "": "ConvInteger MatMulInteger QLinearConv QLinearMatMul",
    "com.microsoft": (
        "DynamicQuantizeLSTM DynamicQuantizeMatMul MatMulInteger16 MatMulIntegerToFloat "
        "MatMulNBits MulInteger QAttention QEmbedLayerNormalization QGemm QLinearAdd "
        "QLinearAveragePool QLinearConcat QLinearConv QLinearGlobalAveragePool QLinearLeakyRelu "
        "QLinearMul QLinearReduceMean QLinearSigmoid QLinearSoftmax QLinearWhere QMoE "
        "QOrderedAttention QOrderedGelu QOrderedLayerNormalization QOrderedLongformerAttention "
        "QOrderedMatMul ReduceSumInteger"
    ),
    "com.ms.internal.nhwc": "QLinearAveragePool QLinearConv QLinearConvTranspose",
}

INTEGER_OPERATORS = frozenset(
    operator_name(domain, op_type)
    for domain, op_types in _INTEGER_OPERATORS.items()
    for op_type in op_types.split()
)
"""Operator types, qualified by domain, that compute on integers."""


def optimized_operators(
    model: ModelLike, *, provider: str = "cpu", session: Callable[..., Session] = Session
) -> Counter[str]:
    """Count the operators, subgraphs included, of the graph that onnxruntime runs.

    onnxruntime optimizes the model as far as it does by default, writes the result to a temporary
    folder, and the operators are counted there by type, qualified by the domain unless that is
    ONNX's own. It cannot write what a provider compiled; then the operators are those that it
    gave to the providers, see `Session.assigned_operators`. ``session`` loads the model.

    Raises:
        InputError: onnxruntime cannot load the model on that provider.
    """
    with scratch_folder() as folder:
        path = folder / "optimized.onnx"
        # Weights go to a file of their own: the graph is then small, also for models over 2 GB.
        config = {
            **AS_STORED,
            "session.optimized_model_external_initializers_file_name": "weights.bin",
            "session.optimized_model_external_initializers_min_size_in_bytes": "1024",
        }
        try:
            session(model, provider=provider, config=config, save_optimized=path)
        except InputError:
            # A model that cannot be loaded at all fails again.
            return session(model, provider=provider, record=True).assigned_operators()
        graph = onnx.load(path, load_external_data=False).graph
    return Counter(operator_name(domain, op_type) for domain, op_type, _ in called(graph.node))


def integer_operators(model: ModelLike, *, provider: str = "cpu") -> Counter[str]:
    """Count the operators of the optimized graph that compute on integers.

    Raises:
        InputError: onnxruntime cannot load the model on that provider.
    """
    counts = optimized_operators(model, provider=provider)
    return Counter({name: count for name, count in counts.items() if name in INTEGER_OPERATORS})
