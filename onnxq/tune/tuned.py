"""What tuners computed, as a file beside the plan's."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from onnxq.errors import InputError
from onnxq.passes.tuned import Tuned


def to_bytes(tuned: Tuned) -> bytes:
    """The file's bytes; the same tensors give the same bytes."""
    tensors = {
        f"{what}:{node}": np.asarray(_known(array), order="C")
        for node, own in sorted(tuned.items())
        for what, array in sorted(own.items())
    }
    return bytes(save(tensors))


def sha256(tuned: Tuned) -> str:
    """Hash of the file's bytes; empty without tensors."""
    return hashlib.sha256(to_bytes(tuned)).hexdigest() if tuned else ""


def read_tuned(path: Path, wanted: str) -> Tuned:
    """Read the file of a plan.

    Args:
        path: The file.
        wanted: The hash that the plan names.

    Raises:
        InputError: it is missing, or another one than the plan was made with.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(
            f"the plan needs its tensors in '{path}', which cannot be read: {error.strerror}; put "
            "the file there, or plan again"
        ) from error
    if hashlib.sha256(data).hexdigest() != wanted:
        raise InputError(
            f"'{path}' is not the file that the plan was made with; restore it, or plan again"
        )
    try:
        tensors = load(data)
    except SafetensorError as error:
        raise InputError(f"'{path}' holds no tensors: {error}; plan again") from error
    tuned: dict[str, dict[str, np.ndarray]] = {}
    for key, array in tensors.items():
        what, _, node = key.partition(":")
        tuned.setdefault(node, {})[what] = array
    return tuned


def _known(array: np.ndarray) -> np.ndarray:
    """The same numbers in a type that the file knows: it has no integers below 8 bits."""
    is_small = array.dtype.name in ("int2", "uint2", "int4", "uint4")
    return array.astype(np.int8) if is_small else array
