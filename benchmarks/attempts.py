"""One method on one trial, in a process of its own.

Usage: python benchmarks/attempts.py FOLDER TRIAL METHOD OUTPUT [--windows N]

makes a model, and prints the seconds and the peak memory that it took, as JSON. METHOD is one of
onnxq's, several joined by "+", "none", "auto", or what else the trial names.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
from candidates import METHODS as TOOLS
from candidates import Made
from cases import Case, onnxruntime_static
from memory import memory_bytes
from real.environment import HERE
from trials import Trial, trials

from onnxq.ir import save
from onnxq.job import open_job
from onnxq.options import Options
from onnxq.prepare import observed, prepare
from onnxq.recipe import Recipe
from onnxq.study import apply_to, uniform_plan
from onnxq.tune import available_methods

PLAIN, AUTOMATIC = "none", "auto"
RUNTIME = "onnxruntime-"
CORRECTED = ("onnxruntime-gptq-corrected",)
"""What others only make with corrections of ours; see `real/onnxruntime_nbits.py`."""


def methods(trial: Trial) -> tuple[str, ...]:
    """Names of what is tried: onnxq's own first, plain rounding before all."""
    return (PLAIN, *available_methods(), AUTOMATIC, *trial.rivals)


def attempt(trial: Trial, method: str, output: Path) -> None:
    """Make a model by a method.

    Raises:
        InputError: the method is for none of the trial's nodes.
    """
    if method in ("onnxruntime-static", "onnxruntime-static-tensor"):
        onnxruntime_static(trial.case, output, per_channel=not method.endswith("tensor"))
    elif method.startswith(RUNTIME):
        _onnxruntime_nbits(trial, method.removeprefix(RUNTIME), output)
    elif method in TOOLS:
        TOOLS[method](trial.case, output, 1)
    else:
        _onnxq(trial, method, output)


def _onnxq(trial: Trial, method: str, output: Path) -> None:
    case, precision = trial.case, trial.format.precision
    options = Options(
        recipe=Recipe(precision=precision),
        target=trial.format.target,
        methods=tuple(method.split("+")),
        pins=trial.pins,
    )
    with open_job(case.model, case.data, options, eval_data=case.eval_data) as job:
        prepared = observed(prepare(job))
        save(apply_to(prepared, uniform_plan(prepared, precision), job.context)[0], output)


def _onnxruntime_nbits(trial: Trial, method: str, output: Path) -> None:
    """Becomes a process in the environment that has what onnxruntime needs for it."""
    python = Path(os.environ["ONNXQ_REAL"]) / "environment" / "bin" / "python"
    calibration = output.with_suffix(".npz")
    np.savez(calibration, **_feeds(trial.case))
    command = [str(python), str(HERE / "onnxruntime_nbits.py"), str(trial.case.model)]
    command += [str(calibration), str(output), method]
    command += ["--bits", str(trial.format.bits), "--block", str(trial.format.block)]
    os.execve(python, command, {**os.environ, "PYTHONPATH": str(HERE.parent)})


def _feeds(case: Case) -> dict[str, np.ndarray]:
    feeds = (batch.feeds for batch in case.parts()[0].batches())
    return {f"{n}:{name}": array for n, feed in enumerate(feeds) for name, array in feed.items()}


def main() -> None:
    """Make one attempt."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("folder", type=Path, metavar="FOLDER")
    parser.add_argument("trial", metavar="TRIAL")
    parser.add_argument("method", metavar="METHOD")
    parser.add_argument("output", type=Path, metavar="OUTPUT")
    parser.add_argument("--windows", type=int, default=8)
    parsed = parser.parse_args()
    trial = next(t for t in trials(parsed.folder, parsed.windows) if t.name == parsed.trial)
    started = time.perf_counter()
    attempt(trial, parsed.method, parsed.output)
    made = Made(time.perf_counter() - started, memory_bytes("VmHWM"))
    print(json.dumps(asdict(made)))


if __name__ == "__main__":
    main()
