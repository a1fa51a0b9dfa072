"""A job: model, data, recipe, target and options, read and checked once before long work."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from onnxq.benchmark import NATIVE, random_feeds
from onnxq.data import Batch, DataLike, Dataset, read
from onnxq.data.dataset import CALIBRATION_LIMIT
from onnxq.data.places import at_hand, is_address
from onnxq.errors import InputError
from onnxq.ir import Context, Graph, ModelLike, load, parse_passes, save
from onnxq.ir.saving import constant_bytes
from onnxq.ir.stored import keep_readable
from onnxq.observe import Calibrator, parse_calibrator
from onnxq.options import Options
from onnxq.passes.cleanup.constant_initializers import settle_overridable
from onnxq.plan import Pin, Plan
from onnxq.plan.apply import check_made_for
from onnxq.precision import require_searchable
from onnxq.progress import SILENT, Progress
from onnxq.recipe import Recipe, load_recipe
from onnxq.runtime import TensorSpec, as_stored, load_backend
from onnxq.runtime.executor import IN_PROCESS, Executor, open_executor
from onnxq.runtime.files import ModelFiles
from onnxq.runtime.pool import SMALLEST_ROOM, is_worker, model_room
from onnxq.runtime.providers import with_options
from onnxq.scratch import scratch_folder
from onnxq.targets import Target, load_target
from onnxq.time_budget import TimeBudget
from onnxq.tune import parse_methods
from onnxq.verify import Reference
from onnxq.verify.facts import file_sha256
from onnxq.verify.workload import Workload, find_workload
from onnxq.work import data_digest

_WORKER_BYTES = 1 << 28
"""Memory of a worker that does nothing, with all that it imports."""

_MODULES = ("onnxq.planning", "onnxq.passes", "onnxq.precision")
"""What workers may load while the command prepares the model."""

_MADE_UP = 4
"""Samples that are made up where there is no data."""


@dataclass(frozen=True)
class Job:
    """All that a run was given.

    Attributes:
        path: The model's file.
        runs: The same model in the form in which it runs, see `ModelFiles.beside`.
        files: Where to put further models.
        folder: A folder for more files, which goes away with the job.
        source: The model as loaded.
        training: All of the data that nothing is verified with.
        samples: The part of that to calibrate on and to analyse with.
        held_out: The part to verify with; None where the data cannot be split.
        workload: What latency is measured with.
        recipe: What to do.
        target: Where the model is to run.
        calibrator: How ranges are found.
        precisions: What a search may choose from, or the one precision of the recipe.
        pins: Precisions set by hand.
        methods: Tuners that may be used, `AUTOMATIC`, or `NO_METHODS`.
        options: What else the user wants.
        progress: Told of stages.
        executor: Where work is done that can be spread.
        time: How long optional work may take.
        notes: What to say of the model in the report.
        candidates: Plans that a search tries beside its own, by name.
        against_cpu: Whether the float model gives the outputs that are held against on the CPU
            provider here, wherever candidates run.
    """

    path: Path
    runs: Path
    files: ModelFiles
    folder: Path
    source: Graph
    training: Dataset
    samples: Dataset
    held_out: Dataset | None
    workload: Workload
    recipe: Recipe
    target: Target
    calibrator: Calibrator
    precisions: tuple[str, ...]
    pins: tuple[Pin, ...]
    methods: tuple[str, ...]
    options: Options
    progress: Progress
    executor: Executor = IN_PROCESS
    time: TimeBudget = field(default_factory=TimeBudget)
    notes: tuple[str, ...] = ()
    candidates: Mapping[str, Plan] = field(default_factory=dict)
    against_cpu: bool = False

    @property
    def one(self) -> Batch:
        """The feed whose latency counts."""
        return self.workload.one

    @cached_property
    def sha256(self) -> str:
        """Hash of the model's file."""
        return file_sha256(self.path)

    @cached_property
    def digest(self) -> str:
        """Hash of the samples."""
        return data_digest(self.samples)

    def as_search(self) -> Job:
        """The job of searching among the precision that the recipe gives to all nodes.

        Raises:
            InputError: a search cannot choose it.
        """
        require_searchable(self.precisions)
        return replace(self, recipe=replace(self.recipe, precision=""))

    def at(
        self,
        target: Target,
        *,
        folder: Path,
        candidates: Mapping[str, Plan],
        time: TimeBudget,
    ) -> Job:
        """The same job for another target, whose candidates are held against the CPU provider here.

        Args:
            target: The target.
            folder: For what is made in it.
            candidates: Plans to try.
            time: How long its optional work may take.

        Raises:
            InputError: the recipe is no search, and there are plans to try.
        """
        folder.mkdir()
        options = replace(self.options, target=target.name, min_speedup=None)
        _check_candidates(candidates, options, self.recipe, target)
        return replace(
            self,
            files=ModelFiles(folder),
            folder=folder,
            target=target,
            precisions=_precisions(options, self.recipe, target),
            options=options,
            candidates=candidates,
            time=time,
            against_cpu=True,
        )

    @cached_property
    def reference(self) -> Reference:
        """The float model on the held-out samples, on the target's provider if it is here."""
        assert self.held_out is not None
        backend = self.target.backend
        provider = "cpu" if self.missing_provider() else self.provider
        return Reference(
            self.path,
            self.held_out,
            files=self.files,
            room=model_room(self.options.memory_limit),
            metric=self.options.metric,
            backend=NATIVE if self.against_cpu else backend,
            provider="cpu" if self.against_cpu else provider,
            candidates_on=backend,
            folder=self.folder,
            executor=self.executor,
        )

    @property
    def context(self) -> Context:
        """What passes share."""
        return Context(self.options.debug)

    @cached_property
    def provider(self) -> str:
        """What the target's backend is to run models on, with the options it is given."""
        return with_options(self.target.provider, self.options.provider_options)

    def missing_provider(self) -> str:
        """Why the target's provider is not there; empty if it is."""
        return load_backend(self.target.backend).missing(self.target.provider)


