"""Runs ``onnxq rewrite`` on many damaged files, watched, in a process of its own.

Reads one case a line from standard input, ``NAME<tab>PATH<tab>CHANGE``, and prints one line for
each: ``done NAME VERDICT``. CHANGE is empty, ``cut N`` or ``flip SEED``. What the process prints
last names the case that ended it.
"""

from __future__ import annotations

import contextlib
import faulthandler
import io
import os
import random
import re
import resource
import sys
from pathlib import Path

from onnxq.cli.command import main
from onnxq.errors import InputError
from onnxq.ir import load

SECONDS = 10
BYTES = 1 << 30

SECRET = b"what nobody may read"
"""Lies in files beside the model's folder."""

_OUTPUT = "model.onnx"
_opened: list[str] = []


def changed(data: bytes, change: str) -> bytes:
    """The damaged file; a flip changes one to eight bits, mostly outside large weights."""
    kind, _, number = change.partition(" ")
    if kind == "cut":
        return data[: int(number)]
    if kind != "flip":
        return data
    generator = random.Random(int(number))
    damaged = bytearray(data)
    structure = _structure(data)
    for _ in range(generator.choice((1, 1, 2, 8))):
        at = generator.choice(structure) if generator.random() < 0.9 else None
        at = generator.randrange(len(data)) if at is None else at
        damaged[at] ^= 1 << generator.randrange(8)
    return bytes(damaged)


_STRUCTURES: dict[int, list[int]] = {}


def _structure(data: bytes) -> list[int]:
    """Positions outside the large weights."""
    key = hash(data)
    if key not in _STRUCTURES:
        graph = load(data)
        kept = bytearray(b"\1" * len(data))
        for nested in graph.all_graphs():
            for value in nested.initializers():
                assert value.data is not None
                raw = value.data.to_proto("").raw_data
                at = data.find(raw) if len(raw) > 64 else -1
                if at >= 0:
                    kept[at : at + len(raw)] = bytes(len(raw))
        _STRUCTURES[key] = [at for at, keep in enumerate(kept) if keep]
    return _STRUCTURES[key]


def verdict(path: Path, output: Path) -> str:
    """``ok``, ``refused``, or what is wrong with how the command took the file."""
    said = io.StringIO()
    _opened.clear()
    with contextlib.redirect_stderr(said):
        code = main(["rewrite", "-q", str(path), "-o", str(output)])
    sentence = said.getvalue()
    outside = [name for name in _opened if _is_outside(name, path)]
    if outside:
        return f"WRONG: opens {outside[0]}"
    if code == 0:
        str(load(output))
        written = output.read_bytes()
        output.unlink()
        if SECRET in written:
            return "WRONG: the output holds what another file does"
        return "ok" if not sentence else f"WRONG: says {sentence!r} although it went well"
    if code != 2 or "memory" in sentence:
        return f"WRONG: exit code {code}: {sentence!r}"
    if sentence.count("\n") != 1 or not sentence.startswith("onnxq: error: "):
        return f"WRONG: no single sentence: {sentence!r}"
    if list(output.parent.iterdir()):
        return "WRONG: leaves a file behind"
    try:
        str(load(path))
    except InputError as error:
        if "\n" in str(error):
            return f"WRONG: no single sentence: {str(error)!r}"
    return f"refused: {sentence.removeprefix('onnxq: error: ').strip()}"


def _is_outside(name: str, model: Path) -> bool:
    """Whether it is a file of the tests that does not lie in the model's folder."""
    found, folder = Path(os.path.realpath(name)), Path(os.path.realpath(model.parent))
    place = Path(os.path.realpath(model.parents[1]))
    return found.is_relative_to(place / "outside") and not found.is_relative_to(folder)


def _watch_files(event: str, arguments: tuple[object, ...]) -> None:
    if event == "open" and isinstance(arguments[0], str | bytes | os.PathLike):
        _opened.append(os.fsdecode(arguments[0]))


def _megabytes() -> int:
    """The most memory the process has taken so far."""
    # ru_maxrss would begin with the peak of the process that started this one.
    (peak,) = re.findall(r"^VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    return int(peak) >> 10


def _warm_up(folder: Path) -> None:
    """Load what is imported late, so that it does not count as a case's memory."""
    model = folder / "in" / "warm.onnx"
    import onnx.parser

    proto = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["": 17]> g (float[2] x) => (float[2] y)'
        "<float[2] a = {1, 2}> { b = Neg(a) y = Add(x, b) }"
    )
    model.write_bytes(proto.SerializeToString())
    assert verdict(model, folder / "out" / _OUTPUT) == "ok"
    model.unlink()


def _limit_memory() -> None:
    """Let allocations far beyond what is allowed fail instead of taking the machine down."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + 4 * BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def run(folder: Path) -> None:
    """Try the cases of standard input with ``folder`` as place for the files."""
    os.environ.pop("ONNXQ_DEBUG", None)
    for name in ("in", "out"):
        (folder / name).mkdir(exist_ok=True)
    _warm_up(folder)
    _limit_memory()
    sys.addaudithook(_watch_files)
    before = _megabytes()
    bases: dict[str, bytes] = {}
    for line in sys.stdin:
        name, path, change = line.rstrip("\n").split("\t")
        print(f"start {name}", flush=True)
        target = Path(path)
        if change:
            if path not in bases:
                bases[path] = Path(path).read_bytes()
            target = folder / "in" / "model.onnx"
            target.write_bytes(changed(bases[path], change))
        faulthandler.dump_traceback_later(SECONDS, exit=True)
        found = verdict(target, folder / "out" / _OUTPUT)
        faulthandler.cancel_dump_traceback_later()
        if _megabytes() - before > BYTES >> 20:
            found = f"WRONG: takes {_megabytes() - before} MB"
        print(f"done {name} {' '.join(found.split())}", flush=True)
        if "takes" in found:
            # The peak stays, so what follows needs a process of its own.
            return


if __name__ == "__main__":
    faulthandler.enable()
    run(Path(sys.argv[1]))
