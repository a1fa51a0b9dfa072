"""The two latencies of a decoder: that of a prompt, and that of one token after it."""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np

from onnxq.errors import InputError
from onnxq.runtime.specs import Array, Runnable, TensorSpec, is_floating

Feeds = dict[str, Array]

_FED_BACK = re.compile(r"^(past|present)(_key_values)?")
"""How the names of caches begin that a decoder reads and gives."""


def decoder_feeds(session: Runnable, feeds: Mapping[str, Array]) -> dict[str, Feeds]:
    """What a decoder is fed with: the ``prompt`` as given, and its last ``token`` alone.

    A decoder reads integers [batch, tokens], any number of tokens, and gives floats [batch, tokens,
    vocabulary], of which none depends on a later token. Where it reads a cache, the token is fed
    with what the model gave for the tokens before it; where it has none, every input is cut to one
    token. Empty for a model that is no decoder, and for a feed of a single token.

    Args:
        session: The float model.
        feeds: A sample.
    """
    tokens = next((spec for spec in session.inputs if _holds_tokens(spec)), None)
    if tokens is None or feeds[tokens.name].shape[1] < 2:
        return {}
    scores = next((spec for spec in session.outputs if _holds_scores(spec)), None)
    if scores is None:
        return {}
    count = feeds[tokens.name].shape[1]
    before, last = ({**feeds} for _ in range(2))
    for spec in session.inputs:
        for axis in _token_axes(spec, tokens, feeds):
            before[spec.name] = before[spec.name].take(range(count - 1), axis)
            last[spec.name] = last[spec.name].take([count - 1], axis)
    caches = _caches(session)
    cut = _cut_masks(session, feeds, count, before) if caches else before
    try:
        whole = session.run(feeds, [scores.name])[scores.name]
        given = session.run(cut, [scores.name, *caches.values()])
    except InputError:
        # Some other axis is not what it looks like.
        return {}
    part = given[scores.name]
    if whole.shape[:2] != (len(whole), count) or part.shape[1] != count - 1:
        return {}
    # Not equal: another number of rows may be computed by other kernels.
    if not np.allclose(part, whole[:, :-1], rtol=1e-2, atol=1e-2 * float(np.abs(whole).max())):
        return {}
    last |= {read: given[made] for read, made in caches.items()}
    try:
        session.run(last, [scores.name])
    except InputError:
        return {}
    return {"prompt": dict(feeds), "token": last}


def _holds_tokens(spec: TensorSpec) -> bool:
    shape, dtype = spec.shape or (), spec.dtype
    return (
        dtype is not None
        and dtype.kind in "iu"
        and len(shape) == 2
        and not isinstance(shape[1], int)
    )


def _holds_scores(spec: TensorSpec) -> bool:
    shape = spec.shape or ()
    return (
        spec.dtype is not None
        and is_floating(spec.dtype)
        and len(shape) == 3
        and not isinstance(shape[1], int)
    )


def _token_axes(spec: TensorSpec, tokens: TensorSpec, feeds: Mapping[str, Array]) -> list[int]:
    """The axes of an input that run over the tokens."""
    symbol, wanted = (tokens.shape or ())[1], feeds[tokens.name].shape
    if symbol is None:
        same = _holds_tokens(spec) and feeds[spec.name].shape == wanted
        return [1] if same else []
    return [
        axis
        for axis, dim in enumerate(spec.shape or ())
        if dim == symbol and feeds[spec.name].shape[axis] == wanted[1]
    ]


def _caches(session: Runnable) -> dict[str, str]:
    """The inputs that hold what was computed before, each with the output that goes on from it."""
    made = {
        _FED_BACK.sub("", spec.name): spec.name
        for spec in session.outputs
        if spec.name.startswith("present")
    }
    read = [spec.name for spec in session.inputs if spec.name.startswith("past")]
    return {name: made[end] for name in read if (end := _FED_BACK.sub("", name)) in made}


def _cut_masks(session: Runnable, feeds: Mapping[str, Array], count: int, before: Feeds) -> Feeds:
    """The feed of all tokens but the last; a mask over cache and tokens loses its last column."""
    cached = next((feeds[s.name].shape[-2] for s in session.inputs if s.name.startswith("past")), 0)
    found = dict(before)
    for spec in session.inputs:
        array = feeds[spec.name]
        if _holds_tokens(spec) and before[spec.name] is array and array.shape[1] == cached + count:
            found[spec.name] = array[:, :-1]
    return found
