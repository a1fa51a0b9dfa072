"""What two models' values say about each other, against numpy in float64."""

from __future__ import annotations

import numpy as np
import pytest

from onnxq.errors import InputError
from onnxq.needs import CrossGramOf, DifferenceOf, Windows
from onnxq.observe import compare

RNG = np.random.default_rng(0)


def pairs(*shape: int, parts: int = 3) -> list[tuple[dict[str, np.ndarray], ...]]:
    """What two models have of a tensor: values, and values that are not far from them."""
    found = []
    for _ in range(parts):
        exact = RNG.standard_normal(shape).astype(np.float32)
        ours = exact + RNG.standard_normal(shape).astype(np.float32) / 4
        found.append(({"t": ours}, {"t": exact}))
    return found


def joined(values: list[tuple[dict[str, np.ndarray], ...]]) -> list[np.ndarray]:
    return [
        np.concatenate([pair[side]["t"] for pair in values]).astype(np.float64) for side in (0, 1)
    ]


def test_products_of_rows() -> None:
    values, need = pairs(50, 7, 12), CrossGramOf("t")
    ours, exact = (side.reshape(-1, 12) for side in joined(values))
    found = compare([need, need], values)[need]
    np.testing.assert_allclose(found.matrix, [ours.T @ exact], rtol=1e-12)
    assert found.rows == 3 * 50 * 7 and not np.allclose(
        found.matrix, np.swapaxes(found.matrix, 1, 2)
    )


def test_products_of_windows() -> None:
    need = CrossGramOf("t", Windows((2, 3), strides=(2, 1), pads=(1, 0, 0, 1), group=2))
    values = pairs(5, 4, 6, 7)
    sums = np.zeros((2, 12, 12))
    for ours, exact in zip(*joined(values), strict=True):
        padded = [np.pad(v, [(0, 0), (1, 0), (0, 1)]) for v in (ours, exact)]
        for row in range(0, 6, 2):
            for column in range(6):
                a, b = (v[:, row : row + 2, column : column + 3].reshape(2, 12) for v in padded)
                sums += a[:, :, None] * b[:, None, :]
    np.testing.assert_allclose(compare([need], values)[need].matrix, sums, rtol=1e-12)


@pytest.mark.parametrize("axis", [1, -1])
def test_differences(axis: int) -> None:
    values, need = pairs(4, 3, 5), DifferenceOf("t", axis)
    ours, exact = joined(values)
    found = compare([need], values)[need]
    others = tuple(a for a in range(3) if a != axis % 3)
    np.testing.assert_allclose(found.mean, (exact - ours).mean(axis=others), rtol=1e-5)
    np.testing.assert_allclose(found.square, np.square(exact - ours).sum(axis=others), rtol=1e-5)


def test_without_values_there_is_no_answer() -> None:
    nothing = [({"t": np.zeros((0, 3), np.float32)},) * 2]
    assert compare([CrossGramOf("t"), DifferenceOf("t", 1)], nothing) == {}
    assert compare([CrossGramOf("t"), DifferenceOf("t", 1)], []) == {}


def test_what_has_no_such_axis_is_named() -> None:
    with pytest.raises(InputError, match="tensor 't' cannot be observed by channel: it has 2 axes"):
        compare([DifferenceOf("t", 4)], pairs(3, 4))
