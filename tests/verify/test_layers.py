"""The error of every layer against numpy."""

from __future__ import annotations

import math
import multiprocessing
import re
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import faults
import numpy as np
import pytest

from onnxq.data import Dataset, read
from onnxq.ir import Context, Graph, infer_types, to_proto
from onnxq.passes.weights.quantize_dynamic import QuantizeDynamic
from onnxq.runtime import Session
from onnxq.verify import layers
from onnxq.verify.pairs import behind
from onnxq.verify.result import LayerFacts
from tests.helpers import random_feeds, run
from tests.networks import chain
from tests.quantization import observed_bounds, quantized

TEXT = """<ir_version: 8, opset_import: ["": 17]>
g (float[{batch}, 1, 4, 4] x) => (float[{batch}, 1, 4, 4] y)
<float[1, 1, 1, 1] w = {{{weight}}}>
{{ c = Conv(x, w) r = Relu(c) e = Exp(r) y = Conv(e, w) }}"""


def _graph(weight: float = 0.7, batch: str = "N") -> Graph:
    graph = Graph.from_text(TEXT.format(weight=weight, batch=batch))
    infer_types(graph)
    return graph


def _samples(count: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((count, 1, 4, 4)).astype(np.float32)


def _data(graph: Graph, samples: np.ndarray) -> object:
    return read({"x": samples}, Session(to_proto(graph)).inputs, batch_size=4)


def compare_layers(before: Graph, after: Graph, data: Dataset) -> tuple[LayerFacts, ...]:
    return layers.compare_layers(before, after, data, 1 << 30)[0]


def _sqnr(reference: np.ndarray, candidate: np.ndarray) -> float:
    reference = reference.astype(np.float64)
    noise = np.square(reference - candidate).sum()
    return float(10 * np.log10(np.square(reference).sum() / noise))


def _inner(graph: Graph, names: list[str], samples: np.ndarray) -> dict[str, np.ndarray]:
    exposed = graph.copy()
    exposed.set_outputs([exposed.values[n] for n in names])
    return run(exposed, {"x": samples})


def test_every_layer_is_compared_with_the_float_value_of_its_name() -> None:
    before, samples = _graph(), _samples(10)
    after = quantized(before, observed_bounds(before.copy(), {"x": samples}))
    found = {layer.node: layer for layer in compare_layers(before, after, _data(before, samples))}
    assert list(found) == ["c", "r", "e", "y_replaced"]
    wanted = _inner(before, ["c", "r", "e", "y"], samples)
    theirs = _inner(after, ["c", "r", "e", "y"], samples)
    for name in ("c", "r", "e"):
        assert found[name].sqnr_db == pytest.approx(_sqnr(wanted[name], theirs[name]), abs=0.1)
    # The last one's name is that of the value behind the pair, which the caller gets.
    assert found["y_replaced"].sqnr_db == pytest.approx(_sqnr(wanted["y"], theirs["y"]), abs=0.1)
    assert [layer.precision for layer in found.values()] == ["int8", "int8", "float32", "int8"]


def test_equal_models_have_no_error() -> None:
    graph = _graph()
    found = compare_layers(graph, graph.copy(), _data(graph, _samples(3)))
    assert {layer.sqnr_db for layer in found} == {math.inf}


def test_what_the_float_model_does_not_have_is_not_compared() -> None:
    before = _graph()
    after = before.copy()
    after.rename(after.values["r"], "other")
    found = {layer.node: layer.sqnr_db for layer in compare_layers(
        before, after, _data(before, _samples(3)))}  # fmt: skip
    assert found == {"c": math.inf, "other": None, "e": math.inf, "y": math.inf}


def test_nothing_in_common_needs_no_run() -> None:
    before, after = _graph(), _graph()
    for at, name in enumerate(("c", "r", "e", "y")):
        after.rename(after.values[name], f"v{at}")
    found = compare_layers(before, after, _data(before, _samples(3)))
    assert [layer.sqnr_db for layer in found] == [None] * 4


def test_padding_does_not_count() -> None:
    before, samples = _graph(batch="4"), _samples(6)
    bounds = observed_bounds(before.copy(), {"x": samples[:4]})
    after = quantized(before, bounds)
    free = _graph()
    found = compare_layers(before, after, _data(before, samples))
    wanted = compare_layers(free, quantized(free, bounds), _data(free, samples))
    for one, other in zip(found, wanted, strict=True):
        assert one.sqnr_db == pytest.approx(other.sqnr_db, rel=1e-6)


def _most_beyond_start() -> int:
    """Bytes that a comparison takes at its peak, of models in segments with 160 MB of values."""
    rng = np.random.default_rng(0)
    graphs = []
    for scale in (1.0, 1.001):
        graph = Graph.from_text("""<ir_version: 9, opset_import: ["": 20]>
            g (float[1, 8192, 128] x) => (float[1, 8192, 128] y) { y = Identity(x) }""")
        (last,), value = graph.nodes(), graph.inputs[0]
        for _ in range(40):
            weight = (rng.standard_normal((128, 128)) * scale / 11).astype(np.float32)
            value = graph.add("MatMul", [value, graph.constant(weight, "w")]).output
        last.set_input(0, value)
        infer_types(graph)
        graphs.append(graph)
    data = read({"x": np.ones((1, 8192, 128), np.float32)}, Session(to_proto(graphs[0])).inputs)
    # Starts the peak anew.
    Path("/proc/self/clear_refs").write_text("5")
    before = _status("VmRSS")
    layers.compare_layers(*graphs, data, 4 * 128 * 128 * 4)
    return _status("VmHWM") - before


def _status(field: str) -> int:
    (size,) = re.findall(rf"^{field}:\s*(\d+) kB", Path("/proc/self/status").read_text(), re.M)
    return int(size) * 1024


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="Linux tells of peaks")
def test_no_more_than_a_segments_values_are_in_memory() -> None:
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        assert pool.submit(_most_beyond_start).result() < 80e6


