"""What stands above the tables of a benchmark: how, when, and with what they were measured."""

from __future__ import annotations

import datetime
import platform
from pathlib import Path

from onnxq.verify.facts import versions


def heading(title: str, command: str, threads: int) -> str:
    """A title, the command as given to Python, the date, the machine, and the versions."""
    on = f"{datetime.date.today()}, {_processor()}, {threads} thread"
    made_with = ", ".join(f"{name} {number}" for name, number in versions().items())
    return f"# {title}\n\n`python benchmarks/{command}` on {on}.\n{made_with}.\n"


def _processor() -> str:
    """What Linux calls the processor, else its architecture."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return platform.machine()
    names = [line.partition(":")[2] for line in text.splitlines() if line.startswith("model name")]
    return " ".join(names[0].split()) if names else platform.machine()
