"""Sessions with nothing but onnxruntime and numpy.

This process opens its own by them. Interpreters of other environments are given this file's text to
run, see `onnxq.runtime.elsewhere`: they answer requests there, and need no more than onnxruntime.
"""

from __future__ import annotations

import os
import pickle
import platform
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import distributions
from time import perf_counter, thread_time
from typing import Any, BinaryIO

import numpy as np
import onnxruntime as ort

FATAL = 4
_LEVELS = {"all": "ORT_ENABLE_ALL", "basic": "ORT_ENABLE_BASIC", "none": "ORT_DISABLE_ALL"}

ort.set_default_logger_severity(FATAL)


def session_options(threads: int, optimization: str, profile: str = "") -> ort.SessionOptions:
    """Options for repeatable runs: one operator after another, and nothing is said.

    Args:
        threads: Threads inside one operator; 0 lets onnxruntime choose.
        optimization: How far onnxruntime may rewrite the graph: all, basic or none.
        profile: Beginning of the path of a file for the times of all operators; none if empty.
    """
    options = ort.SessionOptions()
    options.log_severity_level = FATAL
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, _LEVELS[optimization])
    options.use_deterministic_compute = True
    if profile:
        options.enable_profiling = True
        options.profile_file_prefix = profile
    return options


def opened(
    source: str | bytes,
    config: Mapping[str, str],
    save_optimized: str,
    provider: tuple[str, dict[str, str]],
    settings: Mapping[str, Any],
) -> ort.InferenceSession:
    """A session of onnxruntime's own.

    Args:
        source: Path of the model, or its bytes.
        config: Session configuration entries.
        save_optimized: File for the graph that really runs; none if empty.
        provider: Full name of the execution provider, and its options.
        settings: Of `session_options`.
    """
    options = session_options(**settings)
    for name, value in config.items():
        try:
            options.add_session_config_entry(name, value)
        except Exception as error:
            raise RuntimeError(f"it refuses the session option {name!r}: {error}") from error
    if save_optimized:
        options.optimized_model_filepath = save_optimized
    return ort.InferenceSession(source, options, providers=[provider], enable_fallback=0)


def packages() -> list[str]:
    """Names of the packages that bring the module onnxruntime."""
    # `packages_distributions` goes through the files of all packages, which takes most of a second.
    texts = ((package, package.read_text("top_level.txt") or "") for package in distributions())
    return sorted({p.metadata["Name"] for p, modules in texts if "onnxruntime" in modules.split()})


def packed(value: Any) -> Any:
    """A value that any version of numpy can unpickle: arrays as what they consist of."""
    if isinstance(value, np.ndarray):
        held = value.tolist() if value.dtype.hasobject else value.tobytes()
        return ("array", value.dtype.str, value.shape, held)
    if isinstance(value, Mapping):
        return ("map", {key: packed(each) for key, each in value.items()})
    if isinstance(value, list):
        return ("list", [packed(each) for each in value])
    return ("plain", value)


def unpacked(value: Any) -> Any:
    """What was `packed`."""
    kind, *held = value
    if kind == "array":
        dtype, shape, data = held
        if isinstance(data, bytes):
            return np.frombuffer(data, dtype).reshape(shape)
        return np.array(data, dtype).reshape(shape)
    if kind == "map":
        return {key: unpacked(each) for key, each in held[0].items()}
    return [unpacked(each) for each in held[0]] if kind == "list" else held[0]


class Server:
    """Answers requests; each method that has no underscore before its name is one."""

    def __init__(self) -> None:
        self._sessions: dict[int, Any] = {}

    def hello(self) -> dict[str, Any]:
        """What this is."""
        return {
            "version": ort.__version__,
            "packages": packages(),
            "providers": ort.get_available_providers(),
            "python": platform.python_version(),
        }

    def open(
        self,
        key: int,
        source: str | bytes,
        config: Mapping[str, str],
        save_optimized: str,
        provider: tuple[str, dict[str, str]],
        settings: Mapping[str, Any],
    ) -> tuple[list[str], list[tuple[str, str, list[Any]]], list[tuple[str, str, list[Any]]]]:
        """Load a model, see `opened`; gives its providers, inputs and outputs."""
        made = opened(source, config, save_optimized, provider, settings)
        self._sessions[key] = made
        ends = [
            [(arg.name, arg.type, arg.shape) for arg in args]
            for args in (made.get_inputs(), made.get_outputs())
        ]
        return made.get_providers(), ends[0], ends[1]

    def run(self, key: int, names: Sequence[str], feeds: Any) -> Any:
        """Outputs of one inference."""
        return packed(list(self._sessions[key].run(names, unpacked(feeds))))

    def spend(
        self, key: int, names: Sequence[str], feeds: Any, inferences: int, own: bool
    ) -> float:
        """Seconds that some inferences take, of this thread's own time or of what passes."""
        session, fed = self._sessions[key], unpacked(feeds)
        clock = thread_time if own else perf_counter
        start = clock()
        for _ in range(inferences):
            session.run(names, fed)
        return clock() - start

    def assigned(self, key: int) -> list[tuple[str, list[tuple[str, str]]]]:
        """Operators, by domain and type, that each provider was given."""
        return [
            (part.ep_name, [(node.domain, node.op_type) for node in part.get_nodes()])
            for part in self._sessions[key].get_provider_graph_assignment_info()
        ]

    def end_profile(self, key: int) -> str:
        """The file with the times of all operators."""
        return str(self._sessions[key].end_profiling())

    def close(self, key: int) -> None:
        """Let go of a model."""
        self._sessions.pop(key, None)


def serve() -> None:
    """Answer the requests on standard input until it ends."""
    # What libraries print must not get between the answers.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    _answer(Server(), sys.stdin.buffer, answers)


def _answer(server: Server, requests: BinaryIO, answers: BinaryIO) -> None:
    while True:
        try:
            name, arguments = pickle.load(requests)
        except EOFError:
            return
        asked: Callable[..., Any] = getattr(server, name)
        try:
            answer = True, asked(*arguments)
        except Exception as error:
            # Exceptions of onnxruntime's own have types that others cannot unpickle.
            answer = False, str(error) or type(error).__name__
        pickle.dump(answer, answers, protocol=4)
        answers.flush()
