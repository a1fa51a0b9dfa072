"""Where models are timed and profiled; nothing is measured twice on one machine."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from onnxq.cost.cache import Measurements, machine
from onnxq.ir import Graph
from onnxq.ir.saving import constant_bytes, fingerprint
from onnxq.runtime import NodeTime, load_backend
from onnxq.runtime.files import ModelFiles
from onnxq.runtime.pool import MODELS_BYTES, at_a_time
from onnxq.runtime.specs import Array

Feeds = Mapping[str, Array]


@dataclass(frozen=True)
class Bench:
    """A backend that measures, and what was measured before.

    Attributes:
        backend: What runs models.
        provider: What the backend is to run them on.
        threads: Threads inside one operator.
        known: What was measured before.
    """

    backend: str = "onnxruntime"
    provider: str = "cpu"
    threads: int = 1
    known: Measurements = field(default_factory=Measurements)

    @cached_property
    def here(self) -> Mapping[str, str]:
        """All about this machine that a latency depends on."""
        return machine(self.provider, self.threads, self.backend)

    def profiles(self, models: Mapping[str, Graph], feeds: Feeds) -> dict[str, list[NodeTime]]:
        """Times of the operators of whole models, run in turn, by the models' names.

        As many models as fit into memory take turns.

        Args:
            models: The models.
            feeds: What to run them on.

        Raises:
            InputError: a model cannot be run.
        """
        key = self._key("profiles in turn", feeds, models.values())
        found = self.known.get(key)
        if found is None:
            profiles = [
                profile
                for names in _groups(models)
                for profile in self._profiled([models[name] for name in names], feeds)
            ]
            found = {
                json.dumps([at, time.name, time.op_type]): time.ms
                for at, profile in enumerate(profiles)
                for time in profile
            }
            self.known.put(key, found)
        names, read = [*models], dict[str, list[NodeTime]]({name: [] for name in models})
        for what, ms in found.items():
            at, name, op_type = json.loads(what)
            read[names[at]].append(NodeTime(name, op_type, ms))
        return read

    def _profiled(self, models: Sequence[Graph], feeds: Feeds) -> list[list[NodeTime]]:
        with ModelFiles.temporary() as files:
            return load_backend(self.backend).profile(
                [files.save(model, f"{at}.onnx") for at, model in enumerate(models)],
                feeds,
                provider=self.provider,
                threads=self.threads,
            )

    def times(
        self, models: Mapping[str, Graph], feeds: Feeds, *, seconds: float
    ) -> dict[str, float]:
        """Milliseconds of whole models, run in turn, by their names.

        As many models as fit into memory take turns.

        Args:
            models: The models.
            feeds: What to run them on.
            seconds: Time to spend on each.

        Raises:
            InputError: a model cannot be run.
        """
        key = self._key(f"models in turn, {seconds:g} s each", feeds, models.values())
        found = self.known.get(key)
        if found is None:
            groups = _groups(models)
            taken = [ms for group in groups for ms in self._in_turn(models, group, feeds, seconds)]
            found = {str(at): ms for at, ms in enumerate(taken)}
            self.known.put(key, found)
        return dict(zip(models, found.values(), strict=True))

    def _in_turn(
        self, models: Mapping[str, Graph], names: Sequence[str], feeds: Feeds, seconds: float
    ) -> list[float]:
        backend = load_backend(self.backend)
        with ModelFiles.temporary() as files:
            sessions = [
                backend.session(
                    files.save(models[name], f"{at}.onnx"),
                    provider=self.provider,
                    threads=self.threads,
                )
                for at, name in enumerate(names)
            ]
            timings = backend.time(sessions, feeds, seconds=seconds * len(sessions))
        return [timing.p10_ms for timing in timings]

    def operators(
        self, kind: str, models: Mapping[str, Callable[[], tuple[bytes, Feeds]]]
    ) -> dict[str, dict[str, float]]:
        """Milliseconds of every operator of some small models, by the models' signatures."""
        keys = {name: self._signature(kind, name) for name in models}
        found = {name: self.known.get(key) for name, key in keys.items()}
        missing = [name for name, times in found.items() if times is None]
        if missing:
            made = [models[name]() for name in missing]
            profiles = load_backend(self.backend).profile(
                [model for model, _ in made],
                [feeds for _, feeds in made],
                provider=self.provider,
                threads=self.threads,
            )
            for name, profile in zip(missing, profiles, strict=True):
                spent: dict[str, float] = {}
                for time in profile:
                    spent[time.name] = spent.get(time.name, 0.0) + time.ms
                self.known.put(keys[name], spent)
                found[name] = spent
        return {name: dict(times or {}) for name, times in found.items()}

    def _key(self, kind: str, feeds: Feeds, models: Iterable[Graph]) -> str:
        shapes = json.dumps({n: a.shape for n, a in sorted(feeds.items())})
        return self._signature(kind, *map(fingerprint, models), shapes)

    def _signature(self, *what: str) -> str:
        return json.dumps([dict(self.here), *what], sort_keys=True)


def _groups(models: Mapping[str, Graph]) -> list[list[str]]:
    """Names of models, as many at a time as fit into memory."""
    return at_a_time({n: constant_bytes(graph) for n, graph in models.items()}, MODELS_BYTES)
