"""Target files of the user's own: what they may say, and how what is wrong is told."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from onnxq.errors import InputError
from onnxq.targets import OperatorRule, load_target

WHOLE = """
description = "a chip"
provider = "cpu"
precisions = ["int8"]
finish = "keep-float-weights"

[activation]
format = "int16"
scheme = "absmax"
power_of_two = true

[weight]
format = "int8"
scheme = "absmax"
narrow_range = true
per_channel = true

[operators]
Conv = { role = "compute", activations = [0], weight = 1, bias = 2, channel_axis = 0 }
Sigmoid = { role = "follow", range = [0, 0.5], attributes = { alpha = 1.5 } }
"""


def write(folder: Path, text: str, name: str = "mine.toml") -> str:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_a_file_is_a_target_of_its_own(tmp_path: Path) -> None:
    path = write(tmp_path, WHOLE)
    target = load_target(path)
    assert (target.name, target.label) == (path, "mine.toml")
    assert (target.backend, target.provider) == ("onnxruntime", "cpu")
    assert (target.passes, target.finish) == ("", "keep-float-weights")
    assert target.activation_format.name == "int16" and target.activation_scheme.power_of_two
    assert target.weight_scheme.narrow_range and target.weight_per_channel
    assert (target.precisions, target.bias, target.everything) == (("int8",), "int32", False)
    assert target.operators == {
        "Conv": OperatorRule("Conv", "compute", (0,), 1, bias=2, channel_axis=0),
        "Sigmoid": OperatorRule("Sigmoid", "follow", range=(0.0, 0.5), attributes={"alpha": 1.5}),
    }
    assert load_target(target.name) == target


def test_a_file_extends_a_built_in_target(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        """
        extends = "tensorrt"
        description = "the same with Gelu and without Gemm"
        without = ["Gemm"]
        [operators]
        Gelu = { role = "follow" }
        """,
    )
    mine, base = load_target(path), load_target("tensorrt")
    operators = {k: v for k, v in base.operators.items() if k != "Gemm"}
    assert mine == replace(
        base,
        name=path,
        description="the same with Gelu and without Gemm",
        operators={**operators, "Gelu": OperatorRule("Gelu", "follow")},
    )


def test_a_changed_file_is_read_again(tmp_path: Path) -> None:
    path = write(tmp_path, WHOLE)
    before = load_target(path)
    write(tmp_path, WHOLE.replace("a chip", "a newer chip"))
    assert (before.description, load_target(path).description) == ("a chip", "a newer chip")


def test_the_digest_is_of_what_models_are_made_by(tmp_path: Path) -> None:
    base = load_target("cpu-x64")
    elsewhere = 'extends = "cpu-x64"\nbackend = "other"\nprovider = "openvino"'
    same = load_target(write(tmp_path, elsewhere))
    assert same.digest == base.digest and re.fullmatch("[0-9a-f]{64}", base.digest)
    for number, text in enumerate(
        (
            'finish = ""',
            "without = ['Gather']",
            "[operators]\nConv = { role = 'compute', activations = [0], weight = 1 }",
        )
    ):
        other = load_target(write(tmp_path, f'extends = "cpu-x64"\n{text}', f"{number}.toml"))
        assert other.digest != base.digest, text


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (("description", "descripton"), "unknown entry 'descripton'; known there: description, "),
        (('description = "a chip"', 'extend = "generic"'), "known there: .*, extends, without$"),
        (('provider = "cpu"', ""), "lacks the entry 'provider'"),
        (('"a chip"', "3"), "entry 'description' of target '.*' takes a text, not 3"),
        (('["int8"]', '"int8"'), "'precisions' of target '.*' takes a list, not 'int8'"),
        (('["int8"]', "[8]"), r"'precisions\[0\]' of target '.*' takes a text, not 8"),
        (('"int16"', '"int15"'), "'activation.format' of target '.*' is 'int15', .* int16"),
        (('"absmax"', '"min"'), "'activation.scheme' .* takes 'absmax' or 'zero-point', not 'min'"),
        (("= true", "= 1"), "'activation.power_of_two' of target '.*' takes true or false, not 1"),
        (("weight = 1", "wieght = 1"), "unknown entry 'operators.Conv.wieght'; known there: op_ty"),
        (("weight = 1, ", ""), "'operators.Conv' .* compute, which needs the slots of act"),
        (('"compute"', '"share"'), None),
        (('"follow"', '"absorb"'), r"role absorb, .* write activations = \[0\]"),
        (('"follow"', '"folow"'), "'operators.Sigmoid.role' .* takes 'compute' or 'follow' or"),
        (("[0, 0.5]", "[0]"), r"'operators.Sigmoid.range' .* takes a list of 2, not \[0\]"),
        (("[0, 0.5]", "[0, true]"), r"'operators.Sigmoid.range\[1\]' .* takes a number, not True"),
        (("channel_axis = 0", "channel_axis = 'x'"), "takes a whole number or 'operator', not 'x'"),
        (("Sigmoid = {", "Sigmiod = {"), "entry 'operators.Sigmiod' .* names no operator of ONNX"),
        (("[operators]", "[reasons]"), "lacks the entry 'operators'|'reasons.Conv' .* a text"),
        (
            ('description = "a chip"', 'extends = "tpu"'),
            "'extends' .* not 'tpu'; there are coreml, cpu-arm",
        ),
        (('description = "a chip"', 'without = ["Add"]'), "'without' .* names Add, which is not"),
        (("[activation]", "[activation"), "is not valid TOML"),
    ],
)
def test_what_is_wrong_is_named(change: tuple[str, str], told: str | None, tmp_path: Path) -> None:
    assert change[0] in WHOLE
    path = write(tmp_path, WHOLE.replace(*change, 1))
    if told is None:
        assert load_target(path).operators["Conv"].role == change[1].strip('"')
        return
    with pytest.raises(InputError, match=told) as caught:
        load_target(path)
    assert path in str(caught.value) and "\n" not in str(caught.value)


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"cannot read the target '.*none.toml': No such file"):
        load_target(str(tmp_path / "none.toml"))
    path = tmp_path / "binary.toml"
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match=r"binary.toml': it is no text"):
        load_target(str(path))
    with pytest.raises(InputError, match=r"no target 'mine'; available: auto, .* \.toml file"):
        load_target("mine")
