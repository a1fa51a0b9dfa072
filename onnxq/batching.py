"""Many models, each optimized by itself: a queue that goes on where it was broken off."""

from __future__ import annotations

import csv
import io
import shutil
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, get_args, get_type_hints

from onnxq.data.places import at_hand, external_data, is_address
from onnxq.errors import InputError, UnreachableError
from onnxq.optimization import optimize
from onnxq.options import Options
from onnxq.plain import entry, read, read_toml
from onnxq.progress import SILENT, Progress
from onnxq.report import write_report
from onnxq.runtime.alone import sharing
from onnxq.runtime.executor import Work, open_executor
from onnxq.runtime.sharing import Sharing
from onnxq.saved import SavedAsJson, read_text
from onnxq.verify import Report

State = Literal["kept", "broken", "failed", "defect"]
"""Every promise held; one did not, so that no model was written; the input cannot be used; or it is
a defect of onnxq."""

HANGS_AFTER = 21600.0
"""Seconds in which a worker is done with no model, after which it counts as hung."""

_RESULT = "result.json"


@dataclass(frozen=True)
class Entry:
    """A model of a manifest, with what is wanted of it; see `Options`.

    Attributes:
        model: Its file; relative ones, as those of a recipe and a target, are looked for beside
            the manifest.
        data: Representative samples, likewise.
        name: Name of its folder; the file's if empty.
        eval: Held-out samples; a part of ``data`` if None.
    """

    model: str
    data: str
    name: str = ""
    eval: str | None = None
    recipe: str | None = None
    target: str | None = None
    methods: str | None = None
    calibrator: str | None = None
    metric: str | None = None
    max_drop: float | None = None
    min_agreement: float | None = None
    min_speedup: float | None = None
    min_sqnr: float | None = None
    max_size_ratio: float | None = None
    samples: int | None = None
    batch_size: int | None = None
    opset: int | None = None
    time_budget: float | None = None
    memory_limit: int | None = None
    threads: int | None = None
    seed: int | None = None

    @property
    def changes(self) -> dict[str, Any]:
        """The fields of `Options` that are given."""
        known = {f.name for f in fields(Options)}
        given = {f.name: getattr(self, f.name) for f in fields(self) if f.name in known}
        return {name: value for name, value in given.items() if value is not None}


@dataclass(frozen=True)
class Done(SavedAsJson):
    """What became of a model of a batch.

    Attributes:
        key: Hash of all that it depends on.
        name: Name of its folder.
        model: Its file.
        state: See `State`.
        sentence: Why it failed.
        seconds: Time that it took.
        metric: Name of the metric.
        float_value: The float model's.
        value: The optimized model's.
        drop: The difference.
        sqnr_db: Smallest SQNR of any output.
        speedup: Over the float model.
        size_ratio: Times that the file is smaller.
        gates: Promises that broke.
    """

    schema = "onnxq/batch-result/1"
    what = "result of a batch"
    remedy = "remove it, and run the batch again"

    key: str
    name: str
    model: str
    state: State
    sentence: str = ""
    seconds: float = 0.0
    metric: str | None = entry(sparse=True, default=None)
    float_value: float | None = entry(sparse=True, default=None)
    value: float | None = entry(sparse=True, default=None)
    drop: float | None = entry(sparse=True, default=None)
    sqnr_db: float | None = entry(sparse=True, default=None)
    speedup: float | None = entry(sparse=True, default=None)
    size_ratio: float | None = entry(sparse=True, default=None)
    gates: tuple[str, ...] = entry(sparse=True, default=())


@dataclass(frozen=True)
class Batched:
    """What became of all models, in the order of the manifest."""

    results: tuple[Done, ...]

    @property
    def counts(self) -> dict[State, int]:
        """Number of models in each state."""
        found = Counter(done.state for done in self.results)
        return {state: found[state] for state in get_args(State)}


def read_manifest(path: Path) -> tuple[Entry, ...]:
    """The models of a manifest, ``.toml`` or ``.csv``.

    Raises:
        InputError: it cannot be read, an entry is unknown or wrong, or two models have one name.
    """
    text, where = read_text(path, "the manifest"), f"the manifest '{path}'"
    tables = _csv_rows(text, where) if path.suffix == ".csv" else _toml_tables(text, where)
    if not tables:
        raise InputError(
            f"{where} names no models; give each a table [[model]], or a row of a .csv"
        )
    found = []
    for number, table in enumerate(tables, start=1):
        one = read(Entry, table, f"model {number} of {where}")
        places = {k: _beside(path, v) for k in ("model", "data", "eval") if (v := getattr(one, k))}
        files = {"recipe": one.recipe, "target": one.target}
        places |= {k: _beside(path, v) for k, v in files.items() if v and v.endswith(".toml")}
        name = one.name or Path(one.model).stem
        if not name or name.startswith(".") or Path(name).name != name:
            raise InputError(
                f"model {number} of {where} has the name '{name}', which is no folder's"
            )
        found.append(replace(one, name=name, **places))
    twice = [name for name, count in Counter(one.name for one in found).items() if count > 1]
    if twice:
        raise InputError(f"{where} has several models '{twice[0]}'; give each a 'name' of its own")
    return tuple(found)


