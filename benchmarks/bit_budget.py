"""Print what a bit budget wins: precisions chosen node by node against one for all, in equal bytes.

Usage: python benchmarks/bit_budget.py FOLDER [MODEL ...] [--ratios R,...] [--precisions P,...]
       [--samples N] [--output FILE]

FOLDER keeps what was measured, so that a second run measures only what is missing. MODEL is the
beginning of a case's name, of the trained models and, where ONNXQ_REAL names the folder that
`real/fetch.py` filled, of real ones. A ratio R asks for a file of 1/R of the float one's bytes;
every precision for all nodes asks for one as small as it makes. What is chosen has the least
predicted loss in so few bytes, as the search of `optimize --max-size-ratio` proposes; methods are
automatic for both. All is judged on samples that nothing was fitted to or chosen by.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import ClassVar

from cases import Case, real_cases, trained_cases
from heading import heading

from onnxq.job import Job, open_job
from onnxq.options import Options
from onnxq.plan import Plan
from onnxq.precision import FLOAT
from onnxq.prepare import observed, prepare
from onnxq.proof import verify
from onnxq.registry import split_forms
from onnxq.saved import SavedAsJson
from onnxq.search import Search
from onnxq.study import Study, apply_to, study, uniform_plan
from onnxq.targets import load_target
from onnxq.verify import Gate
from onnxq.verify.result import AGREEMENT

RESULTS = Path(__file__).resolve().parent / "results" / "bit_budget.md"
TARGET = "cpu-x64"
RATIOS = (6.0, 7.0, 8.0)

_WORTH = 4.5
"""So many times smaller something is that is tried against a mixture of the same size."""

_EQUAL = 1e-3
"""Part of a size that does not count: names and the like."""


@dataclass(frozen=True)
class Row(SavedAsJson):
    """One model that was made.

    Attributes:
        asked: How many times smaller it was to be; 0 for one precision for all nodes.
        label: The precision, or how many nodes have which.
        smaller: Size of the float model to that of this one.
        metric: Name of the metric; empty without labels.
        drop: What it loses.
        sqnr_db: Of the worst output.
    """

    schema: ClassVar[str] = "onnxq/bit-budget-row/1"
    what: ClassVar[str] = "row"
    remedy: ClassVar[str] = "measure it anew"

    asked: float
    label: str
    smaller: float
    metric: str
    drop: float
    sqnr_db: float

    @property
    def lost(self) -> str:
        """For people."""
        if not self.metric:
            return f"{self.sqnr_db:.1f} dB"
        share = self.metric == "accuracy"
        drop = f"{100 * self.drop:+.2f} points" if share else f"{self.drop:+.4f} bits"
        return f"{drop}, {self.sqnr_db:.1f} dB"


class Bench:
    """Measures one case, and keeps what it measured."""

    def __init__(self, case: Case, folder: Path, job: Job) -> None:
        self._case, self._folder, self._job = case, folder, job

    @cached_property
    def _study(self) -> Study:
        return study(observed(prepare(self._job)))

    def uniform(self, precision: str) -> Row:
        """With one precision for all nodes that can have it."""
        row = self._kept(precision, 0.0, lambda: uniform_plan(self._study.prepared, precision))
        assert row is not None
        return row

    def mixed(self, ratio: float) -> Row | None:
        """With what loses least in so few bytes; None where nothing is as small."""
        return self._kept(f"{ratio:.4g}", ratio, lambda: self._least(ratio))

    def _least(self, ratio: float) -> Plan | None:
        search = Search(self._study, [Gate("size_ratio", ">=", ratio)])
        return search.smallest_loss(self._study.problem())

    def _kept(self, name: str, asked: float, make: Callable[[], Plan | None]) -> Row | None:
        path = self._folder / f"{self._case.name}={name}.json"
        if path.is_file():
            return Row.load(path)
        print(f"{self._case.name}: {name}", file=sys.stderr, flush=True)
        if (plan := make()) is None:
            return None
        graph, _ = apply_to(self._study.prepared, plan, self._job.context)
        # What was found out about a file is kept by its name.
        made = self._job.files.save(graph, f"{path.stem}.onnx")
        report = verify(self._job, made, full=False)
        counts = Counter(node.precision for node in plan.nodes if node.precision != FLOAT)
        metric = report.metric if report.metric and report.metric.name != AGREEMENT else None
        row = Row(
            asked,
            ", ".join(f"{amount} {precision}" for precision, amount in sorted(counts.items()))
            if asked
            else name,
            report.size.ratio,
            metric.name if metric else "",
            metric.drop if metric else 0.0,
            report.sqnr_db,
        )
        row.save(path)
        return row


def table(name: str, uniform: Sequence[Row], mixed: Sequence[Row]) -> Iterator[str]:
    """One model's rows in Markdown: each budget, the best of one precision in it, and a mixture."""
    yield f"## {name}"
    yield ""
    yield "| at most | one precision | size | lost | chosen | size | lost |"
    yield "|---|---|---|---|---|---|---|"
    for row in sorted(mixed, key=lambda row: row.asked):
        fitting = [other for other in uniform if other.smaller >= row.asked * (1 - _EQUAL)]
        best = max(fitting, key=lambda other: other.sqnr_db, default=None)
        theirs = (best.label, f"1/{best.smaller:.2f}", best.lost) if best else ("none", "", "")
        cells = [f"1/{row.asked:.2f}", *theirs, row.label, f"1/{row.smaller:.2f}", row.lost]
        yield f"| {' | '.join(cells)} |"
    yield ""


