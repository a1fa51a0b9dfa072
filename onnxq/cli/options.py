"""Options that several commands share, and how their values are read."""

from __future__ import annotations

import argparse
import math
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from onnxq.data import ImageOptions
from onnxq.errors import InputError
from onnxq.ir.save import check_writable

EXIT_OK, EXIT_GATE, EXIT_INPUT = 0, 1, 2

_WRITTEN = (
    ("-o", "output"),
    ("--plan-out", "plan_out"),
    ("--junit", "junit"),
    ("--json", "json"),
)
"""Options that name a file to write."""

MOST_THREADS = 1024
"""More than any processor has; onnxruntime would try to start them all."""


def debug_level() -> int:
    """The level that the environment variable ONNXQ_DEBUG asks for, 0 to 3."""
    text = os.environ.get("ONNXQ_DEBUG", "") or "0"
    if text not in ("0", "1", "2", "3"):
        raise InputError(f"ONNXQ_DEBUG is '{text}'; set it to 0, 1, 2 or 3")
    return int(text)


def add_common(parser: argparse.ArgumentParser) -> None:
    """What every command takes."""
    parser.add_argument(
        "--json",
        type=named,
        metavar="PATH",
        help="write the result as JSON; - is standard output",
    )
    parser.add_argument("-q", "--quiet", action="store_true", help="print nothing but errors")


def add_samples(parser: argparse.ArgumentParser) -> None:
    """How much of the data to use."""
    parser.add_argument(
        "--samples", type=positive, metavar="N", help="use only about so many samples"
    )


def add_memory_limit(parser: argparse.ArgumentParser) -> None:
    """How much memory observing may take."""
    parser.add_argument(
        "--memory-limit",
        type=_bytes,
        metavar="SIZE",
        help="memory to observe with beyond plain inference, as 500MB or 2GB; the data is passed "
        "over several times if it is short",
    )


def add_metric(parser: argparse.ArgumentParser) -> None:
    """What to judge the outputs by."""
    parser.add_argument(
        "--metric", metavar="M", help="accuracy, top-5, bits-per-byte, sqnr or module:function"
    )


def add_report(parser: argparse.ArgumentParser) -> None:
    """Where to write the report."""
    parser.add_argument(
        "--report",
        type=named,
        metavar="FOLDER",
        help="write report.json, .html and junit.xml",
    )


def add_batch_size(parser: argparse.ArgumentParser) -> None:
    """How many samples run together."""
    parser.add_argument(
        "--batch-size",
        type=positive,
        metavar="N",
        help="samples in a batch where the model leaves it open",
    )


def add_measuring(parser: argparse.ArgumentParser) -> None:
    """How to run models."""
    parser.add_argument(
        "--threads",
        type=_threads,
        default=1,
        metavar="N",
        help="threads inside one operator (default 1)",
    )
    add_batch_size(parser)


def add_providers(parser: argparse.ArgumentParser) -> None:
    """Where to run models."""
    parser.add_argument(
        "--provider",
        action="append",
        metavar="P",
        help="execution provider to measure on: cpu, cuda, openvino, ... (repeatable; default cpu)",
    )


def add_images(parser: argparse.ArgumentParser) -> None:
    """How a folder of images becomes input."""
    group = parser.add_argument_group(
        "images", "for data that is a folder of images; x = (pixel * scale - mean) / std"
    )
    group.add_argument("--image-size", type=_size, metavar="HxW", help="default: the model's")
    group.add_argument("--image-mean", type=_numbers, metavar="M[,M,M]", help="default 0")
    group.add_argument("--image-std", type=_numbers, metavar="S[,S,S]", help="default 1")
    group.add_argument("--image-scale", type=number, metavar="F", help="default 1/255")
    group.add_argument("--image-layout", choices=("NCHW", "NHWC"), help="default: by the channels")
    group.add_argument("--image-color", choices=("RGB", "BGR", "L"), help="default: RGB or L")
    group.add_argument("--image-resize", choices=("crop", "stretch"), help="default crop")


