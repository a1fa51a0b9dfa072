"""LSTM, GRU and RNN, step by step."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, TypeAlias

import torch
import torch.nn.functional as F  # noqa: N812 - the name every torch program uses
from torch import Tensor

from onnxq.ir import Node, attribute_value
from onnxq.tune.train.operators.registry import Run, UnsupportedError, operator

_Function: TypeAlias = Callable[[Tensor], Tensor]
_Cell: TypeAlias = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
"""From what the input adds to the gates, the hidden and the cell state to the next states."""


def _function(name: str, alpha: float | None, beta: float | None) -> _Function:
    a, b = alpha, beta
    known: dict[str, _Function] = {
        "affine": lambda x: (1.0 if a is None else a) * x + (b or 0.0),
        "elu": lambda x: F.elu(x, 1.0 if a is None else a),
        "hardsigmoid": lambda x: torch.clamp(
            (0.2 if a is None else a) * x + (0.5 if b is None else b), 0.0, 1.0
        ),
        "leakyrelu": lambda x: F.leaky_relu(x, 0.01 if a is None else a),
        "relu": torch.relu,
        "scaledtanh": lambda x: (
            (1.0 if a is None else a) * torch.tanh((1.0 if b is None else b) * x)
        ),
        "sigmoid": torch.sigmoid,
        "softplus": F.softplus,
        "softsign": F.softsign,
        "tanh": torch.tanh,
        "thresholdedrelu": lambda x: F.threshold(x, 1.0 if a is None else a, 0.0),
    }
    if name.lower() not in known:
        raise UnsupportedError(f"has the activation '{name}'")
    return known[name.lower()]


_TAKE_ALPHA = ("affine", "elu", "hardsigmoid", "leakyrelu", "scaledtanh", "thresholdedrelu")
_TAKE_BETA = ("affine", "hardsigmoid", "scaledtanh")


class _Recurrence(ABC):
    """What the three operators share: directions, layout, lengths, activations.

    Class variables:
        activations: Their names where a node states none.
        splits_bias: Whether the part of the bias for the hidden state stays apart.
    """

    activations: ClassVar[tuple[str, ...]]
    splits_bias: ClassVar[bool] = False

    def __init__(self, node: Node) -> None:
        self.hidden: int = attribute_value(node, "hidden_size")
        self.direction: str = attribute_value(node, "direction")
        self.batch_first = bool(attribute_value(node, "layout"))
        self.clip: float | None = attribute_value(node, "clip")
        self.outputs = len(node.outputs)
        count = 2 if self.direction == "bidirectional" else 1
        names = attribute_value(node, "activations") or list(self.activations) * count
        alphas = iter(attribute_value(node, "activation_alpha") or ())
        betas = iter(attribute_value(node, "activation_beta") or ())
        made = [
            _function(
                name,
                next(alphas, None) if name.lower() in _TAKE_ALPHA else None,
                next(betas, None) if name.lower() in _TAKE_BETA else None,
            )
            for name in names
        ]
        each = len(self.activations)
        self.functions = [made[at * each : (at + 1) * each] for at in range(count)]

    @abstractmethod
    def cell(
        self, at: int, recurrence: Tensor, bias: Tensor | None, peepholes: Tensor | None
    ) -> _Cell:
        """A step in a direction.

        Args:
            at: Number of the direction.
            recurrence: Weight of the hidden state.
            bias: What is added for it, where that stays apart.
            peepholes: Weights of the cell state.
        """

    def clipped(self, x: Tensor) -> Tensor:
        """What activations read."""
        return x if self.clip is None else torch.clamp(x, -self.clip, self.clip)

    def run(
        self,
        x: Tensor,
        weight: Tensor,
        recurrence: Tensor,
        bias: Tensor | None = None,
        lengths: Tensor | None = None,
        hidden: Tensor | None = None,
        held: Tensor | None = None,
        peepholes: Tensor | None = None,
    ) -> Any:
        """All steps of all directions: every hidden state, the last, the last cell state."""
        states = [hidden, held]
        if self.batch_first:
            x = x.transpose(0, 1)
            states = [None if s is None else s.transpose(0, 1) for s in states]
        steps, batch = x.shape[:2]
        zeros = x.new_zeros(batch, self.hidden)
        every, last, last_cell = [], [], []
        for at in range(len(self.functions)):
            reverse = self.direction == "reverse" or at == 1
            given, apart = self._biases(None if bias is None else bias[at])
            gates = F.linear(x, weight[at], given)
            now, cell_state = (zeros if s is None else s[at] for s in states)
            peeps = None if peepholes is None else peepholes[at]
            step, made = self.cell(at, recurrence[at], apart, peeps), []
            for time in reversed(range(steps)) if reverse else range(steps):
                new, new_cell_state = step(gates[time], now, cell_state)
                shown = new
                if lengths is not None:
                    alive = (time < lengths).reshape(-1, 1)
                    shown = torch.where(alive, new, 0)
                    new = torch.where(alive, new, now)
                    new_cell_state = torch.where(alive, new_cell_state, cell_state)
                now, cell_state = new, new_cell_state
                made.append(shown)
            every.append(torch.stack(made[::-1] if reverse else made))
            last.append(now)
            last_cell.append(cell_state)
        y, y_h, y_c = torch.stack(every, 1), torch.stack(last), torch.stack(last_cell)
        if self.batch_first:
            y, y_h, y_c = y.permute(2, 0, 1, 3), y_h.transpose(0, 1), y_c.transpose(0, 1)
        return (y, y_h, y_c)[: self.outputs]

    def _biases(self, bias: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        """What is added to what the input gives, and what stays apart."""
        if bias is None:
            return None, None
        first, second = bias.chunk(2)
        return (first, second) if self.splits_bias else (first + second, None)


class _Lstm(_Recurrence):
    activations = ("Sigmoid", "Tanh", "Tanh")

    def __init__(self, node: Node) -> None:
        super().__init__(node)
        self._coupled = bool(attribute_value(node, "input_forget"))

    def cell(
        self, at: int, recurrence: Tensor, bias: Tensor | None, peepholes: Tensor | None
    ) -> _Cell:
        f, g, h = self.functions[at]
        peep = (0.0, 0.0, 0.0) if peepholes is None else peepholes.chunk(3)

        def step(gates: Tensor, hidden: Tensor, held: Tensor) -> tuple[Tensor, Tensor]:
            i, o, forget, c = (gates + F.linear(hidden, recurrence)).chunk(4, -1)
            i = f(self.clipped(i + peep[0] * held))
            forget = 1 - i if self._coupled else f(self.clipped(forget + peep[2] * held))
            held = forget * held + i * g(self.clipped(c))
            o = f(self.clipped(o + peep[1] * held))
            return o * h(self.clipped(held)), held

        return step


class _Gru(_Recurrence):
    activations = ("Sigmoid", "Tanh")
    splits_bias = True

    def __init__(self, node: Node) -> None:
        super().__init__(node)
        self._resets_after = bool(attribute_value(node, "linear_before_reset"))

    def cell(
        self, at: int, recurrence: Tensor, bias: Tensor | None, peepholes: Tensor | None
    ) -> _Cell:
        f, g = self.functions[at]
        r_z, r_r, r_h = recurrence.chunk(3)
        b_z, b_r, b_h = (0.0, 0.0, 0.0) if bias is None else bias.chunk(3)

        def step(gates: Tensor, hidden: Tensor, held: Tensor) -> tuple[Tensor, Tensor]:
            z, r, h = gates.chunk(3, -1)
            z = f(self.clipped(z + F.linear(hidden, r_z) + b_z))
            r = f(self.clipped(r + F.linear(hidden, r_r) + b_r))
            if self._resets_after:
                h = h + r * (F.linear(hidden, r_h) + b_h)
            else:
                h = h + F.linear(r * hidden, r_h) + b_h
            return (1 - z) * g(self.clipped(h)) + z * hidden, held

        return step


class _Rnn(_Recurrence):
    activations = ("Tanh",)

    def cell(
        self, at: int, recurrence: Tensor, bias: Tensor | None, peepholes: Tensor | None
    ) -> _Cell:
        (f,) = self.functions[at]

        def step(gates: Tensor, hidden: Tensor, held: Tensor) -> tuple[Tensor, Tensor]:
            return f(self.clipped(gates + F.linear(hidden, recurrence))), held

        return step


_CELLS: Mapping[str, Callable[[Node], _Recurrence]] = {
    "GRU": _Gru,
    "LSTM": _Lstm,
    "RNN": _Rnn,
}


@operator(*_CELLS)
def _recurrence(node: Node) -> Run:
    return _CELLS[node.op_type](node).run
