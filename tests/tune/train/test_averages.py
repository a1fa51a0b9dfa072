"""Moving averages of what is trained, and where they take its place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason='needs torch: pip install "onnxq[train]"')

from onnxq import InputError
from onnxq.ir import to_proto
from onnxq.runtime import Session
from onnxq.tune.train.averages import MovingAverages
from onnxq.tune.train.learner import Learner
from onnxq.tune.train.trainer import Trainer
from tests.networks import CLASSES, chain, computed, inputs
from tests.tune.train.recording import record
from tests.tune.train.test_norms import normed, trained

__all__ = ["computed"]

Numbers = dict[str, np.ndarray]

DECAY = 0.3
"""Of the first two updates it is less: 2/11, 3/12."""


@pytest.fixture(autouse=True)
def unmeasured(computed: None) -> None:
    """Nothing is timed."""


@pytest.fixture(scope="module")
def data() -> dict[str, np.ndarray]:
    feeds = inputs(chain(), 96)
    return {**feeds, "labels": np.arange(96) % CLASSES}


def numbers_of(module: Any, *, statistics: bool = True) -> Numbers:
    own = [(k, p) for k, p in module.named_parameters() if p.requires_grad]
    own += [(str(at), n) for at, n in enumerate(module.statistics)] if statistics else []
    return {k: p.detach().double().numpy().copy() for k, p in own}


def test_they_are_judged_and_kept_and_training_goes_on_from_what_they_are_of(
    data: dict[str, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    modules, seen = record(monkeypatch), dict[str, list[Numbers]]()

    def note(kind: type, name: str) -> None:
        run, before, after = getattr(kind, name), *(seen.setdefault(f"{name}{i}", []) for i in "01")

        def noted(*given: Any) -> Any:
            before.append(numbers_of(modules[0]))
            found = run(*given)
            after.append(numbers_of(modules[0]))
            return found

        monkeypatch.setattr(kind, name, noted)

    note(Trainer, "_update")
    note(Learner, "judge")
    note(Learner, "average")
    options = {"bits": "w3a3", "epochs": 5, "batch_size": 32, "lr": 0.02}
    found = trained(normed(), data, average=DECAY, **options)
    # In the first judgement statistics begin. Behind the fourth epoch those of batches end: what
    # was learned since is for statistics as they are, and judged with these.
    judged, begun, raw = seen["judge0"][1:], seen["_update0"], seen["_update1"]
    crossing, left = seen["average0"].pop(3), seen["average1"].pop(3)
    assert (len(raw), len(judged)) == (10, 6)
    np.testing.assert_equal(begun[1:], [*raw[:7], left, raw[8]])
    np.testing.assert_equal(crossing, raw[7])
    np.testing.assert_equal(seen["average1"], judged[1:-2])
    wanted = [begun[0]]
    for at, now in enumerate(raw, 1):
        keep = min(DECAY, (1 + at) / (10 + at))
        wanted.append({k: keep * wanted[-1][k] + (1 - keep) * now[k] for k in now})
    names = numbers_of(modules[0], statistics=False)
    for ours, theirs in zip(judged, wanted[::2], strict=True):
        for name in names:
            np.testing.assert_allclose(ours[name], theirs[name], rtol=1e-5, atol=1e-7)
    facts = found.report.training
    assert facts is not None and facts.best > 0
    np.testing.assert_equal(numbers_of(modules[0]), judged[facts.best])
    given = {"x": data["x"][:32]}
    with torch.no_grad():
        wished = modules[0]({"x": torch.from_numpy(given["x"])})["y"].numpy()
    made = Session(to_proto(found.graph), optimization="none").run(given)["y"]
    assert (np.abs(made - wished) > 1e-3 * np.abs(wished).max()).mean() < 0.1


def test_what_they_stand_in_for_is_put_back_whatever_happens() -> None:
    parameter, other = torch.nn.Parameter(torch.ones(3)), torch.zeros(2)
    averages = MovingAverages([parameter], 0.5)
    with torch.no_grad():
        parameter.copy_(torch.full((3,), 12.0))
    averages.move(1)
    with pytest.raises(KeyboardInterrupt), averages.in_place([other]):
        torch.testing.assert_close(parameter.detach(), torch.full((3,), 10.0))
        other += 1
        raise KeyboardInterrupt
    assert (parameter == 12).all() and (other == 0).all()


def test_after_a_loss_that_is_not_finite_they_are_those_of_the_best_epoch(
    data: dict[str, np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    update, left = Trainer._update, 8

    def failing(self: Trainer, *arguments: Any) -> tuple[float, int]:
        nonlocal left
        left -= 1
        loss, samples = update(self, *arguments)
        return (loss if left else float("nan")), samples

    monkeypatch.setattr(Trainer, "_update", failing)
    options = {"bits": "w3a3", "epochs": 5, "batch_size": 32, "average": DECAY}
    with pytest.raises(InputError, match="the loss is nan in update 8"):
        trained(normed(), data, folder=tmp_path, **options)
    state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    best, module = state["best"]["module"], state["module"]
    torch.testing.assert_close(module, best, rtol=0, atol=0)
    own = {id(a) for a in state["averages"] for b in best.values() if torch.equal(a, b)}
    assert len(own) == len(state["averages"])
    found = trained(normed(), data, folder=tmp_path, **options)
    assert found.report.training is not None and found.report.training.epochs == 5
