"""Print what accuracy methods win over plain rounding to the same format, beside onnxruntime's own.

Usage: python benchmarks/accuracy_methods.py FOLDER [MODEL ...] [--formats F,...] [--methods M,...]
       [--remake M,...] [--windows N] [--seconds S] [--memory GB] [--minutes M] [--output FILE]

FOLDER keeps what every attempt gave, so that a second run attempts only what is missing, and all of
the methods in --remake; another number of windows wants another folder. MODEL is the beginning of a
model's name. --methods names what to attempt: methods of onnxq (several together joined by "+"),
none, which is plain rounding, auto, and others' by the names that they have in the tables, with
hyphens. The tables hold whatever FOLDER has. ONNXQ_REAL names the folder that `real/fetch.py`
filled, whose environment onnxruntime's weights in few bits need, and ONNXQ_CORPUS the one with
models and data for CIFAR-10; models that are not there are left out.

Every attempt works in a process of its own and sees the same samples. It is judged on others that
no method saw. The drop is what the metric loses of the float model's value; its interval is that of
the same samples paired. "Of plain" is the drop relative to that of onnxq's plain rounding; without
labels it is the noise. Seconds and peak memory are per million weights of the model; a process with
onnxq or onnxruntime loaded takes 0.15 GB by itself, which is most of it for small models.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

from attempts import AUTOMATIC, CORRECTED, PLAIN, RUNTIME, methods
from candidates import METHODS as TOOLS
from candidates import Limits, Made, run_limited
from heading import heading
from trials import FORMATS, Trial, trials

from onnxq.errors import InputError
from onnxq.ir import load
from onnxq.ir.saving import constant_bytes
from onnxq.runtime import Session
from onnxq.runtime.files import ModelFiles
from onnxq.saved import SavedAsJson
from onnxq.verify import CompareOptions, Reference, compare_files
from onnxq.verify.result import AGREEMENT, MetricFacts
from onnxq.verify.workload import Workload, single_feed

RESULTS = Path(__file__).resolve().parent / "results" / "accuracy_methods.md"

_FLOAT_BYTES = 4
_SHARES = ("accuracy", AGREEMENT)
"""Metrics that are shares of samples."""

_NOT_FOR = "none of the methods"
"""What onnxq says of methods that have nothing to do."""


@dataclass(frozen=True)
class Row(SavedAsJson):
    """What came of an attempt.

    Attributes:
        method: Its name.
        made: What making took, or the problem, beside which nothing else counts.
        metric: Of both models; agreement where there are no labels.
        sqnr_db: Of the worst output.
        smaller: Size of the float model to that of this one.
        speed: Relative to the float model; 0 if it was not measured.
    """

    schema: ClassVar[str] = "onnxq/accuracy-row/1"
    what: ClassVar[str] = "row"
    remedy: ClassVar[str] = "attempt it anew"

    method: str
    made: Made
    metric: MetricFacts | None = None
    sqnr_db: float = -math.inf
    smaller: float = 0.0
    speed: float = 0.0

    @property
    def is_own(self) -> bool:
        """Whether onnxq made it."""
        return is_own(self.method)

    @property
    def loss(self) -> float:
        """What is to be small: the drop, or without labels the noise relative to the signal."""
        if self.metric is None or self.metric.name == AGREEMENT:
            return 10 ** (-self.sqnr_db / 10)
        return self.metric.drop


class Bench:
    """Attempts on one trial, and what is kept of them."""

    def __init__(self, trial: Trial, folder: Path, windows: int, limits: Limits) -> None:
        self._trial, self._folder, self._windows, self._limits = trial, folder, windows, limits

    def rows(self) -> list[Row]:
        """What is kept, in the order of the methods' names, others at the end."""
        kept = {path: None for path in sorted(self._folder.glob(f"{self._trial.name}=*.json"))}
        known = [self._file(method) for method in methods(self._trial)]
        paths = [*(path for path in known if path in kept), *(p for p in kept if p not in known)]
        return [Row.load(path) for path in paths]

    def attempt(self, wanted: Iterable[str], anew: set[str], seconds: float) -> None:
        """Make and judge what is wanted and not kept yet, or to be made anew."""
        left = [m for m in wanted if m in anew or not self._file(m).is_file()]
        if not left:
            return
        model, held_out = self._trial.case.model, self._trial.case.parts()[1]
        options = CompareOptions(
            threads=self._limits.threads,
            layers=False,
            latency=seconds > 0,
            latency_seconds=seconds,
        )
        with ModelFiles.temporary() as files:
            reference = Reference(model, held_out, files=files)
            workload = Workload(single_feed(held_out, Session(model).inputs))
            for method in left:
                print(f"{self._trial.name}: {method}", file=sys.stderr, flush=True)
                self._row(method, reference, workload, options).save(self._file(method))

    def _row(
        self, method: str, reference: Reference, workload: Workload, options: CompareOptions
    ) -> Row:
        output = self._file(method).with_suffix(".onnx")
        command = [sys.executable, str(Path(__file__).with_name("attempts.py"))]
        command += [str(self._folder), self._trial.name, method, str(output)]
        command += ["--windows", str(self._windows)]
        row = Row(method, run_limited(command, output, self._limits))
        try:
            if row.made.problem:
                return row
            report = compare_files(
                reference.path, output, reference.data, workload, options, reference=reference
            )
        except InputError as error:
            return Row(method, Made(problem=str(error).replace(str(output), "it")))
        finally:
            for path in self._folder.glob(f"{output.stem}.*"):
                path.unlink()
        speed = report.latency.speedup if report.latency else 0.0
        return replace(
            row,
            metric=report.metric,
            sqnr_db=report.sqnr_db,
            smaller=report.size.ratio,
            speed=speed,
        )

    def _file(self, method: str) -> Path:
        return self._folder / f"{self._trial.name}={method}.json"


