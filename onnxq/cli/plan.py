"""``onnxq plan``."""

from __future__ import annotations

import argparse
from dataclasses import asdict, replace
from pathlib import Path

from rich.table import Table
from rich.text import Text

from onnxq.cli import options, settings
from onnxq.cli.terminal import progress, show, write_json
from onnxq.cost import Costs
from onnxq.errors import InputError
from onnxq.ir.save import check_writable
from onnxq.plan import Difference, Plan, difference
from onnxq.planning import FrontPoint, Limit, find_front, make_plan
from onnxq.report import words
from onnxq.report.text import grid

HELP = "choose a precision for every node from predictions, and write the plan; or compare plans"

EXAMPLES = """examples:
  onnxq plan model.onnx --data samples.npz -o plan.toml --min-sqnr 30
  onnxq plan model.onnx --data samples.npz -o plan.toml --pin "head*=float32" --cost size
  onnxq plan model.onnx --data samples.npz --pareto
  onnxq plan --diff one.toml other.toml

Predictions are not verified: `onnxq apply` makes the model, `onnxq compare` measures it. Of two
plans, exit code 0 says that they are equal, 1 that they differ.
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    settings.add_model(parser, nargs="?")
    settings.add_data(parser, required=False)
    parser.add_argument(
        "-o", "--output", type=options.named, metavar="OUT", help="file to write the plan to"
    )
    parser.add_argument(
        "--diff",
        nargs=2,
        type=options.named,
        metavar=("A", "B"),
        help="print in what two plans differ, instead of making one",
    )
    parser.add_argument(
        "--pareto",
        action="store_true",
        help="print plans of which none is better than another in both cost and loss",
    )
    settings.add_pins(parser)
    parser.add_argument(
        "--cost",
        choices=("latency", "size", "flops"),
        help="what to make small; latency is measured here (default latency, or the table's)",
    )
    parser.add_argument(
        "--cost-table",
        dest="costs",
        type=options.named,
        metavar="FILE",
        help="costs that `onnxq cost` found elsewhere",
    )
    limit = parser.add_argument_group("limit", "one of these (default: --min-sqnr 15)")
    limit = limit.add_mutually_exclusive_group()
    limit.add_argument(
        "--budget", type=options.number, metavar="LOSS", help="largest predicted loss"
    )
    limit.add_argument(
        "--min-sqnr",
        type=options.number,
        metavar="DB",
        help="smallest predicted SQNR of the outputs in dB",
    )
    limit.add_argument(
        "--max-latency",
        type=options.seconds,
        metavar="MS",
        help="largest predicted latency in ms; the plan loses as little as it can",
    )
    limit.add_argument(
        "--max-bytes",
        type=options.positive,
        metavar="N",
        help="largest size of the weights, with --cost size; likewise",
    )
    settings.add_settings(parser)


def run(parsed: argparse.Namespace) -> int:
    """Run the command; gives the exit code."""
    if parsed.diff:
        return _compare(parsed)
    if parsed.model is None or parsed.data is None:
        raise InputError("name a MODEL and its --data, or two plans with --diff")
    if (parsed.output is None) is not parsed.pareto:
        raise InputError("name the file of the plan with -o, or print the front with --pareto")
    options.check_files(parsed)
    costs = None if parsed.costs is None else Costs.load(parsed.costs)
    if costs is not None and parsed.cost not in (None, costs.kind):
        raise InputError(
            f"'{parsed.costs}' holds costs of kind '{costs.kind}'; leave --cost out, or take "
            f"a table from `onnxq cost --cost {parsed.cost}`"
        )
    limit = Limit(parsed.budget, parsed.min_sqnr, parsed.max_latency, parsed.max_bytes)
    if parsed.pareto:
        return _front(parsed, costs, limit)
    check_writable(Path(parsed.output))
    with progress(parsed) as stages:
        made = make_plan(
            parsed.model,
            parsed.data,
            replace(settings.given(parsed), cost=parsed.cost or "latency", cost_table=costs),
            limit=limit,
            progress=stages,
        )
    made.save(parsed.output)
    body = asdict(replace(made, tuned={}))
    write_json(parsed, {"schema": "onnxq/plan/1", "output": parsed.output, **body})
    show(parsed, _summary(made), f"Wrote {parsed.output}.")
    return options.EXIT_OK


def _front(parsed: argparse.Namespace, costs: Costs | None, limit: Limit) -> int:
    if limit != Limit():
        raise InputError("--pareto shows plans for every limit; leave the limit out")
    with progress(parsed) as stages:
        points = find_front(
            parsed.model,
            parsed.data,
            replace(settings.given(parsed), cost=parsed.cost or "latency", cost_table=costs),
            progress=stages,
        )
    kind = costs.kind if costs is not None else parsed.cost or "latency"
    write_json(
        parsed,
        {"schema": "onnxq/front/1", "cost": kind, "points": [asdict(point) for point in points]},
    )
    show(parsed, _points(points, kind))
    return options.EXIT_OK


def _points(points: list[FrontPoint], kind: str) -> Table:
    table = grid()
    table.add_column(justify="right")
    table.add_column(justify="right")
    table.add_column(overflow="fold")
    headings = ("predicted SQNR", "loss", "nodes")
    table.add_row(Text(kind), *(Text(heading, "bold") for heading in headings))
    for point in points:
        nodes = words.listed(point.nodes)
        table.add_row(
            Text(words.cost(kind, point.cost)),
            Text(words.loss("noise", point.loss)),
            Text(words.number(point.loss)),
            Text(nodes if point.exact else f"{nodes} (heuristic)"),
        )
    return table


def _summary(plan: Plan) -> Table:
    table = grid()
    table.add_column(overflow="fold")
    table.add_column(overflow="fold")
    costs, gain = words.cost(plan.cost_kind, plan.cost), ""
    if plan.float_cost > 0 and plan.cost > 0:
        costs = f"{words.cost(plan.cost_kind, plan.float_cost)} -> {costs}"
        gain = f"{words.ratio(plan.float_cost / plan.cost)}x less"
    rows = [
        (f"predicted {plan.cost_kind}", costs, gain),
        ("predicted SQNR", words.loss(plan.proxy, plan.loss), ", ".join(plan.promise)),
    ]
    if not plan.exact:
        rows.append(("solved by", "a heuristic", "the exact search ran out of time"))
    found: dict[str, int] = {}
    for node in plan.nodes:
        found[node.precision] = found.get(node.precision, 0) + 1
    rows.append(("precision", words.count(len(plan.nodes), "node"), words.listed(found)))
    by_hand = sum(node.is_by_hand for node in plan.nodes)
    if by_hand:
        rows.append(("pinned by hand", words.count(by_hand, "node"), ""))
    for row in rows:
        table.add_row(*(Text(words.printable(cell)) for cell in row))
    return table


def _compare(parsed: argparse.Namespace) -> int:
    if parsed.model or parsed.data or parsed.output or parsed.pareto:
        raise InputError("--diff compares two plans and takes nothing else; leave the rest out")
    options.check_files(parsed)
    first, second = (Plan.load(name) for name in parsed.diff)
    found = difference(first, second)
    write_json(
        parsed,
        {"schema": "onnxq/plan-diff/1", "differences": [asdict(entry) for entry in found]},
    )
    show(parsed, _differences(found, parsed.diff))
    return options.EXIT_GATE if found else options.EXIT_OK


def _differences(found: list[Difference], names: list[str]) -> Table | Text:
    if not found:
        return Text("The plans are equal.")
    table = grid(fold=True)
    for _ in names:
        table.add_column(overflow="fold")
    table.add_row(Text(""), *(Text(words.printable(name), "bold") for name in names))
    for entry in found:
        cells = (entry.what, entry.first, entry.second)
        table.add_row(*(Text(words.printable(cell)) for cell in cells))
    return table
