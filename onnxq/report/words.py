"""How reports write numbers, names and verdicts."""

from __future__ import annotations

import math
from collections.abc import Mapping

from onnxq.adaptive.replay import Nearness
from onnxq.tune.training import TrainingFacts
from onnxq.verify.gates import Gate
from onnxq.verify.metrics import metric_kind
from onnxq.verify.result import (
    AGREEMENT,
    NEIGHBOUR,
    AgreementFacts,
    DeploymentFacts,
    GateFacts,
    JumpFacts,
    LatencyFacts,
    MetricFacts,
    ThroughputFacts,
)

_LONGEST = 200
"""Most characters of a name: terminals and services are flooded by longer ones."""

_UNSTEADY = 1.2
"""Factor between two measures of a speedup that shows a disturbed measurement."""


def printable(text: str) -> str:
    """The text with everything that is not printable written as an escape.

    Names come from model files: a line break or a terminal's control sequence in one of them
    must not get into a message, a table or an XML file.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else _escape(c) for c in text)


def shortened(name: str, width: int) -> str:
    """A name in so many characters; what tells names apart is mostly at their end."""
    head = max(0, min(6, (width - 1) // 3))
    return name if len(name) <= width else f"{name[:head]}…{name[head + 1 - width :]}"


def _escape(char: str) -> str:
    return char.encode("unicode_escape", errors="surrogatepass").decode("ascii")


def name(text: str) -> str:
    """A name from a model, printable, without its middle where it is long."""
    shown = printable(text)
    half = _LONGEST // 2
    return shown if len(shown) <= _LONGEST else f"{shown[:half]}…{shown[-half:]}"


def size(count: int) -> str:
    """Bytes in decimal units: ``1.31 MB``."""
    value = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 999.5:
            return f"{count} B" if unit == "B" else f"{value:.3g} {unit}"
        value /= 1000.0
    return f"{value:,.3g} TB" if value < 999.5 else f"{value:,.0f} TB"


def milliseconds(value: float) -> str:
    """Milliseconds with three digits: ``0.123 ms``, ``12.3 ms``, ``1,230 ms``."""
    return f"{significant(value)} ms"


def per_second(value: float) -> str:
    """Samples per second with three digits: ``1,230/s``."""
    return f"{significant(value)}/s"


def measured_on(found: LatencyFacts | ThroughputFacts) -> str:
    """Where and how something was timed: ``cpu, 1 thread``, ``cpu, 2 threads, batch of 8``."""
    how = f"{printable(found.provider)}, {count(found.threads, 'thread')}"
    return how if found.batch == 1 else f"{how}, batch of {found.batch}"


def duration(seconds: float) -> str:
    """A stretch of time: ``3.2 ms``, ``8.1 s``, ``2 min 5 s``."""
    if seconds < 0.9995:
        return milliseconds(seconds * 1e3)
    if seconds < 99.95 or not math.isfinite(seconds):
        return f"{significant(seconds)} s"
    return f"{round(seconds) // 60} min {round(seconds) % 60} s"


def significant(value: float) -> str:
    """Three significant digits, never in scientific notation where a person reads times."""
    if not math.isfinite(value):
        return str(value)
    magnitude = abs(value)
    if magnitude >= 99.95:
        return f"{value:,.0f}"
    digits = 1 if magnitude >= 9.995 else 2 if magnitude >= 0.9995 else 3
    return f"{value:.{digits}f}"


def decibels(value: float) -> str:
    """SQNR: ``31.2 dB``; ``exact`` where there is no difference at all."""
    if value == math.inf:
        return "exact"
    return f"{_unsigned_zero(value, 1)} dB"


def ratio(value: float) -> str:
    """A ratio without its sign: ``2.09``."""
    return f"{value:.2f}"


def speedup_interval(found: LatencyFacts | DeploymentFacts) -> str:
    """The 95 % interval of a speedup: ``2.01 to 2.15``; empty if there is none."""
    return "" if found.confidence is None else " to ".join(map(ratio, found.confidence))


def place(found: DeploymentFacts) -> str:
    """Where a model was tried: ``cpu-x64``, ``openvino, ov/bin/python``."""
    return ", ".join(filter(None, (found.target or found.provider, found.python)))


def change(size_ratio: float) -> str:
    """A ratio of sizes: ``3.87x smaller``, ``1.20x larger``."""
    if 0.0 < size_ratio < 1.0:
        return f"{ratio(1.0 / size_ratio)}x larger"
    return f"{ratio(size_ratio)}x smaller"


def is_unsteady(float_ms: float, candidate_ms: float, speedup: float) -> bool:
    """Whether other work disturbed a measurement.

    The speedup compares the fastest tenth of the runs of each. On a quiet machine that is the
    ratio of the two medians, too.
    """
    found = (float_ms, candidate_ms, speedup)
    if not all(0.0 < value < math.inf for value in found):
        return False
    own, other, ratio = map(math.log, found)
    return abs(own - other - ratio) > math.log(_UNSTEADY)


def jump(found: JumpFacts) -> str:
    """A sentence on the first layer that errs more than its precision explains."""
    cut = f"; {share(found.saturation)} of its values are cut off" if found.saturation else ""
    others = f"; or {' or '.join(map(name, found.others))} is" if found.others else ""
    return (
        f"{name(found.node)} ({printable(found.op_type)}) is at fault: "
        f"{name(found.what)} has {decibels(found.local_db)} on float's inputs, where its "
        f"precision explains {decibels(found.expected_db)}{cut}{others}"
    )


def number(value: float) -> str:
    """Any number, short: four significant digits."""
    return f"{value + 0.0:.4g}"


def gate_value(gate: GateFacts) -> str:
    """What was measured of a gate, with as many digits as show why it held or did not."""
    if gate.value is None:
        return "not measured"
    promise = Gate.parse(gate.expr)
    texts = (f"{gate.value + 0.0:.{digits}g}" for digits in range(4, 18))
    known = (text for text in texts if promise.holds(float(text)) == gate.passed)
    return next(known, number(gate.value))


def metric_value(metric: MetricFacts, value: float) -> str:
    """A metric's value: proportions in percent, everything else as it is."""
    return bare_drop(metric, value) + (" %" if is_share(metric.name) else "")