def table(trial: Trial, rows: Sequence[Row], weights: float) -> Iterator[str]:
    """One trial's rows in Markdown; ``weights`` are those of the model, in millions."""
    done = [row for row in rows if not row.made.problem]
    metric = next((row.metric for row in done if row.metric is not None), None)
    name = metric.name if metric else "metric"
    plain = next((row for row in done if row.method == PLAIN), None)
    yield f"## {trial.case.name}: {trial.title}"
    yield ""
    if metric is not None and metric.name != AGREEMENT:
        yield f"{name} of the float model: {_value(metric.float, name)} ({metric.samples} samples)"
        yield ""
    is_timed = any(row.speed for row in done)
    yield (
        f"| method | {name} | drop | interval | of plain | SQNR | size |"
        f"{' speed |' if is_timed else ''} s per million | GB per million |"
    )
    yield f"|{'---|' * (10 if is_timed else 9)}"
    for row in done:
        yield f"| {' | '.join(_cells(row, plain, weights, is_timed))} |"
    yield ""
    if text := verdict(rows):
        yield text
        yield ""
    unfit = [label(row) for row in rows if _NOT_FOR in row.made.problem]
    if unfit:
        yield f"Not for any of its nodes: {', '.join(unfit)}."
        yield ""
    for row in rows:
        if row.made.problem and _NOT_FOR not in row.made.problem:
            yield f"{label(row)} fails: {row.made.problem}"
            yield ""


def _cells(row: Row, plain: Row | None, weights: float, is_timed: bool) -> Iterator[str]:
    yield label(row)
    metric = row.metric
    if metric is None:
        yield from ("", "", "")
    else:
        low, high = metric.confidence or (math.nan, math.nan)
        yield _value(metric.candidate, metric.name)
        yield _drop(metric.drop, metric.name)
        yield f"{_drop(low, metric.name)} to {_drop(high, metric.name)}"
    yield f"{row.loss / plain.loss:.2f}" if plain is not None and plain.loss > 0 else ""
    yield f"{row.sqnr_db:.1f} dB"
    yield f"1/{row.smaller:.2f}"
    if is_timed:
        yield f"{row.speed:.2f}x" if row.speed else ""
    yield f"{row.made.seconds / weights:.3g}"
    yield f"{row.made.peak_bytes / 1e9 / weights:.2g}"


def best(rows: Sequence[Row]) -> tuple[Row | None, Row | None]:
    """The best of onnxq's methods, and the best of all others that are as people get them."""
    done = [row for row in rows if not row.made.problem and row.method not in CORRECTED]
    own, others = ([r for r in done if r.is_own is whose] for whose in (True, False))
    first, second = (min(part, key=lambda row: row.loss, default=None) for part in (own, others))
    return first, second


def verdict(rows: Sequence[Row]) -> str:
    """The best of onnxq's methods against the best of all others, in words; empty without both."""
    own, other = best(rows)
    if own is None or other is None:
        return ""
    word = "loses to" if own.loss > other.loss else "is no worse than"
    within = ", within the noise" if _overlap(own, other) else ""
    return f"{label(own)} ({_lost(own)}) {word} {label(other)} ({_lost(other)}){within}."


