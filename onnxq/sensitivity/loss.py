"""Proxies of the user's metric: how far perturbed outputs are from those of the float model."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt

from onnxq.errors import InputError

Outputs = Mapping[str, np.ndarray]
Losses = npt.NDArray[np.float64]
Proxy = Callable[[np.ndarray, np.ndarray], Losses]

_TINY = 1e-30


def noise(reference: np.ndarray, candidate: np.ndarray) -> Losses:
    """Power of the difference over that of the reference, per sample: 10^(-SQNR / 10)."""
    power = np.square(reference).sum(axis=1)
    return np.asarray(np.square(reference - candidate).sum(axis=1) / np.maximum(power, _TINY))


def squared(reference: np.ndarray, candidate: np.ndarray) -> Losses:
    """Mean squared difference, per sample."""
    return np.asarray(np.square(reference - candidate).mean(axis=1))


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
        theirs = np.asarray(candidate[name], dtype=np.float64)
        split = ours.ndim > 0 and ours.shape[0] == samples
        rows = samples if split else 1
        found = _loss(proxy, np.asarray(ours, dtype=np.float64), theirs, rows)
        total = found if total is None else total + found
    if total is None:
        raise InputError("no output of the model holds floats, so there is no error to measure")
    return total


def _loss(proxy: str, reference: np.ndarray, candidate: np.ndarray, rows: int) -> Losses:
    if proxy == "kl":
        # Outputs with one score per class; the divergence of all positions of a sample is averaged.
        p, q = _log_softmax(reference), _log_softmax(candidate)
        divergence = (np.exp(p) * (p - q)).sum(axis=-1)
        return np.asarray(np.maximum(divergence.reshape(rows, -1).mean(axis=1), 0.0))
    ours, theirs = reference.reshape(rows, -1), candidate.reshape(rows, -1)
    return noise(ours, theirs) if proxy == "noise" else squared(ours, theirs)


def _log_softmax(scores: np.ndarray) -> np.ndarray:
    shifted = scores - scores.max(axis=-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True)))