def metric_drop(metric: MetricFacts, value: float) -> str:
    """A difference of two metric values: proportions in percentage points."""
    return bare_drop(metric, value) + (" points" if is_share(metric.name) else "")


def bare_drop(metric: MetricFacts, value: float) -> str:
    """`metric_drop` without its unit."""
    return _unsigned_zero(value * 100.0, 2) if is_share(metric.name) else number(value)


def is_share(metric: str) -> bool:
    """Whether a metric is a share of all, which people read in percent."""
    kind = metric_kind(metric)
    return metric == AGREEMENT or (kind is not None and kind.is_share)


def measured(metric: str | None, value: float | None) -> str:
    """What a metric of that name is; empty for None."""
    if metric is None or value is None:
        return ""
    return share(value) if is_share(metric) else number(value)


def share(value: float) -> str:
    """A share in percent: ``99.20 %``."""
    return f"{_unsigned_zero(value * 100.0, 2)} %"


def agreement(facts: AgreementFacts) -> tuple[str, str, str]:
    """What agrees, where with a gap for the share, and over how much.

    As ``decision``, ``on {} of samples``, ``500 samples``.
    """
    samples = count(facts.samples, "sample")
    if facts.decisions[0].kind == NEIGHBOUR:
        return "nearest neighbour", "for {} of samples", samples
    marked = any(decision.marked for decision in facts.decisions)
    if not marked and facts.positions <= facts.samples:
        return "decision", "on {} of samples", samples
    where = "positions that either model marks" if marked else "positions"
    return "decision", f"at {{}} of {where}", f"{count(facts.positions, 'position')} in {samples}"


def agreement_interval(facts: AgreementFacts) -> str:
    """The 95 % interval of an agreement: ``98.1 to 99.8 %``."""
    low, high = (f"{100 * end:.1f}" for end in facts.confidence)
    return f"{low} to {high} %"


def nearness(found: Nearness) -> str:
    """How near to float answers are: ``99.20 % agree, 31.2 dB``."""
    parts = [] if found.agreement is None else [f"{share(found.agreement)} agree"]
    parts += [] if found.sqnr_db is None else [decibels(found.sqnr_db)]
    return ", ".join(parts) or "not looked at"


def evidence(share: float) -> str:
    """Evidence for drift, of what raises an alarm: ``0.03``, ``alarm``."""
    return "alarm" if share >= 1 else f"{share:.2f}"


def candidate_drop(metric: MetricFacts | None, drop: float | None) -> str:
    """A candidate's drop; empty where it was not measured."""
    return "" if metric is None or drop is None else metric_drop(metric, drop)


def drop_interval(metric: MetricFacts) -> str:
    """The 95 % interval of the drop: ``-0.12 to 0.34 points``; empty if there is none."""
    if metric.confidence is None:
        return ""
    low, high = metric.confidence
    return f"{bare_drop(metric, low)} to {metric_drop(metric, high)}"


def cost(kind: str, value: float) -> str:
    """A cost: ``0.123 ms``, ``1.31 MB``, ``2.5e+06`` operations."""
    if kind == "latency":
        return milliseconds(value)
    return size(round(value)) if kind == "size" else number(value)


def loss(proxy: str, value: float | None) -> str:
    """A predicted loss, that of the proxy ``noise`` as the SQNR it leaves; empty for None."""
    if value is None:
        return ""
    if proxy != "noise":
        return number(value)
    return decibels(math.inf if value <= 0 else -10 * math.log10(value))


def count(amount: int, noun: str) -> str:
    """A number and its noun: ``1 sample``, ``899 samples``."""
    return f"{amount:,} {noun}{'' if amount == 1 else 's'}"


def listed(counts: Mapping[str, int], most: int | None = None) -> str:
    """Names with their counts, the most frequent first: ``QLinearConv 20, QLinearAdd 8``."""
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    shown = ordered if most is None else ordered[:most]
    parts = [f"{printable(name)} {amount}" for name, amount in shown]
    if len(shown) < len(ordered):
        parts.append(f"{len(ordered) - len(shown)} more")
    return ", ".join(parts) or "none"


def _unsigned_zero(value: float, digits: int) -> str:
    """The value to so many digits; what rounds to zero has no sign."""
    text = f"{value:.{digits}f}"
    return text.lstrip("-") if math.isfinite(value) and float(text) == 0.0 else text


def training(facts: TrainingFacts) -> tuple[str, str]:
    """How long a model was trained, and what came of it."""
    best = facts.history[facts.best]
    was = facts.history[0]
    if best.score is None or was.score is None:
        came = f"held-out loss {number(was.held_out_loss)} -> {number(best.held_out_loss)}"
    else:
        came = f"held-out accuracy {share(was.score)} -> {share(best.score)}"
    what = f"{facts.method}, {count(facts.epochs, 'epoch')}"
    samples = count(facts.samples, "sample")
    changed = f" changed at random ({', '.join(facts.augment)})" if facts.augment else ""
    where = f"{samples}{changed}, {duration(facts.seconds)} on {facts.device}"
    return what, f"{came} (epoch {facts.best}; {where})"
