"""How the example models become ONNX files."""

from __future__ import annotations

import warnings
from pathlib import Path

import onnx
import onnxscript.optimizer
import torch
from onnx_ir.passes.common import LiftConstantsToInitializersPass
from torch import Tensor, nn


def strip_metadata(model: onnx.ModelProto) -> None:
    """Remove what exporters note about the Python source, such as stack traces with paths."""
    graph = model.graph
    for holder in (model, graph, *graph.node, *graph.value_info, *graph.initializer):
        del holder.metadata_props[:]
        holder.ClearField("doc_string")
    for value in (*graph.input, *graph.output):
        del value.metadata_props[:]
        value.ClearField("doc_string")


def export_dynamo(
    model: nn.Module,
    example: Tensor,
    path: Path,
    input_name: str,
    opset: int,
    *,
    dynamic_batch: bool,
    keep_batch_norm: bool = False,
) -> None:
    """Export with torch's current exporter, as one file.

    By default that exporter folds BatchNorm into convolutions. With ``keep_batch_norm`` its
    constants are folded but its rewrite rules left out.
    """
    program = torch.onnx.export(
        model,
        (example,),
        input_names=[input_name],
        output_names=["logits"],
        opset_version=opset,
        dynamic_shapes={input_name: {0: "batch"}} if dynamic_batch else None,
        dynamo=True,
        optimize=not keep_batch_norm,
        verbose=False,
    )
    assert program is not None
    if keep_batch_norm:
        onnxscript.optimizer.fold_constants(program.model)
        onnxscript.optimizer.remove_unused_nodes(program.model)
        lift_constants = LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)
        lift_constants(program.model)
    proto = program.model_proto
    strip_metadata(proto)
    onnx.save(proto, path)


def export_torchscript(
    model: nn.Module,
    example: Tensor,
    path: Path,
    input_name: str,
    opset: int,
    *,
    keep_batch_norm: bool = False,
) -> None:
    """Export with torch's older exporter (TorchScript), with a dynamic batch axis.

    By default that exporter folds BatchNorm into convolutions.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.onnx.export(
            model,
            (example,),
            path,
            input_names=[input_name],
            output_names=["logits"],
            opset_version=opset,
            dynamic_axes={input_name: {0: "batch"}, "logits": {0: "batch"}},
            training=torch.onnx.TrainingMode.PRESERVE
            if keep_batch_norm
            else torch.onnx.TrainingMode.EVAL,
            do_constant_folding=not keep_batch_norm,
            dynamo=False,
        )
    proto = onnx.load(path)
    strip_metadata(proto)
    onnx.save(proto, path)
