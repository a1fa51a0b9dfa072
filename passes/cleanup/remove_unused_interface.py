"""Removing graph inputs nobody reads and graph outputs nobody wants."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar
from weakref import WeakKeyDictionary

from onnxq.errors import InputError
from onnxq.ir import Context, Graph, Pass
from onnxq.passes.cleanup.eliminate_dead import EliminateDead

_dropped: WeakKeyDictionary[Graph, set[str]] = WeakKeyDictionary()
"""Outputs gone by request: a pipeline runs its passes again until they find nothing."""


@dataclass(frozen=True)
class RemoveUnusedInterface(Pass):
    """Drop the model's named outputs, and then its inputs that nothing reads.

    The interface of the model changes, which is why this runs only by request, as
    ``remove-unused-interface`` or ``remove-unused-interface{outputs="mask, logits"}``.

    Rewritten: outputs that ``outputs`` names, with everything that was computed only for them;
    inputs, overridable initializers among them, that no operator reads and no output gives back.

    Not rewritten: inputs and outputs of subgraphs and functions, whose places the operator that
    holds or calls them counts on; any input of a model with training information, which refers
    to inputs by name.

    Attributes:
        outputs: names of the outputs to drop, separated by commas.
    """

    name: ClassVar[str] = "remove-unused-interface"

    outputs: str = ""

    def run(self, graph: Graph, ctx: Context) -> int:
        """See `Pass.run`; counts the inputs and outputs removed.

        Raises:
            InputError: the model has no output of a name in ``outputs``, or none would be left.
        """
        made = self._drop_outputs(graph, ctx)
        if made:
            EliminateDead().run(graph, ctx)
        if graph.model.training_info:
            return made
        for value in graph.inputs:
            if not value.is_used:
                graph.remove_input(value)
                ctx.rewrote(f"input '{value.name}': nobody reads it")
                made += 1
        return made

    def _drop_outputs(self, graph: Graph, ctx: Context) -> int:
        earlier = _dropped.setdefault(graph, set())
        wanted = {name.strip() for name in self.outputs.split(",")} - {""} - earlier
        present = [value.name for value in graph.outputs]
        for name in sorted(wanted):
            if name not in present:
                raise InputError(
                    f"the model has no output '{name}' to remove; it has: {', '.join(present)}"
                )
        if not wanted:
            return 0
        kept = [value for value in graph.outputs if value.name not in wanted]
        if not kept:
            raise InputError("removing all outputs leaves no model; keep at least one output")
        graph.set_outputs(kept)
        earlier |= wanted
        for name in sorted(wanted):
            ctx.rewrote(f"output '{name}': dropped by request")
        return len(wanted)
