"""Train and export the example models of this folder, with their data.

Usage: ``python models/train.py digits_resnet|digits_vit|text_lm|cifar_mobilenet|all [--seed 0]``.

Each model is trained on a CPU in a few minutes, exported to one ONNX file without external data,
and scored with onnxruntime on its held-out samples. Needs the ``models`` extra; cifar_mobilenet
also CIFAR-10 images in ``data/`` of the folder that ONNXQ_CORPUS names.
The README beside this file states the sources, licences and measured scores.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from cifar import make_cifar_mobilenet
from digits import make_digits_resnet, make_digits_vit
from help_topics import make_text_lm

# Results depend on how sums are split between threads, so the number is part of the recipe.
THREADS = 2

COMMANDS: dict[str, Callable[[Path, int], None]] = {
    "digits_resnet": make_digits_resnet,
    "digits_vit": make_digits_vit,
    "text_lm": make_text_lm,
    "cifar_mobilenet": make_cifar_mobilenet,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Train the model named on the command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", choices=[*COMMANDS, "all"])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--out", type=Path, default=Path(__file__).parent, help="folder to write to"
    )
    options = parser.parse_args(arguments)
    torch.set_num_threads(THREADS)
    torch.use_deterministic_algorithms(True)
    options.out.mkdir(parents=True, exist_ok=True)
    for name in COMMANDS if options.model == "all" else [options.model]:
        start = time.perf_counter()
        print(f"{name}: training with seed {options.seed}", flush=True)
        COMMANDS[name](options.out, options.seed)
        print(f"  {time.perf_counter() - start:.0f} s", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
