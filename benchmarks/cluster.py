"""Several workers: the same bytes, how much faster, and what kills and stops change.

    python benchmarks/cluster.py digits FILE             all of scikit-learn's digits as an .npz
    python benchmarks/cluster.py speed [MODEL DATA]...   1 and 2 workers of one thread, in turn
    python benchmarks/cluster.py kills [MODEL DATA]      workers killed at 20 random moments
    python benchmarks/cluster.py batch PLACE...          a batch over 30 models, stopped twice

``speed`` needs two processors that nobody else uses. It tells times of the stages with workers that
are there, with their start and end and what the command does by itself before, and the ratio of
processor times on the longest path, that of the command and of the busiest worker.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from onnxq.errors import InputError
from onnxq.ir import load, save
from onnxq.job import Job, open_job
from onnxq.options import Options
from onnxq.planning import find_sensitivity
from onnxq.prepare import Prepared, find_ranges, observed, prepare, transformed
from onnxq.progress import SILENT, Progress
from onnxq.runtime import TensorSpec, as_stored
from onnxq.study import find_losses, uniform_plan

MODELS = Path(__file__).parents[1] / "models"
DEFAULT = (str(MODELS / "digits_vit.onnx"), str(MODELS / "digits.npz"))
KILLS = 20
STARTED = 2.5
"""Processor time that a worker takes before it does anything."""


def digest(result: Any) -> str:
    """Hash of all that a stage found, as its files hold it."""
    with tempfile.TemporaryDirectory() as name:
        result.save(Path(name) / "result.toml")
        files = sorted(Path(name).iterdir())
        return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:16]


@dataclass(frozen=True)
class Stage:
    """What is done with a model, and by which options.

    Attributes:
        options: The options.
        prepare: What comes before, as a command does it.
        run: The stage itself.
    """

    options: Mapping[str, Any]
    prepare: Callable[[Job], Prepared]
    run: Callable[[Prepared], Any]


STAGES = {
    "observing": Stage(
        {"recipe": "int8", "calibrator": "percentile"},
        lambda job: transformed(prepare(job)),
        lambda prepared: find_ranges(prepared, histograms=True),
    ),
    "sensitivity": Stage(
        {},
        lambda job: observed(prepare(job.as_search())),
        find_losses,
    ),
    "learned rounding": Stage(
        {"recipe": "int4-weight", "methods": "learned-rounding"},
        lambda job: observed(prepare(job)),
        lambda prepared: uniform_plan(prepared, prepared.job.recipe.precision),
    ),
}


@dataclass(frozen=True)
class Run:
    """What one run took, in seconds.

    Attributes:
        whole: From the start of workers to their end.
        stage: The stage alone, with workers that are there.
        command: Processor time of this process in the stage.
        workers: That of each worker.
        digest: Hash of what it found.
    """

    whole: float
    stage: float
    command: float
    workers: Sequence[float]
    digest: str

    @property
    def path(self) -> float:
        """The shortest time in which as many processors as workers could do the stage."""
        return self.command + max(self.workers)


def ran(stage: Stage, model: str, data: str, workers: int, samples: int) -> Run:
    """Do a stage once."""
    began = time.perf_counter()
    options = Options(**stage.options, workers=workers, samples=samples)
    with open_job(model, data, options) as job:
        prepared = stage.prepare(job)
        # Those that come late would be taken for slow ones.
        wait_for(workers)
        # Each on a processor of its own, or the system puts several on one at times.
        for number, pid in enumerate(sorted(workers_of(os.getpid()))):
            for thread in Path(f"/proc/{pid}/task").iterdir():
                os.sched_setaffinity(int(thread.name), {number})
        before = {pid: spent(pid) for pid in workers_of(os.getpid())}
        started, used = time.perf_counter(), time.process_time()
        found = stage.run(prepared)
        took, used = time.perf_counter() - started, time.process_time() - used
        spans = [spent(pid) - least for pid, least in before.items()]
        name = digest(found)
    return Run(time.perf_counter() - began, took, used, spans, name)


def wait_for(count: int) -> None:
    """Wait until so many workers have come to rest."""
    while len(workers_of(os.getpid())) < count:
        time.sleep(0.1)
    before = -1.0
    while (now := sum(map(spent, workers_of(os.getpid())))) > before + 0.05:
        before = now
        time.sleep(0.5)


def spent(process: int) -> float:
    """Processor time of a process."""
    with contextlib.suppress(OSError):
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
        return sum(map(int, fields[11:13])) / os.sysconf("SC_CLK_TCK")
    return 0.0


def speed(pairs: list[tuple[str, str]], rounds: int, samples: int) -> None:
    """Times of the stages with one worker and with two, in turn."""
    print("| model | stage | 1 worker s | 2 s | ratio | with start | processor | same bytes |")
    print("|---|---|---|---|---|---|---|---|")
    for model, data in pairs:
        for name, stage in STAGES.items():
            runs: dict[int, list[Run]] = {1: [], 2: []}
            for number in range(2 * rounds):
                workers = (1, 2)[(number + number // 2) % 2]
                runs[workers].append(ran(stage, model, data, workers, samples))
            times, whole, paths = (
                [min(getattr(run, of) for run in runs[workers]) for workers in (1, 2)]
                for of in ("stage", "whole", "path")
            )
            ratios = " | ".join(f"{one / two:.2f}" for one, two in (times, whole, paths))
            is_same = len({run.digest for own in runs.values() for run in own}) == 1
            print(
                f"| {Path(model).stem} | {name} | {times[0]:.1f} | {times[1]:.1f} "
                f"| {ratios} | {'yes' if is_same else 'NO'} |",
                flush=True,
            )


def digits(path: Path) -> None:
    """Write all 1,797 of scikit-learn's digits as `models/train.py` makes 578 of them."""
    from sklearn.datasets import load_digits

    images = load_digits().images / 16.0
    small, large = images.shape[1], 32
    places = np.clip((np.arange(large) + 0.5) * small / large - 0.5, 0, small - 1)
    near = np.maximum(0, 1 - abs(places[:, np.newaxis] - np.arange(small)))
    np.savez(path, image=(near @ images @ near.T)[:, np.newaxis].astype(np.float32))


