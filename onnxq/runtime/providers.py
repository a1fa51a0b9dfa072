"""onnxruntime's execution providers: their names, and the options they are given.

A provider is told by a text: its short or full name, with options as ``openvino{device_type=GPU}``.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import onnxruntime as ort

from onnxq.errors import InputError
from onnxq.registry import split_forms

_SUFFIX = "ExecutionProvider"
_OTHER_NAMES = {"directml": "dml", "onednn": "dnnl"}
_PACKAGES = {
    "cuda": "onnxruntime-gpu",
    "dml": "onnxruntime-directml",
    "openvino": "onnxruntime-openvino",
    "qnn": "onnxruntime-qnn",
    "tensorrt": "onnxruntime-gpu",
}
"""Packages that take the place of ``onnxruntime`` and bring a provider."""

_CPU = "CPUExecutionProvider"
_OPENVINO = "OpenVINOExecutionProvider"

_FORM = re.compile(r"\s*([^{}]*?)\s*(?:\{(.*)\})?\s*", re.DOTALL)
_BARE = re.compile(r"[^\s,'\"{}\[\]()\\]+")


@dataclass(frozen=True)
class Offer:
    """What an onnxruntime offers: its version, and the full names of its providers.

    ``python`` is the interpreter where it is another environment's.
    """

    version: str
    providers: tuple[str, ...]
    python: str = ""

    def __str__(self) -> str:
        """Which onnxruntime that is."""
        whose = f" of '{self.python}'" if self.python else ""
        return f"the installed onnxruntime {self.version}{whose}"


def offered_here() -> Offer:
    """What the installed onnxruntime offers."""
    return Offer(ort.__version__, available_providers())


def available_providers() -> tuple[str, ...]:
    """Return the full names of the providers that the installed onnxruntime offers."""
    return tuple(ort.get_available_providers())


def provider_alias(text: str) -> str:
    """Return the short lower-case name of a provider: `cuda` for `CUDAExecutionProvider`."""
    alias = _parted(text)[0].lower().removesuffix(_SUFFIX.lower())
    return _OTHER_NAMES.get(alias, alias)


def distinct_providers(texts: Iterable[str]) -> tuple[str, ...]:
    """Those that are not the same but for how they are written, each as it is written first."""
    found: dict[tuple[str, frozenset[tuple[str, str]]], str] = {}
    for text in texts:
        found.setdefault((provider_alias(text), frozenset(_parted(text)[1].items())), text)
    return tuple(found.values())


def with_options(provider: str, options: Iterable[str]) -> str:
    """The text of a provider with further options, each as ``key=value``.

    Raises:
        InputError: an option has no value, or the CPU provider is given one.
    """
    name, known = _parted(provider)
    for option in options:
        key, separator, value = option.partition("=")
        if not (separator and key.strip()):
            raise InputError(
                f"cannot read the provider option '{option}'; write KEY=VALUE, as device_type=GPU"
            )
        known[key.strip()] = value.strip()
    if not known:
        return name
    if provider_alias(name) == "cpu":
        raise InputError(
            f"the CPU provider takes no options, but is given {', '.join(known)}; name the "
            "provider they are for"
        )
    written = (f"{k}={v if _BARE.fullmatch(v) else repr(v)}" for k, v in known.items())
    return f"{name}{{{', '.join(written)}}}"


def missing_provider(text: str, offer: Offer | None = None) -> str:
    """Say why a provider is not in an onnxruntime, the installed one if None; empty if it is."""
    name = _parted(text)[0]
    alias, offer = provider_alias(text), offer or offered_here()
    available = sorted(map(provider_alias, offer.providers))
    if alias in available:
        return ""
    sentence = f"provider {name!r} is not in {offer}; available: {', '.join(available)}"
    if alias in _PACKAGES:
        sentence += f" (the package {_PACKAGES[alias]} in place of onnxruntime brings it)"
    return sentence


def resolve_provider(text: str, offer: Offer | None = None) -> str:
    """Return the full name of a provider, whose name may be in any case.

    Raises:
        InputError: the onnxruntime, the installed one if None, does not offer that provider.
    """
    offer = offer or offered_here()
    if missing := missing_provider(text, offer):
        raise InputError(missing)
    return {provider_alias(full): full for full in offer.providers}[provider_alias(text)]


def provider_arguments(
    text: str, threads: int, offer: Offer | None = None
) -> tuple[str, dict[str, str]]:
    """A provider's full name and its options, as `onnxruntime.InferenceSession` takes them.

    OpenVINO takes all processors whatever the session says of threads, so it is told of them, too;
    0 leaves it all.

    Raises:
        InputError: the onnxruntime, the installed one if None, does not offer that provider.
    """
    full_name, options = resolve_provider(text, offer), _parted(text)[1]
    if full_name == _OPENVINO and threads:
        options = {"num_of_threads": str(threads), **options}
    return full_name, options


def on_processor(full_name: str, options: Mapping[str, str]) -> bool:
    """Whether a provider computes on the processor and, with one thread, in the calling one.

    OpenVINO does both unless its options name another device (seen in onnxruntime-openvino 1.24).
    """
    is_openvino = full_name == _OPENVINO and options.get("num_of_threads") == "1"
    return full_name == _CPU or (is_openvino and options.get("device_type", "CPU") == "CPU")


def _parted(text: str) -> tuple[str, dict[str, str]]:
    """Name and options of a provider."""
    matched = _FORM.fullmatch(text)
    if matched is None:
        raise InputError(f"cannot read the provider '{text}'; write name or name{{option=value}}")
    options = {}
    for part in split_forms(matched[2] or ""):
        key, separator, value = (s.strip() for s in part.partition("="))
        if not (key and separator):
            raise InputError(f"the provider '{text}' has an option without a value: '{part}'")
        options[key] = _unquoted(text, value)
    return matched[1], options


def _unquoted(text: str, value: str) -> str:
    """An option's value without quotes."""
    if value[:1] not in ("'", '"'):
        return value
    try:
        return str(ast.literal_eval(value))
    except (SyntaxError, ValueError) as error:
        raise InputError(
            f"the provider '{text}' has an option whose quotes do not close"
        ) from error
