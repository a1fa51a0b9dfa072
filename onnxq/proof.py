"""Verifying the candidates of a job against its float model."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

from onnxq.ir import PassRecord
from onnxq.job import Job
from onnxq.runtime.session import told_as
from onnxq.verify import CompareOptions, Report, compare_files

_SECONDS, _BRIEFLY = 3.0, 0.5
"""Time to spend on latency; less of it on that of the float model alone."""


def verify(
    job: Job, path: Path, records: Sequence[PassRecord] = (), *, full: bool = True
) -> Report:
    """What a candidate is worth on the held-out data, without gates.

    Where the target's provider is not installed, accuracy is that on the CPU provider, and a note
    says that latency was not measured.

    Args:
        job: The job.
        path: The candidate's file; the float model's own for the baseline.
        records: What the passes that made it did.
        full: Whether to measure the error of every layer and latency, too, and to count operators.

    Raises:
        InputError: onnxruntime cannot run the candidate, or data and metric do not fit.
    """
    missing, is_float = job.missing_provider(), path == job.path
    assert job.held_out is not None
    naming = nullcontext() if is_float else told_as(path, "the model that the recipe makes")
    with naming:
        report = compare_files(
            job.path,
            path,
            job.held_out,
            job.workload,
            CompareOptions(
                metric=job.options.metric,
                backend=job.target.backend,
                providers=("cpu" if missing else job.provider,),
                threads=job.options.threads,
                layers=full and not is_float,
                latency=full and not missing,
                latency_seconds=_BRIEFLY if is_float else _SECONDS,
                operators=full,
            ),
            passes=records,
            reference=job.reference,
            progress=job.progress,
        )
    if not missing or not full:
        return report
    note = (
        f"Verified on the CPU provider. Latency on target {job.target.name} was not measured: "
        f"{missing}; `onnxq compare --provider {job.target.provider}` does it there."
    )
    return replace(report, notes=(note,))
