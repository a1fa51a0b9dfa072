"""One onnxruntime session with fixed, repeatable settings."""

from __future__ import annotations

import ctypes
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import onnx.numpy_helper
import onnxruntime as ort
from google.protobuf.message import DecodeError, EncodeError

from onnxq.errors import InputError
from onnxq.ir.loading import ModelLike
from onnxq.runtime.backend import COMPILED
from onnxq.runtime.bare import opened
from onnxq.runtime.failures import RUNTIME_FAILURES, one_sentence
from onnxq.runtime.pool import SHARED_ARENA, share_arena
from onnxq.runtime.providers import (
    Offer,
    offered_here,
    on_processor,
    provider_alias,
    provider_arguments,
)
from onnxq.runtime.specs import Array, TensorSpec, dtype_of

Optimization = Literal["all", "basic", "none"]
_RECORDING = "session.record_ep_graph_assignment_info"

AS_STORED = {"session.disable_prepacking": "1"}
"""Leaves weights in the file that they lie in, for sessions that hardly run."""


class Session:
    """A model loaded into onnxruntime on one execution provider.

    Runs are repeatable: operators run one after another, with `threads` threads inside an
    operator. onnxruntime's own log stays silent; what it raises becomes an `InputError`.

    Args:
        model: path of the file (also one whose weights lie in external files), the file's bytes,
            or a ModelProto.
        provider: short (`cpu`, `cuda`, `openvino`, ...) or full name of an execution provider,
            with options as `openvino{device_type=GPU}`; what it cannot run falls to the CPU.
        threads: threads inside one operator; 0 lets onnxruntime choose.
        optimization: how far onnxruntime may rewrite the graph.
        config: onnxruntime's session configuration entries.
        save_optimized: file to which onnxruntime writes the graph it really runs.
        profile: beginning of the path of a file for the times of all operators, see `end_profile`.
        record: whether onnxruntime notes which provider runs what, see `assigned_operators`.
        pooled: whether memory is shared with other such sessions; not for what is timed.

    Raises:
        InputError: the provider is not available, or onnxruntime cannot load the model.
    """

    def __init__(
        self,
        model: ModelLike,
        *,
        provider: str = "cpu",
        threads: int = 1,
        optimization: Optimization = "all",
        config: Mapping[str, str] | None = None,
        save_optimized: Path | None = None,
        profile: Path | None = None,
        record: bool = False,
        pooled: bool = False,
    ) -> None:
        full_name, own_options = provider_arguments(provider, threads, self._offer)
        self._label = model_label(model)
        source = _source(model, self._label)
        if pooled:
            share_arena()
        config = {
            **(config or {}),
            **({_RECORDING: "1"} if record else {}),
            **(SHARED_ARENA if pooled else {}),
        }
        settings = {
            "threads": threads,
            "optimization": optimization,
            "profile": "" if profile is None else str(profile),
        }
        saved = "" if save_optimized is None else str(save_optimized)
        if save_optimized is not None and not save_optimized.parent.is_dir():
            raise InputError(f"{save_optimized}: its folder does not exist")
        try:
            self._session = self._opened(source, config, saved, (full_name, own_options), settings)
        except RUNTIME_FAILURES as error:
            raise InputError(
                f"onnxruntime cannot load {self._label}: {one_sentence(error)}"
            ) from error
        if full_name not in self._session.get_providers():
            raise InputError(
                f"provider {provider_alias(full_name)!r} could not be started on this machine; "
                "check its driver and libraries"
            )
        self._provider = full_name
        self._provider_options = own_options
        self._threads = threads
        unranked = _unranked(source, [*self._session.get_inputs(), *self._session.get_outputs()])
        self._inputs = tuple(_spec(arg, unranked) for arg in self._session.get_inputs())
        self._outputs = tuple(_spec(arg, unranked) for arg in self._session.get_outputs())
        self._output_names = [spec.name for spec in self._outputs]
        self._dtypes = {spec.name: spec.dtype for spec in (*self._inputs, *self._outputs)}
        self._needs_values = any(_is_extension(dtype) for dtype in self._dtypes.values())

    @property
    def _offer(self) -> Offer:
        """What the onnxruntime offers that is to run the model."""
        return offered_here()

    def _opened(
        self,
        source: str | bytes,
        config: Mapping[str, str],
        save_optimized: str,
        provider: tuple[str, dict[str, str]],
        settings: Mapping[str, Any],
    ) -> Any:
        """A session of onnxruntime's own, see `onnxq.runtime.bare.opened`."""
        return opened(source, config, save_optimized, provider, settings)

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """The graph inputs that must be fed, in order; overridable initializers are left out."""
        return self._inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """The graph outputs, in order."""
        return self._outputs

    @property
    def runs_in_caller(self) -> bool:
        """Whether all work is done on the thread that calls `run`."""
        return self._threads == 1 and on_processor(self._provider, self._provider_options)

    @property
    def provider(self) -> str:
        """Full name of the execution provider, as `CPUExecutionProvider`."""
        return self._provider

    def run(
        self, feeds: Mapping[str, Array], outputs: Sequence[str] | None = None
    ) -> dict[str, Array]:
        """Run once and return the outputs by name.

        Args:
            feeds: one array per graph input, of the input's dtype and shape.
            outputs: names of the outputs to return; all of them when None.

        Outputs of sequence type come as lists of arrays, maps as dicts.

        Raises:
            InputError: onnxruntime refuses the feeds or fails while running.
        """
        names = self._output_names if outputs is None else list(outputs)
        try:
            if self._needs_values:
                values = self._run_values(feeds, names)
            else:
                values = self._session.run(names, dict(feeds))
        except RUNTIME_FAILURES as error:
            raise InputError(
                f"onnxruntime cannot run {self._label}: {one_sentence(error)}"
            ) from error
        return dict(zip(names, values, strict=True))

    def end_profile(self) -> Path:
        """Stop profiling and return the file, in Chrome's trace format, that holds the times."""
        return Path(self._session.end_profiling())

    def assigned_operators(self) -> Counter[str]:
        """Count what the providers were given to run, by type; the session must have recorded it.

        What another provider than the CPU runs counts as `COMPILED`.
        """
        counts: Counter[str] = Counter()
        for name, operators in self.assigned().items():
            prefix = "" if name == "CPUExecutionProvider" else COMPILED
            counts.update({prefix + operator: amount for operator, amount in operators.items()})
        return counts

    def assigned(self) -> dict[str, Counter[str]]:
        """Operators by type that each provider was given; the session must have recorded it."""
        found: dict[str, Counter[str]] = {}
        for part in self._session.get_provider_graph_assignment_info():
            names = (operator_name(node.domain, node.op_type) for node in part.get_nodes())
            found.setdefault(part.ep_name, Counter()).update(names)
        return found

    def _run_values(self, feeds: Mapping[str, Array], names: list[str]) -> list[Any]:
        """Run through OrtValues: the plain call knows no bfloat16 and no float8."""
        values = {name: _to_value(array) for name, array in feeds.items()}
        results = self._session.run_with_ort_values(names, values)
        return [
            _from_value(value, self._dtypes.get(name))
            for name, value in zip(names, results, strict=True)
        ]