@contextmanager
def open_job(
    model: ModelLike,
    data: DataLike | None,
    options: Options,
    *,
    eval_data: DataLike | None = None,
    progress: Progress = SILENT,
) -> Iterator[Job]:
    """Read and check everything: names first, then the model, then the data.

    Args:
        model: Path, serialized bytes or ``ModelProto`` of the float model.
        data: Representative samples, see `onnxq.data.read`; made up if None, which only models
            take that run on any numbers.
        options: See `Options`.
        eval_data: Held-out samples; a part of ``data`` if None.
        progress: Told of stages.

    Raises:
        InputError: the model, the data or an option cannot be used.
    """
    recipe, target = load_recipe(options.recipe), load_target(options.target)
    if options.pythons:
        raise InputError(
            "further environments (--python) are tried by `onnxq optimize --target fastest`; leave "
            "them out, or name that target"
        )
    time = _time(options.time_budget)
    backend = load_backend(target.backend)
    if not backend.is_for_targets:
        raise InputError(
            f"the target '{target.name}' names the backend '{backend.name}', which only measures "
            "models that are made; name 'onnxruntime' there, and use `onnxq bench --web` afterwards"
        )
    if options.provider_options:
        backend.check(with_options(target.provider, options.provider_options))
    calibrator = parse_calibrator(options.calibrator or recipe.calibrator)
    for text in filter(None, (target.passes, target.finish, *target.forms)):
        parse_passes(text)
    methods = parse_methods(recipe.methods if options.methods is None else options.methods)
    pins = tuple(p if isinstance(p, Pin) else Pin.parse(p) for p in options.pins)
    if options.precisions and not recipe.is_search:
        raise InputError(
            "precisions to choose from are for a search, and the recipe gives all nodes one; leave "
            "them out, or use the recipe 'mixed'"
        )
    candidates = read_candidates(options)
    _check_candidates(candidates, options, recipe, target)
    precisions = _precisions(options, recipe, target)
    with as_file(model) as (path, folder), _executor(options, folder) as executor:
        for name, plan in candidates.items():
            check_made_for(plan, file_sha256(path), name)
        source = load(path)
        options = _within_workers(options, constant_bytes(source))
        files = ModelFiles(folder)
        runs = files.beside(source, path)
        session = as_stored(runs)
        specs = session.inputs
        if data is None:
            data = [random_feeds(specs, seed=seed) for seed in range(_MADE_UP)]
        training, samples, held_out = _split(data, eval_data, specs, options)
        ctx = Context(options.debug)
        notes = settle_overridable(source, ctx, keep=options.keep_overridable)
        workload = find_workload(
            session,
            samples if held_out is None else held_out,
            batch_size=options.batch_size,
            latency_of=options.latency_of,
            throughput=options.throughput,
            may_run=constant_bytes(source) <= model_room(options.memory_limit),
        )
        # What it holds of the weights is not needed any longer.
        del session
        yield Job(
            path,
            runs,
            files,
            folder,
            source,
            training,
            samples,
            held_out,
            workload,
            recipe,
            target,
            calibrator,
            precisions,
            pins,
            methods,
            options,
            progress,
            executor,
            time,
            notes,
            candidates,
        )


