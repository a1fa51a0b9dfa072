"""Names of onnxruntime's execution providers."""

from __future__ import annotations

import onnxruntime as ort

from onnxq.errors import InputError

_SUFFIX = "ExecutionProvider"
_OTHER_NAMES = {"directml": "dml", "onednn": "dnnl"}


def available_providers() -> tuple[str, ...]:
    """Return the full names of the providers that the installed onnxruntime offers."""
    return tuple(ort.get_available_providers())


def provider_alias(name: str) -> str:
    """Return the short lower-case name of a provider: `cuda` for `CUDAExecutionProvider`."""
    return name.removesuffix(_SUFFIX).lower()


def resolve_provider(name: str) -> str:
    """Return the full name of a provider given by its short or full name, in any case.

    Raises:
        InputError: the installed onnxruntime does not offer that provider.
    """
    alias = name.lower().removesuffix(_SUFFIX.lower())
    alias = _OTHER_NAMES.get(alias, alias)
    available = {provider_alias(full): full for full in available_providers()}
    if alias not in available:
        raise InputError(
            f"provider {name!r} is not in the installed onnxruntime {ort.__version__}; "
            f"available: {', '.join(sorted(available))}"
        )
    return available[alias]
