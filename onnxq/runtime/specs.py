"""What a loaded model is: its inputs and outputs in numpy's terms, and that it runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from onnxq.ir.types import DataType

Array = npt.NDArray[Any]


_DTYPES = {f"tensor({dtype.name.lower()})": dtype.numpy for dtype in DataType if dtype}


@dataclass(frozen=True)
class TensorSpec:
    """Name, type and declared shape of one graph input or output.

    `dtype` is None for what is no tensor (sequence, map, optional, sparse tensor); strings have
    dtype `object`. `onnx_type` is onnxruntime's spelling, as `tensor(float)`. In `shape` an int is
    fixed, a string is a symbol, None is unknown; the whole shape is None where even the rank is
    unknown, and `()` is a scalar.
    """

    name: str
    dtype: np.dtype[Any] | None
    onnx_type: str
    shape: tuple[int | str | None, ...] | None

    def __str__(self) -> str:
        """Return the spec as the user would write it: `x float32 [N, 3, 32, 32]`."""
        kind = self.onnx_type if self.dtype is None else dtype_name(self.dtype)
        if self.shape is None:
            return f"{self.name} {kind} of unknown rank"
        dims = ", ".join("?" if dim is None else str(dim) for dim in self.shape)
        return f"{self.name} {kind} [{dims}]"


class Runnable(Protocol):
    """A model loaded into a backend."""

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """What must be fed, in order."""

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """The outputs, in order."""

    @property
    def runs_in_caller(self) -> bool:
        """Whether all work is done on the thread that calls `run`."""

    def run(
        self, feeds: Mapping[str, Array], outputs: Sequence[str] | None = None
    ) -> dict[str, Array]:
        """Run once; gives the named outputs by name, all of them if None."""


@runtime_checkable
class Away(Protocol):
    """A model in another process, which takes the time there."""

    def spend(self, feeds: Mapping[str, Array], inferences: int, *, own: bool) -> float:
        """Seconds that inferences take: of the thread's own processor time, or that pass."""


def dtype_name(dtype: np.dtype[Any]) -> str:
    """Return the name of a dtype for a message: strings and objects are called `string`."""
    return "string" if dtype.kind in "OUST" else str(dtype.name)


def dtype_of(onnx_type: str) -> np.dtype[Any] | None:
    """Return the numpy dtype of onnxruntime's type `tensor(...)`, None for anything else."""
    return _DTYPES.get(onnx_type)


def is_floating(dtype: np.dtype[Any]) -> bool:
    """Tell whether a dtype is a floating-point one, bfloat16 and float8 included."""
    return dtype.kind == "f" or dtype.name.startswith(("bfloat", "float"))
