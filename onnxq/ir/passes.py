"""Passes, their text form and pipelines of them."""

from __future__ import annotations

import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import networkx as nx

from onnxq.errors import InputError, InvariantError
from onnxq.ir.graph import Graph
from onnxq.ir.infer import infer_types
from onnxq.needs import Need
from onnxq.registry import from_form, installed_kinds, split_forms, to_form

ENTRY_POINT_GROUP = "onnxq.passes"
Numerics = Literal["exact", "reassociates", "approximates"]


@dataclass
class Context:
    """What passes share while they run.

    ``debug``: 0 silent, 1 a line per pass, 2 a line per rewrite, 3 the text form after each
    pass; lines go to ``log``. ``dropped_outputs``: names of the outputs a pass took away.
    ``regions``: by the name of a pass that writes one of several equal forms, the values of which
    it rewrote how they are computed.
    """

    debug: int = 0
    log: Callable[[str], None] = field(default=lambda line: print(line, file=sys.stderr))
    dropped_outputs: set[str] = field(default_factory=set)
    regions: dict[str, list[str]] = field(default_factory=dict)

    def rewrote(self, what: str) -> None:
        """Tell of one rewrite, at debug level 2."""
        if self.debug >= 2:
            self.log(f"    {what}")


class Pass(ABC):
    """One rewrite of graphs: a frozen dataclass whose fields are its options.

    A pass may rely on a valid graph and leaves one.

    Class variables:
        name: what the pass is called in pipelines and on the command line.
        numerics: whether outputs stay bit-identical (``exact``), differ by rounding because
            sums are formed in another order (``reassociates``), or change (``approximates``).
        default: whether the default float pipeline runs it.
        after: passes of the default float pipeline that have to come first, because this one
            would take matches away from them.
        needs_types: whether it reads shapes, so that inference runs first.
    """

    name: ClassVar[str]
    numerics: ClassVar[Numerics] = "exact"
    default: ClassVar[bool] = False
    after: ClassVar[tuple[str, ...]] = ()
    needs_types: ClassVar[bool] = False

    @property
    def needed_opset(self) -> int:
        """The opset below which the pass refuses a model; 0 if it takes any."""
        return 0

    def needs(self, graph: Graph) -> Sequence[Need]:
        """What has to be observed of a graph's tensors before the pass runs on it."""
        return ()

    def higher_opsets(self, graph: Graph) -> Collection[int]:
        """Opsets above a graph's own at which the pass would find more to rewrite in it."""
        return ()

    @abstractmethod
    def run(self, graph: Graph, ctx: Context) -> int:
        """Rewrite the graph in place; gives the number of rewrites made."""

    def __str__(self) -> str:
        """Text form, ``name{option=value}``, with the options that are not at their default."""
        return to_form(self)


@dataclass(frozen=True)
class PassRecord:
    """What one pass did, summed over its runs.

    ``nodes_after`` is ``nodes_before``, the operators before the first run, with what all its own
    runs added or removed; what other passes did in between does not count.
    """

    name: str
    rewrites: int
    seconds: float
    nodes_before: int
    nodes_after: int


@dataclass(frozen=True)
class Pipeline:
    """Passes in order, repeated until none of them finds anything to rewrite.

    ``fixed_point`` False runs each pass once. ``max_rounds`` bounds the repetition: passes
    that undo each other are a defect, and are named instead of run for ever.
    """

    passes: tuple[Pass, ...]
    fixed_point: bool = True
    max_rounds: int = 50

    def run(self, graph: Graph, ctx: Context | None = None) -> list[PassRecord]:
        """Run over a graph in place, which is checked after each pass that rewrote something.

        Raises:
            InvariantError: a pass left an invalid graph, or the passes never settle.
        """
        ctx = ctx or Context()
        records: dict[int, PassRecord] = {}
        typed = False
        for _ in range(self.max_rounds):
            made = 0
            for position, step in enumerate(self.passes):
                if step.needs_types and not typed:
                    infer_types(graph)
                    typed = True
                rewrites = self._run_one(step, position, graph, ctx, records)
                typed = typed and not rewrites
                made += rewrites
            if not made or not self.fixed_point:
                return list(records.values())
        busy = ", ".join(p.name for p in self.passes)
        raise InvariantError(f"the passes {busy} undo each other's rewrites without end")

    @staticmethod
    def _run_one(
        step: Pass, position: int, graph: Graph, ctx: Context, records: dict[int, PassRecord]
    ) -> int:
        before, started = count_nodes(graph), time.perf_counter()
        rewrites = step.run(graph, ctx)
        seconds = time.perf_counter() - started
        if rewrites:
            try:
                graph.check()
            except InvariantError as error:
                raise InvariantError(f"pass {step.name} left an invalid graph: {error}") from error
        after = count_nodes(graph)
        earlier = records.get(position, PassRecord(step.name, 0, 0.0, before, before))
        records[position] = PassRecord(
            step.name,
            rewrites + earlier.rewrites,
            seconds + earlier.seconds,
            earlier.nodes_before,
            earlier.nodes_after + after - before,
        )
        if ctx.debug >= 1:
            ctx.log(
                f"  {step}: {rewrites} rewrites, {seconds * 1e3:.1f} ms, {before} -> {after} nodes"
            )
        if ctx.debug >= 3 and rewrites:
            ctx.log(str(graph))
        return rewrites


def count_nodes(graph: Graph) -> int:
    """Operators in a graph and its subgraphs."""
    return sum(len(g) for g in graph.all_graphs())


def available_passes() -> dict[str, type[Pass]]:
    """Every installed pass by name, built-in ones and third parties' alike.

    Passes are found through the entry-point group ``onnxq.passes``; an entry names a `Pass`
    class, or a module or package in which every `Pass` class counts.

    Raises:
        InputError: an entry point cannot be loaded or two passes share a name.
    """
    return installed_kinds(ENTRY_POINT_GROUP, Pass, "pass")  # type: ignore[type-abstract]


def default_passes() -> tuple[Pass, ...]:
    """The default float pipeline's passes, in an order that respects their ``after``."""
    chosen = {n: kind for n, kind in available_passes().items() if kind.default}
    order: nx.DiGraph[str] = nx.DiGraph()
    order.add_nodes_from(chosen)
    order.add_edges_from((b, n) for n, kind in chosen.items() for b in kind.after if b in chosen)
    return tuple(from_form(n, chosen, "pass") for n in nx.lexicographical_topological_sort(order))


def parse_passes(text: str) -> tuple[Pass, ...]:
    """Read ``"fold-constants{limit=1024},fuse-batch-norm"``.

    Raises:
        InputError: naming the pass, option or value that is wrong.
    """
    known = available_passes()
    made = tuple(from_form(part, known, "pass") for part in split_forms(text))
    if not made:
        raise InputError("no pass is named; `onnxq rewrite --list` shows what there is")
    return made
