"""How each operator of ONNX is computed in torch, in modules by subject.

A module that is added here is found; see `registry`.
"""

import importlib
import pkgutil

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")