def test_the_local_error_is_that_of_the_layer_on_floats_inputs() -> None:
    before, samples = _graph(), _samples(10)
    after = quantized(before, observed_bounds(before.copy(), {"x": samples}))
    found = {layer.node: layer for layer in compare_layers(before, after, _data(before, samples))}
    wanted = _inner(before, ["r", "e", "y"], samples)
    # Exp reads what float gives, and is exact; the pair behind it rounds.
    assert found["e"].precision == "float32"
    paired = _inner(after, ["e"], samples)
    assert found["e"].sqnr_db == pytest.approx(_sqnr(wanted["e"], paired["e"]), abs=0.1)
    pairs = {v.name for n in after.nodes() if n.is_op("QuantizeLinear") for v in behind(n)}
    assert "e_dq" in pairs and "r_dq" in pairs
    for name in ("r", "e"):
        (source, scale, zero) = (
            after.values[f"{name}_dq"].producer.inputs[slot] for slot in range(3)
        )
        assert source is not None and scale is not None and zero is not None
        step, point = scale.numpy(), zero.numpy()
        codes = np.clip(np.rint(wanted[name] / step) + point, 0, 255)
        rounded = (codes - point) * step
        assert found[name].local_db == pytest.approx(_sqnr(wanted[name], rounded), abs=0.1)
        assert found[name].local_db > found[name].expected_db - 3
        assert found[name].saturation == 0.0
    # The last convolution reads float's exponentials, not the rounded ones.
    assert found["y_replaced"].local_db >= found["y_replaced"].sqnr_db


def test_what_a_range_cuts_off_and_where_the_error_lies() -> None:
    graph = Graph.from_text("""<ir_version: 8, opset_import: ["": 17]>
        g (float[N, 3] x) => (float[N, 3] y)
        <float step = {1.0}, int8 zero = {0}>
        { t = Neg(x) q = QuantizeLinear(t, step, zero) d = DequantizeLinear(q, step, zero)
          y = Neg(d) }""")
    plain = Graph.from_text("""<ir_version: 8, opset_import: ["": 17]>
        g (float[N, 3] x) => (float[N, 3] y) { t = Neg(x) y = Neg(t) }""")
    samples = np.array([[-1, -200, 3], [2, -100, 3], [0, 128.25, 0], [0, 0, 128.75]], np.float32)
    data = read({"x": samples}, Session(to_proto(plain)).inputs)
    infer_types(graph)
    (first, last), jump = layers.compare_layers(plain, graph, data, 1 << 30)
    assert (first.saturation, first.worst_channel) == (2 / 12, 1)
    signal = np.square(samples[:, 1]).sum()
    assert first.worst_channel_db == pytest.approx(10 * np.log10(signal / (73**2 + 0.25**2)))
    assert last.local_db == math.inf and last.saturation is None
    assert jump is not None and (jump.node, jump.what) == ("t", "the quantization of 't'")


