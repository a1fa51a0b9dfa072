"""Print how onnxq's default does on models that people ship, beside other quantizers.

Usage: ONNXQ_REAL=FOLDER python benchmarks/real_models.py CANDIDATES [MODEL ...]
       [--remake METHOD,...] [--threads N] [--seconds S] [--memory GB] [--minutes M]

FOLDER is what `benchmarks/real/fetch.py` filled; ONNXQ_CORPUS names the folder with the models of
its zoo. CANDIDATES is a folder that keeps what every method makes: a second run makes nothing anew
but what is missing, and all of the methods in --remake (onnxq, static, dynamic, static-fused,
dynamic-fused, nncf). MODEL is the beginning of a model's name; without one all are measured.

The methods: onnxq's `optimize` with nothing said but the data; onnxruntime's `quantize_static` and
`quantize_dynamic` after its pre-processing, weights per channel; for transformers both after its
transformer optimizer as well ("fused"); NNCF's `quantize`, in an environment of its own. All but
onnxq get the model with weights as constants and at opset 13 at least, where they would fail
otherwise. All get the same calibration samples. Each works in a process of its own, which gives its
seconds and its peak memory. One that takes more than --memory or --minutes is stopped.

All models of a row are measured in turn in one process, on single samples. A cell holds: speed
relative to float; size; SQNR of the worst output on held-out samples; agreement with float's
decisions, with it the mean cosine of embeddings, or the drop where there are labels; seconds and
peak memory of the making.

A peer works if it makes a model that loads, and whose SQNR is at least 10 dB. The advantage is the
speed of onnxq (of float if its promise broke) over that of the fastest model among float and the
peers that work and are as accurate: with an SQNR of at least onnxq's less half a decibel, or of at
least 30 dB. The advantage over any is the same over all peers that work, however much less accurate
they are.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from candidates import METHODS, Limits, Made, candidate, methods
from cases import Case, real_cases

from onnxq.errors import InputError
from onnxq.runtime import Session, interleaved
from onnxq.verify import CompareOptions, Report, compare_files
from onnxq.verify.result import AGREEMENT
from onnxq.verify.workload import Workload, single_feed

HELD_OUT = 256
WORKS_DB = 10.0
EQUAL_DB = 0.5
ACCURATE_DB = 30.0
WORDS = 70
"""Longest reason in a cell."""


@dataclass
class Entry:
    """One method on one model."""

    method: str
    path: Path
    made: Made
    speed: float = 0.0
    sqnr_db: float = -math.inf
    smaller: float = 0.0
    decisions: str = ""
    problem: str = ""

    @property
    def works(self) -> bool:
        """Whether the model is of any use."""
        return not self.problem and self.sqnr_db >= WORKS_DB

    def __str__(self) -> str:
        """The cell."""
        if self.problem:
            short = self.problem if len(self.problem) <= WORDS else f"{self.problem[:WORDS]}…"
            return f"fails: {short.replace('|', '/')}"
        facts = [f"{self.speed:.2f}x", f"1/{self.smaller:.2f}", f"{self.sqnr_db:.1f} dB"]
        facts += [self.decisions] if self.decisions else []
        facts += [f"{self.made.seconds:.3g} s", f"{self.made.peak_bytes / 1e9:.2g} GB"]
        facts += [f"breaks {self.made.broken}"] if self.made.broken else []
        return ", ".join(facts)


def main() -> None:
    """Measure every model and print a table in Markdown, with geometric means at the end."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("folder", type=Path, metavar="CANDIDATES", help="keeps what is made")
    parser.add_argument("models", nargs="*", metavar="MODEL", help="beginning of a model's name")
    parser.add_argument("--remake", default="", metavar="METHOD,...", help="what to make anew")
    parser.add_argument("--threads", type=int, default=1, help="threads inside one operator")
    parser.add_argument("--seconds", type=float, default=10.0, help="time to measure each model")
    parser.add_argument("--memory", type=float, default=12.0, metavar="GB", help="most memory")
    parser.add_argument("--minutes", type=float, default=30.0, metavar="M", help="most time")
    parsed = parser.parse_args()
    anew = {name.replace("-", " ") for name in filter(None, parsed.remake.split(","))}
    if unknown := sorted(anew - set(METHODS)):
        parser.error(f"there is no method {', '.join(unknown)}; there are {', '.join(METHODS)}")
    cases = [c for c in real_cases() if c.name.startswith(tuple(parsed.models) or "")]
    if not cases:
        parser.error("no model is there: ONNXQ_REAL must name what benchmarks/real/fetch.py made")
    parsed.folder.mkdir(parents=True, exist_ok=True)
    limits = Limits(parsed.threads, parsed.memory, parsed.minutes)
    print(f"| model | float | {' | '.join(METHODS)} | advantage | over any |")
    print(f"|---|---|{'---|' * len(METHODS)}---|---|")
    equal, over_any = [], []
    for case in cases:
        entries = [_entry(case, method, parsed.folder, anew, limits) for method in methods(case)]
        milliseconds = _measure(case, entries, parsed.threads, parsed.seconds)
        found = {entry.method: str(entry) for entry in entries}
        equal.append(advantage(entries, min(entries[0].sqnr_db - EQUAL_DB, ACCURATE_DB)))
        over_any.append(advantage(entries, -math.inf))
        cells = [found.get(method, "") for method in METHODS]
        cells += [f"{equal[-1]:.2f}", f"{over_any[-1]:.2f}"]
        print(f"| {case.name} | {milliseconds:.2f} ms | {' | '.join(cells)} |", flush=True)
    print(f"\nGeometric mean of the advantage: {_mean(equal):.2f}, over any: {_mean(over_any):.2f}")


