"""The report as GitHub-flavoured Markdown, for a comment on a pull request or a job's summary.

Names come from models that nobody has to trust, and a comment can do more than a page: it calls
people, refers to issues and links. What is no plain word or number is therefore shown as code,
where none of that happens.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from onnxq.report import words
from onnxq.report.figures import figures
from onnxq.report.grouping import weakest
from onnxq.report.headline import headline
from onnxq.verify.result import DeploymentFacts, GateFacts, Report

_WEAKEST = 10
_LONGEST = 200
"""Most characters of a word that is looked at for what ends it."""

_DEPLOYMENT = ("target, python", "model", "speedup", "interval", "SQNR", "size", "verdict")

_WORD = re.compile(r"(\(?)((?:[^()]|\([^()]*\))*?)(\)?[.,;:]*)")
"""A word between what may stand before and behind it."""

_PLAIN = re.compile(r"[A-Za-z]+([-'][A-Za-z]+)*'?\d*|[-+]?\d[\d,]*(\.\d+)?[A-Za-z]{0,2}|%|")
"""A word that means nothing to Markdown."""

_ENDS_CODE = re.compile(r"[`|\\]")


def to_markdown(report: Report) -> str:
    """The headline, gates, figures with intervals, notes, and the layers that err most."""
    parts = [f"### {_verdict(report.gates)}", text(headline(report))]
    if report.gates:
        parts.append(_table(("gate", "measured", "result"), map(_gate, report.gates)))
    rows = ((text(row[0]), *map(text, row[1:])) for row in figures(report))
    parts.append(_table(("", "", ""), rows))
    if report.deployments:
        parts.append(_table(_DEPLOYMENT, map(_deployment, report.deployments)))
    if report.deploy:
        parts.append(_block(report.deploy))
    if report.jump is not None:
        parts.append(f"**First jump:** {text(words.jump(report.jump))}.")
    parts += map(text, report.notes)
    if layers := weakest(report.layers, _WEAKEST):
        heads = ("layer", "operator", "precision", "SQNR", "own SQNR")
        rows = (
            (code(x.node), code(x.op_type), code(x.precision), _db(x.sqnr_db), _db(x.local_db))
            for x in layers
        )
        parts += ["<details><summary>Weakest layers</summary>", _table(heads, rows), "</details>"]
    versions = (f"{code(name)} {code(version)}" for name, version in report.versions.items())
    parts.append(f"<sub>{', '.join(versions)}</sub>")
    return "\n\n".join(parts) + "\n"


def text(sentence: str) -> str:
    """A sentence in which all but plain words and numbers is code."""
    return " ".join(map(_word, words.printable(sentence).split(" ")))


def _word(word: str) -> str:
    if word == "->":
        return "→"
    # The pattern looks once for each of a word's characters.
    found = _WORD.fullmatch(word) if len(word) <= _LONGEST else None
    before, core, after = ("", word, "") if found is None else found.groups()
    return f"{before}{core if _PLAIN.fullmatch(core) else code(core)}{after}"


def code(name: str) -> str:
    """A name as it is, in a cell of a table, too."""
    shown = words.name(name)
    if not _ENDS_CODE.search(shown):
        return f"`{shown}`" if shown else ""
    spelled = (c if c.isalnum() or c == " " else f"&#{ord(c)};" for c in shown)
    return f"<code>{''.join(spelled)}</code>"


def _verdict(gates: Sequence[GateFacts]) -> str:
    failed = sum(not gate.passed for gate in gates)
    if failed:
        return f"❌ onnxq: {failed} of {words.count(len(gates), 'gate')} failed"
    return "✅ onnxq: every gate held" if gates else "onnxq: no gates were set"


def _gate(gate: GateFacts) -> tuple[str, str, str]:
    return code(gate.expr), words.gate_value(gate), "✅ held" if gate.passed else "❌ **failed**"


def _block(source: str) -> str:
    """Python between more backticks than it has on end."""
    fence = "`" * max(3, *(1 + len(run) for run in re.findall("`+", source)), 0)
    return "\n".join([f"{fence}python", *map(words.printable, source.split("\n")), fence])


def _deployment(found: DeploymentFacts) -> tuple[str, ...]:
    return (
        text(words.place(found)),
        code(found.model),
        "" if found.speedup is None else f"{words.ratio(found.speedup)}x",
        words.speedup_interval(found),
        _db(found.sqnr_db),
        "" if found.bytes is None else words.size(found.bytes),
        "**chosen**" if found.chosen else text(found.reason),
    )


def _db(value: float | None) -> str:
    return "" if value is None else words.decibels(value)


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = (heads, ("---",) * len(heads), *rows)
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
