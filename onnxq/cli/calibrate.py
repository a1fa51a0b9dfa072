"""``onnxq calibrate``."""

from __future__ import annotations

import argparse
import time

from onnxq.cli.options import IMAGES
from onnxq.cli.parsed import given
from onnxq.cli.terminal import Outcome, table
from onnxq.errors import InputError
from onnxq.observe import Ranges, merge
from onnxq.planning import find_ranges
from onnxq.progress import Progress
from onnxq.report import words

HELP = "find the ranges of a model's activations, and keep what is needed to choose others"

EXAMPLES = """examples:
  onnxq calibrate model.onnx --data samples.npz -o ranges.json
  onnxq calibrate model.onnx --data samples.npz --memory-limit 2GB -o ranges.json
  onnxq calibrate --from ranges.json --calibrator "percentile{percentile=99.9}" -o other.json
  onnxq calibrate --from shard1.json --from shard2.json -o ranges.json
"""

NEEDS = "--output"
TAKES = (
    "model --data --from --calibrator --recipe --target --samples --memory-limit "
    f"--keep-overridable --opset --seed --batch-size {IMAGES}"
)


def run(parsed: argparse.Namespace, progress: Progress) -> Outcome:
    """Run the command."""
    started = time.perf_counter()
    found = _chosen_again(parsed) if parsed.sources else _found(parsed, progress)
    seconds = time.perf_counter() - started
    found.save(parsed.output)
    refused = [name for name, r in found.ranges.items() if not r.is_finite]
    body = {
        "schema": "onnxq/calibrate/1",
        "output": parsed.output,
        "model_sha256": found.model_sha256,
        "calibrator": found.calibrator,
        "samples": found.samples,
        "tensors": len(found.ranges),
        "not_finite": refused,
        "seconds": seconds,
    }
    rows = [
        ("calibrator", found.calibrator),
        ("samples", f"{found.samples:,}"),
        ("ranges", words.count(len(found.ranges), "tensor")),
        ("time", words.duration(seconds)),
        *(("refused", f"'{name}' has infinite or NaN values") for name in refused),
    ]
    return Outcome(body, table(rows), f"Wrote '{parsed.output}'.")


def _found(parsed: argparse.Namespace, progress: Progress) -> Ranges:
    if parsed.model is None or parsed.data is None:
        raise InputError("name a MODEL and its --data, or earlier ranges with --from")
    return find_ranges(parsed.model, parsed.data, given(parsed), progress=progress)


def _chosen_again(parsed: argparse.Namespace) -> Ranges:
    if parsed.model is not None or parsed.data is not None:
        raise InputError("--from takes the place of MODEL and --data; give one or the other")
    shards = [Ranges.load(path) for path in parsed.sources]
    if len(shards) == 1 and parsed.calibrator is None:
        raise InputError("one file of ranges needs a --calibrator to choose others with")
    if parsed.calibrator is not None:
        shards = [shard.with_calibrator(parsed.calibrator) for shard in shards]
    return merge(shards) if len(shards) > 1 else shards[0]
