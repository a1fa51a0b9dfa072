"""Optimize and quantize ONNX models, and prove the result against the original.

The names below, and modules as ``onnxq.ir``, are imported when they are first asked for: all of
them together take a second, which a program that needs few of them, and the command before it hears
of Ctrl-C, shall not wait.
"""

import importlib
import importlib.util
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from onnxq.benchmark import bench
    from onnxq.comparison import compare
    from onnxq.errors import InputError
    from onnxq.ir import Graph, load, save
    from onnxq.observe import calibrate
    from onnxq.optimization import Optimized, optimize
    from onnxq.options import Options
    from onnxq.plan import Plan
    from onnxq.planning import apply_plan, make_plan
    from onnxq.recipe import Recipe
    from onnxq.rewriting import rewrite
    from onnxq.training import train
    from onnxq.tune.training import TrainOptions
    from onnxq.verify import Gate, Report
    from onnxq.watching import Watch, watch

    __version__: str

__all__ = [
    "Gate",
    "Graph",
    "InputError",
    "Optimized",
    "Options",
    "Plan",
    "Recipe",
    "Report",
    "TrainOptions",
    "Watch",
    "__version__",
    "apply_plan",
    "bench",
    "calibrate",
    "compare",
    "load",
    "make_plan",
    "optimize",
    "rewrite",
    "save",
    "train",
    "watch",
]

_HOMES = {
    "benchmark": ["bench"],
    "comparison": ["compare"],
    "errors": ["InputError"],
    "ir": ["Graph", "load", "save"],
    "observe": ["calibrate"],
    "optimization": ["Optimized", "optimize"],
    "options": ["Options"],
    "plan": ["Plan"],
    "planning": ["apply_plan", "make_plan"],
    "recipe": ["Recipe"],
    "rewriting": ["rewrite"],
    "training": ["train"],
    "tune.training": ["TrainOptions"],
    "verify": ["Gate", "Report"],
    "watching": ["Watch", "watch"],
}
"""The module of every name."""


def __getattr__(name: str) -> Any:
    if name == "__version__":
        found: Any = importlib.import_module("importlib.metadata").version("onnxq")
    else:
        home = next((home for home, names in _HOMES.items() if name in names), None)
        module = f"{__name__}.{home or name}"
        if home is None and (name.startswith("_") or importlib.util.find_spec(module) is None):
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        found = importlib.import_module(module)
        if home is not None:
            found = getattr(found, name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
