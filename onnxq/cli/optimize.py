"""``onnxq optimize``."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

from onnxq.cli.options import IMAGES
from onnxq.cli.parsed import given
from onnxq.cli.terminal import EXIT_GATE, EXIT_OK, Outcome
from onnxq.optimization import Optimized, optimize
from onnxq.progress import Progress
from onnxq.report import check_folder, to_text, write_report
from onnxq.targets import available_targets

HELP = "quantize a float model, and write it if it keeps its promise on held-out data"

EXAMPLES = """examples:
  onnxq optimize model.onnx --data samples.npz -o model.int8.onnx
  onnxq optimize model.onnx --data train/ --eval test/ --image-size 224x224 \\
      --max-drop 0.005 --min-speedup 1.5 -o model.int8.onnx --report report/
  onnxq optimize model.onnx --data samples.npz -o model.int8.onnx --plan-out plan.toml \\
      --pin "head*=float32" --work-dir work/
  onnxq optimize model.onnx --data samples.npz -o model.fast.onnx --target fastest \\
      --python openvino/bin/python
"""

NEEDS = "model --data --output"
TAKES = (
    "--eval --recipe --target --python --provider-option --calibrator --methods --max-drop "
    "--min-agreement --min-speedup --min-sqnr --max-size-ratio --keep-failed --plan-out "
    "--adaptive --cascade --pin --candidate --work-dir --metric --calibration-samples "
    "--time-budget --keep-overridable --opset --seed --memory-limit --workers --scheduler "
    "--hangs-after --report --threads --batch-size "
    f"--throughput --latency-of {IMAGES}"
)
MAKES_MODEL = True
CHANGES = {
    "--target": {
        "help": f"where it is to run: auto, {', '.join(available_targets())}, a .toml file, or "
        "fastest: whatever is fastest of all providers that are installed (default auto)"
    }
}


def run(parsed: argparse.Namespace, progress: Progress) -> Outcome:
    """Run the command."""
    ends = destination(parsed)
    result = optimize(
        parsed.model,
        parsed.data,
        given(parsed),
        adaptive=parsed.adaptive,
        cascade=parsed.cascade,
        progress=progress,
        **ends,
    )
    return outcome(result, parsed)


def destination(parsed: argparse.Namespace) -> dict[str, Any]:
    """Where a command that makes a model writes, and on which conditions.

    Raises:
        InputError: the report cannot be written.
    """
    if parsed.report:
        check_folder(Path(parsed.report))
    return {
        "output": parsed.output,
        "plan_output": parsed.plan_out,
        "eval_data": parsed.eval,
        "keep_failed": parsed.keep_failed,
    }


def outcome(result: Optimized, parsed: argparse.Namespace) -> Outcome:
    """What a command that made a model and its proof shows; writes the report that is wanted."""
    report = replace(result.report, command=parsed.command)
    if parsed.report:
        write_report(report, Path(parsed.report))
    code = EXIT_OK if result.passed else EXIT_GATE
    return Outcome(report.to_dict(), to_text(report), _ending(result, parsed), code)


def _ending(result: Optimized, parsed: argparse.Namespace) -> str:
    if result.written is None:
        ending = "A promise broke, so nothing was written; --keep-failed writes it all the same."
    elif result.passed:
        ending = f"Wrote '{result.written}'."
    else:
        ending = f"A promise broke; wrote '{result.written}' all the same."
    if result.written is not None and parsed.plan_out:
        ending += f" The plan is in '{parsed.plan_out}'."
    if result.written is not None and getattr(parsed, "adaptive", None):
        ending += f" The bundle is in '{parsed.adaptive}'."
    if parsed.report:
        page = Path(parsed.report) / "report.html"
        ending += f" The report is in '{page}'."
    return ending
