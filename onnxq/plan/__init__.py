"""Plans: which precision every node gets, why, and at what cost."""

from onnxq.plan.assignment import Assignment, Problem, assign, pareto_front
from onnxq.plan.candidates import build_problem
from onnxq.plan.make import plan_nodes
from onnxq.plan.plan import Difference, Pin, Plan, PlanNode, PlanTransformation, difference

__all__ = [
    "Assignment",
    "Difference",
    "Pin",
    "Plan",
    "PlanNode",
    "PlanTransformation",
    "Problem",
    "assign",
    "build_problem",
    "difference",
    "pareto_front",
    "plan_nodes",
]
