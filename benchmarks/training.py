"""Print what training in few bits keeps, beside what rounding alone keeps.

Usage: python benchmarks/training.py FOLDER [MODEL ...] [--bits B,...] [--epochs N] [--samples N]
       [--methods M,...] [--batch-norm KIND] [--lr R] [--weight-decay D] [--average DECAY]
       [--augment A,...] [--through B,...] [--mixed-precision] [--output FILE]

FOLDER keeps what every attempt gave, and checkpoints of those that were broken off, so that a
second run does only what is missing; other options want another folder. MODEL is digits_resnet,
digits_vit, text_lm or cifar_resnet20, whose data lies in the folder that ONNXQ_CORPUS names. Bits
are as `onnxq train` takes them, with a loss behind a colon if it is not the default:
``w4a4:distill``. Rounding alone is the same precision with the methods, separated by commas (auto:
those that suit; none), whichever keeps more. What is trained on is never judged on, nor the other
way round. Needs torch; Pillow for CIFAR-10, and the extra `models` for text_lm.
"""

from __future__ import annotations

import argparse
import importlib.util
import io
import math
import os
import sys
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
from onnxq.ir import Graph, infer_types, to_proto
from onnxq.runtime import Session
from onnxq.saved import SavedAsJson
from onnxq.training import precision_of
from onnxq.tune.train.executor import Executor

BITS = ("w8a8", "w4a4", "w3a3", "w2a2", "ternary", "binary")

_UNMEASURED = {"min_speedup": 0.0, "max_drop": 100.0}

_EXPLAINED = """Rounded: the same bits without training, by the best of the methods that were tried.
As float: decisions that stay. As torch: decisions of onnxruntime that equal those of torch (in
float64) in the same quantized model. Speed: against float. Seconds are of the clock, of training
alone.
"""

_COMPARED = 1000
"""On so many samples onnxruntime is compared with torch."""


@dataclass(frozen=True)
class Lesson:
    """A model, what it is trained on and what it is judged on."""

    name: str
    model: Path
    data: DataLike
    held_out: Arrays


@dataclass(frozen=True)
class Row(SavedAsJson):
    """What came of one number of bits, as values of a metric.

    ``agreement`` is the share of the float model's decisions that stay, ``with_torch`` that of
    torch's in the same quantized model that onnxruntime makes, too.
    """

    schema: ClassVar[str] = "onnxq/training-row/2"
    what: ClassVar[str] = "row"
    remedy: ClassVar[str] = "attempt it anew"

    metric: str
    float_value: float
    rounded: float
    trained: float
    agreement: float
    with_torch: float
    smaller: float
    speed: float
    epochs: int
    seconds: float


def lessons(samples: int) -> dict[str, Lesson]:
    """The models whose data is there."""
    found = []
    for name in ("digits_resnet", "digits_vit"):
        found.append(Lesson(name, MODELS / f"{name}.onnx", *_parts(MODELS / "digits.npz")))
    if all(importlib.util.find_spec(name) for name in ("sklearn", "onnxscript")):
        _, held_out = _parts(MODELS / "text.npz")
        found.append(Lesson("text_lm", MODELS / "text_lm.onnx", _texts(), held_out))
    corpus = Path(os.environ.get("ONNXQ_CORPUS", ""))
    cifar = corpus / "models" / "cifar_resnet20.onnx"
    if os.environ.get("ONNXQ_CORPUS") and cifar.exists():
        data = corpus / "data"
        train_on = _photographs(data / "cifar10_train_jpeg.npz", samples)
        judged_on = cifar_case("cifar_resnet20", cifar, 0).eval_data
        assert judged_on is not None
        found.append(Lesson("cifar_resnet20", cifar, train_on, judged_on))
    return {lesson.name: lesson for lesson in found}


def _parts(path: Path) -> tuple[Arrays, Arrays]:
    """What models may be trained on, and what they are judged on."""
    held = dict(np.load(path))
    split = held.pop("split")
    first, second = ({k: v[split == part] for k, v in held.items()} for part in (0, 1))
    return first, second


def _texts() -> Arrays:
    """All the text that `text_lm` was trained on, cut into windows."""
    spec = importlib.util.spec_from_file_location("models_train", MODELS / "train.py")
    assert spec is not None and spec.loader is not None
    made = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    tokens, labels = made.even_windows(made.load_text(0).train, 1 << 20)
    return {"tokens": tokens.numpy(), "labels": labels.numpy()}


def _photographs(path: Path, count: int) -> Arrays:
    """Images that lie in a file as JPEG, one after another, evenly chosen."""
    from PIL import Image

    held = np.load(path)
    ends, files, labels = held["offsets"], held["jpeg"].tobytes(), held["labels"]
    chosen = np.linspace(0, len(labels), min(count, len(labels)), endpoint=False).astype(int)
    images = [Image.open(io.BytesIO(files[ends[i] : ends[i + 1]])) for i in chosen]
    pixels = np.stack([np.asarray(image) for image in images])
    return {"image": cifar_pixels(pixels), "labels": labels[chosen].astype(np.int64)}


