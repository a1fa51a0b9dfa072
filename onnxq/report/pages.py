"""Pages and files made from the templates beside this module."""

from __future__ import annotations

import base64
import hashlib
import json
import math
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from onnxq.adaptive.replay import Replay
from onnxq.report import charts, drift_charts, side_charts, words
from onnxq.report.drawing import drawing
from onnxq.report.grouping import left_in_float, methods
from onnxq.report.headline import headline
from onnxq.report.pieces import colour
from onnxq.verify.precision import counts
from onnxq.verify.result import Report
from onnxq.verify.structure import MOST

_SCRIPTS = {"chart": "charts.js", "graph": "graph.js"}
"""What runs where a page has an element of a class."""


def to_html(report: Report, replays: Sequence[Replay] = ()) -> str:
    """One self-contained page: style, scripts and data in it, nothing from the network.

    Args:
        report: What was found out.
        replays: What adaptive sessions on the model saw and did.
    """
    return render("report.html.jinja", report=report, replays=replays)


def to_junit(report: Report) -> str:
    """JUnit XML, which continuous integration services read: each gate is a test case.

    A gate that did not hold is a failure whose message has the measured value. What was measured
    stands in the suite's properties.
    """
    return render("junit.xml.jinja", report=report)


def render(template: str, **data: object) -> str:
    """Fill in a template of the folder ``templates``.

    Names come from models that nobody has to trust: all text is escaped, and what is not
    printable in it is written as an escape, too. Scripts are those of the templates and plotly's,
    which a page's policy names by their hashes: nothing else runs in it, or is loaded.
    """
    return _environment().get_template(template).render(data)


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("onnxq.report"),
        autoescape=True,
        finalize=_printable,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    named = (colour, counts, drawing, headline, largest, left_in_float, methods, policy, scripts)
    environment.globals.update(
        {f.__name__: f for f in (*named, share)},
        Path=Path,
        charts=charts,
        drift_charts=drift_charts,
        most_drawn=MOST,
        side_charts=side_charts,
        words=words,
    )
    environment.filters["json"] = to_json
    return environment


def _printable(value: object) -> object:
    """Text made printable; finished parts of a page, which are `Markup`, hold only such text."""
    return words.printable(value) if type(value) is str else value


def to_json(value: Any) -> Markup:
    """Data that stands in a script element of a page; nothing in it ends the element."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    # Safe: the only characters that mean something to a page are written as escapes.
    for char in "<>&":
        text = text.replace(char, f"\\u{ord(char):04x}")
    return Markup(text)


def scripts(body: str) -> tuple[Markup, ...]:
    """The scripts that the body of a page needs."""
    needed = [file for kind, file in _SCRIPTS.items() if f'class="{kind}"' in body]
    plotly = (_plotly(),) if _SCRIPTS["chart"] in needed else ()
    return (*plotly, *map(_own, ("page.js", *needed)))


def policy(body: str) -> str:
    """The content security policy of a page: these scripts alone, and nothing from anywhere."""
    hashes = [base64.b64encode(hashlib.sha256(s.encode()).digest()).decode() for s in scripts(body)]
    run = " ".join(f"'sha256-{own}'" for own in hashes)
    return f"default-src 'none'; style-src 'unsafe-inline'; img-src data:; script-src {run}"


@cache
def _plotly() -> Markup:
    # Safe: it ends no element, and browsers read these ends of lines alike before they hash it.
    text = get_plotlyjs().replace("</script", "<\\/script").replace("\r\n", "\n")
    return Markup(text.replace("\r", "\n"))


@cache
def _own(file: str) -> Markup:
    source, _, _ = PackageLoader("onnxq.report").get_source(Environment(), file)
    return Markup(source)


def largest(values: Iterable[float | None]) -> float:
    """The largest finite number, 0 if there is none."""
    return max((v for v in values if v is not None and math.isfinite(v)), default=0.0)


def share(value: float, longest: float) -> float:
    """Length of a bar as a share of the longest; infinite values are as long as any."""
    if value == math.inf:
        return 1.0
    if longest <= 0.0 or not math.isfinite(value):
        return 0.0
    return min(max(value / longest, 0.0), 1.0)
