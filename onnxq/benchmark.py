"""Latency of several models measured against each other."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from onnxq.data import Batch, DataLike, read
from onnxq.errors import InputError
from onnxq.ir import load
from onnxq.progress import SILENT, Progress
from onnxq.runtime import ErrorAccumulator, TensorSpec, load_backend
from onnxq.runtime.providers import distinct_providers
from onnxq.verify.facts import model_bytes
from onnxq.verify.workload import single_feed

NATIVE = "onnxruntime"
"""The backend that others are held against."""

OPEN_DIMENSION = 16
"""Size that random inputs have where the model leaves a dimension other than the first open."""


@dataclass(frozen=True)
class BenchRow:
    """One model on one provider; ``speedup`` is the first model's time over this one's.

    ``low`` and ``high`` are the ends of its 95 % interval.

    ``sqnr_db`` is of the outputs, against those of the same model in onnxruntime on the CPU
    provider, where another backend ran it: the least of all outputs. ``batch`` is the samples that
    were fed at a time.
    """

    model: str
    provider: str
    median_ms: float
    p10_ms: float
    p90_ms: float
    speedup: float
    runs: int
    bytes: int
    low: float = 0.0
    high: float = math.inf
    sqnr_db: float | None = None
    batch: int = 1


def bench(
    models: Sequence[str | os.PathLike[str]],
    *,
    data: DataLike | None = None,
    providers: Sequence[str] = ("cpu",),
    backend: str = NATIVE,
    threads: int = 1,
    seconds: float = 3.0,
    batch_size: int = 1,
    seed: int = 0,
    progress: Progress = SILENT,
) -> list[BenchRow]:
    """Measure the latency of models in turn, so that drifts of the machine cancel in the ratios.

    Args:
        models: Paths; the first is what the others are compared with.
        data: Samples, of which the first are fed, over again where there are fewer than
            ``batch_size``; random inputs if None.
        providers: Execution providers to measure on, with options as ``openvino{device_type=GPU}``.
        backend: What runs the models.
        threads: Threads inside one operator.
        seconds: Time to spend on each provider.
        batch_size: Samples in a batch where the model leaves it open.
        seed: Chooses the random inputs.
        progress: Told of stages.

    Raises:
        InputError: a model or the data cannot be used.
    """
    paths = [Path(m) for m in models]
    sizes = [model_bytes(load(path), path) for path in paths]
    known: dict[tuple[TensorSpec, ...], Batch] = {}
    rows: list[BenchRow] = []
    with contextlib.closing(load_backend(backend)) as runs:
        for provider in distinct_providers(providers):
            progress.stage(f"measuring latency on {provider}")
            sessions = [runs.session(path, provider=provider, threads=threads) for path in paths]
            for session in sessions:
                # Models of one interface get the same feed; data may be readable only once.
                if session.inputs in known:
                    continue
                known[session.inputs] = (
                    _random_batch(session.inputs, batch_size, seed)
                    if data is None
                    else single_feed(
                        read(data, session.inputs, batch_size=batch_size),
                        session.inputs,
                        batch_size,
                    )
                )
            batches = [known[session.inputs] for session in sessions]
            feeds = [batch.feeds for batch in batches]
            found = []
            for session, fed, path in zip(sessions, feeds, paths, strict=True):
                try:
                    found.append(session.run(fed))
                except InputError as error:
                    if data is not None:
                        raise
                    raise InputError(
                        f"'{path}' cannot be run on random inputs ({error}); give samples with "
                        "--data"
                    ) from error
            agreements = [
                None if backend == NATIVE else _sqnr_db(path, fed, outputs)
                for path, fed, outputs in zip(paths, feeds, found, strict=True)
            ]
            timings = runs.time(sessions, feeds, seconds=seconds)
            rows += [
                BenchRow(
                    str(path),
                    provider,
                    **vars(timing),
                    bytes=size,
                    sqnr_db=agreement,
                    batch=batch.size,
                )
                for path, size, timing, agreement, batch in zip(
                    paths, sizes, timings, agreements, batches, strict=True
                )
            ]
    progress.finish()
    return rows


def _random_batch(inputs: Sequence[TensorSpec], batch_size: int, seed: int) -> Batch:
    feeds = random_feeds(inputs, batch_size=batch_size, seed=seed)
    size = next((len(array) for array in feeds.values() if array.ndim), 1)
    return Batch(feeds, None, size, size)


def _sqnr_db(
    path: Path, feeds: Mapping[str, np.ndarray], outputs: Mapping[str, np.ndarray]
) -> float:
    errors = ErrorAccumulator()
    errors.add(load_backend(NATIVE).session(path).run(feeds), outputs)
    return min((error.sqnr_db for error in errors.result()), default=math.inf)


def random_feeds(
    specs: Sequence[TensorSpec], *, batch_size: int = 1, seed: int = 0
) -> dict[str, np.ndarray]:
    """Random arrays for a model's inputs: normal floats, integers 0 to 9, random booleans.

    An open first dimension gets ``batch_size``, any other open one `OPEN_DIMENSION`.

    Raises:
        InputError: an input is no tensor of numbers, not even its rank is known, or it is larger
            than the memory.
    """
    generator = np.random.default_rng(seed)
    feeds = {}
    for spec in specs:
        if spec.dtype is None or spec.shape is None or spec.dtype.kind in "OUS":
            raise InputError(
                f"there are no random values for the input {spec}; give samples with --data"
            )
        shape = [
            d if isinstance(d, int) else (batch_size if axis == 0 else OPEN_DIMENSION)
            for axis, d in enumerate(spec.shape)
        ]
        try:
            feeds[spec.name] = _random(generator, spec.dtype, shape)
        except (MemoryError, ValueError) as error:
            raise InputError(f"there is no memory for an input {spec} of shape {shape}") from error
    return feeds


def _random(
    generator: np.random.Generator, dtype: np.dtype[Any], shape: Sequence[int]
) -> np.ndarray:
    if dtype.kind in "iub":
        return np.asarray(generator.integers(0, 2 if dtype.kind == "b" else 10, shape)).astype(
            dtype
        )
    return np.asarray(generator.standard_normal(shape)).astype(dtype)