def image_options(parsed: argparse.Namespace) -> ImageOptions | None:
    """The image options that were given; None without any.

    Raises:
        InputError: there are some, but nothing that they could be for.
    """
    names = ("size", "mean", "std", "scale", "layout", "color", "resize")
    given = {n: getattr(parsed, f"image_{n}") for n in names}
    given = {name: value for name, value in given.items() if value is not None}
    if not given:
        return None
    sources = [name for name in (parsed.data, getattr(parsed, "eval", None)) if name]
    if all(Path(name).is_file() for name in sources):
        raise InputError(
            f"--image-{next(iter(given))} is for data that is a folder of images, but "
            f"'{sources[0]}' is a file; its arrays are fed as they are"
        )
    return ImageOptions(**given)


def check_files(parsed: argparse.Namespace) -> None:
    """Find out before long work whether results can be written without harming another file.

    Only the output may take the place of the model it is made from.

    Raises:
        InputError: the JSON cannot be written, two results would go to one file, or a result
            would replace a file that is read.
    """
    if parsed.json and parsed.json != "-":
        check_writable(Path(parsed.json))
    given = vars(parsed)
    model = given.get("model")
    read = {Path(name).resolve() for name in _read_files(given)}
    taken: dict[Path, str] = {}
    for option, key in _WRITTEN:
        name = given.get(key)
        if not name or name == "-":
            continue
        path = Path(name).resolve()
        if path in taken:
            raise InputError(f"{taken[path]} and {option} both write '{name}'; name two files")
        if path in read or (key != "output" and model and path == Path(model).resolve()):
            raise InputError(f"{option} would replace '{name}', which is read; name another file")
        taken[path] = option


def _read_files(given: Mapping[str, Any]) -> Iterator[str]:
    for key in ("float", "candidate", "data", "eval", "recipe", "plan", "costs"):
        if given.get(key):
            yield given[key]
    if str(given.get("target", "")).endswith(".toml"):
        yield given["target"]
    yield from given.get("models") or ()
    yield from given.get("diff") or ()


def named(text: str) -> str:
    """The name of something; an empty one comes from a shell variable that is not set."""
    if not text:
        raise argparse.ArgumentTypeError("the name is empty")
    return text


def positive(text: str) -> int:
    """A whole number from 1."""
    value = int(text) if text.isascii() and text.isdigit() else 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number from 1")
    return value


def whole(text: str) -> int:
    """A whole number from 0."""
    if not (text.isascii() and text.isdigit()):
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number from 0")
    return int(text)


def number(text: str) -> float:
    """Any finite number."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"'{text}' is not a number")
    return value


def seconds(text: str) -> float:
    """A number above 0."""
    value = number(text)
    if value <= 0:
        raise argparse.ArgumentTypeError(f"'{text}' is not a time above 0")
    return value


def _threads(text: str) -> int:
    value = positive(text)
    if value > MOST_THREADS:
        raise argparse.ArgumentTypeError(f"'{text}' is more than {MOST_THREADS} threads")
    return value


def _numbers(text: str) -> tuple[float, ...]:
    return tuple(number(part) for part in text.split(","))


def _size(text: str) -> tuple[int, int]:
    parts = text.lower().split("x")
    if len(parts) != 2:
        raise argparse.ArgumentTypeError(f"'{text}' is not a size such as 224x224")
    return positive(parts[0]), positive(parts[1])


_UNITS = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4}


def _bytes(text: str) -> int:
    """A size in bytes: ``500MB``, ``2GB``, ``1.5 GiB``, ``4096``."""
    matched = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(I?)B?", text.strip().upper())
    size = 0
    if matched:
        size = int(float(matched[1]) * (1024 if matched[3] else 1000) ** _UNITS[matched[2]])
    if size < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is not a size such as 500MB or 2GB")
    return size