def as_stored(model: ModelLike) -> Session:
    """A model as its file says, quickly loaded: for its interface, and a run or two.

    Raises:
        InputError: onnxruntime cannot load the model.
    """
    return Session(model, optimization="none", config=AS_STORED)


def operator_name(domain: str, op_type: str) -> str:
    """An operator's type, qualified by its domain unless that is ONNX's own."""
    return op_type if domain in ("", "ai.onnx") else f"{domain}:{op_type}"


def model_label(model: ModelLike) -> str:
    """Return what an error message calls the model: its path, or its graph's name."""
    if isinstance(model, str | os.PathLike):
        return f"'{os.fspath(model)}'"
    if isinstance(model, onnx.ModelProto) and model.graph.name:
        return f"model {model.graph.name!r}"
    return "the model"


@contextmanager
def told_as(path: Path, name: str) -> Iterator[None]:
    """Have error messages call a model by a name instead of the path of a temporary file.

    Args:
        path: The file.
        name: The name; if it is a path, then in quotes, as `model_label` gives it.
    """
    try:
        yield
    except InputError as error:
        text = str(error).replace(model_label(path), name).replace(str(path), name)
        raise InputError(text) from error


def serialized(model: onnx.ModelProto) -> bytes:
    """The bytes of a model.

    Raises:
        InputError: it is over protobuf's limit of 2 GB.
    """
    try:
        data: bytes = model.SerializeToString()
    except EncodeError as error:
        raise InputError(
            f"{model_label(model)} is over protobuf's limit of 2 GB; "
            "save it with external data and give its path"
        ) from error
    return data


def _source(model: ModelLike, label: str) -> str | bytes:
    if isinstance(model, bytes):
        return model
    if isinstance(model, onnx.ModelProto):
        return serialized(model)
    path = Path(model)
    if not path.exists():
        raise InputError(f"{label}: no such file")
    if not path.is_file():
        raise InputError(f"{label} is not a file")
    return str(path)


def _spec(arg: Any, unranked: set[str]) -> TensorSpec:
    shape = tuple(dim if dim != "" else None for dim in arg.shape)
    dtype = dtype_of(arg.type)
    known = dtype is not None and arg.name not in unranked
    return TensorSpec(arg.name, dtype, arg.type, shape if known else None)


def _unranked(source: str | bytes, args: Iterable[Any]) -> set[str]:
    """Return the names declared without a shape: onnxruntime shows them like scalars."""
    if all(arg.shape or dtype_of(arg.type) is None for arg in args):
        return set()
    try:
        if isinstance(source, bytes):
            graph = onnx.ModelProto.FromString(source).graph
        else:
            graph = onnx.load(source, load_external_data=False).graph
    except DecodeError:
        # onnxruntime also reads its own .ort format, which says nothing onnx could read.
        return set()
    return {
        value.name
        for value in (*graph.input, *graph.output)
        if value.type.HasField("tensor_type") and not value.type.tensor_type.HasField("shape")
    }


def _is_extension(dtype: np.dtype[Any] | None) -> bool:
    """Tell whether a dtype is one of ml_dtypes', which onnxruntime's plain call cannot pass."""
    return dtype is not None and dtype.type.__module__.startswith("ml_dtypes")


def _to_value(array: Array) -> Any:
    array = np.ascontiguousarray(array)
    if not _is_extension(array.dtype):
        return ort.OrtValue.ortvalue_from_numpy(array)
    raw = array.view(np.uint8 if array.dtype.itemsize == 1 else np.uint16)
    element_type = onnx.helper.np_dtype_to_tensor_dtype(array.dtype)
    return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(raw, element_type)


def _from_value(value: Any, dtype: np.dtype[Any] | None) -> Any:
    if dtype is None or not _is_extension(dtype):
        return value.numpy()
    # onnxruntime packs 2- and 4-bit elements as ONNX does, so ONNX can unpack them.
    packed = onnx.TensorProto(
        dims=value.shape(),
        data_type=onnx.helper.np_dtype_to_tensor_dtype(dtype),
        raw_data=ctypes.string_at(value.data_ptr(), value.tensor_size_in_bytes()),
    )
    return onnx.numpy_helper.to_array(packed)
