"""Print time and memory of rewriting a model whose weights are far larger than memory may get.

Usage: python benchmarks/big_model.py [--gigabytes 8] [--folder FOLDER]

The model is written piece by piece: matrices and convolutions of 64 MiB each, one embedding of an
eighth of it all, BatchNormalizations to be folded into every fifth weight's operator (new weights),
constants behind a Transpose (new weights too) and exact copies of earlier weights. A process of
its own then loads it, runs the default float pipeline and saves it with external data; the table
holds that process's seconds and memory, and how long copying the data file takes. Pages of mapped
files count in a process's resident memory (VmHWM), but not as memory of its own (RssAnon).
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
from memory import memory_bytes
from onnx import TensorProto, helper
from streamed import Writer

OPSET = 17
WIDTH = 4096
SPREAD = 0.01

SAMPLE_SECONDS = 0.005


def main() -> None:
    """Build the model, rewrite it and print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--gigabytes", type=float, default=8.0, help="size of the weights, in GB")
    parser.add_argument("--folder", type=Path, help="where to put three files of that size")
    parser.add_argument("--rewrite", nargs=2, type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.rewrite:
        print(json.dumps(rewrite(*arguments.rewrite)))
        return
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        folder = Path(name)
        started = time.perf_counter()
        build(folder / "big.onnx", int(arguments.gigabytes * 1e9))
        built = time.perf_counter() - started
        started = time.perf_counter()
        shutil.copyfile(folder / "big.onnx.data", folder / "copy.data")
        copied = time.perf_counter() - started
        (folder / "copy.data").unlink()
        measured = rewrite_in_own_process(folder / "big.onnx", folder / "out.onnx")
        _print(folder, built, copied, measured)


def _print(folder: Path, built: float, copied: float, measured: dict[str, Any]) -> None:
    before, after = ((folder / f"{n}.onnx.data").stat().st_size / 1e9 for n in ("big", "out"))
    together = sum(measured[stage] for stage in ("load", "passes", "save"))
    print("| what | measured |\n|---|---|")
    print(f"| data file before, after | {before:.2f} GB, {after:.2f} GB |")
    print(f"| written in | {built:.1f} s |")
    print(f"| copying the data file | {copied:.1f} s |")
    for stage in ("load", "passes", "save"):
        print(f"| {stage} | {measured[stage]:.1f} s |")
    print(f"| together | {together:.1f} s, {together / copied:.1f} times copying |")
    print(f"| peak resident memory (VmHWM) | {measured['resident']:.2f} GB |")
    print(f"| peak memory of its own (RssAnon) | {measured['own']:.2f} GB |")
    print(f"| before loading (RssAnon) | {measured['own_at_start']:.2f} GB |")
    for name, rewrites in measured["rewrites"].items():
        print(f"| {name} | {rewrites} rewrites, {measured['seconds'][name]:.1f} s |")


# Rewriting


def rewrite_in_own_process(source: Path, target: Path) -> dict[str, Any]:
    """Run `rewrite` where nothing else has taken memory."""
    command = [sys.executable, __file__, "--rewrite", str(source), str(target)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE)
    measured: dict[str, Any] = json.loads(done.stdout)
    return measured


def rewrite(source: Path, target: Path) -> dict[str, Any]:
    """Load, rewrite and save a model: seconds by stage, peaks of memory in GB, rewrites."""
    from onnxq.ir import Pipeline, default_passes, load, save

    passes = default_passes()
    own_at_start = memory_bytes("RssAnon") / 1e9
    with _Peak() as peak:
        times = [time.perf_counter()]
        graph = load(source)
        times.append(time.perf_counter())
        records = Pipeline(passes).run(graph)
        times.append(time.perf_counter())
        save(graph, target, external_data=True)
        times.append(time.perf_counter())
    stages = zip(("load", "passes", "save"), times, times[1:], strict=False)
    return {
        **{stage: end - start for stage, start, end in stages},
        "resident": memory_bytes("VmHWM") / 1e9,
        "own": peak.own,
        "own_at_start": own_at_start,
        "rewrites": {r.name: r.rewrites for r in records if r.rewrites},
        "seconds": {r.name: r.seconds for r in records},
    }


class _Peak:
    """The most memory of its own that this process has, looked at every few milliseconds."""

    def __init__(self) -> None:
        self.own = 0.0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> _Peak:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._done.wait(SAMPLE_SECONDS):
            self.own = max(self.own, memory_bytes("RssAnon") / 1e9)


# Building


def build(path: Path, size: int, width: int = WIDTH) -> None:
    """Write a model with about ``size`` bytes of weights in ``<name>.data`` beside it."""
    with Writer(path) as writer:
        rows = max(1, size // 8 // (width * 4))
        x = writer.op("Gather", writer.weight(rows, width, spread=SPREAD), "token")
        image = "image"
        seeds = iter(range(1, 1 << 30))
        while writer.written < size:
            x, image = _block(writer, x, image, width, next(seeds))
        inputs = [
            helper.make_tensor_value_info("token", TensorProto.INT64, ["batch"]),
            helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", width, 2, 2]),
        ]
        outputs = [
            helper.make_tensor_value_info(x, TensorProto.FLOAT, ["batch", width]),
            helper.make_tensor_value_info(image, TensorProto.FLOAT, ["batch", width, 2, 2]),
        ]
        writer.save(inputs, outputs, OPSET, ir_version=8)


def _block(writer: Writer, x: str, image: str, width: int, seed: int) -> tuple[str, str]:
    """Five weights: one to be kept, two to be folded, one to be transposed, and a copy."""

    def weight(*shape: int, seed: int | None = None) -> str:
        return writer.weight(*shape, spread=SPREAD, seed=seed)

    x = writer.op("Relu", writer.op("MatMul", x, weight(width, width, seed=seed)))
    product = writer.op("Gemm", x, weight(width, width), writer.constant(np.full(width, 0.1)))
    x = writer.op("Relu", _batch_norm(writer, product, width))
    convolved = writer.op("Conv", image, weight(width, width, 1, 1))
    image = writer.op("Relu", _batch_norm(writer, convolved, width))
    turned = writer.op("Transpose", weight(width, width), perm=[1, 0])
    x = writer.op("Relu", writer.op("MatMul", x, turned))
    return writer.op("Tanh", writer.op("MatMul", x, weight(width, width, seed=seed))), image


def _batch_norm(writer: Writer, x: str, width: int) -> str:
    """A BatchNormalization that changes what it gets."""
    parameters = [writer.constant(np.full(width, value)) for value in (1.25, 0.5, 0.1, 0.9)]
    return writer.op("BatchNormalization", x, *parameters)


if __name__ == "__main__":
    main()
