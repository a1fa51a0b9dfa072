"""The report as one HTML page that needs nothing beside itself."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

from onnxq.ir.save import replacing
from onnxq.report import figures, words
from onnxq.report.grouping import left_in_float
from onnxq.report.style import CSS
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
            _layers(report),
            _left_in_float(report),
            '<div class="pair">' + _integer_operators(report) + _passes(report) + "</div>",
            _run(report),
        ]
    )
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{_text(name)} - onnxq report</title>\n<style>{CSS}</style>\n</head>\n"
        f"<body>\n<main>\n{body}\n</main>\n</body>\n</html>\n"
    )


def write_html(report: Report, path: Path) -> None:
    """Write `to_html`, complete or not at all.

    Raises:
        InputError: the file cannot be written.
    """
    with replacing(path) as file:
        file.write(to_html(report).encode())


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
        f"<header><div><h1>{_text(title)}</h1>"
        f'<p class="soft">compared with {_text(_file_name(report.model.path))}</p></div>'
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
            f'<div><dt>{_text(label)}</dt><dd class="figure">{_text(figure)}</dd>'
            f'<dd class="soft small">{_text(note)}</dd></div>'
            for label, figure, note in cells
        )
        + "</dl>\n"
    )


def _gates(report: Report) -> str:
    if not report.gates:
        return ""
    rows = [
        [
            f'<td class="fixed"><code>{_text(gate.expr)}</code></td>',
            _number("not measured" if gate.value is None else words.number(gate.value)),
            f'<td class="number">{_verdict(gate)}</td>',
        ]
        for gate in report.gates
    ]
    return _section("Gates", _table(["gate", "#measured", "#verdict"], rows))


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
    caption = f"{_text(sentence)} To the right is worse."
    return _section(
        f"Drop of {_text(metric.name)}",
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
    return _section("Latency", f"<figure>{figure}<figcaption>{caption}</figcaption></figure>")


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
    return _section("Size", f"<figure>{figure}<figcaption>{caption}</figcaption></figure>")


def _outputs(report: Report) -> str:
    rows = [
        [
            f'<td class="name mono">{_text(output.name)}</td>',
            _number(words.decibels(output.sqnr_db)),
            _number(f"{output.cosine:.6f}"),
            _number(words.number(output.max_abs)),
        ]
        for output in report.outputs
    ]
    columns = ["output", "#SQNR", "#cosine similarity", "#largest difference"]
    return _section("Outputs", _table(columns, rows)) if rows else ""


def _layers(report: Report) -> str:
    layers = report.layers
    if not layers:
        return ""
    found = counts(layers)
    kinds = {precision: _kind(precision) for precision in found}
    legend = "".join(
        f'<span class="key">{figures.key(kinds[precision])}{_text(precision)} × {amount:,}</span>'
        for precision, amount in found.items()
    )
    measured = any(layer.sqnr_db is not None for layer in layers)
    chart = figures.layer_chart(layers, kinds) if measured else ""
    is_open = " open" if len(layers) <= _OPEN_ROWS else ""
    return _section(
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
    rows = []
    for position, layer in enumerate(layers, start=1):
        sqnr, bar = "", ""
        if layer.sqnr_db is not None:
            sqnr = words.decibels(layer.sqnr_db)
            bar = figures.strip(layer.sqnr_db, longest, kinds[layer.precision])
        row = [
            _number(f"{position}"),
            f'<td class="name mono">{_text(layer.node)}</td>',
            f'<td class="fixed">{_text(layer.op_type)}</td>',
            f'<td class="fixed">{_text(layer.precision)}</td>',
            _number(sqnr),
            f'<td class="bar">{bar}</td>',
        ]
        if analysed:
            known = layer.sensitivity is not None
            row.append(_number(words.number(layer.sensitivity or 0.0) if known else ""))
        rows.append(row)
    columns = ["#", "node", "operator", "precision", "#SQNR", ""]
    return _table(columns + (["#sensitivity"] if analysed else []), rows)


def _kind(precision: str) -> str:
    """Colour of a precision: float, plain 8-bit integer, or any other."""
    if precision.startswith(_FLOATS):
        return "float"
    return "candidate" if precision == _INTEGERS else "other"


def _left_in_float(report: Report) -> str:
    rows = []
    for group in left_in_float(report.layers):
        names = ", ".join(_text(layer.node) for layer in group.layers)
        if len(group.layers) > _OPEN_NAMES:
            names = f"<details><summary>show nodes</summary>{names}</details>"
        rows.append(
            [
                f'<td class="name">{_text(group.reason)}</td>',
                _number(f"{len(group.layers):,}"),
                f"<td>{_text(words.listed(group.operators))}</td>",
                f'<td class="name mono">{names}</td>',
            ]
        )
    if not rows:
        return ""
    return _section("Left in float", _table(["reason", "#count", "operators", "nodes"], rows))


def _integer_operators(report: Report) -> str:
    found = report.output.integer_operators
    rows = [
        [f'<td class="name mono">{_text(name)}</td>', _number(f"{amount:,}")]
        for name, amount in sorted(found.items(), key=lambda item: (-item[1], item[0]))
    ]
    note = '<p class="soft">None: everything runs in float.</p>'
    body = _table(["kernel the runtime really uses", "#count"], rows) if rows else note
    return _section("Integer operators", body)


def _passes(report: Report) -> str:
    rows = [
        [
            f'<td class="name mono">{_text(step.name)}</td>',
            _number(f"{step.rewrites:,}"),
            _number(words.duration(step.seconds)),
        ]
        for step in report.passes
    ]
    return _section("Passes", _table(["pass", "#rewrites", "#time"], rows)) if rows else ""


def _run(report: Report) -> str:
    rows = [
        [f"<td>{label}</td>", *_model_cells(facts)]
        for label, facts in (("float", report.model), ("candidate", report.output))
    ]
    versions = ", ".join(f"{_text(name)} {_text(text)}" for name, text in report.versions.items())
    peak = f", at most {words.size(report.peak_rss_bytes)} of memory"
    took = f"Took {words.duration(report.seconds)}{peak if report.peak_rss_bytes else ''}."
    columns = ["", "file", "#operators", "#opset", "SHA-256"]
    return _section(
        "Models and versions",
        _table(columns, rows) + f'<p class="soft small">{versions}. {took}</p>',
    )


def _model_cells(facts: ModelFacts) -> list[str]:
    return [
        f'<td class="name mono">{_text(facts.path or "not written")}</td>',
        _number(f"{facts.nodes:,}"),
        _number(str(facts.opset)),
        f'<td class="name mono">{_text(facts.sha256)}</td>',
    ]


def _section(title: str, body: str, *, long: bool = False) -> str:
    kind = ' class="long"' if long else ""
    return f"<section{kind}><h2>{title}</h2>{body}</section>\n"


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of finished cells; a column whose title starts with # holds numbers."""
    head = "".join(
        f'<th class="number">{c[1:] or "#"}</th>' if c.startswith("#") else f"<th>{c}</th>"
        for c in columns
    )
    lines = "".join(f"<tr>{''.join(cells)}</tr>\n" for cells in rows)
    return (
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead>\n'
        f"<tbody>{lines}</tbody></table></div>"
    )


def _number(text: str) -> str:
    return f'<td class="number">{_text(text)}</td>'


def _text(text: str) -> str:
    return escape(words.printable(text))


def _file_name(path: str) -> str:
    return Path(path).name