@pytest.mark.parametrize(
    ("behind_it", "is_named"), [("Clip(d, low, high)", False), ("Neg(d)", True)]
)
def test_a_range_that_cuts_off_what_does_not_matter_is_no_fault(
    behind_it: str, is_named: bool
) -> None:
    head = """<ir_version: 8, opset_import: ["": 17]> g (float[N, 64] x) => (float[N, 64] y)
        <float low = {-1}, float high = {1}, float step = {0.03125}, int8 zero = {0}>
        { t = Abs(x)"""
    plain = Graph.from_text(f"{head} y = {behind_it.replace('(d', '(t')} }}")
    graph = Graph.from_text(f"""{head} q = QuantizeLinear(t, step, zero)
        d = DequantizeLinear(q, step, zero)  y = {behind_it} }}""")
    for each in (plain, graph):
        infer_types(each)
    samples = np.random.default_rng(0).standard_normal((16, 64)).astype(np.float32)
    samples[0, :8] = 30
    data = read({"x": samples}, Session(to_proto(plain)).inputs)
    found, jump = layers.compare_layers(plain, graph, data, 1 << 30)
    assert found[0].saturation == 8 / samples.size
    assert found[0].local_db < found[0].expected_db - 3
    assert (jump is not None) == is_named
    # Of a model that cannot run as a whole nobody knows.
    assert layers.compare_layers(plain, graph, data, 0)[1] is not None


def test_a_product_of_integers_made_at_run_time_errs_as_they_do() -> None:
    rng = np.random.default_rng(0)
    graph = Graph.from_text("""<ir_version: 8, opset_import: ["": 17]>
        g (float[N, 32] x) => (float[N, 16] y) { t = Abs(x)  y = Identity(t) }""")
    weight = graph.constant(rng.standard_normal((32, 16)).astype(np.float32), "w")
    last = next(n for n in graph.nodes() if n.is_op("Identity"))
    product = graph.add("MatMul", [graph.values["t"], weight], name="product")
    last.set_input(0, product.output)
    infer_types(graph)
    samples = rng.standard_normal((64, 32)).astype(np.float32)
    samples[0, 0] = 60
    candidate = graph.copy()
    assert QuantizeDynamic().run(candidate, Context()) == 1
    infer_types(candidate)
    data = read({"x": samples}, Session(to_proto(graph)).inputs, batch_size=64)
    found, jump = layers.compare_layers(graph, candidate, data, 1 << 30)
    (layer,) = (f for f in found if f.local_db is not None and f.op_type == "MatMulInteger")
    values = np.abs(samples)
    wanted = 10 * np.log10(np.square(values).sum() / (values.size * (60 / 255) ** 2 / 12))
    assert layer.expected_db == pytest.approx(wanted, abs=0.1) and wanted < 30
    assert jump is None and abs(layer.local_db - wanted) < 3


@pytest.mark.parametrize("gate", ["HardSwish(c)", "Mul(c, k)", "Add(c, k)"])
def test_integers_with_another_scale_are_another_value(gate: str) -> None:
    graph = Graph.from_text(f"""<ir_version: 8, opset_import: ["": 17]>
        g (float[N, 2, 4, 4] x) => (float[N, 2, 4, 4] y)
        <float[2, 2, 1, 1] w = {{1, -2, 0.5, 1.5}}, float k = {{3}}>
        {{ c = Conv(x, w)  h = {gate}  d = Conv(h, w)  y = Relu(d) }}""")
    infer_types(graph)
    samples = np.random.default_rng(0).standard_normal((16, 2, 4, 4)).astype(np.float32)
    candidate = quantized(graph, observed_bounds(graph.copy(), {"x": samples}))
    made = {node.output.name: node.op_type for node in candidate.nodes()}
    assert made.get("h_gate_dq", made.get("h_dq")) == "DequantizeLinear"
    assert made.get("h", "Mul") == "Mul" and not {"HardSwish", "Add"} & {*made.values()}
    infer_types(candidate)
    data = read({"x": samples}, Session(to_proto(graph)).inputs)
    found, jump = layers.compare_layers(graph, candidate, data, 1 << 30)
    assert jump is None
    # The range of what a HardSwish reads ends where that is zero; nothing else errs much.
    local = {layer.node: layer.local_db for layer in found if layer.node != "c"}
    assert min(value for value in local.values() if value is not None) > 35


