"""Calibration: one streaming pass over the data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from onnxq.data import Dataset
from onnxq.errors import InputError
from onnxq.ir import Graph
from onnxq.observe.calibrators import Calibrator, MovingAverage, parse_calibrator
from onnxq.observe.feeding import Feeding, Progress
from onnxq.observe.observer import Observer
from onnxq.observe.ranges import Ranges
from onnxq.quant import UINT8, ZERO_POINT, Format, Scheme


def calibrate(
    graph: Graph,
    data: Dataset,
    tensors: Sequence[str],
    *,
    calibrator: str | Calibrator = "minmax",
    format: Format = UINT8,
    scheme: Scheme = ZERO_POINT,
    histograms: bool = False,
    channels: Mapping[str, int] | None = None,
    memory_limit: int | None = None,
    model_sha256: str = "",
    threads: int | None = None,
    progress: Progress | None = None,
) -> Ranges:
    """Find the ranges of some tensors of a graph by running it over data once.

    Values are handed to the tensors' observers and dropped, so memory does not grow with the
    number of samples. Tensors that got no value (empty in every batch) have no range.

    Args:
        graph: The float model.
        data: Representative samples.
        tensors: Names of the float tensors to observe.
        calibrator: How to choose the ranges: a calibrator, or its text form.
        format: Number format that calibrators choose a range for.
        scheme: Scheme that calibrators choose a range for.
        histograms: Keep histograms even where the calibrator needs none, so that others can be
            tried without running the model again.
        channels: Axes of tensors whose statistics by channel are wanted, by name.
        memory_limit: Bytes that this may take beyond plain inference. Where observing all tensors
            at a time takes more, the data is passed over several times.
        model_sha256: Hash to note in the result.
        threads: Threads inside one operator; all processors when None.
        progress: Told after every batch how far the pass is.

    Raises:
        InputError: unknown calibrator or tensor, a memory limit that is too small, or onnxruntime
            cannot run the model on the data.
    """
    chosen = parse_calibrator(calibrator) if isinstance(calibrator, str) else calibrator
    axes = channels or {}
    names = list(dict.fromkeys([*tensors, *axes]))
    for name in names:
        if name not in graph.values:
            raise InputError(f"the model has no tensor '{name}' to calibrate; check the name")
    observers = {
        name: Observer(
            histogram=histograms or chosen.needs_histogram,
            momentum=chosen.momentum if isinstance(chosen, MovingAverage) else None,
            axis=axes.get(name),
        )
        for name in names
    }
    with TemporaryDirectory(prefix="onnxq-") as folder:
        feeding = Feeding(graph, data, observers, Path(folder), threads, progress)
        samples = feeding.run(memory_limit)
    statistics = {name: o.statistics() for name, o in observers.items() if o.has_values}
    return Ranges.choose(
        statistics,
        chosen,
        samples=samples,
        model_sha256=model_sha256,
        format=format,
        scheme=scheme,
    )