def _overlap(one: Row, other: Row) -> bool:
    """Whether the interval of each holds the other's drop."""
    pairs = ((one.metric, other.metric), (other.metric, one.metric))
    return all(
        a is not None
        and b is not None
        and a.confidence
        and a.name != AGREEMENT
        and a.confidence[0] <= b.drop <= a.confidence[1]
        for a, b in pairs
    )


def summary(trial: Trial, rows: Sequence[Row]) -> str:
    """One trial in a line: plain rounding, onnxq's best and choice, and the best of others."""
    named = {row.method: row for row in rows if not row.made.problem}
    cells = [_lost(named[PLAIN]) if PLAIN in named else ""]
    cells += [_lost(named[AUTOMATIC]) if AUTOMATIC in named else ""]
    cells += [f"{_lost(row)} ({label(row)})" if row else "" for row in best(rows)]
    return f"| {trial.case.name} | {trial.title} | {' | '.join(cells)} |"


def is_own(method: str) -> bool:
    """Whether onnxq is what makes it."""
    return not method.startswith(RUNTIME) and method not in TOOLS


def label(row: Row) -> str:
    """What a row is called."""
    return f"onnxq {row.method}" if row.is_own else row.method.replace("-", " ", 1)


def _lost(row: Row) -> str:
    metric = row.metric
    if metric is None or metric.name == AGREEMENT:
        return f"{row.sqnr_db:.1f} dB"
    return f"{_drop(metric.drop, metric.name)} {'points' if metric.name in _SHARES else 'bits'}"


def _value(number: float, metric: str) -> str:
    return f"{100 * number:.2f} %" if metric in _SHARES else f"{number:.4f}"


def _drop(number: float, metric: str) -> str:
    return f"{100 * number:+.2f}" if metric in _SHARES else f"{number:+.4f}"


def main() -> None:
    """Attempt what is wanted, and print and write the tables of all that is kept."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="keeps what attempts gave")
    parser.add_argument("models", nargs="*", metavar="MODEL", help="beginning of a model's name")
    parser.add_argument("--formats", default="", metavar="F,...", help=f"of {', '.join(FORMATS)}")
    parser.add_argument("--methods", default="", metavar="M,...", help="what to attempt")
    parser.add_argument("--remake", default="", metavar="M,...", help="what to attempt anew")
    parser.add_argument("--windows", type=int, default=8, help="of the language model, to fit on")
    parser.add_argument("--seconds", type=float, default=0.0, help="time to measure each model")
    parser.add_argument("--threads", type=int, default=1, help="threads inside one operator")
    parser.add_argument("--memory", type=float, default=8.0, metavar="GB", help="most memory")
    parser.add_argument("--minutes", type=float, default=30.0, metavar="M", help="most time")
    parser.add_argument("--output", type=Path, default=RESULTS, metavar="FILE")
    parsed = parser.parse_args()
    formats, wanted, anew = (
        list(filter(None, text.split(",")))
        for text in (parsed.formats, parsed.methods, parsed.remake)
    )
    if unknown := sorted(set(formats) - set(FORMATS)):
        parser.error(f"there is no format {', '.join(unknown)}; there are {', '.join(FORMATS)}")
    folder = parsed.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    limits = Limits(parsed.threads, parsed.memory, parsed.minutes)
    tables, lines = [], []
    for trial in trials(folder, parsed.windows):
        bench = Bench(trial, folder, parsed.windows, limits)
        is_chosen = trial.case.name.startswith(tuple(parsed.models) or "")
        if is_chosen and (not formats or trial.format.name in formats):
            names = [*dict.fromkeys((*(wanted or methods(trial)), *anew))]
            names = [n for n in names if is_own(n) or n in trial.rivals]
            bench.attempt(names, set(anew), parsed.seconds)
        if rows := bench.rows():
            weights = constant_bytes(load(trial.case.model)) / _FLOAT_BYTES / 1e6
            tables.append("\n".join(table(trial, rows, weights)))
            lines.append(summary(trial, rows))
    text = "\n".join(
        [
            heading(
                "Accuracy methods against plain rounding", "accuracy_methods.py", limits.threads
            ),
            "Seconds are of the clock on a machine with other work: only their order counts.",
            "",
            "What is lost on data that no method saw:",
            "",
            "| model | format | onnxq none | onnxq auto | onnxq's best | the best of others |",
            "|---|---|---|---|---|---|",
            *lines,
            "",
            *tables,
        ]
    )
    print(text)
    parsed.output.write_text(text.rstrip() + "\n")


if __name__ == "__main__":
    main()
