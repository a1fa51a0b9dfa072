"""What an adaptive session would see and do on samples in a row."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar

from onnxq.adaptive.bundle import Bundle
from onnxq.adaptive.parts import default_parts
from onnxq.adaptive.replay import Replay, Rules, Stretch, replay
from onnxq.data import DataLike, ImageOptions, read
from onnxq.job import held_out_part
from onnxq.progress import SILENT, Progress
from onnxq.runtime import as_stored
from onnxq.saved import SavedAsJson
from onnxq.verify.facts import versions
from onnxq.verify.metrics import Metric, choose_metric


@dataclass(frozen=True)
class Watch(SavedAsJson):
    """What was seen and done on a stream of samples.

    Attributes:
        bundle: Folder of the bundle.
        data: Where the samples come from.
        rules: How it was watched.
        adaptive: What was seen and done.
        versions: What it was found with, by name.
    """

    schema: ClassVar[str] = "onnxq/watch/1"
    what: ClassVar[str] = "watch"
    remedy: ClassVar[str] = "make it again with `onnxq watch`"

    bundle: str
    data: str
    rules: Rules
    adaptive: Replay
    versions: Mapping[str, str]


def watch(
    bundle: str | os.PathLike[str] | Bundle,
    data: DataLike,
    rules: Rules | None = None,
    *,
    metric: str | None = None,
    images: ImageOptions | None = None,
    progress: Progress = SILENT,
    tell: Callable[[Stretch], None] = lambda stretch: None,
) -> Watch:
    """Replay samples in their order to an adaptive session, and tell what it sees and does.

    The bundle stays as it is. The same samples and rules give the same result.

    Args:
        bundle: What `onnxq optimize --adaptive` wrote.
        data: Samples, see `onnxq.data.read`; of data with a split of its own the held-out part.
        rules: How the session watches.
        metric: Name of the metric of what is answered; chosen by the labels if None.
        images: How to read a folder of images.
        progress: Told of stages.
        tell: Given every stretch of requests when it is over.

    Raises:
        InputError: the bundle, the data or an option cannot be used.
    """
    opened = bundle if isinstance(bundle, Bundle) else Bundle.load(bundle)
    rules = rules or Rules()
    session = as_stored(opened.model(opened.facts.chosen))
    specs, outputs = session.inputs, session.outputs
    del session
    samples = held_out_part(read(data, specs, images=images)).in_parts(1, specs)

    def measuring() -> Metric | None:
        return choose_metric(metric, samples.has_labels, samples.labels_ndim, outputs)

    found = replay(
        opened,
        samples,
        rules,
        default_parts(rules.seed, rules.false_alarms_per_day),
        measuring,
        progress=progress,
        tell=tell,
    )
    named = os.fspath(data) if isinstance(data, str | os.PathLike) else samples.source
    return Watch(str(opened.folder), named, rules, found, versions())
