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
relative to float; size; SQNR of the worst output on held-out samples; what becomes of decisions,
the drop where there are labels; seconds and peak memory of the making. Decisions are: the share
of equal argmaxes; the overlap, |A and B| / |A or B|, of what both models find (text where the
probability of a pixel is above 0.3, faces above 0.7, speech above 0.5); or the mean cosine between
embeddings.

A peer works if it makes a model that loads, and whose SQNR is at least 10 dB. The advantage is the
speed of onnxq over that of the fastest model among float and the peers that work and are as
accurate: with an SQNR of at least onnxq's less half a decibel, or of at least 30 dB. The advantage
over any is the same over all peers that work, however much less accurate they are.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from candidates import METHODS, Limits, Made, candidate, methods
from cases import Arrays, Case, real_cases

from onnxq.errors import InputError
from onnxq.job import single_feed
from onnxq.runtime import ErrorAccumulator, Session, interleaved
from onnxq.verify.metrics import Metric, choose_metric, paired_drop

HELD_OUT = 256
WORKS_DB = 10.0
EQUAL_DB = 0.5
ACCURATE_DB = 30.0
WORDS = 70
"""Longest reason in a cell."""


class Share:
    """Which share of decisions is the same; subclasses say what is counted."""

    form = "{:.1%}"

    def __init__(self) -> None:
        self._same = self._all = 0.0

    def add(self, reference: Arrays, candidate: Arrays) -> None:
        """Count one batch."""
        same, of_all = self.count(*(next(iter(o.values())) for o in (reference, candidate)))
        self._same += same
        self._all += of_all

    def count(self, reference: np.ndarray, candidate: np.ndarray) -> tuple[float, float]:
        """What is the same, and of how much."""
        raise NotImplementedError

    def __str__(self) -> str:
        """The share, as a cell has it."""
        return self.form.format(self._same / self._all if self._all else 1.0)


class Argmax(Share):
    """Equal positions of the largest value."""

    def count(self, reference: np.ndarray, candidate: np.ndarray) -> tuple[float, float]:
        """What is the same, and of how much."""
        same = reference.argmax(-1) == candidate.argmax(-1)
        return float(same.sum()), float(same.size)


class Overlap(Share):
    """What both find, of what at least one finds."""

    form = "{:.1%} overlap"

    def __init__(self, above: float, column: int | None = None) -> None:
        super().__init__()
        self._above = above
        self._column = column

    def count(self, reference: np.ndarray, candidate: np.ndarray) -> tuple[float, float]:
        """What is the same, and of how much."""
        both = [a if self._column is None else a[..., self._column] for a in (reference, candidate)]
        ours, theirs = (array > self._above for array in both)
        return float((ours & theirs).sum()), float((ours | theirs).sum())


class Cosine(Share):
    """Mean cosine between embeddings."""

    form = "cosine {:.4f}"

    def count(self, reference: np.ndarray, candidate: np.ndarray) -> tuple[float, float]:
        """What is the same, and of how much."""
        norms = np.linalg.norm(reference, axis=-1) * np.linalg.norm(candidate, axis=-1)
        return float(((reference * candidate).sum(-1) / norms).sum()), float(norms.size)


DECISIONS: dict[str, Callable[[], Share]] = {
    **dict.fromkeys(("ocr_cls", "ocr_rec", "smollm2", "magika", "byte_bidi_lstm"), Argmax),
    "ocr_det": lambda: Overlap(0.3),
    "ultraface_slim": lambda: Overlap(0.7, 1),
    "ultraface_rfb": lambda: Overlap(0.7, 1),
    "silero_vad": lambda: Overlap(0.5),
    "minilm": Cosine,
}


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
    problem: str = field(default="")

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
    return (ours.speed if ours.works else 1.0) / max(1.0, *speeds, 0.0)


def _mean(values: Sequence[float]) -> float:
    return math.exp(sum(map(math.log, values)) / len(values))


def _entry(case: Case, method: str, folder: Path, anew: set[str], limits: Limits) -> Entry:
    path, made = candidate(case, method, folder, limits, anew=method in anew)
    entry = Entry(method, path, made, problem=made.problem)
    if not entry.problem:
        entry.smaller = case.model.stat().st_size / path.stat().st_size
    return entry


def _measure(case: Case, entries: list[Entry], threads: int, seconds: float) -> float:
    """Fill in what running the models tells; gives the float model's milliseconds."""
    sessions = [Session(case.model, threads=threads)]
    one = single_feed(case.parts()[1], sessions[0].inputs)
    loaded = []
    for entry in entries:
        if entry.problem:
            continue
        try:
            session = Session(entry.path, threads=threads)
            session.run(one.feeds)
        except InputError as error:
            entry.problem = str(error).replace(str(entry.path), "it")
            continue
        sessions.append(session)
        loaded.append(entry)
    timings = interleaved(sessions, one.feeds, seconds=seconds)
    for entry, timing in zip(loaded, timings[1:], strict=True):
        entry.speed = timing.speedup
    _judge(case, sessions, loaded)
    return timings[0].p10_ms


def _judge(case: Case, sessions: list[Session], loaded: list[Entry]) -> None:
    """Fill in SQNR, decisions and drop."""
    held_out = case.parts()[1].take(HELD_OUT)
    metrics: list[Metric | None]
    metrics = [choose_metric(None, held_out.has_labels, held_out.labels_ndim) for _ in sessions]
    errors = [ErrorAccumulator() for _ in loaded]
    shares = [DECISIONS[case.name]() if case.name in DECISIONS else None for _ in loaded]
    for batch in held_out.batches():
        outputs = [batch.trim(session.run(batch.feeds)) for session in sessions]
        for metric, given in zip(metrics, outputs, strict=True):
            if metric is not None:
                metric.add(given, batch.labels, batch.valid)
        for error, share, given in zip(errors, shares, outputs[1:], strict=True):
            error.add(outputs[0], given)
            if share is not None:
                share.add(outputs[0], given)
    reference, *others = metrics
    for entry, error, share, metric in zip(loaded, errors, shares, others, strict=True):
        entry.sqnr_db = min(e.sqnr_db for e in error.result())
        told = [] if share is None else [str(share)]
        if reference is not None and metric is not None:
            facts = paired_drop(reference, metric)
            told.append(f"{facts.drop:+.3f} {facts.name}")
        entry.decisions = ", ".join(told)


if __name__ == "__main__":
    main()
