"""Functions that the user names as `module:function`."""

from __future__ import annotations

import importlib
import os
import re
import sys
from collections.abc import Callable
from typing import Any

from onnxq.errors import InputError

_NAME = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")


def is_function_name(text: str) -> bool:
    """Tell whether a text has the form `module:function`."""
    return _NAME.fullmatch(text) is not None


def load_function(name: str) -> Callable[..., Any]:
    """Import the function named `module:function`; the current folder can be imported from.

    Raises:
        InputError: the module cannot be imported, or has no such function.
    """
    module_name, _, function_name = name.partition(":")
    folder = os.getcwd()
    if folder not in sys.path and "" not in sys.path:
        sys.path.insert(0, folder)
    try:
        function: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is not None and (module_name + ".").startswith(error.name + "."):
            raise InputError(
                f"'{name}': there is no module {error.name!r} in '{folder}'"
            ) from error
        raise InputError(f"'{name}': its module needs {error.name!r}, not installed") from error
    except Exception as error:
        raise InputError(f"'{name}': {failure(error, 'importing its module')}") from error
    for part in function_name.split("."):
        function = getattr(function, part, None)
    if not callable(function):
        raise InputError(f"'{name}': module {module_name!r} has no function {function_name!r}")
    checked: Callable[..., Any] = function
    return checked


def failure(error: Exception, doing: str) -> str:
    """Return an exception of the user's code as the end of a sentence."""
    text = " ".join(str(error).split())
    return f"{doing} failed with {type(error).__name__}" + (f": {text}" if text else "")
