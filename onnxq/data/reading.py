"""Reading data in any of its forms."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from onnxq.data.arrays import folder_source, mapping_source, read_npz
from onnxq.data.dataset import Dataset, Origin, Source
from onnxq.data.feeds import FeedReader, iterable_source
from onnxq.data.functions import failure, is_function_name, load_function
from onnxq.data.images import ImageOptions, ImageSource, has_images
from onnxq.data.places import at_hand, is_address
from onnxq.data.protobufs import natural_key, protobuf_folders, protobuf_source
from onnxq.errors import InputError
from onnxq.runtime.specs import TensorSpec

DataLike = str | Path | Dataset | Mapping[str, Any] | Iterable[Mapping[str, Any]] | FeedReader

BATCH_SIZE = 16
"""Samples in a batch where the model leaves it open."""


def read(
    data: DataLike,
    inputs: Sequence[TensorSpec],
    *,
    batch_size: int | None = None,
    images: ImageOptions | None = None,
    samples: int | None = None,
) -> Dataset:
    """Return data in any of its forms as a dataset that fits a model's inputs.

    `data` is one of:

    - the path of an `.npz` file, or a mapping, of arrays named after the graph inputs. An array
      of its input's rank holds samples along its first axis; they are fed in batches of the
      model's fixed first dimension (the last one filled up), else of `batch_size`. An array of
      one rank more holds one whole feed per element; if one array does, every other one must
      give the same number of feeds, by its rows or elements. A scalar input also takes a single
      number, the same for every feed. Arrays `labels` (one entry per sample) and `split`
      (0 calibration, 1 held-out) are optional;
    - a folder of such files, with ONNX test data (`input_0.pb`, ..., here or in subfolders), or
      of images (with one subfolder per class, or none);
    - `module:function`: a function without arguments that returns an iterable of feeds;
    - an iterable of feeds (dicts of one array per input, and optionally `labels`), or an object
      with onnxruntime's `get_next()`. What can be read only once is kept in memory;
    - a Dataset, which is returned as it is.

    Integers are cast to the input's dtype where that keeps every value, floating-point numbers to
    any floating-point type.

    Args:
        data: the data.
        inputs: the model's inputs.
        batch_size: samples in a batch where the model and the data leave it open; 16 when None.
        images: how images become inputs.
        samples: number of samples to use: evenly spaced ones, or the first ones where the data
            comes as feeds.

    Raises:
        InputError: the data cannot be read, is empty, holds NaN or infinity, or does not fit the
            inputs; the sentence names the file and array.
    """
    for name, value in (("batch size", batch_size), ("number of samples", samples)):
        if value is not None and value < 1:
            raise InputError(f"the {name} must be at least 1, not {value}")
    size = batch_size or BATCH_SIZE
    if isinstance(data, Dataset):
        dataset = data
    elif isinstance(data, str | Path):
        dataset = Dataset(_located(data, inputs, size, images, samples))
    else:
        dataset = Dataset(_from_memory("the data", data, inputs, size, samples))
    return dataset if samples is None else dataset.take(samples)


@dataclass(frozen=True)
class Located(Origin):
    """Data at a path, which any process opens by itself.

    Attributes:
        state: Of each file its name, size and time of the last change; empty where nobody asked.
    """

    data: str | Path
    inputs: tuple[TensorSpec, ...]
    batch_size: int
    images: ImageOptions | None
    samples: int | None
    state: tuple[tuple[str, int, int], ...] = ()

    def open(self) -> Source:
        """See `Origin`."""
        return _located(self.data, self.inputs, self.batch_size, self.images, self.samples)

    def settled(self) -> Self:
        """See `Origin`."""
        path = at_hand(str(self.data)) if is_address(self.data) else Path(self.data)
        files = [path] if path.is_file() else sorted(path.rglob("*"))
        stats = [(file, file.stat()) for file in files if file.is_file()]
        state = tuple((str(f.relative_to(path)), s.st_size, s.st_mtime_ns) for f, s in stats)
        return replace(self, state=state)


def _located(
    data: str | Path,
    inputs: Sequence[TensorSpec],
    batch_size: int,
    images: ImageOptions | None,
    samples: int | None,
) -> Source:
    here = at_hand(data) if isinstance(data, str) and is_address(data) else data
    source = _from_path(here, inputs, batch_size, images, samples)
    if Path(here).exists():
        # What a function gives depends on the process that calls it.
        where = str(Path(data).resolve() if here is data else data)
        source.origin = Located(where, tuple(inputs), batch_size, images, samples)
    return source


def _from_path(
    data: str | Path,
    inputs: Sequence[TensorSpec],
    batch_size: int,
    images: ImageOptions | None,
    samples: int | None,
) -> Source:
    path = Path(data)
    if path.is_file():
        return mapping_source(f"'{path}'", read_npz(path), inputs, batch_size)
    if path.is_dir():
        if files := sorted(path.glob("*.npz"), key=lambda file: natural_key(file.name)):
            return folder_source(path, files, inputs, batch_size)
        if sets := protobuf_folders(path):
            return protobuf_source(path, sets, inputs, samples)
        if has_images(path):
            return ImageSource(path, inputs, images or ImageOptions(), batch_size)
        raise InputError(f"'{path}' holds no .npz files, no input_0.pb and no images")
    if not isinstance(data, str) or not is_function_name(data):
        raise InputError(
            f"'{data}': no such file or folder; data is an .npz file, a folder or module:function"
        )
    function = load_function(data)
    try:
        feeds = function()
    except Exception as error:
        raise InputError(f"'{data}': {failure(error, 'calling it')}") from error
    return _from_memory(f"'{data}'", feeds, inputs, batch_size, samples)


def _from_memory(
    name: str, data: Any, inputs: Sequence[TensorSpec], batch_size: int, samples: int | None
) -> Source:
    if isinstance(data, Mapping):
        return mapping_source(name, data, inputs, batch_size)
    return iterable_source(name, data, inputs, samples)
