"""What latency and throughput are measured with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from onnxq.data import Batch, Dataset
from onnxq.errors import InputError
from onnxq.runtime.specs import Runnable, TensorSpec
from onnxq.verify.decoder import decoder_feeds


@dataclass(frozen=True)
class Workload:
    """What a deployed model is fed with.

    Attributes:
        one: The feed whose latency promises and searches mean.
        of: What that is of a decoder, ``prompt`` or ``token``; empty for other models.
        others: Feeds whose latency is measured as well, by what they are.
        throughput: Feeds of several samples whose throughput is measured.
    """

    one: Batch
    of: str = ""
    others: Mapping[str, Batch] = field(default_factory=dict)
    throughput: Sequence[Batch] = ()


def find_workload(
    session: Runnable,
    data: Dataset,
    *,
    batch_size: int | None = None,
    latency_of: str | None = None,
    throughput: Sequence[int] = (),
    may_run: bool = True,
) -> Workload:
    """What to measure a model with, by the first samples of its data.

    Args:
        session: The float model.
        data: Samples.
        batch_size: Samples that are fed at a time in deployment; 1 if None.
        latency_of: ``prompt`` or ``token``: which latency of a decoder counts; ``prompt`` if None.
        throughput: Numbers of samples to measure throughput with.
        may_run: Whether memory allows to run the model, without which a decoder is not known.

    Raises:
        InputError: the model's batch is fixed, or it is no decoder, where one is asked for.
    """
    first = next(data.batches())
    if throughput and not first.is_divisible(session.inputs):
        raise InputError(
            f"throughput over batches of {', '.join(map(str, throughput))} cannot be measured: the "
            f"model or the data has batches of {first.size} only; leave --throughput out"
        )
    one = single_feed(data, session.inputs, batch_size or 1)
    found = decoder_feeds(session, one.feeds) if may_run else {}
    if latency_of and not may_run:
        raise InputError(
            f"the latency of a {latency_of} cannot be measured: the model is too large for the "
            "memory there is; raise --memory-limit, or leave --latency-of out"
        )
    if latency_of and not found:
        raise InputError(
            f"only a decoder that takes any number of tokens has a latency of its {latency_of}: "
            "this model is none, or the data has one token a sample; leave --latency-of out"
        )
    feeds = {what: Batch(fed, None, one.valid, one.size) for what, fed in found.items()}
    of = latency_of or next(iter(feeds), "")
    return Workload(
        feeds.pop(of) if of else one, of, feeds, tuple(_of_size(first, n) for n in throughput)
    )


def single_feed(data: Dataset, inputs: Sequence[TensorSpec], size: int = 1) -> Batch:
    """The first so many samples where the model leaves the batch open, else the first batch.

    Where the first batch has fewer, they are fed over again.
    """
    first = next(data.batches())
    return _of_size(first, size) if first.is_divisible(inputs) else first


def _of_size(batch: Batch, size: int) -> Batch:
    """So many samples of a divisible batch, over again where there are fewer."""
    places = np.arange(size) % batch.size
    return Batch({name: array[places] for name, array in batch.feeds.items()}, None, size, size)
