"""Training of graphs with QDQ pairs: what the module computes is what the model computes."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason='needs torch: pip install "onnxq[train]"')

from onnxq.ir import DataType, Graph, Tensor, infer_types, load, to_proto
from onnxq.passes.notes import node_name
from onnxq.passes.static.placement import place
from onnxq.quant import value_range
from onnxq.runtime import Session
from onnxq.targets import load_target
from onnxq.tune.train.executor import Executor
from onnxq.tune.train.fitting import grids
from onnxq.tune.train.quantized import Grids, QuantizedModule, Step
from onnxq.tune.train.straight_through import dequantize, quantize, round_through, signs
from tests.helpers import Feeds, random_feeds, run
from tests.networks import chain
from tests.quantization import observed_bounds, quantized

TARGET = load_target("cpu-x64")
LOW, HIGH = (int(end) for end in value_range(TARGET.weight_format, TARGET.weight_scheme))


def quantized_pair(graph: Graph, feeds: Feeds) -> tuple[Graph, Graph]:
    """A float graph whose nodes have names, and what insert-qdq makes of it."""
    for number, node in enumerate(graph.nodes()):
        if not node.name:
            graph.rename_node(node, f"node{number}")
    return graph, quantized(graph, observed_bounds(graph, feeds))


def grids_of(source: Graph) -> Grids:
    """The integers that weights have on the target."""
    return grids(
        dict.fromkeys(map(node_name, source.nodes()), "int8"), place(source, TARGET), TARGET
    )


def module_of(after: Graph, source: Graph) -> QuantizedModule:
    """The module of a pair, with the integers that weights have on the target."""
    return QuantizedModule(after, source, grids=grids_of(source))


def tensors(feeds: Feeds) -> dict[str, torch.Tensor]:
    return {name: torch.tensor(array) for name, array in feeds.items()}


def assert_agrees(module: QuantizedModule, feeds: Feeds, step: float) -> None:
    """The module and the model that it emits, with integer kernels, differ by steps at most."""
    emitted = module.emitted()
    with torch.no_grad():
        found = module(tensors(feeds))
    wanted = Session(to_proto(emitted)).run(dict(feeds))
    for name, array in wanted.items():
        assert np.abs(found[name].numpy() - array).max() <= step * 1.001 + 1e-5


def test_a_constant_that_is_no_weight_has_the_integers_of_its_type() -> None:
    graph = Graph.from_text("""<ir_version: 10, opset_import: ["" : 21]>
        g (float[N, 1, 6, 6] x) => (float[N, 1, 6, 6] y)
        <float[1, 1, 1, 1] w = {1.25}, float three = {3}, float zero = {0}, float six = {6}>
        {
            a = Conv (x, w)
            b = Add (a, three)
            c = Clip (b, zero, six)
            d = Mul (a, c)
            y = Conv (d, w)
        }""")
    infer_types(graph)
    feeds = random_feeds(graph, other_dims=8)
    source, after = quantized_pair(graph, feeds)
    module = module_of(after, source)
    assert max(value.numpy().max() for value in module._stored) > HIGH
    for value in module._stored:
        np.testing.assert_array_equal(module.rounded(value), value.numpy())
    found, wanted = module(tensors(feeds))["y"], run(after, feeds)["y"]
    assert np.abs(found.detach().numpy() - wanted).max() <= 0.02 * np.abs(wanted).max()


@pytest.mark.parametrize("name", ["chain", "digits_resnet", "digits_vit", "text_lm"])
def test_untrained_it_computes_what_the_quantized_model_does(name: str) -> None:
    graph = chain() if name == "chain" else load(f"models/{name}.onnx")
    infer_types(graph)
    feeds = random_feeds(graph, other_dims=8)
    source, after = quantized_pair(graph, feeds)
    module = module_of(after, source)
    found = module(tensors(feeds))
    wanted = run(after, feeds)
    for output, array in wanted.items():
        error = np.abs(found[output].detach().numpy() - array)
        assert error.max() <= 0.02 * np.abs(array).max()
        assert np.median(error) <= 1e-5 * np.abs(array).max()


def test_training_lowers_the_loss_and_the_model_agrees() -> None:
    graph = chain()
    feeds = random_feeds(graph, other_dims=32)
    source, after = quantized_pair(graph, feeds)
    fed = tensors(feeds)
    with torch.no_grad():
        target = Executor(source)(fed)["y"].roll(1, 0)
    module = module_of(after, source)
    before = module.emitted()
    steps = {id(step) for step in module.steps}
    others = [p for p in module.parameters() if id(p) not in steps]
    assert len(others) + len(steps) == len(list(module.parameters()))
    optimizer = torch.optim.Adam(others, lr=2e-3)
    optimizer.add_param_group({"params": module.steps, "lr": 1e-4})
    losses = []
    for _ in range(30):
        loss = (module(fed)["y"] - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.9 * losses[0]
    emitted = module.emitted()
    assert (run(emitted, feeds)["y"] != run(before, feeds)["y"]).any()
    scale = max(float(v.numpy().max()) for v in emitted.initializers() if "scale" in v.name)
    assert_agrees(module, feeds, scale)


def test_steps_have_the_gradient_scale_of_lsq_and_stay_positive() -> None:
    step = Step(torch.tensor([0.5, 0.25]), 127, count=40)
    given = torch.tensor([0.5, -3.0], requires_grad=True)
    used = step(given)
    np.testing.assert_allclose(used.detach().numpy(), [0.5, 0.25e-3], rtol=1e-6)
    used.backward(torch.tensor([1.0, 2.0]))
    factor = 1 / np.sqrt(40 * 127)
    np.testing.assert_allclose(given.grad.numpy(), [factor, 2 * factor], rtol=1e-6)


def test_a_step_counts_what_shares_it() -> None:
    graph = chain(depth=2)
    feeds = random_feeds(graph, other_dims=3)
    source, after = quantized_pair(graph, feeds)
    module = module_of(after, source)
    module(tensors(feeds))
    counts = {value.name: step.count for value, step in module._steps.items()}
    # 2 channels of 6 x 6 pixels are fed; each channel of the first weight has 2 x 3 x 3 numbers.
    assert counts["x_scale"] == 72
    assert counts["w0_scale"] == 18
    # Qp is what is left above the zero-point.
    zero = int(after.values["x_zero_point"].numpy())
    assert 100 < zero < 156
    assert module._steps[module.graph.values["x_scale"]].highest == 255 - zero


def test_training_begins_with_the_float_weights_that_were_rounded() -> None:
    graph = chain(depth=2)
    feeds = random_feeds(graph, other_dims=3)
    source, after = quantized_pair(graph, feeds)
    begun = QuantizedModule(after, source, grids=grids_of(source))
    weight = source.values["w0"].numpy()
    starts = {v.name: s.numbers.detach().numpy() for v, s in begun._stored.items()}
    np.testing.assert_array_equal(starts["w0_q"], weight)
    # Rounded otherwise, as by a tuner, they come nearer within the step.
    after.values["w0_q"].data = Tensor(after.values["w0_q"].numpy()[::-1].copy())
    other = QuantizedModule(after, source, grids=grids_of(source))
    starts = {v.name: s.numbers.detach().numpy() for v, s in other._stored.items()}
    begun, integers = starts["w0_q"], after.values["w0_q"].numpy()
    assert (begun != weight).any()
    step = after.values["w0_scale"].numpy().reshape(-1, 1, 1, 1)
    nearest = np.clip(weight, (integers - 0.25) * step, (integers + 0.25) * step)
    same = np.rint(weight / step) == integers
    inside = (integers > LOW) & (integers < HIGH)
    np.testing.assert_array_equal(begun[same], weight[same])
    np.testing.assert_allclose(begun[inside & ~same], nearest[inside & ~same], rtol=1e-5)
    for name, data in {v.name: v.numpy() for v in other.emitted().initializers()}.items():
        np.testing.assert_array_equal(data, after.values[name].numpy())


def test_a_bias_keeps_its_numbers_when_its_weight_has_another_step() -> None:
    graph = load("models/digits_resnet.onnx")
    infer_types(graph)
    feeds = random_feeds(graph, other_dims=4)
    source, after = quantized_pair(graph, feeds)
    stored = [n for n in after.nodes() if n.is_op("DequantizeLinear") and n.inputs[0].is_constant]
    bias = next(
        n for n in stored if n.inputs[0].dtype is DataType.INT32 and n.inputs[0].numpy().any()
    )
    weight = bias.output.uses[0].node.inputs[1].producer
    before = bias.inputs[0].numpy() * bias.inputs[1].numpy()
    after.set_constant(weight, 1, 2 * weight.inputs[1].numpy())
    emitted = QuantizedModule(after, source, grids=grids_of(source)).emitted()
    integers, scale = (emitted.values[v.name].numpy() for v in bias.inputs[:2])
    np.testing.assert_allclose(integers * scale, before, atol=scale.max())
    assert (integers != bias.inputs[0].numpy()).any()


def test_placement_is_that_of_the_target() -> None:
    graph = chain()
    feeds = random_feeds(graph, other_dims=4)
    source, after = quantized_pair(graph, feeds)
    emitted = QuantizedModule(after, source, grids=grids_of(source)).emitted()
    assert [n.op_type for n in emitted.nodes()] == [n.op_type for n in after.nodes()]
    assert place(source, TARGET).nodes


@pytest.mark.parametrize("slope", [0.1, 1.0, 10.0])
def test_binary_weights_have_signs_and_the_gradient_of_ir_net(slope: float) -> None:
    given = np.array([-4.0, -0.2, 0.0, 0.7, 9.0])
    x = torch.tensor(given, requires_grad=True)
    scale = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    held = dequantize(signs(x, scale, 0.0, slope), scale, 0.0)
    wanted = np.array([-0.5, -0.5, 0.5, 0.5, 0.5])
    np.testing.assert_allclose(held.detach().numpy(), wanted, rtol=1e-12)
    weight = np.array([1.0, 2.0, -1.0, 0.5, 3.0])
    (held * torch.tensor(weight)).sum().backward()
    estimated = max(1 / slope, 1) * slope * (1 - np.tanh(slope * given / 0.5) ** 2)
    np.testing.assert_allclose(x.grad.numpy(), weight * estimated, rtol=1e-9, atol=1e-15)
    np.testing.assert_allclose(scale.grad.item(), (weight * np.sign(wanted)).sum(), rtol=1e-12)
    shifted = signs(torch.tensor([-1.0, 1.0]), torch.tensor(1.0), 1.0, slope)
    np.testing.assert_allclose(shifted.numpy(), [0, 2], atol=1e-6)


def test_gradients_of_a_learned_zero_point_are_those_of_lsq_plus() -> None:
    """Bhalgat et al., 2020: the offset's is 1 where a number is clipped; it is -step times zero."""
    given = np.random.default_rng(0).normal(0, 5, 40)
    weight = np.random.default_rng(1).normal(size=40)
    step = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    zero = torch.tensor(6.0, dtype=torch.float64, requires_grad=True)
    integers = quantize(torch.tensor(given), step, round_through(zero), 0, 15)
    (dequantize(integers, step, round_through(zero)) * torch.tensor(weight)).sum().backward()
    ratio = given / 0.5
    low, high = ratio <= -6, ratio >= 9
    assert low.any() and high.any() and not (low | high).all()
    np.testing.assert_allclose(zero.grad.item(), -0.5 * weight[low | high].sum(), rtol=1e-12)
    each = np.where(low, -6, np.where(high, 9, np.round(ratio) - ratio))
    np.testing.assert_allclose(step.grad.item(), (each * weight).sum(), rtol=1e-12)


