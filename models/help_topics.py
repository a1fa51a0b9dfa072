"""A model of language by bytes of CPython's help topics: ``text_lm``."""

from __future__ import annotations

import copy
import importlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import networkx as nx
import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - the name every torch program uses
from torch import Tensor, nn

from blocks import CausalAttention, TransformerBlock
from exporting import export_dynamo
from scoring import CALIBRATION, HELD_OUT, bits_per_byte, report_file

BYTE_VALUES = 256
CONTEXT = 128
TEXT_CALIBRATION = 64
TEXT_HELD_OUT = 200
TEXT_VALIDATION = 100
# Paragraphs of at least this many characters count as text of their own.
SHARED_PARAGRAPH = 60
# Larger groups of related topics, in bytes, stay in the training part.
LARGEST_HELD_OUT_GROUP = 12_000


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
