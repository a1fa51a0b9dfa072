"""ONNX test data: folders with `input_0.pb`, `input_1.pb`, ..."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError

from onnxq.data.feeds import FeedSource
from onnxq.errors import InputError
from onnxq.runtime.specs import Array, TensorSpec

_INPUT = re.compile(r"input_(\d+)\.pb")


def protobuf_folders(folder: Path) -> list[Path]:
    """Return the folders that hold `input_*.pb`: this one, or its children, by number."""
    if _input_files(folder):
        return [folder]
    children = [child for child in folder.iterdir() if child.is_dir() and _input_files(child)]
    return sorted(children, key=lambda child: natural_key(child.name))


def protobuf_source(
    folder: Path,
    sets: Sequence[Path],
    inputs: Sequence[TensorSpec],
    limit: int | None = None,
) -> FeedSource:
    """Return the feeds of ONNX test data; `input_k.pb` is the model's input number k.

    Raises:
        InputError: a file is damaged or no tensor, or the tensors do not fit the model's inputs.
    """

    def feeds() -> Iterator[dict[str, Array]]:
        for directory in sets:
            yield _read_set(directory, inputs)

    return FeedSource(f"'{folder}'", feeds, inputs, limit)


def natural_key(name: str) -> tuple[tuple[int, int, str], ...]:
    """Return a sort key that puts `set_2` before `set_10`."""
    parts = re.split(r"(\d+)", name)
    return tuple((0, int(part), part) if part.isdecimal() else (1, 0, part) for part in parts)


def _input_files(folder: Path) -> dict[int, Path]:
    matches = ((_INPUT.fullmatch(path.name), path) for path in folder.iterdir())
    return {int(match[1]): path for match, path in matches if match}


def _read_set(folder: Path, inputs: Sequence[TensorSpec]) -> dict[str, Array]:
    files = _input_files(folder)
    wanted = set(range(len(inputs)))
    for index in sorted(wanted ^ files.keys()):
        if index in wanted:
            raise InputError(
                f"'{folder}' has no input_{index}.pb for the model's input {inputs[index].name!r}"
            )
        raise InputError(f"'{files[index]}': the model has only {len(inputs)} inputs")
    return {spec.name: _read_tensor(files[index], spec) for index, spec in enumerate(inputs)}


def _read_tensor(path: Path, spec: TensorSpec) -> Array:
    if spec.dtype is None:
        raise InputError(
            f"'{path}': the model's input {spec.name!r} has type {spec.onnx_type}; only tensors "
            "are read"
        )
    try:
        tensor = onnx.TensorProto.FromString(path.read_bytes())
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            raise InputError(f"'{path}' refers to another file, which is not followed")
        array: Array = onnx.numpy_helper.to_array(tensor)
    except OSError as error:
        raise InputError(f"'{path}' cannot be read: {error.strerror}") from error
    except (DecodeError, ValueError, TypeError, KeyError) as error:
        raise InputError(f"'{path}' is damaged or no ONNX tensor") from error
    return array
