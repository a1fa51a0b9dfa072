"""What answers requests: an onnxruntime session of one deployment."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import onnxruntime as ort

from onnxq.adaptive.bundle import Bundle, BundleFacts
from onnxq.adaptive.deployment import Deployment
from onnxq.adaptive.qparams import requantized
from onnxq.adaptive.state import Generation
from onnxq.errors import InputError
from onnxq.ir import load, to_proto
from onnxq.ir.loading import read_bytes
from onnxq.runtime.failures import RUNTIME_FAILURES, one_sentence
from onnxq.runtime.files import ModelFiles
from onnxq.runtime.providers import provider_options, resolve_provider
from onnxq.runtime.session import serialized
from onnxq.runtime.specs import Array


@dataclass(frozen=True, eq=False)
class Serving:
    """A session that answers, and what it is of. It never changes: another takes its place.

    Attributes:
        session: onnxruntime's.
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


@dataclass(frozen=True, eq=False)
class Sessions:
    """Makes the sessions of a bundle.

    Attributes:
        bundle: Whose models they are of.
        options: onnxruntime's, None for the bundle's number of threads and its defaults else.
        providers: As `onnxruntime.InferenceSession` takes them, None for the bundle's.
    """

    bundle: Bundle
    options: ort.SessionOptions | None = None
    providers: Sequence[Any] | None = None

    def make(self, generation: Generation, feeds: Mapping[str, Array] | None = None) -> Serving:
        """A session that is ready to answer.

        What a file holds is compared with the bundle before it is used, and not read again, so
        that a file may be replaced at any time.

        Args:
            generation: What it is to answer for.
            feeds: A request that it answers first, as the first run is the slowest.

        Raises:
            InputError: a file is missing or was changed, or onnxruntime cannot load or run it.
        """
        deployment = generation.deployment
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
        return Serving(session, generation, tuple(out.name for out in session.get_outputs()))

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
            name = resolve_provider(facts.provider)
            providers = [(name, provider_options(name, facts.threads))]
        return ort.InferenceSession(source, options, providers=providers)


def _changed(data: bytes, deployment: Deployment) -> bytes:
    if not deployment.qparams:
        return data
    return serialized(to_proto(requantized(load(data), deployment.qparams)))
