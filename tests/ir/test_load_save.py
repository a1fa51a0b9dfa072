from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx.checker
import onnx.reference
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxq.errors import InputError
from onnxq.ir import DataType, Graph, TensorType, load, save, to_proto
from onnxq.ir.saving import check_writable, replacing
from tests.helpers import assert_same_outputs, random_feeds, run

HEAD = '<ir_version: 10, opset_import: ["": 21]>'


def parsed(text: str) -> onnx.ModelProto:
    return onnx.parser.parse_model(HEAD + text)


def in_order(proto: onnx.ModelProto) -> bytes:
    return proto.SerializeToString(deterministic=True)


def assert_round_trip(proto: onnx.ModelProto, folder: Path) -> Graph:
    """Load, save, load, save: the two files are equal byte for byte."""
    first, second = folder / "first.onnx", folder / "second.onnx"
    graph = load(proto)
    save(graph, first)
    again = load(first)
    save(again, second)
    assert first.read_bytes() == second.read_bytes()
    return again


# What a model holds


def full_model() -> onnx.ModelProto:
    """A model that uses every field there is."""
    model = onnx.parser.parse_model(
        """<ir_version: 13, opset_import: ["": 21, "local": 1, "com.acme": 3],
            producer_name: "maker", producer_version: "1.2", domain: "com.model",
            model_version: 7, doc_string: "what it is", metadata_props: ["key": "value", "b": ""]>
        main (bool q, float[N, 3] x, float[3] o, seq(float[K]) unread)
            => (float[N, 3] y, seq(float[N, 3]) s, float[N, 3] z)
        <float[3] c = {1, 2, 3}, float[3] unused = {4, 5, 6}, float[N, 3] a>
        {
            [add] a = Add(x, c)
            [call] b = local.double <k = 2> (a)
            [if] y = If(q) <
                then_branch = then () => (float[N, 3] t) <float[3] d = {7, 8, 9}>
                    { t = Mul(a, d) },
                else_branch = other () => (float[N, 3] e) { e = Neg(b) }>
            [sequence] s = SequenceConstruct(a, y)
            [clip] z = Clip(a, , c0)
            [typed] c0 = Constant<value = float {0.5}>()
            [acme] w = com.acme.Mystery<n = [1, 2], f = 0.5, fs = [0.5, 1.5], str = "text",
                strs = ["a", "b"], t = float[2] {1, 2}>(a)
        }
        <domain: "local", opset_import: ["": 21]>
        double <k> (p) => (r) { two = Constant<value_int: int = @k>()  f = Cast<to = 1>(two)
            r = Mul(p, f) }"""
    )
    main = model.graph
    main.doc_string = "the graph"
    main.metadata_props.add(key="graph", value="1")
    main.input[2].doc_string = "may be fed or not"
    main.input[2].metadata_props.add(key="input", value="1")
    main.input[1].type.tensor_type.shape.dim[0].denotation = "DATA_BATCH"
    # Those of inputs are written first.
    main.initializer.insert(0, numpy_helper.from_array(np.ones(3, np.float32), "o"))
    dense = np.array([5, 6], np.float32)
    where = np.array([0, 2], np.int64)
    main.sparse_initializer.append(
        helper.make_sparse_tensor(
            numpy_helper.from_array(dense, "sparse"), numpy_helper.from_array(where, "at"), [4]
        )
    )
    main.value_info[0].doc_string = "declared"
    main.output[0].doc_string = "the output"
    node = next(n for n in main.node if n.name == "add")
    node.doc_string = "adds"
    node.metadata_props.add(key="node", value="1")
    node.device_configurations.add(configuration_id="two", pipeline_stage=1)
    acme = next(n for n in main.node if n.name == "acme")
    acme.overload = "wide"
    acme.attribute[0].doc_string = "numbers"
    acme.attribute.append(helper.make_attribute("type", main.output[0].type))
    acme.attribute.append(helper.make_attribute("types", [main.output[1].type]))
    acme.attribute.append(helper.make_attribute("sparse", main.sparse_initializer[0]))
    acme.attribute.append(helper.make_attribute("sparses", [main.sparse_initializer[0]]))
    acme.attribute.append(helper.make_attribute("tensors", [main.initializer[0]]))
    body = helper.make_graph([], "body", [], [])
    acme.attribute.append(helper.make_attribute("bodies", [body, body]))
    annotation = main.quantization_annotation.add(tensor_name="a")
    annotation.quant_parameter_tensor_names.add(key="SCALE_TENSOR", value="c")
    training = model.training_info.add()
    training.algorithm.name = "sgd"
    training.update_binding.add(key="c", value="c")
    model.configuration.add(name="two", num_devices=2, device=["cpu0", "cpu1"])
    return model


