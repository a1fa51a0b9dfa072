"""Time of every operator inside a session, from onnxruntime's own profiler."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from onnxq.runtime.session import ModelLike, Session
from onnxq.runtime.specs import Array

_SUFFIX = "_kernel_time"


@dataclass(frozen=True)
class NodeTime:
    """Time of one operator of the graph that onnxruntime really runs.

    ``name`` is the name that onnxruntime's optimizer gave it, ``op_type`` its operator, ``ms``
    milliseconds per inference, of the least disturbed tenth.
    """

    name: str
    op_type: str
    ms: float


def profile_nodes(
    models: Sequence[ModelLike],
    feeds: Mapping[str, Array] | Sequence[Mapping[str, Array]],
    *,
    provider: str = "cpu",
    threads: int = 1,
    rounds: int = 24,
) -> list[list[NodeTime]]:
    """Time of every operator of some models, run in turn in one process.

    Args:
        models: Paths or serialized models.
        feeds: One feed for all, or one per model.
        provider: Execution provider.
        threads: Threads inside one operator.
        rounds: Inferences of each model; the first two do not count.

    Raises:
        InputError: onnxruntime cannot load or run a model.
    """
    per_model = [feeds] * len(models) if isinstance(feeds, Mapping) else list(feeds)
    with tempfile.TemporaryDirectory(prefix="onnxq-") as folder:
        sessions = [
            Session(model, provider=provider, threads=threads, profile=Path(folder) / f"{number}")
            for number, model in enumerate(models)
        ]
        for _ in range(max(3, rounds)):
            for session, feed in zip(sessions, per_model, strict=True):
                session.run(feed)
        return [_read(session.end_profile()) for session in sessions]


def _read(path: Path) -> list[NodeTime]:
    events = json.loads(path.read_text(encoding="utf-8"))
    times: dict[tuple[str, str], list[float]] = {}
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith(_SUFFIX):
            key = (event["name"].removesuffix(_SUFFIX), event["args"]["op_name"])
            times.setdefault(key, []).append(event["dur"] / 1000)
    return [
        NodeTime(*key, float(np.percentile(found[2:] or found, 10))) for key, found in times.items()
    ]
