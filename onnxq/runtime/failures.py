"""onnxruntime's exceptions as one sentence for the user."""

from __future__ import annotations

import re

from onnxruntime.capi import onnxruntime_pybind11_state as _state

RUNTIME_FAILURES: tuple[type[Exception], ...] = (
    *(
        kind
        for kind in vars(_state).values()
        if isinstance(kind, type) and issubclass(kind, Exception)
    ),
    RuntimeError,
    ValueError,
    TypeError,
    MemoryError,
)
"""What onnxruntime raises at load and at run: its own types and pybind11's translations."""

_CODE = re.compile(r"\[ONNXRuntimeError\]\s*:\s*\d+\s*:\s*\w+\s*:\s*")
_LOADING = re.compile(r"Load model from .*? failed:\s*")
_PLACE = re.compile(r"\S+\.(?:h|hpp|cc|cpp|cu|cuh):\d+\s+")
_SIGNATURE = re.compile(
    r"^(?:[^()]*\s)?[\w~<>:]*::[\w~<>=]+\((?:[^()]|\([^()]*\))*\)(?:\s*const)?"
    r"(?:\s*\[with [^\]]*\])?\s+"
)
_LONGEST = 400


def one_sentence(error: BaseException) -> str:
    """Return an onnxruntime exception's text without codes, C++ places and line breaks."""
    text = _LOADING.sub("", _CODE.sub("", str(error))).split("Stacktrace:")[0]
    parts = _PLACE.split(text)
    text = parts[0] + " ".join(_SIGNATURE.sub("", part) for part in parts[1:])
    text = " ".join(text.split()).rstrip(".; ")
    if len(text) > _LONGEST:
        text = text[:_LONGEST].rsplit(" ", 1)[0] + " ..."
    return text or type(error).__name__
