"""What a target computes on integers: which operators, with which formats and sharing.

A target is a table, one TOML file beside this module.
"""

from __future__ import annotations

import platform
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

from onnxq.errors import InputError
from onnxq.quant.formats import FORMATS, Format
from onnxq.quant.scheme import PER_TENSOR, ZERO_POINT, Granularity, Scheme, per_channel

Role = Literal["compute", "follow", "share", "absorb", "residual"]
"""What an operator is to quantization.

- ``compute``: the reason to quantize; its integer kernel is faster than the float one.
- ``follow``: has an integer kernel worth using between integer tensors, with its own qparams.
- ``share``: moves values about without changing them; output and input share their qparams.
- ``absorb``: a clipping operator that the requantization of the operator before it can do.
- ``residual``: an addition that is fused into the computing operator whose result it reads, if
  its other input is an integer.
"""

BiasRule = Literal["int32", "float"]
"""How biases of computing operators are stored: as int32 with the scale of input times weight, or
as the floats they are."""

OutputRule = Literal["quantized", "float"]
"""Whether the integer kernel of a ``compute`` operator must give integers or may give floats."""


Form = Literal["", "saturating-add"]
"""Equal forms that runtimes have integer kernels for.

``saturating-add``: HardSigmoid as the Add of a constant whose output is quantized with scale
1/255 from 0 on: saturation clips. HardSwish as its product with that.
"""


@dataclass(frozen=True)
class OperatorRule:
    """How one operator is quantized on a target.

    Attributes:
        op_type: Operator of the default domain.
        role: See `Role`.
        activations: Input slots that hold activations; empty stands for all inputs.
        weight: Input slot of the weight, None if there is none.
        two_activations: Whether the weight may also be an activation.
        bias: Input slot of the bias, which is stored as int32; None if there is none.
        channel_axis: Axis of the weight's output channels; ``operator`` where it depends on
            the operator's attributes (Gemm's transB).
        per_channel: Whether the weight may have a scale for each output channel, where the target
            has such at all.
        output: See `OutputRule`.
        range: Smallest and largest value of the integer result, where runtimes want the same ones
            whatever the data.
        range_16bit: The same where it is of 16 bits.
        attributes: Attribute values without which the integer kernel does not apply.
        broken_by: Attributes that, when set, break the integer kernel. Runtimes fuse the operator
            to it wherever a pair stands on both sides, so none may stand behind it.
        constant_inputs: Whether other inputs than the weight may be constant.
        form: Another form in which it is written in integers, see `Form`; as it is if empty.
        minimum_opset: Lowest opset in which the operator takes integer tensors.
    """

    op_type: str
    role: Role
    activations: tuple[int, ...] = ()
    weight: int | None = None
    two_activations: bool = False
    bias: int | None = None
    channel_axis: int | Literal["operator"] = 0
    per_channel: bool = True
    output: OutputRule = "quantized"
    range: tuple[float, float] | None = None
    range_16bit: tuple[float, float] | None = None
    attributes: Mapping[str, Any] = field(default_factory=dict)
    broken_by: tuple[str, ...] = ()
    constant_inputs: bool = False
    form: Form = ""
    minimum_opset: int = 1


@dataclass(frozen=True)
class Target:
    """A place to run models: its formats, schemes and operators.

    Attributes:
        name: As on the command line.
        description: One line for people.
        provider: Short name of the onnxruntime execution provider to measure with.
        activation_format: Format of activations.
        activation_scheme: Scheme of activations, per tensor.
        weight_format: Format of weights.
        weight_scheme: Scheme of weights.
        weight_per_channel: Whether weights have a scale for each output channel.
        bias: See `BiasRule`.
        everything: Whether every operator with a rule is quantized wherever it stands, because
            floats do not run there or have to leave the device. Otherwise operators that follow
            are only between others that compute on integers.
        passes: Float passes, in text form, that bring the graph into the forms this target
            computes fastest on integers; empty if there are none.
        precisions: What a search over precisions chooses from here.
        operators: Rules by operator type.
        reasons: Why operators that one might expect are left in float here.
    """

    name: str
    description: str
    provider: str
    activation_format: Format
    activation_scheme: Scheme
    weight_format: Format
    weight_scheme: Scheme
    weight_per_channel: bool
    bias: BiasRule
    everything: bool
    passes: str
    precisions: tuple[str, ...]
    operators: Mapping[str, OperatorRule]
    reasons: Mapping[str, str]

    @property
    def has_integer_kernels(self) -> bool:
        """Whether activations in integers make anything faster here."""
        return not {"int8", "int16-act"}.isdisjoint(self.precisions)

    @property
    def opset(self) -> int:
        """Lowest opset that expresses the formats."""
        return max(
            self.activation_format.opset,
            self.weight_format.opset,
            self.weight_granularity(0).opset,
        )

    def activation_format_of(self, bits: int) -> Format:
        """Format of activations of 8 or 16 bits: the target's own, or an unsigned one."""
        own = self.activation_format
        return own if own.bits == bits else FORMATS[f"uint{bits}"]

    def scheme_of(self, format: Format) -> Scheme:
        """Scheme of activations in a format, zero-point where it is not the target's own."""
        return self.activation_scheme if format == self.activation_format else ZERO_POINT

    def weight_granularity(self, axis: int | None) -> Granularity:
        """Granularity of a weight whose output channels lie on ``axis``, if on one at all."""
        return per_channel(axis) if self.weight_per_channel and axis is not None else PER_TENSOR


