"""Files that are no sound models are refused in one sentence."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx.checker
import onnx.reference
import pytest
from onnx import TensorProto, helper

from onnxq.errors import InputError
from onnxq.ir import load, to_proto
from tests.ir.loading import assert_one_sentence, full_model, parsed


def test_missing_and_unreadable_files(tmp_path: Path) -> None:
    missing, empty, text = (tmp_path / n for n in ("missing.onnx", "empty.onnx", "text.onnx"))
    assert_one_sentence(missing, str(missing), "does not exist")
    assert_one_sentence(tmp_path, str(tmp_path), "is a folder")
    empty.touch()
    assert_one_sentence(empty, str(empty), "is empty")
    text.write_text("this is no model\n" * 20)
    assert_one_sentence(text, str(text), "is not an ONNX model")
    assert_one_sentence(b"", "the serialized model is empty")
    assert_one_sentence(text / "below", "cannot be read")
    assert_one_sentence(Path("n" * 300), "cannot be read")


def test_files_that_never_end_or_are_too_large(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="'/dev/zero' is a device"):
        load("/dev/zero")
    with (tmp_path / "huge.onnx").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(InputError, match=r"huge\.onnx' is larger than the 2 GB"):
        load(tmp_path / "huge.onnx")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
def test_file_that_may_not_be_read(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.touch(mode=0)
    assert_one_sentence(path, str(path), "may not be read")


def test_permission_error_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path, *arguments: str) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    assert_one_sentence(tmp_path / "m.onnx", "m.onnx", "may not be read")


def test_models_without_graph_or_opset() -> None:
    model = parsed("g (float[2] x) => (float[2] y) { y = Neg(x) }")
    graphless, opsetless = onnx.ModelProto(), onnx.ModelProto()
    graphless.CopyFrom(model)
    opsetless.CopyFrom(model)
    graphless.ClearField("graph")
    opsetless.ClearField("opset_import")
    assert_one_sentence(graphless.SerializeToString(), "it has no graph")
    assert_one_sentence(opsetless.SerializeToString(), "it has no operator set version")


def test_truncated_anywhere(tmp_path: Path) -> None:
    """Cut off at any place a model is refused, or what is left of it is a valid model."""
    whole = full_model().SerializeToString()
    refused = 0
    for length in range(0, len(whole), 7):
        try:
            load(whole[:length]).check()
        except InputError as error:
            refused += 1
            assert "\n" not in str(error)
    assert refused > len(whole) / 7 * 0.9


def test_flipped_bits() -> None:
    """Whatever bit is wrong, the model is refused in one sentence or loads as a valid graph."""
    whole = bytearray(full_model().SerializeToString())
    generator = np.random.default_rng(0)
    refused = 0
    for at in generator.integers(0, len(whole) * 8, 600):
        whole[at // 8] ^= 1 << at % 8
        try:
            graph = load(bytes(whole))
            graph.check()
            to_proto(graph)
        except InputError as error:
            refused += 1
            assert "\n" not in str(error)
        whole[at // 8] ^= 1 << at % 8
    assert 0 < refused < 600


def test_text_that_is_no_utf8() -> None:
    whole = full_model().SerializeToString()
    for text, where in (
        (b"unread", "name of a ValueInfoProto"),
        (b"if", "name of a NodeProto"),
        (b"unused", "name of a TensorProto"),
        (b"the output", "doc_string of a ValueInfoProto"),
        (b"maker", "producer_name of a ModelProto"),
    ):
        at = whole.index(text)
        broken = whole[:at] + b"\xf5" + whole[at + 1 :]
        assert_one_sentence(broken, "is not UTF-8 text", where)


def edited(edit: Callable[[onnx.GraphProto], object], text: str = "") -> onnx.ModelProto:
    model = parsed(
        text
        or """g (float[2] x) => (float[2] y) <float[2] c = {1, 2}>
        { [add] a = Add(x, c)  [neg] b = Neg(a)  [mul] y = Mul(b, a) }"""
    )
    edit(model.graph)
    return model


def _set(target: object, **values: object) -> None:
    for key, value in values.items():
        setattr(target, key, value)


INVALID: dict[str, tuple[Callable[[onnx.GraphProto], object], list[str]]] = {
    "cycle": (lambda g: g.node[0].input.__setitem__(0, "b"), ["cycle through node '"]),
    "self cycle": (lambda g: g.node[1].input.__setitem__(0, "b"), ["cycle", "'neg' (Neg)"]),
    "duplicate": (lambda g: g.node[1].output.__setitem__(0, "a"), ["called 'a'", "graph 'g'"]),
    "duplicate of an input": (
        lambda g: g.node[1].output.__setitem__(0, "x"),
        ["two values of graph 'g' are called 'x'"],
    ),
    "input twice": (lambda g: g.input.append(g.input[0]), ["called 'x'"]),
    "initializer twice": (lambda g: g.initializer.append(g.initializer[0]), ["called 'c'"]),
    "unknown read": (
        lambda g: g.node[2].input.__setitem__(0, "lost"),
        ["node 'mul' (Mul) reads 'lost', which nothing produces"],
    ),
    "unknown output": (
        lambda g: _set(g.output[0], name="lost"),
        ["nothing makes the output 'lost'"],
    ),
    "input without a name": (lambda g: _set(g.input[0], name=""), ["of graph 'g' has no name"]),
    "constant without a name": (lambda g: _set(g.initializer[0], name=""), ["has no name"]),
    "element type": (
        lambda g: _set(g.input[0].type.tensor_type, elem_type=99),
        ["value 'x' has element type 99, which ONNX does not define"],
    ),
    "element type of a constant": (
        lambda g: _set(g.initializer[0], data_type=99),
        ["tensor 'c' has element type 99"],
    ),
    "negative size": (lambda g: g.initializer[0].dims.__setitem__(0, -2), ["tensor 'c'", "[-2]"]),
    "attribute type": (
        lambda g: g.node[1].attribute.add(name="odd"),
        ["attribute 'odd' has no type that ONNX knows"],
    ),
    "attribute tensor": (
        lambda g: g.node[1].attribute.append(
            helper.make_attribute("odd", TensorProto(name="inner", data_type=1, dims=[-1]))
        ),
        ["tensor 'inner'", "[-1]"],
    ),
}


@pytest.mark.parametrize("case", INVALID)
def test_invalid_graphs(case: str, tmp_path: Path) -> None:
    edit, parts = INVALID[case]
    model = edited(edit)
    assert_one_sentence(model, "the model", *parts)
    path = tmp_path / "m.onnx"
    path.write_bytes(model.SerializeToString())
    assert_one_sentence(path, f"the model '{path}'", *parts)


@pytest.mark.parametrize(
    "functions",
    [
        """<domain: "l", opset_import: ["": 21, "l": 1]> f (p) => (r) { r = l.f(p) }""",
        """<domain: "l", opset_import: ["": 21, "l": 1]> f (p) => (r) { r = l.g(p) }
        <domain: "l", opset_import: ["": 21, "l": 1]> g (p) => (r) { q = Cast<to = 9>(p)
            r = If(q) <then_branch = t () => (o) { o = l.f(p) },
                       else_branch = e () => (o) { o = Neg(p) }> }""",
    ],
)
def test_functions_that_call_themselves(functions: str) -> None:
    model = onnx.parser.parse_model(
        f"""<ir_version: 10, opset_import: ["": 21, "l": 1]>
        main (float[2] x) => (float[2] y) {{ y = l.f(x) }} {functions}"""
    )
    with pytest.raises(InputError, match=r"its function 'l\.[fg]' calls itself"):
        load(model)


def test_subgraph_that_gives_back_what_is_made_outside() -> None:
    model = edited(
        lambda g: _set(g.node[0].attribute[0].g.output[0], name="x"),
        """g (bool q, float[2] x) => (float[2] y) { y = If(q) <
            then_branch = then () => (float[2] t) { t = Neg(x) },
            else_branch = other () => (float[2] e) { e = Neg(x) }> }""",
    )
    assert_one_sentence(model, "subgraph 'then' gives back 'x', which is made outside it")
    with pytest.raises(Exception, match="outer scope"):
        # onnxruntime refuses it as well.
        run_proto(model)


def run_proto(model: onnx.ModelProto) -> None:
    from onnxq.runtime import Session

    Session(model)
