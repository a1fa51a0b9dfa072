"""The report as one HTML page that needs nothing beside itself."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path

from onnxq.report import figures, page, words
from onnxq.report.grouping import left_in_float
from onnxq.saved import write_text
from onnxq.verify.precision import counts
from onnxq.verify.result import GateFacts, LayerFacts, MetricFacts, ModelFacts, Report

_OPEN_ROWS = 300
"""Most layers that are shown without being asked for."""

_OPEN_NAMES = 12
"""Most node names of one reason that are shown without being asked for."""

_FLOATS = ("float", "bfloat", "double")
_INTEGERS = "int8"


def to_html(report: Report) -> str:
    """One self-contained page: inline style and SVG, no scripts, nothing from the network."""
    name = _file_name(report.output.path or report.model.path)
    body = "".join(
        [
            _header(report),
            _headline(report),
            _gates(report),
            _metric(report),
            '<div class="pair">' + _latency(report) + _size(report) + "</div>",
            _outputs(report),
            _candidates(report),
            _layers(report),
            _left_in_float(report),
            '<div class="pair">' + _integer_operators(report) + _passes(report) + "</div>",
            _run(report),
        ]
    )
    return page.page(f"{name} - onnxq report", body)


def write_html(report: Report, path: Path) -> None:
    """Write `to_html`, complete or not at all.

    Raises:
        InputError: the file cannot be written.
    """
    write_text(path, to_html(report))


def _header(report: Report) -> str:
    failed = sum(not gate.passed for gate in report.gates)
    if failed:
        verdict, kind = f"{words.count(failed, 'gate')} failed", " bad"
    elif report.gates:
        verdict, kind = "every gate held", " good"
    else:
        verdict, kind = "no gates were set", ""
    title = _file_name(report.output.path) or "Optimized model"
    return (
        f"<header><div><h1>{page.text(title)}</h1>"
        f'<p class="soft">compared with {page.text(_file_name(report.model.path))}</p></div>'
        f'<div class="verdict{kind}" style="flex:none">{verdict}</div></header>\n'
    )


def _headline(report: Report) -> str:
    cells = []
    metric = report.metric
    if metric is not None:
        before = words.metric_value(metric, metric.float)
        drop = words.metric_drop(metric, metric.drop)
        cells.append(
            (
                words.printable(metric.name),
                words.metric_value(metric, metric.candidate),
                f"float {before}, drop {drop}",
            )
        )
    if report.latency is not None:
        latency = report.latency
        before, after = map(words.milliseconds, (latency.float_ms, latency.candidate_ms))
        figure = f"{words.ratio(latency.speedup)}×"
        cells.append(("speedup", figure, f"{before} → {after} on {latency.provider}"))
    size = report.size
    sizes = f"{words.size(size.float_bytes)} → {words.size(size.candidate_bytes)}"
    factor, _, direction = words.change(size.ratio).partition("x ")
    cells.append((f"{direction} by", f"{factor}×", sizes))
    worst = min(report.outputs, key=lambda output: output.sqnr_db, default=None)
    if worst is not None:
        which = f"output {words.printable(worst.name)}"
        cells.append(("output SQNR", words.decibels(worst.sqnr_db), which))
    return (
        '<dl class="headline">'
        + "".join(
            f'<div><dt>{page.text(label)}</dt><dd class="figure">{page.text(figure)}</dd>'
            f'<dd class="soft small">{page.text(note)}</dd></div>'
            for label, figure, note in cells
        )
        + "</dl>\n"
    )


def _gates(report: Report) -> str:
    if not report.gates:
        return ""
    rows = [
        [
            f'<td class="fixed"><code>{page.text(gate.expr)}</code></td>',
            page.number("not measured" if gate.value is None else words.number(gate.value)),
            f'<td class="number">{_verdict(gate)}</td>',
        ]
        for gate in report.gates
    ]
    return page.section("Gates", page.table(["gate", "#measured", "#verdict"], rows))


def _verdict(gate: GateFacts) -> str:
    kind, word = ("good", "held") if gate.passed else ("bad", "failed")
    return f'<strong class="{kind}">{word}</strong>'


def _metric(report: Report) -> str:
    metric = report.metric
    if metric is None:
        return ""
    drop = words.metric_drop(metric, metric.drop)
    inside = words.drop_interval(metric)
    sentence = f"The candidate loses {drop} of {words.printable(metric.name)}"
    if metric.drop < 0:
        gained = words.metric_drop(metric, -metric.drop)
        sentence = f"The candidate gains {gained} of {words.printable(metric.name)}"
    sentence += f" on {words.count(metric.samples, 'held-out sample')}"
    sentence += f"; 95 % interval of the drop: {inside}." if inside else "."
    figure = figures.interval(
        metric.drop,
        metric.confidence,
        _bounds(report.gates, metric),
        lambda value: words.bare_drop(metric, value),
        sentence,
    )
    notes = "".join(f" {page.text(note)}" for note in report.notes)
    caption = f"{page.text(sentence)} To the right is worse.{notes}"
    return page.section(
        f"Drop of {page.text(metric.name)}",
        f"<figure>{figure}<figcaption>{caption}</figcaption></figure>",
    )


def _bounds(gates: Iterable[GateFacts], metric: MetricFacts) -> list[tuple[float, str]]:
    """Where gates on the drop lie."""
    found = []
    for gate in gates:
        quantity, _, bound = gate.expr.partition("<=")
        if quantity == "drop" and bound:
            value = float(bound)
            found.append((value, f"allowed: {words.metric_drop(metric, value)}"))
    return found


def _latency(report: Report) -> str:
    if not report.latencies:
        return ""
    rows = []
    for latency in report.latencies:
        before, after = map(words.milliseconds, (latency.float_ms, latency.candidate_ms))
        times = f"{after} ({words.ratio(latency.speedup)}×)"
        provider = words.printable(latency.provider)
        rows.append(figures.Bar(f"float on {provider}", latency.float_ms, before, "float"))
        rows.append(
            figures.Bar(f"candidate on {provider}", latency.candidate_ms, times, "candidate")
        )
    threads = words.count(report.latencies[0].threads, "thread")
    caption = f"Time of one inference, models measured in turn, {threads}: the fastest tenth."
    figure = figures.bars(rows, "latency of both models")
    return page.section("Latency", f"<figure>{figure}<figcaption>{caption}</figcaption></figure>")


def _size(report: Report) -> str:
    size = report.size
    rows = [
        figures.Bar("float", size.float_bytes, words.size(size.float_bytes), "float"),
        figures.Bar(
            "candidate", size.candidate_bytes, words.size(size.candidate_bytes), "candidate"
        ),
    ]
    caption = f"Model files with their external data: {size.float_bytes:,} and "
    caption += f"{size.candidate_bytes:,} bytes."
    figure = figures.bars(rows, "size of both models")
    return page.section("Size", f"<figure>{figure}<figcaption>{caption}</figcaption></figure>")


def _outputs(report: Report) -> str:
    rows = [
        [
            f'<td class="name mono">{page.text(output.name)}</td>',
            page.number(words.decibels(output.sqnr_db)),
            page.number(f"{output.cosine:.6f}"),
            page.number(words.number(output.max_abs)),
        ]
        for output in report.outputs
    ]
    columns = ["output", "#SQNR", "#cosine similarity", "#largest difference"]
    return page.section("Outputs", page.table(columns, rows)) if rows else ""


def _candidates(report: Report) -> str:
    rows = [
        [
            f'<td class="name">{page.text(candidate.label)}</td>',
            page.number(f"{words.ratio(candidate.speedup)}×"),
            page.number(words.loss("noise", candidate.predicted_loss)),
            page.number("" if candidate.sqnr_db is None else words.decibels(candidate.sqnr_db)),
            page.number(words.candidate_drop(report.metric, candidate.drop)),
        ]
        for candidate in report.candidates
    ]
    columns = ["candidate", "#speedup", "#predicted SQNR", "#measured SQNR", "#drop"]
    note = '<p class="soft small">Only those that were fast enough to win were verified.</p>'
    return page.section("Candidates", page.table(columns, rows) + note) if rows else ""


def _layers(report: Report) -> str:
    layers = report.layers
    if not layers:
        return ""
    found = counts(layers)
    kinds = {precision: _kind(precision) for precision in found}
    legend = "".join(
        f'<span class="key">{figures.key(kinds[precision])}{page.text(precision)} × {amount:,}'
        "</span>"
        for precision, amount in found.items()
    )
    measured = any(layer.sqnr_db is not None for layer in layers)
    chart = figures.layer_chart(layers, kinds) if measured else ""
    is_open = " open" if len(layers) <= _OPEN_ROWS else ""
    return page.section(
        "Layers",
        f"<figure>{chart}<figcaption>{legend}</figcaption></figure>"
        f"<details{is_open}><summary>{words.count(len(layers), 'operator')} in node order"
        f"</summary>{_layer_table(layers, kinds)}</details>",
        long=True,
    )


def _layer_table(layers: Sequence[LayerFacts], kinds: dict[str, str]) -> str:
    finite = [s for layer in layers if (s := layer.sqnr_db) is not None and math.isfinite(s)]
    longest = max(finite, default=1.0)
    analysed = any(layer.sensitivity is not None for layer in layers)
    explained = any(layer.reason for layer in layers)
    rows = []
    for position, layer in enumerate(layers, start=1):
        sqnr, bar = "", ""
        if layer.sqnr_db is not None:
            sqnr = words.decibels(layer.sqnr_db)
            bar = figures.strip(layer.sqnr_db, longest, kinds[layer.precision])
        row = [
            page.number(f"{position}"),
            f'<td class="name mono">{page.text(layer.node)}</td>',
            f'<td class="fixed">{page.text(layer.op_type)}</td>',
            f'<td class="fixed">{page.text(layer.precision)}</td>',
            page.number(sqnr),
            f'<td class="bar">{bar}</td>',
        ]
        if analysed:
            known = layer.sensitivity is not None
            row.append(page.number(words.number(layer.sensitivity or 0.0) if known else ""))
        if explained:
            row.append(f'<td class="name small">{page.text(layer.reason)}</td>')
        rows.append(row)
    columns = ["#", "node", "operator", "precision", "#SQNR", ""]
    columns += (["#sensitivity"] if analysed else []) + (["why"] if explained else [])
    return page.table(columns, rows)


def _kind(precision: str) -> str:
    """Colour of a precision: float, plain 8-bit integer, or any other."""
    if precision.startswith(_FLOATS):
        return "float"
    return "candidate" if precision == _INTEGERS else "other"


def _left_in_float(report: Report) -> str:
    rows = []
    for group in left_in_float(report.layers):
        names = ", ".join(page.text(layer.node) for layer in group.layers)
        if len(group.layers) > _OPEN_NAMES:
            names = f"<details><summary>show nodes</summary>{names}</details>"
        rows.append(
            [
                f'<td class="name">{page.text(group.reason)}</td>',
                page.number(f"{len(group.layers):,}"),
                f"<td>{page.text(words.listed(group.operators))}</td>",
                f'<td class="name mono">{names}</td>',
            ]
        )
    if not rows:
        return ""
    return page.section(
        "Left in float", page.table(["reason", "#count", "operators", "nodes"], rows)
    )


def _integer_operators(report: Report) -> str:
    found = report.output.integer_operators
    rows = [
        [f'<td class="name mono">{page.text(name)}</td>', page.number(f"{amount:,}")]
        for name, amount in sorted(found.items(), key=lambda item: (-item[1], item[0]))
    ]
    compiled = report.output.compiled
    said = f"Not known: the provider compiled {words.count(compiled, 'operator')}."
    note = f'<p class="soft">{said if compiled else "None: everything runs in float."}</p>'
    body = page.table(["kernel the runtime really uses", "#count"], rows) if rows else note
    return page.section("Integer operators", body)


def _passes(report: Report) -> str:
    rows = [
        [
            f'<td class="name mono">{page.text(step.name)}</td>',
            page.number(f"{step.rewrites:,}"),
            page.number(words.duration(step.seconds)),
        ]
        for step in report.passes
    ]
    return page.section("Passes", page.table(["pass", "#rewrites", "#time"], rows)) if rows else ""


def _run(report: Report) -> str:
    rows = [
        [f"<td>{label}</td>", *_model_cells(facts)]
        for label, facts in (("float", report.model), ("candidate", report.output))
    ]
    versions = ", ".join(
        f"{page.text(name)} {page.text(text)}" for name, text in report.versions.items()
    )
    peak = f", at most {words.size(report.peak_rss_bytes)} of memory"
    took = f"Took {words.duration(report.seconds)}{peak if report.peak_rss_bytes else ''}."
    columns = ["", "file", "#operators", "#opset", "SHA-256"]
    return page.section(
        "Models and versions",
        page.table(columns, rows) + f'<p class="soft small">{versions}. {took}</p>',
    )


def _model_cells(facts: ModelFacts) -> list[str]:
    return [
        f'<td class="name mono">{page.text(facts.path or "not written")}</td>',
        page.number(f"{facts.nodes:,}"),
        page.number(str(facts.opset)),
        f'<td class="name mono">{page.text(facts.sha256)}</td>',
    ]


def _file_name(path: str) -> str:
    return Path(path).name
