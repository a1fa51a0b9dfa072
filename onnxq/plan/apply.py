"""Applying a plan: the one way in which a model comes about."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import groupby

from onnxq.errors import InputError
from onnxq.ir import (
    Context,
    Graph,
    Pass,
    PassRecord,
    Pipeline,
    available_passes,
    default_passes,
    infer_types,
    parse_passes,
    raise_opset,
)
from onnxq.passes.channels.equivalent import Equivalent
from onnxq.passes.cleanup.inline_functions import InlineFunctions
from onnxq.passes.notes import (
    Reason,
    forget_notes,
    left_in_float,
    node_name,
    note_left_in_float,
    note_reasons,
)
from onnxq.passes.spare_bytes import spare_bytes, value_names
from onnxq.passes.tuned import BIAS, Tuned
from onnxq.passes.weights.shift_biases import ShiftBiases
from onnxq.plan.plan import Plan, PlanTransformation
from onnxq.precision import FLOAT, Given, Precision, parse_precision
from onnxq.precision.static import stores_rows
from onnxq.progress import SILENT, Progress
from onnxq.registry import split_forms
from onnxq.targets import Target
from onnxq.verify.precision import describe

_DEFAULT = "default"


def float_passes(text: str, more: str = "") -> tuple[Pass, ...]:
    """Float passes from their text form; ``default`` stands for the default float pipeline.

    A pass of the default pipeline that is named as well, with its options, takes its place there.

    Args:
        text: The passes, as ``default,fuse-gelu{without=('y',)}``.
        more: Passes that follow unless they are named; none if empty.

    Raises:
        InputError: the text names a pass or option that does not exist.
    """
    parts = split_forms(text)
    standing = default_passes() if _DEFAULT in parts else ()
    others = ",".join(part for part in parts if part != _DEFAULT)
    named = parse_passes(others) if others or not standing else ()
    own = {step.name: step for step in named}
    names = {step.name for step in standing}
    return (
        *(own.get(step.name, step) for step in standing),
        *(step for step in named if step.name not in names),
        *(step for step in (parse_passes(more) if more else ()) if step.name not in own),
    )


def float_graph(
    source: Graph,
    passes: str,
    target: Target,
    opset: int,
    ctx: Context | None = None,
    progress: Progress = SILENT,
) -> tuple[Graph, list[PassRecord]]:
    """The rewritten graph that is observed and quantized.

    Model-local functions are inlined. Nodes and values have names of their own.

    Args:
        source: The model as loaded, which is left as it is.
        passes: Float passes in text form; those of the target follow, see `float_passes`.
        target: Where the model is to run.
        opset: Raise the model to at least this opset.
        ctx: What passes share.
        progress: Told of the stage.

    Raises:
        InputError: a pass is not there.
    """
    progress.stage("rewriting")
    ctx, records = ctx or Context(), []
    if source.model.functions:
        source = source.copy()
        records = Pipeline((InlineFunctions(),)).run(source, ctx)
    graph = raise_opset(source, max(opset, source.opset))
    if graph is source:
        graph = source.copy()
    records += Pipeline(float_passes(passes, target.passes)).run(graph, ctx)
    infer_types(graph)
    _name(graph)
    return graph, records


def _name(graph: Graph) -> None:
    """Give all nodes and values, those of all bodies, names of their own."""
    nodes, values = set[str](), set[str]()
    for scope in graph.all_graphs():
        for value in [*scope.values.values()]:
            if value.name in values:
                scope.rename(value, scope.fresh_name(value.name))
            values.add(value.name)
    for node in graph.all_nodes():
        if not node.name or node.name in nodes:
            node.graph.rename_node(node, node_name(node))
        nodes.add(node.name)


def transform(
    graph: Graph,
    transformations: Sequence[PlanTransformation],
    numbers: Tuned,
    ctx: Context | None = None,
) -> tuple[Graph, list[PassRecord]]:
    """Do equivalent transformations of a float graph.

    Those of one method and kind that follow each other are done at a time.

    Args:
        graph: The graph that `float_graph` makes, which is left as it is.
        transformations: What to do, in this order.
        numbers: What they take, by tensor and kind.
        ctx: What passes share.

    Returns:
        A transformed copy, and what the passes did.

    Raises:
        InputError: a kind is none, its numbers are missing, or the graph has no such tensor.
    """
    kinds = {name: p for name, p in available_passes().items() if issubclass(p, Equivalent)}
    records: list[PassRecord] = []
    for (kind, _), entries in groupby(transformations, lambda entry: (entry.kind, entry.method)):
        if kind not in kinds:
            raise InputError(
                f"there is no transformation '{kind}'; available: {', '.join(kinds)}; plan again"
            )
        found = {}
        for entry in entries:
            if kind not in numbers.get(entry.tensor, {}):
                raise InputError(
                    f"the plan's tensors have nothing for {kind} of '{entry.tensor}'; plan again"
                )
            found[entry.tensor] = numbers[entry.tensor][kind]
        graph = graph.copy()
        records += Pipeline((kinds[kind](found),), fixed_point=False).run(graph, ctx)
        infer_types(graph)
        _name(graph)
    return graph, records


def needed_opset(precisions: Iterable[str], target: Target) -> int:
    """Lowest opset that expresses some precisions on a target."""
    return max((parse_precision(p).needed_opset(target) for p in precisions), default=0)


def apply_precisions(
    graph: Graph,
    precisions: Mapping[str, str],
    given: Given,
    reasons: Mapping[str, str] | None = None,
    ctx: Context | None = None,
) -> list[PassRecord]:
    """Give every node its precision, in place.

    Args:
        graph: The float graph after its float passes, of an opset that will do.
        precisions: Precision by node name; nodes that are missing stay in float.
        given: Target, ranges and tuned tensors.
        reasons: Why nodes have their precision, for the model's metadata.
        ctx: What passes share.

    Returns:
        What the passes did.

    Raises:
        InputError: an unknown node or precision, or the opset is too low.
    """
    ctx = ctx or Context()
    known, values = {node_name(node) for node in graph.all_nodes()}, value_names(graph)
    for name in precisions:
        if name not in known:
            raise InputError(f"the model has no node '{name}' after its float passes")
    records: list[PassRecord] = []
    shifts = {name: own[BIAS] for name, own in given.tuned.items() if BIAS in own}
    if shifts:
        records += Pipeline((ShiftBiases(shifts),), fixed_point=False).run(graph, ctx)
        others = {n: {k: t for k, t in own.items() if k != BIAS} for n, own in given.tuned.items()}
        given = replace(given, tuned={name: own for name, own in others.items() if own})
    for group in _groups(precisions):
        steps = next(iter(group.values())).passes(graph, group, given)
        records += Pipeline(tuple(steps), fixed_point=False).run(graph, ctx)
    if given.target.finish:
        finishing = Pipeline(parse_passes(given.target.finish), fixed_point=False)
        before = {node_name(node): node.op_type for node in graph.all_nodes()}
        records += finishing.run(graph, ctx)
        _note_replaced(graph, before)
    if any(parse_precision(text).spares_bytes for text in precisions.values()):
        spare_bytes(graph, values)
    forget_notes(graph, known)
    note_reasons(graph, reasons or {})
    return records


def _note_replaced(graph: Graph, before: Mapping[str, str]) -> None:
    """Say of what was left in float for the operator that it was that it was another one."""
    noted = left_in_float(graph)
    replaced = {
        node: Reason("operator", f"it stands for {was}: {noted[name]}")
        for node in graph.all_nodes()
        if (name := node_name(node)) in noted
        and (was := before.get(name, node.op_type)) != node.op_type
    }
    note_left_in_float(graph, replaced)


def apply(graph: Graph, plan: Plan, target: Target, ctx: Context | None = None) -> list[PassRecord]:
    """Do to a float graph what a plan says, in place; gives what the passes did.

    Raises:
        InputError: the plan names an unknown node or precision, lacks ranges, or has a precision
            set by hand that its node cannot have.
    """
    wanted, reasons = parsed(plan.precisions()), plan.reasons()
    rows = {node_name(node) for node in graph.all_nodes() if stores_rows(node)}
    if not plan.ranges and any(p.is_static for name, p in wanted.items() if name not in rows):
        raise InputError("the plan has no [ranges], which static integers need; plan again")
    made_for = parsed({node.name: node.planned or node.precision for node in plan.nodes})
    tuned = {name: own for name, own in plan.weights.items() if made_for[name] == wanted[name]}
    given = Given(target, plan.ranges, tuned)
    records = apply_precisions(graph, plan.precisions(), given, reasons, ctx)
    by_hand = set(plan.by_hand())
    for layer in describe(graph) if by_hand else ():
        if layer.node in by_hand and not _is_kept(wanted[layer.node], layer.precision):
            raise InputError(
                f"the node '{layer.node}' cannot have the precision '{wanted[layer.node]}' that it "
                f"is given by hand: {layer.op_type} comes out as {layer.precision}"
            )
    return records


def check_made_for(plan: Plan, sha256: str, name: str = "the plan") -> None:
    """Refuse a plan of another model.

    Args:
        plan: The plan.
        sha256: Hash of the model's file.
        name: What to call the plan.

    Raises:
        InputError: the plan is for another file.
    """
    if sha256 != plan.model_sha256:
        raise InputError(
            f"{name} is for another model, of SHA-256 {plan.model_sha256[:12]}...; this one's is "
            f"{sha256[:12]}..., so make a new plan with `onnxq plan`"
        )


def remake(
    source: Graph,
    plan: Plan,
    target: Target,
    ctx: Context | None = None,
    progress: Progress = SILENT,
) -> tuple[Graph, list[PassRecord]]:
    """The graph that a plan makes of the model as loaded, which is left as it is.

    Returns:
        The graph, and what all passes did.

    Raises:
        InputError: the plan was made with another table of the target; also see `apply`.
    """
    if plan.target_sha256 not in ("", target.digest):
        raise InputError(
            f"the table of the target '{plan.target}' is another one than the plan was made with; "
            "plan again"
        )
    ctx, wanted = ctx or Context(), parsed(plan.precisions())
    opset = max([plan.opset, *(p.needed_opset(target) for p in wanted.values())])
    graph, records = float_graph(source, plan.passes, target, opset, ctx, progress)
    transformed, more = transform(graph, plan.transformations, plan.tuned, ctx)
    # Plans are made on copies, which list their values in another order.
    graph = transformed.copy()
    progress.stage("quantizing")
    return graph, [*records, *more, *apply(graph, plan, target, ctx)]


def _is_kept(wanted: Precision, found: str) -> bool:
    """Whether an operator came out as it was to; weights may be stored in another width."""
    if wanted.is_static or found in (FLOAT, "float64"):
        return found == wanted.described
    return True


def parsed(precisions: Mapping[str, str]) -> dict[str, Precision]:
    """Precisions by node name, from their text forms.

    Raises:
        InputError: naming the node and what is wrong with its precision.
    """
    found = {}
    for name, text in precisions.items():
        try:
            found[name] = parse_precision(text)
        except InputError as error:
            raise InputError(f"the node '{name}' is to have '{text}', but {error}") from error
    return found


def _groups(precisions: Mapping[str, str]) -> list[dict[str, Precision]]:
    """Nodes that get their precisions together, in the order in which they do."""
    groups: dict[tuple[int, str], dict[str, Precision]] = {}
    for name, precision in parsed(precisions).items():
        if precision.name != FLOAT:
            key = (precision.order, "" if precision.is_static else precisions[name])
            groups.setdefault(key, {})[name] = precision
    return [group for _, group in sorted(groups.items(), key=lambda item: item[0][0])]
