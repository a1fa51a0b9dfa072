"""Optimize and quantize ONNX models, and prove the result against the original."""

from importlib.metadata import version

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

__version__ = version("onnxq")

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
