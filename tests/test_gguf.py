"""GGUF files, against the package gguf: its own quantization, dequantization and reader."""

from __future__ import annotations

import struct
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from onnxq.cli import main
from onnxq.errors import InputError
from onnxq.gguf import TYPES, export_gguf, import_gguf
from onnxq.ir import DataType, Graph, ModelInfo, TensorType, load, save, to_proto
from onnxq.quant.grouped import GROUPED_TYPES, GroupedTensor, is_exact_in_onnx
from onnxq.runtime import Session
from onnxq.runtime.operators import optimized_operators
from tests.helpers import RUNTIME, assert_equivalent, assert_same_graph, random_feeds, run

gguf = pytest.importorskip("gguf")

GROUPED = tuple(t for t in TYPES if t.startswith("q"))
EXACT = ("q4_0", "q5_0", "q8_0")
"""Types that DequantizeLinear can express for any weight."""


def model(opset: int = 21) -> Graph:
    """A network with weights of every kind that matters here."""
    rng = np.random.default_rng(0)
    graph = Graph("net", model=ModelInfo(10, {"": opset}, producer_name="tests"))
    x = graph.add_input("x", TensorType(DataType.FLOAT, (2, 8)))
    first = graph.constant(rng.standard_normal((8, 64)).astype(np.float32), "first.weight")
    bias = graph.constant(rng.standard_normal(64).astype(np.float32), "first.bias")
    second = graph.constant(rng.standard_normal((64, 5)).astype(np.float32), "second.weight")
    h = graph.add("Add", [graph.add("MatMul", [x, first]).output, bias]).output
    y = graph.add("MatMul", [graph.add("Relu", [h]).output, second]).output
    shape = graph.constant(np.array([-1]), "shape")
    y = graph.add("Reshape", [y, shape], outputs=["y"]).output
    y.type = TensorType(DataType.FLOAT, (10,))
    graph.add_output(y)
    graph.check()
    return graph


def tensors(path: Path) -> dict[str, Any]:
    return {t.name: t for t in gguf.GGUFReader(path).tensors}


def dequantized(tensor: Any) -> np.ndarray:
    shape = tuple(int(d) for d in reversed(tensor.shape))
    return np.asarray(gguf.dequantize(tensor.data, tensor.tensor_type)).reshape(shape)


@pytest.mark.parametrize("type", TYPES)
def test_export_holds_what_gguf_makes_of_the_weights(type: str, tmp_path: Path) -> None:
    graph, path = model(), tmp_path / "w.gguf"
    exported = {t.name: t for t in export_gguf(graph, path, type)}
    found = tensors(path)
    assert list(found) == ["first.weight", "first.bias", "second.weight"] == list(exported)
    wanted = {
        n: "F32" if type.startswith("q") or n == "first.bias" else type.upper() for n in found
    }
    wanted["first.weight"] = type.upper()
    assert {n: t.tensor_type.name for n, t in found.items()} == wanted
    assert {n: t.type for n, t in exported.items()} == wanted
    for name, tensor in found.items():
        numbers = graph.values[name].numpy()
        kind = gguf.GGMLQuantizationType[wanted[name]]
        np.testing.assert_array_equal(tensor.data, gguf.quantize(numbers, kind))
        assert dequantized(tensor).shape == numbers.shape
    reasons = {n: t.reason for n, t in exported.items() if t.reason}
    if type.startswith("q"):
        assert reasons == {
            "first.bias": "it has one axis only",
            "second.weight": "its last axis of 5 is no multiple of 32",
        }


def test_export_notes_the_model(tmp_path: Path) -> None:
    export_gguf(model(), tmp_path / "w.gguf")
    fields = gguf.GGUFReader(tmp_path / "w.gguf").fields
    assert fields["general.architecture"].contents() == "onnx"
    assert fields["general.name"].contents() == "net"
    assert fields["onnx.producer_name"].contents() == "tests"
    assert fields["onnx.opset"].contents() == 21


