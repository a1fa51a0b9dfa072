"""The error of every layer of a candidate."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from onnxq.data import Batch, Dataset
from onnxq.ir import DataType, Graph, Node, Value, infer_types
from onnxq.ir.lifting import around, lift, liftable
from onnxq.ir.saving import constant_bytes
from onnxq.ir.sizes import value_bytes
from onnxq.runtime import ErrorAccumulator, OutputError
from onnxq.runtime.files import ModelFiles
from onnxq.runtime.parallel import in_order
from onnxq.runtime.pool import RUN_BYTES, at_a_time, give_back, processors
from onnxq.runtime.segmented import Segmented
from onnxq.runtime.spool import Spool
from onnxq.verify.clipping import with_clippings
from onnxq.verify.harm import Kept
from onnxq.verify.local import LocalError, least_shapes, local_errors
from onnxq.verify.precision import describe, operators
from onnxq.verify.result import JumpFacts, LayerFacts

_LARGEST_GROUP = 2 * RUN_BYTES
"""Bytes of one sample's values that each of two models gives out at a time."""

_MOST_BYTES = 1 << 30
"""Bytes of values of each model that are compared; where samples make many, fewer of them do."""

_FEWEST, _AT_ONCE = 4, 2


def compare_layers(
    reference: Graph, candidate: Graph, data: Dataset, room: int
) -> tuple[tuple[LayerFacts, ...], JumpFacts | None]:
    """Describe the candidate's operators with their errors, and the first that is not explained.

    A value is compared with the float model's value of the same name, on the same samples; what
    has no counterpart (rewrites make new values) has no SQNR. For the accumulated error the
    candidate runs as a whole, so that a layer's error includes that of the layers before it; for
    the local one see `onnxq.verify.local`. Models whose weights take more bytes than there is
    ``room`` run segment by segment.

    Raises:
        InputError: onnxruntime cannot run one of the models with its inner values given out.
    """
    infer_types(reference)
    described = describe(candidate)
    candidate = _with_names(candidate)
    names = {name: x.node for (_, name), x in zip(operators(candidate), described, strict=True)}
    ours, theirs = liftable(reference), liftable(candidate)
    made = {_given_as(n, ours): name for n, name in operators(candidate) if node_output(n)}
    shared = [name for name in made if _comparable(ours.get(name), theirs.get(name))]
    candidate = with_clippings(candidate, reference, shared)
    graphs = [graph.copy() for graph in (reference, candidate)]
    for graph in graphs:
        lift(graph, shared)
    some = _few_enough(graphs[0], shared, data)
    give_back()
    with ModelFiles.temporary() as files:
        for graph in graphs:
            if constant_bytes(graph) <= room:
                files.share(graph)
        found = {made[e.name]: e for e in _errors(files, graphs, shared, some, room)}
        precisions = {name: x.precision for name, x in zip(names, described, strict=True)}

        def show(names: Sequence[str], samples: Dataset) -> Kept:
            sizes = {name: size for name, size in _sizes(graphs[0], data).items() if name in names}
            return _kept(files, graphs[0], sizes, samples, room)

        is_whole = constant_bytes(graphs[1]) <= room
        local, jump = local_errors(
            reference, candidate, precisions, shared, some, show, files, is_whole=is_whole
        )
    if jump is not None:
        node, *others = (names.get(name, name) for name in (jump.node, *jump.others))
        jump = replace(jump, node=node, others=tuple(others))
    errors = ((found.get(name), local.get(name)) for name in names)
    return tuple(_with(x, *own) for x, own in zip(described, errors, strict=True)), jump


def _with_names(graph: Graph) -> Graph:
    """A copy in which every layer has a name of its own."""
    graph = graph.copy()
    for node, name in operators(graph):
        node.graph.rename_node(node, name)
    return graph


def _with(layer: LayerFacts, error: OutputError | None, local: LocalError | None) -> LayerFacts:
    if error is not None:
        layer = replace(layer, sqnr_db=error.sqnr_db, cosine=error.cosine)
    return layer if local is None else replace(layer, **vars(local))


def _few_enough(graph: Graph, names: Sequence[str], data: Dataset) -> Dataset:
    """Fewer samples where some values of all of them would take too much."""
    sizes = _sizes(graph, data)
    count = _MOST_BYTES // max(1, sum(sizes[name] for name in names))
    return data.take(max(_FEWEST, min(count, len(data))))


def _sizes(graph: Graph, data: Dataset) -> dict[str, int]:
    """Bytes of a graph's values for one sample, or for one batch where that is fixed."""
    return value_bytes(graph, least_shapes(graph, data))


