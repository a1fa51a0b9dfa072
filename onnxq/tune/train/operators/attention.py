"""Attention and what is computed around it."""

from __future__ import annotations

import functools
import math
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - the name every torch program uses
from torch import Tensor

from onnxq.ir import Node, attribute_value
from onnxq.tune.train.operators.registry import Run, operator


@operator("Attention")
def _attention(node: Node) -> Run:
    query_heads = attribute_value(node, "q_num_heads")
    key_heads = attribute_value(node, "kv_num_heads")
    stated, cap = attribute_value(node, "scale"), attribute_value(node, "softcap")
    causal = bool(attribute_value(node, "is_causal"))
    stage = attribute_value(node, "qk_matmul_output_mode")
    sides = ("left_window_size", "right_window_size")
    left, right = (attribute_value(node, side) for side in sides)
    window = (-1 if left is None else left, -1 if right is None else right)
    window = (window[0], 0) if causal and window[1] else window
    count = len(node.outputs)

    def run(
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None = None,
        past_key: Tensor | None = None,
        past_value: Tensor | None = None,
        lengths: Tensor | None = None,
    ) -> Any:
        by_head = query.ndim == 4
        if not by_head:
            query = _heads(query, query_heads)
            key, value = _heads(key, key_heads), _heads(value, key_heads)
        before = 0
        if past_key is not None and past_value is not None:
            before = past_key.shape[2]
            key, value = torch.cat([past_key, key], 2), torch.cat([past_value, value], 2)
        present = key, value
        times = query.shape[1] // key.shape[1]
        if times > 1:
            key, value = (t.repeat_interleave(times, 1) for t in (key, value))
        root = math.sqrt(1 / math.sqrt(query.shape[-1]) if stated is None else stated)
        product = (query * root) @ (key.transpose(-1, -2) * root)
        added = _added_mask(product, mask, before, window, lengths)
        scores = cap * torch.tanh(product / cap) if cap else product
        masked = scores if added is None else scores + added
        weights = torch.softmax(masked, -1)
        # Where everything is masked nothing is attended to.
        weights = torch.where((masked == -math.inf).all(-1, True), 0, weights)
        y = weights @ value
        y = y if by_head else y.transpose(1, 2).flatten(2)
        stages = (product, scores, masked, weights)
        return (y, *present, stages[stage])[:count]

    return run


def _heads(x: Tensor, count: int) -> Tensor:
    return x.reshape(*x.shape[:2], count, -1).transpose(1, 2)


def _added_mask(
    scores: Tensor,
    mask: Tensor | None,
    before: int,
    window: tuple[int, int],
    lengths: Tensor | None,
) -> Tensor | None:
    """What is added to scores: 0 where a key counts.

    ``window`` is how far before and behind its own place a query sees, -1 without a limit.
    """
    rows, columns = scores.shape[-2:]
    limits = []
    places = torch.arange(columns, device=scores.device)
    own = torch.arange(rows, device=scores.device).reshape(-1, 1) + before
    if lengths is not None:
        filled = lengths.reshape(-1, 1, 1, 1)
        own = own + (filled - rows)
        limits.append(places < filled)
    left, right = window
    if left >= 0:
        limits.append(places >= own - left)
    if right >= 0:
        limits.append(places <= own + right)
    if mask is not None:
        missing = columns - mask.shape[-1]
        if mask.dtype is torch.bool:
            # A mask that is too short masks what it does not reach.
            limits.append(F.pad(mask, [0, missing], value=False))
            mask = None
        else:
            mask = F.pad(mask, [0, missing], value=-math.inf)
    if not limits:
        return mask
    allowed = functools.reduce(torch.logical_and, limits)
    added = torch.zeros_like(allowed, dtype=scores.dtype).masked_fill(~allowed, -math.inf)
    return added if mask is None else added + mask


@operator("RotaryEmbedding")
def _rotary_embedding(node: Node) -> Run:
    interleaved = bool(attribute_value(node, "interleaved"))
    heads, width = attribute_value(node, "num_heads"), attribute_value(node, "rotary_embedding_dim")

    def run(x: Tensor, cos: Tensor, sin: Tensor, positions: Tensor | None = None) -> Tensor:
        by_head = x.ndim == 4
        if not by_head:
            x = x.reshape(*x.shape[:2], heads, -1).transpose(1, 2)
        turned, kept = x.split([width or x.shape[-1], x.shape[-1] - (width or x.shape[-1])], -1)
        half = turned.shape[-1] // 2
        if positions is not None:
            cos, sin = cos[positions], sin[positions]
        cos, sin = (t[..., :half].unsqueeze(1) for t in (cos, sin))
        if interleaved:
            first, second = turned[..., 0::2], turned[..., 1::2]
        else:
            first, second = turned.split(half, -1)
        pair = [cos * first - sin * second, sin * first + cos * second]
        turned = torch.stack(pair, -1).flatten(-2) if interleaved else torch.cat(pair, -1)
        y = torch.cat([turned, kept], -1)
        return y if by_head else y.transpose(1, 2).flatten(2)

    return run
