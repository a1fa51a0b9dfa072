"""Trying files that were made to break a reader, in a process that is watched."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import ModelProto, helper, numpy_helper

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Case:
    """A file and what is changed about it before it is tried (`hostile_worker.changed`)."""

    name: str
    path: Path
    change: str = ""


def attempt(cases: Iterable[Case], folder: Path) -> dict[str, str]:
    """What becomes of each case; those that end the process, however, are named too."""
    left = {case.name: case for case in cases}
    found: dict[str, str] = {}
    while left:
        said, end = _run_worker(list(left.values()), folder)
        begun = ""
        for line in said.splitlines():
            word, name, *verdict = line.split(" ", 2)
            begun = name if word == "start" else ""
            if word == "done":
                found[name] = verdict[0]
                del left[name]
        if begun:
            found[begun] = f"WRONG: ends the process: {end}"
            del left[begun]
        elif left and not said:
            pytest.fail(f"the worker does not start: {end}")
    return found


def _run_worker(cases: list[Case], folder: Path) -> tuple[str, str]:
    done = subprocess.run(
        [sys.executable, "-m", "tests.ir.hostile_worker", str(folder)],
        input="".join(f"{c.name}\t{c.path}\t{c.change}\n" for c in cases),
        capture_output=True,
        text=True,
        cwd=HERE.parents[1],
        env={**os.environ, "PYTHONPATH": str(HERE.parents[1])},
        check=False,
    )
    return done.stdout, f"exit code {done.returncode}, {done.stderr[-1500:]}"


def assert_none_wrong(found: dict[str, str]) -> None:
    wrong = {name: verdict for name, verdict in found.items() if verdict.startswith("WRONG")}
    assert not wrong, "\n".join(f"{name}: {verdict}" for name, verdict in wrong.items())


TAKEN = "ok"
REFUSED = "refused"
EITHER = ""


def text(text: str, opset: int = 21) -> ModelProto:
    head = f'<ir_version: 10, opset_import: ["": {opset}, "my": 1, "com.acme": 1]>'
    return onnx.parser.parse_model(head + text)


def initializer(model: ModelProto, **arrays: np.ndarray) -> ModelProto:
    model.graph.initializer.extend(numpy_helper.from_array(a, n) for n, a in arrays.items())
    return model


def graph(nodes: str, interface: str = "(float[4] x) => (float[A] y)", **arrays: np.ndarray):
    return initializer(text(f"g {interface} {{ {nodes} }}"), **arrays)


def sparse_and_strings() -> ModelProto:
    model = text(
        """net (float[4] x, string[2] t) => (float[4] y, string[4] u, bool[2] f)
        <string[2] k = {"a", "b"}> {
        c = Constant<sparse_value = float[4] {0, 1, 2, 0}>()  y = Add(x, sparse)
        u = Concat<axis = 0>(t, k)  f = RegexFullMatch<pattern = "a.*">(t) }""".replace(
            "c = Constant<sparse_value = float[4] {0, 1, 2, 0}>()", ""
        )
    )
    model.graph.sparse_initializer.append(
        helper.make_sparse_tensor(
            numpy_helper.from_array(np.ones(2, np.float32), "sparse"),
            numpy_helper.from_array(np.array([0, 2])),
            [4],
        )
    )
    return model