def _errors(
    files: ModelFiles, graphs: Sequence[Graph], names: Sequence[str], some: Dataset, room: int
) -> list[OutputError]:
    """How far some values of the second graph are from those of the first."""
    errors, sizes = ErrorAccumulator(), _sizes(graphs[0], some)
    inputs = [v for v in graphs[0].inputs if v.data is None]
    # A model in segments runs once, and gives no more than a segment's values at a time.
    in_segments = any(constant_bytes(graph) > room for graph in graphs)
    most = sum(sizes.values()) if in_segments else _LARGEST_GROUP
    for group in at_a_time({name: sizes[name] for name in names}, most):
        rows = max(1, RUN_BYTES // max(1, sum(sizes[name] for name in group)))
        parts = some.in_parts(rows, inputs)
        wanted = {name: sizes[name] for name in group}
        _add_errors(errors, files, graphs, wanted, parts, room)
    return errors.result()


def _add_errors(
    errors: ErrorAccumulator,
    files: ModelFiles,
    graphs: Sequence[Graph],
    sizes: Mapping[str, int],
    data: Dataset,
    room: int,
) -> None:
    """Compare some values; one model runs after the other, or both would be in memory."""
    kept = _kept(files, graphs[0], sizes, data, room)

    def compare(number: int, name: str, batch: Batch, array: Any) -> None:
        pair = batch.trim({"ours": kept(number, name), "theirs": array})
        reference = pair["ours"]
        # In a branch that is not taken nothing is computed.
        if reference.size:
            # Channels that were added hold nothing.
            theirs = pair["theirs"][tuple(map(slice, reference.shape))]
            errors.add({name: reference}, {name: theirs})

    _show(files, graphs[1], sizes, data, room, compare)


def _kept(
    files: ModelFiles, graph: Graph, sizes: Mapping[str, int], data: Dataset, room: int
) -> Kept:
    """What tells some of a graph's values, which wait on disk."""
    kept, numbers = Spool[Any](), dict[tuple[int, str], int]()

    def keep(number: int, name: str, batch: Batch, array: Any) -> None:
        numbers[number, name] = len(numbers)
        kept.add(array)

    _show(files, graph, sizes, data, room, keep)
    return lambda number, name: kept[numbers[number, name]]


def _show(
    files: ModelFiles,
    graph: Graph,
    sizes: Mapping[str, int],
    data: Dataset,
    room: int,
    see: Callable[[int, str, Batch, Any], None],
) -> None:
    """Show some of a graph's values, each by itself; the batches of each come in order."""
    is_whole = constant_bytes(graph) <= room
    for names in at_a_time(sizes, _LARGEST_GROUP) if is_whole else [[*sizes]]:
        _show_at_once(files, graph, {name: sizes[name] for name in names}, data, room, see)
        give_back()


def _show_at_once(
    files: ModelFiles,
    graph: Graph,
    sizes: Mapping[str, int],
    data: Dataset,
    room: int,
    see: Callable[[int, str, Batch, Any], None],
) -> None:
    exposing, workers = _exposing(graph, [*sizes]), min(_AT_ONCE, processors())
    items = ((item, item[1].feeds) for item in enumerate(data.batches()))

    def given(_: int, item: tuple[int, Batch], values: Mapping[str, Any]) -> None:
        number, batch = item
        for name, array in values.items():
            if name in sizes:
                see(number, name, batch, array)

    if constant_bytes(graph) > room:
        # Beside what runs at a time, the values that are compared are still there.
        held = {name: size * (workers + 1) for name, size in sizes.items()}
        segmented = Segmented(exposing, files, room // 2, outputs=(), held=held)
        for _ in segmented.stages(items, workers, given):
            pass
        return
    session = files.session(exposing, pooled=True)
    for (item, _), values in in_order(lambda i: session.run(i[1], [*sizes]), items, workers):
        given(0, item, values)


def node_output(node: Node) -> str:
    """Name of a node's first output, empty if it leaves that out."""
    first = node.outputs[0] if node.outputs else None
    return "" if first is None else first.name


def _given_as(node: Node, known: Mapping[str, Value]) -> str:
    """Name under which a node's first output is known to the float model as well.

    Where the model gives out what the node makes, the name has gone to the value behind the pair.
    """
    value = node.output
    while value.name not in known and len(value.uses) == 1:
        reader = value.uses[0].node
        if not reader.is_op("QuantizeLinear", "DequantizeLinear"):
            break
        value = reader.output
    return value.name


def _comparable(ours: Value | None, theirs: Value | None) -> bool:
    return (
        ours is not None
        and theirs is not None
        and ours.producer is not None
        and ours.dtype is theirs.dtype is DataType.FLOAT
        and around(ours.graph) == around(theirs.graph)
    )


def _exposing(graph: Graph, names: Sequence[str]) -> Graph:
    exposed = graph.copy()
    for name in names:
        if not exposed.values[name].is_output:
            exposed.add_output(exposed.values[name])
    return exposed
