"""Training: a float model and data in, a quantized model with learned numbers and its proof out."""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from onnxq.data import DataLike
from onnxq.errors import InputError
from onnxq.found import Found
from onnxq.ir import ModelLike, infer_types
from onnxq.job import Job
from onnxq.optimization import Optimized, made, proven
from onnxq.options import Options
from onnxq.precision import parse_precision
from onnxq.precision.int8 import Int8
from onnxq.precision.static_bits import StaticBits
from onnxq.prepare import observed, prepare
from onnxq.progress import SILENT, Progress
from onnxq.study import apply_to, uniform_plan
from onnxq.tune.training import TrainOptions, rate
from onnxq.verify.decisions import find_decisions
from onnxq.work import data_digest

BITS = "w8a8 (2 to 8 bits of weights, 1 to 8 of activations), ternary, binary, ternary-a4"
"""How bits of weights and activations are said."""

_BITS = re.compile(r"(?:w([2-8])|(ternary|binary))-?(?:a([1-8]))?")

_NOTHING_BETTER = (
    "No epoch was better on held-out data than the model before training, which was kept: train "
    "on more samples, for more epochs, or with another --lr."
)


def train(
    model: ModelLike,
    data: DataLike,
    bits: str = "w8a8",
    options: Options | None = None,
    training: TrainOptions | None = None,
    *,
    folder: str | os.PathLike[str] | None = None,
    output: str | os.PathLike[str] | None = None,
    plan_output: str | os.PathLike[str] | None = None,
    eval_data: DataLike | None = None,
    keep_failed: bool = False,
    progress: Progress = SILENT,
    **changes: Any,
) -> Optimized:
    """Quantize a float model, train what is quantized, and prove the result against the float one.

    The model is rewritten, observed and quantized as `onnxq.optimization.optimize` does with one
    precision for all nodes, and then weights, biases and steps are trained in the places of the
    model's QuantizeLinear/DequantizeLinear pairs. The plan holds what was learned: applied to the
    float model, it makes the same bytes again.

    Args:
        model: Path, serialized bytes or ``ModelProto`` of the float model.
        data: Samples to train on, see `onnxq.data.read`; of data with a split of its own the part
            for calibration. With `TrainOptions.loss` ``distill`` labels are not needed.
        bits: Of weights and activations, see `BITS`.
        options: How the model is rewritten, observed and judged; its recipe is that of ``bits``.
        training: How to train.
        folder: Keeps checkpoints and a log; a training that was broken off goes on from there, to
            the same result.
        output: Where to write the model; nothing is written without it, or when a promise broke.
        plan_output: Where to write the plan, on the same conditions.
        eval_data: Held-out samples; a part of ``data`` if None.
        keep_failed: Write even when a promise broke.
        progress: Told of stages and epochs.
        **changes: Single fields of `TrainOptions` and `Options`, as ``epochs=20``; ``seed`` is for
            both.

    Raises:
        InputError: torch is not installed, the model has an operator without gradients, the data,
            the labels or an option cannot be used, or the loss is not finite.
    """
    own = {field.name for field in fields(TrainOptions)}
    how = {name: value for name, value in changes.items() if name in own}
    rest = {name: value for name, value in changes.items() if name not in own or name == "seed"}
    settings = replace(training or TrainOptions(), **how)
    settings.check()
    asked = replace(options or Options(), **rest)
    precision = precision_of(bits)
    if not settings.lr:
        settings = replace(settings, lr=rate(_weight_bits(precision)))
    begin = _beginning(precision)
    begin["calibrator"] = asked.calibrator or begin.get("calibrator")
    asked = replace(asked, recipe=precision, **begin)
    kept = None if folder is None else Path(folder)

    def make(job: Job) -> Found:
        # Says without torch what to install.
        from onnxq.tune.train.checkpoints import Checkpoints
        from onnxq.tune.train.fitting import Lesson
        from onnxq.tune.train.norms import normalized, restorable

        norms = normalized(job.source) if settings.batch_norm == "live" else ()
        prepared = prepare(job)
        if settings.batch_norm == "restored":
            norms = restorable(prepared.graph)
        lesson = Lesson(prepared.graph, job.training, settings)
        basis = dict[str, str]()
        if kept is not None:
            basis = {"model": job.sha256, "data": data_digest(job.training)}
            # Of another training, as far as can be told before what takes time?
            Checkpoints(kept, {**lesson.options.basis(), **basis}).load()
        prepared = observed(prepared)
        plan = uniform_plan(prepared, job.recipe.precision)
        if kept is not None:
            basis["plan"] = hashlib.sha256(plan.to_toml().encode()).hexdigest()
        quantized, _ = apply_to(replace(prepared, job=_unfinished(job)), plan, job.context)
        infer_types(quantized)
        outputs = lesson.teacher.evaluate(lesson.first.feeds)
        fitted = lesson.fit(
            quantized,
            prepared.placed,
            job.target,
            plan.precisions(),
            plan.tuned,
            find_decisions(job.source, outputs, is_asked=job.training.has_labels),
            norms,
            kept,
            basis,
            job.progress,
        )
        nodes = tuple(
            replace(node, method=settings.method) if node.name in fitted.tensors else node
            for node in plan.nodes
        )
        ranges = {**plan.ranges, **fitted.ranges}
        tuned = {**plan.tuned, **fitted.tensors}
        found = proven(prepared, replace(plan, nodes=nodes, ranges=ranges, tuned=tuned))
        notes = found.report.notes
        if precision != Int8.name:
            notes = (*notes, _trained_in(bits))
        if norms:
            notes = (*notes, _lived(settings.batch_norm, fitted.norms, len(norms)))
        if not fitted.facts.best:
            notes = (*notes, _NOTHING_BETTER)
        return replace(found, report=replace(found.report, training=fitted.facts, notes=notes))

    return made(
        make,
        *(model, data, asked),
        output=output,
        plan_output=plan_output,
        eval_data=eval_data,
        keep_failed=keep_failed,
        progress=progress,
    )