def batch(
    manifest: str | Path,
    output: str | Path,
    options: Options | None = None,
    *,
    per_machine: int | None = None,
    hangs_after: float = HANGS_AFTER,
    progress: Progress = SILENT,
    told: Callable[[Done], None] = lambda done: None,
    **changes: Any,
) -> Batched:
    """Optimize the models of a manifest as `optimize` does, and go on where that was broken off.

    Each model has a folder with the optimized model, its plan and its report. What is done, and
    depends on nothing that changed since, is not done again. A model that fails is one result of
    many. With workers, as many models are optimized at a time as there are workers; while one of
    them times something, the others on its machine stand aside.

    Args:
        manifest: The manifest's file, see `read_manifest`.
        output: Folder of the models' folders.
        options: What counts where the manifest says nothing else; its ``workers`` and ``scheduler``
            are those of the batch, and its work folder is not used.
        per_machine: Models at a time on one machine of a cluster; as many as it has workers if
            None.
        hangs_after: See `HANGS_AFTER`.
        progress: Told of models that are done.
        told: Told of each model that is done, in the order of the manifest.
        **changes: Single fields of `Options`.

    Raises:
        InputError: the manifest or the folder cannot be used, or no worker can go on.
    """
    options = replace(options or Options(), **changes)
    entries, folder = read_manifest(Path(manifest)), Path(output).resolve()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"the folder '{folder}' cannot be made: {error.strerror}") from error
    sharing_folder = Sharing(folder / ".spread")
    own = replace(options, workers=None, scheduler=None, work_folder=None)
    # What was found before it was broken off is in the models' own folders.
    shutil.rmtree(folder / ".spread" / "results", ignore_errors=True)
    tasks = [_task(one, own, folder, sharing_folder) for one in entries]
    done = [_known(task) for task in tasks]
    left = [task for task, known in zip(tasks, done, strict=True) if known is None]
    progress.stage("optimizing models", len(tasks))
    results = []
    with (
        open_executor(
            options.workers if left else None,
            options.scheduler if left else None,
            folder / ".spread",
            memory_limit=options.memory_limit,
            hangs_after=hangs_after,
            per_machine=per_machine,
        ) as executor,
        executor.open(_Optimizing(executor.is_spread)) as do,
    ):
        fresh = do(left)
        for number, known in enumerate(done, start=1):
            results.append(known or next(fresh))
            told(results[-1])
            progress.advance(number)
    progress.finish()
    shutil.rmtree(folder / ".spread", ignore_errors=True)
    return Batched(tuple(results))


@dataclass(frozen=True)
class _Task:
    """A model that is to be optimized.

    Attributes:
        key: Hash of all that it depends on.
        entry: What the manifest says.
        options: What counts otherwise.
        folder: Where to put what is made.
    """

    key: str
    entry: Entry
    options: Options = field(compare=False)
    folder: Path = field(compare=False)


@dataclass(frozen=True)
class _Optimizing(Work[_Task, Done]):
    """Optimizes models.

    Attributes:
        has_others: Whether another worker may have the room that one has not.
    """

    has_others: bool

    @contextmanager
    def open(self) -> Iterator[Callable[[_Task], Done]]:
        """See `Work`."""
        yield lambda task: _known(task) or _made(task, self.has_others)

    def given_up(self, item: _Task, sentence: str) -> Done:
        """See `Work`: a model fails alone, and is tried again in the next run."""
        return Done(item.key, item.entry.name, item.entry.model, "failed", sentence)


def _made(task: _Task, has_others: bool) -> Done:
    """Optimize a model, and keep what became of it; what ends the process leaves its work."""
    # Who has no model to work on must not keep others from being alone.
    with sharing() as progress:
        try:
            found = _optimized(task, progress)
        except UnreachableError as error:
            return _Optimizing(has_others).given_up(task, str(error))
        except (OSError, MemoryError) as error:
            if has_others:
                raise
            sentence = f"there was no room for it ({str(error) or type(error).__name__})"
            return _Optimizing(has_others).given_up(task, sentence)
    found.save(task.folder / _RESULT)
    shutil.rmtree(task.folder / "work", ignore_errors=True)
    return found


