"""Train and export the example models of this folder, with their data.

Usage: ``python models/train.py digits_resnet|digits_vit|text_lm|cifar_mobilenet|all [--seed 0]``.

Each model is trained on a CPU in a few minutes, exported to one ONNX file without external data,
and scored with onnxruntime on its held-out samples. Needs the ``models`` extra; cifar_mobilenet
also CIFAR-10 images in ``data/`` of the folder that ONNXQ_CORPUS names.
The README beside this file states the sources, licences and measured scores.
"""

from __future__ import annotations

import argparse
import copy
import hashlib
import importlib
import io
import itertools
import math
import os
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import networkx as nx
import numpy as np
import onnx
import onnxruntime as ort
import onnxscript.optimizer
import torch
import torch.nn.functional as F  # noqa: N812 - the name every torch program uses
from numpy.typing import NDArray
from onnx_ir.passes.common import LiftConstantsToInitializersPass
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn

# Results depend on how sums are split between threads, so the number is part of the recipe.
THREADS = 2
CALIBRATION, HELD_OUT = 0, 1

Metric = Callable[[NDArray[np.float32], NDArray[np.int64]], float]

IMAGE_SIZE = 32
DIGIT_CLASSES = 10
DIGITS_CALIBRATION = 128
DIGITS_HELD_OUT = 450

BYTE_VALUES = 256
CONTEXT = 128
TEXT_CALIBRATION = 64
TEXT_HELD_OUT = 200
TEXT_VALIDATION = 100
# Paragraphs of at least this many characters count as text of their own.
SHARED_PARAGRAPH = 60
# Larger groups of related topics, in bytes, stay in the training part.
LARGEST_HELD_OUT_GROUP = 12_000

CIFAR_CLASSES = 10
CIFAR_MEAN = (0.4914, 0.4822, 0.4465)
CIFAR_STD = (0.2470, 0.2435, 0.2616)
CIFAR_SHIFT = 4


# --- Digits: data -----------------------------------------------------------------------------


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


# --- Digits: models ---------------------------------------------------------------------------


def conv_bn(
    channels_in: int, channels_out: int, kernel: int, stride: int = 1, groups: int = 1
) -> nn.Sequential:
    """Build a convolution without bias that keeps the spatial size / stride, and a BatchNorm."""
    return nn.Sequential(
        nn.Conv2d(
            channels_in, channels_out, kernel, stride, kernel // 2, groups=groups, bias=False
        ),
        nn.BatchNorm2d(channels_out),
    )


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


class Attention(nn.Module):
    """Multi-head self-attention, written out (https://arxiv.org/abs/1706.03762, section 3.2)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.output = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[N, T, width]`` to the same shape."""
        count, length, width = x.shape
        size = width // self.heads
        packed = self.qkv(x).reshape(count, length, 3, self.heads, size).permute(2, 0, 3, 1, 4)
        query, key, value = packed[0], packed[1], packed[2]
        weights = torch.softmax((query @ key.transpose(-2, -1)) * size**-0.5, dim=-1)
        return self.output((weights @ value).transpose(1, 2).reshape(count, length, width))


class CausalAttention(nn.Module):
    """Multi-head self-attention in which a position sees itself and those before it."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.output = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[N, T, width]`` to the same shape."""
        query, key, value = (
            project(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for project in (self.query, self.key, self.value)
        )
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        return self.output(mixed.transpose(1, 2).flatten(2))


class TransformerBlock(nn.Module):
    """Attention and a two-layer perceptron, each after LayerNorm and beside a shortcut."""

    def __init__(
        self, attention: nn.Module, width: int, activation: nn.Module, dropout: float
    ) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(width)
        self.attention = attention
        self.mlp_norm = nn.LayerNorm(width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), activation, nn.Linear(4 * width, width)
        )
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[N, T, width]`` to the same shape."""
        x = x + self.dropout(self.attention(self.attention_norm(x)))
        return x + self.dropout(self.mlp(self.mlp_norm(x)))


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


# --- Digits: training -------------------------------------------------------------------------


@dataclass(frozen=True)
class ClassifierRecipe:
    """How long and how hard an image model is trained."""

    epochs: int
    batch_size: int
    peak_learning_rate: float
    weight_decay: float


def train_classifier(
    model: nn.Module,
    all_images: Tensor,
    all_labels: Tensor,
    disturb: Callable[[Tensor, torch.Generator], Tensor],
    recipe: ClassifierRecipe,
    seed: int,
) -> None:
    """Train with AdamW, a one-cycle schedule, label smoothing and augmentation by ``disturb``.

    The held-out samples are not looked at: the number of epochs is fixed beforehand.
    """
    generator = torch.Generator().manual_seed(seed)
    count = len(all_images)
    steps_per_epoch = math.ceil(count / recipe.batch_size)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=recipe.peak_learning_rate, weight_decay=recipe.weight_decay
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer,
        max_lr=recipe.peak_learning_rate,
        total_steps=recipe.epochs * steps_per_epoch,
        pct_start=0.2,
    )
    model.train()
    for epoch in range(recipe.epochs):
        total = 0.0
        for batch in torch.randperm(count, generator=generator).split(recipe.batch_size):
            images = disturb(all_images[batch], generator)
            loss = F.cross_entropy(model(images), all_labels[batch], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            total += loss.item() * len(batch)
        print(f"  epoch {epoch + 1:3}/{recipe.epochs}: training loss {total / count:.4f}")
    model.eval()


# --- CIFAR-10 ---------------------------------------------------------------------------------


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


# --- Text -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Text:
    """CPython's help topics as bytes (uint8 ``[L]``), in three parts without common text."""

    train: Tensor
    validation: Tensor
    held_out: Tensor


