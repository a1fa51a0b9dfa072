"""Let NNCF quantize a model, in an environment of its own, with `benchmarks/` on PYTHONPATH.

Usage: python nncf_static.py MODEL CALIBRATION OUTPUT [--transformer]

CALIBRATION is an .npz file whose arrays are named NUMBER:INPUT, one feed per number. Prints the
seconds that quantizing took, and the peak memory in bytes, as JSON.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import nncf
import numpy as np
import onnx
from memory import memory_bytes


def main() -> None:
    """Quantize, save, and say what it took."""
    parser = argparse.ArgumentParser()
    parser.add_argument("model", type=Path)
    parser.add_argument("calibration", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--transformer", action="store_true", help="say that it is a transformer")
    parsed = parser.parse_args()
    feeds: dict[str, dict[str, np.ndarray]] = {}
    with np.load(parsed.calibration) as arrays:
        for key in arrays:
            number, _, name = key.partition(":")
            feeds.setdefault(number, {})[name] = arrays[key]
    started = time.perf_counter()
    quantized = nncf.quantize(
        onnx.load(parsed.model),
        nncf.Dataset(list(feeds.values())),
        subset_size=len(feeds),
        model_type=nncf.ModelType.TRANSFORMER if parsed.transformer else None,
    )
    onnx.save(quantized, parsed.output)
    print(
        json.dumps({"seconds": time.perf_counter() - started, "peak_bytes": memory_bytes("VmHWM")})
    )


if __name__ == "__main__":
    main()