def _within_workers(options: Options, weights: int) -> Options:
    """The same with what is left for observing of a worker's memory, however many there are."""
    limit, is_spread = options.memory_limit, (options.workers, options.scheduler) != (None, None)
    if limit is None or not (is_spread or is_worker()):
        return options
    # Sessions hold weights twice while they pack them; more of them than that run in segments.
    left = limit - _WORKER_BYTES - min(2 * weights, limit // 4)
    if left < SMALLEST_ROOM:
        raise InputError(
            f"a worker itself takes {_WORKER_BYTES:,} bytes of memory, so a limit of {limit:,} is "
            "too small for it; raise --memory-limit"
        )
    return replace(options, memory_limit=left)


def _executor(options: Options, folder: Path) -> AbstractContextManager[Executor]:
    if options.scheduler is not None and options.work_folder is None:
        raise InputError(
            "workers on other machines need a folder that all of them see: name it by --work-dir"
        )
    shared = folder if options.work_folder is None else Path(options.work_folder)
    return open_executor(
        options.workers,
        options.scheduler,
        shared / "spread",
        memory_limit=options.memory_limit,
        hangs_after=options.hangs_after,
        modules=_MODULES,
    )


def _precisions(options: Options, recipe: Recipe, target: Target) -> tuple[str, ...]:
    """What a search may choose from, or the one precision of the recipe.

    Raises:
        InputError: a search cannot choose one of them.
    """
    if not recipe.is_search:
        return (recipe.precision,)
    small = () if options.max_size_ratio is None else target.small
    found = tuple(options.precisions) or recipe.precisions or (*target.precisions, *small)
    require_searchable(found)
    return found


def read_candidates(options: Options) -> dict[str, Plan]:
    """The plans that are tried beside a search's own, by name.

    Raises:
        InputError: one cannot be read.
    """
    found = {}
    for at, given in enumerate(options.candidates, 1):
        if isinstance(given, Plan):
            found[f"plan {at}"] = given
        else:
            found[f"plan {os.fspath(given)}"] = Plan.load(given)
    return found


def _check_candidates(
    candidates: Mapping[str, Plan], options: Options, recipe: Recipe, target: Target
) -> None:
    """Refuse plans that cannot be tried.

    Raises:
        InputError: the recipe is no search, or a plan is for another target or was made otherwise.
    """
    if candidates and not recipe.is_search:
        raise InputError(
            "plans to try are for a search, and the recipe gives all nodes one precision; leave "
            "--candidate out, or use the recipe 'mixed'"
        )
    for name, plan in candidates.items():
        if plan.target != target.name:
            raise InputError(
                f"{name} is for the target '{plan.target}', not for '{target.name}'; make one with "
                "the same --target"
            )
        if plan.keep_overridable != options.keep_overridable:
            how = "with" if plan.keep_overridable else "without"
            raise InputError(f"{name} was made {how} --keep-overridable; do the same here")


def _time(minutes: float | None) -> TimeBudget:
    if minutes is not None and not minutes > 0:
        raise InputError(f"a time budget of {minutes:g} minutes is not possible; give more than 0")
    return TimeBudget(None if minutes is None else 60 * minutes)


def _split(
    data: DataLike, eval_data: DataLike | None, specs: Sequence[TensorSpec], options: Options
) -> tuple[Dataset, Dataset, Dataset | None]:
    """Samples that may be learned from, those of them to calibrate on, and samples to verify on."""
    given = read(data, specs, batch_size=options.batch_size, images=options.images)
    limit = options.samples
    if eval_data is not None:
        held_out = read(eval_data, specs, batch_size=options.batch_size, images=options.images)
        given = given.split(options.seed)[0] if given.has_split else given
        few = given.take(limit or CALIBRATION_LIMIT)
        return given, few, held_out_part(held_out, options.seed)
    try:
        few, rest = given.split(options.seed, limit)
    except InputError:
        if given.has_split or limit == 0:
            raise
        # Too few to hold any out: whoever verifies says so.
        return given, given.take(limit or CALIBRATION_LIMIT), None
    return given.split(options.seed)[0] if given.has_split else few, few, rest


def told_of_seen(data: DataLike, eval_data: DataLike | None, training: Dataset) -> tuple[str, ...]:
    """What to say where the same file was learned from and verified on."""
    names = [d for d in (data, eval_data) if isinstance(d, (str, os.PathLike))]
    if len(names) < 2 or training.has_split or len({Path(d).resolve() for d in names}) > 1:
        return ()
    return (
        f"The model is verified on the samples of '{names[0]}' that it was made with, so what was "
        "measured may be too good; without --eval some of them are held out.",
    )


def held_out_part(data: Dataset, seed: int = 0) -> Dataset:
    """The held-out part of data with a split of its own, all of other data."""
    return data.split(seed)[1] if data.has_split else data


@contextmanager
def as_file(model: ModelLike) -> Iterator[tuple[Path, Path]]:
    """The model as a file, and a folder for more files that goes away afterwards."""
    with scratch_folder() as folder:
        if isinstance(model, str) and is_address(model):
            yield at_hand(model, model=True), folder
        elif isinstance(model, str | os.PathLike):
            yield Path(model), folder
        else:
            path = folder / "model.onnx"
            save(load(model), path)
            yield path, folder
            # The folder goes, and what was made of the model is still there.
            keep_readable(path)


def label(model: ModelLike) -> str:
    """What a report calls a model: its path, if it has one."""
    return os.fspath(model) if isinstance(model, str | os.PathLike) else "the model in memory"
