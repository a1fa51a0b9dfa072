"""The tables of targets: each is valid, and names only what ONNX defines."""

from __future__ import annotations

import platform
from dataclasses import replace
from pathlib import Path
from typing import get_args

import onnx.defs
import pytest

from onnxq.errors import InputError
from onnxq.ir import available_passes, parse_passes
from onnxq.precision import searchable
from onnxq.quant import FORMATS, INT8, qparams_from_range, value_range
from onnxq.runtime import available_backends
from onnxq.targets import OperatorRule, Target, available_targets, load_target
from onnxq.targets import target as target_module
from onnxq.targets.target import BiasRule, Role, parse_target

NAMES = available_targets()


def _rules() -> list[tuple[str, str]]:
    return [(name, op_type) for name in NAMES for op_type in load_target(name).operators]


def _rule(name: str, op_type: str) -> OperatorRule:
    return load_target(name).operators[op_type]


def test_the_tables_there_are() -> None:
    named = {"cpu-x64", "cpu-arm", "cuda", "tensorrt", "openvino", "qnn", "generic"}
    others = {"cpu-x64-avx2", "qnn-a16", "directml", "coreml", "xnnpack", "openvino-inputs"}
    assert named | others == set(NAMES)


def test_a_table_says_whether_it_was_measured() -> None:
    measured = {name for name in NAMES if load_target(name).measured}
    assert measured == {"cpu-x64", "openvino", "openvino-inputs", "generic"}
    # What extends another one was not measured with it.
    assert parse_target("mine", 'extends = "openvino"').measured == ""
    told = parse_target("mine", 'extends = "openvino"\nmeasured = "here"')
    assert told.measured == "here" and told.digest == load_target("openvino").digest


@pytest.mark.parametrize("name", NAMES)
def test_a_table_is_whole(name: str) -> None:
    target = load_target(name)
    assert target.name == name
    assert target.description
    assert {r.role for r in target.operators.values()} <= set(get_args(Role))
    assert target.bias in get_args(BiasRule)
    assert target.activation_format in FORMATS.values()
    assert not target.weight_scheme.symmetric or target.weight_format.signed
    full_names = (
        *("cpu", "cuda", "tensorrt", "openvino", "qnn"),
        *("directml", "coreml", "xnnpack"),
    )
    assert target.provider in full_names
    for text in (target.passes, target.finish):
        passes = parse_passes(text) if text else ()
        assert {p.name for p in passes} <= set(available_passes())
    # They are for onnxruntime's own kernels.
    measured = "keep-float-weights,softmax-of-two,fuse-linear-rows"
    on_cpu = measured if target.name.startswith("cpu-x64") else "keep-float-weights"
    assert target.finish == (on_cpu if target.provider == "cpu" else "")
    assert target.backend in available_backends()
    assert target.precisions and set(target.precisions) <= set(searchable())
    assert target.has_integer_kernels == ("int8" in target.precisions)
    assert [target.activation_format_of(bits).bits for bits in (8, 16)] == [8, 16]
    assert target.scheme_of(target.activation_format) == target.activation_scheme
    assert set(target.operators["Conv"].activations) == {0}


@pytest.mark.parametrize(("name", "op_type"), _rules())
def test_a_rule_fits_the_operator_it_names(name: str, op_type: str) -> None:
    rule, schema = _rule(name, op_type), onnx.defs.get_schema(op_type)
    slots = [*rule.activations, *(s for s in (rule.weight, rule.bias) if s is not None)]
    assert max(slots, default=0) < schema.max_input
    assert len(set(slots)) == len(slots)
    assert {*rule.attributes, *rule.broken_by} <= set(schema.attributes)
    assert rule.minimum_opset <= onnx.defs.onnx_opset_version()
    assert rule.op_type == op_type


@pytest.mark.parametrize(("name", "op_type"), _rules())
def test_the_roles_have_what_they_need(name: str, op_type: str) -> None:
    rule = _rule(name, op_type)
    if rule.role == "residual":
        assert not rule.activations and rule.weight is None
    elif rule.role == "compute":
        assert rule.activations and rule.weight is not None
        assert rule.output in ("quantized", "float")
        assert rule.channel_axis == "operator" or isinstance(rule.channel_axis, int)
    else:
        assert rule.weight is None and rule.bias is None and not rule.two_activations
    if rule.role in ("share", "absorb"):
        # Placement takes the range of the first input for that of the output.
        assert rule.activations == (0,)


@pytest.mark.parametrize(("name", "op_type"), _rules())
def test_operators_between_integers_take_the_activation_format(name: str, op_type: str) -> None:
    target, rule = load_target(name), _rule(name, op_type)
    if rule.role != "share" or rule.form or target.provider != "cpu":
        # Elsewhere the runtime compiles the operator with its pairs; a line takes it out.
        return
    opset = max(rule.minimum_opset, target.opset)
    schema = onnx.defs.get_schema(op_type, opset)
    allowed = {
        constraint.type_param_str: constraint.allowed_type_strs
        for constraint in schema.type_constraints
    }[schema.inputs[0].type_str]
    assert f"tensor({target.activation_format.name})" in allowed


def test_a_table_extends_another() -> None:
    base, generic = load_target("cpu-x64"), load_target("generic")
    assert generic.operators["Concat"] == base.operators["Concat"]
    assert base.operators["Gemm"].output == "float"
    assert generic.operators["Gemm"].output == "quantized"
    assert "ConvTranspose" not in base.operators and "ConvTranspose" in generic.operators
    assert not base.activation_scheme.symmetric and generic.activation_scheme.symmetric
    assert generic.weight_scheme.narrow_range and not base.weight_scheme.narrow_range


