"""Backends: what runs, times and profiles models; one file of this package each."""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from onnxq.errors import InputError
from onnxq.ir.loading import ModelLike
from onnxq.registry import from_form, installed_kinds, kinds_in
from onnxq.runtime.specs import Array, Runnable
from onnxq.runtime.timing import interleaved

ENTRY_POINT_GROUP = "onnxq.backends"
"""Entry points of other packages that name modules with backends."""

COMPILED = "compiled:"


@dataclass(frozen=True)
class NodeTime:
    """Time of one operator of the graph that a backend really runs.

    ``name`` is the name that the backend gave it, ``op_type`` its operator, ``ms`` milliseconds
    per inference, of the least disturbed tenth.
    """

    name: str
    op_type: str
    ms: float


class Backend(ABC):
    """Something that runs models.

    Class variables:
        name: what targets call it.
        integer_operators: what `operators` calls those that compute on integers. Operators that
            only move data run on integers under the same name as on floats and are not among them.
        is_for_targets: whether a target may name it; else it only measures models that are made.
    """

    name: ClassVar[str]
    integer_operators: ClassVar[frozenset[str]] = frozenset()
    is_for_targets: ClassVar[bool] = True

    @property
    @abstractmethod
    def version(self) -> str:
        """What tells its results from those of another version or build."""

    @abstractmethod
    def missing(self, provider: str) -> str:
        """Say why models cannot run on a provider here; empty if they can."""

    def check(self, provider: str) -> None:
        """Find out before long work whether a provider that is here takes its options.

        Raises:
            InputError: it does not.
        """
        return

    @abstractmethod
    def session(
        self, model: ModelLike, *, provider: str = "cpu", threads: int = 1, pooled: bool = False
    ) -> Runnable:
        """Load a model.

        Args:
            model: Path or serialized model.
            provider: Where to run it, with options as `openvino{device_type=GPU}`.
            threads: Threads inside one operator.
            pooled: Whether it may share memory with other such sessions, as nobody times it.

        Raises:
            InputError: the model cannot be loaded on that provider.
        """

    @abstractmethod
    def profile(
        self,
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
            provider: Where to run.
            threads: Threads inside one operator.
            rounds: Inferences of each model; the first two do not count.

        Raises:
            InputError: a model cannot be loaded or run.
        """

    def operators(self, model: ModelLike, *, provider: str = "cpu") -> Counter[str]:
        """Count the operators that really run, subgraphs included; none where it cannot tell.

        Those that a provider compiles, so that nobody knows what they became, have `COMPILED`
        before their name.

        Raises:
            InputError: the model cannot be loaded on that provider.
        """
        return Counter()

    def left(self, model: ModelLike, *, provider: str = "cpu") -> tuple[int, Counter[str]]:
        """How many operators a provider takes, and those that it leaves to another one, by type.

        Raises:
            InputError: the model cannot be loaded on that provider.
        """
        return sum(self.operators(model, provider=provider).values()), Counter()

    time = staticmethod(interleaved)

    def close(self) -> None:  # noqa: B027
        """Let go of what sessions ran in, if it was more than this process."""


def available_backends() -> dict[str, type[Backend]]:
    """Backends by name: those in modules of this package, and those of entry points.

    Raises:
        InputError: an entry point cannot be loaded, or two backends share a name.
    """
    package = importlib.import_module(__package__)
    own = kinds_in(package, Backend, without=("cluster",))  # type: ignore[type-abstract]
    others = installed_kinds(ENTRY_POINT_GROUP, Backend, "backend")  # type: ignore[type-abstract]
    return {**others, **{kind.name: kind for kind in own}}


def load_backend(form: str) -> Backend:
    """The backend of a name, with options as ``onnxruntime{python=PATH}`` if it takes some.

    Raises:
        InputError: there is none, or an option is unknown or wrong.
    """
    found = available_backends()
    name = form.partition("{")[0].strip()
    if name not in found:
        raise InputError(f"there is no backend '{name}'; available: {', '.join(sorted(found))}")
    return found[name]() if form == name else from_form(form, found, "backend")
