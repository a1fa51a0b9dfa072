from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason='needs torch: pip install "onnxq[train]"')

from onnxq.errors import InputError
from onnxq.ir import Graph, Use, infer_types
from onnxq.tune.train.executor import Executor
from tests.helpers import assert_same_outputs, random_feeds, run


def graph_of(text: str) -> Graph:
    graph = Graph.from_text(text)
    infer_types(graph)
    return graph


def layers() -> Graph:
    return graph_of(
        """<ir_version: 10, opset_import: ["": 20]>
        g (float[N, 3] x) => (float[N, 2] y)
        <float[3, 4] w1 = {1, -2, 3, 0.5, -1, 2, 0, 1, 4, -0.5, 1, 2}, float[4] b1 = {0.1, 0, 0, 1},
         float[4, 2] w2 = {1, 2, -1, 0.5, 3, 1, 0, -2}> {
            m1 = MatMul(x, w1)
            a1 = Add(m1, b1)
            h = Relu(a1)
            m2 = MatMul(h, w2)
            half = Constant<value = float {0.5}>()
            y = Mul(m2, half)
        }"""
    )


class Double(torch.nn.Module):
    """Counts how often it is asked."""

    calls = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return 2 * x


def test_outputs_are_those_of_onnxruntime() -> None:
    graph = layers()
    feeds = random_feeds(graph)
    assert_same_outputs(run(graph, feeds), Executor(graph).evaluate(feeds), exact=False)


def test_trainable_constants_are_parameters_and_others_buffers() -> None:
    executor = Executor(layers(), trainable=lambda value: value.name.startswith("w"))
    names = [name for name, _ in executor.named_parameters()]
    assert [name.rpartition(":")[2] for name in names] == ["w1", "w2"]
    assert executor.constant("w1") is dict(executor.named_parameters())[names[0]]
    assert not executor.constant("b1").requires_grad
    with pytest.raises(InputError, match="'m1' is no constant"):
        executor.constant("m1")
    assert not list(Executor(layers()).parameters())


def test_training_lowers_the_loss_and_is_stored() -> None:
    graph = layers()
    executor = Executor(graph, trainable=lambda value: True)
    feeds = random_feeds(graph, other_dims=16)
    fed = {name: torch.tensor(array) for name, array in feeds.items()}
    optimizer = torch.optim.Adam(executor.parameters(), lr=0.05)
    losses = []
    for _ in range(20):
        loss = executor(fed)["y"].square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0] / 2
    before = run(graph, feeds)["y"]
    executor.store()
    graph.check()
    after = run(graph, feeds)
    assert np.abs(after["y"] - before).max() > 0.1
    assert_same_outputs(after, executor.evaluate(feeds), exact=False)


def test_a_part_runs_between_named_tensors() -> None:
    graph = layers()
    feeds = random_feeds(graph)
    inner = graph.copy()
    inner.set_outputs([inner.values["m1"], inner.values["m2"]])
    wanted = run(inner, feeds)
    part = Executor(graph, inputs=["m1"], outputs=["m2"])
    assert (part.inputs, part.outputs) == (("m1",), ("m2",))
    found = part.evaluate({"m1": wanted["m1"]})
    assert_same_outputs({"m2": wanted["m2"]}, found, exact=False)
    with pytest.raises(InputError, match="input 'm1' is not fed"):
        part.evaluate({})
    with pytest.raises(InputError, match="need input 'x', too"):
        Executor(graph, inputs=["m2"], outputs=["m1"])
    with pytest.raises(InputError, match="no tensor 'nowhere'"):
        Executor(graph, outputs=["nowhere"])


def test_a_function_on_a_value_is_read_by_all() -> None:
    graph = layers()
    feeds = random_feeds(graph)
    plain = Executor(graph, outputs=["h", "y"]).evaluate(feeds)
    executor = Executor(graph, outputs=["h", "y"])
    executor.hook("h", double := Double())
    found = executor.evaluate(feeds)
    for name, array in plain.items():
        np.testing.assert_allclose(found[name], 2 * array, rtol=1e-6)
    assert double.calls == 1
    assert double in list(executor.modules())


