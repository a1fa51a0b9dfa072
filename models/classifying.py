"""How the example classifiers of images are trained."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812 - the name every torch program uses
from torch import Tensor, nn


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
