"""Replacing calls of model-local functions by what they compute."""

from __future__ import annotations

from dataclasses import dataclass

import onnx
import onnx.checker
import onnx.inliner

from onnxq.errors import InputError
from onnxq.ir import Context, Graph, Pass
from onnxq.ir.copying import assign
from onnxq.ir.loading import from_proto
from onnxq.ir.saving import to_proto
from onnxq.ir.withheld import Withheld


@dataclass(frozen=True)
class InlineFunctions(Pass):
    """Put the bodies of model-local functions in the place of their calls.

    Other passes leave functions alone: exporters write them so that whole modules stay
    recognizable. Runtimes inline them when they load the model, so nothing is gained by keeping
    them but readability, and nothing in them is optimized. This runs only by request, because the
    model then no longer shows its modules.

    Rewritten: every call, in subgraphs and in other functions too. Functions and operator sets
    that nothing uses any more go away. Metadata, constants and the interface stay.

    Not rewritten: functions written for another version of an operator set than the model's,
    whose operators may mean something else there.
    """

    name = "inline-functions"

    def run(self, graph: Graph, ctx: Context) -> int:
        """See `Pass.run`; counts the functions that are gone.

        Raises:
            InputError: a function calls itself, or cannot be inlined.
        """
        functions = len(graph.model.functions)
        if not functions:
            return 0
        data = Withheld()
        try:
            inlined = onnx.inliner.inline_local_functions(to_proto(graph, data))
        except (RuntimeError, ValueError, onnx.checker.ValidationError) as error:
            reason = " ".join(str(error).split())
            raise InputError(
                f"the model's functions cannot be inlined ({reason}); leave inline-functions out"
            ) from error
        made = functions - len(inlined.functions)
        if not made:
            return 0
        result = from_proto(inlined, graph.model.path, data)
        _drop_unused_imports(graph, result)
        assign(graph, result)
        ctx.rewrote(f"{made} functions: inlined")
        return made


def _drop_unused_imports(before: Graph, after: Graph) -> None:
    """Drop the operator sets in which the functions lay that are gone."""
    functions = {f.domain for f in before.model.functions}
    used = {n.domain for n in after.all_nodes()} | {f.domain for f in after.model.functions}
    used.update(i.domain for f in after.model.functions for i in f.opset_import)
    for domain in functions - used - {""}:
        after.model.opset_imports.pop(domain, None)
