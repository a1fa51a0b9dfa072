"""What answers requests: an onnxruntime session of one deployment, or a cascade of them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnxruntime as ort

from onnxq.adaptive.bundle import Bundle, BundleFacts
from onnxq.adaptive.cascade import Floats, Keeping, Outputs, margins_of
from onnxq.adaptive.deployment import Deployment
from onnxq.adaptive.qparams import requantized
from onnxq.adaptive.state import Generation
from onnxq.errors import InputError
from onnxq.ir import load, to_proto
from onnxq.ir.loading import read_bytes
from onnxq.runtime.failures import RUNTIME_FAILURES, one_sentence
from onnxq.runtime.files import ModelFiles
from onnxq.runtime.providers import provider_arguments
from onnxq.runtime.session import serialized
from onnxq.runtime.specs import Array


@dataclass(frozen=True, eq=False)
class Serving:
    """A session that answers, and what it is of. It never changes: another takes its place.

    Attributes:
        session: onnxruntime's, or what answers as a cascade in its place.
        generation: What it answers for.
        outputs: Names of the model's outputs in order.
    """

    session: ort.InferenceSession
    generation: Generation
    outputs: tuple[str, ...]

    @property
    def deployment(self) -> Deployment:
        """What it is a session of."""
        return self.generation.deployment


def takes_batches(session: ort.InferenceSession) -> bool:
    """Whether the first axis of all inputs is of any size: samples lie along it."""
    return all(arg.shape and not isinstance(arg.shape[0], int) for arg in session.get_inputs())


class CascadeSession:
    """Answers as a cascade, in the place of an `onnxruntime.InferenceSession`.

    What is no request of arrays, as one with bound inputs, the last variant answers alone.

    Args:
        sessions: Of the last variants of the cascade, or of all of them, in order.
        keeping: The cascade; its thresholds may rise at any time.
        margins: Gives the margin of each sample of an answer.
    """

    def __init__(
        self,
        sessions: Sequence[ort.InferenceSession],
        keeping: Keeping,
        margins: Callable[[Outputs], Floats],
    ) -> None:
        self._last, self._keeping, self._margins = sessions[-1], keeping, margins
        self._sessions = sessions
        self._outputs = [output.name for output in self._last.get_outputs()]
        self._is_split = takes_batches(self._last)

    def run(
        self,
        output_names: Sequence[str] | None,
        input_feed: Mapping[str, Any],
        run_options: ort.RunOptions | None = None,
    ) -> list[Any]:
        """Compute the outputs, as `onnxruntime.InferenceSession.run`."""
        names = output_names or self._outputs
        is_known = set(names) <= set(self._outputs)
        if not is_known or any(not isinstance(v, np.ndarray) for v in input_feed.values()):
            answers: list[Any] = self._last.run(output_names, input_feed, run_options)
            return answers
        answering = [
            lambda feeds, session=session: tuple(session.run(None, feeds, run_options))
            for session in self._sessions
        ]
        given = self._keeping.cascade.run(
            answering, input_feed, self._margins, is_split=self._is_split
        )
        return [given[self._outputs.index(name)] for name in names]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._last, name)


@dataclass(frozen=True, eq=False)
class Sessions:
    """Makes the sessions of a bundle.

    Attributes:
        bundle: Whose models they are of.
        options: onnxruntime's, None for the bundle's number of threads and its defaults else.
        providers: As `onnxruntime.InferenceSession` takes them, None for the bundle's.
        keeping: Keeps up the promise of the bundle's cascade; None without a cascade.
    """

    bundle: Bundle
    options: ort.SessionOptions | None = None
    providers: Sequence[Any] | None = None
    keeping: Keeping | None = field(init=False)

    def __post_init__(self) -> None:
        cascade = self.bundle.facts.cascade
        object.__setattr__(self, "keeping", None if cascade is None else Keeping(cascade))

    def make(self, generation: Generation, feeds: Mapping[str, Array] | None = None) -> Serving:
        """What is ready to answer for a generation.

        Where the bundle has a cascade, that answers. After a change what was changed takes its
        variant's place in it, and cheaper variants are not asked any more: they were left behind.
        A variant that is not in the cascade then answers alone.

        Args:
            generation: What it is to answer for.
            feeds: A request that it answers first, as the first run is the slowest.

        Raises:
            InputError: a file is missing or was changed, or onnxruntime cannot load or run it.
        """
        deployment, session = generation.deployment, None
        if self.keeping is None:
            session = self.session(deployment, feeds)
        else:
            variants = self.keeping.cascade.variants
            if deployment != self.bundle.deployment:
                kept = tuple(v for v in variants if v >= deployment.variant)
                variants = kept if deployment.variant in kept else (deployment.variant,)
            parts = [deployment if v == deployment.variant else Deployment(v) for v in variants]
            session = CascadeSession(
                [self.session(part, feeds) for part in parts],
                self.keeping,
                margins_of(self.bundle.facts.decisions, self.bundle.facts.outputs),
            )
        return Serving(session, generation, tuple(out.name for out in session.get_outputs()))

    def session(
        self, deployment: Deployment, feeds: Mapping[str, Array] | None = None
    ) -> ort.InferenceSession:
        """A session of one model, ready to answer.

        What a file holds is compared with the bundle before it is used, and not read again, so
        that a file may be replaced at any time.

        Args:
            deployment: What it is to answer for.
            feeds: A request that it answers first, as the first run is the slowest.

        Raises:
            InputError: a file is missing or was changed, or onnxruntime cannot load or run it.
        """
        path = self.bundle.folder / self.bundle.variants[deployment.variant].file
        try:
            if self.bundle.variants[deployment.variant].data_sha256:
                session = self._large(deployment)
            else:
                data = read_bytes(path)
                self._check(data, deployment)
                session = self._session(_changed(data, deployment))
            if feeds is not None:
                session.run(None, dict(feeds))
        except RUNTIME_FAILURES as error:
            raise InputError(f"onnxruntime cannot use '{path}': {one_sentence(error)}") from error
        return session

    def _large(self, deployment: Deployment) -> ort.InferenceSession:
        """A session whose weights lie beside the model."""
        path = self.bundle.model(deployment.variant)
        if not deployment.qparams:
            return self._session(str(path))
        with ModelFiles.temporary() as files:
            graph = requantized(load(path), deployment.qparams)
            return self._session(str(files.save(graph, "model.onnx")))

    def _check(self, data: bytes, deployment: Deployment) -> None:
        variant = self.bundle.variants[deployment.variant]
        if hashlib.sha256(data).hexdigest() != variant.sha256:
            raise InputError(
                f"'{self.bundle.folder / variant.file}' is not what the bundle was made with; "
                f"{BundleFacts.remedy}"
            )

    def _session(self, source: str | bytes) -> ort.InferenceSession:
        facts = self.bundle.facts
        options, providers = self.options, self.providers
        if options is None:
            options = ort.SessionOptions()
            options.intra_op_num_threads = facts.threads
        if providers is None:
            providers = [provider_arguments(facts.provider, facts.threads)]
        return ort.InferenceSession(source, options, providers=providers)


def _changed(data: bytes, deployment: Deployment) -> bytes:
    if not deployment.qparams:
        return data
    return serialized(to_proto(requantized(load(data), deployment.qparams)))
