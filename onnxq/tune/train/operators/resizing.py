"""Resampling along axes and over grids."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - the name every torch program uses
from torch import Tensor

from onnxq.ir import Node, attribute_value
from onnxq.tune.train.operators.registry import Run, UnsupportedError, ints, operator

_Array = np.ndarray[Any, np.dtype[Any]]


@operator("Upsample", host=(1,))
def _upsample(node: Node) -> Run:
    plain = _Resampling(node, "asymmetric", "floor")
    stated = attribute_value(node, "scales")

    def run(x: Tensor, scales: Tensor | None = None) -> Tensor:
        factors = list(stated) if scales is None else scales.reshape(-1).tolist()
        for axis, factor in enumerate(factors):
            size = math.floor(x.shape[axis] * factor)
            x = plain.along(x, axis, size, factor)
        return x

    return run


@operator("Resize", host=(1, 2, 3))
def _resize(node: Node) -> Run:
    if node.graph.opset < 11:
        return _upsample(node)
    coordinates = attribute_value(node, "coordinate_transformation_mode")
    plain = _Resampling(node, coordinates, attribute_value(node, "nearest_mode"))
    axes = attribute_value(node, "axes")
    policy = attribute_value(node, "keep_aspect_ratio_policy") or "stretch"

    def run(
        x: Tensor,
        roi: Tensor | None = None,
        scales: Tensor | None = None,
        sizes: Tensor | None = None,
    ) -> Tensor:
        along = [a % x.ndim for a in axes] if axes else list(range(x.ndim))
        given = [x.shape[axis] for axis in along]
        if sizes is not None:
            wanted = ints(sizes)
            factors = [want / size for want, size in zip(wanted, given, strict=True)]
            if policy != "stretch":
                same = (min if policy == "not_larger" else max)(factors)
                factors = [same] * len(along)
                wanted = [math.floor(same * size + 0.5) for size in given]
        else:
            assert scales is not None
            factors = scales.reshape(-1).tolist()
            wanted = [math.floor(size * f) for size, f in zip(given, factors, strict=True)]
        regions = [(0.0, 1.0)] * len(along)
        if plain.crops and roi is not None:
            ends = roi.reshape(2, -1).tolist()
            regions = list(zip(*ends, strict=True))
        for axis, size, factor, region in zip(along, wanted, factors, regions, strict=True):
            x = plain.along(x, axis, size, factor, region)
        return x

    return run


class _Resampling:
    """Weighted sums of neighbours, axis by axis."""

    def __init__(self, node: Node, coordinates: str, nearest: str) -> None:
        self._mode: str = attribute_value(node, "mode")
        self._coordinates = coordinates
        self._nearest = nearest
        self._smooths = bool(attribute_value(node, "antialias"))
        self._within = bool(attribute_value(node, "exclude_outside"))
        self._cubic: float = attribute_value(node, "cubic_coeff_a") or -0.75
        self._beyond: float = attribute_value(node, "extrapolation_value") or 0.0
        self.crops = coordinates == "tf_crop_and_resize"
        if self._mode not in ("nearest", "linear", "cubic"):
            raise UnsupportedError(f"resizes in mode '{self._mode}'")

    def along(
        self,
        x: Tensor,
        axis: int,
        size: int,
        factor: float,
        region: tuple[float, float] = (0.0, 1.0),
    ) -> Tensor:
        """Resample one axis to a size."""
        given = x.shape[axis]
        if size == given and factor == 1 and not self.crops:
            return x
        places = self._places(given, size, factor, region)
        indices, weights = self._taps(places, given, factor)
        kept = np.clip(indices, 0, given - 1)
        parts = [x.index_select(axis, torch.from_numpy(row).to(x.device)) for row in kept]
        around = [1] * x.ndim
        around[axis] = size
        if weights is None:
            y = parts[0]
        else:
            dtype = x.dtype if x.is_floating_point() else torch.float32
            factors = torch.from_numpy(weights).to(x.device, dtype)
            y = parts[0] * factors[0].reshape(around)
            for part, row in zip(parts[1:], factors[1:], strict=True):
                y = y + part * row.reshape(around)
            y = y.to(x.dtype)
        if self.crops:
            outside = torch.from_numpy((places < 0) | (places > given - 1)).to(x.device)
            y = torch.where(outside.reshape(around), self._beyond, y).to(x.dtype)
        return y

    def _places(self, given: int, size: int, factor: float, region: tuple[float, float]) -> _Array:
        """Where in the input each output lies."""
        out = np.arange(size, dtype=np.float64)
        middle = (out + 0.5) / factor - 0.5
        first, last = region
        if self._coordinates == "half_pixel":
            return middle
        if self._coordinates == "half_pixel_symmetric":
            return given / 2 * (1 - size / (factor * given)) + middle
        if self._coordinates == "pytorch_half_pixel":
            return middle if size > 1 else np.zeros(size)
        if self._coordinates == "align_corners":
            return out * ((given - 1) / (size - 1)) if size > 1 else np.zeros(size)
        if self._coordinates == "tf_half_pixel_for_nn":
            return (out + 0.5) / factor
        if self.crops:
            if size == 1:
                return np.full(1, (first + last) * (given - 1) / 2)
            return first * (given - 1) + out * ((last - first) * (given - 1) / (size - 1))
        return out / factor

    def _taps(self, places: _Array, given: int, factor: float) -> tuple[_Array, _Array | None]:
        """Which inputs each output is made of, and with which weights if it is more than one."""
        if self._mode == "nearest":
            rounded = {
                "round_prefer_floor": np.ceil(places - 0.5),
                "round_prefer_ceil": np.floor(places + 0.5),
                "floor": np.floor(places),
                "ceil": np.ceil(places),
            }[self._nearest]
            return rounded.astype(np.int64)[None], None
        stretch = min(factor, 1.0) if self._smooths else 1.0
        reach = 1 if self._mode == "linear" else 2
        start = math.floor(-reach / stretch) + 1
        base = np.floor(places)
        offsets = np.arange(start, 2 - start)[:, None]
        distances = np.abs(offsets - (places - base)) * stretch
        weights = np.clip(1 - distances, 0, 1) if reach == 1 else self._cubic_weights(distances)
        indices = (base + offsets).astype(np.int64)
        if self._within:
            weights = np.where((indices < 0) | (indices >= given), 0, weights)
        if self._within or self._smooths:
            weights = weights / weights.sum(0)
        return indices, weights

    def _cubic_weights(self, distances: _Array) -> _Array:
        """Keys' cubic convolution (1981)."""
        a, d = self._cubic, distances
        near = ((a + 2) * d - (a + 3)) * d * d + 1
        far = ((a * d - 5 * a) * d + 8 * a) * d - 4 * a
        return np.where(d <= 1, near, np.where(d < 2, far, 0))


@operator("GridSample")
def _grid_sample(node: Node) -> Run:
    named: Sequence[str] = ("linear", "cubic")
    mode = attribute_value(node, "mode")
    mode = f"bi{mode}" if mode in named else mode
    padding, corners = attribute_value(node, "padding_mode"), attribute_value(node, "align_corners")
    return lambda x, grid: F.grid_sample(x, grid, mode, padding, bool(corners))


@operator("AffineGrid", host=(1,))
def _affine_grid(node: Node) -> Run:
    corners = bool(attribute_value(node, "align_corners"))
    return lambda theta, size: F.affine_grid(theta, ints(size), corners)
