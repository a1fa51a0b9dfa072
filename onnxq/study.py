"""All that a plan rests on: what nodes lose and cost in every precision, and the plans of that."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from onnxq.cost import Costs, Measurements, flops_costs, measure_costs, size_costs
from onnxq.errors import InputError
from onnxq.ir import Context, Graph, Node, PassRecord
from onnxq.ir.saving import saved_bytes
from onnxq.job import Job
from onnxq.passes.notes import BY_REQUEST, node_name
from onnxq.passes.static.outermost import outermost
from onnxq.plan import Assignment, Plan, PlanNode, Problem, build_problem, plan_nodes
from onnxq.plan.apply import apply, apply_precisions
from onnxq.precision import FLOAT, Given, Precision, parse_precision
from onnxq.precision.static import stores_rows
from onnxq.precision.static_bits import StaticBits
from onnxq.prepare import Prepared
from onnxq.sensitivity import Sensitivity, analyse
from onnxq.time_budget import Untried
from onnxq.tune import AUTOMATIC, NO_METHODS
from onnxq.tuning import Tuning, gains, tune

_SHARE = 0.5
"""Of the time that is left, what sensitivity analysis may take."""


@dataclass(frozen=True)
class Study:
    """What was found out about a model; `problem` and `plan` follow from it.

    Attributes:
        prepared: The model, with ranges.
        sensitivity: Predicted losses.
        costs: What nodes and borders cost.
        sizes: Bytes of nodes in a file, where a small one is promised.
    """

    prepared: Prepared
    sensitivity: Sensitivity
    costs: Costs
    sizes: Costs | None = None

    @cached_property
    def dominated(self) -> dict[str, str]:
        """Where bytes count, precisions for which there is a better one, by name: this one.

        It is for the same nodes, at least, stores them in no more bytes and loses less of them, and
        has activations of the same kind: with both in as many bits the same kernels compute.
        """
        prepared, losses, sizes = self.prepared, self.sensitivity.losses(), self.sizes
        if sizes is None:
            return {}
        nodes = {
            p: [n for n, own in prepared.choices.items() if p in own] for p in prepared.precisions()
        }
        kinds = {p: (q.is_static, q.activation_bits) for p in nodes for q in [parse_precision(p)]}

        def of(names: Sequence[str], p: str) -> tuple[float, float]:
            lost = sum(losses.get(name, {}).get(p, 0.0) for name in names)
            return sum(sizes.of(name, p) for name in names), lost

        found: dict[str, str] = {}
        for p, own in nodes.items():
            taken, lost = of(own, p)
            for q in nodes:
                if q == p or kinds[q] != kinds[p] or not {*own} <= {*nodes[q]}:
                    continue
                size, loss = of(own, q)
                if size <= taken and loss < lost:
                    found.setdefault(p, q)
        return found

    @property
    def notes(self) -> tuple[str, ...]:
        """Sentences on precisions that are left out."""
        return tuple(
            f"{precision} was left out: {better} takes no more bytes and loses less."
            for precision, better in self.dominated.items()
        )

    def problem(self, border_factor: float = 1.0) -> Problem:
        """The integer program, with borders that cost a multiple of what was measured."""
        prepared = self.prepared
        borders = {
            name: (q * border_factor, d * border_factor)
            for name, (q, d) in self.costs.borders.items()
        }
        costs = replace(self.costs, borders=borders)
        choices = {
            name: tuple(p for p in own if p not in self.dominated or p == prepared.pinned.get(name))
            for name, own in prepared.choices.items()
        }
        return build_problem(
            *(prepared.graph, prepared.placed, choices),
            *(self.sensitivity.losses(), costs, prepared.pinned),
            sizes=self.sizes,
        )

    def plan(
        self, problem: Problem, chosen: Assignment, free: Assignment, promise: Sequence[str] = ()
    ) -> Plan:
        """The plan of an assignment, with reasons."""
        prepared = self.prepared
        floats = {item.name: FLOAT for item in problem.items}
        can_float = all(FLOAT in {c.precision for c in item.choices} for item in problem.items)
        op_types = {name: node.op_type for name, node in prepared.nodes().items()}
        nodes = plan_nodes(problem, op_types, chosen, free, prepared.pinned, self.costs.kind)
        plan = plan_of(prepared, nodes)
        return replace(
            plan,
            promise=tuple(promise),
            proxy=self.sensitivity.proxy,
            cost_kind=self.costs.kind,
            cost=problem.cost(chosen.precisions),
            float_cost=problem.cost(floats) if can_float else 0.0,
            loss=chosen.loss,
            exact=chosen.exact,
            measured_on=self.costs.measured_on,
            untried=(*self.sensitivity.untried, *plan.untried),
        )


def plan_of(prepared: Prepared, nodes: Sequence[PlanNode]) -> Plan:
    """The plan that gives nodes their precisions, with what tuners compute for them."""
    job = prepared.job
    tuned = tune(prepared, {node.name: node.precision for node in nodes})
    done = prepared.transformed
    assert done is not None
    tensors = {name: dict(own) for name, own in done.numbers.items()}
    for name, own in tuned.items():
        if own.tensors:
            tensors.setdefault(name, {}).update(own.tensors)
    assert prepared.ranges is not None
    return Plan(
        model_sha256=job.sha256,
        target=job.target.name,
        target_sha256=job.target.digest,
        passes=prepared.form.passes,
        opset=prepared.graph.opset,
        keep_overridable=job.options.keep_overridable,
        calibrator=prepared.ranges.calibrator,
        seed=job.options.seed,
        nodes=tuple(
            replace(node, method=tuned[node.name].method, gain_db=tuned[node.name].gain_db)
            if node.name in tuned
            else node
            for node in nodes
        ),
        ranges=prepared.finite_bounds(),
        transformations=done.transformations,
        tuned=tensors,
        time_budget=job.options.time_budget or 0.0,
        untried=(*done.untried, *_untried(tuned)),
    )


def _untried(tuned: Mapping[str, Tuning]) -> Iterator[Untried]:
    """The methods for which no time was left, each with its nodes."""
    nodes: dict[str, list[str]] = {}
    for name, own in tuned.items():
        for method in own.untried:
            nodes.setdefault(method, []).append(name)
    for method, names in nodes.items():
        yield Untried(method, tuple(names))


def uniform_plan(prepared: Prepared, precision: str) -> Plan:
    """The plan of a recipe: every node that can have a precision has it, pins respected.

    Raises:
        InputError: a method that was asked for is for none of the nodes.
    """
    nodes, wanted = [], parse_precision(precision)
    is_static, outer = wanted.is_static, _outer(prepared, wanted)
    named = {node_name(node): node for node in prepared.graph.all_nodes()}
    for name, node in named.items():
        own = prepared.choices.get(name, ())
        if name in prepared.pinned:
            nodes.append(PlanNode(name, node.op_type, prepared.pinned[name], pinned=True))
        elif precision in own and node in outer:
            nodes.append(PlanNode(name, node.op_type, *outer[node]))
        elif precision in own:
            nodes.append(PlanNode(name, node.op_type, precision))
        elif (reason := prepared.refusals.get(name)) and (
            not is_static or reason.kind in (BY_REQUEST.kind, "range") or stores_rows(node)
        ):
            # What else static integers leave out, their pass notes itself.
            nodes.append(PlanNode(name, node.op_type, FLOAT, reason.text))
    plan, methods = plan_of(prepared, nodes), prepared.job.methods
    is_used = plan.tuned or plan.untried or (prepared.transformed and prepared.transformed.tried)
    if methods not in (AUTOMATIC, NO_METHODS) and not is_used:
        raise InputError(
            f"none of the methods {', '.join(methods)} is for a node in the precision it has; "
            "leave --methods out"
        )
    return plan


def _outer(prepared: Prepared, wanted: Precision) -> dict[Node, tuple[str, str]]:
    """The precision of nodes that few bits harm most, and why they have it.

    Sums and pools gain nothing from few bits: it is products whose numbers need not be exact.
    """
    if not isinstance(wanted, StaticBits) or not wanted.outer:
        return {}
    rules = prepared.placed.nodes.items()
    found = {node: (wanted.outer, "no product") for node, r in rules if r.role != "compute"}
    ends = outermost(prepared.graph, prepared.placed)
    return found | {node: (wanted.outer, "first or last layer") for node in ends}


def apply_to(prepared: Prepared, plan: Plan, ctx: Context) -> tuple[Graph, list[PassRecord]]:
    """A copy of the prepared graph with the plan's precisions, and what the passes did."""
    graph = prepared.graph.copy()
    return graph, apply(graph, plan, prepared.target, ctx)


