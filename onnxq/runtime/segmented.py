"""Models that memory may be too small for: run a segment at a time, over all samples."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from onnxq.ir import Graph
from onnxq.ir.segments import Segment, cut_by_weight
from onnxq.runtime.files import ModelFiles
from onnxq.runtime.parallel import in_order
from onnxq.runtime.pool import give_back
from onnxq.runtime.providers import provider_alias
from onnxq.runtime.specs import Array
from onnxq.runtime.spool import Spool
from onnxq.runtime.timing import interleaved

CPU = ("onnxruntime", "cpu")
"""The backend and provider that segments run on."""

Held = dict[str, Any]
"""Values by name that a later segment reads, or that are outputs."""


def is_too_large(size: int, room: int, backend: str, provider: str) -> bool:
    """Whether a model with so many bytes of constants has to run segment by segment.

    Elsewhere than on onnxruntime's CPU provider it runs as a whole, or not at all: numbers and
    times of segments would be those of another provider than the one that was asked for.
    """
    return size > room and (backend, provider_alias(provider)) == CPU


class Segmented:
    """A model in segments, of which one is in memory at a time.

    onnxruntime optimizes the model as a whole, with its weights left in files, and the result is
    cut: so the numbers are those of one session of the whole. What lies between segments waits on
    disk for all samples to arrive.

    Args:
        graph: The model.
        files: Where to put it.
        limit: Bytes of the weights of one segment, and of what else is ``held`` with them.
        outputs: Names of the outputs that are wanted in the end; all if None.
        held: Bytes of outputs that are in memory with a segment's weights, by name.

    Raises:
        InputError: onnxruntime cannot load the model.
    """

    def __init__(
        self,
        graph: Graph,
        files: ModelFiles,
        limit: int,
        *,
        outputs: Sequence[str] | None = None,
        held: Mapping[str, int] = MappingProxyType({}),
    ) -> None:
        self._files = files
        optimized = files.optimized(graph)
        self.segments = cut_by_weight(optimized, limit, held)
        # Inputs that callers may leave out, and outputs that do not depend on inputs.
        ends = (*optimized.inputs, *optimized.outputs)
        self._constants = {v.name: v.data.numpy() for v in ends if v.data is not None}
        given = [value.name for value in graph.outputs]
        self._outputs = given if outputs is None else list(outputs)

    def stages(
        self,
        items: Iterable[tuple[Any, Mapping[str, Array]]],
        workers: int = 1,
        see: Callable[[int, Any, Held], None] | None = None,
    ) -> Iterator[tuple[Any, Held]]:
        """What goes along with some feeds, and the outputs for them.

        Args:
            items: What goes along, and the feeds.
            workers: Feeds that run beside each other.
            see: Shown the number of each segment, what goes along, and all that the segment gives;
                with the first also outputs that are constant.
        """
        held: Iterable[tuple[Any, Mapping[str, Array]]] = (
            (along, {**self._constants, **feeds}) for along, feeds in items
        )
        for place, segment in enumerate(self.segments):
            held = Spool(self._stage(place, segment, held, workers, see)).items()
            give_back()
        for along, values in held:
            yield along, {name: values[name] for name in self._outputs}

    def _stage(
        self,
        place: int,
        segment: Segment,
        items: Iterable[tuple[Any, Mapping[str, Array]]],
        workers: int,
        see: Callable[[int, Any, Held], None] | None,
    ) -> Iterator[tuple[Any, Held]]:
        session = self._files.session(segment.graph, optimization="none", pooled=True)
        wanted = self._wanted_after(place)

        def run(item: tuple[Any, Mapping[str, Array]]) -> Held:
            return session.run({name: item[1][name] for name in segment.inputs})

        for (along, values), made in in_order(run, items, workers):
            if see is not None:
                see(place, along, made if place else {**self._constants, **made})
            everything = {**values, **made}
            yield along, {name: everything[name] for name in wanted if name in everything}

    def milliseconds(self, feeds: Mapping[str, Array], *, seconds: float, threads: int) -> float:
        """Time of one inference: that of all segments, each measured by itself."""
        total, held = 0.0, {**self._constants, **feeds}
        for segment in self.segments:
            session = self._files.session(segment.graph, optimization="none", threads=threads)
            read = {name: held[name] for name in segment.inputs}
            (timing,) = interleaved([session], read, seconds=seconds / len(self.segments))
            total += timing.p10_ms
            held |= session.run(read)
            give_back()
        return total

    def _wanted_after(self, place: int) -> Sequence[str]:
        later = (name for segment in self.segments[place + 1 :] for name in segment.inputs)
        return [*dict.fromkeys([*later, *self._outputs])]
