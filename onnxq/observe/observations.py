"""What was seen of a model's tensors: plain data, and a folder that keeps it."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from itertools import starmap
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np

from onnxq.errors import InputError
from onnxq.ir.saving import replacing
from onnxq.needs import (
    ChannelsOf,
    CrossGramOf,
    DifferenceOf,
    GramOf,
    MovingRangeOf,
    Need,
    RangeOf,
    RowsOf,
    SamplesOf,
)
from onnxq.observe.gram import GramMatrix
from onnxq.observe.observer import BatchEnds, Result
from onnxq.observe.sampling import SampledRows, SampledValues
from onnxq.observe.statistics import ChannelStatistics, Statistics
from onnxq.plain import finite, read, to_plain
from onnxq.runtime.specs import Array
from onnxq.saved import read_text, write_text

_SCHEMA, _FACTS, _ARRAYS = "onnxq/observations/1", "observations.json", "arrays.bin"
_ALIGNMENT = 64
_ANSWERS: dict[type[Need], type[Any]] = {
    RangeOf: Statistics,
    MovingRangeOf: BatchEnds,
    ChannelsOf: ChannelStatistics,
    GramOf: GramMatrix,
    CrossGramOf: GramMatrix,
    DifferenceOf: ChannelStatistics,
    RowsOf: SampledRows,
    SamplesOf: SampledValues,
}
_KINDS = {kind.__name__: kind for kind in _ANSWERS}


@dataclass(frozen=True)
class Observations:
    """Answers to needs.

    Attributes:
        samples: Number of samples fed.
        results: What was found out; a need whose tensor had no value is not in it.
        model_sha256: Hash of the model whose tensors these are.
        seed: What the rows were drawn by.
    """

    samples: int = 0
    results: Mapping[Need, Result] = field(default_factory=dict)
    model_sha256: str = ""
    seed: int = 0

    def get(self, need: Need) -> Any:
        """What answers a need, or None where it was not observed, or the tensor had no value.

        `Statistics` answer a `RangeOf`, and so on, `BatchEnds`, `ChannelStatistics`, `GramMatrix`,
        `SampledRows` and `SampledValues`; they may hold more than was asked for, as further rows.
        """
        if need in self.results:
            return self.results[need]
        return next((found for known, found in self.results.items() if known.covers(need)), None)

    def statistics(self) -> dict[str, Statistics]:
        """What `RangeOf` and `MovingRangeOf` found out, by tensor."""
        moving = {
            need.tensor: found.moving()
            for need, found in self.results.items()
            if isinstance(found, BatchEnds)
        }
        return {
            need.tensor: replace(found, moving=moving.get(need.tensor))
            for need, found in self.results.items()
            if isinstance(found, Statistics)
        }

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write a folder, making it where it is missing.

        Raises:
            InputError: it cannot be written.
        """
        gathered(self.results.items(), lambda results: replace(self, results=results), folder)

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> Observations:
        """Read a folder; arrays stay on disk, memory-mapped, until they are used.

        Raises:
            InputError: it is missing or holds no observations.
        """
        text = read_text(Path(folder) / _FACTS, "the observations")
        try:
            body = json.loads(text)
            read(Literal[_SCHEMA], body["schema"], "it", "schema")
            arrays = Path(folder) / _ARRAYS
            # One map for all, as every one takes a file descriptor; nothing cannot be mapped.
            some = arrays.stat().st_size > 0
            stored = np.memmap(arrays, np.uint8, "r") if some else np.zeros(0, np.uint8)
            results = dict(_read(entry, stored) for entry in body["results"])
            return cls(int(body["samples"]), results, body["model_sha256"], int(body["seed"]))
        except (InputError, ArithmeticError, LookupError, ValueError, TypeError, OSError) as error:
            raise InputError(
                f"'{folder}' holds no observations that onnxq wrote ({error}); observe again"
            ) from error


