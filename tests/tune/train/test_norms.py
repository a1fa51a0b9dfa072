"""BatchNormalization that lives during training: what it computes, and what it is folded into."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason='needs torch: pip install "onnxq[train]"')

from torch.nn import functional

from onnxq import InputError, Optimized, Options, train
from onnxq.data import read
from onnxq.ir import Context, Graph, infer_types, to_proto
from onnxq.passes.fusion.fuse_batch_norm import FuseBatchNorm
from onnxq.plan import Pin
from onnxq.runtime import Session
from onnxq.tune.train import samples
from onnxq.tune.train.learned import Learned
from onnxq.tune.train.learner import Learner
from onnxq.tune.train.norms import LiveNorm, averaging, normalized, restorable
from onnxq.tune.train.quantized import QuantizedModule
from onnxq.tune.train.samples import Feed, Samples
from onnxq.tune.train.team import Team
from onnxq.tune.train.trainer import Trainer
from onnxq.tune.tuned import to_bytes
from tests.networks import CHANNELS, CLASSES, chain, computed, inputs
from tests.quantization import observed_bounds, quantized
from tests.tune.train.recording import record

__all__ = ["computed"]

QUICK = {"min_speedup": 0.0, "max_drop": 1.0, "target": "cpu-x64"}


@pytest.fixture(autouse=True)
def unmeasured(computed: None) -> None:
    """Nothing is timed."""


def normed() -> Graph:
    """The chain with BatchNormalization behind its convolutions; factors of both signs."""
    graph, rng = chain(), np.random.default_rng(1)
    for node in graph.nodes():
        if node.is_op("Conv"):
            numbers = rng.uniform(0.5, 1.5, (4, CHANNELS)).astype(np.float32)
            numbers[0, ::3] *= -1
            numbers[1:3] -= 1
            given = [graph.constant(n, "norm") for n in numbers]
            (relu,) = (use.node for use in node.output.uses)
            norm = graph.add("BatchNormalization", [node.output, *given], name=f"{node.name}_norm")
            relu.set_input(0, norm.output)
    infer_types(graph)
    return graph


def folded() -> Graph:
    """The same as exporters give it."""
    graph = normed()
    FuseBatchNorm().run(graph, Context())
    infer_types(graph)
    return graph


@pytest.fixture(scope="module")
def data() -> dict[str, np.ndarray]:
    feeds = inputs(chain(), 96)
    return {**feeds, "labels": np.arange(96) % CLASSES}


def trained(graph: Graph, data: dict[str, np.ndarray], **options: Any) -> Optimized:
    given = {"epochs": 2, "batch_size": 16, "batch_norm": "live", "lr": 3e-3, **QUICK, **options}
    return train(to_proto(graph).SerializeToString(), data, **given)


@pytest.fixture
def modules(monkeypatch: pytest.MonkeyPatch) -> list[QuantizedModule]:
    """The modules that are trained from here on."""
    return record(monkeypatch)


def a_norm() -> LiveNorm:
    norm = LiveNorm(torch.randn(3))
    with torch.no_grad():
        norm.gain.uniform_(0.5, 2)
        norm.mean.normal_()
        norm.variance.uniform_(0.5, 2)
    return norm


def test_while_it_lives_it_is_that_of_the_batch() -> None:
    norm, x = a_norm().train(), torch.randn(4, 3, 5, 5)
    mean, variance = norm.mean.clone(), norm.variance.clone()
    wanted = functional.batch_norm(x, mean, variance, norm.gain, norm.shift, True, 0.1, 1e-5)
    torch.testing.assert_close(norm(x), wanted)
    torch.testing.assert_close((norm.mean, norm.variance), (mean, variance))


def test_what_scale_and_bias_take_in_is_that_of_running_statistics() -> None:
    norm, x = a_norm().eval(), torch.randn(4, 3, 5, 5)
    statistics = (norm.mean, norm.variance, norm.gain, norm.shift)
    folded = x * norm.factor.reshape(1, 3, 1, 1) + norm.bias.reshape(1, 3, 1, 1)
    torch.testing.assert_close(folded, functional.batch_norm(x, *statistics, False, 0.1, 1e-5))
    assert norm(x) is x
    norm.train().is_live = False
    assert norm(x) is x


def test_one_number_a_channel_has_no_variance() -> None:
    norm, x = a_norm().train(), torch.randn(1, 3)
    torch.testing.assert_close(norm(x), x * norm.factor + norm.bias)


def test_it_begins_without_changing_anything() -> None:
    """A convolution with this bias: what it gives is seen, and stays what it is."""
    bias, x = torch.tensor([0.5, -1.0, 3.0]), torch.randn(64, 3, 5, 5) * 7
    norm = LiveNorm(bias).eval()
    norm.begin()
    assert norm(x + bias.reshape(1, 3, 1, 1)) is not None
    norm.end()
    torch.testing.assert_close(norm.factor, torch.ones(3))
    torch.testing.assert_close(norm.bias, bias)
    with torch.no_grad():
        torch.testing.assert_close(norm.train()(x), x + bias.reshape(1, 3, 1, 1))


def test_averaging_gives_the_means_of_all_batches() -> None:
    norm, batches = a_norm().train(), [torch.randn(4, 3, 5, 5) + number for number in range(3)]
    norm.is_live = False
    with averaging([norm]) as another, torch.no_grad():
        for batch in batches:
            another()
            norm(batch)
    columns = torch.stack([batch.movedim(1, 0).reshape(3, -1) for batch in batches])
    torch.testing.assert_close(norm.mean, columns.mean(2).mean(0))
    torch.testing.assert_close(norm.variance, columns.var(2).mean(0))
    assert not norm.is_live
    mean = norm.mean.clone()
    norm.is_live = True
    norm(batches[0])
    torch.testing.assert_close(norm.mean, mean + 0.1 * (columns[0].mean(1) - mean))


def test_while_it_lives_epochs_are_judged_with_statistics_of_the_numbers_of_then(
    data: dict[str, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    done = list[str]()

    def note(kind: type, name: str) -> None:
        run = getattr(kind, name)
        monkeypatch.setattr(kind, name, lambda *given: done.append(name[:2]) or run(*given))

    note(Trainer, "_update")
    note(Learner, "average")
    note(Learner, "judge")
    trained(normed(), data, epochs=5, batch_size=64)
    begun, epoch, in_running_ones = "ju ju", "_u av ju", "_u ju"
    assert " ".join(done) == " ".join([begun, *[epoch] * 4, in_running_ones])


def test_training_begins_with_what_was_learned_in_more_bits(
    data: dict[str, np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    modules, begun = record(monkeypatch), list[tuple[Learned, Learned]]()
    give = Learned.give

    def noted(learned: Learned, module: QuantizedModule) -> None:
        give(learned, module)
        begun.append((learned, Learned.of(module)))

    monkeypatch.setattr(Learned, "give", noted)
    options = {"batch_norm": "restored"}
    found = trained(folded(), data, bits="w2a4", through=("w4a4",), folder=tmp_path, **options)
    assert any("Before, it was trained in w4a4 for 2 epochs" in n for n in found.report.notes)
    ((given, taken),) = begun
    ended = Learned.of(modules[0])
    assert given.numbers and given.norms and given.numbers.keys() == taken.numbers.keys()
    for at, numbers in ended.numbers.items():
        torch.testing.assert_close(given.numbers[at], numbers)
        torch.testing.assert_close(taken.numbers[at], numbers)
    for name, norm in ended.norms.items():
        torch.testing.assert_close(dict(taken.norms[name]), dict(norm))
    assert len(modules) == 2
    again = trained(folded(), data, bits="w2a4", through=("w4a4",), folder=tmp_path, **options)
    assert to_proto(again.graph) == to_proto(found.graph)
    for through in ((), ("w6a6", "w4a4")):
        with pytest.raises(InputError, match="differs in through"):
            trained(folded(), data, bits="w2a4", through=through, folder=tmp_path, **options)
    # What was begun with in a folder is known there, whatever else is gone; nothing is trained.
    (tmp_path / "checkpoint.pt").unlink()
    with pytest.raises(InputError, match=r"w4a4' is of a training that differs in through"):
        trained(folded(), data, bits="w2a4", through=("w6a6", "w4a4"), folder=tmp_path, **options)
    assert len(modules) == 4


@pytest.mark.parametrize("through", [("w4a4", "w4a4"), ("w2a4",)])
def test_bits_come_once(through: tuple[str, ...], data: dict[str, np.ndarray]) -> None:
    with pytest.raises(InputError, match="comes twice; take it out of --through"):
        trained(folded(), data, bits="w2a4", through=through)


def test_what_is_normalized_on_one_side_alone_is_not_taken() -> None:
    graph = folded()
    after = quantized(graph, observed_bounds(graph, inputs(graph, 8)))
    first, *others = (node.name for node in graph.nodes() if node.is_op("Conv"))
    module = QuantizedModule(after, graph, norms=(first,))
    assert [*module.norms] == [first]
    before = Learned.of(module)
    more = {at: numbers + 1 for at, numbers in before.numbers.items()}
    more[others[0], 1] = torch.zeros(1)
    Learned(more, {}).give(module)
    for at, numbers in Learned.of(module).numbers.items():
        kept = at[0] == first or at == (others[0], 1)
        torch.testing.assert_close(numbers, before.numbers[at] if kept else more[at])


@pytest.mark.parametrize(
    ("bits", "kind"), [("w8a8", "live"), ("w2a4", "live"), ("binary", "restored")]
)
def test_the_model_computes_what_was_trained(
    bits: str, kind: str, data: dict[str, np.ndarray], modules: list[QuantizedModule]
) -> None:
    graph = normed() if kind == "live" else folded()
    found = trained(graph, data, bits=bits, epochs=6, held_out=0.3, batch_norm=kind)
    assert found.report.training is not None and found.report.training.best > 0
    (module,) = modules
    assert len(module.norms) == 4
    assert all(float(norm.mean.abs().max()) > 0 for norm in module.norms.values())
    given = {"x": data["x"][:32]}
    with torch.no_grad():
        wanted = module({"x": torch.from_numpy(given["x"])})["y"].numpy()
        module.train().progress(1.0)
        at_the_end = module({"x": torch.from_numpy(given["x"])})["y"].numpy()
    made = Session(to_proto(found.graph), optimization="none").run(given)["y"]
    assert (np.abs(made - wanted) > 1e-3 * np.abs(wanted).max()).mean() < 0.1
    np.testing.assert_array_equal(at_the_end, wanted)
    assert any("lived behind 4 of the 4" in note for note in found.report.notes)


@pytest.mark.slow
def test_two_processes_have_the_statistics_of_one(data: dict[str, np.ndarray]) -> None:
    curves = []
    for processes in (1, 2):
        found = trained(normed(), data, processes=processes, epochs=1, accumulate=2, lr=1e-4)
        facts = found.report.training
        assert facts is not None
        curves.append([facts.history[1].loss, facts.history[1].held_out_loss])
    # Sums in another order may round an activation to the next integer.
    assert curves[1] == pytest.approx(curves[0], rel=2e-3)


def test_broken_off_it_goes_on_to_the_same_numbers(
    data: dict[str, np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"bits": "w4a8", "checkpoint_every": 1, "epochs": 5, "batch_size": 32, "average": 0.9}
    whole = trained(normed(), data, folder=tmp_path / "whole", **options)
    # Of ten updates the ninth is the first that has the running statistics.
    update, left = Trainer._update, 8

    def breaking(self: Trainer, *arguments: Any) -> tuple[float, int]:
        nonlocal left
        left -= 1
        if left < 0:
            raise KeyboardInterrupt
        return update(self, *arguments)

    monkeypatch.setattr(Trainer, "_update", breaking)
    with pytest.raises(KeyboardInterrupt):
        trained(normed(), data, folder=tmp_path / "broken", **options)
    monkeypatch.setattr(Trainer, "_update", update)
    broken = trained(normed(), data, folder=tmp_path / "broken", **options)
    assert to_bytes(broken.plan.tuned) == to_bytes(whole.plan.tuned)
    assert broken.plan.ranges == whole.plan.ranges


def test_restored_it_is_behind_all_but_what_the_model_gives() -> None:
    graph = folded()
    assert not any(node.is_op("BatchNormalization") for node in graph.nodes())
    assert restorable(graph) == tuple(f"conv{i}" for i in range(4))
    (scores,) = graph.outputs
    graph.set_outputs([graph.add("Relu", [scores], name="relu").output])
    assert restorable(graph)[-1] == "head"


def test_restored_it_begins_as_the_model_that_it_was_folded_in(
    data: dict[str, np.ndarray], modules: list[QuantizedModule]
) -> None:
    curves = [
        found.report.training.history[0]
        for batch_norm in ("frozen", "restored")
        if (found := trained(folded(), data, batch_norm=batch_norm, epochs=1)).report.training
    ]
    assert curves[1].held_out_loss == pytest.approx(curves[0].held_out_loss, rel=1e-3)
    assert [len(module.norms) for module in modules] == [0, 4]


def test_restored_it_says_where_it_cannot_be(data: dict[str, np.ndarray]) -> None:
    pinned = Options(pins=(Pin("conv1", "float32"),))
    found = trained(folded(), data, epochs=1, batch_norm="restored", options=pinned)
    assert any("lived behind 3 of the 4 convolutions" in note for note in found.report.notes)


def test_a_model_without_it_says_so(data: dict[str, np.ndarray]) -> None:
    with pytest.raises(InputError, match=r"has no BatchNormalization.*--batch-norm"):
        trained(chain(), data)
    assert normalized(normed()) == tuple(f"conv{i}" for i in range(4))


def test_layers_without_names_live_as_well(data: dict[str, np.ndarray]) -> None:
    graph = normed()
    for node in graph.nodes():
        node.name = ""
    found = trained(graph, data, epochs=1)
    assert any("lived behind 4 of the 4" in note for note in found.report.notes)


def test_where_no_layer_can_let_it_live_it_says_so(data: dict[str, np.ndarray]) -> None:
    in_float = Options(pins=(Pin("conv*", "float32"),))
    with pytest.raises(InputError, match=r"no BatchNormalization can live.*--batch-norm"):
        trained(normed(), data, options=in_float)


def test_statistics_begin_with_samples_of_the_whole_data(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(samples, "_SHOWING", 32)
    graph = normed()
    arrays = {**inputs(graph, 96), "labels": np.repeat(np.arange(CLASSES), 96 // CLASSES)}
    data = read(arrays, Session(to_proto(graph)).inputs)
    shown = []
    for seed in (0, 0, 1):
        feeds = list(Samples.of(data, graph.inputs).shown(16, [seed]))
        assert [feed.valid for feed in feeds] == [16, 16]
        shown.append(torch.cat([own.values for feed in feeds for own in feed.labels]))
        assert len(shown[-1].unique()) == CLASSES
    assert torch.equal(shown[0], shown[1]) and not torch.equal(shown[0], shown[2])


@pytest.mark.slow
def test_an_update_that_a_process_was_lost_in_leaves_no_statistics(
    data: dict[str, np.ndarray], modules: list[QuantizedModule], monkeypatch: pytest.MonkeyPatch
) -> None:
    learn, before = Team.learn, list[torch.Tensor]()

    def losing(self: Team, feeds: list[Feed], done: float, samples: int) -> float:
        before[:] = (b.clone() for b in modules[0].buffers())
        # The first layers have moved theirs when the process ends.
        (*_, last) = modules[0].norms.values()
        last.register_forward_pre_hook(
            lambda *_: os.kill(self._others[0].pid, signal.SIGKILL) or time.sleep(0.5)
        )
        return learn(self, feeds, done, samples)

    monkeypatch.setattr(Team, "learn", losing)
    with pytest.raises(InputError, match=r"process 2 of 2 .*\(by SIGKILL\)"):
        trained(normed(), data, processes=2)
    torch.testing.assert_close(list(modules[0].buffers()), before, rtol=0, atol=0)