def related_topics(topics: dict[str, str]) -> list[list[str]]:
    """Group the names of topics that have a long paragraph in common.

    Many topics repeat a section of another one, so a split by topic alone would put text that was
    trained on into the held-out part.
    """
    graph = nx.Graph()
    graph.add_nodes_from(sorted(topics))
    first_seen: dict[str, str] = {}
    for name in sorted(topics):
        for paragraph in topics[name].split("\n\n"):
            words = " ".join(paragraph.split())
            if len(words) >= SHARED_PARAGRAPH:
                graph.add_edge(first_seen.setdefault(words, name), name)
    return [sorted(group) for group in nx.connected_components(graph)]


def join_topics(topics: dict[str, str], names: Sequence[str]) -> bytes:
    """Join topics, the longest first, leaving out long paragraphs that came before."""
    seen: set[str] = set()
    kept = []
    for name in sorted(names, key=lambda name: (-len(topics[name]), name)):
        for paragraph in topics[name].split("\n\n"):
            words = " ".join(paragraph.split())
            if len(words) < SHARED_PARAGRAPH or words not in seen:
                kept.append(paragraph)
            seen.add(words)
    return "\n\n".join(kept).encode()


def load_text(seed: int) -> Text:
    """Split CPython's help topics into parts, by groups of related topics."""
    topics: dict[str, str] = importlib.import_module("pydoc_data.topics").topics
    groups = related_topics(topics)
    np.random.default_rng(seed).shuffle(groups)
    parts: dict[str, list[str]] = {"held_out": [], "validation": [], "train": []}
    room = {"held_out": TEXT_HELD_OUT * CONTEXT + 1, "validation": TEXT_VALIDATION * CONTEXT + 1}
    for group in groups:
        size = len(join_topics(topics, group))
        part = next((p for p in room if room[p] > 0), "train")
        if size > LARGEST_HELD_OUT_GROUP:
            part = "train"
        if part in room:
            room[part] -= size
        parts[part] += group
    return Text(
        **{
            part: torch.frombuffer(bytearray(join_topics(topics, names)), dtype=torch.uint8)
            for part, names in parts.items()
        }
    )


def windows(text: Tensor, starts: Tensor) -> tuple[Tensor, Tensor]:
    """Cut windows from a text: bytes and next bytes, both int64 ``[len(starts), CONTEXT]``."""
    positions = starts[:, None] + torch.arange(CONTEXT)
    return text[positions].long(), text[positions + 1].long()


def even_windows(text: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Cut at most ``count`` windows that do not overlap, spread evenly over a text."""
    starts = torch.arange(0, len(text) - CONTEXT, CONTEXT)
    chosen = torch.linspace(0, len(starts) - 1, min(count, len(starts))).round().long()
    return windows(text, starts[chosen])


class TextLm(nn.Module):
    """A byte-level decoder-only transformer with learned positions and tanh Gelu."""

    def __init__(self, width: int = 128, depth: int = 4, heads: int = 4) -> None:
        super().__init__()
        self.embedding = nn.Embedding(BYTE_VALUES, width)
        self.position = nn.Parameter(torch.randn(CONTEXT, width) * 0.02)
        self.blocks = nn.Sequential(
            *(
                TransformerBlock(
                    CausalAttention(width, heads), width, nn.GELU(approximate="tanh"), dropout=0.1
                )
                for _ in range(depth)
            )
        )
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, BYTE_VALUES, bias=False)
        nn.init.normal_(self.embedding.weight, std=0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map bytes ``[N, 128]`` to logits ``[N, 128, 256]`` of the byte after each."""
        x = self.embedding(tokens) + self.position
        return self.head(self.norm(self.blocks(x)))


def text_loss(model: nn.Module, tokens: Tensor, labels: Tensor) -> Tensor:
    """Return the mean cross-entropy in nats of the next bytes."""
    return F.cross_entropy(model(tokens).flatten(0, 1), labels.flatten())


def train_text_lm(model: nn.Module, text: Text, steps: int, seed: int) -> None:
    """Train with AdamW and a one-cycle schedule, and keep the state best on the validation part."""
    batch_size, peak_learning_rate, interval = 32, 3e-3, 100
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=peak_learning_rate, betas=(0.9, 0.95), weight_decay=0.1
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=peak_learning_rate, total_steps=steps, pct_start=0.1
    )
    validation = even_windows(text.validation, TEXT_VALIDATION)
    best, best_state = math.inf, copy.deepcopy(model.state_dict())
    total = 0.0
    for step in range(1, steps + 1):
        model.train()
        starts = torch.randint(len(text.train) - CONTEXT, (batch_size,), generator=generator)
        loss = text_loss(model, *windows(text.train, starts))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        total += loss.item()
        if step % interval == 0 or step == steps:
            model.eval()
            with torch.inference_mode():
                current = text_loss(model, *validation).item()
            if current < best:
                best, best_state = current, copy.deepcopy(model.state_dict())
            bits = total / interval / math.log(2.0), current / math.log(2.0)
            print(f"  step {step:5}/{steps}: bits per byte {bits[0]:.3f}, validation {bits[1]:.3f}")
            total = 0.0
    model.load_state_dict(best_state)
    model.eval()


