"""What a metric is, and the registry of those there are."""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cache
from typing import Any, ClassVar, Self, cast

import numpy as np
import numpy.typing as npt

from onnxq.registry import kinds_in
from onnxq.runtime.specs import Array

Floats = npt.NDArray[np.float64]
Interval = tuple[float, float]


@dataclass(frozen=True)
class MetricResult:
    """A metric's value over `samples` samples."""

    name: str
    value: float
    samples: int
    higher_is_better: bool


class Metric(ABC):
    """Collects a model's outputs batch by batch; one instance serves one model.

    Attributes:
        name: What the command line and reports call the metric.
        is_share: Whether it is a share of all, which people read in percent.
        needs_labels: Whether it cannot do with the float model's outputs in the place of labels.
    """

    name: str
    is_share: ClassVar[bool] = False
    needs_labels: ClassVar[bool] = True

    @classmethod
    def suits(cls, labels_ndim: int, classes: int | None) -> bool:
        """Whether it is the metric for labels of so many dimensions where none is named.

        Args:
            labels_ndim: Dimensions of a batch's labels.
            classes: Classes of the output that scores them; None if the model leaves it open.
        """
        return False

    @classmethod
    def allowed_drop(cls, value: float) -> float:
        """The largest drop where none is promised, by the float model's value.

        Raises:
            InputError: there is no such drop for that value.
        """
        return 0.01

    @abstractmethod
    def add(
        self,
        outputs: Mapping[str, Any],
        labels: Array | None,
        valid: int,
        reference: Mapping[str, Any] | None = None,
    ) -> None:
        """Add one batch, of which the first `valid` samples count.

        Args:
            outputs: The model's outputs.
            labels: What they should be, by the data; None without any.
            valid: Number of real samples.
            reference: The float model's outputs, which some metrics take where there are no labels;
                None where it does not run.

        Raises:
            InputError: outputs and labels do not fit the metric.
        """

    def merge(self, other: Self) -> None:
        """Add what was added to another one of the same options, behind what this one has.

        Metrics are dataclasses that keep what batches give in lists, of which the result is made in
        the end, so that it is the same however batches were divided.
        """
        for kept in fields(cast(Any, self)):
            if not kept.init:
                getattr(self, kept.name).extend(getattr(other, kept.name))

    @abstractmethod
    def result(self) -> MetricResult:
        """Return the metric over all batches added.

        Raises:
            InputError: no batch was added, or the user's metric fails.
        """


@cache
def available_metrics() -> Mapping[str, type[Metric]]:
    """Every metric by name: what the modules of this package hold."""
    package = importlib.import_module("onnxq.verify.metrics")
    kinds = kinds_in(package, Metric)  # type: ignore[type-abstract]
    return {kind.name: kind for kind in sorted(kinds, key=lambda kind: kind.name)}


def metric_kind(form: str) -> type[Metric] | None:
    """The kind of a metric that reports write as ``name{option=value}``; None of the user's own."""
    return available_metrics().get(form.partition("{")[0])
