"""Plans: which precision every node gets, why, and at what cost."""

from onnxq.plan.assignment import Assignment, Problem, assign, pareto_front
from onnxq.plan.cache import Measurements, machine
from onnxq.plan.candidates import build_problem
from onnxq.plan.cost import Costs
from onnxq.plan.make import plan_nodes
from onnxq.plan.measure import flops_costs, measure_costs, size_costs
from onnxq.plan.plan import Difference, Pin, Plan, PlanNode, difference

__all__ = [
    "Assignment",
    "Costs",
    "Difference",
    "Measurements",
    "Pin",
    "Plan",
    "PlanNode",
    "Problem",
    "assign",
    "build_problem",
    "difference",
    "flops_costs",
    "machine",
    "measure_costs",
    "pareto_front",
    "plan_nodes",
    "size_costs",
]
