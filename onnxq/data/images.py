"""Images in a folder, read one batch at a time with Pillow."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from onnxq.data.batch import Batch, Block, stack_rows
from onnxq.data.dataset import Indices, Source
from onnxq.data.protobufs import natural_key
from onnxq.data.tensors import conform, describe_inputs
from onnxq.errors import InputError
from onnxq.runtime.specs import Array, TensorSpec, is_floating

SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"})


@dataclass(frozen=True)
class ImageOptions:
    """How an image becomes a model's input: x = (pixel * scale - mean) / std.

    Pixels are 0 to 255; an input of integer type gets them as they are.

    Args:
        size: (height, width); None takes the model's fixed size.
        mean: per channel, or one for all channels.
        std: per channel, or one for all channels.
        scale: factor on the pixels.
        layout: order of the axes; None takes it from where the model has 1 or 3 channels.
        color: order of the channels; None takes RGB for three channels and L (grey) for one.
        resize: `crop` keeps the aspect ratio, covers the size and cuts out the centre; `stretch`
            scales height and width on their own. Both interpolate linearly with antialiasing.
    """

    size: tuple[int, int] | None = None
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    scale: float = 1 / 255
    layout: Literal["NCHW", "NHWC"] | None = None
    color: Literal["RGB", "BGR", "L"] | None = None
    resize: Literal["crop", "stretch"] = "crop"


@dataclass(frozen=True)
class _Target:
    """The options with all that the model's input decides filled in."""

    spec: TensorSpec
    size: tuple[int, int]
    channels_first: bool
    color: Literal["RGB", "BGR", "L"]
    mean: Array
    std: Array
    scale: float
    crop: bool


class ImageSource(Source):
    """The images of a folder; the names of its subfolders are the labels.

    Labels are the subfolders' positions in sorted order, or their names where all are integers.

    Raises:
        InputError: Pillow is missing, the model has no single image input, an option does not fit
            it, or images lie both beside and inside subfolders.
    """

    def __init__(
        self,
        folder: Path,
        inputs: Sequence[TensorSpec],
        options: ImageOptions,
        batch_size: int,
    ) -> None:
        _pillow()
        self.name = f"'{folder}'"
        self._target = _target(inputs, options)
        first = inputs[0].shape[0] if inputs[0].shape else None
        self._size = max(1, first) if isinstance(first, int) else batch_size
        self.stacked = self._size
        self._fill = isinstance(first, int)
        self._paths, self._labels = _list_images(folder)
        self.samples = np.ones(len(self._paths), dtype=np.int64)
        self.labels_ndim = None if self._labels is None else 1

    def batches(self, units: Indices) -> Iterator[Batch]:
        """Yield the chosen images as batches."""
        return stack_rows(self._rows(units), self._size, fill=self._fill)

    def _rows(self, units: Indices) -> Iterator[Block]:
        for unit in units.tolist():
            image = _read_image(self._paths[unit], self._target)
            labels = None if self._labels is None else self._labels[unit : unit + 1]
            yield {self._target.spec.name: image[np.newaxis]}, labels


def has_images(folder: Path) -> bool:
    """Tell whether a folder or one of its subfolders holds images."""
    return any(_is_image(path) for path in (*folder.glob("*"), *folder.glob("*/*")))


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES and path.is_file() and not path.name.startswith(".")


def _images_in(folder: Path) -> list[Path]:
    found = (path for path in folder.iterdir() if _is_image(path))
    return sorted(found, key=lambda path: natural_key(path.name))


def _list_images(folder: Path) -> tuple[list[Path], Array | None]:
    direct = _images_in(folder)
    classes = {
        child.name: images
        for child in sorted(folder.iterdir())
        if child.is_dir() and (images := _images_in(child))
    }
    if direct and classes:
        raise InputError(
            f"'{folder}' holds images both directly and in subfolders; keep either a flat folder "
            "without labels or one subfolder per class"
        )
    if not classes:
        return direct, None
    if all(name.isdecimal() for name in classes):
        numbers = {name: int(name) for name in classes}
    else:
        numbers = {name: index for index, name in enumerate(classes)}
    ordered = sorted(classes, key=lambda name: numbers[name])
    paths = [path for name in ordered for path in classes[name]]
    labels = [numbers[name] for name in ordered for _ in classes[name]]
    return paths, np.asarray(labels, dtype=np.int64)


