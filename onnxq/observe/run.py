"""Observing: one streaming pass over the data for all that is needed."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path

import numpy as np

from onnxq.data import Dataset
from onnxq.data.shared import shared
from onnxq.errors import InputError
from onnxq.ir import Graph
from onnxq.ir.lifting import nested_values
from onnxq.needs import (
    ChannelsOf,
    Comparison,
    GramOf,
    MovingRangeOf,
    Need,
    RangeOf,
    RowsOf,
    SamplesOf,
)
from onnxq.observe.calibrators import Calibrator, parse_calibrator
from onnxq.observe.feeding import Feeding
from onnxq.observe.gram import GramObserver
from onnxq.observe.observations import Observations, gathered, merge_observations
from onnxq.observe.observer import (
    Folding,
    Indices,
    MovingObserver,
    Observer,
    RangeObserver,
    Result,
)
from onnxq.observe.ranges import Ranges
from onnxq.observe.sampling import SampledRows, SamplesObserver
from onnxq.observe.statistics import ChannelStatistics
from onnxq.progress import SILENT, Progress
from onnxq.quant import UINT8, ZERO_POINT, Format, Scheme
from onnxq.runtime.executor import IN_PROCESS, Executor, Work
from onnxq.runtime.pool import processors
from onnxq.scratch import scratch_folder


def observe(
    graph: Graph,
    data: Dataset,
    needs: Iterable[Need],
    *,
    memory_limit: int | None = None,
    folder: str | os.PathLike[str] | None = None,
    positions: Sequence[int] | None = None,
    model_sha256: str = "",
    seed: int = 0,
    threads: int | None = None,
    executor: Executor = IN_PROCESS,
    progress: Progress = SILENT,
) -> Observations:
    """Find out what is needed of a graph's tensors by running it over data once.

    Values are handed to observers and dropped, so memory does not grow with the number of samples.
    Only what the needs ask for is computed, and the data is not read where there are none, nor
    further than needed where only its first samples are.

    Sums are those of the data's shards (`Dataset.shards`), added up in their order, so it makes no
    difference who observes which of them.

    Args:
        graph: The float model.
        data: Representative samples.
        needs: What to find out; what another need covers is found out once. A `Comparison` is
            left unanswered.
        memory_limit: Bytes that this may take beyond plain inference, and beyond results that are
            not put into a folder. Where observing all tensors at a time takes more, the data is
            passed over several times, which changes no bit but the last ones of channels' sums.
        folder: Where to put results as soon as they are found, to be memory-mapped; None keeps
            them in memory.
        positions: Rising places of the samples in the whole data, of which ``data`` is a shard;
            0, 1, ... if None.
        model_sha256: Hash to note in the result.
        seed: Which rows are drawn.
        threads: Threads inside one operator; all processors when None.
        executor: Where shards are observed.
        progress: Told of the stage ``calibrating`` and of samples.

    Raises:
        InputError: unknown tensor, one that cannot be observed as needed, a memory limit that is
            too small, or onnxruntime cannot run the model on the data.
    """
    kept = observable(graph, needs)
    if not kept:
        return Observations(0, {}, model_sha256, seed)
    shards = data.shards()
    numbers = _needed(shards, kept)
    places = np.arange(len(data)) if positions is None else np.asarray(positions, np.int64)
    if not executor.is_spread:
        work = Observing(
            *(graph, shards, kept, places, memory_limit, model_sha256, seed, threads),
            folder=None if folder is None else Path(folder),
            progress=progress,
        )
        (found,) = executor.map(work, executor.alone(numbers))
        return found
    assert executor.folder is not None
    shards = shared(data, executor.folder).shards()
    settings = (memory_limit, model_sha256, seed, threads)
    work = Observing(graph, shards, kept, places, *settings, in_files=True)
    progress.stage("calibrating", len(numbers))
    parts: list[Observations] = []
    for number, part in enumerate(executor.map(work, executor.alone(numbers)), start=1):
        # Others are observed meanwhile; what has a folder need not fit into memory.
        parts.append(part)
        if folder is None:
            parts = [merge_observations(parts)]
        progress.advance(number)
    return merge_observations(parts, folder)


def observable(graph: Graph, needs: Iterable[Need]) -> list[Need]:
    """What has to be found out to answer needs, of which a `Comparison` is not answered.

    Raises:
        InputError: the graph has no such tensor.
    """
    wanted = dict.fromkeys(need for need in needs if not isinstance(need, Comparison))
    alike: dict[str, list[Need]] = {}
    for need in wanted:
        alike.setdefault(need.tensor, []).append(need)
    kept = [n for n in wanted if not any(o != n and o.covers(n) for o in alike[n.tensor])]
    known = nested_values(graph)
    for need in kept:
        if need.tensor not in known:
            raise InputError(f"the model has no tensor '{need.tensor}' to observe; check the name")
    return kept


@dataclass(frozen=True)
class Observing(Work[Sequence[int], Observations]):
    """Observes some of the shards of data.

    Attributes:
        graph: The float model.
        shards: All shards.
        needs: What to find out.
        positions: Places of all samples in the whole data.
        memory_limit: As of `observe`.
        model_sha256: As of `observe`.
        seed: As of `observe`.
        threads: As of `observe`.
        folder: As of `observe`.
        in_files: Whether to put results without a folder into files until the next are wanted.
        progress: As of `observe`.
    """

    graph: Graph
    shards: Sequence[Dataset]
    needs: Sequence[Need]
    positions: Indices
    memory_limit: int | None
    model_sha256: str
    seed: int
    threads: int | None
    folder: Path | None = field(default=None, compare=False)
    in_files: bool = field(default=False, compare=False)
    progress: Progress = field(default=SILENT, compare=False)

    @contextmanager
    def open(self) -> Iterator[Callable[[Sequence[int]], Observations]]:
        """See `Work`."""
        with scratch_folder() as folder:
            scratch = folder / "shards"
            feeding = Feeding(
                self.graph,
                self.shards,
                [*dict.fromkeys(need.tensor for need in self.needs)],
                self.positions,
                folder,
                self.threads or processors(),
                self.progress,
            )

            def observe_shards(chosen: Sequence[int]) -> Observations:
                shutil.rmtree(scratch, ignore_errors=True)
                scratch.mkdir(exist_ok=True)
                return self._observe(feeding, scratch, chosen)

            yield observe_shards

    def _observe(self, feeding: Feeding, scratch: Path, chosen: Sequence[int]) -> Observations:
        observers: dict[str, dict[Need, Observer]] = {}
        for number, need in enumerate(self.needs):
            observer = _observer(need, self.seed, scratch / f"samples-{number}")
            observers.setdefault(need.tensor, {})[need] = observer
        shown = {tensor: list(of.values()) for tensor, of in observers.items()}

        def found() -> Iterator[tuple[Need, Result]]:
            for names in feeding.run(chosen, shown, self.memory_limit):
                for tensor in names:
                    # Nothing holds them any longer: the next tensors' observers take the memory.
                    del shown[tensor]
                    yield from _results(observers.pop(tensor))

        return gathered(
            found(),
            lambda results: Observations(feeding.samples, results, self.model_sha256, self.seed),
            scratch / "found" if self.in_files else self.folder,
        )


def _needed(shards: Sequence[Dataset], needs: Sequence[Need]) -> list[int]:
    """Numbers of the shards that have to be read: the first ones where first samples are wanted."""
    count = max((n.count for n in needs if isinstance(n, SamplesOf)), default=0)
    if not all(isinstance(need, SamplesOf) for need in needs):
        return [*range(len(shards))]
    ends = accumulate(map(len, shards))
    return [number for number, end in enumerate(ends) if end - len(shards[number]) < count]


def calibrate(
    graph: Graph,
    data: Dataset,
    tensors: Sequence[str],
    *,
    calibrator: str | Calibrator = "minmax",
    format: Format = UINT8,
    scheme: Scheme = ZERO_POINT,
    histograms: bool = False,
    memory_limit: int | None = None,
    model_sha256: str = "",
    threads: int | None = None,
    executor: Executor = IN_PROCESS,
    progress: Progress = SILENT,
) -> Ranges:
    """Find the ranges of some tensors of a graph by running it over data once.

    Tensors that got no value (empty in every batch) have no range.

    Args:
        graph: The float model.
        data: Representative samples.
        tensors: Names of the float tensors to observe.
        calibrator: How to choose the ranges: a calibrator, or its text form.
        format: Number format that calibrators choose a range for.
        scheme: Scheme that calibrators choose a range for.
        histograms: Keep histograms even where the calibrator needs none, so that others can be
            tried without running the model again.
        memory_limit: As of `observe`.
        model_sha256: Hash to note in the result.
        threads: Threads inside one operator; all processors when None.
        executor: As of `observe`.
        progress: As of `observe`.

    Raises:
        InputError: unknown calibrator, or what `observe` raises.
    """
    chosen = parse_calibrator(calibrator) if isinstance(calibrator, str) else calibrator
    needs = [need for name in tensors for need in chosen.needs(name)]
    if histograms:
        needs += [RangeOf(name, histogram=True) for name in tensors]
    seen = observe(
        graph,
        data,
        needs,
        memory_limit=memory_limit,
        model_sha256=model_sha256,
        threads=threads,
        executor=executor,
        progress=progress,
    )
    return Ranges.choose(
        seen.statistics(),
        chosen,
        samples=seen.samples,
        model_sha256=model_sha256,
        format=format,
        scheme=scheme,
    )


def _results(observers: dict[Need, Observer]) -> Iterator[tuple[Need, Result]]:
    for need in [*observers]:
        result = observers.pop(need).result()
        if result is not None:
            yield need, result


def _observer(need: Need, seed: int, path: Path) -> Observer:
    match need:
        case RangeOf():
            return RangeObserver(need.histogram)
        case MovingRangeOf():
            return MovingObserver(need.momentum)
        case ChannelsOf():
            # A copy of the values is made for their magnitudes.
            return Folding(
                lambda values, _: ChannelStatistics.of(values, need.axis),
                lambda shape: 4 * math.prod(shape),
            )
        case GramOf():
            return GramObserver(need.windows)
        case RowsOf():
            # Rows so far, those of a batch and of both, and hashes of all rows of a batch.
            return Folding(
                lambda values, samples: SampledRows.of(values, samples, need.count, seed),
                lambda shape: 16 * need.count * max((*shape[-1:], 1)) + 64 * math.prod(shape[:-1]),
            )
        case SamplesOf():
            return SamplesObserver(need.count, path)
    raise TypeError(f"there is no observer for {need}")
