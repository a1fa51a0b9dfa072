"""What a candidate is worth on each of several providers, and where they part."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from onnxq.data import Dataset
from onnxq.ir import Graph, to_proto
from onnxq.ir.saving import constant_bytes
from onnxq.runtime import ErrorAccumulator, Runnable, Session, load_backend
from onnxq.runtime.files import ModelFiles
from onnxq.runtime.providers import provider_alias
from onnxq.runtime.reference import NAME as REFERENCE
from onnxq.runtime.reference import Evaluated
from onnxq.verify.parting import first_parting, outputs_differ
from onnxq.verify.reference import Judged
from onnxq.verify.result import LatencyFacts, ProviderFacts

_NATIVE = "onnxruntime"

_SAMPLES, _FEW = 8, 2
"""Samples that the candidate runs on everywhere; fewer where `onnx.reference` computes them."""

Model = tuple[Graph, Path]


@dataclass(frozen=True)
class _Place:
    """A provider of a backend."""

    backend: str
    provider: str

    @property
    def is_reference(self) -> bool:
        return self.backend == REFERENCE

    @property
    def name(self) -> str:
        return REFERENCE if self.is_reference else self.provider

    def open(self, files: ModelFiles, graph: Graph) -> Runnable:
        """A session of a part of a model."""
        if self.is_reference:
            return Evaluated(to_proto(graph))
        if self.backend == _NATIVE:
            return files.session(graph, provider=self.provider)
        return load_backend(self.backend).session(
            to_proto(graph).SerializeToString(), provider=self.provider
        )


def compare_providers(
    models: tuple[Model, Model],
    data: Dataset,
    judged: Mapping[str, Judged],
    latencies: Sequence[LatencyFacts],
    files: ModelFiles,
    *,
    backend: str,
    room: int,
    reference: bool = False,
) -> tuple[ProviderFacts, ...]:
    """Facts on each provider, in order.

    Args:
        models: The float model and the candidate, with the files that they run from.
        data: Samples.
        judged: What the candidate's outputs are worth, by provider.
        latencies: What was measured.
        files: Where to put parts of models.
        backend: What the providers belong to.
        room: Bytes of weights that a session may hold; no part of larger models is looked at.
        reference: Whether `onnx.reference` is asked, too.

    Raises:
        InputError: a model cannot be run on one of them.
    """
    places = [_Place(backend, provider) for provider in judged]
    places += [_Place(REFERENCE, "cpu")] if reference else []
    is_large = any(constant_bytes(graph) > room for graph, _ in models)
    return tuple(
        _facts(place, models, data, judged, latencies, files, is_large=is_large) for place in places
    )


def _facts(
    place: _Place,
    models: tuple[Model, Model],
    data: Dataset,
    judged: Mapping[str, Judged],
    latencies: Sequence[LatencyFacts],
    files: ModelFiles,
    *,
    is_large: bool,
) -> ProviderFacts:
    runs = load_backend(place.backend)
    if place.is_reference:
        taken, left = sum(len(nested) for nested in models[1][0].all_graphs()), dict[str, int]()
    else:
        taken, counted = runs.left(models[1][1], provider=place.provider)
        left = dict(sorted(counted.items()))
    is_cpu = not place.is_reference and provider_alias(place.provider) == "cpu"
    float_parting: str | None = ""
    parting: str | None = ""
    difference_db = float("inf")
    if not is_cpu:
        _, float_parting = _against_cpu(place, models[0], data, files, is_large=is_large)
        difference_db, parting = _against_cpu(place, models[1], data, files, is_large=is_large)
    if place.is_reference:
        metric, sqnr_db = None, _against_float(place, models, data)
    else:
        metric, _, outputs = judged[place.provider]
        sqnr_db = min((output.sqnr_db for output in outputs), default=float("inf"))
    timed = next((t for t in latencies if t.provider == place.name), None)
    return ProviderFacts(
        name=place.name,
        version=runs.version,
        nodes_taken=taken,
        nodes_left=sum(left.values()),
        left=left,
        float_ms=None if timed is None else timed.float_ms,
        candidate_ms=None if timed is None else timed.candidate_ms,
        sqnr_db=sqnr_db,
        metric=metric,
        difference_db=difference_db,
        agrees=None if parting is None else not parting,
        parts_at=parting or "",
        float_agrees=None if float_parting is None else not float_parting,
        float_parts_at=float_parting or "",
    )


def _against_cpu(
    place: _Place, model: Model, data: Dataset, files: ModelFiles, *, is_large: bool
) -> tuple[float, str | None]:
    """SQNR of a model's outputs against its own on the CPU provider, and where they part.

    The node is empty where they do not, and None where that is not known.
    """
    graph, path = model
    ours, theirs = Session(path), load_backend(place.backend).session(path, provider=place.provider)
    errors = ErrorAccumulator()
    differing = []
    for feeds in _samples(place, data):
        here, there = ours.run(feeds), theirs.run(feeds)
        errors.add(here, there)
        if outputs_differ(here, there):
            differing.append(feeds)
    if not differing or is_large:
        return _worst(errors), None if differing else ""
    cpu = partial(_Place(_NATIVE, "cpu").open, files)
    return _worst(errors), first_parting(graph, differing, cpu, partial(place.open, files))


def _against_float(place: _Place, models: tuple[Model, Model], data: Dataset) -> float:
    """SQNR of the candidate's outputs against those of the float model on the CPU provider."""
    ours = Session(models[0][1])
    theirs = load_backend(place.backend).session(models[1][1], provider=place.provider)
    errors = ErrorAccumulator()
    for feeds in _samples(place, data):
        errors.add(ours.run(feeds), theirs.run(feeds))
    return _worst(errors)


def _worst(errors: ErrorAccumulator) -> float:
    return min((error.sqnr_db for error in errors.result()), default=float("inf"))


def _samples(place: _Place, data: Dataset) -> list[dict[str, Any]]:
    """Feeds of some samples."""
    few = data.take(_FEW if place.is_reference else _SAMPLES)
    return [dict(batch.feeds) for batch in few.batches()]
