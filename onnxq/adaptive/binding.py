"""Bound inputs and outputs that move along when another session takes over."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime as ort

from onnxq.adaptive.serving import Serving
from onnxq.runtime.specs import Array


class Binding:
    """Takes the place of `onnxruntime.IOBinding`: the same methods, whatever session answers.

    onnxruntime's belong to one session. This one notes what was bound, and binds it again to the
    session that answers when it is run.

    Args:
        serving: What answers now.
    """

    def __init__(self, serving: Serving) -> None:
        self._calls: dict[tuple[str, str], tuple[str, tuple[Any, ...], dict[str, Any]]] = {}
        self._bind_to(serving)

    def to(self, serving: Serving) -> ort.IOBinding:
        """A binding of onnxruntime's for the session that answers now."""
        if serving is not self._serving:
            self._bind_to(serving)
        return self._binding

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the outputs that are bound, in the order in which their values come."""
        return tuple(name for kind, name in self._calls if kind == "output")

    def feeds(self) -> dict[str, Array] | None:
        """What is bound as inputs; None where some of it cannot be read from here."""
        found = {}
        for (kind, name), (_, args, _) in self._calls.items():
            if kind == "input":
                value = args[0] if len(args) == 1 else None
                if isinstance(value, ort.OrtValue):
                    value = value.numpy()
                if not isinstance(value, np.ndarray):
                    return None
                found[name] = value
        return found

    def bind_cpu_input(self, name: str, arr_on_cpu: Array) -> None:
        """Bind an input to an array."""
        self._call("input", name, "bind_cpu_input", arr_on_cpu)

    def bind_input(self, name: str, *args: Any, **kwargs: Any) -> None:
        """Bind an input to memory."""
        self._call("input", name, "bind_input", *args, **kwargs)

    def bind_ortvalue_input(self, name: str, ortvalue: ort.OrtValue) -> None:
        """Bind an input to a value of onnxruntime's."""
        self._call("input", name, "bind_ortvalue_input", ortvalue)

    def bind_output(self, name: str, *args: Any, **kwargs: Any) -> None:
        """Bind an output to memory, or let it be allocated on a device."""
        self._call("output", name, "bind_output", *args, **kwargs)

    def bind_ortvalue_output(self, name: str, ortvalue: ort.OrtValue) -> None:
        """Bind an output to a value of onnxruntime's."""
        self._call("output", name, "bind_ortvalue_output", ortvalue)

    def clear_binding_inputs(self) -> None:
        """Bind no input."""
        self._clear("input")
        self._binding.clear_binding_inputs()

    def clear_binding_outputs(self) -> None:
        """Bind no output."""
        self._clear("output")
        self._binding.clear_binding_outputs()

    def __getattr__(self, name: str) -> Any:
        """What only reads: outputs, and waiting for devices."""
        return getattr(self._binding, name)

    def _call(self, kind: str, name: str, method: str, *args: Any, **kwargs: Any) -> None:
        getattr(self._binding, method)(name, *args, **kwargs)
        self._calls[kind, name] = method, args, kwargs

    def _clear(self, kind: str) -> None:
        self._calls = {key: call for key, call in self._calls.items() if key[0] != kind}

    def _bind_to(self, serving: Serving) -> None:
        binding = ort.IOBinding(serving.session)
        for (_, name), (method, args, kwargs) in self._calls.items():
            getattr(binding, method)(name, *args, **kwargs)
        self._serving, self._binding = serving, binding
