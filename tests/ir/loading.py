"""What tests of loading and saving share."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx.checker
import onnx.reference
import pytest
from onnx import helper, numpy_helper

from onnxq.errors import InputError
from onnxq.ir import load

HEAD = '<ir_version: 10, opset_import: ["": 21]>'


def parsed(text: str) -> onnx.ModelProto:
    return onnx.parser.parse_model(HEAD + text)


def in_order(proto: onnx.ModelProto) -> bytes:
    return proto.SerializeToString(deterministic=True)


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


def assert_one_sentence(source: Path | bytes | onnx.ModelProto, *parts: str) -> None:
    with pytest.raises(InputError) as caught:
        load(source)
    message = str(caught.value)
    assert "\n" not in message and len(message) < 400, message
    for part in parts:
        assert part in message, message
