"""Calibration: one streaming pass over the data."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

import numpy as np

from onnxq.calibrate.observer import OBSERVERS
from onnxq.calibrate.ranges import Ranges
from onnxq.data import Dataset
from onnxq.errors import InputError
from onnxq.ir import Graph, to_proto
from onnxq.runtime import Session

Progress = Callable[[int, int], None]
"""Called with the samples done and the samples in all."""


def calibrate(
    graph: Graph,
    data: Dataset,
    tensors: Sequence[str],
    *,
    calibrator: str = "minmax",
    model_sha256: str = "",
    threads: int | None = None,
    progress: Progress | None = None,
) -> Ranges:
    """Find the ranges of some tensors of a graph by running it over data once.

    Each batch's values are handed to the tensors' observers and dropped, so memory does not grow
    with the number of samples. Tensors that got no value (empty in every batch) have no range.

    Args:
        graph: The float model.
        data: Representative samples.
        tensors: Names of the float tensors to observe.
        calibrator: Name of an entry of `OBSERVERS`.
        model_sha256: Hash to note in the result.
        threads: Threads inside one operator; all processors when None.
        progress: Told after every batch how far the pass is.

    Raises:
        InputError: unknown calibrator or tensor, or onnxruntime cannot run the model on the data.
    """
    if calibrator not in OBSERVERS:
        raise InputError(
            f"there is no calibrator '{calibrator}'; available: {', '.join(OBSERVERS)}"
        )
    for name in tensors:
        if name not in graph.values:
            raise InputError(f"the model has no tensor '{name}' to calibrate; check the name")
    observers = {name: OBSERVERS[calibrator]() for name in dict.fromkeys(tensors)}
    # Inputs with a default value are not fed; they are given out like any other tensor.
    fed = [n for n in observers if graph.values[n].is_input and graph.values[n].data is None]
    made = [name for name in observers if name not in fed]
    session = Session(to_proto(_with_outputs(graph, made)), threads=threads or os.cpu_count() or 1)
    done = 0
    for batch in data.batches():
        results = session.run(batch.feeds, made) if made else {}
        for name, observer in observers.items():
            # The padding of a last batch repeats a real sample: it widens no range.
            values = batch.feeds[name] if name in fed else results[name]
            observer.add(np.asarray(values))
        done += batch.valid
        if progress is not None:
            progress(done, len(data))
    ranges = {}
    for name, observer in observers.items():
        try:
            ranges[name] = observer.range()
        except ValueError:
            continue
    return Ranges(model_sha256, calibrator, done, ranges)


def _with_outputs(graph: Graph, names: Sequence[str]) -> Graph:
    observed = graph.copy()
    for name in names:
        value = observed.values[name]
        if not value.is_output:
            observed.add_output(value)
    return observed