def test_a_table_is_the_other_one_but_for_what_it_says_itself() -> None:
    arm, x64 = load_target("cpu-arm"), load_target("cpu-x64")
    convolution = replace(x64.operators["Conv"], form="")
    assert arm.operators == {**x64.operators, "Conv": convolution}
    assert arm.activation_format == x64.activation_format
    assert arm.description != x64.description


def test_a_table_may_leave_operators_of_the_other_one_out() -> None:
    base, openvino = load_target("cpu-x64"), load_target("openvino")
    assert {"Sigmoid", "HardSwish"} <= set(base.operators) - set(openvino.operators)
    assert openvino.operators["AveragePool"] != base.operators["AveragePool"]
    assert openvino.operators["Gemm"] == base.operators["Gemm"]
    assert "SpaceToDepth" in openvino.reasons and "ConvTranspose" not in openvino.reasons


def test_what_documentation_asks_of_runtimes() -> None:
    tensorrt, qnn = load_target("tensorrt"), load_target("qnn")
    assert tensorrt.activation_format.name == "int8" and tensorrt.activation_scheme.symmetric
    assert (tensorrt.bias, qnn.bias) == ("float", "int32")
    assert qnn.everything and not tensorrt.everything
    assert not qnn.operators["MatMul"].per_channel and qnn.operators["Conv"].per_channel
    wide = load_target("qnn-a16")
    assert wide.opset == 21
    for op_type, scale, zero_point in (("Sigmoid", 1 / 65536, 0), ("Tanh", 1 / 32768, 32768)):
        known = wide.operators[op_type].range
        assert known is not None
        found = qparams_from_range(*known, wide.activation_format, wide.activation_scheme)
        assert (float(found.scale), int(found.zero_point)) == (scale, zero_point)
        assert qnn.operators[op_type].range_16bit == known
        assert qnn.operators[op_type].range is None


def test_weights_of_processors_without_vnni_have_seven_bits() -> None:
    low, high = value_range(INT8, load_target("cpu-x64-avx2").weight_scheme)
    assert (low, high) == (-64, 63)
    # Two products of the largest numbers have room in 16 bits, which full ranges overflow.
    assert 2 * 255 * 64 <= 2**15 < 2 * 255 * 128


VNNI = "fpu avx2 avx512f avx512_vnni"


@pytest.mark.parametrize(
    ("machine", "cpuinfo", "name"),
    [
        ("x86_64", f"processor\t: 0\nflags\t\t: {VNNI}\n", "cpu-x64"),
        ("x86_64", "flags\t\t: fpu avx2 avx_vnni\n", "cpu-x64"),
        ("AMD64", "flags\t\t: fpu avx avx2\n", "cpu-x64-avx2"),
        ("x86_64", "flags: avx2 avx512_vnni_next\nvmx flags: avx512_vnni\n", "cpu-x64-avx2"),
        ("x86_64", f"flags: {VNNI}\n\nflags: fpu avx2\n", "cpu-x64-avx2"),
        ("x86_64", "model name: something\n", "cpu-x64"),
        ("x86_64", "", "cpu-x64"),
        ("x86_64", None, "cpu-x64"),
        ("aarch64", "Features\t: fp asimd\n", "cpu-arm"),
        ("arm64", None, "cpu-arm"),
    ],
)
def test_auto_is_this_processor(
    machine: str,
    cpuinfo: str | None,
    name: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    path = tmp_path / "cpuinfo"
    if cpuinfo is not None:
        path.write_text(cpuinfo)
    monkeypatch.setattr(platform, "machine", lambda: machine)
    monkeypatch.setattr(target_module, "_CPUINFO", path)
    target_module._this_processor.cache_clear()
    try:
        assert load_target("auto").name == name
    finally:
        target_module._this_processor.cache_clear()


def test_an_unknown_name() -> None:
    known = "available: auto, coreml, cpu-arm, .*, and 'fastest' for `onnxq optimize`; or name a"
    with pytest.raises(InputError, match=f"no target 'tpu'; {known}"):
        load_target("tpu")


def _with_weights(per_channel: str) -> Target:
    weight = f'{{ format = "int8", scheme = "absmax", per_channel = {per_channel} }}'
    return parse_target("t", f'extends = "cpu-x64"\nweight = {weight}')


def test_opset_and_granularity_of_weights() -> None:
    channels, tensor = _with_weights("true"), _with_weights("false")
    assert (channels.opset, tensor.opset) == (13, 10)
    assert channels.weight_granularity(1).axis == 1
    assert channels.weight_granularity(None).axis is None
    assert tensor.weight_granularity(1).axis is None


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ('Add = { role = "follow", form = "clipped-line" }', "is for HardSigmoid and HardSwish"),
        (
            'Conv = { role = "compute", activations = [7], weight = 1 }',
            "input that Conv does",
        ),
        (
            'Conv = { role = "compute", activations = [0], weight = -1 }',
            "input that Conv does",
        ),
        ('Sigmoid = { role = "follow", range = [1, 0] }', "has a range from 1.0 to 0.0"),
        ('Sigmoid = { role = "follow", range = [0, inf] }', "has a range from 0.0 to inf"),
    ],
)
def test_rules_that_make_no_sense(entry: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(f'extends = "cpu-x64"\n[operators]\n{entry}\n')
    with pytest.raises(InputError, match=message):
        load_target(str(tmp_path / "mine.toml"))


def test_operators_that_are_no_table(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text('without = ["a"]\noperators = "abc"\n')
    with pytest.raises(InputError, match=r"'operators' of .* takes a table, not 'abc'"):
        load_target(str(tmp_path / "mine.toml"))
