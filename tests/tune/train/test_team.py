"""Several processes learn what one does."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason='needs torch: pip install "onnxq[train]"')

from onnxq import InputError, Optimized, train
from onnxq.ir import infer_types, to_proto
from onnxq.tune.train.learner import Judgement
from onnxq.tune.train.samples import Feed, Labels, weighted
from onnxq.tune.train.team import Team
from tests.networks import CLASSES, chain, computed, inputs

__all__ = ["computed"]

QUICK = {"min_speedup": 0.0, "max_drop": 1.0, "target": "cpu-x64"}


@pytest.fixture(autouse=True)
def unmeasured(computed: None) -> None:
    """Nothing is timed."""


@pytest.fixture(scope="module")
def data() -> dict[str, np.ndarray]:
    feeds = inputs(chain(), 67)
    return {**feeds, "labels": np.arange(67) % CLASSES}


def trained(model: bytes | str, data: dict[str, np.ndarray], **options: Any) -> Optimized:
    return train(model, data, **{"batch_size": 16, "lr": 1e-3, "epochs": 2, **QUICK, **options})


def small() -> bytes:
    graph = chain()
    infer_types(graph)
    return to_proto(graph).SerializeToString()


def curve(found: Optimized) -> list[float]:
    """Losses of all epochs, of training and held out."""
    facts = found.report.training
    assert facts is not None
    return [*(e.loss or 0.0 for e in facts.history), *(e.held_out_loss for e in facts.history)]


def test_two_processes_have_the_curve_of_one(
    data: dict[str, np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What lies in the working folder is no module of theirs.
    (tmp_path / "pickle.py").write_text("raise SystemExit('no module')")
    monkeypatch.chdir(tmp_path)
    one, two = (trained(small(), data, processes=n, loss="both", average=0.9) for n in (1, 2))
    assert curve(two) == pytest.approx(curve(one), rel=1e-4)
    scores = [[e.score for e in f.report.training.history] for f in (one, two) if f.report.training]
    assert scores[0] == scores[1]


@pytest.mark.slow
@pytest.mark.parametrize("options", [{"processes": 2}, {"accumulate": 3}])
def test_labels_count_alike_wherever_they_are(
    data: dict[str, np.ndarray], options: dict[str, int]
) -> None:
    few = {**data, "labels": np.where(np.arange(67) % 5 < 3, -1, data["labels"])}
    given = {"loss": "task", "epochs": 1, "metric": "sqnr", "max_drop": None, "min_sqnr": -100.0}
    whole, parts = (trained(small(), few, **given, **o) for o in ({}, options))
    assert curve(parts) == pytest.approx(curve(whole), rel=1e-4)


@pytest.mark.slow
def test_on_a_residual_network() -> None:
    digits = np.load("models/digits.npz")
    few = {"image": digits["image"][:96], "labels": digits["labels"][:96]}
    options = {"bits": "w4a4", "epochs": 1, "batch_size": 32, "lr": 1e-4}
    found = [trained("models/digits_resnet.onnx", few, processes=n, **options) for n in (1, 2, 3)]
    for several in found[1:]:
        assert curve(several) == pytest.approx(curve(found[0]), rel=1e-3)


@pytest.mark.slow
def test_what_was_learned_before_a_process_was_lost_is_kept(
    data: dict[str, np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    learn, updates = Team.learn, 0

    def losing(self: Team, feeds: list[Feed], done: float, samples: int) -> float:
        nonlocal updates
        updates += 1
        if updates == 6:
            os.kill(self._others[0].pid, signal.SIGKILL)
        return learn(self, feeds, done, samples)

    monkeypatch.setattr(Team, "learn", losing)
    with pytest.raises(InputError, match=r"process 2 of 2 .*\(by SIGKILL\)"):
        trained(small(), data, processes=2, epochs=3, folder=tmp_path)
    state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert state["step"] == 5


@pytest.mark.slow
def test_an_epoch_that_was_not_judged_is_judged_when_training_goes_on(
    data: dict[str, np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = trained(small(), data, processes=2)
    assert whole.report.training is not None
    judge, judged = Team.judge, 0

    def losing(self: Team, feeds: Iterable[Feed]) -> Judgement:
        nonlocal judged
        judged += 1
        if judged == 2:
            os.kill(self._others[0].pid, signal.SIGKILL)
        return judge(self, feeds)

    monkeypatch.setattr(Team, "judge", losing)
    with pytest.raises(InputError, match=r"process 2 of 2 .*\(by SIGKILL\)"):
        trained(small(), data, processes=2, folder=tmp_path)
    state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert state["step"] == whole.report.training.steps / 2 and len(state["history"]) == 1
    broken = trained(small(), data, processes=2, folder=tmp_path)
    assert curve(broken) == curve(whole)


def test_a_process_that_cannot_begin_is_named(
    data: dict[str, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.executable", "/bin/false")
    with pytest.raises(InputError, match=r"process 2 of 2 .*\(code 1\)"):
        trained(small(), data, processes=2)


ORPHANING = """
import os, signal, sys
from pathlib import Path
from onnxq.tune.train.team import _started
folder = Path(sys.argv[1])
print(_started(folder, 1, folder / "1.log").pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_process_ends_though_the_first_was_killed_before_it_began(tmp_path: Path) -> None:
    folder = tmp_path / "team"
    folder.mkdir()
    # Whoever reads it waits for ever.
    os.mkfifo(folder / "source.onnx")
    command = [sys.executable, "-c", ORPHANING, str(folder)]
    began = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    assert began.returncode == -signal.SIGKILL
    try:
        end = time.monotonic() + 120
        while folder.exists() and time.monotonic() < end:
            time.sleep(0.1)
        assert not folder.exists()
    finally:
        with suppress(ProcessLookupError):
            os.kill(int(began.stdout), signal.SIGKILL)


def test_feeds_are_split_only_where_the_model_may_be_fed_less() -> None:
    x = torch.arange(10.0).reshape(5, 2)
    feed = Feed({"x": x}, (Labels(torch.arange(5)),), 5, 5, is_divisible=True)
    first, second = feed.split(2)
    assert (first.valid, second.valid, second.size) == (3, 2, 2)
    torch.testing.assert_close(torch.cat([first.feeds["x"], second.feeds["x"]]), x)
    assert [own.values.tolist() for own in second.labels] == [[3, 4]]
    assert len(Feed({"x": x}, (), 5, 5).split(2)) == 1
    assert len(feed.split(6)) == 1


def test_a_part_counts_by_its_labels() -> None:
    def weight(part: Feed) -> float:
        (own,) = part.labels
        return own.weight

    labels = torch.tensor([[0, 1, 2], [-1, -1, 3], [-1, -1, -1]])
    feed = Feed({"x": torch.zeros(3, 3)}, (Labels(labels),), 3, 3, is_divisible=True)
    # Of parts of 2 samples and 1: losses count by samples, those of labels by labels.
    assert [weight(p) * p.valid for p in feed.split(2)] == pytest.approx([3, 0])
    assert [weight(p) * p.valid for p in feed.split(3)] == pytest.approx([2.25, 0.75, 0])
    again = weighted(feed.split(3)[:2])
    assert [weight(p) for p in again] == pytest.approx([2.25 * 1.5, 0.75 * 0.5])
    for labels in (torch.zeros(3, 3), torch.full((3,), -1)):
        feed = Feed({"x": torch.zeros(3, 3)}, (Labels(labels),), 3, 3, is_divisible=True)
        assert [weight(p) for p in feed.split(2)] == pytest.approx([1, 1])
    # What is blended with others has labels of both, and parts count by their own of either.
    both = (Labels(torch.tensor([0, -1, -1]), 0.25), Labels(torch.tensor([1, 2, 3]), 0.75))
    blended = Feed({"x": torch.zeros(3, 3)}, both, 3, 3, is_divisible=True).split(3)
    assert [[own.weight for own in p.labels] for p in blended] == [
        pytest.approx([0.75, 0.75]),
        pytest.approx([0, 0.75]),
        pytest.approx([0, 0.75]),
    ]