def _optimized(task: _Task, progress: Progress) -> Done:
    started, one, folder = time.perf_counter(), task.entry, task.folder
    known = Done(task.key, one.name, one.model, "kept")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for old in (_RESULT, f"{one.name}.onnx", "plan.toml", "defect.txt"):
            (folder / old).unlink(missing_ok=True)
        result = optimize(
            one.model,
            one.data,
            replace(task.options, work_folder=folder / "work", **one.changes),
            output=folder / f"{one.name}.onnx",
            plan_output=folder / "plan.toml",
            eval_data=one.eval,
            progress=progress,
        )
        write_report(result.report, folder)
        known = replace(known, state="kept" if result.passed else "broken", **_facts(result.report))
    except UnreachableError:
        # It may be there the next time.
        raise
    except InputError as error:
        known = replace(known, state="failed", sentence=str(error))
    except (OSError, MemoryError):
        # It says nothing of the model.
        raise
    except Exception as error:
        (folder / "defect.txt").write_text(traceback.format_exc(), encoding="utf-8")
        sentence = f"this is a defect of onnxq ({type(error).__name__}: {error}); see defect.txt"
        known = replace(known, state="defect", sentence=sentence)
    return replace(known, seconds=time.perf_counter() - started)


def _facts(report: Report) -> dict[str, Any]:
    metric = report.metric
    return {
        "metric": None if metric is None else metric.name,
        "float_value": None if metric is None else metric.float,
        "value": None if metric is None else metric.candidate,
        "drop": None if metric is None else metric.drop,
        "sqnr_db": report.sqnr_db,
        "speedup": None if report.latency is None else report.latency.speedup,
        "size_ratio": report.size.ratio,
        "gates": tuple(gate.expr for gate in report.gates if not gate.passed),
    }


def _task(one: Entry, options: Options, folder: Path, sharing_folder: Sharing) -> _Task:
    named = {"recipe": options.recipe, "target": options.target, **one.changes}
    tables = [str(named[name]) for name in ("recipe", "target")]
    places = (one.data, one.eval, *(table for table in tables if table.endswith(".toml")))
    try:
        states = [_state(one.model, is_model=True), *(_state(place) for place in places if place)]
    except InputError as error:
        # It fails alone, when its turn comes.
        states = [str(error)]
    key = sharing_folder.fingerprint(one, options, states)
    return _Task(key, one, options, folder / one.name)


def _state(place: str, *, is_model: bool = False) -> object:
    """What changes when a file or folder does, or the external data of a model."""
    path = at_hand(place, model=is_model) if is_address(place) else Path(place)
    files = [path] if path.is_file() else sorted(path.rglob("*")) if path.is_dir() else []
    if is_model and path.is_file():
        beside = (path.parent / location for location in external_data(path))
        files += [file for file in beside if file.is_file()]
    stats = [(str(file), file.stat()) for file in files]
    return [(name, s.st_size, s.st_mtime_ns) for name, s in stats]


def _known(task: _Task) -> Done | None:
    """What became of a model before, unless something changed or it was a defect."""
    try:
        found = Done.load(task.folder / _RESULT)
    except InputError:
        return None
    return found if found.key == task.key and found.state != "defect" else None


def _beside(manifest: Path, place: str) -> str:
    if is_address(place) or (not Path(place).exists() and ":" in place):
        # Elsewhere, or a function.
        return place
    return str((manifest.parent / place).resolve())


def _toml_tables(text: str, where: str) -> list[Mapping[str, Any]]:
    body = read_toml(text, where)
    unknown = [key for key in body if key not in ("model", "defaults")]
    if unknown:
        raise InputError(f"{where} has an unknown entry '{unknown[0]}'; known: defaults, model")
    defaults = read(dict[str, Any], body.get("defaults", {}), where, "defaults")
    models = body.get("model", [])
    if not isinstance(models, list) or not all(isinstance(table, dict) for table in models):
        raise InputError(f"{where} has to give each model a table [[model]]")
    return [{**defaults, **table} for table in models]


def _csv_rows(text: str, where: str) -> list[Mapping[str, Any]]:
    hints = get_type_hints(Entry)
    found: list[Mapping[str, Any]] = []
    for number, row in enumerate(csv.DictReader(io.StringIO(text)), start=1):
        if None in row or None in row.values():
            raise InputError(
                f"model {number} of {where} has more or fewer cells than the first "
                "row, which names them"
            )
        found.append({k: _cell(v, hints.get(k, str)) for k, v in row.items() if v != ""})
    return found


def _cell(text: str, kind: Any) -> Any:
    """What a cell of a table holds; as it is where it is no such number, to be told of so."""
    for number in (int, float):
        if number is kind or number in get_args(kind):
            try:
                return number(text)
            except ValueError:
                return text
    return text


def rows(batched: Batched) -> Sequence[Mapping[str, Any]]:
    """The results as rows of a table."""
    return [
        {f.name: getattr(done, f.name) for f in fields(done) if f.name != "key"}
        | {"gates": "; ".join(done.gates)}
        for done in batched.results
    ]
