"""``onnxq optimize``."""

from __future__ import annotations

import argparse
from pathlib import Path

from onnxq.cli import options, settings
from onnxq.cli.terminal import progress, show, write_json
from onnxq.optimization import Optimized, optimize
from onnxq.report import check_folder, to_text, write_report

HELP = "quantize a float model, and write it if it keeps its promise on held-out data"

EXAMPLES = """examples:
  onnxq optimize model.onnx --data samples.npz -o model.int8.onnx
  onnxq optimize model.onnx --data train/ --eval test/ --image-size 224x224 \\
      --max-drop 0.005 --min-speedup 1.5 -o model.int8.onnx --report report/
  onnxq optimize model.onnx --data samples.npz -o model.int8.onnx --plan-out plan.toml \\
      --pin "head*=float32" --work-dir work/
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    settings.add_model(parser)
    settings.add_data(parser)
    parser.add_argument(
        "-o", "--output", type=options.named, required=True, metavar="OUT", help="file to write"
    )
    parser.add_argument(
        "--eval",
        type=options.named,
        metavar="DATA",
        help="held-out samples (default: part of DATA)",
    )
    settings.add_recipe(parser)
    settings.add_target(parser)
    settings.add_calibrator(parser)
    settings.add_methods(parser)
    promise = parser.add_argument_group("promise")
    promise.add_argument(
        "--max-drop",
        type=options.number,
        metavar="D",
        help="largest drop of the metric (default 0.01; bits-per-byte: 2 %% of float's)",
    )
    promise.add_argument(
        "--min-speedup", type=options.number, metavar="X", help="smallest speedup (default 1)"
    )
    promise.add_argument(
        "--min-sqnr",
        type=options.number,
        metavar="DB",
        help="smallest SQNR of any output in dB (default without labels: 15)",
    )
    promise.add_argument(
        "--max-size-ratio",
        type=options.number,
        metavar="X",
        help="largest size of the file relative to the float one, as 0.5",
    )
    promise.add_argument(
        "--keep-failed", action="store_true", help="write the model even if a promise broke"
    )
    planned = parser.add_argument_group("plan")
    planned.add_argument(
        "--plan-out",
        type=options.named,
        metavar="FILE",
        help="write the plan of the model that was made, for `onnxq apply`",
    )
    settings.add_pins(planned)
    settings.add_work_folder(planned)
    options.add_metric(parser)
    parser.add_argument(
        "--calibration-samples",
        dest="samples",
        type=options.positive,
        metavar="N",
        help="samples to calibrate on (default: half of DATA, at most 512)",
    )
    settings.add_constant_initializers(parser)
    settings.add_opset(parser)
    settings.add_seed(parser, "the held-out part")
    options.add_report(parser)
    options.add_measuring(parser)
    options.add_common(parser)
    options.add_images(parser)


def run(parsed: argparse.Namespace) -> int:
    """Run the command; gives the exit code."""
    options.check_files(parsed)
    if parsed.report:
        check_folder(Path(parsed.report))
    with progress(parsed) as stages:
        result = optimize(
            parsed.model,
            parsed.data,
            settings.given(parsed),
            output=parsed.output,
            plan_output=parsed.plan_out,
            eval_data=parsed.eval,
            keep_failed=parsed.keep_failed,
            progress=stages,
        )
    if parsed.report:
        write_report(result.report, Path(parsed.report))
    write_json(parsed, result.report.to_dict())
    show(parsed, to_text(result.report), _ending(result, parsed))
    return options.EXIT_OK if result.passed else options.EXIT_GATE


def _ending(result: Optimized, parsed: argparse.Namespace) -> str:
    if result.written is None:
        ending = "A promise broke, so nothing was written; --keep-failed writes it all the same."
    elif result.passed:
        ending = f"Wrote {result.written}."
    else:
        ending = f"A promise broke; wrote {result.written} all the same."
    if result.written is not None and parsed.plan_out:
        ending += f" The plan is in {parsed.plan_out}."
    if parsed.report:
        ending += f" The report is in {Path(parsed.report) / 'report.html'}."
    return ending
