"""How the values of options are read from text."""

from __future__ import annotations

import argparse
import math
import re

MOST_THREADS = 1024
"""More than any processor has; onnxruntime would try to start them all."""

_POWERS = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4}


def named(text: str) -> str:
    """The name of something; an empty one comes from a shell variable that is not set."""
    if not text:
        raise argparse.ArgumentTypeError("the name is empty")
    return text


def whole(text: str, least: int = 0) -> int:
    """A whole number from 0."""
    value = int(text) if text.isascii() and text.isdigit() else -1
    if value < least:
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number from {least}")
    return value


def positive(text: str) -> int:
    """A whole number from 1."""
    return whole(text, 1)


def batches(text: str) -> tuple[int, ...]:
    """Numbers of samples between commas, each once."""
    return tuple(dict.fromkeys(positive(part.strip()) for part in text.split(",")))


def names(text: str) -> tuple[str, ...]:
    """Names between commas, each once."""
    return tuple(dict.fromkeys(named(part.strip()) for part in text.split(",")))


def threads(text: str) -> int:
    """A number of threads that can be started."""
    value = positive(text)
    if value > MOST_THREADS:
        raise argparse.ArgumentTypeError(f"'{text}' is more than {MOST_THREADS} threads")
    return value


def number(text: str) -> float:
    """Any finite number."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"'{text}' is not a number")
    return value


def numbers(text: str) -> tuple[float, ...]:
    """Finite numbers between commas."""
    return tuple(number(part) for part in text.split(","))


def seconds(text: str) -> float:
    """A number above 0."""
    value = number(text)
    if value <= 0:
        raise argparse.ArgumentTypeError(f"'{text}' is not a time above 0")
    return value


def part(text: str) -> float:
    """A share of all, above 0."""
    value = number(text)
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"'{text}' is not a share above 0 and at most 1")
    return value


def amount(text: str) -> float:
    """A number above 0."""
    value = number(text)
    if value <= 0:
        raise argparse.ArgumentTypeError(f"'{text}' is not a number above 0")
    return value


def size(text: str) -> tuple[int, int]:
    """Height and width: ``224x224``."""
    parts = text.lower().split("x")
    if len(parts) != 2:
        raise argparse.ArgumentTypeError(f"'{text}' is not a size such as 224x224")
    return positive(parts[0]), positive(parts[1])


def memory(text: str) -> int:
    """A size in bytes: ``500MB``, ``2GB``, ``1.5 GiB``, ``4096``."""
    matched = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(I)?B?", text.strip().upper())
    size = 0
    if matched:
        size = int(float(matched[1]) * (1024 if matched[3] else 1000) ** _POWERS[matched[2]])
    if size < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is not a size such as 500MB or 2GB")
    return size
