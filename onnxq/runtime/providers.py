"""Names of onnxruntime's execution providers."""

from __future__ import annotations

import onnxruntime as ort

from onnxq.errors import InputError

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


def available_providers() -> tuple[str, ...]:
    """Return the full names of the providers that the installed onnxruntime offers."""
    return tuple(ort.get_available_providers())


def provider_alias(name: str) -> str:
    """Return the short lower-case name of a provider: `cuda` for `CUDAExecutionProvider`."""
    return name.removesuffix(_SUFFIX).lower()


def missing_provider(name: str) -> str:
    """Say why a provider, given by its short or full name, is not there; empty if it is."""
    alias = _alias(name)
    available = sorted(provider_alias(full) for full in available_providers())
    if alias in available:
        return ""
    sentence = (
        f"provider {name!r} is not in the installed onnxruntime {ort.__version__}; "
        f"available: {', '.join(available)}"
    )
    if alias in _PACKAGES:
        sentence += f" (the package {_PACKAGES[alias]} in place of onnxruntime brings it)"
    return sentence


def resolve_provider(name: str) -> str:
    """Return the full name of a provider given by its short or full name, in any case.

    Raises:
        InputError: the installed onnxruntime does not offer that provider.
    """
    if missing := missing_provider(name):
        raise InputError(missing)
    return {provider_alias(full): full for full in available_providers()}[_alias(name)]


def provider_options(full_name: str, threads: int) -> dict[str, str]:
    """Options that make a provider keep to a session's settings.

    OpenVINO takes all processors whatever the session says of threads; 0 leaves it that.
    """
    own = full_name == "OpenVINOExecutionProvider" and threads
    return {"num_of_threads": str(threads)} if own else {}


def _alias(name: str) -> str:
    alias = name.lower().removesuffix(_SUFFIX.lower())
    return _OTHER_NAMES.get(alias, alias)
