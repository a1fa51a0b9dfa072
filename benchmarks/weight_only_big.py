"""Print time and memory of storing the weights of a large model in 4 bits.

Usage: python benchmarks/weight_only_big.py [--gigabytes 1] [--format int4] [--folder FOLDER]

The model is written piece by piece: matrices of 64 MiB, every second one of them read transposed,
and one embedding of an eighth of it all. A process of its own then loads it, stores its weights
with `quantize-weights` in blocks of 32, and saves it with external data. The table holds that
process's seconds and peak resident memory, pages of mapped files included, beside what copying
the float data file takes.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from memory import memory_bytes
from onnx import TensorProto, helper
from streamed import Writer

OPSET = 21
WIDTH = 4096


def main() -> None:
    """Build the model, store its weights in few bits and print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--gigabytes", type=float, default=1.0, help="size of the weights, in GB")
    parser.add_argument("--format", default="int4", help="format of the stored weights")
    parser.add_argument("--folder", type=Path, help="where to put two files of that size")
    parser.add_argument("--quantize", nargs=2, type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.quantize:
        print(json.dumps(quantize(*arguments.quantize, arguments.format)))
        return
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        source, target = Path(name) / "big.onnx", Path(name) / "out.onnx"
        build(source, int(arguments.gigabytes * 1e9))
        data, copy = source.with_name("big.onnx.data"), source.with_name("copy.data")
        copied, computed = [], []
        for _ in range(3):
            started, busy = time.perf_counter(), time.process_time()
            shutil.copyfile(data, copy)
            copied.append(time.perf_counter() - started)
            computed.append(time.process_time() - busy)
            copy.unlink()
        command = [sys.executable, __file__, "--format", arguments.format]
        command += ["--quantize", str(source), str(target)]
        output = subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout
        sizes = [p.stat().st_size / 1e9 for p in (data, target.with_name("out.onnx.data"))]
        _print(sizes, copied, min(computed), json.loads(output))


def _print(
    sizes: list[float], copied: list[float], computed: float, measured: dict[str, float]
) -> None:
    together = sum(measured[stage] for stage in ("load", "quantize", "save"))
    print("| what | measured |\n|---|---|")
    print(f"| data file before, after | {sizes[0]:.2f} GB, {sizes[1]:.2f} GB |")
    print(f"| copying the data file | {', '.join(f'{seconds:.1f}' for seconds in copied)} s |")
    for stage in ("load", "quantize", "save"):
        print(f"| {stage} | {measured[stage]:.1f} s |")
    print(f"| together | {together:.1f} s, {together / min(copied):.1f} times copying |")
    print(f"| processor time | {measured['computed']:.1f} s; of copying {computed:.1f} s |")
    print(f"| weights stored | {measured['rewrites']} |")
    print(f"| peak resident memory | {measured['peak']:.2f} GB |")
    print(f"| before loading | {measured['at_start']:.2f} GB |")


def quantize(source: Path, target: Path, format: str) -> dict[str, float]:
    """Load, quantize and save a model: seconds by stage, peaks of memory in GB, rewrites."""
    from onnxq.ir import Context, infer_types, load, save
    from onnxq.passes.weights.quantize_weights import QuantizeWeights

    at_start, busy = memory_bytes("VmHWM") / 1e9, time.process_time()
    times = [time.perf_counter()]
    graph = load(source)
    times.append(time.perf_counter())
    infer_types(graph)
    made = QuantizeWeights(format=format, block_size=32).run(graph, Context())
    times.append(time.perf_counter())
    save(graph, target, external_data=True)
    times.append(time.perf_counter())
    stages = zip(("load", "quantize", "save"), times, times[1:], strict=False)
    return {
        **{stage: end - start for stage, start, end in stages},
        "computed": time.process_time() - busy,
        "peak": memory_bytes("VmHWM") / 1e9,
        "at_start": at_start,
        "rewrites": made,
    }


def build(path: Path, size: int) -> None:
    """Write a model with about ``size`` bytes of weights in ``<name>.data`` beside it."""
    with Writer(path) as writer:
        rows = max(1, size // 8 // (WIDTH * 4))
        x = writer.op("Gather", writer.weight(rows, WIDTH, spread=0.5), "token")
        while writer.written < size:
            kept, turned = (writer.weight(WIDTH, WIDTH, spread=0.5) for _ in range(2))
            x = writer.op("Relu", writer.op("MatMul", x, kept))
            x = writer.op("Relu", writer.op("Gemm", x, turned, transB=1))
        inputs = [helper.make_tensor_value_info("token", TensorProto.INT64, ["batch"])]
        outputs = [helper.make_tensor_value_info(x, TensorProto.FLOAT, ["batch", WIDTH])]
        writer.save(inputs, outputs, OPSET, ir_version=10)


if __name__ == "__main__":
    main()