def test_everything_is_kept(tmp_path: Path) -> None:
    model = full_model()
    found = to_proto(assert_round_trip(model, tmp_path))
    # Nodes come in topological order: Constant "typed" before "clip", which reads it.
    names = [n.name for n in found.graph.node]
    assert names == ["add", "call", "if", "sequence", "typed", "clip", "acme"]
    by_name = {n.name: n for n in model.graph.node}
    wanted = onnx.ModelProto()
    wanted.CopyFrom(model)
    del wanted.graph.node[:]
    wanted.graph.node.extend(by_name[n] for n in names)
    _normalize(wanted.graph)
    # Fields are compared one by one, so that a difference shows where it is.
    for field in onnx.GraphProto.DESCRIPTOR.fields:
        assert _items(getattr(found.graph, field.name)) == _items(
            getattr(wanted.graph, field.name)
        ), field.name
    assert in_order(found) == in_order(wanted)


def _normalize(graph: onnx.GraphProto) -> None:
    """Clear what says nothing: empty domains, and the names of tensors in attributes."""
    for node in graph.node:
        if not node.domain:
            node.ClearField("domain")
        for attribute in node.attribute:
            if attribute.HasField("t"):
                attribute.t.ClearField("name")
            for tensor in attribute.tensors:
                tensor.ClearField("name")
            if attribute.HasField("g"):
                _normalize(attribute.g)


def _items(value: object) -> object:
    return list(value) if hasattr(value, "extend") else value  # type: ignore[call-overload]


def test_outputs_are_the_same(tmp_path: Path) -> None:
    model = full_model()
    del model.graph.node[-1]
    del model.graph.sparse_initializer[:]
    del model.training_info[:]
    del model.configuration[:]
    model.graph.node[0].ClearField("device_configurations")
    graph = load(model)
    again = assert_round_trip(model, tmp_path)
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    for q in (True, False):
        feeds = {"q": np.array(q), "x": x, "unread": [np.ones(2, np.float32)]}
        reference = onnx.reference.ReferenceEvaluator(to_proto(graph))
        assert_same_outputs(run(graph, feeds), run(again, feeds))
        wanted = reference.run(None, feeds)
        for one, other in zip(wanted, run(again, feeds).values(), strict=True):
            assert np.array_equal(one, other)


def test_overridable_initializers_stay_overridable(tmp_path: Path) -> None:
    model = parsed("g (float[2] x, float[2] o) => (float[2] y) { y = Add(x, o) }")
    model.graph.initializer.append(numpy_helper.from_array(np.ones(2, np.float32), "o"))
    graph = assert_round_trip(model, tmp_path)
    assert not graph.values["o"].is_constant
    x = np.array([1, 2], np.float32)
    assert np.array_equal(run(graph, {"x": x})["y"], [2, 3])
    assert np.array_equal(run(graph, {"x": x, "o": x})["y"], [2, 4])


def test_old_files_list_every_initializer_as_an_input(tmp_path: Path) -> None:
    model = onnx.parser.parse_model(
        """<ir_version: 3, opset_import: ["": 7]>
        g (float[2] x, float[2] o) => (float[2] y) { y = Add(x, o) }"""
    )
    model.graph.initializer.append(numpy_helper.from_array(np.ones(2, np.float32), "o"))
    graph = assert_round_trip(model, tmp_path)
    assert graph.values["o"].is_constant and [v.name for v in graph.inputs] == ["x"]
    written = onnx.load(tmp_path / "second.onnx")
    assert [v.name for v in written.graph.input] == ["x", "o"]
    onnx.checker.check_model(written, full_check=True)