def attempt(lesson: Lesson, bits: str, parsed: argparse.Namespace) -> Row:
    """Round, and train."""
    given = {"eval_data": lesson.held_out, **_UNMEASURED}
    bits, _, loss = bits.partition(":")
    rounded = []
    for methods in parsed.methods.split(","):
        calibrator = "minmax" if bits == "w8a8" else "mse"
        recipe = {"recipe": precision_of(bits), "methods": methods, "calibrator": calibrator}
        try:
            found = optimize(lesson.model, lesson.data, **given, **recipe)
        except InputError as error:
            print(f"{lesson.name}, {bits}, methods {methods}: {error}")
            continue
        assert found.report.metric is not None
        rounded.append(found.report.metric)
    started = time.perf_counter()
    learned = train(
        lesson.model,
        lesson.data,
        bits,
        **given,
        epochs=parsed.epochs,
        loss=loss or "both",
        batch_norm=parsed.batch_norm,
        lr=parsed.lr,
        weight_decay=parsed.weight_decay,
        average=parsed.average,
        augment=tuple(parsed.augment.split(",")),
        through=tuple(filter(None, parsed.through.split(","))),
        mixed_precision=parsed.mixed_precision,
        folder=parsed.folder / f"{lesson.name}-{bits}{loss}",
    )
    seconds, report = time.perf_counter() - started, learned.report
    assert report.metric is not None and report.agreement is not None
    assert report.training is not None
    best = min(rounded, key=lambda facts: facts.drop, default=None)
    return Row(
        report.metric.name,
        report.metric.float,
        math.nan if best is None else best.candidate,
        report.metric.candidate,
        report.agreement.value,
        with_torch(learned.graph, lesson.held_out),
        report.size.ratio,
        0.0 if report.latency is None else report.latency.speedup,
        report.training.epochs,
        seconds,
    )


def with_torch(graph: Graph, samples: Arrays) -> float:
    """On which share of decisions onnxruntime and torch agree, both with the quantized model.

    torch computes in float64: sums in float32 that fall between two integers are rounded to the one
    or the other as their order is, and such models pass that on.
    """
    made = graph.copy()
    infer_types(made)
    (name,) = {v.name for v in made.inputs if v.data is None}
    executor, session = Executor(made).double(), Session(to_proto(graph))
    same = []
    whole = made.values[name].shape
    size = 50 if whole is None or not isinstance(whole[0], int) else whole[0]
    for at in range(0, min(_COMPARED, len(samples[name])), size):
        feeds = {name: samples[name][at : at + size]}
        given = executor.evaluate({name: _wide(array) for name, array in feeds.items()})
        for output, scores in session.run(feeds).items():
            same.append(np.mean(scores.argmax(-1) == given[output].argmax(-1)))
    return float(np.mean(same))


def _wide(array: np.ndarray) -> np.ndarray:
    return array.astype(np.float64) if array.dtype.kind == "f" else array


def table(name: str, rows: Sequence[tuple[str, Row]]) -> str:
    """The rows of a model as Markdown."""
    metric = rows[0][1].metric
    lines = [
        f"## {name}\n",
        f"| bits | {metric}: float | rounded | trained | lost | as float | as torch | smaller "
        "| speed | epochs | s |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for bits, row in rows:
        values = (row.float_value, row.rounded, row.trained)
        if metric == "accuracy":
            cells = [bits, *(f"{value:.2%}" for value in values)]
            cells += [f"{100 * (row.float_value - row.trained):.2f} points"]
        else:
            cells = [bits, *(f"{value:.4f}" for value in values)]
            cells += [f"{row.trained / row.float_value - 1:+.1%}"]
        cells += [f"{row.agreement:.2%}", f"{row.with_torch:.2%}", f"{row.smaller:.2f}x"]
        cells += [f"{row.speed:.2f}x", str(row.epochs), f"{row.seconds:.0f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    """Attempt what is missing, and print the tables."""
    parser = argparse.ArgumentParser(usage=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("models", nargs="*")
    parser.add_argument("--bits", default=",".join(BITS))
    parser.add_argument("--epochs", type=int, default=0)
    parser.add_argument("--samples", type=int, default=15000)
    parser.add_argument("--methods", default="auto,none")
    parser.add_argument("--batch-norm", default="frozen")
    parser.add_argument("--lr", type=float, default=0.0)
    parser.add_argument("--weight-decay", type=float, default=0.0)
    parser.add_argument("--average", type=float, default=0.0)
    parser.add_argument("--augment", default="auto")
    parser.add_argument("--through", default="")
    parser.add_argument("--mixed-precision", action="store_true")
    parser.add_argument("--output", type=Path)
    parsed = parser.parse_args(arguments)
    known = lessons(parsed.samples)
    parsed.folder.mkdir(parents=True, exist_ok=True)
    texts = [heading("Training in few bits", "training.py FOLDER ...", 1)]
    texts.append(_EXPLAINED)
    for name in parsed.models or known:
        rows = []
        for bits in parsed.bits.split(","):
            file = parsed.folder / f"{name}-{bits.replace(':', '')}.json"
            if not file.exists():
                attempt(known[name], bits, parsed).save(file)
            rows.append((bits, Row.load(file)))
            print(table(name, rows[-1:]))
        texts.append(table(name, rows))
    text = "\n".join(texts)
    print(text)
    if parsed.output is not None:
        parsed.output.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
