"""Classifiers of scikit-learn's digits: ``digits_resnet`` and ``digits_vit``."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - the name every torch program uses
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn

from blocks import Attention, TransformerBlock, conv_bn
from classifying import ClassifierRecipe, train_classifier
from exporting import export_dynamo, export_torchscript
from scoring import CALIBRATION, HELD_OUT, accuracy, report_file

IMAGE_SIZE = 32
DIGIT_CLASSES = 10
DIGITS_CALIBRATION = 128
DIGITS_HELD_OUT = 450


@dataclass(frozen=True)
class Digits:
    """scikit-learn's digits, split once for both image models.

    Images are float32 ``[N, 1, 32, 32]`` in [0, 1], labels int64 ``[N]``. The calibration samples
    are part of the training samples; the held-out samples are not.
    """

    train_images: Tensor
    train_labels: Tensor
    calibration_images: Tensor
    calibration_labels: Tensor
    held_out_images: Tensor
    held_out_labels: Tensor


def load_digit_images(seed: int) -> Digits:
    """Load the digits, enlarge them to 32x32 and split them, stratified by class."""
    images8, labels = load_digits(return_X_y=True)
    images = torch.tensor(images8.reshape(-1, 1, 8, 8) / 16.0, dtype=torch.float32)
    images = F.interpolate(images, size=(IMAGE_SIZE, IMAGE_SIZE), mode="bilinear")
    images = images.clamp(0.0, 1.0)
    targets = torch.tensor(labels, dtype=torch.int64)
    train, held_out = train_test_split(
        np.arange(len(labels)), test_size=DIGITS_HELD_OUT, stratify=labels, random_state=seed
    )
    _, calibration = train_test_split(
        train, test_size=DIGITS_CALIBRATION, stratify=labels[train], random_state=seed
    )
    return Digits(
        images[train],
        targets[train],
        images[calibration],
        targets[calibration],
        images[held_out],
        targets[held_out],
    )


def augment(images: Tensor, generator: torch.Generator) -> Tensor:
    """Rotate, scale, shift and disturb each image a little, at random.

    Rotation up to 12 degrees, scale 0.9 to 1.1, shift up to 2.5 pixels, noise of deviation 0.03.
    """
    count = len(images)

    def uniform(low: float, high: float) -> Tensor:
        return torch.rand(count, generator=generator) * (high - low) + low

    angle = uniform(-12.0, 12.0) * (math.pi / 180.0)
    scale = uniform(0.9, 1.1)
    shift = 2.5 * 2.0 / IMAGE_SIZE
    cos, sin = torch.cos(angle) * scale, torch.sin(angle) * scale
    affine = torch.stack(
        [
            torch.stack([cos, -sin, uniform(-shift, shift)], dim=1),
            torch.stack([sin, cos, uniform(-shift, shift)], dim=1),
        ],
        dim=1,
    )
    grid = F.affine_grid(affine, list(images.shape), align_corners=False)
    moved = F.grid_sample(images, grid, align_corners=False)
    noise = torch.randn(images.shape, generator=generator) * 0.03
    return (moved + noise).clamp(0.0, 1.0)


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with a shortcut (He et al., 2015, https://arxiv.org/abs/1512.03385)."""

    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        self.first = conv_bn(channels_in, channels_out, 3, stride)
        self.second = conv_bn(channels_out, channels_out, 3)
        same_shape = stride == 1 and channels_in == channels_out
        self.shortcut: nn.Module = (
            nn.Identity() if same_shape else conv_bn(channels_in, channels_out, 1, stride)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[N, channels_in, H, W]`` to ``[N, channels_out, H / stride, W / stride]``."""
        return F.relu(self.second(F.relu(self.first(x))) + self.shortcut(x))


class DepthwiseSeparable(nn.Module):
    """A depthwise 3x3 and a pointwise 1x1 convolution, each with BatchNorm and ReLU."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.depthwise = conv_bn(channels, channels, 3, groups=channels)
        self.pointwise = conv_bn(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[N, channels, H, W]`` to the same shape."""
        return F.relu(self.pointwise(F.relu(self.depthwise(x))))


class DigitsResNet(nn.Module):
    """A residual CNN: 32, 64 and 128 channels at 32x32, 16x16 and 8x8, then a depthwise block."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn(1, 32, 3)
        self.stages = nn.Sequential(
            ResidualBlock(32, 32, 1),
            ResidualBlock(32, 64, 2),
            ResidualBlock(64, 64, 1),
            ResidualBlock(64, 128, 2),
            ResidualBlock(128, 128, 1),
            DepthwiseSeparable(128),
        )
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(128, DIGIT_CLASSES)

    def forward(self, image: Tensor) -> Tensor:
        """Map images ``[N, 1, 32, 32]`` in [0, 1] to logits ``[N, 10]``."""
        features = self.stages(F.relu(self.stem(image)))
        return self.classifier(self.pool(features).flatten(1))


class DigitsVit(nn.Module):
    """A vision transformer (https://arxiv.org/abs/2010.11929) over 64 patches of 4x4 pixels.

    Width 128, 4 blocks of 4 heads, exact Gelu, mean over the patches instead of a class token.
    """

    def __init__(self, width: int = 128, depth: int = 4, heads: int = 4) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, width, kernel_size=4, stride=4)
        self.position = nn.Parameter(torch.randn(1, (IMAGE_SIZE // 4) ** 2, width) * 0.02)
        self.blocks = nn.Sequential(
            *(
                TransformerBlock(Attention(width, heads), width, nn.GELU(), dropout=0.1)
                for _ in range(depth)
            )
        )
        self.norm = nn.LayerNorm(width)
        self.classifier = nn.Linear(width, DIGIT_CLASSES)

    def forward(self, image: Tensor) -> Tensor:
        """Map images ``[N, 1, 32, 32]`` in [0, 1] to logits ``[N, 10]``."""
        x = self.patches(image).flatten(2).transpose(1, 2) + self.position
        return self.classifier(self.norm(self.blocks(x)).mean(dim=1))


def save_digits(data: Digits, path: Path) -> None:
    """Write the calibration and held-out digits as ``image``, ``labels`` and ``split``."""
    np.savez_compressed(
        path,
        image=torch.cat([data.calibration_images, data.held_out_images]).numpy(),
        labels=torch.cat([data.calibration_labels, data.held_out_labels]).numpy(),
        split=np.repeat(
            np.array([CALIBRATION, HELD_OUT], np.uint8),
            [len(data.calibration_labels), len(data.held_out_labels)],
        ),
    )


def make_digits_resnet(folder: Path, seed: int) -> None:
    """Train and export ``digits_resnet.onnx`` and its data ``digits.npz``."""
    path, data_path = folder / "digits_resnet.onnx", folder / "digits.npz"
    data = load_digit_images(seed)
    save_digits(data, data_path)
    torch.manual_seed(seed)
    model = DigitsResNet()
    recipe = ClassifierRecipe(30, 64, 3e-3, 0.05)
    train_classifier(model, data.train_images, data.train_labels, augment, recipe, seed)
    export_dynamo(
        model,
        data.calibration_images[:2],
        path,
        "image",
        opset=20,
        dynamic_batch=True,
        keep_batch_norm=True,
    )
    report_file(model, path, data_path, accuracy)


def make_digits_vit(folder: Path, seed: int) -> None:
    """Train and export ``digits_vit.onnx`` and its data ``digits.npz``."""
    path, data_path = folder / "digits_vit.onnx", folder / "digits.npz"
    data = load_digit_images(seed)
    save_digits(data, data_path)
    torch.manual_seed(seed)
    model = DigitsVit()
    recipe = ClassifierRecipe(80, 64, 1e-3, 0.05)
    train_classifier(model, data.train_images, data.train_labels, augment, recipe, seed)
    export_torchscript(model, data.calibration_images[:2], path, "image", opset=17)
    report_file(model, path, data_path, accuracy)