def test_optional_inputs_and_outputs_that_are_left_out(tmp_path: Path) -> None:
    model = parsed(
        """g (float[1, 1, 4] x) => (float[1, D, 1, 2] h)
        <float[1, 8, 4] w = {0}, float[1, 8, 2] r = {0}, float[1, 2] state = {0}>
        { , h = LSTM<hidden_size = 2>(x, w, r, , , state, ) }"""
    )
    for tensor, size in zip(model.graph.initializer, (32, 16, 2), strict=True):
        tensor.ClearField("float_data")
        tensor.raw_data = np.linspace(-1, 1, size, dtype=np.float32).tobytes()
    model.graph.initializer[2].dims[:] = [1, 1, 2]
    assert list(model.graph.node[0].input) == ["x", "w", "r", "", "", "state"]
    model.graph.node[0].input.append("")
    graph = assert_round_trip(model, tmp_path)
    (node,) = to_proto(graph).graph.node
    assert list(node.input) == ["x", "w", "r", "", "", "state", ""]
    assert list(node.output) == ["", "h"]
    feeds = random_feeds(graph)
    assert_same_outputs(run(load(model), feeds), run(graph, feeds))


def test_no_nodes_and_no_names(tmp_path: Path) -> None:
    model = helper.make_model(
        helper.make_graph(
            [helper.make_node("Neg", ["x"], ["y"]), helper.make_node("Neg", ["y"], ["z"])],
            "",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2])],
            [
                helper.make_tensor_value_info("x", TensorProto.FLOAT, [2]),
                helper.make_tensor_value_info("z", TensorProto.FLOAT, [2]),
            ],
        )
    )
    graph = assert_round_trip(model, tmp_path)
    assert [n.name for n in graph.nodes()] == ["", ""] and graph.name == ""
    assert graph.outputs[0] is graph.inputs[0]


def test_nodes_of_one_name(tmp_path: Path) -> None:
    model = parsed("g (float[2] x) => (float[2] y) { [n] a = Neg(x)  [n] y = Neg(a) }")
    assert [n.name for n in assert_round_trip(model, tmp_path).nodes()] == ["n", "n"]


def test_default_domain_by_its_long_name(tmp_path: Path) -> None:
    model = parsed("g (float[2] x) => (float[2] y) { y = Neg(x) }")
    model.opset_import[0].domain = "ai.onnx"
    model.graph.node[0].domain = "ai.onnx"
    graph = assert_round_trip(model, tmp_path)
    assert graph.opset == 21 and next(iter(graph.nodes())).is_op("Neg")


def test_sizes_below_zero_are_unknown() -> None:
    model = parsed("g (float[2] x) => (float[2] y) { y = Neg(x) }")
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = -1
    assert load(model).inputs[0].type == TensorType(DataType.FLOAT, (None,))


def test_file_bytes_and_message_give_the_same(tmp_path: Path) -> None:
    model = full_model()
    path = tmp_path / "m.onnx"
    path.write_bytes(model.SerializeToString())
    wanted = in_order(to_proto(load(model)))
    for source in (path, str(path), path.read_bytes()):
        assert in_order(to_proto(load(source))) == wanted
    assert load(path).model.path == path and load(model).model.path is None


def test_loading_leaves_the_message_alone() -> None:
    model = full_model()
    before = in_order(model)
    graph = load(model)
    graph.rename(graph.values["c"], "renamed")
    graph.model.metadata["new"] = "1"
    to_proto(graph).graph.initializer[0].raw_data = b""
    assert in_order(model) == before


# Names used anew in subgraphs