def test_layers_of_a_body_add_up() -> None:
    rng = np.random.default_rng(0)
    numbers = [", ".join(f"{n:.4f}" for n in rng.standard_normal(64)) for _ in range(2)]
    graph = Graph.from_text(f"""<ir_version: 8, opset_import: ["": 17]>
        g (float[N, 8] x, bool c) => (float[N, 8] y)
        <float[8, 8] w = {{{numbers[0]}}}, float[8, 8] v = {{{numbers[1]}}}> {{
        y = If (c) <then_branch = t () => (float[N, 8] a) {{ p = MatMul(x, w)  a = MatMul(p, v) }},
                    else_branch = e () => (float[N, 8] b) {{ b = Neg(x) }}> }}""")
    infer_types(graph)
    candidate = graph.copy()
    assert QuantizeDynamic().run(candidate, Context()) == 2
    infer_types(candidate)
    samples = [{"x": row[None], "c": np.array(True)} for row in
               rng.standard_normal((4, 8)).astype(np.float32)]  # fmt: skip
    data = read(samples, Session(to_proto(graph)).inputs)
    found, jump = layers.compare_layers(graph, candidate, data, 1 << 30)
    (layer,) = (layer for layer in found if layer.op_type == "If")
    assert layer.expected_db == pytest.approx(16 * 10 * np.log10(2) - 13 - 10 * np.log10(2))
    assert jump is None and layer.local_db is not None and layer.local_db > 20


@pytest.mark.parametrize("fault", faults.FAULTS.values(), ids=lambda fault: fault.__name__)
def test_planted_faults_are_named(fault: faults.Fault) -> None:
    original = chain(depth=5)
    feeds = random_feeds(original, other_dims=32)
    candidate = quantized(original, observed_bounds(original.copy(), feeds))
    data = read(feeds, Session(to_proto(original)).inputs)
    rng = np.random.default_rng(0)
    assert layers.compare_layers(original, candidate, data, 1 << 30)[1] is None
    for _ in range(3):
        graph, names = faults.planted(original, candidate, data, fault, rng)
        jump = layers.compare_layers(original, graph, data, 1 << 30)[1]
        assert jump is not None and jump.node in names
        assert jump.local_db < jump.expected_db


@pytest.mark.parametrize(("factor", "fed"), [(1.0, "turned"), (0.5, "scaled")])
def test_of_two_products_that_no_value_lies_between_the_faulty_one_is_named(
    factor: float, fed: str
) -> None:
    graph = Graph.from_text("""<ir_version: 8, opset_import: ["": 17]>
        g (float[N, 8] x) => (float[N, 8] y) { y = Identity(x) }""")
    rng = np.random.default_rng(0)
    (last,), value = graph.nodes(), graph.inputs[0]
    for name in ("first", "second"):
        weight = graph.constant(rng.standard_normal((8, 8)).astype(np.float32), f"{name}_w")
        bias = graph.constant(np.ones(8, np.float32), f"{name}_b")
        value = graph.add("Gemm", [value, weight, bias], name=name).output
    last.set_input(0, value)
    samples = rng.standard_normal((32, 8)).astype(np.float32)
    candidate = quantized(graph, observed_bounds(graph.copy(), {"x": samples}))
    between = next(n for n in candidate.nodes() if n.name == "first").output
    candidate.rename(between, "moved")
    weight = next(n for n in faults._weights(candidate) if "first_w" in n.inputs[0].name)
    if fed == "turned":
        candidate.set_constant(weight, 0, np.ascontiguousarray(weight.inputs[0].numpy().T))
    candidate.set_constant(weight, 1, weight.inputs[1].numpy() * np.float32(factor))
    data = read({"x": samples}, Session(to_proto(graph)).inputs)
    jump = layers.compare_layers(graph, candidate, data, 1 << 30)[1]
    assert jump is not None
    assert (jump.node, jump.others) == ("first", ("second",))


