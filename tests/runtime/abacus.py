"""A backend of another package: it runs on onnxruntime, and tells tales of its operators."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from onnxq.runtime import COMPILED, Backend, NodeTime, Session
from onnxq.runtime.backend import ModelLike
from onnxq.runtime.specs import Array


class Abacus(Backend):
    name = "abacus"
    integer_operators = frozenset({"Beads"})

    @property
    def version(self) -> str:
        return "7"

    def missing(self, provider: str) -> str:
        return "" if provider == "wood" else f"there are no beads of {provider}"

    def session(
        self, model: ModelLike, *, provider: str = "wood", threads: int = 1, pooled: bool = False
    ) -> Session:
        assert provider == "wood"
        return Session(model, threads=threads, pooled=pooled)

    def profile(
        self,
        models: Sequence[ModelLike],
        feeds: Mapping[str, Array] | Sequence[Mapping[str, Array]],
        *,
        provider: str = "wood",
        threads: int = 1,
        rounds: int = 24,
    ) -> list[list[NodeTime]]:
        return [[NodeTime("node", "Relu", float(rounds))] for _ in models]

    def operators(self, model: ModelLike, *, provider: str = "wood") -> Counter[str]:
        return Counter({"Beads": 3, f"{COMPILED}Relu": 2, "Softmax": 1})
