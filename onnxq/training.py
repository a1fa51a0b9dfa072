"""Training: a float model and data in, a quantized model with learned numbers and its proof out."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onnxq.data import DataLike, Dataset
from onnxq.errors import InputError
from onnxq.found import Found
from onnxq.ir import ModelLike, infer_types
from onnxq.job import Job
from onnxq.observe import parse_calibrator
from onnxq.optimization import Optimized, made, proven
from onnxq.options import Options
from onnxq.plan import Plan
from onnxq.precision import parse_precision
from onnxq.precision.int8 import Int8
from onnxq.precision.static_bits import StaticBits
from onnxq.prepare import Prepared, observed, prepare
from onnxq.progress import SILENT, Progress
from onnxq.recipe import load_recipe
from onnxq.study import apply_to, uniform_plan
from onnxq.tune import parse_methods
from onnxq.tune.training import TrainingFacts, TrainOptions, rate
from onnxq.verify.decisions import find_decisions
from onnxq.work import data_digest

if TYPE_CHECKING:
    from onnxq.tune.train.fitting import Fitted, Lesson
    from onnxq.tune.train.learned import Learned

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
    stages = _stages(bits, settings, None if folder is None else Path(folder))
    calibrator = asked.calibrator
    asked = replace(asked, recipe=precision, **_beginning(precision, calibrator))

    def make(job: Job) -> Found:
        begun, notes = None, list[str]()
        for at, stage in enumerate(stages[:-1]):
            before = _taught(_in_bits(job, stage.bits, calibrator), stages[at:], begun).fitted
            begun = before.learned
            notes.append(_went_through(stage.bits, before.facts))
        progress = _Called(bits, job.progress) if begun else job.progress
        found = _taught(replace(job, progress=progress), stages[-1:], begun)
        fitted, plan = found.fitted, found.plan
        nodes = tuple(
            replace(node, method=settings.method) if node.name in fitted.tensors else node
            for node in plan.nodes
        )
        ranges = {**plan.ranges, **fitted.ranges}
        tuned = {**plan.tuned, **fitted.tensors}
        told = proven(found.prepared, replace(plan, nodes=nodes, ranges=ranges, tuned=tuned))
        if found.norms:
            notes.insert(0, _lived(settings.batch_norm, fitted.norms, found.norms))
        if precision != Int8.name:
            notes.insert(0, _trained_in(bits))
        if not fitted.facts.best:
            notes.append(_NOTHING_BETTER)
        report = replace(told.report, training=fitted.facts, notes=(*told.report.notes, *notes))
        return replace(told, report=report)

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


def _beginning(precision: str, calibrator: str | None) -> dict[str, Any]:
    """How weights and ranges are found that training begins with, as far as nothing is said.

    In few bits the largest number is a bad end of a range, and scales of least squared error are a
    far worse beginning than gptq: `digits_resnet` in 2 bits begins at 11.6 % of right digits by
    these, and at 98.9 % by gptq.
    """
    wanted = parse_precision(precision)
    is_narrow = isinstance(wanted, StaticBits)
    found = "mse" if isinstance(wanted, StaticBits) and wanted.activation < 8 else None
    methods = ("gptq", "mse") if is_narrow else "none"
    return {"methods": methods, "calibrator": calibrator or found}


@dataclass(frozen=True)
class _Stage:
    """Bits to train in, how, and where checkpoints are kept."""

    bits: str
    settings: TrainOptions
    kept: Path | None


def _stages(bits: str, settings: TrainOptions, kept: Path | None) -> list[_Stage]:
    """The bits that are trained in, one after another.

    Raises:
        InputError: there are no such bits, or some come twice.
    """
    found = dict[str, _Stage]()
    for at, of in enumerate((*settings.through, bits)):
        precision, is_last = precision_of(of), at == len(settings.through)
        if precision in found:
            raise InputError(
                f"training goes through bits and ends in others, and '{of}' comes twice; take it "
                "out of --through"
            )
        own = replace(
            settings,
            lr=settings.lr or rate(_weight_bits(precision)),
            through=settings.through[:at],
        )
        found[precision] = _Stage(of, own, kept if is_last or kept is None else kept / of)
    return list(found.values())


def _in_bits(job: Job, bits: str, calibrator: str | None) -> Job:
    """The job of training in other bits before."""
    precision = precision_of(bits)
    recipe, begin = load_recipe(precision), _beginning(precision, calibrator)
    return replace(
        job,
        recipe=recipe,
        precisions=(precision,),
        methods=parse_methods(begin["methods"]),
        calibrator=parse_calibrator(begin["calibrator"] or recipe.calibrator),
        progress=_Called(bits, job.progress),
    )


@dataclass(frozen=True)
class _Taught:
    """A plan, what training gives it, and how many nodes BatchNormalization was to live behind."""

    prepared: Prepared
    plan: Plan
    fitted: Fitted
    norms: int


def _taught(job: Job, stages: Sequence[_Stage], begun: Learned | None) -> _Taught:
    """Quantize a job's model in the bits of its recipe, and train it.

    Args:
        job: The job.
        stages: The stage that these bits are, and those that follow.
        begun: What was learned in other bits.
    """
    # Says without torch what to install.
    from onnxq.tune.train.checkpoints import Checkpoints
    from onnxq.tune.train.fitting import Lesson
    from onnxq.tune.train.norms import normalized, restorable

    settings, kept = stages[0].settings, stages[0].kept
    norms = normalized(job.source) if settings.batch_norm == "live" else ()
    prepared = prepare(job)
    if settings.batch_norm == "restored":
        norms = restorable(prepared.graph)
    lesson = Lesson(prepared.graph, job.training, settings)
    basis = dict[str, str]()
    if kept is not None:
        basis = {"model": job.sha256, "data": data_digest(job.training)}
        # Of another training, as far as can be told before what takes time?
        for stage in stages:
            own = replace(lesson.options, through=stage.settings.through).basis()
            Checkpoints(stage.kept, {**own, **basis}).load()
    prepared = observed(replace(prepared, job=replace(job, samples=_unjudged(job, lesson))))
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
        begun,
    )
    return _Taught(prepared, plan, fitted, len(norms))


class _Called:
    """Progress that says in which bits it is made."""

    def __init__(self, bits: str, inner: Progress) -> None:
        self._bits, self._inner = bits, inner

    def stage(self, name: str, total: int | None = None) -> None:
        self._inner.stage(f"{self._bits}: {name}", total)

    def advance(self, done: int) -> None:
        self._inner.advance(done)

    def finish(self) -> None:
        self._inner.finish()


def _unjudged(job: Job, lesson: Lesson) -> Dataset:
    """What is calibrated on: not what judges epochs, or the untrained model looks too good.

    A method such as gptq knows its samples by heart where they are few.
    """
    rest = job.samples if lesson.judged_on is None else job.samples.without(lesson.judged_on)
    return rest if len(rest) else job.samples


def _went_through(bits: str, facts: TrainingFacts) -> str:
    """What a report says of bits that came before."""
    first, best = (facts.history[at].held_out_loss for at in (0, facts.best))
    return (
        f"Before, it was trained in {bits} for {facts.epochs} epochs: held-out loss {first:.4g} -> "
        f"{best:.4g}."
    )


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
