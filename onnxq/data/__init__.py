"""Reading calibration and evaluation data."""

from __future__ import annotations

from onnxq.data.batch import Batch
from onnxq.data.dataset import Dataset
from onnxq.data.images import ImageOptions
from onnxq.data.reading import DataLike, read

__all__ = ["Batch", "DataLike", "Dataset", "ImageOptions", "read"]
