"""From a bundle that `optimize` makes to an adapted model, with everything real."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from onnxq import optimize
from onnxq.adaptive.bundle import Bundle
from onnxq.adaptive.session import AdaptiveSession
from onnxq.adaptive.worker import Clock
from onnxq.ir import save
from onnxq.runtime import Backend, Session, interleaved
from onnxq.runtime.specs import Array
from tests.networks import chain, inputs

MODELS = Path(__file__).parents[2] / "models"
CORPUS = Path(os.environ.get("ONNXQ_CORPUS", "/none"))
MEAN, DEVIATION = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)


@dataclass(frozen=True)
class Case:
    """A model that was calibrated in the dark, and what it is asked then."""

    model: Path
    calibration: Array
    images: Array
    labels: Array


def digits() -> Case:
    with np.load(MODELS / "digits.npz") as file:
        image, labels, is_held_out = file["image"], file["labels"], file["split"] == 1
    images, labels = image[is_held_out], labels[is_held_out]
    dark = np.concatenate([image[~is_held_out], images[:60]]) * np.float32(0.4)
    return Case(MODELS / "digits_vit.onnx", dark, images[60:], labels[60:])


def cifar() -> Case:
    found = []
    for part in ("calib", "eval"):
        with np.load(CORPUS / f"data/cifar10_{part}.npz") as file:
            image, labels = file["image"][:800] / np.float32(255), file["labels"][:800]
        image = (image - np.float32(MEAN)) / np.float32(DEVIATION)
        found.append((image.transpose(0, 3, 1, 2).copy(), labels))
    dark = found[0][0][:320] * np.float32(0.4)
    return Case(CORPUS / "models/cifar_resnet20.onnx", dark, *found[1])


def plain(folder: Path) -> Case:
    graph = chain()
    save(graph, folder / "chain.onnx")
    images = inputs(graph, 600)["x"]
    labels = Session(folder / "chain.onnx").run({"x": images})["y"].argmax(1)
    return Case(folder / "chain.onnx", images[:80] * np.float32(0.3), images[80:], labels[80:])


def adapted(
    case: Case, folder: Path, patch: pytest.MonkeyPatch, before: int, after: int
) -> tuple[dict[str, float], dict[str, float]]:
    """Share of right answers, and distance from float, after a gain that is adapted to.

    The sudden gain brings back what the model was trained for; it was calibrated in the dark. Both
    are of what comes 500 requests later, of the session and of models that stay as they are.
    """
    patch.setattr(Backend, "time", staticmethod(partial(interleaved, rounds=3)))
    (fed,) = Session(case.model).inputs
    options = {"recipe": "int8", "min_speedup": 0.0, "methods": "none"}
    optimize(case.model, {fed.name: case.calibration}, adaptive=folder / "bundle", **options)
    bundle = Bundle.load(folder / "bundle")
    dark = np.float32(np.abs(case.calibration).max() / np.abs(case.images).max())
    passed = [0.0]
    order = np.random.default_rng(0).permutation(len(case.images)).tolist() * 5
    models = {"static": Session(bundle.model(0)), "float": Session(bundle.model(1))}
    right: dict[str, list[bool]] = {"adaptive": [], "static": [], "float": []}
    away: dict[str, list[float]] = {"adaptive": [], "static": [], "float": []}
    with AdaptiveSession(bundle, clock=Clock(steady=lambda: passed[0])) as session:
        for number, at in enumerate(order[: before + after]):
            passed[0] += 0.01
            feeds = {fed.name: case.images[at : at + 1] * (dark if number < before else 1)}
            answers = {name: model.run(feeds).popitem()[1] for name, model in models.items()}
            (answers["adaptive"],) = session.run(None, feeds)
            session.flush()
            for name, logits in answers.items():
                right[name].append(int(logits.argmax()) == case.labels[at])
                away[name].append(float(np.square(logits - answers["float"]).mean()))
            if session.statistics()["generation"] == 0:
                np.testing.assert_array_equal(answers["adaptive"], answers["static"])
            if number == before:
                assert session.events() == []
            if number == before + 500:
                assert [event["kind"] for event in session.events()] == ["drift", "adapted"]
        assert [event["kind"] for event in session.events()] == ["drift", "adapted"]
    # Beyond what the models can hold as they were made, in the dark.
    assert max(own["above"] + own["below"] for own in session.tensors().values()) > 0.05
    ends = [{n: float(np.mean(own[before + 500 :])) for n, own in k.items()} for k in (right, away)]
    return ends[0], ends[1]


def test_a_sudden_gain_is_seen_and_adapted_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right, away = adapted(plain(tmp_path), tmp_path, monkeypatch, before=200, after=700)
    assert right["adaptive"] == 1.0
    assert away["adaptive"] < away["static"] / 100


@pytest.mark.slow
@pytest.mark.parametrize("case", [digits, cifar])
def test_real_models_are_as_good_as_float_again(
    case: Callable[[], Case], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, _ = adapted(case(), tmp_path, monkeypatch, before=500, after=1500)
    assert found["static"] < found["float"] - 0.03
    assert found["adaptive"] > found["float"] - 0.01
