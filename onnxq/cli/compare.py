"""``onnxq compare``."""

from __future__ import annotations

import argparse
from pathlib import Path

from onnxq.cli import options
from onnxq.cli.terminal import progress, show, write_json
from onnxq.comparison import compare
from onnxq.ir.save import check_writable
from onnxq.ir.textfile import write_text
from onnxq.report import check_folder, to_junit, to_text, write_report
from onnxq.verify import QUANTITIES, Gate

HELP = "compare a candidate with the float model: metric, outputs, layers, size, latency"

EXAMPLES = f"""gates speak of:
{chr(10).join(f"  {name:<13} {meaning}" for name, (meaning, _) in QUANTITIES.items())}

examples:
  onnxq compare model.onnx model.int8.onnx --data samples.npz
  onnxq compare model.onnx model.int8.onnx --data samples.npz --provider cpu --provider cuda \\
      --gate "drop<=0.01" --gate "speedup>=1.5" --junit junit.xml
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    parser.add_argument("float", type=options.named, metavar="FLOAT", help="float model")
    parser.add_argument("candidate", type=options.named, metavar="CANDIDATE", help="model to judge")
    parser.add_argument(
        "--data",
        type=options.named,
        required=True,
        metavar="DATA",
        help="samples; of data with a split of its own the held-out part is used",
    )
    options.add_metric(parser)
    parser.add_argument(
        "--gate", action="append", default=[], metavar="EXPR", help="a promise (repeatable)"
    )
    options.add_samples(parser)
    parser.add_argument(
        "--no-layers", action="store_true", help="leave out the error of every layer"
    )
    parser.add_argument(
        "--junit", type=options.named, metavar="FILE", help="write the gates as JUnit XML"
    )
    options.add_report(parser)
    options.add_providers(parser)
    options.add_measuring(parser)
    options.add_common(parser)
    options.add_images(parser)


def run(parsed: argparse.Namespace) -> int:
    """Run the command; gives the exit code."""
    options.check_files(parsed)
    if parsed.report:
        check_folder(Path(parsed.report))
    if parsed.junit:
        check_writable(Path(parsed.junit))
    with progress(parsed) as stages:
        report = compare(
            parsed.float,
            parsed.candidate,
            parsed.data,
            metric=parsed.metric,
            providers=parsed.provider or ("cpu",),
            gates=[Gate.parse(text) for text in parsed.gate],
            threads=parsed.threads,
            images=options.image_options(parsed),
            batch_size=parsed.batch_size,
            samples=parsed.samples,
            layers=not parsed.no_layers,
            progress=stages,
        )
    if parsed.report:
        write_report(report, Path(parsed.report))
    if parsed.junit:
        write_text(Path(parsed.junit), to_junit(report))
    write_json(parsed, report.to_dict())
    show(parsed, to_text(report, layers=True))
    return options.EXIT_OK if report.passed else options.EXIT_GATE
