"""Printing, JSON and progress."""

from __future__ import annotations

import argparse
import io
import json
import math
import os
import re
import sys
from pathlib import Path

import pytest
from rich.console import Console
from rich.table import Table
from rich.text import Text

from onnxq.cli.terminal import (
    NARROWEST,
    WIDTH,
    OneLine,
    emit,
    progress,
    show,
    show_live,
    table,
    write_json,
)
from onnxq.errors import InputError
from onnxq.progress import SILENT, expect


class Terminal(io.StringIO):
    """Pretends to be a terminal."""

    def isatty(self) -> bool:
        return True


def pretend(monkeypatch: pytest.MonkeyPatch, stream: str) -> Terminal:
    """Put a terminal in a stream's place; only in a test's body, pytest has the streams else."""
    monkeypatch.setenv("TERM", "xterm-256color")
    found = Terminal()
    monkeypatch.setattr(sys, stream, found)
    return found


def parsed(**options: object) -> argparse.Namespace:
    return argparse.Namespace(**{"quiet": False, "json": None, **options})


def test_progress_shows_stages_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = pretend(monkeypatch, "stderr")
    with progress(parsed()) as stages:
        stages.advance(1)
        stages.stage("thinking")
        stages.stage("counting [b]sheep[/b]", 8)
        stages.advance(2)
    shown = terminal.getvalue()
    assert "counting [b]sheep[/b]" in shown
    assert " 25 %" in shown


def test_a_finished_stage_is_shown_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = pretend(monkeypatch, "stderr")
    with progress(parsed()) as stages:
        stages.stage("counting", 8)
        terminal.truncate(0)
        stages.finish()
        stages.finish()
        stages.advance(8)
    assert "counting" not in terminal.getvalue()
    assert "100 %" not in terminal.getvalue()


