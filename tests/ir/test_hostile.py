"""Files made to break a reader: each is refused in one sentence or rewritten into a valid model.

No file may end the process, take over 10 seconds or over 1 GB, or make it read a file outside the
model's folder.
"""

from __future__ import annotations

import subprocess
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from onnx import ModelProto, TensorProto, helper

from tests.ir import hostile_worker
from tests.ir.hostile import (
    Case,
    assert_none_wrong,
    attempt,
    initializer,
    sparse_and_strings,
    text,
)

# The files that get damaged


def convolutions() -> ModelProto:
    model = text(
        """net (float[N, 3, 8, 8] x) => (float[N, M] y) {
        p = Pad(x, pads)  c = Conv<strides = [2, 2]>(p, w)  n = BatchNormalization(c, v, v, v, v)
        r = Relu(n)  d = Conv<group = 4, pads = [1, 1, 1, 1]>(r, depth)  m = Clip(d, low, high)
        t = Transpose<perm = [0, 2, 3, 1]>(m)  u = Transpose<perm = [0, 3, 1, 2]>(t)
        z = Resize<mode = "nearest">(u, , s)  g = GlobalAveragePool(z)  s2 = Shape(g)
        n0 = Gather(s2, zero)  k = Concat<axis = 0>(n0, rest)  f = Reshape(g, k)
        a = MatMul(f, e)  y = Add(a, b) }"""
    )
    weights = {
        "pads": np.array([0, 0, 1, 1, 0, 0, 1, 1]),
        "w": np.ones((4, 3, 3, 3), np.float32),
        "v": np.ones(4, np.float32),
        "depth": np.ones((4, 1, 3, 3), np.float32),
        "low": np.array(0, np.float32),
        "high": np.array(6, np.float32),
        "s": np.array([1, 1, 2, 2], np.float32),
        "zero": np.array([0]),
        "rest": np.array([-1]),
        "e": np.ones((4, 2), np.float32),
        "b": np.ones(2, np.float32),
    }
    return initializer(model, **weights)


def control_flow() -> ModelProto:
    return text(
        """net (bool q, float[N, 3] x, int64 n) => (float[A, B] y, seq(float[N, 3]) s, float[3] z)
        <float[3] c = {1, 2, 3}> {
        a = Add(x, c)  b = my.twice(a)  yes = Constant<value = bool {1}>()
        y = If(q) <then_branch = t () => (float[N, 3] h) <float[3] d = {7, 8, 9}> { h = Mul(a, d) },
            else_branch = e () => (float[N, 3] i) { j = Neg(b)  i = com.acme.Mystery<k = 2>(j) }>
        s = SequenceConstruct(a, y)
        z = Loop(n, yes, c) <body = l (int64 i0, bool go, float[3] k) => (bool go1, float[3] k1)
            { go1 = Identity(go)  k1 = Add(k, c) }> }
        <domain: "my", opset_import: ["": 21]> twice (p) => (r) { two = Constant<value_float: float
        = 2.0>()  r = Mul(p, two) }"""
    )


def constants() -> ModelProto:
    """Nearly all of it folds."""
    model = text(
        """net (float[4] x) => (float[A] y, int64[B] w) {
        c = ConstantOfShape<value = float[1] {0.5}>(four)  t = Tile(c, two)
        s = Slice(t, zero, four)
        e = Expand(one, four)  r = Range(i0, i4, i1)  g = Gather(s, r)  o = OneHot(r, i4, pair)
        m = ReduceSum(o, ax)  p = Pad(g, pads)  u = Add(p, e)  h = Cast<to = 10>(u)
        f = Cast<to = 1>(h)  v, k = TopK(f, four)  l = CumSum(v, i0)  d = Div(r, r1)
        w = Where(eq, d, r)  eq = Equal(d, r)  j = Add(l, m)  y = Add(x, j) }"""
    )
    weights: dict[str, np.ndarray] = {
        "four": np.array([4]),
        "two": np.array([2]),
        "zero": np.array([0]),
        "one": np.array([1], np.float32),
        "i0": np.array(0),
        "i4": np.array(4),
        "i1": np.array(1),
        "pair": np.array([0, 1], np.float32),
        "ax": np.array([1]),
        "pads": np.array([0, 0]),
        "r1": np.array([1, 1, 2, 2]),
    }
    return initializer(model, **weights)


def quantized() -> ModelProto:
    model = text(
        """net (float[N, 4] x) => (float[N, 4] y) {
        a = QuantizeLinear(x, s, z)  b = DequantizeLinear(a, s, z)
        w = DequantizeLinear<axis = 0, block_size = 2>(wq, ws, wz)  m = MatMul(b, w)
        q = QuantizeLinear(m, s, z)  t = Transpose<perm = [0, 1]>(q)  y = DequantizeLinear(t, s, z)
        }"""
    )
    return initializer(
        model,
        s=np.array(0.1, np.float32),
        z=np.array(3, np.uint8),
        wq=np.ones((4, 4), helper.tensor_dtype_to_np_dtype(TensorProto.INT4)),
        ws=np.ones((2, 4), np.float32),
        wz=np.zeros((2, 4), helper.tensor_dtype_to_np_dtype(TensorProto.INT4)),
    )


