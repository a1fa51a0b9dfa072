"""Sessions: what the model's interface is, what runs, and what is refused in one sentence."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnx.parser
import onnx.reference
import onnxruntime as ort
import pytest

from onnxq.errors import InputError
from onnxq.runtime import Session, TensorSpec, missing_provider, resolve_provider
from onnxq.runtime.failures import one_sentence
from onnxq.runtime.providers import distinct_providers, provider_alias
from onnxq.runtime.session import told_as

HEADER = '<ir_version: 8, opset_import: ["" : 19]>'
RELU = "g (float[N, 4] x) => (float[N, 4] y) { y = Relu(x) }"
ADD_RELU = "g (float[N, 4] x) => (float[N, 4] s, float[N, 4] y) { s = Add(x, x) y = Relu(s) }"
RESHAPE = "g (float[M, K] x, int64[L] shape) => (float[A] y) { y = Reshape(x, shape) }"


def parse(text: str) -> onnx.ModelProto:
    return onnx.parser.parse_model(f"{HEADER} {text}")


def sentence(call: Callable[[], object]) -> str:
    """Return the text of the InputError that the call raises, which must be one sentence."""
    with pytest.raises(InputError) as caught:
        call()
    text = str(caught.value)
    assert "\n" not in text
    assert "ONNXRuntimeError" not in text
    assert "onnxruntime_src" not in text
    return text


def test_outputs_equal_the_reference_evaluator_from_proto_bytes_and_path(tmp_path: Path) -> None:
    model = parse(ADD_RELU)
    path = tmp_path / "m.onnx"
    onnx.save(model, path)
    x = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
    expected = onnx.reference.ReferenceEvaluator(model).run(None, {"x": x})
    for source in (model, model.SerializeToString(), path, str(path)):
        outputs = Session(source).run({"x": x})
        assert list(outputs) == ["s", "y"]
        np.testing.assert_array_equal(outputs["s"], expected[0])
        np.testing.assert_array_equal(outputs["y"], expected[1])


def test_named_outputs_come_in_the_order_asked() -> None:
    x = np.array([[-1, 2, -3, 4]], np.float32)
    outputs = Session(parse(ADD_RELU)).run({"x": x}, ["y"])
    assert list(outputs) == ["y"]
    np.testing.assert_array_equal(outputs["y"], [[0, 4, 0, 8]])
    assert list(Session(parse(ADD_RELU)).run({"x": x}, ["y", "s"])) == ["y", "s"]


def test_specs_tell_scalars_from_unknown_rank_and_tensors_from_others() -> None:
    text = """g (float[N, 3, ?] x, int64 steps, float[] any, string[2] words, seq(float[2]) many)
        => (float[N, 3, ?] y, int64 s, float[] a, string[2] w, seq(float[2]) m)
        { y = Identity(x) s = Identity(steps) a = Identity(any) w = Identity(words)
          m = Identity(many) }"""
    x, steps, unranked, words, many = Session(parse(text)).inputs
    assert x == TensorSpec("x", np.dtype(np.float32), "tensor(float)", ("N", 3, None))
    assert str(x) == "x float32 [N, 3, ?]"
    assert (steps.shape, steps.dtype) == ((), np.int64)
    assert unranked.shape is None
    assert str(unranked) == "any float32 of unknown rank"
    assert (words.dtype, str(words)) == (np.dtype(object), "words string [2]")
    assert (many.dtype, many.shape) == (None, None)


def test_overridable_initializers_are_no_inputs() -> None:
    model = parse("g (float[2] x, float[2] w) => (float[2] y) { y = Add(x, w) }")
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.ones(2, np.float32), "w"))
    session = Session(model)
    assert [spec.name for spec in session.inputs] == ["x"]
    np.testing.assert_array_equal(session.run({"x": np.zeros(2, np.float32)})["y"], [1, 1])


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("bfloat16", ml_dtypes.bfloat16),
        ("float8e4m3fn", ml_dtypes.float8_e4m3fn),
        ("float8e5m2", ml_dtypes.float8_e5m2),
        ("float16", np.float16),
    ],
)
def test_types_that_numpy_lacks_pass_through(name: str, dtype: type) -> None:
    text = f"g ({name}[N, 2] x, float[N] z) => ({name}[N, 2] y, float[N] w)"
    session = Session(parse(text + " { y = Identity(x) w = Neg(z) }"))
    x = np.array([[1, -2], [3, 0.5], [0, -0.0]], np.float32).astype(dtype)
    assert session.inputs[0].dtype == np.dtype(dtype)
    outputs = session.run({"x": x, "z": np.arange(3, dtype=np.float32)})
    assert outputs["y"].dtype == np.dtype(dtype)
    assert outputs["y"].tobytes() == x.tobytes()
    np.testing.assert_array_equal(outputs["w"], [0, -1, -2])


def test_external_data_is_found_beside_the_file(tmp_path: Path) -> None:
    model = parse("g (float[2, 300] x) => (float[2, 2] y) { y = MatMul(x, w) }")
    weight = np.random.default_rng(0).normal(size=(300, 2)).astype(np.float32)
    model.graph.initializer.append(onnx.numpy_helper.from_array(weight, "w"))
    path = tmp_path / "m.onnx"
    onnx.save(model, path, save_as_external_data=True, location="w.bin")
    x = np.ones((2, 300), np.float32)
    np.testing.assert_allclose(Session(path).run({"x": x})["y"], x @ weight, rtol=1e-4)


def test_the_optimized_graph_is_written(tmp_path: Path) -> None:
    text = "g (float[2] x) => (float[2] y) { a = Identity(x) b = Relu(a) y = Identity(b) }"
    written = {}
    for level in ("all", "none"):
        path = tmp_path / f"{level}.onnx"
        Session(parse(text), optimization=level, save_optimized=path)
        written[level] = [node.op_type for node in onnx.load(path).graph.node]
    assert written == {"all": ["Relu"], "none": ["Identity", "Relu", "Identity"]}


def test_a_missing_folder_for_the_optimized_graph_is_named(tmp_path: Path) -> None:
    path = tmp_path / "nowhere" / "m.onnx"
    assert str(path) in sentence(lambda: Session(parse(RELU), save_optimized=path))


def test_session_options_reach_onnxruntime(tmp_path: Path) -> None:
    text = sentence(lambda: Session(parse(RELU), config={"": "1"}))
    assert "session option ''" in text
    qdq = """g (float[4] x) => (float[4] y) {
        s = Constant<value = float {0.5}>() z = Constant<value = uint8 {3}>()
        q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z) n = Sigmoid(d)
        o = QuantizeLinear(n, s, z) y = DequantizeLinear(o, s, z) }"""
    operators = {}
    for disabled in ("0", "1"):
        path = tmp_path / f"{disabled}.onnx"
        config = {"session.disable_quant_qdq": disabled}
        Session(parse(qdq), config=config, save_optimized=path)
        operators[disabled] = {node.op_type for node in onnx.load(path).graph.node}
    assert "QLinearSigmoid" in operators["0"]
    assert "Sigmoid" in operators["1"]


@pytest.mark.parametrize("name", ["cpu", "CPU", "CPUExecutionProvider", "cpuexecutionprovider"])
def test_a_provider_has_a_short_and_a_full_name(name: str) -> None:
    assert resolve_provider(name) == "CPUExecutionProvider"
    assert Session(parse(RELU), provider=name).provider == "CPUExecutionProvider"
    assert provider_alias(name) == "cpu"


def test_providers_differ_in_more_than_how_they_are_written() -> None:
    written = ("cuda{a=1, b=2}", "CPU", "CUDAExecutionProvider{b='2', a=1}", "cpu", "cuda{a=1}")
    assert distinct_providers(written) == ("cuda{a=1, b=2}", "CPU", "cuda{a=1}")


@pytest.mark.parametrize(
    ("name", "full"), [("directml", "DmlExecutionProvider"), ("qnn", "QNNExecutionProvider")]
)
def test_providers_have_their_usual_names(
    monkeypatch: pytest.MonkeyPatch, name: str, full: str
) -> None:
    monkeypatch.setattr(ort, "get_available_providers", lambda: [full, "CPUExecutionProvider"])
    assert resolve_provider(name) == full
    assert provider_alias(name) == provider_alias(full)


def test_a_provider_that_is_not_installed_is_named_with_those_that_are() -> None:
    text = sentence(lambda: Session(parse(RELU), provider="teapot"))
    assert "'teapot'" in text
    assert "cpu" in text.split("available:")[1]
    assert "package" not in text


@pytest.mark.parametrize(
    ("name", "package"),
    [
        ("cuda", "onnxruntime-gpu"),
        ("TensorrtExecutionProvider", "onnxruntime-gpu"),
        ("openvino", "onnxruntime-openvino"),
        ("qnn", "onnxruntime-qnn"),
        ("directml", "onnxruntime-directml"),
    ],
)
def test_a_provider_that_a_package_brings_is_named_with_it(
    monkeypatch: pytest.MonkeyPatch, name: str, package: str
) -> None:
    monkeypatch.setattr(ort, "get_available_providers", lambda: ["CPUExecutionProvider"])
    assert missing_provider("cpu") == ""
    assert f"the package {package} in place of onnxruntime brings it" in missing_provider(name)


def test_a_provider_that_does_not_start_is_no_silent_fallback(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class CpuOnly:
        def __init__(self, *_: object, **__: object) -> None: ...

        def get_providers(self) -> list[str]:
            return ["CPUExecutionProvider"]

    cuda = "CUDAExecutionProvider"
    monkeypatch.setattr(ort, "get_available_providers", lambda: [cuda, "CPUExecutionProvider"])
    monkeypatch.setattr(ort, "InferenceSession", CpuOnly)
    text = sentence(lambda: Session(parse(RELU), provider="cuda"))
    assert "provider 'cuda' could not be started" in text


def test_unusable_files_are_named(tmp_path: Path) -> None:
    good = parse(RELU).SerializeToString()
    contents = {"text.onnx": b"hello", "empty.onnx": b"", "cut.onnx": good[: len(good) // 2]}
    for name, content in contents.items():
        path = tmp_path / name
        path.write_bytes(content)
        assert name in sentence(lambda path=path: Session(path))
    assert "no such file" in sentence(lambda: Session(tmp_path / "missing.onnx"))
    assert "not a file" in sentence(lambda: Session(tmp_path))


@pytest.mark.parametrize(
    ("text", "fragment"),
    [
        ("g (float[2] x) => (float[2] y) { y = Wobble(x) }", "Wobble"),
        ("g (float[2] x) => (float[2] y) { y = Relu(w) }", "'w'"),
        ("g (float[2] x) => (float[2] y) { y = foreign.Op(x) }", "foreign"),
        ("g (double[2] x) => (double[2] y) { y = Elu(x) }", "Elu"),
    ],
)
def test_models_that_onnxruntime_cannot_load(text: str, fragment: str) -> None:
    message = sentence(lambda: Session(parse(text)))
    assert message.startswith("onnxruntime cannot load model 'g': ")
    assert fragment in message


def test_a_too_new_ir_version_is_stated_without_cpp() -> None:
    model = parse(RELU)
    model.ir_version = 99
    text = sentence(lambda: Session(model))
    assert "load model 'g': Unsupported model IR version: 99" in text


@pytest.mark.parametrize(
    ("feeds", "fragment"),
    [
        ({"x": np.zeros((2, 3), np.float32)}, "Got: 3 Expected: 4"),
        ({"x": np.zeros((2, 4), np.float64)}, "tensor(double)"),
        ({"x": np.zeros((2, 4, 1), np.float32)}, "rank"),
        ({}, "x"),
        ({"x": np.zeros((2, 4), np.float32), "z": np.zeros(1)}, "z"),
    ],
)
def test_feeds_that_do_not_fit(feeds: dict[str, np.ndarray], fragment: str) -> None:
    session = Session(parse(RELU))
    text = sentence(lambda: session.run(feeds))
    assert text.startswith("onnxruntime cannot run model 'g': ")
    assert fragment in text


def test_a_failing_operator_is_told_without_cpp_places() -> None:
    session = Session(parse(RESHAPE))
    feeds = {"x": np.zeros((2, 4), np.float32), "shape": np.array([7])}
    text = sentence(lambda: session.run(feeds))
    assert "Reshape" in text
    assert "cannot be reshaped" in text
    assert "::" not in text
    assert ".h:" not in text


def test_onnxruntime_prints_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    session = Session(parse(RESHAPE))
    feeds = {"x": np.zeros((2, 4), np.float32), "shape": np.array([7])}
    sentence(lambda: session.run(feeds))
    sentence(lambda: Session(b"garbage"))
    captured = capfd.readouterr()
    assert captured.out + captured.err == ""


def test_long_messages_are_cut_and_empty_ones_named() -> None:
    assert len(one_sentence(RuntimeError("word " * 1000))) < 420
    assert one_sentence(MemoryError()) == "MemoryError"


@pytest.mark.parametrize("name", ["int4", "uint4", "int2", "uint2"])
def test_outputs_below_a_byte_are_unpacked(name: str) -> None:
    model = onnx.parser.parse_model(
        f"""<ir_version: 13, opset_import: ["": 25]>
        g (float[5] x) => ({name}[5] y) <float s = {{1.0}}, {name} z = {{0}}>
        {{ y = QuantizeLinear(x, s, z) }}"""
    )
    x = np.array([0, 1, 1, 0, 1], dtype=np.float32)
    given = Session(model).run({"x": x})["y"]
    assert given.dtype.name == name
    np.testing.assert_array_equal(given.astype(np.float32), x)


@pytest.mark.parametrize("name", ["the model in memory", "'given.onnx'"])
def test_messages_quote_what_stands_for_a_path_only_if_it_is_one(tmp_path: Path, name: str) -> None:
    path = tmp_path / "made.onnx"
    with pytest.raises(InputError) as caught, told_as(path, name):
        Session(path)
    assert str(caught.value) == f"{name}: no such file"