def test_a_range_that_cuts_off_little_is_named_if_it_harms() -> None:
    head = """<ir_version: 8, opset_import: ["": 17]>
        g (float[N, 1000] x) => (float[N, 1000] y) <float step = {0.00392157}, uint8 zero = {0}> {
        t = Neg(x) r = Neg(t)"""
    plain = Graph.from_text(f"{head} y = Neg(r) }}")
    candidate = Graph.from_text(f"""{head} q = QuantizeLinear(r, step, zero)
        d = DequantizeLinear(q, step, zero) y = Neg(d) }}""")
    samples = np.random.default_rng(0).random((4, 1000), np.float32)
    # Its noise is six times that of rounding the others.
    samples[:, 0] = 1.088
    data = read({"x": samples}, Session(to_proto(plain)).inputs)
    jump = layers.compare_layers(plain, candidate, data, 1 << 30)[1]
    assert jump is not None and jump.node == "r"


@pytest.mark.parametrize(
    ("clipping", "step", "is_named", "opset"),
    [
        pytest.param("Relu(c)", 0.02, False, 17, id="relu"),
        pytest.param("Clip(c, low, high)", 2 / 255, False, 17, id="clip"),
        pytest.param("Clip(c, low)", 0.02, False, 17, id="one end"),
        pytest.param("Clip<min = 0.0, max = 2.0>(c)", 2 / 255, False, 10, id="attributes"),
        pytest.param("Clip(c, low, high)", 0.02, True, 17, id="integers go on behind the end"),
    ],
)
def test_what_a_pair_clips_in_place_of_an_operator_is_no_error(
    clipping: str, step: float, is_named: bool, opset: int
) -> None:
    head = f"""<ir_version: 8, opset_import: ["": 17]>
        g (float[N, 1, 4, 4] x) => (float[N, 1, 4, 4] y)
        <float[1, 1, 1, 1] w = {{1.5}}, float[1, 1, 1, 1] w2 = {{0.5}}, float low = {{0}},
         float high = {{2}}, float step = {{{step}}}, uint8 zero = {{0}}> {{"""
    before = head.replace("17", str(opset))
    plain = Graph.from_text(f"{before} c = Conv(x, w) r = {clipping} y = Conv(r, w2) }}")
    # As onnxruntime's quantizer leaves it: the product makes what the clipping made.
    candidate = Graph.from_text(f"""{head} r = Conv(x, w)
        q = QuantizeLinear(r, step, zero) d = DequantizeLinear(q, step, zero) y = Conv(d, w2) }}""")
    infer_types(candidate)
    text = candidate.to_text()
    found, jump = layers.compare_layers(plain, candidate, _data(plain, _samples(8)), 1 << 30)
    assert (jump is not None) is is_named
    product = found[0]
    assert product.node == "r" and product.sqnr_db is not None and product.local_db is not None
    assert (min(product.sqnr_db, product.local_db) < 20) is is_named
    assert candidate.to_text() == text


def test_a_layer_in_front_of_what_a_pair_clips_is_called_as_before() -> None:
    """Where its range cuts off, too; another layer may have the name of what it makes."""
    head = """<ir_version: 8, opset_import: ["": 17]>
        g (float[N, 1, 4, 4] x) => (float[N, 1, 4, 4] y)
        <float[1, 1, 1, 1] w = {1.5}, float step = {0.002}, uint8 zero = {0}> {"""
    plain = Graph.from_text(f"{head} c = Conv(x, w) r = Relu(c) e = Neg(r) y = Conv(e, w) }}")
    candidate = Graph.from_text(f"""{head} r = Conv(x, w) q = QuantizeLinear(r, step, zero)
        d = DequantizeLinear(q, step, zero) e = Neg(d) y = Conv(e, w) }}""")
    infer_types(candidate)
    for name in ("", "r"):
        candidate.rename_node(candidate.nodes()[-2], name)
        found, jump = layers.compare_layers(plain, candidate, _data(plain, _samples(8)), 1 << 30)
        assert (found[0].node, found[1].node) == ("r", name or "e")
        assert found[0].local_db is not None and found[0].local_db < 20
        assert found[1].local_db is not None and found[1].local_db > 100
        assert jump is not None and (jump.node, jump.op_type) == ("r", "Conv")
