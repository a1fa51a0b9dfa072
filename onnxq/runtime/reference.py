"""The backend onnx.reference: what ONNX says its operators compute, in numpy; slow, never timed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx
from onnx.reference import ReferenceEvaluator

from onnxq.errors import InputError
from onnxq.ir import load, to_proto
from onnxq.ir.loading import ModelLike
from onnxq.ir.opset import raise_opset
from onnxq.runtime.backend import Backend, NodeTime
from onnxq.runtime.failures import one_sentence
from onnxq.runtime.session import as_stored, model_label
from onnxq.runtime.specs import Array, TensorSpec

NAME = "onnx.reference"

_OPSET = 19


class Evaluated:
    """A model that `onnx.reference` computes.

    Args:
        model: Path or serialized model.

    Raises:
        InputError: it has operators that ONNX does not define.
    """

    runs_in_caller = True

    def __init__(self, model: ModelLike) -> None:
        self._label = model_label(model)
        described = as_stored(model)
        self.inputs: tuple[TensorSpec, ...] = described.inputs
        self.outputs: tuple[TensorSpec, ...] = described.outputs
        try:
            graph = load(model)
            # It has no QuantizeLinear and DequantizeLinear of lower opsets (onnx 1.23).
            raised = graph if graph.opset >= _OPSET else raise_opset(graph, _OPSET)
            self._evaluator = ReferenceEvaluator(to_proto(raised))
        except Exception as error:  # It raises what its operators do.
            raise InputError(f"{NAME} cannot load {self._label}: {one_sentence(error)}") from error

    def run(
        self, feeds: Mapping[str, Array], outputs: Sequence[str] | None = None
    ) -> dict[str, Array]:
        """Run once; gives the named outputs by name, all of them if None."""
        names = [spec.name for spec in self.outputs] if outputs is None else list(outputs)
        try:
            given = self._evaluator.run(names, dict(feeds))
        except Exception as error:  # It raises what its operators do.
            raise InputError(f"{NAME} cannot run {self._label}: {one_sentence(error)}") from error
        return dict(zip(names, given, strict=True))


class OnnxReference(Backend):
    """`onnx.reference`, whose one provider is called cpu."""

    name = NAME

    @property
    def version(self) -> str:
        """See `Backend.version`."""
        return str(onnx.__version__)

    def missing(self, provider: str) -> str:
        """See `Backend.missing`."""
        return "" if provider == "cpu" else f"{NAME} has no provider {provider!r} but cpu"

    def session(
        self, model: ModelLike, *, provider: str = "cpu", threads: int = 1, pooled: bool = False
    ) -> Evaluated:
        """See `Backend.session`."""
        return Evaluated(model)

    def profile(
        self,
        models: Sequence[ModelLike],
        feeds: Mapping[str, Array] | Sequence[Mapping[str, Array]],
        *,
        provider: str = "cpu",
        threads: int = 1,
        rounds: int = 24,
    ) -> list[list[NodeTime]]:
        """See `Backend.profile`: nobody deploys it, so it has no times."""
        return [[] for _ in models]
