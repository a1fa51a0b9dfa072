"""The report as Markdown."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise

import pytest
from markdown_it import MarkdownIt
from markdown_it.token import Token

from onnxq.report import to_markdown
from onnxq.report.markdown import code, text
from onnxq.verify import Report
from onnxq.verify.result import GateFacts, JumpFacts, LatencyFacts, LayerFacts
from tests.report.hostile import SCRIPT, hostile_report, is_clean
from tests.verify.reports import DEPLOYMENTS, a_report

OWN = {"<details>", "</details>", "<summary>", "</summary>", "<sub>", "</sub>", "<code>", "</code>"}


def tokens(markdown: str) -> Iterator[Token]:
    """What a reader of CommonMark and GitHub's tables makes of it."""
    for token in MarkdownIt("commonmark").enable("table").parse(markdown):
        yield token
        yield from token.children or ()


def cells(markdown: str) -> list[list[str]]:
    """Text of the cells of all tables, by rows."""
    rows: list[list[str]] = []
    found = list(tokens(markdown))
    for before, token in pairwise(found):
        if token.type == "tr_open":
            rows.append([])
        if before.type in ("td_open", "th_open"):
            parts = [t.content for t in token.children or () if t.type != "html_inline"]
            rows[-1].append("".join(parts))
    return rows


def test_it_begins_with_the_verdict_and_the_headline() -> None:
    lines = to_markdown(a_report()).splitlines()
    assert lines[0] == "### ❌ onnxq: 1 of 2 gates failed"
    assert lines[2].startswith("`q.onnx` is 1.50 times as fast as `m.onnx`")
    held = (GateFacts("drop<=0.01", 0.005, True),)
    assert to_markdown(a_report(gates=held)).startswith("### ✅ onnxq: every gate held\n")
    assert to_markdown(a_report(gates=())).startswith("### onnxq: no gates were set\n")


def test_gates_and_figures_with_their_intervals() -> None:
    latency = LatencyFacts("cpu", 1, 3.0, 2.0, 1.5, confidence=(1.25, 1.75))
    rows = cells(to_markdown(a_report(latencies=(latency,))))
    assert ["drop<=0.01", "0.005", "✅ held"] in rows
    assert ["speedup>=2", "not measured", "❌ failed"] in rows
    drop = "drop 0.50 points, 95 % interval -0.20 to 1.20 points (450 samples)"
    assert ["accuracy", "99.00 % → 98.50 %", drop] in rows
    speed = "1.50x as fast, 95 % interval 1.25 to 1.75 (cpu, 1 thread)"
    assert ["latency", "3.00 ms → 2.00 ms", speed] in rows
    assert ["size", "4 kB → 1 kB", "4.00x smaller"] in rows


def test_weakest_layers_and_the_first_jump() -> None:
    layers = (
        LayerFacts("a", "Conv", "int8", 30.5, None, "", local_db=12.5),
        LayerFacts("b", "Relu", "int8", 20.0, None, ""),
    )
    jump = JumpFacts("a", "Conv", "'v'", 12.5, 34.0, None)
    shown = to_markdown(a_report(layers=layers, jump=jump))
    rows = cells(shown)
    at = rows.index(["layer", "operator", "precision", "SQNR", "own SQNR"])
    assert rows[at + 1 :] == [
        ["b", "Relu", "int8", "20.0 dB", ""],
        ["a", "Conv", "int8", "30.5 dB", "12.5 dB"],
    ]
    assert "**First jump:** a (Conv) is at fault: `'v'` has 12.5 dB" in shown
    unknown = to_markdown(a_report(layers=(replace(layers[0], sqnr_db=None),)))
    assert "Weakest" not in unknown and "First jump" not in unknown


@pytest.mark.parametrize(
    ("sentence", "shown"),
    [
        ("It is certain (95 %), but for 1,234 of -0.5 dB.", None),
        ("float -> int8, 3.87x smaller", "float → int8, 3.87x smaller"),
        ("see @everyone, #12 and https://x.org", "see `@everyone`, `#12` and `https://x.org`"),
        ("# a *b* _c_ [d](e) www.x.org", "`#` a `*b*` `_c_` `[d](e)` `www.x.org`"),
        ("<!-- a", "`<!--` a"),
        ("a``b c|d", "<code>a&#96;&#96;b</code> <code>c&#124;d</code>"),
    ],
)
def test_all_but_plain_words_is_code(sentence: str, shown: str | None) -> None:
    assert text(sentence) == (shown or sentence)


@pytest.mark.parametrize("name", ["a/b.0", "`", "a|b", "a\\|b", "x ` y", "``a|", "&lt;", "a*b*c"])
def test_a_name_in_a_table_is_read_as_it_is(name: str) -> None:
    table = f"| a | b |\n|---|---|\n| {code(name)} | c |\n"
    assert cells(table)[1] == [name, "c"]
    (held,) = [t for t in tokens(f"a {code(name)}\n") if t.type == "inline"]
    assert not {t.type for t in held.children or ()} & {"em_open", "link_open", "image"}


def test_hostile_names_do_nothing() -> None:
    jump = JumpFacts(SCRIPT, SCRIPT, SCRIPT, 1.0, 2.0, None, (SCRIPT,))
    shown = to_markdown(replace(hostile_report(), jump=jump))
    assert is_clean(shown)
    found = list(tokens(shown))
    html = [t.content for t in found if t.type in ("html_inline", "html_block")]
    assert {tag for part in html for tag in re.findall(r"<[^>]*>", part)} <= OWN
    assert not {t.type for t in found} & {"link_open", "image", "em_open"}
    assert "<script" in "".join(t.content for t in found if t.type == "code_inline")
    assert {len(row) for row in cells(shown)} == {3, 5, 7}


def test_long_names_are_cut_in_the_middle() -> None:
    report: Report = a_report(layers=(LayerFacts("a" * 9999 + "z", "Conv", "int8", 1.0, None, ""),))
    shown = to_markdown(report)
    assert len(shown) < 3000 and "aaa…aaa" in shown and "aaz`" in shown


def test_deployments_are_a_table_and_the_line_that_loads_one_can_be_copied() -> None:
    line = 'onnxruntime.InferenceSession("a```b.onnx", providers=["CPUExecutionProvider"])'
    shown = to_markdown(a_report(deployments=DEPLOYMENTS, deploy=line))
    assert [token.content for token in tokens(shown) if token.type == "fence"] == [line + "\n"]
    verdicts = [row[-1] for row in cells(shown) if len(row) == 7]
    assert verdicts.count("chosen") == 1
    assert any("'nope/python' cannot be started" in verdict for verdict in verdicts)


def test_a_word_of_any_length_is_read_at_once() -> None:
    assert len(text("." * 1_000_000 + "x")) < 300
