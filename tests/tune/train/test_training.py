"""Training from a float file to a quantized one, its plan and its report."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason='needs torch: pip install "onnxq[train]"')

from torch.nn import functional

from onnxq import InputError, Optimized, TrainOptions, apply_plan, save, train, training
from onnxq.data import Batch, read
from onnxq.ir import DataType, Graph, ModelInfo, TensorType, infer_types, to_proto
from onnxq.plan import Pin, Plan
from onnxq.runtime import Session
from onnxq.tune.train import fitting
from onnxq.tune.train.executor import Executor
from onnxq.tune.train.learner import Judgement, Learner
from onnxq.tune.train.objectives import task_loss
from onnxq.tune.train.samples import Feed, Samples
from onnxq.tune.train.schedules import factor
from onnxq.tune.train.trainer import Parameters, Trainer
from onnxq.tune.tuned import to_bytes
from tests.networks import CLASSES, chain, computed, inputs, shared
from tests.tune.train.recording import record

__all__ = ["computed"]

QUICK = {"min_speedup": 0.0, "max_drop": 1.0, "target": "cpu-x64"}


@pytest.fixture(autouse=True)
def unmeasured(computed: None) -> None:
    """Nothing is timed."""


@pytest.fixture
def network() -> Graph:
    graph = chain()
    infer_types(graph)
    return graph


@pytest.fixture
def data(network: Graph) -> dict[str, np.ndarray]:
    """Labels that the float model gives for most, so that there is something to keep."""
    feeds = inputs(network, 96)
    scores = Session(to_proto(network)).run(dict(feeds))["y"]
    labels = scores.argmax(1)
    labels[::7] = (labels[::7] + 1) % CLASSES
    return {**feeds, "labels": labels.astype(np.int64)}


def trained(graph: Graph, data: dict[str, np.ndarray], **options: object) -> Optimized:
    given = {"epochs": 2, "batch_size": 8, "lr": 1e-3, **QUICK, **options}
    return train(to_proto(graph).SerializeToString(), data, **given)  # type: ignore[arg-type]


def test_the_plan_makes_the_same_bytes_and_holds_what_was_learned(
    network: Graph, data: dict[str, np.ndarray], tmp_path: Path
) -> None:
    model, output, plan = (tmp_path / n for n in ("m.onnx", "o.onnx", "plan.toml"))
    save(network, model)
    options = {"epochs": 3, "batch_size": 8, "lr": 3e-3, "held_out": 0.3, **QUICK}
    found = train(model, data, output=output, plan_output=plan, **options)  # type: ignore[arg-type]
    assert found.written == output
    facts = found.report.training
    assert facts is not None
    assert [e.epoch for e in facts.history] == [0, 1, 2, 3]
    assert facts.epochs == 3 and facts.steps == 3 * -(-facts.samples // 8)
    assert facts.best > 0, "nothing was learned"
    assert {n.method for n in found.plan.nodes if n.op_type == "Conv"} == {"lsq"}
    apply_plan(model, plan, output=tmp_path / "again.onnx")
    assert (tmp_path / "again.onnx").read_bytes() == output.read_bytes()
    assert Plan.load(plan).ranges != {}


def test_the_model_computes_what_was_trained(
    network: Graph, data: dict[str, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    modules = record(monkeypatch)
    found = trained(network, data, lr=3e-3, held_out=0.3)
    assert found.report.training is not None and found.report.training.best > 0
    given = {"x": data["x"][:32]}
    with torch.no_grad():
        wanted = modules[0]({"x": torch.from_numpy(given["x"])})["y"].numpy()
    made = Session(to_proto(found.graph), optimization="none").run(given)["y"]
    error, largest = np.abs(made - wanted), np.abs(wanted).max()
    # Sums in another order may round to the next integer here and there.
    assert error.max() <= 0.05 * largest
    assert (error > 1e-4 * largest).mean() < 0.2
    scales = {v.name: modules[0].scale(v).detach().numpy() for v in modules[0]._steps}
    emitted = {v.name: v.numpy() for v in found.graph.initializers()}
    shared = scales.keys() & emitted.keys()
    assert len(shared) > 8
    for name in shared:
        np.testing.assert_allclose(emitted[name], scales[name], rtol=1e-6, err_msg=name)


@pytest.mark.parametrize("bits", ["w4a4", "w3a8", "w2a2", "ternary", "binary", "binary-a1"])
def test_few_bits(
    bits: str, network: Graph, data: dict[str, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    modules = record(monkeypatch)
    method = "lsq+" if bits == "w4a4" else "lsq"
    found = trained(network, data, bits=bits, method=method, lr=3e-3, epochs=3, held_out=0.3)
    facts = found.report.training
    # Activations of one bit learn nothing in three epochs.
    assert facts is not None and (facts.best > 0 or bits == "binary-a1")
    assert any("No epoch" in note for note in found.report.notes) == (facts.best == 0)
    assert any(f"Trained in {bits}, " in note for note in found.report.notes)
    given = {"x": data["x"][:32]}
    with torch.no_grad():
        wanted = modules[0]({"x": torch.from_numpy(given["x"])})["y"].numpy()
    made = Session(to_proto(found.graph), optimization="none").run(given)["y"]
    error, largest = np.abs(made - wanted), np.abs(wanted).max()
    assert (error > 1e-3 * largest).mean() < 0.1
    kinds = {"2": 4, "3": 8, "4": 16, "t": 3, "b": 2}
    weights = [t["values"] for n, t in found.plan.tuned.items() if n in ("conv1", "conv2")]
    assert len(weights) == 2
    for values in weights:
        assert len(np.unique(values)) <= kinds[bits[1] if bits[0] == "w" else bits[0]]
    assert max(len(np.unique(t["values"])) for t in found.plan.tuned.values()) > 16


def test_what_a_method_adds_to_biases_stays(
    network: Graph, data: dict[str, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    begin = {"methods": ("bias-correction",), "calibrator": "mse"}
    monkeypatch.setattr(training, "_beginning", lambda precision, calibrator: dict(begin))
    modules = record(monkeypatch)
    found = trained(network, data, bits="w2a4", lr=1e-3, held_out=0.3)
    given = {"x": data["x"][:32]}
    with torch.no_grad():
        wanted = modules[0]({"x": torch.from_numpy(given["x"])})["y"].numpy()
    made = Session(to_proto(found.graph), optimization="none").run(given)["y"]
    assert (np.abs(made - wanted) > 1e-3 * np.abs(wanted).max()).mean() < 0.1


def test_updates_are_relative_to_the_size_of_a_channel(
    network: Graph, data: dict[str, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    modules, update = record(monkeypatch), Trainer._update
    moved: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}

    def noted(self: Trainer, *arguments: Any) -> tuple[float, int]:
        begun = {k: p.detach().clone() for k, p in modules[0].named_parameters() if p.ndim == 4}
        result = update(self, *arguments)
        now = dict(modules[0].named_parameters())
        moved.update({name: (old, now[name].detach() - old) for name, old in begun.items()})
        return result

    monkeypatch.setattr(Trainer, "_update", noted)
    trained(network, data, bits="w4a4", epochs=1, batch_size=96, lr=0.01, warmup=0.0)
    assert len(moved) == 4
    for old, change in moved.values():
        size = old.square().mean((1, 2, 3)).sqrt()
        # The first update of Adam is the learning rate, whatever the gradient.
        furthest = change.abs().amax((1, 2, 3))
        np.testing.assert_allclose(furthest.numpy(), 0.01 * size.numpy(), rtol=0.01)


class Pulled:
    """A learner whose gradients are given."""

    def __init__(self, module: torch.nn.ParameterDict, gradients: dict[str, torch.Tensor]) -> None:
        self.module, self._gradients = module, gradients

    def learn(self, feeds: Any, done: float, samples: int) -> float:
        for name, gradient in self._gradients.items():
            self.module[name].grad = gradient.clone()
        return 1.0


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_two_updates_are_what_they_are_by_hand(optimizer: Any) -> None:
    """Weights decay as they are; what gradients change is relative to sizes."""
    torch.manual_seed(0)
    numbers = {name: torch.randn(2, 3).double() for name in ("weight", "bias", "step")}
    size = {name: torch.rand(2, 3).double() for name in numbers}
    gradients = {name: torch.randn(2, 3).double() for name in numbers}
    module = torch.nn.ParameterDict({k: torch.nn.Parameter(v.clone()) for k, v in numbers.items()})
    given = Parameters(*([(module[name], size[name])] for name in numbers))
    lr, decay = 0.02, 0.3
    options = TrainOptions(optimizer=optimizer, lr=lr, weight_decay=decay, warmup=0, epochs=10**9)
    learner: Any = Pulled(module, gradients)
    trainer = Trainer(learner, given, options)
    samples = Samples([Batch({"x": np.zeros((1, 1), np.float32)}, None, 1, 1)], True)
    for step in range(2):
        trainer._update(samples, [[0]], step, 1, None)
    for name, rate in (("weight", lr), ("bias", lr / 10), ("step", lr / 10)):
        g, wanted = gradients[name], numbers[name]
        # Of gradients that stay, Adam's averages are the gradient and its square. The momentum is
        # 1, then 1.9 of them, and Nesterov's update looks ahead by 0.9 of that.
        by_adam, by_sgd = [g.sign(), g.sign()], [g * (1 + 0.9 * 1), g * (1 + 0.9 * 1.9)]
        for move in by_adam if optimizer == "adamw" else by_sgd:
            if name == "weight":
                wanted = wanted * (1 - lr * decay)
            by = size[name] if optimizer == "adamw" else size[name].square()
            wanted = wanted - rate * by * move
        torch.testing.assert_close(module[name].detach(), wanted, rtol=1e-5, atol=1e-8)


def test_a_weight_that_two_nodes_read_learns_once(data: dict[str, np.ndarray]) -> None:
    graph = shared()
    infer_types(graph)
    given = {**inputs(graph, 48), "labels": np.arange(48) % 4}
    found = trained(graph, given, epochs=1, metric="sqnr", max_drop=None, min_sqnr=-100.0)
    assert found.report.training is not None


def arrows() -> tuple[Graph, dict[str, np.ndarray]]:
    """A float model of 10 classes of images, two of which are mirrored arrows."""
    graph = Graph("arrows", model=ModelInfo(8, {"": 17}))
    x = graph.add_input("x", TensorType(DataType.FLOAT, ("N", 1, 16, 16)))
    rng = np.random.default_rng(0)
    patterns = rng.standard_normal((10, 1, 16, 16)).astype(np.float32)
    patterns[2:] += patterns[2:, :, :, ::-1]
    patterns[1] = patterns[0, :, :, ::-1]
    flat = graph.add("Flatten", [x]).output
    weight = graph.constant(patterns.reshape(10, -1).T / 256, "w")
    y = graph.add("Gemm", [flat, weight], name="head").output
    graph.rename(y, "y")
    graph.add_output(y)
    infer_types(graph)
    labels = np.arange(200) % 10
    noise = 0.1 * rng.standard_normal((200, 1, 16, 16))
    return graph, {"x": (patterns[labels] + noise).astype(np.float32), "labels": labels}


def test_an_augmentation_that_changes_a_class_is_not_taken() -> None:
    graph, given = arrows()
    mirrored = Session(to_proto(graph)).run({"x": given["x"][..., ::-1].copy()})["y"].argmax(1)
    assert (mirrored == given["labels"]).mean() == 0.8
    lesson = fitting.Lesson(graph, read(given, Session(to_proto(graph)).inputs), TrainOptions())
    assert "flip" not in lesson.options.augment
    others = {name: array[given["labels"] > 1] for name, array in given.items()}
    lesson = fitting.Lesson(graph, read(others, Session(to_proto(graph)).inputs), TrainOptions())
    assert "flip" in lesson.options.augment


def test_facts_and_checkpoints_have_what_was_done_to_images(tmp_path: Path) -> None:
    graph, given = arrows()
    given = {name: array[given["labels"] > 1] for name, array in given.items()}
    facts = trained(graph, given, epochs=1, folder=tmp_path).report.training
    assert facts is not None and "flip" in facts.augment
    with pytest.raises(InputError, match="differs in augment"):
        trained(graph, given, epochs=1, folder=tmp_path, augment=("none",))
    again = trained(graph, given, epochs=1, folder=tmp_path, augment=facts.augment)
    assert again.report.training is not None and again.report.training.augment == facts.augment


def test_steps_stay_without_lsq(network: Graph, data: dict[str, np.ndarray]) -> None:
    learned, kept = (trained(network, data, method=method) for method in ("lsq", "ste"))
    calibrated = trained(network, data, method="ste", lr=1e-12)
    assert kept.plan.ranges == calibrated.plan.ranges
    assert learned.plan.ranges != kept.plan.ranges


def test_labels_may_be_numbers(network: Graph, data: dict[str, np.ndarray]) -> None:
    scores = Session(to_proto(network)).run({"x": data["x"]})["y"]
    given = {"x": data["x"], "labels": scores + np.float32(0.1)}
    found = trained(network, given, metric="sqnr", max_drop=None, min_sqnr=0.0)
    assert found.report.training is not None
    first, *later = found.report.training.history
    assert first.score is None
    assert min(e.held_out_loss for e in later) < first.held_out_loss


def test_distillation_needs_no_labels(network: Graph, data: dict[str, np.ndarray]) -> None:
    unlabelled = {"x": data["x"]}
    found = trained(network, unlabelled, loss="distill", features=0.5, lr=2e-4, min_agreement=0.0)
    history = found.report.training
    assert history is not None
    first, *later = history.history
    assert first.score is None
    assert min(e.held_out_loss for e in later) < first.held_out_loss


def test_what_judges_epochs_is_not_calibrated_on(
    network: Graph, data: dict[str, np.ndarray]
) -> None:
    seed = next(n for n in range(99) if 95 in np.random.RandomState(n).permutation(96)[:10])
    tops = np.abs(data["x"]).reshape(96, -1).max(1).reshape(-1, *[1] * (data["x"].ndim - 1))
    rising = {**data, "x": data["x"] / tops * np.arange(1, 97).reshape(tops.shape)}
    rising["x"] = rising["x"].astype(np.float32)
    given = {"method": "ste", "epochs": 1, "calibrator": "minmax", "seed": seed}
    found = trained(network, rising, eval_data=rising, max_drop=100.0, **given)
    judging = np.random.RandomState(seed).permutation(96)[:10]
    most = max({*range(96)} - {*judging.tolist()}) + 1
    assert max(map(abs, found.plan.ranges["x"])) == pytest.approx(most, rel=0.02)


def test_what_is_no_better_is_not_kept(network: Graph, data: dict[str, np.ndarray]) -> None:
    found = trained(network, data, lr=30.0, epochs=1, optimizer="sgd")
    assert found.report.training is not None
    assert found.report.training.best == 0
    assert any("No epoch was better" in note for note in found.report.notes)


def test_parts_of_an_update_are_the_update(network: Graph, data: dict[str, np.ndarray]) -> None:
    whole, parts = (trained(network, data, accumulate=n, optimizer="sgd") for n in (1, 2))
    one, other = (found.report.training for found in (whole, parts))
    assert one is not None and other is not None
    for a, b in zip(one.history[1:], other.history[1:], strict=True):
        assert a.loss == pytest.approx(b.loss, rel=1e-4)


def test_early_stopping(network: Graph, data: dict[str, np.ndarray]) -> None:
    found = trained(network, data, lr=1e-12, epochs=9, patience=2)
    assert found.report.training is not None
    assert found.report.training.epochs == 2


SCRIPT = """
import sys
import torch
torch.set_num_threads(1)
from onnxq import train
import numpy as np
model, data, folder, plan = sys.argv[1:]
train(model, dict(np.load(data)), epochs=20, batch_size=4, lr=1e-3, folder=folder,
      checkpoint_every=2, plan_output=plan, keep_failed=True,
      min_speedup=0.0, max_drop=1.0, target="cpu-x64")
