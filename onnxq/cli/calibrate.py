"""``onnxq calibrate``."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from rich.table import Table
from rich.text import Text

from onnxq.cli import options, settings
from onnxq.cli.terminal import progress, show, write_json
from onnxq.errors import InputError
from onnxq.ir.save import check_writable
from onnxq.observe import Ranges, merge
from onnxq.planning import find_ranges
from onnxq.report import words
from onnxq.report.text import grid

HELP = "find the ranges of a model's activations, and keep what is needed to choose others"

EXAMPLES = """examples:
  onnxq calibrate model.onnx --data samples.npz -o ranges.json
  onnxq calibrate model.onnx --data samples.npz --memory-limit 2GB -o ranges.json
  onnxq calibrate --from ranges.json --calibrator "percentile{percentile=99.9}" -o other.json
  onnxq calibrate --from shard1.json --from shard2.json -o ranges.json
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    settings.add_model(parser, nargs="?")
    settings.add_data(parser, required=False)
    parser.add_argument(
        "-o", "--output", type=options.named, required=True, metavar="OUT", help="file to write"
    )
    parser.add_argument(
        "--from",
        dest="sources",
        type=options.named,
        action="append",
        metavar="RANGES",
        help="choose from what was seen before, instead of running a model; several are merged",
    )
    settings.add_calibrator(parser)
    settings.add_recipe(parser)
    settings.add_target(parser)
    options.add_samples(parser)
    options.add_memory_limit(parser)
    settings.add_constant_initializers(parser)
    settings.add_opset(parser)
    settings.add_seed(parser, "the calibration part")
    options.add_batch_size(parser)
    options.add_common(parser)
    options.add_images(parser)


def run(parsed: argparse.Namespace) -> int:
    """Run the command; gives the exit code."""
    options.check_files(parsed)
    output = Path(parsed.output)
    check_writable(output)
    if parsed.model and output.resolve() == Path(parsed.model).resolve():
        raise InputError(f"the ranges would replace the model '{output}'; name another file")
    started = time.perf_counter()
    found = _chosen_again(parsed) if parsed.sources else _found(parsed)
    seconds = time.perf_counter() - started
    found.save(output)
    refused = [name for name, r in found.ranges.items() if not r.is_finite]
    write_json(
        parsed,
        {
            "schema": "onnxq/calibrate/1",
            "output": str(output),
            "model_sha256": found.model_sha256,
            "calibrator": found.calibrator,
            "samples": found.samples,
            "tensors": len(found.ranges),
            "not_finite": refused,
            "seconds": seconds,
        },
    )
    show(parsed, _table(found, refused, seconds), f"Wrote {output}.")
    return options.EXIT_OK


def _found(parsed: argparse.Namespace) -> Ranges:
    if parsed.model is None or parsed.data is None:
        raise InputError("name a MODEL and its --data, or earlier ranges with --from")
    with progress(parsed) as stages:
        return find_ranges(parsed.model, parsed.data, settings.given(parsed), progress=stages)


def _chosen_again(parsed: argparse.Namespace) -> Ranges:
    if parsed.model is not None or parsed.data is not None:
        raise InputError("--from takes the place of MODEL and --data; give one or the other")
    shards = [Ranges.load(path) for path in parsed.sources]
    if len(shards) == 1 and parsed.calibrator is None:
        raise InputError("one file of ranges needs a --calibrator to choose others with")
    if parsed.calibrator is not None:
        shards = [shard.with_calibrator(parsed.calibrator) for shard in shards]
    return merge(shards) if len(shards) > 1 else shards[0]


def _table(found: Ranges, refused: list[str], seconds: float) -> Table:
    table = grid()
    table.add_column()
    table.add_row("calibrator", Text(found.calibrator))
    table.add_row("samples", f"{found.samples:,}")
    table.add_row("ranges", words.count(len(found.ranges), "tensor"))
    table.add_row("time", words.duration(seconds))
    for name in refused:
        table.add_row("refused", Text(f"'{words.printable(name)}' has infinite or NaN values"))
    return table
