"""``onnxq compare``."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from onnxq.cli.options import IMAGES
from onnxq.cli.parsed import image_options, providers
from onnxq.cli.terminal import EXIT_GATE, EXIT_OK, Outcome
from onnxq.comparison import compare
from onnxq.progress import Progress
from onnxq.report import check_folder, to_junit, to_markdown, to_text, write_report
from onnxq.saved import write_text
from onnxq.verify import QUANTITIES

HELP = "compare a candidate with the float model: metric, outputs, layers, size, latency"

EXAMPLES = f"""gates speak of:
{chr(10).join(f"  {name:<13} {meaning}" for name, (meaning, _) in QUANTITIES.items())}
  and of any number in the JSON report by its path, as metric.drop or outputs.*.sqnr_db (every one)

examples:
  onnxq compare model.onnx model.int8.onnx --data samples.npz
  onnxq compare model.onnx model.int8.onnx --data samples.npz --provider openvino --reference
  onnxq compare model.onnx model.int8.onnx --data samples.npz --provider cpu --provider cuda \\
      --gate "drop<=0.01" --gate "latencies.*.speedup>=1.5" --junit junit.xml --markdown summary.md
"""

NEEDS = "float candidate --data"
TAKES = (
    "--metric --gate --samples --layers --no-layers --junit --markdown --report --provider "
    f"--provider-option --reference --threads --batch-size --throughput --latency-of {IMAGES}"
)
CHANGES = {"--data": {"help": "samples; of data with a split of its own the held-out part is used"}}


def run(parsed: argparse.Namespace, progress: Progress) -> Outcome:
    """Run the command."""
    if parsed.report:
        check_folder(Path(parsed.report))
    report = compare(
        parsed.float,
        parsed.candidate,
        parsed.data,
        metric=parsed.metric,
        providers=providers(parsed),
        gates=parsed.gate or (),
        threads=parsed.threads,
        images=image_options(parsed),
        batch_size=parsed.batch_size,
        throughput=parsed.throughput or (),
        latency_of=parsed.latency_of,
        samples=parsed.samples,
        layers=not parsed.no_layers,
        reference=parsed.reference,
        progress=progress,
    )
    report = replace(report, command=parsed.command)
    if parsed.report:
        write_report(report, Path(parsed.report))
    if parsed.junit:
        write_text(Path(parsed.junit), to_junit(report))
    if parsed.markdown:
        write_text(Path(parsed.markdown), to_markdown(report))
    code = EXIT_OK if report.passed else EXIT_GATE
    return Outcome(
        report.to_dict(), to_text(report, layers="all" if parsed.layers else "weakest"), code=code
    )