def test_export_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        export_gguf(model(), tmp_path / name, "q4_1")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.parametrize(
    "numbers, type, wanted, reason",
    [
        (np.full((2, 32), 1e5, np.float32), "q8_0", "F32", "beyond 65504"),
        (np.full((2, 32), np.nan, np.float32), "f16", "F32", "NaN"),
        (np.ones((2, 32), np.float16), "q4_0", "Q4_0", ""),
        (np.ones((2, 5), np.float16), "q4_0", "F16", "multiple"),
        (np.ones((2, 32), np.float64), "f16", "F16", ""),
        (np.ones((1, 1, 1, 1, 32), np.float32), "q8_0", "", "5 axes"),
        (np.float32(1), "q8_0", "", "0 axes"),
        (np.ones((0, 32), np.float32), "q8_0", "", "empty"),
    ],
)
def test_weights_that_do_not_fit_a_type(
    numbers: np.ndarray, type: str, wanted: str, reason: str, tmp_path: Path
) -> None:
    graph = model()
    value = graph.constant(np.asarray(numbers), "odd")
    graph.add_output(graph.add("Identity", [value]).output)
    exported = {t.name: t for t in export_gguf(graph, tmp_path / "w.gguf", type)}
    assert exported["odd"].type == wanted
    assert reason in exported["odd"].reason and bool(exported["odd"].reason) == bool(reason)
    found = tensors(tmp_path / "w.gguf")
    if wanted:
        np.testing.assert_array_equal(dequantized(found["odd"]), numbers.astype(np.float32))
    else:
        assert "odd" not in found


@pytest.mark.parametrize("opset", [13, 21])
@pytest.mark.parametrize("type", TYPES)
def test_import_gives_the_values_of_gguf(type: str, opset: int, tmp_path: Path) -> None:
    path = tmp_path / "w.gguf"
    export_gguf(model(opset), path, type)
    source = model(opset)
    for name in ("first.weight", "second.weight"):
        zeros = np.zeros(source.values[name].numpy().shape, np.float32)
        source.values[name].data = type_of(zeros)
    before = str(source)
    graph, imported = import_gguf(source, path)
    graph.check()
    onnx.checker.check_model(to_proto(graph), full_check=True)
    assert str(source) == before
    kept = type in EXACT
    assert (graph.values["first.weight"].producer is not None) == kept
    assert graph.opset == (21 if kept else opset)
    form = {"q4_0": "uint4", "q5_0": "int8", "q8_0": "int8"}.get(type, "float32")
    assert {t.name: t.form for t in imported}["first.weight"] == form
    # What runtimes read is what gguf reads, and the model computes with it.
    found = tensors(path)
    probe = graph.copy()
    probe.add_output(probe.add("Identity", [probe.values["first.weight"]]).output)
    x = np.random.default_rng(1).standard_normal((2, 8)).astype(np.float32)
    outputs = list(run(probe, {"x": x}).values())
    np.testing.assert_array_equal(outputs[1], dequantized(found["first.weight"]))
    plain = model(opset)
    plain.values["first.weight"].data = type_of(dequantized(found["first.weight"]))
    plain.values["second.weight"].data = type_of(dequantized(found["second.weight"]))
    np.testing.assert_allclose(run(plain, {"x": x})["y"], outputs[0], rtol=1e-5, atol=1e-5)


LINEAR = {
    "transposed MatMul": "wt = Transpose<perm = [1, 0]>(w) y = MatMul(x, wt)",
    "Gemm": "y = Gemm<transB = 1>(x, w, b)",
    "Gemm of a transposed input": "y = Gemm<transA = 1, transB = 1, beta = 0.5>(x, w, b)",
}
"""Products whose weight has its inputs on the last axis."""


def filled(text: str, **constants: np.ndarray) -> Graph:
    """A graph whose inputs of these names are constants."""
    graph = Graph.from_text(f'<ir_version: 10, opset_import: ["": 21]> g {text}')
    for name, numbers in constants.items():
        graph.values[name].data = type_of(numbers)
        graph.make_constant(graph.values[name])
    return graph


