"""Files and folders by address: those of this machine, and those that fsspec knows how to reach."""

from __future__ import annotations

import hashlib
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import onnx
from google.protobuf.message import DecodeError

from onnxq.errors import InputError, UnreachableError
from onnxq.saved import cache_folder
from onnxq.scratch import scratch_folder


def is_address(place: object) -> bool:
    """Whether something is the address of a file or folder elsewhere, as ``s3://bucket/data.npz``."""
    return isinstance(place, str) and "://" in place


def at_hand(place: str, *, model: bool = False) -> Path:
    """A file or folder of this machine with what lies at an address.

    It is fetched once in each of its versions, and kept in the folder ``places`` of
    ``$ONNXQ_CACHE``, or of the user's cache folder.

    Args:
        place: The address.
        model: Whether it is a model, whose external data comes along.

    Raises:
        InputError: nothing is there, or what is needed to reach it is not installed.
    """
    system, path = _system(place)
    try:
        state = repr(sorted(_files(system, path).items()))
        name = hashlib.sha256(f"{place}\0{state}\0{model}".encode()).hexdigest()[:32]
        kept = cache_folder() / "places" / name
        whole = kept / path.rstrip("/").rpartition("/")[2]
        if not kept.is_dir():
            kept.parent.mkdir(parents=True, exist_ok=True)
            with scratch_folder(kept.parent) as folder:
                making = folder / name
                making.mkdir()
                _fetch(system, path, making / whole.name)
                if model:
                    _fetch_external(system, path, making / whole.name)
                with suppress(FileExistsError):
                    _rename(making, kept)
    except (OSError, ValueError, ImportError) as error:
        why = str(error) or type(error).__name__
        raise UnreachableError(f"cannot read '{place}': {why}") from error
    return whole


def _system(place: str) -> tuple[Any, str]:
    try:
        from fsspec.core import url_to_fs
    except ImportError as error:
        raise InputError(
            f"reading '{place}' needs the package fsspec; install it with "
            "`pip install onnxq[cluster]`"
        ) from error
    try:
        system, path = url_to_fs(place)
    except (ImportError, ValueError, OSError) as error:
        raise UnreachableError(f"cannot read '{place}': {error}") from error
    return system, str(path)


def _files(system: Any, path: str) -> dict[str, Any]:
    """What the system tells of a file, or of all in a folder: size, times, hashes.

    What it calls their key is the same for whatever is at an HTTP address, or in a folder.
    """
    # Whoever asked before may be told of what was there then.
    system.invalidate_cache()
    told: dict[str, Any] = system.info(path)
    return system.find(path, detail=True) if told["type"] == "directory" else {path: told}


def _fetch(system: Any, path: str, target: Path) -> None:
    if system.info(path)["type"] == "directory":
        system.get(path, str(target), recursive=True)
    else:
        system.get_file(path, str(target))


def _fetch_external(system: Any, path: str, target: Path) -> None:
    for location in external_data(target):
        if Path(location).name == location and location != os.pardir:
            _fetch(system, f"{path.rpartition('/')[0]}/{location}", target.parent / location)


def external_data(model: Path) -> list[str]:
    """Where a model's file says that its external data lies; nowhere if it is no model."""
    with suppress(DecodeError):
        graph = onnx.load(model, load_external_data=False).graph
        tensors = graph.initializer
        found = {e.value for t in tensors for e in t.external_data if e.key == "location"}
        return sorted(found)
    return []


def _rename(making: Path, kept: Path) -> None:
    try:
        os.rename(making, kept)
    except OSError:
        if not kept.is_dir():
            raise