def merge_observations(
    shards: Sequence[Observations], folder: str | os.PathLike[str] | None = None
) -> Observations:
    """What one pass over all shards' samples would have found out.

    Bit for bit where the shards are those of `Dataset.shards` in their order. Another order changes
    only the moving average and, in their last digits, the sums of channels and of Gram matrices.

    Args:
        shards: Observations of the same needs on different samples.
        folder: Where to put the result, need by need, so that it need not fit into memory.

    Raises:
        InputError: there is no shard, or they are of different models, seeds or shapes.
    """
    if not shards:
        raise InputError("there are no observations to merge")
    first = shards[0]
    if any((s.model_sha256, s.seed) != (first.model_sha256, first.seed) for s in shards):
        raise InputError("observations of different models or seeds cannot be merged")
    whole = replace(first, samples=sum(s.samples for s in shards))
    needs = dict.fromkeys(need for shard in shards for need in shard.results)
    merged = ((need, _merged(need, shards)) for need in needs)
    return gathered(merged, lambda results: replace(whole, results=results), folder)


def _merged(need: Need, shards: Iterable[Observations]) -> Result:
    first, *others = (s.results[need] for s in shards if need in s.results)
    try:
        for other in others:
            first = first.merge(other)
    except ValueError as error:
        raise InputError(
            f"the observations of '{need.tensor}' cannot be merged: {error}"
        ) from error
    return first


def gathered(
    found: Iterable[tuple[Need, Result]],
    make: Callable[[Mapping[Need, Result]], Observations],
    folder: str | os.PathLike[str] | None,
) -> Observations:
    """Observations of results that are found one by one.

    Args:
        found: The results.
        make: Puts results together, called when all are found.
        folder: Where to write each when it is found, to hand them back memory-mapped; None keeps
            them in memory.

    Raises:
        InputError: they cannot be written.
    """
    if folder is None:
        return make(dict(found))
    facts, arrays = Path(folder) / _FACTS, Path(folder) / _ARRAYS
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"the folder '{folder}' cannot be made: {error.strerror}") from error
    with replacing(arrays) as file:
        # In this form no result outlives its turn.
        entries = [*starmap(partial(_written, file), found)]
        # What was there before would describe other arrays.
        facts.unlink(missing_ok=True)
    whole = make({})
    body = {
        "schema": _SCHEMA,
        "model_sha256": whole.model_sha256,
        "samples": whole.samples,
        "seed": whole.seed,
        "results": entries,
    }
    write_text(facts, json.dumps(body, indent=1) + "\n")
    return Observations.load(folder)


def _written(file: BinaryIO, need: Need, result: Result) -> dict[str, Any]:
    body = to_plain(result).items()
    kept = {k: _stored(file, v) if isinstance(v, np.ndarray) else v for k, v in body}
    return {"need": {"kind": type(need).__name__, **asdict(need)}, "result": finite(kept)}


def _stored(file: BinaryIO, array: Array) -> dict[str, Any]:
    file.write(bytes(-file.tell() % _ALIGNMENT))
    start = file.tell()
    np.ascontiguousarray(array).tofile(file)
    return {"start": start, "shape": array.shape, "dtype": array.dtype.str}


def _read(entry: Mapping[str, Any], stored: Array) -> tuple[Need, Result]:
    asked = dict(entry["need"])
    kind = _KINDS[asked.pop("kind")]
    need, answer, body = read(kind, asked, "a need"), _ANSWERS[kind], entry["result"]
    if answer in (Statistics, BatchEnds):
        return need, read(answer, body, f"what was seen of '{need.tensor}'")
    values = {k: _mapped(stored, v) if isinstance(v, dict) else v for k, v in body.items()}
    return need, answer(**values)


def _mapped(stored: Array, where: Mapping[str, Any]) -> Array:
    dtype, shape, start = np.dtype(where["dtype"]), where["shape"], where["start"]
    part = stored[start : start + math.prod(shape) * dtype.itemsize]
    return np.asarray(part.view(dtype).reshape(shape))
