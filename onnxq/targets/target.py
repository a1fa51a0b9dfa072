"""What a target computes on integers: which operators, with which formats and sharing.

A target is a table: a TOML file beside this module, or the user's own.
"""

from __future__ import annotations

import hashlib
import math
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any, Literal

import onnx.defs

from onnxq.errors import InputError
from onnxq.plain import read, read_toml
from onnxq.quant.formats import BYTE_FORMATS, FORMATS, Format
from onnxq.quant.scheme import PER_TENSOR, ZERO_POINT, Granularity, Scheme, per_channel
from onnxq.saved import built_in, toml_text

FASTEST = "fastest"
"""What `onnxq optimize` takes for the target that it finds to be the fastest."""

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


Form = Literal["", "clipped-line", "line", "repeat", "vectors"]
"""Equal forms in integers.

- ``line``: arithmetic with one number as nothing but another scale and zero-point of the same
  integers.
- ``clipped-line``: HardSigmoid as the same, clipped as integers. Where the range does not allow it,
  as the Add of a constant whose output is quantized with scale 1/255 from 0 on: saturation clips.
  HardSwish as its product with that.
- ``repeat``: a Resize that repeats pixels as concatenations with channels last.
- ``vectors``: a depthwise Conv with channels of zeros up to a multiple of 16.
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
        name: As on the command line, by which it is loaded again.
        description: One line for people.
        backend: Name of the backend that runs and times models for it.
        provider: What the backend is to run them on: onnxruntime's execution provider.
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
        finish: Passes, in text form, that run over the quantized graph at the end; empty if there
            are none.
        precisions: What a search over precisions chooses from here.
        small: What it chooses from, too, where a small file is promised.
        alternatives: Built-in tables whose models of 8-bit integers run here as well, with
            activations in another format or pairs elsewhere; a search tries what each of them
            makes of all nodes, and of some where that is faster than what keeps the promise.
        contrib: Operators of onnxruntime's own that precisions may put in place of ONNX's.
        forms: Names of passes that write regions in another of several equal forms; a search
            measures what each region gains by it.
        operators: Rules by operator type.
        reasons: Why operators that one might expect are left in float here.
        measured: With which versions and on which processor what the table says was measured;
            empty if it was written by documentation alone.
    """

    name: str
    description: str
    backend: str
    provider: str
    activation_format: Format
    activation_scheme: Scheme
    weight_format: Format
    weight_scheme: Scheme
    weight_per_channel: bool
    bias: BiasRule
    everything: bool
    passes: str
    finish: str
    precisions: tuple[str, ...]
    small: tuple[str, ...]
    alternatives: tuple[str, ...]
    contrib: tuple[str, ...]
    forms: tuple[str, ...]
    operators: Mapping[str, OperatorRule]
    reasons: Mapping[str, str]
    # Says nothing of what is computed, so tables that differ in it are equal.
    measured: str = field(default="", repr=False, compare=False)

    @property
    def label(self) -> str:
        """Name for what is written into models: a file's without its folder."""
        return Path(self.name).name

    @cached_property
    def digest(self) -> str:
        """SHA-256 of what models are made by: not of the name, nor of where they then run."""
        made_by = replace(self, name="", backend="", provider="")
        return hashlib.sha256(repr(made_by).encode()).hexdigest()

    def fingerprint(self) -> object:
        """What stands for it: its tables are long, and every layer refers to them."""
        return self.name, self.digest

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
        """Format of activations of 1 to 8 or 16 bits: the target's own, or an unsigned one.

        Fewer than 8 bits are held in bytes, of the target's own sign if it has bytes.
        """
        own = self.activation_format
        if bits < 8:
            return BYTE_FORMATS[f"{'int' if own.signed and own.bits == 8 else 'uint'}{bits}"]
        return own if own.bits == bits else FORMATS[f"uint{bits}"]

    def scheme_of(self, format: Format) -> Scheme:
        """Scheme of activations in a format, zero-point where it is not of the target's type."""
        own = self.activation_format
        return self.activation_scheme if format.storage == own.storage else ZERO_POINT

    def weight_format_of(self, bits: int) -> Format:
        """Format of weights of 2 to 8 bits, fewer than 8 held in bytes of the target's own sign."""
        own = self.weight_format
        return own if bits == 8 else BYTE_FORMATS[f"{'int' if own.signed else 'uint'}{bits}"]

    def weight_granularity(self, axis: int | None) -> Granularity:
        """Granularity of a weight whose output channels lie on ``axis``, if on one at all."""
        return per_channel(axis) if self.weight_per_channel and axis is not None else PER_TENSOR


