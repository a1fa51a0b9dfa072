"""Quantized versions of a real model, each made in a process of its own and kept in a folder.

Usage: python benchmarks/candidates.py NAME METHOD OUTPUT [--threads N]

makes one, and prints the seconds and the peak memory that it took, as JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from cases import (
    Case,
    onnxruntime_dynamic,
    onnxruntime_fused,
    onnxruntime_static,
    readied,
    real_cases,
)
from memory import memory_bytes
from real.environment import HERE, make_environment

import onnxq

# Kinds of transformers, for the tools that want to be told; Llama is to be called gpt2.
TRANSFORMERS = {"minilm": "bert", "smollm2": "gpt2"}

# All that onnxruntime quantizes dynamically but convolutions, which get ten times slower.
_DYNAMIC = ("MatMul", "Gemm", "Gather", "Attention", "EmbedLayerNormalization", "LSTM")

_WATCH_SECONDS = 0.1


@dataclass(frozen=True)
class Made:
    """What making a candidate took, or why there is none."""

    seconds: float = 0.0
    peak_bytes: int = 0
    problem: str = ""
    broken: str = ""
    """Of onnxq, the promises that did not hold."""


@dataclass(frozen=True)
class Limits:
    """What a candidate may take."""

    threads: int
    gigabytes: float
    minutes: float


def methods(case: Case) -> list[str]:
    """The names of the methods that a case is tried with, onnxq first."""
    return [m for m in METHODS if not m.endswith("fused") or case.name in TRANSFORMERS]


def candidate(
    case: Case, method: str, folder: Path, limits: Limits, *, anew: bool = False
) -> tuple[Path, Made]:
    """A candidate and what it took, made now if the folder does not have it or it is to be anew."""
    output = folder / f"{case.name}.{method.replace(' ', '-')}.onnx"
    facts = output.with_suffix(".json")
    if anew or not facts.is_file():
        output.unlink(missing_ok=True)
        made = _made(case, method, output, limits)
        for left in folder.glob(f"{output.stem}.*"):
            if left.name != output.name:
                left.unlink()
        facts.write_text(json.dumps(asdict(made)))
    return output, Made(**json.loads(facts.read_text()))


def _made(case: Case, method: str, output: Path, limits: Limits) -> Made:
    command = [sys.executable, __file__, case.name, method, str(output)]
    return run_limited([*command, "--threads", str(limits.threads)], output, limits)


def run_limited(command: Sequence[str], output: Path, limits: Limits) -> Made:
    """What a process took that makes a file and prints a `Made` as the last line.

    What it printed stays beside the file, with the endings ``.out`` and ``.err``.
    """
    started = time.perf_counter()
    with (
        output.with_suffix(".out").open("w+") as told,
        output.with_suffix(".err").open("w+") as errors,
    ):
        process = subprocess.Popen(command, stdout=told, stderr=errors)
        while process.poll() is None:
            time.sleep(_WATCH_SECONDS)
            problem = _beyond(process.pid, time.perf_counter() - started, limits)
            if problem:
                process.kill()
                process.wait()
                return Made(problem=problem)
        told.seek(0)
        errors.seek(0)
        if process.returncode:
            last = (errors.read().strip() or f"ended with {process.returncode}").splitlines()[-1]
            return Made(problem=last)
        return Made(**json.loads(told.read().splitlines()[-1]))


def _beyond(process: int, seconds: float, limits: Limits) -> str:
    """Which limit a process broke; empty if none."""
    try:
        taken = memory_bytes("VmRSS", str(process))
    except (OSError, SystemExit):
        return ""
    if taken > limits.gigabytes * 1e9:
        return f"took more than {limits.gigabytes:g} GB"
    if seconds > limits.minutes * 60:
        return f"took more than {limits.minutes:g} minutes"
    return ""


# In the process of its own

Broken = str
"""Promises that did not hold."""


def _onnxq(case: Case, output: Path, threads: int) -> Broken:
    made = onnxq.optimize(
        case.model, case.data, output=output, keep_failed=True, threads=threads
    ).report
    return ", ".join(gate.expr for gate in made.gates if not gate.passed)


def _static(case: Case, output: Path, threads: int) -> Broken:
    onnxruntime_static(case, output)
    return ""


def _dynamic(case: Case, output: Path, threads: int) -> Broken:
    onnxruntime_dynamic(case, output, _DYNAMIC)
    return ""


def _static_fused(case: Case, output: Path, threads: int) -> Broken:
    return _static(onnxruntime_fused(case, TRANSFORMERS[case.name], output), output, threads)


def _dynamic_fused(case: Case, output: Path, threads: int) -> Broken:
    return _dynamic(onnxruntime_fused(case, TRANSFORMERS[case.name], output), output, threads)


def _nncf(case: Case, output: Path, threads: int) -> Broken:
    """Becomes a process in NNCF's environment, which then has the peak memory to itself."""
    python = make_environment(output.parent / "nncf", HERE / "nncf.txt")
    calibration = output.with_suffix(".npz")
    feeds = (batch.feeds for batch in case.parts()[0].batches())
    named = {f"{n}:{name}": a for n, feed in enumerate(feeds) for name, a in feed.items()}
    np.savez(calibration, **named)
    command = [str(python), str(HERE / "nncf_static.py")]
    command += [str(readied(case, output).model), str(calibration), str(output)]
    command += ["--transformer"] if case.name in TRANSFORMERS else []
    os.execve(python, command, {**os.environ, "PYTHONPATH": str(HERE.parent)})


METHODS: dict[str, Callable[[Case, Path, int], Broken]] = {
    "onnxq": _onnxq,
    "static": _static,
    "dynamic": _dynamic,
    "static fused": _static_fused,
    "dynamic fused": _dynamic_fused,
    "nncf": _nncf,
}


def main() -> None:
    """Make one candidate."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("name", metavar="NAME")
    parser.add_argument("method", choices=METHODS, metavar="METHOD")
    parser.add_argument("output", type=Path, metavar="OUTPUT")
    parser.add_argument("--threads", type=int, default=1)
    parsed = parser.parse_args()
    case = next(case for case in real_cases() if case.name == parsed.name)
    started = time.perf_counter()
    broken = METHODS[parsed.method](case, parsed.output, parsed.threads)
    made = Made(time.perf_counter() - started, memory_bytes("VmHWM"), broken=broken)
    print(json.dumps(asdict(made)))


if __name__ == "__main__":
    main()