def precision_of(bits: str) -> str:
    """The precision of all layers but the first and the last, which have 8 bits.

    Args:
        bits: ``w4a4``, ``ternary``, ``binary-a1``; activations have 8 bits if nothing is said.

    Raises:
        InputError: there are no such bits.
    """
    found = _BITS.fullmatch(bits)
    if found is None:
        raise InputError(f"training knows no bits '{bits}'; use one of {BITS}")
    weight, values, activation = found.groups()
    if (weight, activation or "8") == ("8", "8"):
        return Int8.name
    return str(StaticBits(values or f"int{weight}", int(activation or 8)))


def _weight_bits(precision: str) -> float:
    wanted = parse_precision(precision)
    if not isinstance(wanted, StaticBits):
        return wanted.weight_bits
    return float(wanted.weight.removeprefix("int")) if wanted.weight[-1].isdigit() else 1


def _beginning(precision: str) -> dict[str, Any]:
    """How weights and ranges are found that training begins with, as far as nothing is said.

    In few bits the largest number is a bad end of a range, and scales of least squared error are a
    far worse beginning than gptq: `digits_resnet` in 2 bits begins at 11.6 % of right digits by
    these, and at 98.9 % by gptq.
    """
    wanted = parse_precision(precision)
    found: dict[str, Any] = {"methods": "none"}
    if isinstance(wanted, StaticBits):
        found["methods"] = ("gptq", "mse")
        if wanted.activation < 8:
            found["calibrator"] = "mse"
    return found


def _trained_in(bits: str) -> str:
    """What a report says of few bits: kernels compute on bytes, by which operators are counted."""
    return (
        f"Trained in {bits}, with 8 bits in the first and the last layer and in what is no "
        "product; kernels for 8 bits compute it, so that it counts as int8."
    )


def _lived(batch_norm: str, count: int, wanted: int) -> str:
    """What a report says of normalizations."""
    lived = f"BatchNormalization lived behind {count} of the {wanted}"
    if batch_norm == "live":
        return f"{lived} layers that have it; behind the others it was folded before."
    return (
        f"{lived} convolutions and products that may have had it; the others lack what it can be "
        "folded back into: integers with a scale for each channel, read once, and a bias."
    )


def _unfinished(job: Job) -> Job:
    """The job without what a target does to a finished graph, which changes no integers."""
    return replace(job, target=replace(job.target, finish=""))
