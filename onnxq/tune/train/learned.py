"""What a training learned, for another one of the same model in other bits to begin with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch

from onnxq.ir import Node
from onnxq.tune.train.quantized import QuantizedModule

State = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class Learned:
    """Floats that are rounded, and what normalizes behind them; steps belong to their bits.

    Attributes:
        numbers: Of weights and biases, by the node that reads them and its slot.
        norms: Of a BatchNormalization that lives, by the node that it is behind.
    """

    numbers: Mapping[tuple[str, int], torch.Tensor]
    norms: Mapping[str, State]

    @classmethod
    def of(cls, module: QuantizedModule) -> Learned:
        """What a module has now."""
        numbers = {
            (name, slot): _numbers(module, pair).detach().cpu().clone()
            for name, slot, pair in readers(module)
        }
        norms = {
            name: {key: value.detach().cpu().clone() for key, value in norm.state_dict().items()}
            for name, norm in module.norms.items()
        }
        return cls(numbers, norms)

    @torch.no_grad()
    def give(self, module: QuantizedModule) -> None:
        """Let a module begin with it, as far as a node is normalized in both or in neither."""
        for name, slot, pair in readers(module):
            held, own = self.numbers.get((name, slot)), _numbers(module, pair)
            alike = (name in self.norms) == (name in module.norms)
            if alike and held is not None and held.shape == own.shape:
                own.copy_(held)
        for name, norm in module.norms.items():
            if name in self.norms:
                norm.load_state_dict(self.norms[name])


def readers(module: QuantizedModule) -> Iterator[tuple[str, int, Node]]:
    """Who reads stored integers: node, slot, and the DequantizeLinear."""
    for pair in module.graph.nodes():
        source = pair.input(0)
        if pair.is_op("DequantizeLinear") and source is not None and source.is_constant:
            for reader, slot in pair.output.uses:
                yield reader.name, slot, pair


def _numbers(module: QuantizedModule, pair: Node) -> torch.nn.Parameter:
    integers = pair.inputs[0]
    assert integers is not None
    return module.numbers(integers)
