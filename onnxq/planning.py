"""Sensitivity, costs, plans and their application, each as a stage of its own."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from onnxq.cost import Costs
from onnxq.data import Batch, DataLike, Dataset, ImageOptions, read
from onnxq.data.dataset import CALIBRATION_LIMIT
from onnxq.errors import InputError
from onnxq.ir import Context, Graph, load, save
from onnxq.ir.save import check_writable
from onnxq.observe import Calibrator, parse_calibrator
from onnxq.passes.cleanup.constant_initializers import ConstantInitializers
from onnxq.plan import Assignment, Pin, Plan, assign, pareto_front
from onnxq.plan.apply import PRECISIONS, apply_precisions, needed_opset
from onnxq.plan.assignment import Objective
from onnxq.plan.plan import BY_HAND
from onnxq.precision import FLOAT
from onnxq.progress import SILENT, Progress
from onnxq.recipe import Recipe, load_recipe
from onnxq.runtime import Session, TensorSpec
from onnxq.sensitivity import Sensitivity
from onnxq.stages import DEFAULT_MIN_SQNR, ModelLike, as_file, float_graph, single_feed
from onnxq.study import CostKind, Prepared, Study, StudyOptions, prepare, study
from onnxq.study import find_costs as costs_of
from onnxq.study import find_losses as losses_of
from onnxq.targets import Target, load_target
from onnxq.verify.facts import file_sha256
from onnxq.verify.precision import describe
from onnxq.work import data_digest

_MADE_UP = 4
"""Samples that are made up where costs are measured without data."""


@dataclass(frozen=True)
class Settings:
    """How a model is read, rewritten and calibrated before it is planned for.

    Attributes:
        recipe: A `Recipe`, or the name or file of one.
        target: Where the model is to run; ``auto`` is this machine's processor.
        calibrator: How ranges are found; the recipe's if None.
        precisions: What nodes may have; the recipe's or the target's if empty.
        constant_initializers: Make weights that are listed as inputs, too, constants.
        opset: Raise the model to at least this opset; the lowest that will do if None.
        samples: Use at most about so many samples.
        batch_size: Samples in a batch where the model leaves it open.
        images: How to read a folder of images.
        threads: Threads inside one operator.
        seed: Which samples are used where only some are.
        work_folder: Where to keep what was found out, for another run; nowhere if None.
        debug: Level of the passes' log.
    """

    recipe: str | Recipe = "mixed"
    target: str = "auto"
    calibrator: str | None = None
    precisions: Sequence[str] = ()
    constant_initializers: bool = False
    opset: int | None = None
    samples: int | None = None
    batch_size: int | None = None
    images: ImageOptions | None = None
    threads: int = 1
    seed: int = 0
    work_folder: str | os.PathLike[str] | None = None
    debug: int = 0

    def options(self) -> StudyOptions:
        """The part that a study needs."""
        return StudyOptions(
            precisions=tuple(self.precisions),
            work_folder=None if self.work_folder is None else Path(self.work_folder),
            opset=self.opset or 0,
            constant_initializers=self.constant_initializers,
            threads=self.threads,
            seed=self.seed,
            debug=self.debug,
        )


@dataclass(frozen=True)
class Limit:
    """What a plan has to stay within; at most one of these.

    Attributes:
        loss: Largest predicted loss, in units of the proxy ``noise``.
        min_sqnr: The same as SQNR of the outputs in dB.
        latency: Largest predicted latency in milliseconds; the plan then loses as little as it can.
        bytes: Largest size of the weights in bytes; likewise.
    """

    loss: float | None = None
    min_sqnr: float | None = None
    latency: float | None = None
    bytes: float | None = None

    def resolved(self, kind: str) -> tuple[Objective, float, str]:
        """What to minimise, the budget of the other quantity, and the promise in words.

        Without a limit, an SQNR of `DEFAULT_MIN_SQNR` is predicted.

        Raises:
            InputError: there are several, or it does not fit what costs are.
        """
        given = [name for name, value in vars(self).items() if value is not None]
        if len(given) > 1:
            raise InputError(f"a plan keeps one limit, not both {given[0]} and {given[1]}")
        for name, wanted in (("latency", "latency"), ("bytes", "size")):
            if name in given and kind != wanted:
                raise InputError(f"a limit of {name} needs costs of kind '{wanted}', not '{kind}'")
        if self.latency is not None:
            return "loss", self.latency, f"candidate_ms<={self.latency:g}"
        if self.bytes is not None:
            return "loss", self.bytes, f"weight_bytes<={self.bytes:g}"
        if self.loss is not None:
            if self.loss < 0:
                raise InputError(f"a loss of {self.loss:g} is not possible; give 0 or more")
            return "cost", self.loss, f"loss<={self.loss:g}"
        sqnr = DEFAULT_MIN_SQNR if self.min_sqnr is None else self.min_sqnr
        return "cost", 10 ** (-sqnr / 10), f"sqnr>={sqnr:g}"


@dataclass(frozen=True)
class FrontPoint:
    """One plan of a front: what it costs, what it loses, how many nodes have which precision."""

    cost: float
    loss: float
    exact: bool
    nodes: dict[str, int]


def find_sensitivity(
    model: ModelLike,
    data: DataLike,
    *,
    settings: Settings | None = None,
    method: Literal["suffix", "exhaustive"] = "suffix",
    proxy: str = "noise",
    progress: Progress = SILENT,
) -> Sensitivity:
    """Predict what quantizing each node costs in accuracy, see `onnxq.sensitivity.analyse`.

    Args:
        model: Path, serialized bytes or ``ModelProto`` of the float model.
        data: Representative samples, see `onnxq.data.read`; of data with a split of its own, the
            calibration part.
        settings: See `Settings`.
        method: ``suffix``, or ``exhaustive`` for one run of the whole model per node.
        proxy: What a loss is, see `onnxq.sensitivity.loss.PROXIES`.
        progress: Told of stages.

    Raises:
        InputError: the model, the data or an option cannot be used, or nothing in the model can
            be quantized.
    """
    settings = settings or Settings()
    with _opened(model, data, settings, progress) as job:
        options = replace(settings.options(), method=method, proxy=proxy)
        digest = data_digest(job.samples) if options.work_folder else ""
        found = losses_of(job.prepared(options, digest), job.samples, digest, progress)
    progress.finish()
    return found


def find_costs(
    model: ModelLike,
    data: DataLike | None = None,
    *,
    settings: Settings | None = None,
    kind: CostKind = "latency",
    progress: Progress = SILENT,
) -> Costs:
    """What every node costs in every precision, and every border between integers and floats.

    Args:
        model: Path, serialized bytes or ``ModelProto`` of the float model.
        data: Samples to run the model on; made up if None, which only models take that run on any
            numbers.
        settings: See `Settings`.
        kind: ``latency`` measured on this machine, ``size`` in bytes, or ``flops`` computed.
        progress: Told of stages.

    Raises:
        InputError: the model, the data or an option cannot be used, or nothing in the model can
            be quantized.
    """
    settings = settings or Settings()
    with _opened(model, data, settings, progress) as job:
        options = replace(settings.options(), cost=kind)
        digest = data_digest(job.samples) if options.work_folder else ""
        found = costs_of(job.prepared(options, digest), job.one, progress)
    progress.finish()
    return found


def make_plan(
    model: ModelLike,
    data: DataLike,
    *,
    settings: Settings | None = None,
    limit: Limit | None = None,
    cost: CostKind = "latency",
    costs: Costs | None = None,
    pins: Sequence[str | Pin] = (),
    progress: Progress = SILENT,
) -> Plan:
    """Choose a precision for every node from predictions, without verification.

    Args:
        model: Path, serialized bytes or ``ModelProto`` of the float model.
        data: Representative samples, see `onnxq.data.read`; of data with a split of its own, the
            calibration part.
        settings: See `Settings`.
        limit: What the plan has to stay within, see `Limit`.
        cost: What to make small: ``latency`` measured here, ``size`` or ``flops``.
        costs: A table of costs found elsewhere, instead.
        pins: Precisions set by hand, as ``"head*=float32"``.
        progress: Told of stages.

    Raises:
        InputError: the model, the data or an option cannot be used, or no plan keeps the limit.
    """
    limit = limit or Limit()
    objective, budget, promise = limit.resolved(cost if costs is None else costs.kind)
    with _studied(model, data, settings, cost, costs, pins, progress) as found:
        problem = found.problem()
        free = _possible(assign(problem))
        chosen = assign(problem, objective=objective, budget=budget)
        if chosen is None:
            least = free.cost
            if objective == "cost":
                least = _possible(assign(problem, objective="loss")).loss
            raise InputError(
                f"no plan keeps '{promise}': the least {'loss' if objective == 'cost' else 'cost'} "
                f"there is, is {least:.6g}"
            )
        made = found.plan(problem, chosen, free, [promise])
    progress.finish()
    return made


def find_front(
    model: ModelLike,
    data: DataLike,
    *,
    settings: Settings | None = None,
    cost: CostKind = "latency",
    costs: Costs | None = None,
    pins: Sequence[str | Pin] = (),
    progress: Progress = SILENT,
) -> list[FrontPoint]:
    """Plans of which none is better than another in both cost and loss, the cheapest first.

    The arguments are those of `make_plan`.

    Raises:
        InputError: the model, the data or an option cannot be used.
    """
    with _studied(model, data, settings, cost, costs, pins, progress) as found:
        progress.stage("solving")
        points = []
        for point in pareto_front(found.problem()):
            nodes: dict[str, int] = {}
            for precision in point.precisions.values():
                nodes[precision] = nodes.get(precision, 0) + 1
            points.append(FrontPoint(point.cost, point.loss, point.exact, nodes))
        if not points:
            _possible(None)
    progress.finish()
    return points


def apply_plan(
    model: ModelLike,
    plan: Plan | str | os.PathLike[str],
    *,
    output: str | os.PathLike[str] | None = None,
    progress: Progress = SILENT,
    debug: int = 0,
) -> Graph:
    """Make the model that a plan describes; the same plan gives the same bytes.

    Args:
        model: Path, serialized bytes or ``ModelProto`` of the float model the plan is for.
        plan: The plan, or its file.
        output: Where to write the model; nowhere if None.
        progress: Told of stages.
        debug: Level of the passes' log.

    Raises:
        InputError: the model or the plan cannot be used, the plan is for another model, or a
            precision that was set by hand is none that its node can have.
    """
    made = plan if isinstance(plan, Plan) else Plan.load(plan)
    if output is not None:
        check_writable(Path(output))
    with as_file(model) as (path, _):
        graph = load(path)
        found = file_sha256(path)
        if found != made.model_sha256:
            raise InputError(
                f"the plan is for another model, of SHA-256 {made.model_sha256[:12]}...; this "
                f"one's is {found[:12]}..., so make a new plan with `onnxq plan`"
            )
        if made.constant_initializers:
            ConstantInitializers().run(graph, Context(debug))
        if not made.changes_nothing:
            graph = _applied(graph, made, progress, debug)
        if output is not None:
            save(graph, output)
    progress.finish()
    return graph


def _applied(source: Graph, plan: Plan, progress: Progress, debug: int) -> Graph:
    table = load_target(plan.target)
    steps = Recipe(passes=plan.passes, quantization="mixed")
    precisions, reasons = plan.precisions(), plan.reasons()
    for name, precision in precisions.items():
        if precision not in PRECISIONS:
            raise InputError(
                f"the plan gives '{name}' the precision '{precision}', which there is not; use one "
                f"of {', '.join(PRECISIONS)}"
            )
    opset = max(plan.opset, needed_opset(precisions, table.name))
    graph, _ = float_graph(source, steps, table, opset, debug, progress)
    # A search applies its plans to copies, which list their values in another order.
    graph = graph.copy()
    progress.stage("quantizing")
    apply_precisions(graph, precisions, table.name, plan.ranges, reasons, Context(debug))
    by_hand = {name for name, reason in reasons.items() if reason == BY_HAND}
    for layer in describe(graph):
        wanted = precisions.get(layer.node, FLOAT)
        if layer.node in by_hand and wanted not in (FLOAT, layer.precision):
            raise InputError(
                f"the node '{layer.node}' cannot have the precision '{wanted}' that the plan gives "
                f"it by hand: {layer.op_type} comes out as {layer.precision}"
            )
    return graph


@dataclass(frozen=True)
class _Job:
    """A model and data that were read, ready for the stages."""

    path: Path
    source: Graph
    samples: Dataset
    one: Batch
    steps: Recipe
    table: Target
    calibrator: Calibrator
    progress: Progress

    def prepared(self, options: StudyOptions, digest: str) -> Prepared:
        return prepare(
            file_sha256(self.path),
            self.source,
            self.samples,
            digest,
            self.steps,
            self.table,
            self.calibrator,
            options,
            self.progress,
        )

    def studied(self, options: StudyOptions) -> Study:
        return study(
            file_sha256(self.path),
            self.source,
            self.samples,
            self.one,
            self.steps,
            self.table,
            self.calibrator,
            options,
            self.progress,
        )


@contextmanager
def _opened(
    model: ModelLike, data: DataLike | None, settings: Settings, progress: Progress
) -> Iterator[_Job]:
    # Names that do not exist are refused before the model and the data are read.
    recipe = settings.recipe
    steps = recipe if isinstance(recipe, Recipe) else load_recipe(recipe)
    table = load_target(settings.target)
    calibrator = parse_calibrator(settings.calibrator or steps.calibrator)
    with as_file(model) as (path, _):
        source = load(path)
        specs = Session(path).inputs
        given = _made_up(specs) if data is None else data
        samples = read(given, specs, batch_size=settings.batch_size, images=settings.images)
        limit = CALIBRATION_LIMIT if settings.samples is None else settings.samples
        if samples.has_split:
            samples = samples.split(settings.seed, limit)[0]
        else:
            samples = samples.take(limit)
        if settings.constant_initializers:
            ConstantInitializers().run(source, Context(settings.debug))
        one = single_feed(samples, specs)
        yield _Job(path, source, samples, one, steps, table, calibrator, progress)


@contextmanager
def _studied(
    model: ModelLike,
    data: DataLike,
    settings: Settings | None,
    cost: CostKind,
    costs: Costs | None,
    pins: Sequence[str | Pin],
    progress: Progress,
) -> Iterator[Study]:
    settings = settings or Settings()
    parsed = tuple(p if isinstance(p, Pin) else Pin.parse(p) for p in pins)
    with _opened(model, data, settings, progress) as job:
        yield job.studied(replace(settings.options(), cost=cost, costs=costs, pins=parsed))


def _possible(found: Assignment | None) -> Assignment:
    if found is None:
        raise InputError("no plan has all the precisions that are pinned; pin fewer nodes")
    return found


def _made_up(specs: Sequence[TensorSpec]) -> list[dict[str, np.ndarray]]:
    """Feeds with random floats and small whole numbers, 1 for every size that is open."""
    rng = np.random.default_rng(0)
    feeds = []
    for _ in range(_MADE_UP):
        feed = {}
        for spec in specs:
            if spec.dtype is None or spec.shape is None or spec.dtype.kind not in "fiub":
                raise InputError(
                    f"no numbers can be made up for the input '{spec.name}'; give --data"
                )
            shape = [d if isinstance(d, int) else 1 for d in spec.shape]
            kind = rng.standard_normal(shape) if spec.dtype.kind == "f" else np.ones(shape)
            feed[spec.name] = kind.astype(spec.dtype)
        feeds.append(feed)
    return feeds
