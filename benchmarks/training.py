"""Print what training in few bits keeps, beside the best that rounding alone keeps.

Usage: python benchmarks/training.py FOLDER [MODEL ...] [--bits B,...] [--epochs N] [--samples N]
       [--loss L] [--output FILE]

FOLDER keeps what every attempt gave, and checkpoints of those that were broken off, so that a
second run does only what is missing; other options want another folder. MODEL is digits_resnet,
digits_vit or cifar_resnet20, whose data lies in the folder that ONNXQ_CORPUS names. Rounding alone
is the same precision with no method and with those that it names, whichever keeps more. What is
trained on is never judged on, nor the other way round. Needs torch, and Pillow for CIFAR-10.
"""

from __future__ import annotations

import argparse
import io
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
from cases import MODELS, Arrays, cifar_case, cifar_pixels
from heading import heading

from onnxq import InputError, optimize, train
from onnxq.data import DataLike
from onnxq.saved import SavedAsJson
from onnxq.training import precision_of

BITS = ("w8a8", "w4a4", "w3a3", "w2a2", "ternary", "binary")

_UNMEASURED = {"min_speedup": 0.0, "max_drop": 1.0}


@dataclass(frozen=True)
class Lesson:
    """A model, what it is trained on and what it is judged on.

    Attributes:
        data: With a split of its own where ``held_out`` is None.
    """

    name: str
    model: Path
    data: DataLike
    held_out: DataLike | None = None
    augment: tuple[str, ...] = ()


@dataclass(frozen=True)
class Row(SavedAsJson):
    """What came of one number of bits; accuracies as shares."""

    schema: ClassVar[str] = "onnxq/training-row/1"
    what: ClassVar[str] = "row"
    remedy: ClassVar[str] = "attempt it anew"

    float_value: float
    rounded: float
    trained: float
    agreement: float
    smaller: float
    speed: float
    seconds: float


def lessons(samples: int) -> dict[str, Lesson]:
    """The models whose data is there."""
    digits = MODELS / "digits.npz"
    found = [Lesson(n, MODELS / f"{n}.onnx", digits) for n in ("digits_resnet", "digits_vit")]
    corpus = Path(os.environ.get("ONNXQ_CORPUS", ""))
    cifar = corpus / "models" / "cifar_resnet20.onnx"
    if os.environ.get("ONNXQ_CORPUS") and cifar.exists():
        data = corpus / "data"
        train_on = _photographs(data / "cifar10_train_jpeg.npz", samples)
        judged_on = cifar_case("cifar_resnet20", cifar, 0).eval_data
        found.append(Lesson("cifar_resnet20", cifar, train_on, judged_on, ("flip", "crop")))
    return {lesson.name: lesson for lesson in found}


def _photographs(path: Path, count: int) -> Arrays:
    """Images that lie in a file as JPEG, one after another, evenly chosen."""
    from PIL import Image

    held = np.load(path)
    ends, files, labels = held["offsets"], held["jpeg"].tobytes(), held["labels"]
    chosen = np.linspace(0, len(labels), min(count, len(labels)), endpoint=False).astype(int)
    images = [Image.open(io.BytesIO(files[ends[i] : ends[i + 1]])) for i in chosen]
    pixels = np.stack([np.asarray(image) for image in images])
    return {"image": cifar_pixels(pixels), "labels": labels[chosen].astype(np.int64)}


def attempt(lesson: Lesson, bits: str, epochs: int, loss: str, folder: Path) -> Row:
    """Round, and train."""
    given = {"eval_data": lesson.held_out, **_UNMEASURED}
    rounded = 0.0
    for methods in ("none", "auto"):
        calibrator = "minmax" if bits == "w8a8" else "mse"
        recipe = {"recipe": precision_of(bits), "methods": methods, "calibrator": calibrator}
        try:
            found = optimize(lesson.model, lesson.data, **given, **recipe)
        except InputError as error:
            print(f"{lesson.name}, {bits}, methods {methods}: {error}")
            continue
        assert found.report.metric is not None
        rounded = max(rounded, found.report.metric.candidate)
    started = time.perf_counter()
    learned = train(
        lesson.model,
        lesson.data,
        bits,
        **given,
        epochs=epochs,
        loss=loss,
        augment=lesson.augment,
        folder=folder / f"{lesson.name}-{bits}",
    )
    report = learned.report
    assert report.metric is not None and report.agreement is not None
    return Row(
        report.metric.float,
        rounded,
        report.metric.candidate,
        report.agreement.value,
        report.size.ratio,
        0.0 if report.latency is None else report.latency.speedup,
        time.perf_counter() - started,
    )


def table(name: str, rows: Sequence[tuple[str, Row]]) -> str:
    """The rows of a model as Markdown."""
    lines = [
        f"## {name}\n",
        "| bits | float | rounded | trained | drop, points | same decision | smaller | speed | s |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for bits, row in rows:
        shares = (row.float_value, row.rounded, row.trained)
        cells = [bits, *(f"{share:.2%}" for share in shares)]
        cells += [f"{100 * (row.float_value - row.trained):.2f}", f"{row.agreement:.2%}"]
        cells += [f"{row.smaller:.2f}x", f"{row.speed:.2f}x", f"{row.seconds:.0f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    """Attempt what is missing, and print the tables."""
    parser = argparse.ArgumentParser(usage=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("models", nargs="*")
    parser.add_argument("--bits", default=",".join(BITS))
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--samples", type=int, default=15000)
    parser.add_argument("--loss", default="task")
    parser.add_argument("--output", type=Path)
    parsed = parser.parse_args(arguments)
    known = lessons(parsed.samples)
    parsed.folder.mkdir(parents=True, exist_ok=True)
    texts = [heading("Training in few bits", "training.py FOLDER ...", 1)]
    texts.append(f"{parsed.epochs} epochs, loss {parsed.loss}.\n")
    for name in parsed.models or known:
        rows = []
        for bits in parsed.bits.split(","):
            file = parsed.folder / f"{name}-{bits}.json"
            if not file.exists():
                made = attempt(known[name], bits, parsed.epochs, parsed.loss, parsed.folder)
                made.save(file)
            rows.append((bits, Row.load(file)))
            print(table(name, rows[-1:]))
        texts.append(table(name, rows))
    text = "\n".join(texts)
    print(text)
    if parsed.output is not None:
        parsed.output.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
