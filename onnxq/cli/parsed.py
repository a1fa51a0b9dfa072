"""What was given on the command line, as the API takes it, and whether results can be written."""

from __future__ import annotations

import argparse
import os
from dataclasses import fields
from pathlib import Path
from typing import Any

from onnxq.data import ImageOptions
from onnxq.errors import InputError
from onnxq.ir.saving import check_writable
from onnxq.options import Options
from onnxq.report.folder import NAMES
from onnxq.runtime.providers import provider_alias, with_options

_WRITTEN = {
    "output": "-o",
    "plan_out": "--plan-out",
    "junit": "--junit",
    "markdown": "--markdown",
    "json": "--json",
}
_READ = (
    "float",
    "candidate",
    "data",
    "eval",
    "recipe",
    "plan",
    "costs",
    "weights",
    "model",
    "manifest",
)


def debug_level() -> int:
    """The level that the environment variable ONNXQ_DEBUG asks for, 0 to 3."""
    text = os.environ.get("ONNXQ_DEBUG", "") or "0"
    if text not in ("0", "1", "2", "3"):
        raise InputError(f"ONNXQ_DEBUG is '{text}'; set it to 0, 1, 2 or 3")
    return int(text)


def given(parsed: argparse.Namespace, **more: Any) -> Options:
    """The fields of `Options` that were given on the command line, and ``more`` of them."""
    known = {field.name for field in fields(Options)}
    found = {k: v for k, v in vars(parsed).items() if k in known and v is not None}
    images = image_options(parsed) if getattr(parsed, "data", None) else None
    return Options(**found, **more, images=images, debug=debug_level())


def providers(parsed: argparse.Namespace) -> tuple[str, ...]:
    """The providers that were named, those but the CPU with the options that were given.

    Raises:
        InputError: there are options, but no provider that could take them.
    """
    named, options = parsed.provider or ("cpu",), parsed.provider_options or ()
    are_cpu = [provider_alias(name) == "cpu" for name in named]
    return tuple(
        name if is_cpu and not all(are_cpu) else with_options(name, options)
        for name, is_cpu in zip(named, are_cpu, strict=True)
    )


def image_options(parsed: argparse.Namespace) -> ImageOptions | None:
    """The image options that were given; None without any.

    Raises:
        InputError: there are some, but nothing that they could be for.
    """
    prefix = "image_"
    options = {
        key.removeprefix(prefix): value
        for key, value in vars(parsed).items()
        if key.startswith(prefix) and value is not None
    }
    if not options:
        return None
    sources = [name for name in (parsed.data, getattr(parsed, "eval", None)) if name]
    if all(Path(name).is_file() for name in sources):
        raise InputError(
            f"--image-{next(iter(options))} is for data that is a folder of images, but "
            f"'{sources[0]}' is a file; its arrays are fed as they are"
        )
    return ImageOptions(**options)


def check_files(parsed: argparse.Namespace) -> None:
    """Find out before long work whether results can be written without harming another file.

    Only a model may take the place of the model it is made from (``parsed.makes_model``).

    Raises:
        InputError: a result cannot be written, two would go to one file, or one would replace a
            file that is read.
    """
    options = vars(parsed)
    names = [options.get(key) for key in _READ]
    names += [
        n for key in ("models", "reports", "diff", "candidates") for n in options.get(key) or ()
    ]
    if str(options.get("target")).endswith(".toml"):
        names.append(parsed.target)
    read = {Path(name).resolve() for name in names if name}
    folder = Path(options.get("report") or "").resolve()
    taken = {folder / name: "--report" for name in (NAMES if options.get("report") else ())}
    for key, option in _WRITTEN.items():
        name = options.get(key)
        if not name or (name == "-" and key == "json"):
            continue
        if name == "-":
            raise InputError(f"only --json writes to standard output; name a file for {option}")
        path = Path(name).resolve()
        if path in taken:
            raise InputError(f"{taken[path]} and {option} both write '{name}'; name two files")
        is_new = (
            key == "output" and parsed.makes_model and path == Path(parsed.model or "").resolve()
        )
        if path in read and not is_new:
            raise InputError(f"{option} would replace '{name}', which is read; name another file")
        taken[path] = option
        check_writable(Path(name))
