"""Another environment's onnxruntime: the same results by another process, and what ends it."""

from __future__ import annotations

import os
import signal
import sys
import threading
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest

from onnxq.errors import InputError
from onnxq.registry import to_form
from onnxq.runtime import Backend, Session, interleaved, load_backend
from onnxq.runtime.onnxruntime import Onnxruntime
from tests.runtime.environments import environment

MODEL = onnx.parser.parse_model(
    '<ir_version: 8, opset_import: ["" : 19]> '
    "g (float[2, 4] x, string[1] s) => (float[2, 4] y, string[1] t) "
    "{ a = Relu(x) y = Softmax(a) t = Identity(s) }"
).SerializeToString()
FEEDS = {
    "x": np.arange(-4, 4, dtype=np.float32).reshape(2, 4),
    "s": np.array(["ä"], dtype=object),
}


def backend(python: str | Path, patience: float = 60.0) -> Backend:
    return load_backend(to_form(Onnxruntime(str(python), patience)))


@pytest.fixture(scope="module")
def there() -> Backend:
    return backend(sys.executable)


def test_it_is_what_the_same_package_is_here(there: Backend) -> None:
    ours, theirs = Session(MODEL), there.session(MODEL)
    assert (theirs.inputs, theirs.outputs) == (ours.inputs, ours.outputs)
    assert theirs.runs_in_caller
    here, found = ours.run(FEEDS), theirs.run(FEEDS)
    np.testing.assert_array_equal(found["y"], here["y"])
    assert found["t"].tolist() == here["t"].tolist() == ["ä"]
    assert there.version.startswith(load_backend("onnxruntime").version)
    assert there.operators(MODEL) == load_backend("onnxruntime").operators(MODEL)
    assert there.left(MODEL)[0] == 3
    (times,) = there.profile([MODEL], FEEDS, rounds=4)
    assert "Softmax" in {time.op_type for time in times}


def test_the_process_takes_the_time(there: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    session = there.session(MODEL)
    monkeypatch.setattr(type(session), "run", None)
    (timing,) = interleaved([session], FEEDS, rounds=3)
    assert timing.runs > 3
    assert 0 < timing.p10_ms < 1000


def test_what_fails_there_is_said(there: Backend) -> None:
    session = there.session(MODEL)
    with pytest.raises(InputError, match=r"cannot run the model: .*Got: 3 Expected: 2"):
        session.run({**FEEDS, "x": np.zeros((3, 4), np.float32)})
    with pytest.raises(InputError, match="cannot load the model"):
        there.session(b"no model")
    assert "'cuda' is not in the installed onnxruntime" in there.missing("cuda")
    assert f"of '{sys.executable}'" in there.missing("cuda")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("-S", "No module named 'numpy'; install onnxruntime, or a package of its kind"),
        ("--no-such-option", "exit code 2"),
    ],
)
def test_an_environment_without_onnxruntime(tmp_path: Path, options: str, said: str) -> None:
    python = environment(tmp_path, options=options)
    with pytest.raises(InputError, match=said):
        _ = backend(python).version


@pytest.mark.parametrize(
    "last", ["ModuleNotFoundError: No module named 'importlib.metadata'", "SyntaxError: invalid"]
)
def test_an_interpreter_that_is_too_old_is_called_so(tmp_path: Path, last: str) -> None:
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\necho "{last}" >&2\nexit 1\n')
    python.chmod(0o755)
    with pytest.raises(InputError, match="its Python is too old for onnxruntime") as told:
        _ = backend(python).version
    assert "install" not in str(told.value)


def test_modules_of_the_current_folder_are_not_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "platform.py").write_text("1 / 0")
    monkeypatch.chdir(tmp_path)
    # Nobody else has this patience, so that a process is started.
    assert backend(sys.executable, patience=59.0).version


def test_no_interpreter() -> None:
    with pytest.raises(InputError, match="'/no/python' cannot be started: No such file"):
        _ = backend("/no/python").version


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_a_crash_ends_a_session_and_not_the_environment(tmp_path: Path) -> None:
    python = environment(
        tmp_path,
        "made = onnxruntime.InferenceSession\n"
        "def broken(source, *a, **k):\n"
        "    return os.abort() if len(source) < 9 else made(source, *a, **k)",
    )
    runs = backend(python)
    held = runs.session(MODEL)
    with pytest.raises(InputError, match="ended while loading the model: signal SIGABRT"):
        runs.session(b"no model")
    with pytest.raises(InputError, match="ended while loading the model"):
        held.run(FEEDS)
    assert runs.session(MODEL).run(FEEDS)["y"].shape == (2, 4)


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_an_interrupt_ends_the_process_and_not_only_the_wait(tmp_path: Path) -> None:
    runs = backend(environment(tmp_path), patience=9.0)
    held = runs.session(MODEL)
    timer = threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        held.spend(FEEDS, 10**9, own=False)  # type: ignore[attr-defined]
    with pytest.raises(InputError, match="was interrupted while running the model"):
        held.run(FEEDS)
    assert runs.session(MODEL).run(FEEDS)["y"].shape == (2, 4)


@pytest.mark.parametrize(
    ("call", "doing"),
    [
        ("get_provider_graph_assignment_info", "tell which provider runs what of"),
        ("end_profiling", "tell the times of"),
    ],
)
def test_what_it_cannot_tell_is_said(tmp_path: Path, call: str, doing: str) -> None:
    python = environment(
        tmp_path,
        "made = onnxruntime.InferenceSession\n"
        "def broken(*a, **k):\n"
        "    session = made(*a, **k)\n"
        f"    session.{call} = None\n"
        "    return session",
    )
    with pytest.raises(InputError, match=f"onnxruntime cannot {doing} the model: "):
        backend(python).left(MODEL)
        backend(python).profile([MODEL], FEEDS)


def test_what_hangs_is_given_up(tmp_path: Path) -> None:
    python = environment(tmp_path, "def broken(*a, **k): time.sleep(600)")
    with pytest.raises(InputError, match=r"gave no answer within 0\.5 s while loading the model"):
        backend(python, patience=0.5).session(MODEL)


def test_an_old_onnxruntime_is_refused(tmp_path: Path) -> None:
    python = environment(tmp_path, "onnxruntime.__version__ = '1.9.0'")
    with pytest.raises(InputError, match=r"has onnxruntime 1\.9\.0; install 1\.24 or newer"):
        _ = backend(python).version