SHADOWED = """g (bool q, float[2] x) => (float[2] y) <float[2] c = {1, 2}>
    {
        a = Add(x, c)
        y = If(q) <
            then_branch = then () => (float[2] y) <float[2] c = {10, 20}> {
                a = Mul(x, c)
                a_1 = Neg(a)
                y = Add(a_1, a)
            },
            else_branch = other () => (float[2] b) {
                b = If(q) <
                    then_branch = deep () => (float[2] a) { a = Neg(x) },
                    else_branch = flat () => (float[2] a_1) { x = Relu(a)  a_1 = Sub(x, c) }>
            }>
    }"""


@pytest.mark.parametrize("q", [True, False])
def test_names_that_subgraphs_use_anew(tmp_path: Path, q: bool) -> None:
    model = parsed(SHADOWED)
    graph = assert_round_trip(model, tmp_path)
    names = [v for nested in graph.all_graphs() for v in nested.values]
    assert {"q", "x", "c", "a", "y"} == set(graph.values)
    then, other = next(n for n in graph.nodes() if n.op_type == "If").subgraphs()
    assert set(then.values).isdisjoint(graph.values)
    assert set(then.values) == {"c_1", "a_1", "a_1_1", "y_1"}
    assert len(names) == len(set(names)) + len(set(then.values) & _inside(other))
    # Computed here by hand: onnx.reference mixes the scopes up.
    x = np.array([3, -4], np.float32)
    c = np.array([1, 2], np.float32)
    wanted = np.zeros(2) if q else np.maximum(x + c, 0) - c
    feeds = {"q": np.array(q), "x": x}
    assert np.array_equal(run(graph, feeds)["y"], wanted)
    assert [v.name for v in graph.inputs + graph.outputs] == ["q", "x", "y"]


def _inside(graph: Graph) -> set[str]:
    return {name for nested in graph.all_graphs() for name in nested.values}


def test_loop_whose_body_uses_outer_names_anew(tmp_path: Path) -> None:
    model = parsed(
        """g (int64 n, float[2] x) => (float[2] y, float[K, 2] all) <bool yes = {1}>
        { y, all = Loop(n, yes, x) <body = step (int64 n, bool yes, float[2] x)
            => (bool go, float[2] y, float[2] all)
            { go = Identity(yes)  y = Add(x, x)  all = Neg(y) }> }"""
    )
    graph = assert_round_trip(model, tmp_path)
    assert [v.name for v in graph.outputs] == ["y", "all"]
    found = run(graph, {"n": np.array(3), "x": np.array([1, 2], np.float32)})
    assert np.array_equal(found["y"], [8, 16])
    assert np.array_equal(found["all"], [[-2, -4], [-4, -8], [-8, -16]])


def test_annotations_follow_values_that_got_another_name() -> None:
    model = parsed(SHADOWED)
    then = model.graph.node[1].attribute[0].g
    annotation = then.quantization_annotation.add(tensor_name="a")
    annotation.quant_parameter_tensor_names.add(key="SCALE_TENSOR", value="c")
    annotation.quant_parameter_tensor_names.add(key="ZERO_POINT_TENSOR", value="nowhere")
    body = next(g for g in load(model).all_graphs() if g.name == "then")
    (annotated,) = (v for v in body.values.values() if v.annotation)
    assert annotated.name == "a_1"
    assert annotated.annotation == {"SCALE_TENSOR": "c_1", "ZERO_POINT_TENSOR": "nowhere"}


# External data


def external_model(folder: Path) -> onnx.ModelProto:
    """x times a matrix plus a vector, both in weights.bin; a small one stays inside."""
    model = parsed(
        """g (float[N, 40] x) => (float[N, 40] y) <float[1] s = {2}>
        { m = MatMul(x, w)  b = Add(m, v)  y = Mul(b, s) }"""
    )
    generator = np.random.default_rng(0)
    for name, shape in (("w", (40, 40)), ("v", (400,))):
        array = generator.standard_normal(shape).astype(np.float32)
        if name == "v":
            array = array[:40]
        model.graph.initializer.append(numpy_helper.from_array(array, name))
    path = folder / "model.onnx"
    onnx.save(model, path, save_as_external_data=True, location="weights.bin", size_threshold=100)
    return onnx.load(path, load_external_data=False)