def workers_of(process: int) -> list[int]:
    """Processes that work for one: the children of its nannies' start."""
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = status.read_text().rpartition(")")[2].split()
            command = status.with_name("cmdline").read_bytes()
            if int(fields[1]) == process and b"spawn_main" in command:
                found.append(int(status.parent.name))
    return found


class Killing(Progress):
    """Kills one worker of this process at so many random moments, once workers have work.

    Attributes:
        killed: Those that were.
    """

    def __init__(self, times: int, between: tuple[float, float], seed: int) -> None:
        self.killed: list[int] = []
        self._times, self._between, self._rng = times, between, np.random.default_rng(seed)
        self._over = threading.Event()
        self._thread: threading.Thread | None = None

    def stage(self, name: str, total: int | None = None) -> None:
        """See `Progress`: these stages are spread."""
        if self._thread is None and name in ("calibrating", "analysing sensitivity"):
            self._thread = threading.Thread(target=self._kill)
            self._thread.start()

    def advance(self, done: int) -> None:
        """See `Progress`."""

    def finish(self) -> None:
        """See `Progress`."""

    def stop(self) -> None:
        """Kill no more."""
        self._over.set()
        if self._thread is not None:
            self._thread.join()

    def _kill(self) -> None:
        while len(self.killed) < self._times:
            if self._over.wait(self._rng.uniform(*self._between)):
                return
            # Who dies before it has begun is none that did any work.
            if alive := [pid for pid in workers_of(os.getpid()) if spent(pid) > STARTED]:
                victim = int(self._rng.choice(alive))
                with contextlib.suppress(ProcessLookupError):
                    os.kill(victim, signal.SIGKILL)
                    self.killed.append(victim)


def kills(model: str, data: str, times: int) -> None:
    """Whether a sensitivity analysis finds the same while workers are killed."""

    def found(progress: Progress) -> str:
        # The other method is over before many can be killed.
        options: dict[str, Any] = {"sensitivity": "exhaustive", "workers": 2}
        return digest(find_sensitivity(model, data, progress=progress, **options))

    wanted = found(SILENT)
    count, number = 0, 0
    while count < times:
        killing = Killing(times - count, (0.2, 3.0), number)
        try:
            assert found(killing) == wanted, "the bytes differ"
        finally:
            killing.stop()
        count, number = count + len(killing.killed), number + 1
        print(f"{count} of {times} workers killed, run {number}: same bytes", flush=True)