def main() -> None:
    """Measure what is wanted, and print and write the tables of all that is kept."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="keeps what was measured")
    parser.add_argument("models", nargs="*", metavar="MODEL", help="beginning of a case's name")
    parser.add_argument(
        "--ratios", default=RATIOS, metavar="R,...", help="times smaller", type=_all
    )
    parser.add_argument("--precisions", default="", metavar="P,...", help="of the target's")
    parser.add_argument("--samples", type=int, default=None, metavar="N", help="to calibrate on")
    parser.add_argument("--output", type=Path, default=RESULTS, metavar="FILE")
    parsed = parser.parse_args()
    parsed.folder.mkdir(parents=True, exist_ok=True)
    precisions = tuple(split_forms(parsed.precisions)) if parsed.precisions else ()
    tables = []
    for case in (*trained_cases(), *real_cases()):
        if case.name.startswith(tuple(parsed.models) or ""):
            measure(case, parsed.folder, parsed.ratios, precisions, parsed.samples)
        rows = [Row.load(path) for path in sorted(parsed.folder.glob(f"{case.name}=*.json"))]
        parts = ([r for r in rows if not r.asked], [r for r in rows if r.asked])
        tables += ["\n".join(table(case.name, *parts))] if rows else []
    title = "Precisions chosen node by node within a bit budget"
    text = "\n".join([heading(title, "bit_budget.py", 1), *tables])
    print(text)
    parsed.output.write_text(text.rstrip() + "\n")


def measure(
    case: Case,
    folder: Path,
    ratios: Sequence[float],
    precisions: Sequence[str],
    samples: int | None,
) -> None:
    """Measure what is not kept yet of one case."""
    names = precisions or (*load_target(TARGET).precisions, *load_target(TARGET).small)
    options = Options(
        target=TARGET, precisions=names, cost="size", max_size_ratio=1.0, samples=samples
    )
    with open_job(case.model, case.data, options, eval_data=case.eval_data) as job:
        bench = Bench(case, folder, job)
        uniform = [bench.uniform(precision) for precision in names]
        for ratio in sorted({*ratios, *(row.smaller for row in uniform if row.smaller > _WORTH)}):
            bench.mixed(ratio)


def _all(text: str) -> tuple[float, ...]:
    return tuple(map(float, text.split(",")))


if __name__ == "__main__":
    main()