def test_external_data_is_read_and_written(tmp_path: Path) -> None:
    external_model(tmp_path)
    graph = load(tmp_path / "model.onnx")
    assert all(graph.values[n].data.is_external for n in "wv")  # type: ignore[union-attr]
    feeds = random_feeds(graph)
    inside = tmp_path / "inside.onnx"
    save(graph, inside)
    assert not (tmp_path / "inside.onnx.data").exists()
    outside = tmp_path / "outside.onnx"
    save(graph, outside, external_data=True)
    held = {t.name: t for t in onnx.load(outside, load_external_data=False).graph.initializer}
    # Only what is 1024 bytes or more is worth a place in the other file.
    assert [n for n, t in held.items() if t.data_location == TensorProto.EXTERNAL] == ["w"]
    assert (tmp_path / "outside.onnx.data").stat().st_size == 6400
    expected = run(load(inside), feeds)
    assert np.abs(expected["y"]).max() > 1
    reference = onnx.reference.ReferenceEvaluator(onnx.load(tmp_path / "model.onnx"))
    assert np.allclose(reference.run(None, feeds)[0], expected["y"], rtol=1e-5, atol=1e-4)
    assert_same_outputs(expected, run(load(outside), feeds))
    # Saved again under the same name, from data that lies in the file being replaced.
    before = (tmp_path / "outside.onnx.data").read_bytes(), outside.read_bytes()
    save(load(outside), outside, external_data=True)
    assert ((tmp_path / "outside.onnx.data").read_bytes(), outside.read_bytes()) == before


def test_external_data_of_attributes_and_subgraphs(tmp_path: Path) -> None:
    model = parsed(
        """g (bool q, float[400] x) => (float[400] y) { y = If(q) <
            then_branch = then () => (float[400] t) { t = Add(x, w) },
            else_branch = other () => (float[400] e)
                { k = Constant<value = float[1] {0}>()  e = Add(x, k) }> }"""
    )
    weight = numpy_helper.from_array(np.arange(400, dtype=np.float32), "w")
    then, other = (a.g for a in model.graph.node[0].attribute)
    then.initializer.append(weight)
    other.node[0].attribute[0].t.CopyFrom(weight)
    path = tmp_path / "m.onnx"
    onnx.save(model, path, save_as_external_data=True, convert_attribute=True, size_threshold=100)
    graph = load(path)
    save(graph, tmp_path / "o.onnx", external_data=True)
    again = load(tmp_path / "o.onnx")
    for q in (True, False):
        feeds = {"q": np.array(q), "x": np.ones(400, np.float32)}
        assert np.array_equal(run(again, feeds)["y"], np.arange(400) + 1)


@pytest.mark.parametrize(
    "break_it, message",
    [
        (lambda t: _entry(t, "location", "../weights.bin"), "outside the model's folder"),
        (lambda t: _entry(t, "location", "/etc/passwd"), "outside the model's folder"),
        (lambda t: _entry(t, "location", "no.bin"), "which is not there"),
        (lambda t: _entry(t, "offset", "6000"), "needs 6400 bytes at offset 6000"),
    ],
)
def test_external_data_that_cannot_be_used(
    tmp_path: Path, break_it: Callable[[TensorProto], None], message: str
) -> None:
    model = external_model(tmp_path)
    break_it(next(t for t in model.graph.initializer if t.name == "w"))
    path = tmp_path / "broken.onnx"
    path.write_bytes(model.SerializeToString())
    assert_one_sentence(path, "tensor 'w'", message, str(path))


def _entry(tensor: TensorProto, key: str, text: str) -> None:
    next(e for e in tensor.external_data if e.key == key).value = text


def test_external_data_of_a_message_without_a_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"tensor 'w' .* was not read from a folder"):
        load(external_model(tmp_path))


# Bad input


def assert_one_sentence(source: Path | bytes | onnx.ModelProto, *parts: str) -> None:
    with pytest.raises(InputError) as caught:
        load(source)
    message = str(caught.value)
    assert "\n" not in message and len(message) < 400, message
    for part in parts:
        assert part in message, message


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


# Writing


