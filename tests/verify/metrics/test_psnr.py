"""Peak signal-to-noise ratio."""

from __future__ import annotations

import math

import numpy as np
import pytest

from onnxq.errors import InputError
from onnxq.verify.metrics import choose_metric, paired_drop
from onnxq.verify.metrics.psnr import Psnr
from tests.verify.metrics.filling import filled


def test_it_is_the_mean_of_each_images_ratio() -> None:
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 256, (40, 1, 5, 5)).astype(np.uint8)
    ours = labels + generator.normal(size=labels.shape)
    theirs = labels + 2 * generator.normal(size=labels.shape)
    mse = [((x - labels) ** 2).mean(axis=(1, 2, 3)) for x in (ours, theirs)]
    wanted = [float(np.mean(20 * np.log10(255 / np.sqrt(x)))) for x in mse]
    drop = paired_drop(*(filled(Psnr(peak=255), x, labels) for x in (ours, theirs)))
    assert [drop.float, drop.candidate] == pytest.approx(wanted)
    losses = 10 * np.log10(mse[1] / mse[0])
    half = 1.96 * losses.std() / math.sqrt(40)
    assert drop.confidence == pytest.approx((drop.drop - half, drop.drop + half), abs=half / 4)


def test_no_error_is_infinite_and_no_number_the_worst() -> None:
    labels = np.ones((2, 3))
    assert filled(Psnr(), labels, labels).result().value == math.inf
    assert filled(Psnr(), labels * np.nan, labels).result().value == -math.inf


def test_images_without_an_error_do_not_hide_what_others_lose() -> None:
    labels = np.zeros((20, 4))
    ours, theirs = labels + 0.01, labels + 0.1
    ours[0] = theirs[0] = 0
    drop = paired_drop(*(filled(Psnr(), x, labels) for x in (ours, theirs)))
    assert (drop.float, drop.candidate) == (math.inf, math.inf)
    assert drop.drop == pytest.approx(20 * 19 / 20) and drop.confidence is not None
    assert drop.confidence[0] < drop.drop <= drop.confidence[1]
    theirs[1], theirs[0] = 0, 0.1
    mixed = paired_drop(*(filled(Psnr(), x, labels) for x in (ours, theirs)))
    assert math.isnan(mixed.drop) and mixed.confidence is None


def test_it_needs_labels_and_a_peak() -> None:
    with pytest.raises(InputError, match="needs labels"):
        choose_metric("psnr", False, None)
    with pytest.raises(InputError, match="'peak' of metric psnr is above 0"):
        choose_metric("psnr{peak=0}", True, 4)
