"""Folders of images: pixels, layouts, labels and options."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from onnxq.data import ImageOptions, read
from onnxq.errors import InputError
from onnxq.runtime import TensorSpec
from onnxq.runtime.specs import dtype_of


def spec(*shape: int | str | None, onnx_type: str = "float") -> TensorSpec:
    full = f"tensor({onnx_type})"
    return TensorSpec("image", dtype_of(full), full, shape)


NCHW = spec("N", 3, 4, 6)
NHWC = spec("N", 4, 6, 3)


def save(path: Path, pixels: np.ndarray) -> np.ndarray:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return pixels


def noise(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def one(folder: Path, target: TensorSpec, **options: Any) -> np.ndarray:
    (batch,) = read(folder, [target], images=ImageOptions(**options)).batches()
    return batch.feeds["image"]


def refusal(folder: Path, *inputs: TensorSpec, **options: Any) -> str:
    with pytest.raises(InputError) as caught:
        list(read(folder, inputs, images=ImageOptions(**options)).batches())
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_pixels_scale_mean_std_and_layout(tmp_path: Path) -> None:
    pixels = save(tmp_path / "a.png", noise(0, 4, 6, 3))
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
    expected = ((pixels / 255.0 - np.array(mean)) / np.array(std))[np.newaxis]
    got = one(tmp_path, NHWC, mean=mean, std=std)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(
        one(tmp_path, NCHW, mean=mean, std=std), got.transpose(0, 3, 1, 2)
    )
    np.testing.assert_array_equal(one(tmp_path, NHWC, scale=1.0), pixels[np.newaxis])
    np.testing.assert_allclose(
        one(tmp_path, NHWC, scale=1.0, mean=(128.0,), std=(2.0,))[0], (pixels - 128.0) / 2
    )


def test_channel_orders(tmp_path: Path) -> None:
    pixels = save(tmp_path / "a.png", noise(1, 4, 6, 3))
    np.testing.assert_array_equal(
        one(tmp_path, NHWC, scale=1.0, color="BGR")[0], pixels[:, :, ::-1]
    )
    grey = one(tmp_path, spec("N", 1, 4, 6), scale=1.0)
    expected = np.asarray(Image.fromarray(pixels).convert("L"))
    np.testing.assert_array_equal(grey[0, 0], expected)


def test_integer_inputs_get_raw_pixels(tmp_path: Path) -> None:
    pixels = save(tmp_path / "a.png", noise(2, 4, 6, 3))
    got = one(tmp_path, spec(1, 4, 6, 3, onnx_type="uint8"), mean=(0.5,))
    assert got.dtype == np.uint8
    np.testing.assert_array_equal(got[0], pixels)


def test_crop_keeps_the_aspect_ratio_and_stretch_does_not(tmp_path: Path) -> None:
    # Three squares side by side, 8x24: a square target sees only the middle one.
    pixels = np.zeros((8, 24, 3), np.uint8)
    pixels[:, :8, 0] = pixels[:, 8:16, 1] = pixels[:, 16:, 2] = 255
    save(tmp_path / "a.png", pixels)
    square = spec("N", 3, 8, 8)
    cropped = one(tmp_path, square, scale=1.0)
    np.testing.assert_array_equal(cropped[0], pixels[:, 8:16].transpose(2, 0, 1))
    stretched = one(tmp_path, square, scale=1.0, resize="stretch")
    assert stretched[0, 0, :, 0].min() == 255
    assert stretched[0, 2, :, 7].min() == 255
    # A grey level is kept by any resize.
    save(tmp_path / "a.png", np.full((50, 30, 3), 77, np.uint8))
    assert set(one(tmp_path, square, scale=1.0).ravel()) == {77.0}


def test_the_size_option_serves_dynamic_models(tmp_path: Path) -> None:
    save(tmp_path / "a.png", noise(3, 20, 30, 3))
    dynamic = spec("N", 3, "H", "W")
    assert one(tmp_path, dynamic, size=(10, 12)).shape == (1, 3, 10, 12)
    assert "no fixed image size" in refusal(tmp_path, dynamic)
    assert "10x12 (height x width) does not fit" in refusal(tmp_path, NCHW, size=(10, 12))
    assert "does not fit" in refusal(tmp_path, dynamic, size=(0, 12))


def test_rotated_photos_are_turned_upright(tmp_path: Path) -> None:
    pixels = noise(4, 6, 4, 3)
    exif = Image.Exif()
    exif[0x0112] = 6  # The camera was turned: rotate by 90 degrees clockwise for display.
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=exif)
    got = one(tmp_path, NHWC, scale=1.0)
    np.testing.assert_array_equal(got[0], np.rot90(pixels, -1))


def test_subfolders_are_labels_in_sorted_order(tmp_path: Path) -> None:
    for name, value in (("dog/10", 3), ("dog/9", 2), ("cat/1", 1)):
        save(tmp_path / f"{name}.png", np.full((4, 6, 3), value, np.uint8))
    (tmp_path / "dog" / ".hidden.png").write_bytes(b"")
    (tmp_path / "dog" / "notes.txt").write_text("no image")
    (tmp_path / "empty").mkdir()
    dataset = read(tmp_path, [NCHW], images=ImageOptions(scale=1.0), batch_size=2)
    first, second = dataset.batches()
    assert (len(dataset), dataset.has_labels, dataset.labels_ndim) == (3, True, 1)
    np.testing.assert_array_equal(first.feeds["image"][:, 0, 0, 0], [1, 2])
    np.testing.assert_array_equal(first.labels, [0, 1])
    np.testing.assert_array_equal(second.feeds["image"][:, 0, 0, 0], [3])
    np.testing.assert_array_equal(second.labels, [1])


def test_integer_subfolders_are_the_labels_themselves(tmp_path: Path) -> None:
    for label in (10, 7):
        save(tmp_path / str(label) / "a.png", noise(label, 4, 6, 3))
    (batch,) = read(tmp_path, [NCHW]).batches()
    np.testing.assert_array_equal(batch.labels, [7, 10])


def test_a_flat_folder_has_no_labels_and_fills_a_fixed_batch(tmp_path: Path) -> None:
    for number in range(3):
        save(tmp_path / f"{number}.png", np.full((4, 6, 3), number, np.uint8))
    dataset = read(tmp_path, [spec(2, 3, 4, 6)], images=ImageOptions(scale=1.0))
    _, last = dataset.batches()
    assert (last.valid, last.labels, dataset.has_labels) == (1, None, False)
    np.testing.assert_array_equal(last.feeds["image"][:, 0, 0, 0], [2, 2])
    first, second = dataset.split(0)
    assert (len(first), len(second)) == (1, 2)


def test_images_beside_class_folders_are_refused(tmp_path: Path) -> None:
    save(tmp_path / "a.png", noise(0, 4, 6, 3))
    save(tmp_path / "cat" / "a.png", noise(0, 4, 6, 3))
    assert "both directly and in subfolders" in refusal(tmp_path, NCHW)


@pytest.mark.parametrize(
    ("shapes", "options", "fragment"),
    [
        ([("N", 3, 4, 6), ("N", 3)], {}, "one input of four dimensions"),
        ([("N", 3)], {}, "one input of four dimensions; its inputs are: image float32 [N, 3]"),
        ([("N", "C", 4, 6)], {}, "state the image layout"),
        ([("N", 3, 4, 6)], {"color": "L"}, "gives 1 channels"),
        ([("N", 3, 4, 6)], {"layout": "NHWC"}, "takes 6"),
        ([("N", 3, 4, 6)], {"mean": (0.1, 0.2)}, "mean [0.1, 0.2] must be 1 or 3"),
        ([("N", 3, 4, 6)], {"std": (0.0,)}, "std [0.0] must be above 0"),
        ([("N", 3, 4, 6)], {"std": (float("nan"),)}, "must be 1 or 3 finite numbers"),
    ],
)
def test_options_that_do_not_fit(
    tmp_path: Path, shapes: list[tuple[Any, ...]], options: dict[str, Any], fragment: str
) -> None:
    save(tmp_path / "a.png", noise(0, 4, 6, 3))
    assert fragment in refusal(tmp_path, *(spec(*shape) for shape in shapes), **options)


def test_the_layout_option_decides_where_the_model_does_not(tmp_path: Path) -> None:
    save(tmp_path / "a.png", noise(0, 4, 6, 3))
    assert one(tmp_path, spec("N", "C", 4, 6), layout="NCHW").shape == (1, 3, 4, 6)


def test_a_broken_image_is_named(tmp_path: Path) -> None:
    save(tmp_path / "a.png", noise(0, 4, 6, 3))
    whole = (tmp_path / "a.png").read_bytes()
    for content in (b"hello", whole[: len(whole) // 2]):
        (tmp_path / "a.png").write_bytes(content)
        assert "a.png' cannot be read as an image" in refusal(tmp_path, NCHW)


def test_without_pillow_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path / "a.png", noise(0, 4, 6, 3))
    monkeypatch.setitem(sys.modules, "PIL.Image", None)
    assert 'pip install "onnxq[images]"' in refusal(tmp_path, NCHW)