def a_graph() -> Graph:
    return load(full_model())


def test_saving_is_deterministic(tmp_path: Path) -> None:
    for name in ("a", "b"):
        save(a_graph(), tmp_path / f"{name}.onnx")
        save(a_graph().copy(), tmp_path / f"{name}.copy.onnx")
    assert len({p.read_bytes() for p in tmp_path.iterdir()}) == 1
    assert len(list(tmp_path.iterdir())) == 4


def test_the_order_in_which_values_were_made_leaves_no_trace() -> None:
    graph = a_graph()
    a, kind = graph.values["a"], graph.values["y"].type
    late = graph.add("Relu", [a], outputs=["late"], types=[kind]).output
    late.declared = True
    graph.rename(a, "early")
    graph.make_constant(graph.values["o"])
    written = to_proto(graph)
    assert {"early", "late"} <= {entry.name for entry in written.graph.value_info}
    assert to_proto(load(written)) == written


def test_saved_files_have_the_usual_permissions(tmp_path: Path) -> None:
    usual = tmp_path / "usual"
    usual.touch()
    save(a_graph(), tmp_path / "m.onnx")
    assert (tmp_path / "m.onnx").stat().st_mode == usual.stat().st_mode


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no pipes among its files")
def test_unwritable_outputs_leave_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    os.mkfifo(tmp_path / "pipe")
    before = sorted(tmp_path.rglob("*"))
    for path, part in (
        (tmp_path / "missing" / "m.onnx", "does not exist; create it"),
        (tmp_path / "folder", "it is a folder"),
        (tmp_path / "pipe", "it is a device or a pipe; name a file"),
        (tmp_path / "file" / "m.onnx", "is a file; name a folder"),
        (tmp_path / ("n" * 300), "cannot write"),
    ):
        for external in (False, True):
            with pytest.raises(InputError, match=part) as caught:
                save(a_graph(), path, external_data=external)
            assert "\n" not in str(caught.value) and str(path) in str(caught.value)
        assert sorted(tmp_path.rglob("*")) == before
        assert (tmp_path / "pipe").is_fifo()
    for path, part in (
        (tmp_path / "missing" / "m.onnx", "does not exist"),
        (tmp_path / "folder", "it is a folder"),
        (tmp_path / "pipe", "it is a device or a pipe; name a file"),
        (tmp_path / "file" / "m.onnx", "is a file; name a folder"),
    ):
        with pytest.raises(InputError, match=part):
            check_writable(path)
    check_writable(tmp_path / "fine.onnx")
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), ValueError("a defect")])
def test_failure_while_writing_keeps_the_old_file(tmp_path: Path, error: Exception) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(b"old")
    with (
        pytest.raises(InputError if isinstance(error, OSError) else ValueError) as caught,
        replacing(path) as file,
    ):
        file.write(b"new")
        raise error
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == ["m.onnx"]
    assert not isinstance(error, OSError) or "No space left on device" in str(caught.value)


# The corpus


@pytest.mark.slow
def test_corpus_round_trip(corpus: Path, tmp_path: Path) -> None:
    files = sorted((corpus / "zoo").glob("*.onnx"))
    assert files, f"no models in {corpus / 'zoo'}"
    for path in files:
        graph = assert_round_trip(onnx.load(path), tmp_path)
        original = onnx.load(path)
        written = to_proto(graph)
        assert _interface(written) == _interface(original), path
        assert sorted(n.name for n in written.graph.node) == sorted(
            n.name for n in original.graph.node
        ), path
        assert written.functions == original.functions, path
        assert str(graph).startswith(graph.name or "graph")


def _interface(model: onnx.ModelProto) -> list[onnx.ValueInfoProto]:
    """Inputs and outputs, sizes below zero as unknown ones.

    Old files list initializers among the inputs, where nobody can feed them: they are left out.
    """
    constants = {t.name for t in model.graph.initializer} if model.ir_version < 4 else set()
    found = [v for v in model.graph.input if v.name not in constants] + list(model.graph.output)
    for value in found:
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_value < 0:
                dim.ClearField("dim_value")
    return found
