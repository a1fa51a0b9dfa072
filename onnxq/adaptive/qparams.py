"""Other qparams of a quantized model's activations: choosing them, and writing them.

Other qparams are other constants, so they need another session. Scales that are inputs with
defaults would not, but cost the integer kernels: with onnxruntime 1.32 (one thread, AVX512-VNNI)
cifar_resnet20 then has 0 of 21 QLinearConv and takes 4.0 times as long, 1.9 times as long as in
float, and cifar_mobilenet 0 of 25 and 5.3 times; the one scale of what is fed to the model costs
one convolution's kernel. 1.24.1 keeps all kernels of cifar_resnet20 if zero-points stay constants
(1.0 times), 11 of 21 if not (3.2 times), and 8 of 25 of cifar_mobilenet either way (4.9 times).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from onnxq.adaptive.deployment import TensorQParams
from onnxq.adaptive.quantized import (
    FEWEST_STEPS,
    Quantized,
    Quantizer,
    Reader,
    bias_of,
    gate_ends,
    read,
)
from onnxq.errors import InputError
from onnxq.ir import DataType, Graph, Node, Value
from onnxq.observe import Statistics
from onnxq.observe.calibrators import Calibrator
from onnxq.passes.nodes import added
from onnxq.quant import bias_qparams, qparams_from_range

_WHOLE = 1e-3
"""How far from an integer a number of steps may be that has to be whole."""


def requantized(graph: Graph, changes: Mapping[str, TensorQParams]) -> Graph:
    """A copy of a QDQ model with other qparams of activations; weights stay as they are.

    Tensors that share their qparams with one that changes change with it. What reads the integers
    of one with another scale and zero-point goes along, and so do the ends between which they are
    clipped. Biases are rescaled from their stored integers: they are what rounding the float biases
    to the new scale gives, to one unit of the coarser of the two scales, so that always those of
    the model as it was made are to be rescaled.

    Args:
        graph: The quantized model, which is left as it is.
        changes: By `Quantizer.tensor`.

    Raises:
        InputError: the model does not quantize such a tensor, its qparams cannot change, or not to
            these.
    """
    graph = graph.copy()
    found = read(graph)
    for tensor, wanted in _spread(found, changes).items():
        _check(found[tensor], wanted)
        _Writing(found[tensor], wanted).run()
    return graph


def fresh(
    seen: Mapping[str, Statistics], known: Mapping[str, Quantizer], calibrator: Calibrator
) -> dict[str, TensorQParams]:
    """The qparams that a calibrator chooses from what was seen, where they are not those there are.

    They are those of `insert-qdq` for the same ranges, but that a scale is not so small that biases
    leave int32, and that a tensor of which a line (see `onnxq.passes.static.lines`) reads the very
    integers has a scale that makes a whole number of steps of its offset.

    Args:
        seen: Statistics of the float model's tensors, by name: those of `Quantizer.root`.
        known: See `quantizers`.
        calibrator: Chooses ranges.

    Returns:
        Changes, see `requantized`. Tensors are left out that were not seen, hold numbers that are
        not finite, or cannot change.
    """
    changes = {}
    for tensor, own in known.items():
        statistics = seen.get(own.root)
        if own.fixed or statistics is None or not statistics.is_finite:
            continue
        low, high = calibrator.range(statistics, own.format, own.scheme)
        chosen = _chosen(own, max(low, own.lowest), min(high, own.highest))
        if chosen is not None and chosen != own.qparams:
            changes[tensor] = chosen
    return changes


def _chosen(own: Quantizer, low: float, high: float) -> TensorQParams | None:
    """The qparams of a range, None where there are none that will do."""
    if own.whole:
        return _whole(own, min(low, 0.0), max(high, 0.0))
    made = qparams_from_range(low, high, own.format, own.scheme, name=own.tensor)
    if float(made.scale) < own.least_scale:
        wider = own.least_scale / float(made.scale) * (1 + 1e-6)
        made = qparams_from_range(low * wider, high * wider, own.format, own.scheme)
    return TensorQParams(float(made.scale), int(made.zero_point))


def _whole(own: Quantizer, low: float, high: float) -> TensorQParams | None:
    """Qparams that hold a range and the zero of a line, which is a whole number of steps away."""
    distance = abs(own.whole)
    low, high = min(low, -own.whole), max(high, -own.whole)
    steps = math.floor(distance * (own.format.levels - 1) / (high - low) + _WHOLE)
    if own.least_scale:
        steps = min(steps, math.floor(distance / own.least_scale))
    if steps < FEWEST_STEPS:
        return None
    scale = float(np.float32(distance / steps))
    return TensorQParams(scale, int(own.format.qmin) + round(-low / scale))


def _spread(
    found: Mapping[str, Quantized], changes: Mapping[str, TensorQParams]
) -> dict[str, TensorQParams]:
    """The changes of all tensors, those included that share their qparams with one that changes."""
    by_group: dict[tuple[str, str], tuple[str, TensorQParams]] = {}
    for tensor, wanted in changes.items():
        own = found.get(tensor)
        if own is None:
            raise InputError(
                f"the model quantizes no tensor '{tensor}'; it cannot get other qparams"
            )
        first, known = by_group.setdefault((own.root, own.format.name), (tensor, wanted))
        if known != wanted:
            raise InputError(f"'{first}' and '{tensor}' share their qparams; give both the same")
    groups = {tensor: (own.root, own.format.name) for tensor, own in found.items()}
    return {t: by_group[group][1] for t, group in groups.items() if group in by_group}


def _check(found: Quantized, wanted: TensorQParams) -> None:
    """Refuse qparams that the tensor cannot have."""
    known = found.described()
    if known.fixed:
        raise InputError(f"the qparams of '{found.tensor}' are fixed: {known.fixed}")
    scale, zero = float(np.float32(wanted.scale)), wanted.zero_point
    low, high = found.format.qmin, found.format.qmax
    if not (math.isfinite(scale) and scale > 0 and low <= zero <= high):
        raise InputError(
            f"'{found.tensor}' cannot have scale {scale:g} and zero-point {zero}: the scale has "
            f"to be above 0, the zero-point within {found.format.name}"
        )
    if scale < known.least_scale:
        raise InputError(
            f"'{found.tensor}' cannot have scale {scale:g}: biases behind it would leave int32; "
            f"give at least {known.least_scale:g}"
        )
    steps = known.whole / scale
    if abs(steps - round(steps)) > _WHOLE or not low <= zero - round(steps) <= high:
        raise InputError(
            f"'{found.tensor}' cannot have scale {scale:g} and zero-point {zero}: a line of it "
            f"reads its very integers, and its zero, {-known.whole:g}, is none of them"
        )


class _Writing:
    """Gives one tensor of a model other qparams."""

    def __init__(self, found: Quantized, wanted: TensorQParams) -> None:
        self._found = found
        self._wanted = replace(wanted, scale=float(np.float32(wanted.scale)))
        self._constants: dict[tuple[Graph, str, bytes], Value] = {}

    def run(self) -> None:
        found, wanted = self._found, self._wanted
        for node in found.nodes:
            self._write(node, wanted)
        for reader in found.readers:
            if found.is_direct(reader):
                own = wanted
            else:
                scale = np.float32(wanted.scale * (reader.qparams.scale / found.qparams.scale))
                steps = round(found.distance(reader) / wanted.scale)
                own = TensorQParams(float(scale), wanted.zero_point - steps)
                if found.is_gate(reader):
                    self._clip(reader, gate_ends(own, found.format))
            self._write(reader.node, own)
            for use in reader.node.output.uses:
                bias = bias_of(use.node) if use.slot == 0 else None
                if bias is not None:
                    self._rescale(use.node, bias, reader.qparams.scale, own.scale)

    def _write(self, node: Node, own: TensorQParams) -> None:
        storage = self._found.format.storage
        shapes = [v.numpy().shape if v is not None else () for v in (node.input(1), node.input(2))]
        self._set(node, 1, np.full(shapes[0], own.scale, np.float32))
        if own.zero_point or node.input(2) is not None:
            self._set(node, 2, np.full(shapes[1], own.zero_point, storage))

    def _clip(self, reader: Reader, ends: tuple[int, int]) -> None:
        """Clip the integers that a gate reads, by a Clip of its own if there was no need before."""
        format, clip = self._found.format, reader.clip
        if clip is None:
            if ends[0] <= format.qmin and ends[1] >= format.qmax:
                return
            integers, name = reader.node.inputs[0], f"{reader.node.output.name}_clip"
            graph, dtype = reader.node.graph, DataType(format.onnx_dtype)
            clipped = added(graph, "Clip", [integers], name, dtype, reader.node.output.shape)
            reader.node.set_input(0, clipped)
            clip = clipped.producer
        assert clip is not None
        for slot, end in enumerate(ends, 1):
            self._set(clip, slot, np.asarray(end, format.storage))

    def _rescale(self, node: Node, bias: Node, before: float, after: float) -> None:
        """Give a bias the scale of its products."""
        stored, scale = bias.inputs[:2]
        assert stored is not None and scale is not None
        weight = self._weight_scale(node, scale.numpy(), before)
        made = bias_qparams(after, weight, name=node.output.name).scale
        numbers = np.rint(stored.numpy() * (scale.numpy().astype(np.float64) / made))
        if len(bias.output.uses) > 1:
            # Others that read it read other tensors, maybe.
            copied = node.graph.add(
                *("DequantizeLinear", bias.inputs, bias.attributes),
                outputs=[node.graph.fresh_name(bias.output.name)],
                types=[bias.output.type],
            )
            node.set_input(2, copied.output)
            bias = copied
        self._set(bias, 0, numbers.astype(np.int32))
        self._set(bias, 1, made)

    def _weight_scale(self, node: Node, scale: np.ndarray, before: float) -> np.ndarray:
        """The scale of a node's weight, which that of the bias is the product with."""
        weight = node.input(1)
        made = None if weight is None else weight.producer
        found = made.input(1) if made is not None and made.is_op("DequantizeLinear") else None
        if found is not None and found.is_constant:
            numbers = found.numpy()
            if np.array_equal(np.float32(before) * numbers, scale):
                return numbers
        return (scale.astype(np.float64) / before).astype(np.float32)

    def _set(self, node: Node, slot: int, data: np.ndarray[Any, Any]) -> None:
        """Let a node read a constant, the same one for the same numbers."""
        old = node.input(slot)
        key = (node.graph, f"{data.dtype}{data.shape}", data.tobytes())
        known = self._constants.get(key)
        if known is None:
            node.graph.set_constant(node, slot, data)
            value = node.inputs[slot]
            assert value is not None
            self._constants[key] = value
            return
        node.set_input(slot, known)
        if old is not None and old is not known and not old.is_used:
            old.graph.discard(old)