def uniform(problem: Problem, precision: str) -> Assignment:
    """Every node in one precision where it can have it, in the first one it can have elsewhere.

    Nodes that only follow are left to what the placement makes of them.
    """
    precisions = {}
    for item in problem.items:
        choices = [c.precision for c in item.choices]
        precisions[item.name] = precision if precision in choices else choices[0]
    return Assignment(precisions, problem.cost(precisions), problem.loss(precisions))


def study(prepared: Prepared) -> Study:
    """Analyse and measure a model that was observed.

    Raises:
        InputError: the data or an option cannot be used.
    """
    table = prepared.job.options.cost_table
    if table is None:
        _check_measurable(prepared)
    else:
        _check_table(table, prepared)
    losses = find_losses(prepared)
    if weighs_size(prepared.job):
        gained, untried = gains(prepared)
        losses = losses.with_gains(gained)
        losses = replace(losses, untried=(*losses.untried, *untried))
    sizes = None if prepared.job.options.max_size_ratio is None else find_sizes(prepared)
    return Study(prepared, losses, find_costs(prepared) if table is None else table, sizes)


def weighs_size(job: Job) -> bool:
    """Whether bytes count, and so precisions of few bits, of which methods make something."""
    return job.options.max_size_ratio is not None or job.options.cost == "size"


