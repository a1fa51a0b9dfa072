"""Methods that turn the float graph into an equivalent one that loses less when quantized."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from onnxq.ir import Graph
from onnxq.needs import Need
from onnxq.observe import Observations
from onnxq.passes.channels.groups import Groups, find_groups
from onnxq.precision import Precision
from onnxq.targets import Target
from onnxq.tune.method import Method


@dataclass(frozen=True)
class Subject:
    """What is to be transformed.

    Attributes:
        graph: The float graph after its float passes, and after transformations by others. Nodes
            and values have names of their own.
        target: Where the model is to run.
        precisions: The precisions that nodes may get, by the node's name; nodes that stay in float
            are not in it.
    """

    graph: Graph
    target: Target
    precisions: Mapping[str, Sequence[Precision]] = field(default_factory=dict)

    @cached_property
    def groups(self) -> Groups:
        """The channel groups of the graph."""
        return find_groups(self.graph)


@dataclass(frozen=True, eq=False)
class Change:
    """One equivalent transformation: which pass makes it, of which tensor, with which numbers.

    Attributes:
        kind: Name of the pass, a `onnxq.passes.channels.equivalent.Equivalent`, as
            ``scale-channels``.
        tensor: Name of the tensor in the graph of the subject.
        numbers: What the pass takes for it.
        nodes: Names of the nodes whose constants change.
        gain_db: By how much it lowers the error that it was chosen by.
    """

    kind: str
    tensor: str
    numbers: np.ndarray
    nodes: tuple[str, ...] = ()
    gain_db: float = 0.0


@dataclass(frozen=True)
class Transformation(Method):
    """A method that transforms the float graph before anything is observed for quantization.

    What follows, from ranges and sensitivity to other methods, sees the transformed graph.
    """

    @abstractmethod
    def refusal(self, subject: Subject) -> str:
        """Why it can do nothing for a graph in these precisions; empty if it can."""

    def needs(self, subject: Subject) -> Sequence[Need]:
        """What has to be observed first, in one pass over the data."""
        return ()

    @abstractmethod
    def transform(self, subject: Subject, observations: Observations) -> Sequence[Change]:
        """What to change, at most once for each kind and tensor; nothing where that gains nothing.

        Changes of one kind that follow each other are made at a time: all name tensors as they are
        in the graph of the subject. Those of another kind behind them find what these left.
        """