def test_stages_that_are_over_and_to_come_are_shown_where_they_are_foreseen(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    terminal = pretend(monkeypatch, "stderr")
    with progress(parsed()) as stages:
        expect(stages, ("verifying", "forms", "[b]left[/b]", "costs", "verifying", "layers"))
        for name in ("verifying", "forms", "costs", "surprise", "forms", "verifying"):
            stages.stage(name)
        terminal.truncate(0)
        stages.stage("last", 4)
        stages.advance(1)
    expect(SILENT, ("nobody sees it",))
    uncoloured = re.sub(r"\x1b\[[0-9;]*m", "", terminal.getvalue())
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|[\r\0]", "\n", uncoloured)
    drawn = [line.strip() for line in shown.splitlines() if line.strip()]
    (*_, start) = (at for at, line in enumerate(drawn) if line.startswith("verifying:"))
    *over, bar, to_come = drawn[start : start + 6]
    assert [line.split(":")[0] for line in over] == ["verifying", "forms", "costs", "surprise"]
    assert all(line.endswith(("s", "ms")) for line in over)
    assert bar.startswith("last") and to_come == "layers: to come"


def test_what_is_known_so_far_stands_above_the_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = pretend(monkeypatch, "stderr")
    with progress(parsed()) as stages:
        stages.stage("watching", 8)
        show_live(stages, table([("1 - 8", "fine")]))
    shown = terminal.getvalue()
    assert "1 - 8" in shown and "fine" in shown
    show_live(SILENT, Text("nobody sees it"))


def test_progress_shows_no_percentage_where_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = pretend(monkeypatch, "stderr")
    with progress(parsed()) as stages:
        stages.stage("thinking")
    assert "thinking" in terminal.getvalue()
    assert "%" not in terminal.getvalue()


def test_progress_is_silent_when_piped(capsys: pytest.CaptureFixture[str]) -> None:
    with progress(parsed()) as stages:
        assert stages is SILENT
        stages.stage("thinking", 2)
        stages.advance(1)
        stages.finish()
    assert capsys.readouterr() == ("", "")


def test_progress_is_silent_when_quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = pretend(monkeypatch, "stderr")
    with progress(parsed(quiet=True)) as stages:
        stages.stage("thinking", 2)
    assert not terminal.getvalue()


def test_progress_without_standard_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", None)
    with progress(parsed()) as stages:
        assert stages is SILENT


def test_show_is_plain_text_when_piped(capsys: pytest.CaptureFixture[str]) -> None:
    show(parsed(), Text("bold [red] :smile: 42", "bold red"))
    assert capsys.readouterr().out == "bold [red] :smile: 42\n"


def test_show_wraps_text_but_not_the_ending(capsys: pytest.CaptureFixture[str]) -> None:
    path = "folder/" * 30 + "a file.onnx"
    show(parsed(), Text("word " * 50), f"Wrote {path}.")
    *text, empty, ending = capsys.readouterr().out.splitlines()
    assert len(text) > 1 and all(len(line) <= WIDTH for line in text)
    assert empty == ""
    assert ending == f"Wrote {path}."


def test_show_escapes_what_would_control_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    show(parsed(), Text("x"), "Wrote \x1b[2J.onnx.")
    assert capsys.readouterr().out == "x\n\nWrote \\x1b[2J.onnx.\n"


def test_show_leaves_no_spaces_at_the_ends_of_lines(capsys: pytest.CaptureFixture[str]) -> None:
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_row("a", "long")
    table.add_row("b", "x")
    show(parsed(), table)
    assert capsys.readouterr().out == "a  long\nb  x\n"


def test_a_table_has_words_and_figures(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [("a\x1b", "word", 1, "more"), ("b", "x", 1000)]
    show(parsed(), table(rows, ("name", "kind", "size", ""), align="<>"))
    assert capsys.readouterr().out == (
        "name   kind  size\na\\x1b  word     1  more\nb      x     1000\n"
    )


def test_a_table_of_nothing_is_its_headings(capsys: pytest.CaptureFixture[str]) -> None:
    show(parsed(), table((), ("name", "kind")))
    assert capsys.readouterr().out == "name  kind\n"


@pytest.mark.parametrize(("columns", "width"), [(20, NARROWEST), (90, 90)])
def test_show_fits_the_terminal_unless_it_is_too_narrow(
    monkeypatch: pytest.MonkeyPatch, columns: int, width: int
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    terminal = pretend(monkeypatch, "stdout")
    show(parsed(), Text("x" * 300))
    assert [len(line) for line in terminal.getvalue().splitlines()][:2] == [width, width]


@pytest.mark.parametrize("options", [{"quiet": True}, {"json": "-"}])
def test_show_prints_nothing_when_unwanted(
    capsys: pytest.CaptureFixture[str], options: dict[str, object]
) -> None:
    show(parsed(**options), Text("x"), "y")
    assert capsys.readouterr() == ("", "")


def test_show_colours_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = pretend(monkeypatch, "stdout")
    show(parsed(), Text("x", "red"))
    assert terminal.getvalue() == "\x1b[31mx\x1b[0m\n"


def test_json_is_only_what_json_allows(capsys: pytest.CaptureFixture[str]) -> None:
    write_json(parsed(json="-"), {"a": math.inf, "b": [-math.inf, {"c": math.nan}], "d": 1.5})

    def refuse(name: str) -> None:
        raise AssertionError(name)

    found = json.loads(capsys.readouterr().out, parse_constant=refuse)
    assert found == {"a": "inf", "b": ["-inf", {"c": "nan"}], "d": 1.5}


def test_no_json_without_the_option(capsys: pytest.CaptureFixture[str]) -> None:
    write_json(parsed(), {"a": 1})
    assert capsys.readouterr() == ("", "")


def test_emit_escapes_what_the_encoding_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    bytes_written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(bytes_written, encoding="ascii"))
    emit("é\n")
    assert bytes_written.getvalue() == b"\\xe9\n"


@pytest.mark.skipif(os.name != "posix", reason="pipes of a POSIX shell")
def test_what_nobody_reads_is_thrown_away(monkeypatch: pytest.MonkeyPatch) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with open(writing, "w") as stdout:
        monkeypatch.setattr(sys, "stdout", stdout)
        emit("x")
        emit("y")
        stdout.flush()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_device_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    with Path("/dev/full").open("w") as stdout:
        monkeypatch.setattr(sys, "stdout", stdout)
        with pytest.raises(InputError, match="cannot write to standard output: No space left"):
            emit("x")
        stdout.flush()


def test_emit_without_standard_output(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    emit("x")


@pytest.mark.parametrize(
    ("width", "names", "shown"),
    [
        (53, ("a_long_name_float.onnx", "a_long_name_int8.onnx"), ["a_long_name_float.onnx"]),
        (47, ("a_long_name_float.onnx", "a_long_name_int8.onnx"), ["a_lon…float.onnx"]),
        (47, ("float_1_named.onnx", "float_2_named.onnx"), ["float_1_named.on", "nx"]),
        (42, ("a_long_name_float.onnx", "a_long_name_int8.onnx"), ["a_long_name", "_float.onnx"]),
    ],
    ids=["whole", "shortened", "like another", "too narrow"],
)
def test_names_stay_on_one_line_where_that_tells_them_apart(
    width: int, names: tuple[str, ...], shown: list[str]
) -> None:
    text = io.StringIO()
    cells = [(OneLine(name, frozenset(names)), "12.5 ms to 1.25 seconds or so") for name in names]
    Console(file=text, width=width).print(table(cells, align=">", fold=True))
    found = [line.split("  ")[0].rstrip() for line in text.getvalue().splitlines()]
    assert found[: len(shown)] == shown