# --- Export and check -------------------------------------------------------------------------


def strip_metadata(model: onnx.ModelProto) -> None:
    """Remove what exporters note about the Python source, such as stack traces with paths."""
    graph = model.graph
    for holder in (model, graph, *graph.node, *graph.value_info, *graph.initializer):
        del holder.metadata_props[:]
        holder.ClearField("doc_string")
    for value in (*graph.input, *graph.output):
        del value.metadata_props[:]
        value.ClearField("doc_string")


def export_dynamo(
    model: nn.Module,
    example: Tensor,
    path: Path,
    input_name: str,
    opset: int,
    *,
    dynamic_batch: bool,
    keep_batch_norm: bool = False,
) -> None:
    """Export with torch's current exporter, as one file.

    By default that exporter folds BatchNorm into convolutions. With ``keep_batch_norm`` its
    constants are folded but its rewrite rules left out.
    """
    program = torch.onnx.export(
        model,
        (example,),
        input_names=[input_name],
        output_names=["logits"],
        opset_version=opset,
        dynamic_shapes={input_name: {0: "batch"}} if dynamic_batch else None,
        dynamo=True,
        optimize=not keep_batch_norm,
        verbose=False,
    )
    assert program is not None
    if keep_batch_norm:
        onnxscript.optimizer.fold_constants(program.model)
        onnxscript.optimizer.remove_unused_nodes(program.model)
        lift_constants = LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)
        lift_constants(program.model)
    proto = program.model_proto
    strip_metadata(proto)
    onnx.save(proto, path)


def export_torchscript(
    model: nn.Module,
    example: Tensor,
    path: Path,
    input_name: str,
    opset: int,
    *,
    keep_batch_norm: bool = False,
) -> None:
    """Export with torch's older exporter (TorchScript), with a dynamic batch axis.

    By default that exporter folds BatchNorm into convolutions.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.onnx.export(
            model,
            (example,),
            path,
            input_names=[input_name],
            output_names=["logits"],
            opset_version=opset,
            dynamic_axes={input_name: {0: "batch"}, "logits": {0: "batch"}},
            training=torch.onnx.TrainingMode.PRESERVE
            if keep_batch_norm
            else torch.onnx.TrainingMode.EVAL,
            do_constant_folding=not keep_batch_norm,
            dynamo=False,
        )
    proto = onnx.load(path)
    strip_metadata(proto)
    onnx.save(proto, path)


def open_session(path: Path) -> ort.InferenceSession:
    """Open a model in onnxruntime on the CPU with one thread."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def run_all(session: ort.InferenceSession, samples: NDArray[Any]) -> NDArray[np.float32]:
    """Run the samples one at a time; returns the first output, stacked along the first axis."""
    name = session.get_inputs()[0].name
    return np.concatenate(
        [session.run(None, {name: samples[i : i + 1]})[0] for i in range(len(samples))]
    )


def median_latency_ms(
    session: ort.InferenceSession, sample: NDArray[Any], repeats: int = 200
) -> float:
    """Return the median time of one inference in milliseconds, after 20 unmeasured ones."""
    feed = {session.get_inputs()[0].name: sample}
    seconds = []
    for _ in range(20 + repeats):
        start = time.perf_counter()
        session.run(None, feed)
        seconds.append(time.perf_counter() - start)
    return float(np.median(seconds[20:])) * 1e3


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def accuracy(logits: NDArray[np.float32], labels: NDArray[np.int64]) -> float:
    """Return the share of samples ``[N]`` whose largest logit ``[N, C]`` is at the label."""
    return float(np.mean(logits.argmax(axis=1) == labels))