def _target(inputs: Sequence[TensorSpec], options: ImageOptions) -> _Target:
    if len(inputs) != 1 or inputs[0].shape is None or len(inputs[0].shape) != 4:
        raise InputError(
            "a folder of images needs a model with one input of four dimensions; its inputs are: "
            f"{describe_inputs(inputs)}"
        )
    spec = inputs[0]
    layout = options.layout or _guess_layout(spec)
    order = (1, 2, 3) if layout == "NCHW" else (3, 1, 2)
    channels, height, width = (inputs[0].shape[axis] for axis in order)
    color = options.color or ("L" if channels == 1 else "RGB")
    count = 1 if color == "L" else 3
    if isinstance(channels, int) and channels != count:
        raise InputError(
            f"colour {color} gives {count} channels, but with layout {layout} the model's input "
            f"{spec} takes {channels}"
        )
    return _Target(
        spec=spec,
        size=_size(spec, height, width, options.size),
        channels_first=layout == "NCHW",
        color=color,
        mean=_per_channel("mean", options.mean, count),
        std=_per_channel("std", options.std, count),
        scale=options.scale,
        crop=options.resize == "crop",
    )


def _guess_layout(spec: TensorSpec) -> Literal["NCHW", "NHWC"]:
    shape = spec.shape or ()
    if shape[1] in (1, 3):
        return "NCHW"
    if shape[3] in (1, 3):
        return "NHWC"
    raise InputError(
        f"the model's input {spec} does not tell where its channels are; state the image layout, "
        "NCHW or NHWC"
    )


def _size(
    spec: TensorSpec,
    height: int | str | None,
    width: int | str | None,
    size: tuple[int, int] | None,
) -> tuple[int, int]:
    if size is None:
        if isinstance(height, int) and isinstance(width, int):
            return height, width
        raise InputError(f"the model's input {spec} has no fixed image size; state one")
    for wanted, given in zip((height, width), size, strict=True):
        if given < 1 or (isinstance(wanted, int) and wanted != given):
            raise InputError(
                f"image size {size[0]}x{size[1]} (height x width) does not fit the model's input "
                f"{spec}"
            )
    return size


def _per_channel(name: str, values: tuple[float, ...], channels: int) -> Array:
    array = np.asarray(values, dtype=np.float32)
    if array.shape not in ((1,), (channels,)) or not np.isfinite(array).all():
        raise InputError(f"image {name} {list(values)} must be 1 or {channels} finite numbers")
    if name == "std" and not (array > 0).all():
        raise InputError(f"image std {list(values)} must be above 0")
    return array


def _pillow() -> Any:
    try:
        import PIL.Image
        import PIL.ImageOps
    except ImportError as error:
        raise InputError(
            'reading images needs Pillow; install it with: pip install "onnxq[images]"'
        ) from error
    return PIL


def _read_image(path: Path, target: _Target) -> Array:
    """Return one image as [C, H, W] or [H, W, C], in the input's dtype."""
    pillow = _pillow()
    try:
        with pillow.Image.open(path) as opened:
            image = pillow.ImageOps.exif_transpose(opened)
            image = image.convert("L" if target.color == "L" else "RGB")
            pixels = np.asarray(_resize(image, target, pillow))
    except Exception as error:
        raise InputError(f"'{path}' cannot be read as an image") from error
    pixels = pixels.reshape(*target.size, -1)
    if target.color == "BGR":
        pixels = pixels[:, :, ::-1]
    dtype = target.spec.dtype
    if dtype is not None and is_floating(dtype):
        pixels = (pixels * np.float32(target.scale) - target.mean) / target.std
    if target.channels_first:
        pixels = pixels.transpose(2, 0, 1)
    return conform(pixels, target.spec, f"'{path}'")


def _resize(image: Any, target: _Target, pillow: Any) -> Any:
    height, width = target.size
    filter_ = pillow.Image.Resampling.BILINEAR
    if target.crop:
        return pillow.ImageOps.fit(image, (width, height), filter_, centering=(0.5, 0.5))
    return image.resize((width, height), filter_)
