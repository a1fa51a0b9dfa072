"""``onnxq doctor``."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Iterable, Iterator

from rich.console import Group, RenderableType
from rich.text import Text

from onnxq.cli.terminal import EXIT_GATE, EXIT_OK, Outcome, table
from onnxq.doctor import Examination, PackageFacts, examine
from onnxq.progress import Progress
from onnxq.report import words

HELP = "show what is installed, what works here, and how to get what is missing"

EXAMPLES = """examples:
  onnxq doctor
  onnxq doctor --json doctor.json

The exit code is 1 if a package that onnxq requires is missing or too old, or the CPU provider
fails.
"""

NEEDS = ""
TAKES = ""


def run(_: argparse.Namespace, __: Progress) -> Outcome:
    """Run the command."""
    found = examine()
    checks = ((c.name, c.reason or "float and int8 are right") for c in found.providers)
    parts: list[RenderableType] = [
        table(_rows(found)),
        Text(),
        table(checks, ("provider", "a small model")),
    ]
    if found.missing:
        missing = ((m.what, m.brings, m.how) for m in found.missing)
        parts += [Text(), table(missing, ("missing", "would bring", "how to get it"), fold=True)]
    ending = "onnxq works here." if found.works else "onnxq does not work here."
    body = {"schema": "onnxq/doctor/1", **dataclasses.asdict(found), "works": found.works}
    return Outcome(body, Group(*parts), ending, EXIT_OK if found.works else EXIT_GATE)


def _rows(found: Examination) -> Iterator[tuple[str, str]]:
    """What stands in the first table."""
    yield "onnxq", found.onnxq
    yield "Python", f"{found.python} on {found.system}"
    yield "onnxruntime", found.onnxruntime
    features = ", ".join(found.features) or "none known"
    yield "processor", f"{found.processor} (target {found.target}; {features})"
    yield "cores", str(found.cores)
    if found.memory_bytes is not None:
        yield "memory", words.size(found.memory_bytes)
    for extra in dict.fromkeys(package.extra for package in found.packages):
        own = (package for package in found.packages if package.extra == extra)
        yield f"extra {extra}" if extra else "requires", _listed(own)
    yield "browser", found.browser or "none"
    yield "npm", found.npm or "none"


def _listed(packages: Iterable[PackageFacts]) -> str:
    return ", ".join(
        f"{p.name} {p.version or 'missing'}" + ("" if p.is_there else f" ({p.required or 'any'})")
        for p in packages
    )
