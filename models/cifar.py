"""A classifier of CIFAR-10: ``cifar_mobilenet``."""

from __future__ import annotations

import io
import itertools
import os
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - the name every torch program uses
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from blocks import conv_bn
from classifying import ClassifierRecipe, train_classifier
from exporting import export_torchscript
from scoring import accuracy, report

CIFAR_CLASSES = 10
CIFAR_MEAN = (0.4914, 0.4822, 0.4465)
CIFAR_STD = (0.2470, 0.2435, 0.2616)
CIFAR_SHIFT = 4


def load_cifar(name: str) -> tuple[Tensor, Tensor]:
    """Normalised images ``[N, 3, 32, 32]`` and labels of a file in the corpus."""
    with np.load(Path(os.environ["ONNXQ_CORPUS"]) / "data" / name) as data:
        labels = data["labels"]
        pixels = data["image"] if "image" in data else decoded(data["jpeg"], data["offsets"])
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255
    mean, deviation = (torch.tensor(numbers)[:, None, None] for numbers in (CIFAR_MEAN, CIFAR_STD))
    return (images - mean) / deviation, torch.from_numpy(labels).long()


def decoded(files: NDArray[np.uint8], offsets: NDArray[np.int64]) -> NDArray[np.uint8]:
    """The pixels ``[N, 32, 32, 3]`` of JPEG files that lie one after another."""
    parts = (files[start:end].tobytes() for start, end in itertools.pairwise(offsets))
    return np.stack([np.asarray(Image.open(io.BytesIO(part))) for part in parts])


def shifted(images: Tensor, generator: torch.Generator) -> Tensor:
    """Mirror every other image and move each by up to four pixels, at random."""
    count, _, height, width = images.shape
    mirrored = torch.rand(count, generator=generator) < 0.5
    images = torch.where(mirrored[:, None, None, None], images.flip(3), images)
    padded = F.pad(images, [CIFAR_SHIFT] * 4)
    top, left = torch.randint(2 * CIFAR_SHIFT + 1, (2, count), generator=generator)
    rows = (top[:, None] + torch.arange(height))[:, None, :, None]
    columns = (left[:, None] + torch.arange(width))[:, None, None, :]
    samples, channels = torch.arange(count)[:, None, None, None], torch.arange(3)[:, None, None]
    return padded[samples, channels, rows, columns]


class InvertedResidual(nn.Module):
    """Widen, filter each channel, narrow (https://arxiv.org/abs/1801.04381, section 3.3)."""

    def __init__(self, channels_in: int, channels_out: int, stride: int, widening: int) -> None:
        super().__init__()
        inner = channels_in * widening
        widen = [conv_bn(channels_in, inner, 1), nn.ReLU6()] if widening > 1 else []
        self.layers = nn.Sequential(
            *widen,
            conv_bn(inner, inner, 3, stride, groups=inner),
            nn.ReLU6(),
            conv_bn(inner, channels_out, 1),
        )
        self.has_shortcut = stride == 1 and channels_in == channels_out

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[N, channels_in, H, W]`` to ``[N, channels_out, H / stride, W / stride]``."""
        return x + self.layers(x) if self.has_shortcut else self.layers(x)


class CifarMobileNet(nn.Module):
    """MobileNetV2 in small: 8 inverted residual blocks of 16 to 64 channels at 32x32 to 4x4."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            conv_bn(3, 16, 3),
            nn.ReLU6(),
            InvertedResidual(16, 16, 1, 1),
            InvertedResidual(16, 24, 2, 3),
            InvertedResidual(24, 24, 1, 4),
            InvertedResidual(24, 40, 2, 4),
            InvertedResidual(40, 40, 1, 4),
            InvertedResidual(40, 40, 1, 4),
            InvertedResidual(40, 64, 2, 6),
            InvertedResidual(64, 64, 1, 6),
            conv_bn(64, 256, 1),
            nn.ReLU6(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(1),
        )
        self.classifier = nn.Linear(256, CIFAR_CLASSES)

    def forward(self, image: Tensor) -> Tensor:
        """Map normalised images ``[N, 3, 32, 32]`` to logits ``[N, 10]``."""
        return self.classifier(self.layers(image))


def make_cifar_mobilenet(folder: Path, seed: int) -> None:
    """Train and export ``cifar_mobilenet.onnx``; its data stays in the corpus."""
    path = folder / "cifar_mobilenet.onnx"
    # Its layers are too small to gain from a second one.
    torch.set_num_threads(1)
    images, labels = load_cifar("cifar10_train_jpeg.npz")
    torch.manual_seed(seed)
    # Depthwise convolutions are faster with channels last.
    model = CifarMobileNet().to(memory_format=torch.channels_last)
    train_classifier(model, images, labels, shifted, ClassifierRecipe(20, 64, 5e-3, 0.02), seed)
    export_torchscript(model, images[:2], path, "image", opset=17, keep_batch_norm=True)
    held_out, wanted = load_cifar("cifar10_eval.npz")
    report(model, path, held_out.numpy(), wanted.numpy(), accuracy)
