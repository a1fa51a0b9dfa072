"""The loop: updates, epochs, the best of them, and going on where it was broken off."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from onnxq.errors import InputError
from onnxq.progress import Progress
from onnxq.tune.train.augmentation import Augment
from onnxq.tune.train.averages import MovingAverages
from onnxq.tune.train.checkpoints import Checkpoints, State
from onnxq.tune.train.learner import Learner
from onnxq.tune.train.norms import lives
from onnxq.tune.train.samples import Samples, weighted
from onnxq.tune.train.schedules import factor
from onnxq.tune.train.team import LostProcessError
from onnxq.tune.training import NONE, EpochFacts, TrainingFacts, TrainOptions

_MOMENTUM = 0.9

_SHARED = 0.1
"""Steps and biases learn so much slower than weights: each moves many numbers at once. With
cifar_resnet20 in 2 and 2 bits biases as fast as weights lead to 33 % of right decisions."""

_DEGREES = {"adamw": 1, "sgd": 2}
"""What makes an update relative: Adam's is the rate itself, whatever the size, and has to be
multiplied by it; a gradient is the smaller the larger what it is of, and takes the square."""

Sized = tuple[nn.Parameter, torch.Tensor]
"""A parameter, and the size that its updates are relative to."""


@dataclass(frozen=True)
class Parameters:
    """What is trained, with the sizes that updates are relative to.

    Attributes:
        weights: With weight decay; a size for each channel.
        biases: Without.
        steps: Positive numbers.
    """

    weights: Sequence[Sized]
    biases: Sequence[Sized]
    steps: Sequence[Sized]


class Trainer:
    """Trains a module; see `run`."""

    def __init__(self, learner: Learner, parameters: Parameters, options: TrainOptions) -> None:
        self._learner = learner
        self._module = learner.module
        self._options = options
        self._decaying = [p for p, _ in parameters.weights]
        rest, degree = [*parameters.biases, *parameters.steps], _DEGREES[options.optimizer]
        self._factors = [
            *((p, size**degree) for p, size in parameters.weights),
            *((p, _SHARED * size**degree) for p, size in rest),
        ]
        trained = [p for p, _ in self._factors]
        self._optimizer: torch.optim.Optimizer = (
            torch.optim.Adam(trained, lr=options.lr)
            if options.optimizer == "adamw"
            else torch.optim.SGD(trained, lr=options.lr, momentum=_MOMENTUM, nesterov=True)
        )
        self._fresh = copy.deepcopy(self._optimizer.state_dict())
        self._averages = MovingAverages(trained if options.average else (), options.average)

    def run(
        self,
        train: Samples,
        held_out: Samples,
        checkpoints: Checkpoints,
        progress: Progress,
        augment: Augment | None = None,
    ) -> TrainingFacts:
        """Train; the module ends with the numbers of the best epoch.

        The model as it is at the beginning counts as an epoch: what is no better is not kept.

        Args:
            train: What is trained on.
            held_out: What says which epoch was best.
            checkpoints: Where to keep the state, and maybe one to go on from.
            progress: Told of epochs.
            augment: Changes feeds at random.

        Raises:
            InputError: a loss is not finite; the best epoch stays as a checkpoint. Or a process
                that computes a share ended; what was learned so far stays as one.
        """
        options, started = self._options, time.perf_counter()
        per_epoch = train.updates(options.batch_size)
        whole = options.epochs * per_epoch
        found = checkpoints.load()
        state = self._begun(held_out) if found is None else self._restored(found)
        while not self._is_over(state):
            # An epoch is over when it was judged, which is the last that can be broken off.
            epoch = len(state["history"]) - 1
            done = state["step"] - epoch * per_epoch
            progress.stage(_told(epoch, options.epochs, state["history"]), per_epoch)
            order = np.random.RandomState([options.seed, epoch])
            updates = list(train.epoch(order, options.batch_size, options.accumulate))
            for parts in updates[done:]:
                try:
                    loss, samples = self._update(train, parts, state["step"], per_epoch, augment)
                except LostProcessError:
                    self._keep(state, checkpoints, started)
                    raise
                if not math.isfinite(loss):
                    self._keep(self._best_of(state, per_epoch), checkpoints, started)
                    when = f"in update {state['step'] + 1} (epoch {epoch + 1})"
                    raise _not_finite(loss, when, state)
                state["step"] += 1
                state["loss"] += loss * samples
                state["samples"] += samples
                if lives((state["step"] - 1) / whole) and not lives(state["step"] / whole):
                    self._measure(train, state["step"])
                progress.advance(state["step"] - epoch * per_epoch)
                is_last = state["step"] % per_epoch == 0
                if not is_last and state["step"] % options.checkpoint_every == 0:
                    self._keep(state, checkpoints, started)
            mean = state["loss"] / max(state["samples"], 1)
            try:
                with self._averages.in_place(self._module.statistics):
                    if lives(state["step"] / whole):
                        self._measure(train, state["step"])
                    held_out_loss = self._judge(state, held_out, epoch + 1, mean)
            except LostProcessError:
                self._keep(state, checkpoints, started)
                raise
            if not math.isfinite(held_out_loss):
                self._keep(self._best_of(state, per_epoch), checkpoints, started)
                raise _not_finite(held_out_loss, f"on held-out data after epoch {epoch + 1}", state)
            state["loss"], state["samples"] = 0.0, 0
            self._keep(state, checkpoints, started)
        self._module.load_state_dict(state["best"]["module"])
        self._module.eval()
        history = tuple(EpochFacts(**epoch) for epoch in state["history"])
        return TrainingFacts(
            options.method,
            options.loss,
            len(history) - 1,
            state["step"],
            state["best"]["epoch"],
            len(train),
            state["seconds"] + time.perf_counter() - started,
            str(self._learner.device),
            history,
            () if options.augment == NONE else options.augment,
        )

    def _begun(self, held_out: Samples) -> State:
        state: State = {"step": 0, "loss": 0.0, "samples": 0, "seconds": 0.0, "history": []}
        loss = self._judge(state, held_out, 0, None)
        if not math.isfinite(loss):
            raise InputError(
                f"the loss is {loss} before training; look for labels or outputs of the model that "
                "are not finite"
            )
        return state

    def _restored(self, state: State) -> State:
        self._module.load_state_dict(state["module"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._averages.load(state["averages"])
        torch.set_rng_state(state["random"])
        return state

    def _keep(self, state: State, checkpoints: Checkpoints, started: float) -> None:
        held = {
            **state,
            "seconds": state["seconds"] + time.perf_counter() - started,
            "module": self._module.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "averages": self._averages.numbers,
            "random": torch.get_rng_state(),
        }
        checkpoints.save(held)
        checkpoints.log([EpochFacts(**epoch) for epoch in state["history"]])

    def _best_of(self, state: State, per_epoch: int) -> State:
        """The state after the best epoch, with an optimizer that remembers nothing.

        What made the loss infinite may be in the numbers since long before.
        """
        self._module.load_state_dict(state["best"]["module"])
        self._optimizer.load_state_dict(self._fresh)
        self._averages.begin()
        epoch = state["best"]["epoch"]
        history = state["history"][: epoch + 1]
        return {**state, "step": epoch * per_epoch, "loss": 0.0, "samples": 0, "history": history}

    def _is_over(self, state: State) -> bool:
        options, epochs = self._options, len(state["history"]) - 1
        waited = epochs - state["best"]["epoch"]
        is_stuck = options.patience > 0 and waited >= options.patience
        return is_stuck or epochs >= options.epochs

    def _update(
        self,
        train: Samples,
        parts: Sequence[Sequence[int]],
        step: int,
        per_epoch: int,
        augment: Augment | None,
    ) -> tuple[float, int]:
        """One update, none where the loss is not finite; gives its mean loss and its samples."""
        options = self._options
        done = step / (options.epochs * per_epoch)
        (group,) = self._optimizer.param_groups
        group["lr"] = lr = options.lr * factor(options.schedule, done, options.warmup)
        feeds = weighted(train.feed(p, augment, (options.seed, step)) for p in parts)
        count = sum(feed.valid for feed in feeds)
        total = self._learner.learn(feeds, done, count)
        if not math.isfinite(total):
            return total, count
        with torch.no_grad():
            for weight in self._decaying:
                weight.mul_(1 - lr * options.weight_decay)
            before = [p.detach().clone() for p, _ in self._factors]
            self._optimizer.step()
            for (parameter, by), old in zip(self._factors, before, strict=True):
                torch.lerp(old, parameter, by, out=parameter)
        self._averages.move(step + 1)
        return total, count

    def _measure(self, train: Samples, step: int) -> None:
        """Let normalizations have the statistics of the module as it is."""
        if self._module.norms:
            options = self._options
            self._learner.average(train.shown(options.batch_size, [options.seed, step]))

    def _judge(self, state: State, held_out: Samples, epoch: int, loss: float | None) -> float:
        """Note what an epoch came to, keep its numbers if it is the best so far; gives its loss."""
        every = held_out.epoch(None, self._options.batch_size, 1)
        found = self._learner.judge(held_out.feed(part) for parts in every for part in parts)
        lr = self._optimizer.param_groups[0]["lr"]
        facts = EpochFacts(epoch, loss, found.loss / found.samples, found.score, lr)
        best: dict[str, Any] | None = state.get("best")
        state["history"] = [*state["history"], asdict(facts)]
        key = [facts.score or 0.0, -facts.held_out_loss]
        if best is None or key > best["key"]:
            held = {k: v.detach().clone() for k, v in self._module.state_dict().items()}
            state["best"] = {"epoch": epoch, "key": key, "module": held}
        return facts.held_out_loss


def _not_finite(loss: float, when: str, state: State) -> InputError:
    return InputError(
        f"the loss is {loss} {when}; take a smaller --lr: with --resume, training goes on from the "
        f"best epoch so far, {state['best']['epoch']}"
    )


def find_device(name: str) -> torch.device:
    """The device to train on.

    Raises:
        InputError: torch has no such device here.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).cpu()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise InputError(
            f"there is no device '{name}' that torch could train on here; leave --device out, or "
            "say cpu"
        ) from error
    return device


def _told(epoch: int, epochs: int, history: Sequence[dict[str, Any]]) -> str:
    """What progress says: the epoch, and what the one before came to."""
    last = EpochFacts(**history[-1])
    score = "" if last.score is None else f", {last.score:.2%} held out"
    return f"training, epoch {epoch + 1} of {epochs} (loss {last.held_out_loss:.4g}{score})"
