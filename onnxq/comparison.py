"""Comparing any two models of one interface."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from onnxq.data import DataLike, ImageOptions, read
from onnxq.ir import ModelLike, load
from onnxq.ir.saving import constant_bytes
from onnxq.job import as_file, held_out_part, label
from onnxq.plain import as_list
from onnxq.progress import SILENT, PeakWatch, Progress
from onnxq.report.certainty import certainty
from onnxq.report.expectation import expectation
from onnxq.report.providers import providers_notes
from onnxq.runtime import as_stored
from onnxq.runtime.pool import model_room
from onnxq.runtime.providers import distinct_providers, provider_alias
from onnxq.verify import CompareOptions, Gate, Report, compare_files
from onnxq.verify.facts import peak_rss_bytes
from onnxq.verify.workload import find_workload


def compare(
    float_model: ModelLike,
    candidate: ModelLike,
    data: DataLike,
    *,
    metric: str | None = None,
    providers: Sequence[str] = ("cpu",),
    gates: Sequence[str | Gate] = (),
    threads: int = 1,
    images: ImageOptions | None = None,
    batch_size: int | None = None,
    throughput: Sequence[int] = (),
    latency: bool = True,
    latency_of: Literal["prompt", "token"] | None = None,
    samples: int | None = None,
    layers: bool = True,
    reference: bool = False,
    progress: Progress = SILENT,
) -> Report:
    """Compare a candidate with a float model on data: metric, outputs, layers, size, latency.

    Data with a split of its own is compared on its held-out part, other data as a whole. Outputs
    are held against those of the float model on onnxruntime's CPU provider, wherever the candidate
    runs. Where another provider than that is named, the report says of each how many operators it
    takes and leaves, and whether it computes what the CPU provider does.

    Args:
        float_model: The reference: path, serialized bytes or ``ModelProto``.
        candidate: The model to judge, with the same inputs and outputs.
        data: Samples, see `onnxq.data.read`.
        metric: Name of the metric; chosen by the labels if None.
        providers: Execution providers to measure on, with options as ``openvino{device_type=GPU}``.
        gates: Promises, as ``"drop<=0.01"``.
        threads: Threads inside one operator.
        images: How to read a folder of images.
        batch_size: Samples in a batch where the model leaves it open, for latency as well, which
            is that of one sample if None.
        throughput: Numbers of samples in a batch to measure throughput with.
        latency: Whether to measure latency and throughput; gates on them fail without.
        latency_of: Which latency of a decoder gates mean, that of a ``prompt`` or of one ``token``.
        samples: Use only about so many samples.
        layers: Whether to measure the error of every layer.
        reference: Whether `onnx.reference` computes some samples, too: what ONNX means, slowly.
        progress: Told of stages.

    Raises:
        InputError: a model, the data or an option cannot be used.
    """
    started = time.perf_counter()
    parsed, providers = Gate.listed(gates), as_list(providers, "providers")
    options = CompareOptions(
        metric=metric,
        providers=distinct_providers(providers),
        float_on="cpu",
        each=reference or any(provider_alias(p) != "cpu" for p in providers),
        reference=reference,
        threads=threads,
        layers=layers,
        latency=latency,
        gates=parsed,
    )
    with as_file(float_model) as (path, _), as_file(candidate) as (candidate_path, _):
        size = constant_bytes(load(path))
        load(candidate_path)
        session = as_stored(path)
        specs = session.inputs
        dataset = held_out_part(read(data, specs, batch_size=batch_size, images=images))
        if samples is not None:
            dataset = dataset.take(samples)
        workload = find_workload(
            session,
            dataset,
            batch_size=batch_size,
            latency_of=latency_of,
            throughput=throughput,
            may_run=size <= model_room(None),
        )
        del session
        watch = PeakWatch(progress, peak_rss_bytes)
        report = compare_files(
            path, candidate_path, dataset, workload, options, started=started, progress=watch
        )
    return replace(
        report,
        peak_stage=watch.peak_stage(),
        notes=(*expectation(report), *certainty(report), *providers_notes(report)),
        model=replace(report.model, path=label(float_model)),
        output=replace(report.output, path=label(candidate)),
    )