def test_a_function_on_a_weight_and_on_an_input() -> None:
    graph = layers()
    feeds = random_feeds(graph)
    plain = Executor(graph, outputs=["m1"]).evaluate(feeds)
    executor = Executor(graph, outputs=["m1"], trainable=lambda value: True)
    executor.hook("w1", Double())
    executor.hook("x", Double())
    executor.hook("x", Double())
    found = executor({name: torch.tensor(array) for name, array in feeds.items()})["m1"]
    np.testing.assert_allclose(found.detach().numpy(), 8 * plain["m1"], rtol=1e-6)
    found.sum().backward()
    wanted = 8 * np.repeat(feeds["x"].sum(0)[:, None], 4, axis=1)
    np.testing.assert_allclose(executor.constant("w1").grad.numpy(), wanted, rtol=1e-5)


def test_a_function_on_uses_is_read_by_these_alone() -> None:
    graph = graph_of(
        """<ir_version: 10, opset_import: ["": 20]>
        g (float[3] x) => (float[3] a, float[3] b, float[3] c) {
            h = Neg(x)
            a = Abs(h)
            b = Neg(h)
            c = Add(h, h)
        }"""
    )
    executor = Executor(graph)
    first, second = Double(), Double()
    absolute, negative, both = graph.nodes()[1:]
    h = graph.values["h"]
    executor.hook(h, first, [Use(negative, 0), Use(both, 1)])
    executor.hook(h, second, [Use(both, 1)])
    found = executor.evaluate({"x": np.array([1, -2, 3], np.float32)})
    assert found["a"].tolist() == [1, 2, 3]
    assert found["b"].tolist() == [2, -4, 6]
    assert found["c"].tolist() == [-5, 10, -15]
    # Once for all readers.
    assert (first.calls, second.calls) == (1, 1)
    assert absolute.op_type == "Abs"


NORMALIZED = """<ir_version: 10, opset_import: ["": 20]>
    g (float[N, 2, 3] x) => (float[N, 2, 3] y)
    <float[2] scale = {1, 2}, float[2] bias = {0, 1},
     float[2] mean = {0.5, -0.5}, float[2] variance = {1, 4}> {
        y = BatchNormalization<momentum = 0.9>(x, scale, bias, mean, variance)
    }"""


def test_batch_normalization_stays_frozen_unless_it_is_to_train() -> None:
    graph = graph_of(NORMALIZED)
    feeds = random_feeds(graph, other_dims=8)
    executor = Executor(graph, trainable=lambda value: value.name in ("scale", "bias"))
    executor.train()
    assert_same_outputs(run(graph, feeds), executor.evaluate(feeds), exact=False)
    executor.store()
    assert graph.values["mean"].numpy().tolist() == [0.5, -0.5]


def test_batch_normalization_trains_and_keeps_running_statistics() -> None:
    graph = graph_of(NORMALIZED)
    feeds = random_feeds(graph, other_dims=8)
    x = feeds["x"].astype(np.float64)
    mean, variance = x.mean((0, 2)), x.var((0, 2))
    normal = (x - mean[:, None]) / np.sqrt(variance + 1e-5)[:, None]
    executor = Executor(graph, batch_norm="train")
    executor.train()
    found = executor.evaluate(feeds)["y"]
    np.testing.assert_allclose(found, normal * [[1], [2]] + [[0], [1]], rtol=1e-4, atol=1e-5)
    executor.eval()
    executor.store()
    kept = graph.values["mean"].numpy(), graph.values["variance"].numpy()
    np.testing.assert_allclose(kept[0], 0.9 * np.array([0.5, -0.5]) + 0.1 * mean, rtol=1e-5)
    wanted = 0.9 * np.array([1, 4]) + 0.1 * x.var((0, 2), ddof=1)
    np.testing.assert_allclose(kept[1], wanted, rtol=1e-5)
    assert_same_outputs(run(graph, feeds), executor.evaluate(feeds), exact=False)