def bits_per_byte(logits: NDArray[np.float32], labels: NDArray[np.int64]) -> float:
    """Return the mean cross-entropy in bits of logits ``[N, T, 256]`` at labels ``[N, T]``."""
    shifted = logits.astype(np.float64)
    shifted -= shifted.max(axis=-1, keepdims=True)
    log_norm = np.log(np.exp(shifted).sum(axis=-1))
    picked = np.take_along_axis(shifted, labels[..., None], axis=-1)[..., 0]
    return float(np.mean(log_norm - picked) / math.log(2.0))


def report_file(model: nn.Module, path: Path, data_path: Path, metric: Metric) -> None:
    """The same as `report` with the held-out samples of a data file."""
    with np.load(data_path) as data:
        held_out = data["split"] == HELD_OUT
        samples = next(data[name][held_out] for name in data if name not in ("labels", "split"))
        report(model, path, samples, data["labels"][held_out], metric)
    print(f"  {data_path.name}: {data_path.stat().st_size} bytes, sha256 {sha256(data_path)}")


def report(
    model: nn.Module,
    path: Path,
    samples: NDArray[Any],
    labels: NDArray[np.int64],
    metric: Metric,
) -> None:
    """Check an exported model, compare it with torch, and print what the README states.

    Raises:
        onnx.checker.ValidationError: the model is not valid ONNX.
        AssertionError: torch and onnxruntime disagree on the held-out samples.
    """
    proto = onnx.load(path)
    onnx.checker.check_model(proto, full_check=True)
    session = open_session(path)
    logits = run_all(session, samples)
    with torch.inference_mode():
        expected = np.concatenate(
            [model(torch.from_numpy(samples[i : i + 1])).numpy() for i in range(len(samples))]
        )
    np.testing.assert_allclose(logits, expected, rtol=1e-3, atol=1e-3)
    score = metric(logits, labels)
    np.testing.assert_allclose(score, metric(expected, labels), rtol=1e-6)
    parameters = sum(p.numel() for p in model.parameters())
    print(f"{path.name}: {metric.__name__} {score:.4f} on {len(samples)} held-out samples")
    print(f"  {parameters} parameters, {path.stat().st_size} bytes, sha256 {sha256(path)}")
    print(f"  one inference, batch 1, one thread: {median_latency_ms(session, samples[:1]):.2f} ms")
    print(f"  operators: {dict(Counter(node.op_type for node in proto.graph.node).most_common())}")


# --- Commands ---------------------------------------------------------------------------------


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


def save_text(text: Text, path: Path) -> None:
    """Write the calibration and held-out windows as ``tokens``, ``labels`` and ``split``."""
    calibration = even_windows(text.train, TEXT_CALIBRATION)
    held_out = even_windows(text.held_out, TEXT_HELD_OUT)
    np.savez_compressed(
        path,
        tokens=torch.cat([calibration[0], held_out[0]]).numpy(),
        labels=torch.cat([calibration[1], held_out[1]]).numpy(),
        split=np.repeat(
            np.array([CALIBRATION, HELD_OUT], np.uint8), [len(calibration[0]), len(held_out[0])]
        ),
    )


def make_text_lm(folder: Path, seed: int) -> None:
    """Train and export ``text_lm.onnx`` and its data ``text.npz``."""
    path, data_path = folder / "text_lm.onnx", folder / "text.npz"
    text = load_text(seed)
    save_text(text, data_path)
    torch.manual_seed(seed)
    model = TextLm()
    train_text_lm(model, text, 1500, seed)
    example, _ = even_windows(text.train, 1)
    export_dynamo(model, example, path, "tokens", opset=21, dynamic_batch=False)
    report_file(model, path, data_path, bits_per_byte)


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


COMMANDS: dict[str, Callable[[Path, int], None]] = {
    "digits_resnet": make_digits_resnet,
    "digits_vit": make_digits_vit,
    "text_lm": make_text_lm,
    "cifar_mobilenet": make_cifar_mobilenet,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Train the model named on the command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", choices=[*COMMANDS, "all"])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--out", type=Path, default=Path(__file__).parent, help="folder to write to"
    )
    options = parser.parse_args(arguments)
    torch.set_num_threads(THREADS)
    torch.use_deterministic_algorithms(True)
    options.out.mkdir(parents=True, exist_ok=True)
    for name in COMMANDS if options.model == "all" else [options.model]:
        start = time.perf_counter()
        print(f"{name}: training with seed {options.seed}", flush=True)
        COMMANDS[name](options.out, options.seed)
        print(f"  {time.perf_counter() - start:.0f} s", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
