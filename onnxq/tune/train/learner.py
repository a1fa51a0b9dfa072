"""Losses of feeds, and their gradients: what every process of a training computes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn

from onnxq.ir import Context, Graph
from onnxq.ir.blocks import cuts
from onnxq.passes.weights.shift_biases import ShiftBiases
from onnxq.tune.train.executor import Executor
from onnxq.tune.train.norms import averaging
from onnxq.tune.train.objectives import Head, Objective, Tap, evaluating
from onnxq.tune.train.quantized import Grids, QuantizedModule
from onnxq.tune.train.samples import Feed, channels_last
from onnxq.tune.training import TrainOptions


@dataclass(frozen=True)
class Judgement:
    """How good a model is on some samples, as sums.

    Attributes:
        loss: Of all samples.
        samples: How many.
        right: Decisions that equal the labels.
        decided: Decisions; 0 where labels are not one class each.
    """

    loss: float = 0.0
    samples: int = 0
    right: int = 0
    decided: int = 0

    def __add__(self, other: Judgement) -> Judgement:
        """Of the samples of both."""
        loss, samples = self.loss + other.loss, self.samples + other.samples
        return Judgement(loss, samples, self.right + other.right, self.decided + other.decided)

    @property
    def score(self) -> float | None:
        """Share of right decisions."""
        return self.right / self.decided if self.decided else None


class Learner:
    """A module, and what it is to make small.

    Args:
        module: The module; it goes to the device.
        objective: The loss.
        device: Where to compute.
        mixed_precision: Compute products in bfloat16.
    """

    def __init__(
        self,
        module: QuantizedModule,
        objective: Objective,
        device: torch.device,
        mixed_precision: bool,
    ) -> None:
        self.module = module
        _move(module, device)
        self.device = device
        self._objective = objective
        self._mixes = mixed_precision

    def learn(self, feeds: Sequence[Feed], done: float, samples: int) -> float:
        """Leave gradients in the module's parameters, and give the loss that they are of.

        Args:
            feeds: Feeds of one update.
            done: Share of the training that is over.
            samples: Of the whole update, which a sample's loss is divided by.
        """
        self.module.progress(done)
        self.module.train()
        self.module.zero_grad()
        total = 0.0
        for feed in feeds:
            for norm in self.module.norms.values():
                norm.is_part = feed.is_part
            moved = feed.to(self.device)
            with self._precision():
                loss = self._objective.loss(moved, self.module(moved.feeds))
            part = loss * (feed.valid / samples)
            part.backward()
            total += float(part.detach())
        return total

    def judge(self, feeds: Iterable[Feed]) -> Judgement:
        """How good the module is as it will be emitted."""
        found = Judgement()
        with evaluating(self.module):
            for feed in feeds:
                moved = feed.to(self.device)
                outputs = self.module(moved.feeds)
                loss = float(self._objective.loss(moved, outputs)) * feed.valid
                decisions = self._objective.right(moved, outputs) or (0, 0)
                found += Judgement(loss, feed.valid, *decisions)
        return found

    @torch.no_grad()
    def average(self, feeds: Iterable[Feed]) -> None:
        """Give normalizations the statistics that the module has with its numbers of now."""
        self.module.train()
        with averaging(self.module.norms.values()) as another:
            for feed in feeds:
                another()
                self.module(feed.to(self.device).feeds)

    def _precision(self) -> AbstractContextManager[Any]:
        return torch.autocast(self.device.type, torch.bfloat16) if self._mixes else nullcontext()


def _move(module: nn.Module, device: torch.device) -> None:
    """Let a module compute on a device, with channels last."""
    module.to(device)
    for tensor in (*module.parameters(), *module.buffers()):
        tensor.data = channels_last(tensor.data)


@dataclass(frozen=True)
class Subject:
    """What a learner is made of.

    Attributes:
        source: The float graph.
        quantized: What a plan makes of it.
        grids: The integers that weights may have.
        heads: What the outputs decide.
        options: How to train.
        norms: Nodes behind which BatchNormalization is to live.
        shifts: What methods add to biases, by node.
    """

    source: Graph
    quantized: Graph
    grids: Grids
    heads: Sequence[Head]
    options: TrainOptions
    norms: Sequence[str] = ()
    shifts: Mapping[str, np.ndarray] = field(default_factory=dict)

    def learner(self, teacher: Executor, device: torch.device) -> Learner:
        """Make a learner.

        Args:
            teacher: Computes the float graph.
            device: Where to compute.

        Raises:
            InputError: a node cannot be computed in torch.
        """
        options, begun = self.options, self.source.copy()
        ShiftBiases(self.shifts).run(begun, Context())
        module = QuantizedModule(
            self.quantized,
            begun,
            grids=self.grids,
            learn_offsets=options.method == "lsq+",
            norms=self.norms,
        )
        _move(teacher, device)
        objective = self._objective(module, teacher)
        return Learner(module, objective, device, options.mixed_precision)

    def _objective(self, module: QuantizedModule, teacher: Executor) -> Objective:
        options = self.options
        taps = {}
        if options.features:
            known = {v.name for n in module.graph.nodes() for v in n.outputs if v is not None}
            outputs = set(teacher.outputs)
            for value in cuts(self.source):
                if value.producer is not None and value.name in known - outputs:
                    taps[value.name] = (Tap(), Tap())
            for name, (ours, theirs) in taps.items():
                teacher.hook(name, ours)
                module.executor.hook(name, theirs)
        has_teacher = options.loss != "task" or bool(taps)
        return Objective(
            options.loss, teacher if has_teacher else None, self.heads, taps, options.features
        )