def test_zero_points_are_learned_where_they_are_within_the_type() -> None:
    graph = chain()
    feeds = random_feeds(graph, other_dims=32)
    source, after = quantized_pair(graph, feeds)
    module = QuantizedModule(after, source, grids=grids_of(source), learn_offsets=True)
    scale = module.graph.values["x_scale"]
    zeros = {s.name for s in module._offsets}
    assert "x_scale" in zeros
    assert len(zeros) < len(module._steps)
    offset = module.offset(scale)
    assert offset is not None
    optimizer = torch.optim.SGD([offset], lr=1.0)
    module(tensors(feeds))["y"].sum().backward()
    assert offset.grad is not None
    offset.grad.fill_(3.0)
    optimizer.step()
    assert module.moved(scale) == -3
    uses = module.emitted().values["x_scale"].uses
    (zero,) = {use.node.inputs[2] for use in uses}
    assert int(zero.numpy()) == int(after.values["x_zero_point"].numpy()) - 3
    assert_agrees(module, feeds, 0.05)


def test_progress_sharpens_what_stands_in_for_signs() -> None:
    graph = chain(depth=2)
    source, after = quantized_pair(graph, random_feeds(graph, other_dims=3))
    module = module_of(after, source)
    slopes = []
    for done in (0.0, 0.5, 1.0):
        module.progress(done)
        slopes += sorted({stored.slope for stored in module._stored.values()})
    np.testing.assert_allclose(slopes, [0.1, 1.0, 10.0])


def test_integers_behind_a_cast_train_as_the_bytes_that_it_gives() -> None:
    graph = chain()
    feeds = random_feeds(graph, other_dims=4)
    source, after = quantized_pair(graph, feeds)
    stored = after.values["w1_q"]
    narrow = np.clip(stored.numpy(), -2, 1)
    stored.data = Tensor(narrow)
    wanted = module_of(after, source)
    cast = after.add("Cast", [after.constant(narrow.astype(np.int16), "few")], {"to": 3})
    infer_types(after)
    (use,) = stored.uses
    use.node.set_input(0, cast.output)
    infer_types(after)
    found = module_of(after, source)
    fed = tensors(feeds)
    with torch.no_grad():
        np.testing.assert_array_equal(found(fed)["y"].numpy(), wanted(fed)["y"].numpy())
    assert not any(n.is_op("Cast") for n in found.emitted().nodes())