def linear(body: str, weight: np.ndarray) -> Graph:
    rows = "[5, 96]" if "transA" not in body else "[96, 5]"
    return filled(
        f"(float{rows} x, float[20, 96] w, float[20] b) => (float[5, 20] y) {{ {body} }}",
        w=weight,
        b=np.arange(20, dtype=np.float32),
    )


@st.composite
def blocks(draw: st.DrawFn, type: str) -> np.ndarray:
    """A matrix [20, 96] as a file holds it: any codes, scales of either sign or 0, any minimum."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    size = GROUPED_TYPES[type].group_bytes
    data = rng.integers(0, 256, (20 * 3, size), dtype=np.uint8)
    scale = rng.standard_normal(60) * draw(st.sampled_from([1e-3, 0.1, 4.0]))
    scale[rng.random(60) < 0.2] = 0
    minimum = rng.standard_normal(60) * draw(st.sampled_from([0.0, 0.02, 30.0]))
    header = np.stack([scale, minimum], 1).astype("<f2")
    data[:, :4] = header.view(np.uint8)
    return data.reshape(20, 3 * size)


@pytest.mark.parametrize("body", LINEAR.values(), ids=LINEAR)
@pytest.mark.parametrize("type", ["Q4_1", "Q5_1"])
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_blocks_with_any_minimum_are_exact_in_products(
    type: str, body: str, data: st.DataObject, tmp_path: Path
) -> None:
    raw, kind = data.draw(blocks(type)), gguf.GGMLQuantizationType[type]
    numbers = gguf.dequantize(raw, kind)
    if is_exact_in_onnx(GroupedTensor.from_bytes(raw, GROUPED_TYPES[type])):
        return
    write(tmp_path / "w.gguf", {"w": (raw, kind)})
    graph, (imported,) = import_gguf(linear(body, np.zeros_like(numbers)), tmp_path / "w.gguf")
    form = {"Q4_1": "uint4", "Q5_1": "int8"}[type]
    assert (imported.form, imported.reason) == (f"{form} + offsets", "")
    assert graph.find("w") is None and not [n for n in graph.initializers() if n.shape == (20, 96)]
    x = random_feeds(graph)["x"]
    rows = (x.T if "transA" in body else x).astype(np.float64)
    bias = 0 if "Gemm" not in body else np.arange(20) * (0.5 if "beta" in body else 1)
    wanted = rows @ numbers.T.astype(np.float64) + bias
    # Rounding in float32 of the parts, of which the offsets can be larger than the sum.
    largest = np.abs(rows) @ np.abs(numbers.T) + np.abs(rows).sum(1, keepdims=True) * 64 + 20
    assert (np.abs(run(graph, {"x": x})["y"] - wanted) <= 1e-6 * largest).all()


@pytest.mark.skipif(RUNTIME < (1, 25), reason="onnxruntime 1.24 fuses no 8 bits and no Gemm")
@pytest.mark.parametrize("body", LINEAR.values(), ids=LINEAR)
@pytest.mark.parametrize("type", ["Q4_1", "Q5_1"])
def test_products_with_offsets_are_fused(type: str, body: str, tmp_path: Path) -> None:
    numbers = np.random.default_rng(3).standard_normal((20, 96)).astype(np.float32)
    export_gguf(linear(body, numbers), tmp_path / "w.gguf", type.lower())
    empty = linear(body, np.zeros_like(numbers))
    for bias in filter(None, [empty.find("b")]):
        bias.data = type_of(np.zeros(20, np.float32))
    graph, _ = import_gguf(empty, tmp_path / "w.gguf")
    assert optimized_operators(to_proto(graph))["com.microsoft:MatMulNBits"] == 1
    in_float = Session(to_proto(graph), config={"session.qdq_matmulnbits_accuracy_level": "0"})
    feeds = random_feeds(graph)
    plain = linear(body, dequantized(tensors(tmp_path / "w.gguf")["w"]))
    wanted = run(plain, feeds)["y"]
    np.testing.assert_allclose(dict(in_float.run(feeds))["y"], wanted, rtol=1e-4, atol=1e-4)


def test_products_of_one_input_share_its_sums(tmp_path: Path) -> None:
    """In onnx text: before, two products; after, each in two parts and one sum of blocks."""
    rng = np.random.default_rng(0)
    numbers = {name: rng.standard_normal((32, 64)).astype(np.float32) for name in ("v", "w")}
    source = filled(
        "(float[2, T, 64] x, float[32, 64] v, float[32, 64] w) => "
        "(float[2, T, 32] y, float[2, T, 32] z) "
        "{ vt = Transpose<perm = [1, 0]>(v) y = MatMul(x, vt) "
        "wt = Transpose<perm = [1, 0]>(w) z = MatMul(x, wt) }",
        **numbers,
    )
    export_gguf(source, tmp_path / "w.gguf", "q4_1")
    found, _ = import_gguf(source, tmp_path / "w.gguf")
    parts = {"q": "q", "s": "scale", "z": "zero_point", "o": "offset"}
    wanted = filled(
        "(float[2, T, 64] x, uint4[64, 32] vq, float[2, 32] vs, uint4[2, 32] vz, float[2, 32] vo, "
        "uint4[64, 32] wq, float[2, 32] ws, uint4[2, 32] wz, float[2, 32] wo) => "
        "(float[2, T, 32] y, float[2, T, 32] z) "
        "<int64[4] cut = {0, 0, 2, 32}, int64[1] last = {-1}> { "
        "blocks = Reshape(x, cut) sums = ReduceSum<keepdims = 0>(blocks, last) "
        "vd = DequantizeLinear<axis = 0, block_size = 32>(vq, vs, vz) "
        "yp = MatMul(x, vd) yl = MatMul(sums, vo) y = Sum(yp, yl) "
        "wd = DequantizeLinear<axis = 0, block_size = 32>(wq, ws, wz) "
        "zp = MatMul(x, wd) zl = MatMul(sums, wo) z = Sum(zp, zl) }",
        **{w + s: found.values[f"{w}_{part}"].numpy() for w in "vw" for s, part in parts.items()},
    )
    assert_same_graph(found, wanted)


@pytest.mark.parametrize(
    "body, reason",
    [
        ("i = Cast<to = 7>(x) y = Gather(w, i)", "Gather making 'y' reads it, and not as a"),
        ("wt = Transpose(w) t = MatMul(x, wt) y = MatMul(t, w)", "along the outputs of MatMul"),
        ("y = Gemm<transB = 1, alpha = 2.0>(x, w)", "Gemm making 'y' has an alpha"),
        ("c = Gemm<transB = 1>(x, w) y = Identity(w)", "Identity making 'y' reads it"),
        ("wt = Transpose(w) xs = Unsqueeze(x, s) y = MatMul(xs, wt)", "is not known"),
        ("y = Identity(x)", "nothing reads it"),
    ],
)
def test_blocks_with_any_minimum_elsewhere_become_floats(
    body: str, reason: str, tmp_path: Path
) -> None:
    graph = filled(
        f"(float[5, 96] x, int64[n] s, float[20, 96] w) => (float y) {{ {body} }}",
        w=np.random.default_rng(0).random((20, 96), np.float32),
    )
    export_gguf(graph, tmp_path / "w.gguf", "q5_1")
    done, (imported,) = import_gguf(graph, tmp_path / "w.gguf")
    assert imported.form == "float32"
    assert imported.reason.startswith("its blocks have offsets, and ") and reason in imported.reason
    found = tensors(tmp_path / "w.gguf")["w"]
    np.testing.assert_array_equal(done.values["w"].numpy(), dequantized(found))


def type_of(numbers: np.ndarray) -> Any:
    from onnxq.ir import Tensor

    return Tensor(numbers)


def test_blocks_with_minimum_stay_quantized_where_that_is_exact(tmp_path: Path) -> None:
    source = model()
    numbers = np.tile(np.arange(16, dtype=np.float32) - 8, (8, 4))
    source.values["first.weight"].data = type_of(numbers)
    export_gguf(source, tmp_path / "w.gguf", "q4_1")
    graph, imported = import_gguf(model(), tmp_path / "w.gguf")
    assert {t.name: t.form for t in imported}["first.weight"] == "uint4"
    assert_equivalent(source, graph, exact=False, rtol=1e-6)


def test_types_that_onnxq_does_not_write(tmp_path: Path) -> None:
    """A K-quant is dequantized by gguf."""
    kind = gguf.GGMLQuantizationType.Q6_K
    block, size = gguf.GGML_QUANT_SIZES[kind]
    raw = np.random.default_rng(0).integers(0, 60, (4, 2 * size)).astype(np.uint8)
    graph = model()
    graph.constant(np.zeros((4, 2 * block), np.float32), "wide")
    graph.add_output(graph.add("Identity", [graph.values["wide"]], outputs=["z"]).output)
    write(tmp_path / "w.gguf", {"wide": (raw, kind)})
    done, imported = import_gguf(graph, tmp_path / "w.gguf")
    assert [(t.type, t.form) for t in imported] == [("Q6_K", "float32")]
    assert imported[0].reason == "ONNX has no such blocks"
    np.testing.assert_array_equal(done.values["wide"].numpy(), gguf.dequantize(raw, kind))


def write(path: Path, content: dict[str, Any]) -> None:
    writer = gguf.GGUFWriter(path, "other")
    writer.add_array("some.words", ["a", "b"])
    writer.add_array("some.numbers", [1, 2, 3])
    for name, (data, kind) in content.items():
        writer.add_tensor(name, data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_weights_that_may_be_overridden_and_other_floats(tmp_path: Path) -> None:
    export_gguf(model(), tmp_path / "w.gguf", "q8_0")
    wanted = dequantized(tensors(tmp_path / "w.gguf")["first.weight"])
    graph = model()
    graph.values["first.weight"].data = type_of(np.zeros((8, 64), np.float16))
    graph.values["first.weight"].type = TensorType(DataType.FLOAT16, (8, 64))
    half, imported = import_gguf(graph, tmp_path / "w.gguf")
    reasons = {t.name: t.reason for t in imported if t.reason}
    assert reasons == {"first.weight": "not exact: rounded to float16, which the weight is"}
    found = half.values["first.weight"]
    assert found.dtype is DataType.FLOAT16 and found.producer is None
    np.testing.assert_array_equal(found.numpy(), wanted.astype(np.float16))
    text = (
        '<ir_version: 8, opset_import: ["": 21]> g (float[2, 8] x, float[8, 64] w) => '
        "(float[2, 64] y) { y = MatMul(x, w) }"
    )
    fed = Graph.from_text(text)
    fed.values["w"].data = type_of(np.zeros((8, 64), np.float32))
    write(
        tmp_path / "v.gguf",
        {"w": (tensors(tmp_path / "w.gguf")["first.weight"].data, gguf.GGMLQuantizationType.Q8_0)},
    )
    done, (imported_fed,) = import_gguf(fed, tmp_path / "v.gguf")
    assert "callers may override" in imported_fed.reason
    assert [v.name for v in done.inputs] == ["x", "w"]
    assert done.values["w"].data is not None
    np.testing.assert_array_equal(done.values["w"].data.numpy(), wanted)


def test_shapes_and_names_that_do_not_fit(tmp_path: Path) -> None:
    f32 = gguf.GGMLQuantizationType.F32
    content = {
        "first.weight": (np.zeros((64, 8), np.float32), f32),
        "nobody": (np.zeros((2, 2), np.float32), f32),
        "x": (np.zeros((2, 8), np.float32), f32),
        "shape": (np.zeros(1, np.float32), f32),
    }
    write(tmp_path / "w.gguf", content)
    with pytest.raises(InputError) as caught:
        import_gguf(model(), tmp_path / "w.gguf")
    sentence = str(caught.value)
    assert "no weight called 'nobody', 'x'" in sentence
    assert "'first.weight' is [64, 8] and the model's is float32[8, 64]" in sentence
    assert "'shape' is [1] and the model's is int64[1]" in sentence


def test_nothing_to_write_and_unknown_type(tmp_path: Path) -> None:
    empty = Graph.from_text(
        '<ir_version: 8, opset_import: ["": 21]> g (float[2] x) => (float[2] y) { y = Neg(x) }'
    )
    with pytest.raises(InputError, match="no float weights"):
        export_gguf(empty, tmp_path / "w.gguf")
    with pytest.raises(InputError, match="'q3_0' is not known; available: q4_0, "):
        export_gguf(model(), tmp_path / "w.gguf", "q3_0")
    assert not list(tmp_path.iterdir())


def test_package_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(InputError, match=r'pip install "onnxq\[gguf\]"'):
        export_gguf(model(), tmp_path / "w.gguf")


def refused(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    assert main([str(a) for a in arguments]) == 2
    out, err = capsys.readouterr()
    assert not out and err.startswith("onnxq: error: ") and err.count("\n") == 1
    return err


def test_hostile_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every one is refused with a sentence, or read where what was changed does not matter."""
    onnx_path, path, out = tmp_path / "m.onnx", tmp_path / "w.gguf", tmp_path / "out.onnx"
    save(model(), onnx_path)
    export_gguf(model(), path, "q8_0")
    whole = path.read_bytes()

    def sentence(data: bytes) -> str:
        path.write_bytes(data)
        error = refused(capsys, "gguf", "import", onnx_path, path, "-o", out)
        assert not out.exists()
        return error

    assert "is empty" in sentence(b"")
    assert "no GGUF file" in sentence(b"GGML" + whole[4:])
    assert "version 9" in sentence(whole[:4] + struct.pack("<I", 9) + whole[8:])
    # Counts that would take ages to go through.
    assert "damaged" in sentence(whole[:8] + struct.pack("<Q", 1 << 62) + whole[16:])
    assert "damaged" in sentence(whole[:16] + struct.pack("<Q", 1 << 62) + whole[24:])
    array = struct.pack("<Q1sIIQ", 1, b"k", 9, 4, 1 << 60)
    assert "damaged" in sentence(b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + array)
    for size in range(1, len(whole) - 1, 61):
        assert str(path) in sentence(whole[:size])


