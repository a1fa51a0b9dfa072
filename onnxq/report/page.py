"""Parts of the HTML pages: the page itself, cards, tables, cells."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from onnxq.report import words
from onnxq.report.style import CSS


def page(title: str, body: str) -> str:
    """One self-contained page: inline style and SVG, no scripts, nothing from the network."""
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{text(title)}</title>\n<style>{CSS}</style>\n</head>\n"
        f"<body>\n<main>\n{body}\n</main>\n</body>\n</html>\n"
    )


def section(title: str, body: str, *, long: bool = False) -> str:
    """A card with a heading; ``long`` lets a page break fall into it."""
    kind = ' class="long"' if long else ""
    return f"<section{kind}><h2>{title}</h2>{body}</section>\n"


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
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


def number(content: str) -> str:
    """A cell that holds a number."""
    return f'<td class="number">{text(content)}</td>'


def text(content: str) -> str:
    """Text made safe for HTML."""
    return escape(words.printable(content))
