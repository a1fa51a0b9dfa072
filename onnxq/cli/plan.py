"""``onnxq plan``."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, replace

from rich.text import Text

from onnxq.cli.options import STUDY
from onnxq.cli.parsed import given
from onnxq.cli.terminal import EXIT_GATE, Outcome, table
from onnxq.cost import Costs
from onnxq.errors import InputError
from onnxq.plan import Plan, difference
from onnxq.planning import Limit, find_front, make_plan
from onnxq.progress import Progress
from onnxq.report import words

HELP = "choose a precision for every node from predictions, and write the plan; or compare plans"

EXAMPLES = """examples:
  onnxq plan model.onnx --data samples.npz -o plan.toml --min-sqnr 30
  onnxq plan model.onnx --data samples.npz -o plan.toml --pin "head*=float32" --cost size
  onnxq plan model.onnx --data samples.npz --pareto
  onnxq plan --diff one.toml other.toml

Predictions are not verified: `onnxq apply` makes the model, `onnxq compare` measures it. Of two
plans, exit code 0 says that they are equal, 1 that they differ.
"""

NEEDS = ""
TAKES = (
    "model --data --output --diff --pareto --pin --cost --cost-table --budget --min-sqnr "
    f"--max-latency --max-bytes --time-budget {STUDY}"
)
CHANGES = {
    "--output": {"help": "file to write the plan to"},
    "--cost": {
        "help": "what to make small; latency is measured here (default latency, or the table's)"
    },
    "--min-sqnr": {"help": "smallest predicted SQNR of the outputs in dB", "group": "limit"},
}


def run(parsed: argparse.Namespace, progress: Progress) -> Outcome:
    """Run the command."""
    if parsed.diff:
        return _compare(parsed)
    if parsed.model is None or parsed.data is None:
        raise InputError("name a MODEL and its --data, or two plans with --diff")
    if (parsed.output is None) is not parsed.pareto:
        raise InputError("name the file of the plan with -o, or print the front with --pareto")
    costs = None if parsed.costs is None else Costs.load(parsed.costs)
    if costs is not None and parsed.cost not in (None, costs.kind):
        raise InputError(
            f"'{parsed.costs}' holds costs of kind '{costs.kind}'; leave --cost out, or take "
            f"a table from `onnxq cost --cost {parsed.cost}`"
        )
    limit = Limit(parsed.budget, parsed.min_sqnr, parsed.max_latency, parsed.max_bytes)
    if parsed.pareto:
        return _front(parsed, costs, limit, progress)
    options = given(parsed, cost_table=costs)
    made = make_plan(parsed.model, parsed.data, options, limit=limit, progress=progress)
    made.save(parsed.output)
    body = asdict(replace(made, tuned={}))
    body = {"schema": "onnxq/plan/1", "output": parsed.output, **body}
    return Outcome(body, table(_summary(made)), f"Wrote '{parsed.output}'.")


def _front(
    parsed: argparse.Namespace, costs: Costs | None, limit: Limit, progress: Progress
) -> Outcome:
    if limit != Limit():
        raise InputError("--pareto shows plans for every limit; leave the limit out")
    options = given(parsed, cost_table=costs)
    points = find_front(parsed.model, parsed.data, options, progress=progress)
    kind = options.cost if costs is None else costs.kind
    rows = [
        (
            words.cost(kind, point.cost),
            words.loss("noise", point.loss),
            words.number(point.loss),
            words.listed(point.nodes) + " (heuristic)" * (not point.exact),
        )
        for point in points
    ]
    body = {"schema": "onnxq/front/1", "cost": kind, "points": [asdict(p) for p in points]}
    return Outcome(body, table(rows, (kind, "predicted SQNR", "loss", "nodes"), align=">>"))


def _summary(plan: Plan) -> Iterator[tuple[str, str, str]]:
    costs, gain = words.cost(plan.cost_kind, plan.cost), ""
    if plan.float_cost > 0 and plan.cost > 0:
        costs = f"{words.cost(plan.cost_kind, plan.float_cost)} -> {costs}"
        gain = f"{words.ratio(plan.float_cost / plan.cost)}x less"
    if plan.cost_kind:
        yield f"predicted {plan.cost_kind}", costs, gain
        yield "predicted SQNR", words.loss(plan.proxy, plan.loss), ", ".join(plan.promise)
    if plan.cost_kind and not plan.exact:
        yield "solved by", "a heuristic", "the exact search ran out of time"
    found = Counter(node.precision for node in plan.nodes)
    yield "precision", words.count(len(plan.nodes), "node"), words.listed(found)
    if by_hand := plan.by_hand():
        yield "pinned by hand", words.count(len(by_hand), "node"), ""
    for place, entry in enumerate(plan.untried):
        nodes = words.count(len(entry.nodes), "node") if entry.nodes else ""
        yield "" if place else "not tried", nodes, f"{entry.what} ({entry.reason})"


def _compare(parsed: argparse.Namespace) -> Outcome:
    if parsed.model or parsed.data or parsed.output or parsed.pareto:
        raise InputError("--diff compares two plans and takes nothing else; leave the rest out")
    first, second = (Plan.load(name) for name in parsed.diff)
    found = difference(first, second)
    body = {"schema": "onnxq/plan-diff/1", "differences": [asdict(entry) for entry in found]}
    if not found:
        return Outcome(body, Text("The plans are equal."))
    rows = [(entry.what, entry.first, entry.second) for entry in found]
    return Outcome(body, table(rows, ("", *parsed.diff), fold=True), code=EXIT_GATE)
