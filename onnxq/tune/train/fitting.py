"""Training a quantized graph, from float graph and data to what a plan holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from onnxq.data import Dataset
from onnxq.errors import InputError
from onnxq.ir import Graph
from onnxq.passes.notes import node_name
from onnxq.passes.static.operands import reads_weight
from onnxq.passes.static.placement import Placement
from onnxq.passes.tuned import BIAS, Tensors, Tuned
from onnxq.precision import parse_precision
from onnxq.precision.static import Static
from onnxq.precision.static_bits import StaticBits
from onnxq.progress import Progress
from onnxq.targets import Target
from onnxq.tune.train.augmentation import augmenting, image_of
from onnxq.tune.train.checkpoints import Checkpoints
from onnxq.tune.train.dtypes import to_torch
from onnxq.tune.train.executor import Executor
from onnxq.tune.train.learned import Learned
from onnxq.tune.train.learner import Subject
from onnxq.tune.train.objectives import Head, check_labels, evaluating
from onnxq.tune.train.places import Places
from onnxq.tune.train.quantized import Grid, Grids
from onnxq.tune.train.samples import Samples
from onnxq.tune.train.team import team
from onnxq.tune.train.trainer import Trainer, find_device
from onnxq.tune.training import (
    AUTO,
    FEWEST_UPDATES,
    NONE,
    TrainingFacts,
    TrainOptions,
)

_EPOCHS = 10
_MILD = ("flip", "crop")
"""Augmentations that are tried where none are named."""

_TRIED, _AGREEING = 256, 0.7
"""An augmentation is tried on so many images, and taken if so many are decided as before..."""

_SEEN, _OF_EACH = 8, 0.5
"""... and so many of those of each class that it was tried on so often."""


@dataclass(frozen=True)
class Fitted:
    """What training gives a plan.

    Attributes:
        tensors: By node, see `onnxq.passes.tuned`.
        ranges: Smallest and largest value of tensors.
        facts: How it went.
        learned: What another training in other bits may begin with.
        norms: How many layers had a BatchNormalization that lived.
    """

    tensors: Mapping[str, Tensors]
    ranges: Mapping[str, tuple[float, float]]
    facts: TrainingFacts
    learned: Learned
    norms: int = 0


class Lesson:
    """A float model and data to train with, checked before anything else takes time.

    Args:
        source: The float graph that a plan is applied to.
        data: Samples to train on; part of them is held out.
        options: How to train. The attribute of this name has what ``auto`` came to.

    Attributes:
        judged_on: What is held out to judge epochs by; None where samples are told apart that the
            data gives together.

    Raises:
        InputError: an operator has no gradients, the device is not there, or the labels are not
            for the model's outputs.
    """

    def __init__(self, source: Graph, data: Dataset, options: TrainOptions) -> None:
        options.check()
        self.options = options
        self._source = source
        self._device = find_device(options.device)
        self.teacher = Executor(source)
        inputs = [v for v in source.inputs if v.data is None]
        samples = Samples.of(data, inputs)
        self.first = samples.first
        with evaluating(self.teacher):
            check_labels(
                samples,
                options.loss,
                lambda batch: self.teacher({k: to_torch(a) for k, a in batch.feeds.items()}),
            )
        places = samples.drawn(options.held_out, options.seed)
        self._train, self._held_out = samples.split(places)
        self.judged_on = data.part(places) if samples.units == len(data.units) else None
        if options.augment == AUTO:
            self.options = options = replace(options, augment=self._suited() or NONE)
        names = () if options.augment == NONE else options.augment
        self._augment = augmenting(names, samples.first)
        if not options.epochs:
            updates = self._train.updates(options.batch_size)
            epochs = max(_EPOCHS, -(-FEWEST_UPDATES // updates))
            self.options = replace(options, epochs=epochs)

    def fit(
        self,
        quantized: Graph,
        placed: Placement,
        target: Target,
        precisions: Mapping[str, str],
        tuned: Tuned,
        heads: Sequence[Head],
        norms: Sequence[str],
        folder: Path | None,
        basis: Mapping[str, str],
        progress: Progress,
        begun: Learned | None = None,
    ) -> Fitted:
        """Train a quantized graph.

        Args:
            quantized: What a plan makes of the float graph.
            placed: Where integers begin and end in that.
            target: Where the model is to run.
            precisions: Of the nodes, by name.
            tuned: What methods gave them.
            heads: What the outputs decide.
            norms: Nodes behind which BatchNormalization is to live.
            folder: Where to keep checkpoints, and maybe go on from one; nowhere if None.
            basis: What checkpoints depend on beyond the options.
            progress: Told of epochs.
            begun: What was learned in other bits, to begin with.

        Raises:
            InputError: there is nothing to train, or no BatchNormalization that could live; also
                see `Trainer.run`, `Checkpoints` and `team`.
        """
        options = self.options
        checkpoints = Checkpoints(folder, {**options.basis(), **basis})
        shifts = {name: own[BIAS] for name, own in tuned.items() if BIAS in own}
        known = grids(precisions, placed, target)
        subject = Subject(self._source, quantized, known, heads, options, norms, shifts)
        own = subject.learner(self.teacher, self._device)
        places = Places(
            own.module, self._source, placed, target, learn_steps=options.method != "ste"
        )
        parameters = places.parameters()
        if not any((parameters.weights, parameters.biases, parameters.steps)):
            raise InputError(
                "nothing is left to train: no weight is stored as integers that a plan of static "
                "integers holds; take away some pins"
            )
        if norms and not own.module.norms:
            raise InputError(
                "no BatchNormalization can live: none is behind a layer that has integers with a "
                "scale for each channel, read by it alone, and a bias; leave --batch-norm out"
            )
        if own.module.norms:
            with own.module.measuring():
                own.judge(self._train.shown(options.batch_size, [options.seed]))
        if begun is not None:
            begun.give(own.module)
        with team(subject, own) as learner:
            trainer = Trainer(learner, parameters, options)
            facts = trainer.run(self._train, self._held_out, checkpoints, progress, self._augment)
        tensors = {name: _added(tuned.get(name, {}), t) for name, t in places.tensors().items()}
        learned = Learned.of(own.module)
        return Fitted(tensors, places.ranges(), facts, learned, len(own.module.norms))

    def _suited(self) -> tuple[str, ...]:
        """The augmentations under which the float model decides most images as it did before."""
        first = self.first
        if image_of(first) is None or (first.labels is not None and first.labels.ndim != 1):
            return ()
        (parts, *_) = next(self._train.epoch(np.random.RandomState(0), _TRIED))

        def scores(*names: str) -> torch.Tensor:
            feed = self._train.feed(parts, augmenting(names, first), (0,))
            return next(iter(self.teacher(feed.feeds).values()))

        with evaluating(self.teacher):
            plain = scores()
            if plain.ndim != 2 or plain.shape[1] < 2:
                return ()
            return tuple(n for n in _MILD if _agree(plain.argmax(1), scores(n).argmax(1)))


def _agree(before: torch.Tensor, after: torch.Tensor) -> bool:
    """Whether an augmentation leaves most decisions as they were, in every class."""
    stay = torch.eq(before, after).double()
    classes, own = before.unique(return_inverse=True)
    seen, staying = (
        torch.zeros(len(classes), dtype=stay.dtype, device=stay.device).index_add(0, own, each)
        for each in (torch.ones_like(stay), stay)
    )
    enough = (staying >= _OF_EACH * seen) | (seen < _SEEN)
    return bool(stay.mean() >= _AGREEING) and bool(enough.all())


def _added(begun: Tensors, learned: Tensors) -> Tensors:
    """What a node has in the end: what is added to its bias comes on top of what a method adds."""
    shifts = [own[BIAS] for own in (begun, learned) if BIAS in own]
    return {**begun, **learned, **({BIAS: sum(shifts[1:], shifts[0])} if shifts else {})}


def grids(precisions: Mapping[str, str], placed: Placement, target: Target) -> Grids:
    """The integers that the weights of nodes may have: other constants have those of their type."""
    found = {}
    for node, rule in placed.nodes.items():
        name = node_name(node)
        if rule.weight is None or name not in precisions or not reads_weight(node, rule):
            continue
        precision = parse_precision(precisions[name])
        if isinstance(precision, Static):
            low, high = precision.quantizer(target).bounds
            is_binary = isinstance(precision, StaticBits) and precision.weight == "binary"
            found[name, rule.weight] = Grid(int(low), int(high), is_binary)
    return found