def specs_of(model: Path) -> tuple[TensorSpec, ...]:
    """What a model is fed; nothing where onnxruntime does not load it, which a batch tells then."""
    with contextlib.suppress(InputError):
        return tuple(as_stored(model).inputs)
    return ()


def models_of(places: list[Path], into: Path, count: int, known: Path | None) -> Path:
    """A manifest of so many models, with data of a folder by their names, or made-up data."""
    rows, made = ["name,model,data,recipe"], 0
    files = [f for p in places for f in ([p] if p.is_file() else sorted(p.glob("*.onnx")))]
    while made < count:
        file = files[made % len(files)]
        model, data = into / f"{file.stem}-{made}.onnx", into / f"{file.stem}-{made}.npz"
        save(load(file), model)
        rows.append(f"{model.stem},{model},{data},int8")
        made += 1
        if known is not None and (own := known / f"{file.stem}.npz").exists():
            shutil.copy(own, data)
            continue
        rng, arrays = np.random.default_rng(made - 1), {}
        for spec in specs_of(file):
            shape = [16, *(d if isinstance(d, int) else 8 for d in (spec.shape or (1,))[1:])]
            dtype = spec.dtype or np.dtype(np.float32)
            arrays[spec.name] = (
                rng.standard_normal(shape).astype(dtype)
                if dtype.kind == "f"
                else np.ones(shape, dtype)
            )
        np.savez(data, **arrays)
    path = into / "models.csv"
    path.write_text("\n".join(rows) + "\n")
    return path


def done(folder: Path) -> dict[str, int]:
    """The models of a batch that are done, and when each was."""
    return {p.parent.name: p.stat().st_mtime_ns for p in folder.glob("*/result.json")}


def batches(places: list[Path], count: int, known: Path | None) -> None:
    """Whether a batch that is killed twice makes each report once."""
    with tempfile.TemporaryDirectory() as name:
        manifest, out = models_of(places, Path(name), count, known), Path(name) / "out"
        command = [sys.executable, "-m", "onnxq", "batch", str(manifest), "-o", str(out)]
        written: dict[str, int] = {}
        for wanted in (count // 3, 2 * count // 3, count):
            process = subprocess.Popen([*command, "--workers", "2", "-q"], start_new_session=True)
            while process.poll() is None and (wanted == count or len(done(out)) < wanted):
                time.sleep(0.2)
            if process.returncode is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            results = done(out)
            again = [k for k, when in written.items() if results[k] != when]
            assert not again, f"made twice: {again}"
            written = results
            ended = "it ended" if process.returncode >= 0 else "it was killed"
            print(f"{len(results)} results when {ended}, none made twice", flush=True)
        bodies = [json.loads(p.read_text()) for p in sorted(out.glob("*/result.json"))]
        states = [body["state"] for body in bodies]
        for body in bodies:
            if body.get("sentence"):
                print(f"{body['name']}: {body['sentence']}")
        assert len(states) == count
        pages = len([*out.glob("*/report.html")])
        print(f"{pages} reports", end=" ")
        print({state: states.count(state) for state in sorted({*states})}, process.returncode)


def main() -> None:
    """Run what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("digits", "speed", "kills", "batch"))
    parser.add_argument("paths", nargs="*")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--count", type=int, help="kills (default 20), or models (default 30)")
    parser.add_argument(
        "--data", type=Path, help="folder with MODEL.npz of models that made-up data does not fit"
    )
    parser.add_argument("--samples", type=int, default=128, help="to calibrate on, for speed")
    parsed = parser.parse_intermixed_args()
    paths = parsed.paths or [*DEFAULT]
    if parsed.what == "digits":
        digits(Path(parsed.paths[0]))
    elif parsed.what == "speed":
        speed(list(zip(paths[::2], paths[1::2], strict=True)), parsed.rounds, parsed.samples)
    elif parsed.what == "kills":
        kills(*paths[:2], parsed.count or KILLS)
    else:
        batches([Path(p) for p in parsed.paths or [MODELS]], parsed.count or 30, parsed.data)


if __name__ == "__main__":
    main()
