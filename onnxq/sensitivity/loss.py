"""Proxies of the user's metric: how far perturbed outputs are from those of the float model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping

import numpy as np
import numpy.typing as npt

from onnxq.errors import InputError

Outputs = Mapping[str, np.ndarray]
Losses = npt.NDArray[np.float64]
Proxy = Callable[[np.ndarray, np.ndarray], Losses]

_TINY = 1e-30


_AT_ONCE = 1 << 18
"""Numbers of a sample whose float64 copies are in memory at a time."""


def noise(reference: np.ndarray, candidate: np.ndarray) -> Losses:
    """Power of the difference over that of the reference, per sample: 10^(-SQNR / 10)."""
    power = sum(np.square(ours).sum(axis=1) for ours, _ in _pieces(reference, candidate))
    return np.asarray(_squares(reference, candidate) / np.maximum(power, _TINY))


def squared(reference: np.ndarray, candidate: np.ndarray) -> Losses:
    """Mean squared difference, per sample."""
    return np.asarray(_squares(reference, candidate) / reference.shape[1])


def _squares(reference: np.ndarray, candidate: np.ndarray) -> Losses:
    """Sum of the squared differences, per sample."""
    pieces = _pieces(reference, candidate)
    return np.asarray(sum(np.square(ours - theirs).sum(axis=1) for ours, theirs in pieces))


def _pieces(
    reference: np.ndarray, candidate: np.ndarray
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Both in float64, some numbers of every sample at a time."""
    for at in range(0, reference.shape[1], _AT_ONCE):
        part = slice(None), slice(at, at + _AT_ONCE)
        yield reference[part].astype(np.float64), candidate[part].astype(np.float64)


PROXIES: Mapping[str, str] = {
    "noise": "power of the outputs' error over their own, 10^(-SQNR / 10)",
    "mse": "mean squared error of the outputs",
    "kl": "Kullback-Leibler divergence of the softmax over the outputs' last axis",
}
"""The proxies by name, in words."""


def losses(proxy: str, reference: Outputs, candidate: Outputs, samples: int) -> Losses:
    """Loss of each sample, summed over the outputs that hold floats.

    Args:
        proxy: One of `PROXIES`.
        reference: Outputs of the float model.
        candidate: Outputs of the perturbed one.
        samples: Samples in the batch; outputs whose first axis is not theirs count as one sample.

    Raises:
        InputError: there is no such proxy, or no output holds floats.
    """
    if proxy not in PROXIES:
        raise InputError(f"there is no proxy '{proxy}'; available: {', '.join(PROXIES)}")
    total: Losses | None = None
    for name, ours in reference.items():
        if getattr(ours, "dtype", np.dtype(np.int64)).kind != "f" or not ours.size:
            continue
        split = ours.ndim > 0 and ours.shape[0] == samples
        found = _loss(proxy, ours, np.asarray(candidate[name]), samples if split else 1)
        total = found if total is None else total + found
    if total is None:
        raise InputError("no output of the model holds floats, so there is no error to measure")
    return total


def _loss(proxy: str, reference: np.ndarray, candidate: np.ndarray, rows: int) -> Losses:
    if proxy == "kl":
        return np.array([_divergence(*pair) for pair in _samples(reference, candidate, rows)])
    ours, theirs = reference.reshape(rows, -1), candidate.reshape(rows, -1)
    return noise(ours, theirs) if proxy == "noise" else squared(ours, theirs)


def _samples(
    reference: np.ndarray, candidate: np.ndarray, rows: int
) -> Iterable[tuple[np.ndarray, np.ndarray]]:
    return zip(reference, candidate, strict=True) if rows > 1 else [(reference, candidate)]


def _divergence(reference: np.ndarray, candidate: np.ndarray) -> float:
    """With one score per class, averaged over all positions of a sample."""
    p, q = (_log_softmax(scores.astype(np.float64)) for scores in (reference, candidate))
    return max(float((np.exp(p) * (p - q)).sum(axis=-1).mean()), 0.0)


def _log_softmax(scores: np.ndarray) -> np.ndarray:
    shifted = scores - scores.max(axis=-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True)))