@cache
def load_target(name: str) -> Target:
    """The table of a target; ``auto`` is the processor this program runs on.

    Raises:
        InputError: there is no target of that name.
    """
    if name == "auto":
        name = _this_processor()
    if name not in available_targets():
        raise InputError(
            f"there is no target '{name}'; available: auto, {', '.join(available_targets())}"
        )
    return _parse(name, _table(name))


@cache
def available_targets() -> tuple[str, ...]:
    """Names of the targets there are tables for."""
    folder = files("onnxq.targets")
    return tuple(
        sorted(e.name.removesuffix(".toml") for e in folder.iterdir() if e.name.endswith(".toml"))
    )


_CPUINFO = Path("/proc/cpuinfo")
_DOT_PRODUCTS = frozenset({"avx512_vnni", "avx_vnni"})


def _this_processor() -> str:
    if platform.machine().lower() in ("arm64", "aarch64"):
        return "cpu-arm"
    flags = _processor_flags()
    return "cpu-x64-avx2" if flags and not flags & _DOT_PRODUCTS else "cpu-x64"


def _processor_flags() -> frozenset[str]:
    """What Linux says that all processors here can do; nothing if it does not say."""
    try:
        text = _CPUINFO.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return frozenset()
    lines = [line.partition(":") for line in text.splitlines()]
    flags = [frozenset(value.split()) for key, _, value in lines if key.strip() == "flags"]
    return frozenset.intersection(*flags) if flags else frozenset()


def _table(name: str) -> dict[str, Any]:
    """A target's entries over those of the target it ``extends``, ``without`` some operators."""
    source = files("onnxq.targets") / f"{name}.toml"
    own = tomllib.loads(source.read_text(encoding="utf-8"))
    if "extends" not in own:
        return own
    table = _table(own.pop("extends"))
    for key, value in own.items():
        table[key] = {**table[key], **value} if key == "operators" else value
    for op_type in table.pop("without", []):
        del table["operators"][op_type]
    return table


def _parse(name: str, table: dict[str, Any]) -> Target:
    activation, weight = table["activation"], table["weight"]
    return Target(
        name=name,
        description=table["description"],
        provider=table["provider"],
        activation_format=FORMATS[activation["format"]],
        activation_scheme=_scheme(activation),
        weight_format=FORMATS[weight["format"]],
        weight_scheme=_scheme(weight),
        weight_per_channel=weight["per_channel"],
        bias=table.get("bias", "int32"),
        everything=table.get("everything", False),
        passes=table["passes"],
        precisions=tuple(table["precisions"]),
        operators={
            op_type: _rule(op_type, fields) for op_type, fields in table["operators"].items()
        },
        reasons=table.get("reasons", {}),
    )


def _scheme(table: dict[str, Any]) -> Scheme:
    options = {k: v for k, v in table.items() if k not in ("format", "scheme", "per_channel")}
    return Scheme(symmetric=table["scheme"] == "absmax", **options)


def _rule(op_type: str, fields: dict[str, Any]) -> OperatorRule:
    fields = dict(fields)
    for name in ("activations", "broken_by"):
        fields[name] = tuple(fields.get(name, ()))
    for name in ("range", "range_16bit"):
        if name in fields:
            low, high = fields[name]
            fields[name] = (float(low), float(high))
    return OperatorRule(op_type=op_type, **fields)