def test_what_cannot_run_is_named_before_anything_runs() -> None:
    graph = graph_of(
        """<ir_version: 10, opset_import: ["": 20, "other": 1]>
        g (float[3] x) => (float[3] y, float[3] z) {
            a = Relu(x)
            y = other.Twist(a)
            z = RandomNormalLike(a)
        }"""
    )
    with pytest.raises(InputError) as caught:
        Executor(graph)
    assert str(caught.value) == (
        "the model cannot be computed in torch: Twist making 'y': there is no other.Twist; "
        "RandomNormalLike making 'z': there is no RandomNormalLike"
    )
    assert Executor(graph, outputs=["a"]).evaluate({"x": np.ones(3, np.float32)})


def test_shapes_are_computed_as_the_model_runs() -> None:
    graph = graph_of(
        """<ir_version: 10, opset_import: ["": 20]>
        g (float[N, 2, M] x) => (float[A, B] y)
        <int64 zero = {0}, int64[1] first = {0}, int64[1] rest = {-1}> {
            shape = Shape(x)
            batch = Gather(shape, zero)
            dim = Unsqueeze(batch, first)
            wanted = Concat<axis = 0>(dim, rest)
            y = Reshape(x, wanted)
        }"""
    )
    executor = Executor(graph)
    for sizes in ({"N": 2, "M": 3}, {"N": 5, "M": 1}):
        feeds = random_feeds(graph, dims=sizes)
        assert_same_outputs(run(graph, feeds), executor.evaluate(feeds))


def test_an_input_with_a_default_may_be_fed() -> None:
    graph = layers()
    bias = graph.values["b1"]
    graph._inputs.append(bias)
    bias.is_input = True
    feeds = random_feeds(graph)
    plain = Executor(graph).evaluate(feeds)
    assert_same_outputs(run(graph, feeds), plain, exact=False)
    feeds["b1"] = np.array([5, 5, 5, 5], np.float32)
    found = Executor(graph).evaluate(feeds)
    assert_same_outputs(run(graph, feeds), found, exact=False)
    assert (found["y"] != plain["y"]).any()


BRANCHES = """<ir_version: 10, opset_import: ["": 20]>
    g (bool c, float[3] x, float[3] w) => (float[3] y) {
        t = Neg(x)
        y = If(c) <
            then_branch = g1 () => (float[3] a) { a = Mul(t, w) },
            else_branch = g2 () => (float[3] b) { k = Constant<value = float {3}>() b = Add(t, k) }
        >
    }"""


@pytest.mark.parametrize("condition", [True, False])
def test_branches_read_what_lies_around_them(condition: bool) -> None:
    graph = graph_of(BRANCHES)
    feeds = random_feeds(graph) | {"c": np.array(condition)}
    assert_same_outputs(run(graph, feeds), Executor(graph).evaluate(feeds))


def test_gradients_pass_a_loop() -> None:
    graph = graph_of(
        """<ir_version: 10, opset_import: ["": 20]>
        g (int64 n, float[3] x, float[3] w) => (float[3] y, float[K, 3] all) {
            go = Constant<value = bool {1}>()
            y, all = Loop(n, go, x) <
                body = b (int64 i, bool c, float[3] s) => (bool d, float[3] t, float[3] u) {
                    d = Identity(c)
                    t = Mul(s, w)
                    u = Neg(s)
                }
            >
        }"""
    )
    feeds = random_feeds(graph) | {"n": np.array(3)}
    executor = Executor(graph)
    assert_same_outputs(run(graph, feeds), executor.evaluate(feeds))
    fed = {name: torch.tensor(array) for name, array in feeds.items()}
    fed["w"].requires_grad_()
    executor(fed)["y"].sum().backward()
    np.testing.assert_allclose(fed["w"].grad, 3 * feeds["x"] * feeds["w"] ** 2, rtol=1e-5)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_it_runs_where_its_constants_are() -> None:
    graph = layers()
    feeds = random_feeds(graph)
    executor = Executor(graph, trainable=lambda value: True).cuda()
    assert_same_outputs(run(graph, feeds), executor.evaluate(feeds), exact=False, rtol=1e-4)
