"""Removing graph inputs nobody reads and graph outputs nobody wants."""

from __future__ import annotations

from dataclasses import dataclass

from onnxq.errors import InputError
from onnxq.ir import Context, Graph, Pass
from onnxq.passes.unused import remove_dead


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

    name = "remove-unused-interface"

    outputs: str = ""

    def run(self, graph: Graph, ctx: Context) -> int:
        """See `Pass.run`; counts the inputs and outputs removed.

        Raises:
            InputError: the model has no output of a name in ``outputs``, or none would be left.
        """
        made = self._drop_outputs(graph, ctx)
        if made:
            remove_dead(graph, ctx)
        if graph.model.training_info:
            return made
        for value in graph.inputs:
            if not value.is_used:
                graph.remove_input(value)
                ctx.rewrote(f"input '{value.name}': nobody reads it")
                made += 1
        return made

    def _drop_outputs(self, graph: Graph, ctx: Context) -> int:
        wanted = {name.strip() for name in self.outputs.split(",")} - {""}
        present = [value.name for value in graph.outputs]
        # A pipeline runs its passes again until they find nothing: what is gone is not missing.
        missing = sorted(wanted.difference(present, ctx.dropped_outputs))
        if missing:
            raise InputError(
                f"the model has no output '{missing[0]}' to remove; it has: {', '.join(present)}"
            )
        dropped = sorted(wanted.intersection(present))
        kept = [value for value in graph.outputs if value.name not in wanted]
        if dropped and not kept:
            raise InputError("removing all outputs leaves no model; keep at least one output")
        if dropped:
            graph.set_outputs(kept)
        ctx.dropped_outputs.update(dropped)
        for name in dropped:
            ctx.rewrote(f"output '{name}': dropped by request")
        return len(dropped)
