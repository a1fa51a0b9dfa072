"""Tests of what is done to images at random while a model is trained."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="training needs torch: install onnxq[train]")

from onnxq.data import Batch, read
from onnxq.ir import infer_types, load, to_proto
from onnxq.runtime import Session
from onnxq.tune.train import fitting
from onnxq.tune.train.augmentation import augmenting
from onnxq.tune.train.objectives import Objective, task_loss
from onnxq.tune.train.samples import Samples
from onnxq.tune.training import TrainOptions


def test_an_augmentation_is_taken_if_the_model_decides_as_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given: list[tuple[str, ...]] = []

    def noted(names: tuple[str, ...], batch: Batch) -> Any:
        given.append(names)
        return augmenting(names, batch)

    monkeypatch.setattr(fitting, "augmenting", noted)
    graph = load("models/digits_resnet.onnx")
    infer_types(graph)
    arrays = dict(np.load("models/digits.npz"))
    chosen = arrays.pop("split") == 0
    digits = read({k: v[chosen] for k, v in arrays.items()}, Session(to_proto(graph)).inputs)
    fitting.Lesson(graph, digits, TrainOptions())
    # Most digits are no digits in a mirror.
    assert given[-1] == ("crop",)
    fitting.Lesson(graph, digits, TrainOptions(augment=("none",)))
    assert given[-1] == ()


def test_augmentation_moves_images_and_nothing_else() -> None:
    rng = np.random.RandomState(0)
    feeds = {"image": rng.rand(64, 3, 16, 24), "scale": rng.rand(64, 2)}
    augment = augmenting(("flip", "crop"), Batch(feeds, None, 64, 64))
    assert augment is not None
    found, blend = augment(feeds, np.random.RandomState(1), 64)
    assert blend is None
    assert found["scale"] is feeds["scale"]
    mirrored = 0
    for before, after in zip(feeds["image"], found["image"], strict=True):
        padded = [np.pad(b, ((0, 0), (2, 2), (3, 3))) for b in (before, before[:, :, ::-1])]
        where = [
            np.array_equal(p[:, top : top + 16, left : left + 24], after)
            for p in padded
            for top in range(5)
            for left in range(7)
        ]
        assert any(where)
        mirrored += any(where[35:])
    assert 16 < mirrored < 48
    last = {"image": np.moveaxis(feeds["image"], 1, 3)}
    augment = augmenting(("flip", "crop"), Batch(last, None, 64, 64))
    assert augment is not None
    again, _ = augment(last, np.random.RandomState(1), 64)
    np.testing.assert_array_equal(np.moveaxis(again["image"], 3, 1), found["image"])


def test_a_square_is_cut_out_of_each_image() -> None:
    feeds = {"image": np.ones((200, 3, 16, 24), np.float32)}
    augment = augmenting(("cutout",), Batch(feeds, None, 200, 200))
    assert augment is not None
    found, _ = augment(feeds, np.random.RandomState(0), 200)
    assert (feeds["image"] == 1).all()
    cut = found["image"] == 0
    np.testing.assert_array_equal(cut[:, 0], cut[:, 2])
    for image in cut[:, 0]:
        rows, columns = np.flatnonzero(image.any(1)), np.flatnonzero(image.any(0))
        assert image.sum() == len(rows) * len(columns) > 0
        assert np.ptp(rows) < 8 and np.ptp(columns) < 8
    # Squares of 8 x 8, of which some reach over an edge.
    assert cut[:, 0].sum((1, 2)).max() == 64 > cut[:, 0].sum((1, 2)).min()
    assert cut[:, 0].any(0).all()


@pytest.mark.parametrize("dtype", [np.float32, np.uint8])
def test_images_are_blended_with_others(dtype: type[np.generic]) -> None:
    images = np.random.RandomState(0).uniform(0, 255, (6, 3, 8, 8)).astype(dtype)
    labels = np.array([3, 1, 0, 2, 2, 1])
    samples = Samples([Batch({"image": images}, labels, 4, 6)], is_divisible=False)
    feed = samples.feed([0], augmenting(("mixup",), samples.first), (0,))
    own, partner = feed.labels
    assert own.weight + partner.weight == pytest.approx(1) and own.weight not in (0, 1)
    np.testing.assert_array_equal(own.values, labels[:4])
    assert sorted(partner.values.tolist()) == sorted(labels[:4])
    mixed = feed.feeds["image"].numpy()
    assert mixed.dtype == dtype
    # Copies that fill a batch up are neither blended nor partners.
    np.testing.assert_array_equal(mixed[4:], images[4:])
    atol = 1e-3 if dtype is np.float32 else 0.51
    with_each = own.weight * images[:4, None].astype(float) + partner.weight * images[None, :4]
    near = np.isclose(mixed[:4, None], with_each, rtol=0, atol=atol).all((2, 3, 4))
    partners = near.argmax(1)
    assert near.any(1).all() and sorted(partners) == [0, 1, 2, 3]
    np.testing.assert_array_equal(labels[partners], partner.values)

    scores = {"y": torch.from_numpy(np.random.RandomState(1).randn(6, 4))}
    wanted = own.weight * task_loss({"y": scores["y"][:4]}, own.values)
    wanted = wanted + partner.weight * task_loss({"y": scores["y"][:4]}, partner.values)
    torch.testing.assert_close(Objective("task", None).loss(feed, scores), wanted)