def load_target(name: str) -> Target:
    """A built-in target by name, or one from a TOML file by path.

    ``auto`` is the processor this program runs on. A file may extend a built-in target; the path
    is then the target's name, by which it is loaded again.

    Raises:
        InputError: there is no such target or file, or the file has an unknown or wrong entry.
    """
    if name == FASTEST:
        raise InputError(
            f"the target '{FASTEST}' is for `onnxq optimize`, which says which one "
            "that is; name one"
        )
    if name == "auto":
        name = _this_processor()
    if name not in available_targets() and not name.endswith(".toml"):
        raise InputError(
            f"there is no target '{name}'; available: auto, {', '.join(available_targets())}, and "
            f"'{FASTEST}' for `onnxq optimize`; or name a .toml file"
        )
    return parse_target(name, _text(name))


def available_targets() -> tuple[str, ...]:
    """Names of the built-in targets."""
    return built_in("onnxq.targets")


def _text(name: str) -> str:
    return toml_text(name, "onnxq.targets", "the target")


_CPUINFO = Path("/proc/cpuinfo")
_DOT_PRODUCTS = frozenset({"avx512_vnni", "avx_vnni"})


@cache
def _this_processor() -> str:
    if platform.machine().lower() in ("arm64", "aarch64"):
        return "cpu-arm"
    flags = processor_flags()
    return "cpu-x64-avx2" if flags and not flags & _DOT_PRODUCTS else "cpu-x64"


def processor_flags() -> frozenset[str]:
    """What Linux says that all processors here can do; nothing if it does not say."""
    try:
        text = _CPUINFO.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return frozenset()
    lines = [line.partition(":") for line in text.splitlines()]
    flags = [frozenset(value.split()) for key, _, value in lines if key.strip() == "flags"]
    return frozenset.intersection(*flags) if flags else frozenset()


@dataclass(frozen=True)
class _Numbers:
    """The entry ``activation`` or ``weight``: a format, a scheme with its options, granularity."""

    format: Format
    scheme: Literal["absmax", "zero-point"]
    per_channel: bool = False
    narrow_range: bool = False
    power_of_two: bool = False
    reduced_range: bool = False

    @property
    def as_scheme(self) -> Scheme:
        options = (self.narrow_range, self.power_of_two, self.reduced_range)
        return Scheme(self.scheme == "absmax", *options)


@dataclass(frozen=True)
class _Table:
    """A target's entries as they stand in a file; see `Target`.

    ``extends`` and ``without`` are worked in by `_entries`; they stand here to be told of where an
    entry is misspelled.
    """

    description: str
    provider: str
    activation: _Numbers
    weight: _Numbers
    precisions: tuple[str, ...]
    operators: Mapping[str, Mapping[str, Any]]
    small: tuple[str, ...] = ()
    alternatives: tuple[str, ...] = ()
    backend: str = "onnxruntime"
    passes: str = ""
    finish: str = ""
    forms: tuple[str, ...] = ()
    bias: BiasRule = "int32"
    everything: bool = False
    contrib: tuple[str, ...] = ()
    reasons: Mapping[str, str] = field(default_factory=dict)
    measured: str = ""
    extends: str = ""
    without: tuple[str, ...] = ()


