"""What nodes and borders cost, measured on this machine or computed."""

from onnxq.cost.bench import Bench
from onnxq.cost.cache import Measurements, machine
from onnxq.cost.computed import flops_costs, size_costs
from onnxq.cost.costs import Costs
from onnxq.cost.measure import measure_costs

__all__ = [
    "Bench",
    "Costs",
    "Measurements",
    "flops_costs",
    "machine",
    "measure_costs",
    "size_costs",
]