def test_flipped_bits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    onnx_path, path, out = tmp_path / "m.onnx", tmp_path / "w.gguf", tmp_path / "out.onnx"
    save(model(), onnx_path)
    export_gguf(model(), path, "q4_0")
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    for _ in range(100):
        # Most of them in the header, where they do harm.
        at = int(rng.integers(0, 500))
        data = bytearray(whole)
        data[at] ^= 1 << int(rng.integers(0, 8))
        path.write_bytes(bytes(data))
        code = main(["gguf", "import", str(onnx_path), str(path), "-o", str(out), "-q"])
        errors = capsys.readouterr().err
        assert code in (0, 2), errors
        assert errors.count("\n") == (1 if code else 0)


def test_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, path, out = tmp_path / "m.onnx", tmp_path / "w.gguf", tmp_path / "out.onnx"
    save(model(), source)
    assert main(["gguf", "export", str(source), "-o", str(path), "--type", "q8_0"]) == 0
    printed = capsys.readouterr().out
    assert "first.weight" in printed and "its last axis of 5" in printed
    assert main(["gguf", "import", str(source), str(path), "-o", str(out)]) == 0
    assert "int8" in capsys.readouterr().out
    assert load(out).values["first.weight"].producer is not None
    text = refused(capsys, "gguf", "import", source, path, "-o", path)
    assert "would replace" in text
    assert "would replace" in refused(capsys, "gguf", "export", source, "-o", source)
    assert "takes no GGUF" in refused(capsys, "gguf", "export", source, path, "-o", out)
    assert "needs the GGUF file" in refused(capsys, "gguf", "import", source, "-o", out)
    typed = refused(capsys, "gguf", "import", source, path, "-o", out, "--type", "q8_0")
    assert "leave --type out" in typed
    assert "no.gguf" in refused(capsys, "gguf", "import", source, tmp_path / "no.gguf", "-o", out)
    assert "cannot read" in refused(capsys, "gguf", "import", source, tmp_path, "-o", out)
    assert "required" in refused(capsys, "gguf")