"""


def test_broken_off_anywhere_it_goes_on_to_the_same_numbers(
    network: Graph,
    data: dict[str, np.ndarray],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    options = {"checkpoint_every": 3, "epochs": 3, "lr": 3e-3, "held_out": 0.3}
    whole = trained(network, data, **options, folder=tmp_path / "whole")
    update, left = Trainer._update, 0

    def breaking(self: Trainer, *arguments: Any) -> tuple[float, int]:
        nonlocal left
        left -= 1
        if left < 0:
            raise KeyboardInterrupt
        return update(self, *arguments)

    monkeypatch.setattr(Trainer, "_update", breaking)
    for updates in (1, 5, 0, 4):
        left = updates
        with pytest.raises(KeyboardInterrupt):
            trained(network, data, **options, folder=tmp_path / "broken")
    monkeypatch.setattr(Trainer, "_update", update)
    broken = trained(network, data, **options, folder=tmp_path / "broken")
    assert to_bytes(broken.plan.tuned) == to_bytes(whole.plan.tuned)
    assert broken.plan.ranges == whole.plan.ranges
    logs = [(tmp_path / n / "training.csv").read_text() for n in ("whole", "broken")]
    assert logs[0] == logs[1]


@pytest.mark.slow
def test_killed_at_20_moments_it_goes_on_to_the_same_numbers(
    network: Graph, data: dict[str, np.ndarray], tmp_path: Path
) -> None:
    """Half of them at random, half while a checkpoint is written."""
    model, samples = tmp_path / "m.onnx", tmp_path / "d.npz"
    save(network, model)
    np.savez(samples, **data)

    def command(name: str) -> list[str]:
        arguments = (model, samples, tmp_path / name, tmp_path / f"{name}.toml")
        return [sys.executable, "-c", SCRIPT, *map(str, arguments)]

    def learned(name: str) -> tuple[bytes, str]:
        plan = (tmp_path / f"{name}.safetensors").read_bytes()
        return plan, (tmp_path / name / "training.csv").read_text()

    subprocess.run(command("whole"), check=True, capture_output=True)
    folder, kills = tmp_path / "broken", 0
    checkpoint = folder / "checkpoint.pt"
    delays = iter(np.random.RandomState(0).uniform(0.0, 0.3, 1000))

    def moment(begun: float) -> bool:
        """Whether to kill now: some time after the first checkpoint, or while one is written."""
        if not checkpoint.exists() or checkpoint.stat().st_mtime <= begun:
            return False
        if kills % 2:
            return any(folder.glob(".checkpoint.pt.*"))
        time.sleep(next(delays))
        return True

    while kills < 20:
        begun = checkpoint.stat().st_mtime if checkpoint.exists() else 0.0
        process = subprocess.Popen(command("broken"), stderr=subprocess.DEVNULL)
        while process.poll() is None and not moment(begun):
            time.sleep(0.0005)
        process.kill()
        if process.wait() == -signal.SIGKILL:
            kills += 1
            continue
        assert process.returncode == 0
        assert learned("broken") == learned("whole")
        shutil.rmtree(folder)
    subprocess.run(command("broken"), check=True, capture_output=True)
    assert learned("broken") == learned("whole")


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        ({"epochs": -1}, ("epochs", "at least 0")),
        ({"loss": "guess"}, ("loss", "task, distill, both")),
        ({"augment": ("turn",)}, ("turn", "flip, crop, cutout, mixup")),
        ({"augment": ("flip",)}, ("augmentation", "--augment")),
        ({"device": "cuda"}, ("cuda", "--device")),
        ({"device": "meta"}, ("meta", "--device")),
        ({"bits": "w9a9"}, ("w9a9", "w8a8")),
        ({"lr": 1e30, "optimizer": "sgd"}, ("update", "epoch", "--lr", "--resume")),
        ({"pins": (Pin("*", "float32"),)}, ("nothing", "pins")),
    ],
)
def test_refusals(
    options: dict[str, object], parts: tuple[str, ...], network: Graph, data: dict[str, np.ndarray]
) -> None:
    if options.get("device") == "cuda" and torch.cuda.is_available():
        pytest.skip("there is CUDA here")
    with pytest.raises(InputError) as caught:
        trained(network, data, **options)
    for part in parts:
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("labels", "parts"),
    [
        (None, ("labels", "--loss distill")),
        (np.zeros((96, 3), np.int64), ("labels [", "--loss distill")),
        (np.full(96, CLASSES), (f"label {CLASSES}", f"{CLASSES} classes")),
        (np.full(96, -1), ("no label is a class", "negative")),
        (np.full(96, "a"), ("labels", "<U1", "from 0")),
    ],
)
def test_labels_that_do_not_fit(
    labels: np.ndarray | None, parts: tuple[str, ...], network: Graph, data: dict[str, np.ndarray]
) -> None:
    given = {"x": data["x"], **({} if labels is None else {"labels": labels})}
    with pytest.raises(InputError) as caught:
        trained(network, given, metric="sqnr", max_drop=None)
    for part in parts:
        assert part in str(caught.value)


def test_an_operator_without_gradients_is_named_first(data: dict[str, np.ndarray]) -> None:
    graph = chain()
    last = graph.outputs[0].producer
    assert last is not None
    graph.add("StringNormalizer", [last.output], name="odd", domain="made.up")
    made = graph.nodes()[-1]
    with pytest.raises(InputError, match="odd"):
        Executor(graph, outputs=[made.output.name])


def test_a_broken_or_foreign_checkpoint_is_refused(
    network: Graph,
    data: dict[str, np.ndarray],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    trained(network, data, folder=tmp_path)
    with monkeypatch.context() as patched:
        # Before anything that takes time.
        patched.delattr(training, "observed")
        with pytest.raises(InputError, match=r"differs in batch_size \(\d+, not 16\)"):
            trained(network, data, folder=tmp_path, batch_size=16)
    (tmp_path / "checkpoint.pt").write_bytes(b"nothing")
    with pytest.raises(InputError, match="no checkpoint"):
        trained(network, data, folder=tmp_path)


def test_after_a_loss_that_is_not_finite_the_last_checkpoint_is_there(
    network: Graph, data: dict[str, np.ndarray], tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="the loss is"):
        trained(network, data, folder=tmp_path, lr=1e30, optimizer="sgd", checkpoint_every=1)
    assert (tmp_path / "checkpoint.pt").exists()
    found = trained(network, data, folder=tmp_path, lr=1e-3, optimizer="sgd", checkpoint_every=1)
    assert found.report.training is not None
    assert np.isfinite([e.held_out_loss for e in found.report.training.history]).all()


def test_a_held_out_loss_that_is_not_finite_ends_training_at_the_best_epoch(
    network: Graph, data: dict[str, np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = iter([1.0, 0.5, float("nan")])

    def judge(self: Learner, feeds: Iterable[Feed]) -> Judgement:
        return Judgement(next(losses), 1)

    monkeypatch.setattr(Learner, "judge", judge)
    with pytest.raises(InputError, match=r"nan on held-out data after epoch 2.*so far, 1"):
        trained(network, data, folder=tmp_path, epochs=4)
    state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert len(state["history"]) == 2 and state["best"]["epoch"] == 1
    monkeypatch.setattr(Learner, "judge", lambda self, feeds: Judgement(float("inf"), 1))
    with pytest.raises(InputError, match="inf before training"):
        trained(network, data)


def test_labels_that_are_left_out_have_no_loss() -> None:
    scores = torch.randn(2, 5, 3, requires_grad=True)
    labels = torch.tensor([[0, -1, 2, -100, 1], [-1, -1, -1, -1, -1]])
    loss = task_loss({"y": scores}, labels)
    kept = functional.cross_entropy(scores[0, [0, 2, 4]], labels[0, [0, 2, 4]])
    torch.testing.assert_close(loss, kept)
    nothing = task_loss({"y": scores}, torch.full((2, 5), -1))
    assert float(nothing.detach()) == 0.0


@pytest.mark.parametrize("schedule", ["cosine", "one-cycle"])
def test_rates_rise_and_fall(schedule: str) -> None:
    rates = [factor(schedule, done, 0.1) for done in np.linspace(0, 1, 201)]
    top = int(np.argmax(rates))
    assert rates[top] == pytest.approx(1.0)
    assert top == (20 if schedule == "cosine" else 60)
    assert (np.diff(rates[: top + 1]) > 0).all() and (np.diff(rates[top:]) < 0).all()
    assert rates[-1] < 1e-3