BASES = (convolutions, control_flow, constants, quantized, sparse_and_strings)


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Sound models of every kind, as files."""
    folder = tmp_path_factory.mktemp("bases")
    paths = [folder / f"{base.__name__}.onnx" for base in BASES]
    for base, path in zip(BASES, paths, strict=True):
        path.write_bytes(base().SerializeToString())
    return paths


def _cuts(bases: list[Path]) -> list[Case]:
    return [
        Case(f"{path.stem}-cut-{1 << bit}", path, f"cut {1 << bit}")
        for path in bases
        for bit in range(path.stat().st_size.bit_length())
    ]


def _flips(bases: list[Path], seeds: range) -> list[Case]:
    return [
        Case(f"{path.stem}-{seed}", path, f"flip {seed}")
        for seed in seeds
        for path in [bases[seed % len(bases)]]
    ]


SEEDS = range(100)


@pytest.fixture(scope="module")
def verdicts(bases: list[Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """On sound files, and on these cut and with flipped bits: by one process, which starts slowly.

    What it holds grows from case to case, so an end by one of them shows here as well.
    """
    sound = [Case(path.stem, path) for path in bases]
    cases = [*sound, *_cuts(bases), *_flips(bases, SEEDS)]
    return attempt(cases, tmp_path_factory.mktemp("damaged"))


def test_sound_files_are_taken(bases: list[Path], verdicts: dict[str, str]) -> None:
    assert [verdicts[path.stem] for path in bases] == ["ok"] * len(BASES)


def test_truncated_at_every_power_of_two(bases: list[Path], verdicts: dict[str, str]) -> None:
    found = {case.name: verdicts[case.name] for case in _cuts(bases)}
    assert_none_wrong(found)
    assert found and "ok" not in found.values()


def _assert_flips(found: dict[str, str], seeds: range) -> None:
    assert_none_wrong(found)
    counted = Counter(verdict.partition(":")[0] for verdict in found.values())
    # Both ends of the property are reached.
    assert counted["ok"] > len(seeds) / 20 and counted["refused"] > len(seeds) / 4, counted
    assert counted.total() == len(seeds)


def test_flipped_bits(bases: list[Path], verdicts: dict[str, str]) -> None:
    _assert_flips({case.name: verdicts[case.name] for case in _flips(bases, SEEDS)}, SEEDS)


@pytest.mark.slow
@pytest.mark.parametrize("first", range(100, 2100, 1000))
def test_many_flipped_bits(bases: list[Path], first: int, tmp_path: Path) -> None:
    seeds = range(first, first + 1000)
    _assert_flips(attempt(_flips(bases, seeds), tmp_path), seeds)


# The watchman is watched


@pytest.mark.slow
def test_a_crash_a_hang_and_a_leak_would_be_noticed(
    bases: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = tmp_path / "worker.py"
    worker.write_text(
        """import ctypes, os, sys, time
import numpy
import tests.ir.hostile_worker as worker
from pathlib import Path

worker.SECONDS = 1
taken = worker.main

def main(arguments):
    name = sys.modules["__main__"].current
    if name == "crash":
        ctypes.string_at(0)
    if name == "hang":
        time.sleep(60)
    if name == "memory":
        numpy.ones(3 << 27).sum()
    if name == "outside":
        open(Path(arguments[2]).parents[1] / "outside" / "secret.bin").close()
    if name == "defect":
        print("Traceback", file=sys.stderr)
        return 70
    return taken(arguments)

def verdict(path, output):
    sys.modules["__main__"].current = path.stem
    return really(path, output)

current = ""
worker.main, really, worker.verdict = main, worker.verdict, verdict
worker.run(Path(sys.argv[1]))
"""
    )
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "secret.bin").write_bytes(hostile_worker.SECRET)
    (tmp_path / "model").mkdir()
    cases = []
    for name in ("crash", "hang", "memory", "outside", "defect", "sound"):
        path = tmp_path / "model" / f"{name}.onnx"
        path.write_bytes(bases[0].read_bytes())
        cases.append(Case(name, path))
    run = subprocess.run
    monkeypatch.setattr(
        subprocess, "run", lambda command, **k: run([command[0], str(worker), command[3]], **k)
    )
    found = attempt(cases, tmp_path)
    assert {name: verdict.partition(":")[0] for name, verdict in found.items()} == {
        **dict.fromkeys(("crash", "hang", "memory", "outside", "defect"), "WRONG"),
        "sound": "ok",
    }