@cache
def parse_target(name: str, text: str) -> Target:
    """The target of a table's text.

    Raises:
        InputError: it is no TOML, or an entry is unknown, missing or wrong.
    """
    of = f"target '{name}'"
    table: _Table = read(_Table, _entries(of, text), of)
    worked_in = ("activation", "weight", "extends", "without")
    given = {k: v for k, v in vars(table).items() if k not in worked_in}
    for what in ("activation", "weight"):
        numbers: _Numbers = getattr(table, what)
        given |= {f"{what}_format": numbers.format, f"{what}_scheme": numbers.as_scheme}
    for other in table.alternatives:
        if other not in available_targets():
            raise InputError(
                f"entry 'alternatives' of {of} takes names of built-in targets, not {other!r}; "
                f"there are {', '.join(available_targets())}"
            )
    given["operators"] = {k: _rule(of, k, rule) for k, rule in table.operators.items()}
    return Target(name=name, weight_per_channel=table.weight.per_channel, **given)


def _entries(of: str, text: str) -> dict[str, Any]:
    """A table's entries over those of the built-in one it ``extends``.

    It has operators in addition to the other's, ``without`` some of those; any other entry
    takes the place of the other's. What was measured of the other was not measured of it.
    """
    table = read_toml(text, of)
    base = table.pop("extends", None)
    own = read(dict[str, Any], table.get("operators", {}), of, "operators")
    left_out = read(tuple[str, ...], table.pop("without", []), of, "without")
    if base is not None:
        if base not in available_targets():
            raise InputError(
                f"entry 'extends' of {of} takes the name of a built-in target, not {base!r}; "
                f"there are {', '.join(available_targets())}"
            )
        below = {k: v for k, v in _entries(of, _text(base)).items() if k != "measured"}
        table = {**below, **table, "operators": {**below["operators"], **own}}
    for op_type in left_out:
        if op_type not in table.get("operators", {}):
            raise InputError(
                f"entry 'without' of {of} names {op_type}, which is not among its operators"
            )
        del table["operators"][op_type]
    return table


_FORMS: Mapping[str, Sequence[str]] = {
    "clipped-line": ("HardSigmoid", "HardSwish"),
    "line": ("Mul", "Div", "Add", "Sub"),
    "repeat": ("Resize",),
    "vectors": ("Conv",),
}
"""The operators that have each `Form`."""


def _rule(of: str, op_type: str, fields: Mapping[str, Any]) -> OperatorRule:
    place = f"operators.{op_type}"
    rule: OperatorRule = read(OperatorRule, {**fields, "op_type": op_type}, of, place)
    if not onnx.defs.has(op_type):
        raise InputError(f"entry '{place}' of {of} names no operator of ONNX")
    if rule.form and op_type not in _FORMS[rule.form]:
        able = " and ".join(_FORMS[rule.form])
        raise InputError(f"entry '{place}.form' of {of} is {rule.form}, which is for {able}")
    slots = [*rule.activations, *(s for s in (rule.weight, rule.bias) if s is not None)]
    if any(not 0 <= slot < onnx.defs.get_schema(op_type).max_input for slot in slots):
        raise InputError(f"entry '{place}' of {of} names an input that {op_type} does not have")
    for ends in filter(None, (rule.range, rule.range_16bit)):
        if not -math.inf < ends[0] < ends[1] < math.inf:
            raise InputError(f"entry '{place}' of {of} has a range from {ends[0]} to {ends[1]}")
    if rule.role == "compute" and (not rule.activations or rule.weight is None):
        raise InputError(
            f"entry '{place}' of {of} has role compute, which needs the slots of activations and "
            "weight"
        )
    if rule.role in ("share", "absorb") and rule.activations != (0,):
        raise InputError(
            f"entry '{place}' of {of} has role {rule.role}, whose activation is the first input; "
            "write activations = [0]"
        )
    return rule