def advantage(entries: Sequence[Entry], least_db: float) -> float:
    """Speed of the first entry over that of float and of all others of at least this SQNR."""
    ours, *peers = entries
    speeds = [peer.speed for peer in peers if peer.works and peer.sqnr_db >= least_db]
    keeps = not ours.problem and not ours.made.broken
    return (ours.speed if keeps else 1.0) / max(1.0, *speeds, 0.0)


def _mean(values: Sequence[float]) -> float:
    return math.exp(sum(map(math.log, values)) / len(values))


def _entry(case: Case, method: str, folder: Path, anew: set[str], limits: Limits) -> Entry:
    path, made = candidate(case, method, folder, limits, anew=method in anew)
    return Entry(method, path, made, problem=made.problem)


def _measure(case: Case, entries: list[Entry], threads: int, seconds: float) -> float:
    """Fill in what running the models tells; gives the float model's milliseconds."""
    sessions = [Session(case.model, threads=threads)]
    held_out = case.parts()[1].take(HELD_OUT)
    one = single_feed(held_out, sessions[0].inputs)
    options = CompareOptions(threads=threads, layers=False, latency=False)
    loaded = []
    for entry in entries:
        if entry.problem:
            continue
        try:
            report = compare_files(case.model, entry.path, held_out, Workload(one), options)
            sessions.append(Session(entry.path, threads=threads))
        except InputError as error:
            entry.problem = str(error).replace(str(entry.path), "it")
            continue
        entry.sqnr_db, entry.smaller = report.sqnr_db, report.size.ratio
        entry.decisions = _decisions(report)
        loaded.append(entry)
    timings = interleaved(sessions, one.feeds, seconds=seconds)
    for entry, timing in zip(loaded, timings[1:], strict=True):
        entry.speed = timing.speedup
    return timings[0].p10_ms


def _decisions(report: Report) -> str:
    """Agreement, the cosine of embeddings, and the drop where there are labels."""
    told = []
    if report.agreement is not None:
        told.append(f"{report.agreement.value:.1%}")
        if any(decision.kind == "neighbour" for decision in report.agreement.decisions):
            told.append(f"cosine {report.outputs[0].cosine:.4f}")
    if report.metric is not None and report.metric.name != AGREEMENT:
        told.append(f"{report.metric.drop:+.3f} {report.metric.name}")
    return ", ".join(told)


if __name__ == "__main__":
    main()
