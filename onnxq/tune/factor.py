"""Cholesky factors, whose bits depend on no number of threads.

Those of LAPACK do (OpenBLAS 0.3, from about 200 columns on); its products and small factors do not.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Float64Array = npt.NDArray[np.float64]

BLOCK = 128
"""Columns at a time."""


class Factor(NamedTuple):
    """A symmetric positive matrix as U D Uᵀ.

    Attributes:
        upper: U, upper triangular with ones on the diagonal.
        diagonal: D, of each column what is left of its square when all later ones are known.
    """

    upper: Float64Array
    diagonal: Float64Array

    def solve(self, right: Float64Array) -> Float64Array:
        """X of U D Uᵀ X = right."""
        upper, cuts = self.upper, _cuts(len(self.upper))
        found = right.copy()
        inverses = [np.linalg.inv(upper[cut, cut]) for cut in cuts]
        for cut, inverse in zip(reversed(cuts), reversed(inverses), strict=True):
            found[cut] = inverse @ (found[cut] - upper[cut, cut.stop :] @ found[cut.stop :])
        found /= self.diagonal[:, None]
        for cut, inverse in zip(cuts, inverses, strict=True):
            found[cut] = inverse.T @ (found[cut] - upper[: cut.start, cut].T @ found[: cut.start])
        return found


def factor(matrix: Float64Array) -> Factor:
    """The factors of a symmetric positive matrix."""
    # From the last column to the first it is the usual order.
    left = matrix[::-1, ::-1].copy()
    lower = np.zeros_like(left)
    for cut in _cuts(len(left)):
        corner = np.linalg.cholesky(left[cut, cut])
        below = slice(cut.stop, None)
        lower[cut, cut] = corner
        lower[below, cut] = part = left[below, cut] @ np.linalg.inv(corner).T
        left[below, below] -= part @ part.T
    root = np.ascontiguousarray(lower[::-1, ::-1])
    diagonal = np.diag(root)
    return Factor(root / diagonal, np.square(diagonal))


def _cuts(size: int) -> list[slice]:
    return [slice(start, min(start + BLOCK, size)) for start in range(0, size, BLOCK)]
