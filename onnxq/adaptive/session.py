"""A session that takes the place of onnxruntime's, watches what it is asked, and adapts to it."""

from __future__ import annotations

import hashlib
import json
import os
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from types import EllipsisType, TracebackType
from typing import Any, Self

import numpy as np
import onnxruntime as ort

from onnxq.adaptive.binding import Binding
from onnxq.adaptive.bundle import Bundle
from onnxq.adaptive.deployment import Sampled
from onnxq.adaptive.events import Journal, said
from onnxq.adaptive.judge import Amounts, Judge, monitored
from onnxq.adaptive.monitor import lately
from onnxq.adaptive.parts import Parts, default_parts
from onnxq.adaptive.sampling import Sampling
from onnxq.adaptive.serving import Serving, Sessions, takes_batches
from onnxq.adaptive.state import State
from onnxq.adaptive.worker import Clock, Intervals, Worker
from onnxq.plain import to_plain
from onnxq.runtime.specs import Array


class AdaptiveSession:
    """Takes the place of `onnxruntime.InferenceSession` for a bundle.

    It gives the same results, bit for bit, and raises the same exceptions, as a session of the
    model that answers. Some requests are looked at again by a thread of its own; where they are no
    longer what the model was calibrated for, another model is made, tried on recent requests
    against the float model, and answers from the next request on.

    A bundle that was made with a promised agreement (``--cascade``) answers by the cheapest variant
    that is sure, sample by sample; then results are those of no single model.

    Args:
        bundle: The folder that `onnxq optimize --adaptive` wrote, or an opened one.
        sampling: Share of the requests that are looked at; many of them on suspicion.
        time_share: Of the time that this may take while there is no suspicion: where requests come
            fast, fewer are looked at. 1 is no limit.
        state: File of what survives a restart and is shared with other processes on the bundle; in
            the bundle's folder by default. Where it cannot be written, everything stays in memory.
        false_alarms_per_day: How often this session may see drift where there is none. Each process
            on the bundle looks at its own requests, with detectors of its own, and may as often.
        seed: Of the choice of requests, and of everything else that is left to chance.
        sess_options: As `onnxruntime.InferenceSession` takes them; the bundle's number of threads
            by default.
        providers: As `onnxruntime.InferenceSession` takes them; the bundle's by default.
        parts: What watches and adapts.
        amounts: How many requests are sampled for what.
        clock: Clocks.
        intervals: How often the thread does what.

    Raises:
        InputError: the bundle is missing or damaged.
    """

    def __init__(
        self,
        bundle: str | os.PathLike[str] | Bundle,
        *,
        sampling: float = 0.02,
        time_share: float = 0.01,
        state: str | os.PathLike[str] | None = None,
        false_alarms_per_day: float = 1.0,
        seed: int = 0,
        sess_options: ort.SessionOptions | None = None,
        providers: Sequence[Any] | None = None,
        parts: Parts | None = None,
        amounts: Amounts | None = None,
        clock: Clock | None = None,
        intervals: Intervals | None = None,
    ) -> None:
        opened = bundle if isinstance(bundle, Bundle) else Bundle.load(bundle)
        self._bundle = opened
        identity = _identity(opened)
        # Processes that have not heard of a new bundle in the folder keep theirs apart.
        path = Path(state or opened.folder / f"state-{identity[:12]}.sqlite")
        is_kept = state is not None or os.access(opened.folder, os.W_OK)
        sessions = Sessions(opened, sess_options, providers)
        making = parts or default_parts(seed, false_alarms_per_day, sessions)

        def open_state(journal: Journal) -> State:
            if not is_kept:
                journal.fault(
                    "the folder of the bundle",
                    f"the folder of the bundle '{opened.folder}' may not be written; what is "
                    "learned stays in memory and is lost when the process ends; give the path of "
                    "a file as `state`",
                )
            return State(
                path if is_kept else None,
                bundle=identity,
                variants=len(opened.variants),
                first=opened.deployment,
                journal=journal,
            )

        clock = clock or Clock()
        self._worker = Worker(
            sessions,
            Sampling(sampling, seed, clock.steady),
            open_state,
            lambda worker, known: Judge(
                opened, worker, making, known, amounts or Amounts(), sessions.keeping
            ),
            time_share=time_share,
            clock=clock,
            intervals=intervals or Intervals(),
        )
        self._is_split = takes_batches(self._worker.live.session)
        self._local = threading.local()
        # Whoever forgets to close a session leaves no thread behind.
        self._finalizer = weakref.finalize(self, self._worker.stop)
        self._finalizer.atexit = False

    @property
    def request(self) -> int:
        """Number of this thread's last request, for `feedback`; 0 before the first.

        Every process counts its own: with `worker` it says which request of all it is.
        """
        number: int = getattr(self._local, "request", 0)
        return number

    @property
    def worker(self) -> str:
        """Name of this session in this process, as in `events`; another one after each start."""
        return self._worker.journal.worker

    def run(
        self,
        output_names: Sequence[str] | None,
        input_feed: Mapping[str, Any],
        run_options: ort.RunOptions | None = None,
    ) -> list[Any]:
        """Compute the outputs, as `onnxruntime.InferenceSession.run`."""
        number, is_picked = self._worker.sampling.next()
        self._local.request = number
        serving = self._worker.live
        if is_picked and _are_known(output_names, serving):
            answers: list[Any] = serving.session.run(None, input_feed, run_options)
            self._offer(number, serving, lambda: input_feed, answers)
            return _chosen(answers, output_names, serving)
        answers = serving.session.run(output_names, input_feed, run_options)
        return answers

    def run_with_ort_values(
        self,
        output_names: Sequence[str] | None,
        input_dict_ort_values: Mapping[str, ort.OrtValue],
        run_options: ort.RunOptions | None = None,
    ) -> list[ort.OrtValue]:
        """Compute the outputs, as `onnxruntime.InferenceSession.run_with_ort_values`."""
        number, is_picked = self._worker.sampling.next()
        self._local.request = number
        serving = self._worker.live
        run = serving.session.run_with_ort_values
        if is_picked and _are_known(output_names, serving):
            answers: list[ort.OrtValue] = run(None, input_dict_ort_values, run_options)
            self._offer(number, serving, lambda: input_dict_ort_values, answers)
            return _chosen(answers, output_names, serving)
        answers = run(output_names, input_dict_ort_values, run_options)
        return answers

    def io_binding(self) -> Binding:
        """What inputs and outputs are bound to; it goes along with whatever session answers."""
        return Binding(self._worker.live)

    def run_with_iobinding(
        self, iobinding: Binding, run_options: ort.RunOptions | None = None
    ) -> None:
        """Compute what is bound, as `onnxruntime.InferenceSession.run_with_iobinding`."""
        number, is_picked = self._worker.sampling.next()
        self._local.request = number
        serving = self._worker.live
        binding = iobinding.to(serving)
        serving.session.run_with_iobinding(binding, run_options)
        if is_picked and iobinding.outputs == serving.outputs:
            self._offer(number, serving, iobinding.feeds, binding.get_outputs())

    def get_inputs(self) -> list[Any]:
        """The inputs, as `onnxruntime.InferenceSession.get_inputs`."""
        return list(self._worker.live.session.get_inputs())

    def get_outputs(self) -> list[Any]:
        """The outputs, as `onnxruntime.InferenceSession.get_outputs`."""
        return list(self._worker.live.session.get_outputs())

    def get_overridable_initializers(self) -> list[Any]:
        """Inputs that need not be given, as onnxruntime's."""
        return list(self._worker.live.session.get_overridable_initializers())

    def get_modelmeta(self) -> Any:
        """Facts of the model that answers, as `onnxruntime.InferenceSession.get_modelmeta`."""
        return self._worker.live.session.get_modelmeta()

    def get_providers(self) -> list[str]:
        """Execution providers, as `onnxruntime.InferenceSession.get_providers`."""
        return list(self._worker.live.session.get_providers())

    def get_provider_options(self) -> dict[str, Any]:
        """Their options, as `onnxruntime.InferenceSession.get_provider_options`."""
        return dict(self._worker.live.session.get_provider_options())

    def get_session_options(self) -> ort.SessionOptions:
        """Options, as `onnxruntime.InferenceSession.get_session_options`."""
        return self._worker.live.session.get_session_options()

    def feedback(self, request: int, correct: bool) -> None:
        """Say whether an answer was right, once, in the process that gave it.

        What is said again, of requests that were not asked, and of those before the last change or
        drift, is not taken in.

        Args:
            request: What `request` was after it was asked, in this process (see `worker`): another
                one has requests of the same number.
            correct: Whether it was.
        """
        self._worker.feedback(request, bool(correct))

    def events(self) -> list[dict[str, Any]]:
        """What happened on this bundle, in order, by all workers and since its first session.

        Each has ``kind`` (see `onnxq.adaptive.events.Kind`), ``time`` in seconds since 1970,
        ``reason`` (a sentence) and ``worker``, some have ``details``.
        """
        return [to_plain(event) for event in self._worker.state.events()]

    def statistics(self) -> dict[str, Any]:
        """Numbers of this session: requests by what became of them, and what answers."""
        worker = self._worker
        return {
            "requests": worker.sampling.asked,
            **asdict(worker.counts),
            "sampling": worker.sampling.share,
            "generation": worker.live.generation.number,
            "variant": worker.live.deployment.variant,
        }

    def tensors(self) -> dict[str, dict[str, float]]:
        """Where values of the tensors that are quantized lay lately, in all workers' requests.

        These are requests that were looked at and saved by now; older ones count less and less.

        Returns:
            By tensor the shares of its values ``below`` and ``above`` what the bundle's models can
            hold as they were made, and the ``distance`` of their distribution from the one it had
            then, from 0 to 1.
        """
        saved = self._worker.state.statistics().values()
        return lately(self._bundle, map(monitored, saved))

    def flush(self) -> None:
        """Wait until all that was sampled has been judged, and what follows from it is done."""
        self._worker.flush()

    def close(self) -> None:
        """Stop watching, and keep what is known; requests are answered on."""
        self._worker.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _offer(
        self,
        number: int,
        serving: Serving,
        feeds: Callable[[], Mapping[str, Any] | None],
        answers: Sequence[Any],
    ) -> None:
        """Give copies of a request and its answer to the thread; never at the request's cost."""
        try:
            given = feeds()
            if given is None:
                return
            asked = {name: _array(value) for name, value in given.items()}
            served = [_array(value) for value in answers]
            row = _row(number, [*asked.values(), *served]) if self._is_split else ...
            sampled = Sampled(
                number,
                {name: np.array(array[row]) for name, array in asked.items()},
                tuple(np.array(array[row]) for array in served),
                serving.deployment,
            )
            self._worker.offer(sampled)
        except Exception as error:
            self._worker.journal.fault(
                "copying requests",
                f"a request could not be copied ({said(error)}); it was answered",
            )


def _identity(bundle: Bundle) -> str:
    hashes = [sorted(variant.hashes().items()) for variant in bundle.variants]
    return hashlib.sha256(json.dumps(hashes).encode()).hexdigest()


def _are_known(names: Sequence[str] | None, serving: Serving) -> bool:
    """Whether all outputs may be asked for instead: not where onnxruntime refuses a name."""
    return not names or set(names) <= set(serving.outputs)


def _chosen(answers: list[Any], names: Sequence[str] | None, serving: Serving) -> list[Any]:
    if not names:
        return answers
    return [answers[serving.outputs.index(name)] for name in names]


def _row(number: int, arrays: Sequence[Array]) -> slice | EllipsisType:
    """Where one sample of a batch lies: baselines are of single ones. All, if there is no batch."""
    sizes = {array.shape[:1] for array in arrays}
    size = sum(sizes.pop()) if len(sizes) == 1 else 0
    return slice(number % size, number % size + 1) if size else ...


def _array(value: Any) -> Array:
    if isinstance(value, list | dict):
        raise TypeError("it holds sequences or maps, which are not looked at")
    return np.asarray(value.numpy() if isinstance(value, ort.OrtValue) else value)
