"""Let onnxruntime store the weights of a model's products in few bits.

Usage: python onnxruntime_nbits.py MODEL CALIBRATION OUTPUT METHOD [--bits 4] [--block 128]

Runs in the environment that `fetch.py` makes, because HQQ needs torch and all of them onnx-ir, with
`benchmarks/` on PYTHONPATH. CALIBRATION is an .npz file whose arrays are named NUMBER:INPUT, one
feed per number; only GPTQ reads it. METHOD is rtn (with zero-points), rtn-symmetric, k-quant, hqq,
gptq or gptq-corrected; all other options are onnxruntime's defaults. Prints the seconds it took,
and the peak memory in bytes, as JSON.

onnxruntime 1.32 cannot pack the zero-points of k-quant and gptq where a weight has an odd number of
blocks; here they are packed as its kernel reads them. Its gptq moves no error to later weights,
because it reads the empty triangle of the Cholesky factor, and gives what rtn gives; gptq-corrected
reads the other one.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from memory import memory_bytes
from onnxruntime.quantization import CalibrationDataReader
from onnxruntime.quantization import matmul_nbits_quantizer as nbits
from onnxruntime.quantization.neural_compressor import weight_only

METHODS = ("rtn", "rtn-symmetric", "k-quant", "hqq", "gptq", "gptq-corrected")


class Feeds(CalibrationDataReader):  # type: ignore[misc]
    """Feeds of a file; onnxruntime copies it before it reads."""

    def __init__(self, path: Path) -> None:
        self._feeds: dict[str, dict[str, np.ndarray]] = {}
        with np.load(path) as arrays:
            for key in arrays:
                number, _, name = key.partition(":")
                self._feeds.setdefault(number, {})[name] = arrays[key]
        self._next = iter(list(self._feeds.values()))

    def get_next(self) -> dict[str, np.ndarray] | None:
        """See `CalibrationDataReader`."""
        return next(self._next, None)


def configuration(
    method: str, bits: int, block: int, calibration: Path
) -> nbits.WeightOnlyQuantConfig:
    """What tells onnxruntime the method."""
    if method == "hqq":
        return nbits.HQQWeightOnlyQuantConfig(block_size=block, bits=bits)
    if method.startswith("gptq"):
        return nbits.GPTQWeightOnlyQuantConfig(Feeds(calibration))
    if method == "k-quant":
        return nbits.KQuantWeightOnlyQuantConfig()
    return nbits.DefaultWeightOnlyQuantConfig(
        block_size=block, is_symmetric=method == "rtn-symmetric", bits=bits
    )


def pack_rows() -> None:
    """Let k-quant and gptq pack the zero-points of each row by themselves."""
    make = weight_only.make_matmul_weight_only_node

    def made(zero_point: np.ndarray | None, **given: Any) -> tuple[onnx.NodeProto, list[Any]]:
        node, weights = make(zero_point=None, **given)
        if zero_point is not None:
            blocks = given["k_blocks"]
            rows = zero_point.reshape(-1, blocks).astype(np.uint8)
            rows = np.pad(rows, ((0, 0), (0, blocks % 2)))
            packed = rows[:, ::2] | rows[:, 1::2] << 4
            weights.append(onnx.numpy_helper.from_array(packed, f"{given['node'].input[1]}_zp"))
            node.input.append(weights[-1].name)
        return node, weights

    weight_only.make_matmul_weight_only_node = made


def use_other_triangle() -> None:
    """Let gptq read the triangle of the Cholesky factor that has the numbers."""
    factor = np.linalg.cholesky
    np.linalg.cholesky = lambda matrix: factor(matrix).T


def main() -> None:
    """Quantize, save, and say what it took."""
    parser = argparse.ArgumentParser()
    parser.add_argument("model", type=Path)
    parser.add_argument("calibration", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("method", choices=METHODS)
    parser.add_argument("--bits", type=int, default=4)
    parser.add_argument("--block", type=int, default=128)
    parsed = parser.parse_args()
    pack_rows()
    if parsed.method == "gptq-corrected":
        use_other_triangle()
    started = time.perf_counter()
    how = configuration(parsed.method, parsed.bits, parsed.block, parsed.calibration)
    model = onnx.load(parsed.model)
    quantizer = nbits.MatMulNBitsQuantizer(model, block_size=parsed.block, algo_config=how)
    quantizer.process()
    onnx.save(quantizer.model.model, parsed.output)
    print()
    print(
        json.dumps({"seconds": time.perf_counter() - started, "peak_bytes": memory_bytes("VmHWM")})
    )


if __name__ == "__main__":
    main()
