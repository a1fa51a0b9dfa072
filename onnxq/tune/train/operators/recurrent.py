"""LSTM, GRU and RNN, step by step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

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


class _Recurrence:
    """What the three operators share: directions, layout, lengths, activations."""

    def __init__(self, node: Node, gates: int, functions: Sequence[str]) -> None:
        self.gates = gates
        self.hidden: int = attribute_value(node, "hidden_size")
        self.direction: str = attribute_value(node, "direction")
        self.batch_first = bool(attribute_value(node, "layout"))
        self.clip: float | None = attribute_value(node, "clip")
        count = 2 if self.direction == "bidirectional" else 1
        names = attribute_value(node, "activations") or list(functions) * count
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
        each = len(functions)
        self.functions = [made[at * each : (at + 1) * each] for at in range(count)]

    def clipped(self, x: Tensor) -> Tensor:
        """What activations read."""
        return x if self.clip is None else torch.clamp(x, -self.clip, self.clip)

    def run(
        self,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        lengths: Tensor | None,
        states: Sequence[Tensor | None],
        cell: Callable[[int], _Cell],
        input_bias: slice,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """All steps of all directions: every hidden state, the last, the last cell state.

        ``input_bias`` is the part of the bias that is added to what the input gives.
        """
        if self.batch_first:
            x, states = (
                x.transpose(0, 1),
                [None if s is None else s.transpose(0, 1) for s in states],
            )
        steps, batch = x.shape[:2]
        zeros = x.new_zeros(batch, self.hidden)
        every, last, last_cell = [], [], []
        for at in range(len(self.functions)):
            reverse = self.direction == "reverse" or at == 1
            gates = F.linear(x, weight[at], None if bias is None else bias[at][input_bias])
            hidden, held = (zeros if s is None else s[at] for s in states)
            step, made = cell(at), []
            for time in reversed(range(steps)) if reverse else range(steps):
                new_hidden, new_held = step(gates[time], hidden, held)
                given = new_hidden
                if lengths is not None:
                    alive = (time < lengths).reshape(-1, 1)
                    given = torch.where(alive, new_hidden, 0)
                    new_hidden = torch.where(alive, new_hidden, hidden)
                    new_held = torch.where(alive, new_held, held)
                hidden, held = new_hidden, new_held
                made.append(given)
            every.append(torch.stack(made[::-1] if reverse else made))
            last.append(hidden)
            last_cell.append(held)
        y, y_h, y_c = torch.stack(every, 1), torch.stack(last), torch.stack(last_cell)
        if self.batch_first:
            return y.permute(2, 0, 1, 3), y_h.transpose(0, 1), y_c.transpose(0, 1)
        return y, y_h, y_c


@operator("LSTM")
def _lstm(node: Node) -> Run:
    shared = _Recurrence(node, 4, ("Sigmoid", "Tanh", "Tanh"))
    coupled = bool(attribute_value(node, "input_forget"))
    count = len(node.outputs)

    def run(
        x: Tensor,
        weight: Tensor,
        recurrence: Tensor,
        bias: Tensor | None = None,
        lengths: Tensor | None = None,
        hidden: Tensor | None = None,
        held: Tensor | None = None,
        peepholes: Tensor | None = None,
    ) -> Any:
        size = 4 * shared.hidden
        joint = None if bias is None else bias[:, :size] + bias[:, size:]

        def cell(at: int) -> _Cell:
            f, g, h = shared.functions[at]
            peep = (0.0, 0.0, 0.0) if peepholes is None else peepholes[at].chunk(3)

            def step(gates: Tensor, hidden: Tensor, held: Tensor) -> tuple[Tensor, Tensor]:
                i, o, forget, c = (gates + F.linear(hidden, recurrence[at])).chunk(4, -1)
                i = f(shared.clipped(i + peep[0] * held))
                forget = 1 - i if coupled else f(shared.clipped(forget + peep[2] * held))
                held = forget * held + i * g(shared.clipped(c))
                o = f(shared.clipped(o + peep[1] * held))
                return o * h(shared.clipped(held)), held

            return step

        states = (hidden, held)
        return shared.run(x, weight, joint, lengths, states, cell, slice(None))[:count]

    return run


@operator("GRU")
def _gru(node: Node) -> Run:
    shared = _Recurrence(node, 3, ("Sigmoid", "Tanh"))
    reset_after = bool(attribute_value(node, "linear_before_reset"))
    count = len(node.outputs)

    def run(
        x: Tensor,
        weight: Tensor,
        recurrence: Tensor,
        bias: Tensor | None = None,
        lengths: Tensor | None = None,
        hidden: Tensor | None = None,
    ) -> Any:
        size = 3 * shared.hidden

        def cell(at: int) -> _Cell:
            f, g = shared.functions[at]
            r_z, r_r, r_h = recurrence[at].chunk(3)
            b_z, b_r, b_h = (0.0, 0.0, 0.0) if bias is None else bias[at][size:].chunk(3)

            def step(gates: Tensor, hidden: Tensor, held: Tensor) -> tuple[Tensor, Tensor]:
                z, r, h = gates.chunk(3, -1)
                z = f(shared.clipped(z + F.linear(hidden, r_z) + b_z))
                r = f(shared.clipped(r + F.linear(hidden, r_r) + b_r))
                if reset_after:
                    h = h + r * (F.linear(hidden, r_h) + b_h)
                else:
                    h = h + F.linear(r * hidden, r_h) + b_h
                return (1 - z) * g(shared.clipped(h)) + z * hidden, held

            return step

        states = (hidden, None)
        return shared.run(x, weight, bias, lengths, states, cell, slice(size))[:count]

    return run


@operator("RNN")
def _rnn(node: Node) -> Run:
    shared = _Recurrence(node, 1, ("Tanh",))
    count = len(node.outputs)

    def run(
        x: Tensor,
        weight: Tensor,
        recurrence: Tensor,
        bias: Tensor | None = None,
        lengths: Tensor | None = None,
        hidden: Tensor | None = None,
    ) -> Any:
        joint = None
        if bias is not None:
            joint = bias[:, : shared.hidden] + bias[:, shared.hidden :]

        def cell(at: int) -> _Cell:
            (f,) = shared.functions[at]

            def step(gates: Tensor, hidden: Tensor, held: Tensor) -> tuple[Tensor, Tensor]:
                return f(shared.clipped(gates + F.linear(hidden, recurrence[at]))), held

            return step

        states = (hidden, None)
        return shared.run(x, weight, joint, lengths, states, cell, slice(None))[:count]

    return run