def find_sizes(prepared: Prepared) -> Costs:
    """Bytes that nodes take in a file, by precision.

    Those of their weights, and an equal share for each node of what else a precision adds to the
    file: operators that quantize, their scales, names.
    """
    nodes, precisions = list(prepared.nodes().values()), prepared.precisions()
    costs = size_costs(nodes, precisions, prepared.target)
    sizes = {name: dict(own) for name, own in costs.nodes.items()}
    before = saved_bytes(prepared.graph)
    for precision, whole in whole_models(prepared).items():
        having = [own for name, own in sizes.items() if precision in prepared.choices[name]]
        weights = sum(own[precision] - own[FLOAT] for own in having)
        share = (saved_bytes(whole) - before - weights) / len(having)
        for own in having:
            own[precision] += share
    return replace(costs, nodes=sizes)


def find_losses(prepared: Prepared) -> Sensitivity:
    """Predicted loss of every node in every precision, from the work folder if it is there.

    Raises:
        InputError: the data cannot be used.
    """
    job, options = prepared.job, prepared.job.options
    assert prepared.ranges is not None
    return prepared.work_folder().get(
        "sensitivity",
        Sensitivity,
        lambda: analyse(
            prepared.graph,
            job.samples,
            prepared.scene(),
            prepared.choices,
            _Uniform.of(prepared),
            method=options.sensitivity,
            proxy=options.proxy,
            model_sha256=job.sha256,
            progress=job.progress,
            time=job.time.share(_SHARE),
            executor=job.executor,
        ),
        lambda found: not found.untried,
        calibrator=prepared.ranges.calibrator,
        choices=prepared.choices,
        method=options.sensitivity,
        proxy=options.proxy,
    )


@dataclass(frozen=True)
class _Uniform:
    """Makes the model in which all nodes that can have a precision do, where it is called.

    Attributes:
        graph: The float model.
        given: What precisions are applied with.
        choices: Those that nodes can have.
    """

    graph: Graph
    given: Given
    choices: Mapping[str, Sequence[str]]

    @classmethod
    def of(cls, prepared: Prepared) -> _Uniform:
        """Those of a model that was observed."""
        return cls(prepared.graph, Given(prepared.target, prepared.bounds()), prepared.choices)

    def __call__(self, precision: str) -> Graph:
        made = self.graph.copy()
        wanted = {n: precision for n, own in self.choices.items() if precision in own}
        apply_precisions(made, wanted, self.given)
        return made


def whole_models(prepared: Prepared) -> dict[str, Graph]:
    """By precision, the model in which all nodes that can have it do."""
    uniform_in = _Uniform.of(prepared)
    return {precision: uniform_in(precision) for precision in prepared.precisions()}


def find_costs(prepared: Prepared) -> Costs:
    """What nodes and borders cost, measured or computed as the options say.

    Raises:
        InputError: onnxruntime cannot run the model in one of the precisions.
    """
    job, options, placed = prepared.job, prepared.job.options, prepared.placed
    nodes = list(prepared.nodes().values())
    precisions = prepared.precisions()
    _check_measurable(prepared)
    if options.cost == "size":
        return size_costs(nodes, precisions, job.target, job.sha256)
    if options.cost == "flops":
        return flops_costs(nodes, placed, precisions, job.sha256)
    job.progress.stage("measuring costs")
    folder = options.work_folder
    found = measure_costs(
        prepared.graph,
        nodes,
        placed,
        whole_models(prepared),
        job.one.feeds,
        backend=job.target.backend,
        provider=job.provider,
        threads=options.threads,
        model_sha256=job.sha256,
        measurements=Measurements(None if folder is None else Path(folder)),
    )
    return replace(found, passes=prepared.form.passes, opset=prepared.graph.opset)


def _check_table(costs: Costs, prepared: Prepared) -> None:
    """Refuse a table of another model, or without what is asked for: missing costs count as 0."""
    if costs.model_sha256 not in ("", prepared.job.sha256):
        raise InputError("the cost table is for another model; measure this one with `onnxq cost`")
    for name, choices in prepared.choices.items():
        for precision in (FLOAT, *(c for c in choices if c in prepared.job.precisions)):
            if precision not in costs.nodes.get(name, {}):
                raise InputError(
                    f"the cost table does not say what the node '{name}' costs in '{precision}'; "
                    "measure again with `onnxq cost` and the same --recipe, --target and "
                    "--precision"
                )


def _check_measurable(prepared: Prepared) -> None:
    job = prepared.job
    missing = job.missing_provider() if job.options.cost == "latency" else ""
    if missing:
        raise InputError(
            f"the latency of target {job.target.name} cannot be measured here, because {missing}; "
            "take `--cost flops` or `--cost size`, or a table that `onnxq cost` measured there"
        )
