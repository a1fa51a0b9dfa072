"""Print whether ``optimize --target fastest`` names the provider that measuring everything names.

Usage: python benchmarks/providers.py MODEL=DATA ... [--python PATH] [--samples N] [--seconds S]
       [--threads N] [--folder FOLDER]

MODEL is an .onnx file and DATA an .npz file with its samples, of which --samples are used, evenly
spread (0: all). --python names an interpreter whose environment has another onnxruntime, and may be
given several times. What is made stays in --folder.

Of each model these forms are made, without any search: float; int8 for every target whose provider
is here or in one of the environments; int8-dynamic. Each of them runs on every provider of every
environment, and so does the model that ``--target fastest`` wrote; all are timed in turn, on single
samples. Forms whose accuracy breaks the promise that ``optimize`` fills in do not count: those that
were made here are held against float on the CPU provider.

A row holds the fastest that counts, the fastest on the provider that was named, what was named, and
the time of the first over that of the second; then whether the providers are the same, or, where
they are not, whether the ratio is within the 3 % that count as equal.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from heading import heading

import onnxq
from onnxq.errors import InputError
from onnxq.fastest import Place, find_places
from onnxq.options import Options
from onnxq.promise import promise
from onnxq.runtime import EQUAL, Runnable, Timing, interleaved, load_backend
from onnxq.targets import FASTEST
from onnxq.verify import with_gates
from onnxq.verify.result import DeploymentFacts
from onnxq.verify.workload import single_feed


@dataclass(frozen=True)
class Entry:
    """A form on a provider of an environment, and its latency."""

    form: str
    place: Place
    timing: Timing

    @property
    def where(self) -> tuple[str, str]:
        """Interpreter and provider."""
        return self.place.python, self.place.target.provider


def main() -> None:
    """Measure the models and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="+", metavar="MODEL=DATA")
    parser.add_argument("--python", action="append", default=[], dest="pythons")
    parser.add_argument("--samples", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=1.0, help="for each form and provider")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--folder", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = given.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        options = Options(target=FASTEST, pythons=given.pythons, threads=given.threads)
        command = f"providers.py MODEL=DATA ... --samples {given.samples}"
        print(heading("The fastest provider", command, given.threads))
        print("| model | fastest of all | on the named provider | named | ratio | same | minutes |")
        print("|---|---|---|---|---|---|---|")
        for pair in given.models:
            model, _, data = pair.partition("=")
            samples = some(Path(data), given.samples)
            try:
                print(row(Path(model), samples, options, given.seconds, folder), flush=True)
            except InputError as error:
                print(f"| {Path(model).stem} | fails: {error} | | | | | |", flush=True)


def some(path: Path, count: int) -> dict[str, np.ndarray]:
    """Samples of a file, evenly spread; what has no axis is for all."""
    with np.load(path) as arrays:
        found = dict(arrays)
    length = max(len(array) for array in found.values() if array.ndim)
    places = np.linspace(0, length - 1, min(count or length, length)).astype(int)
    return {name: array[places] if array.ndim else array for name, array in found.items()}


def row(
    model: Path, data: Mapping[str, np.ndarray], options: Options, seconds: float, folder: Path
) -> str:
    """One model's row of the table."""
    started = time.perf_counter()
    output = folder / f"{model.stem}.fastest.onnx"
    found = onnxq.optimize(model, data, options, output=output, keep_failed=True)
    minutes = (time.perf_counter() - started) / 60
    (named,) = (each for each in found.report.deployments if each.chosen)
    places, _ = find_places(options)
    forms = {"float": model, "named": output, **made(model, data, places, folder)}
    entries = measured(forms, places, model, data, seconds, options.threads)
    best = min(entries, key=lambda e: e.timing.p10_ms)
    theirs = [e for e in entries if e.where == (named.python, named.provider)]
    ours = min(theirs, key=lambda e: e.timing.p10_ms)
    ratio = best.timing.p10_ms / ours.timing.p10_ms
    same = "yes" if best.where == ours.where else "equal" if ratio * EQUAL >= 1 else "no"
    what = described(named, [os.fspath(python) for python in options.pythons])
    cells = (model.stem, told(best), told(ours), what, f"{ratio:.3f}", same)
    return f"| {' | '.join(cells)} | {minutes:.1f} |"


def made(
    model: Path, data: Mapping[str, np.ndarray], places: Sequence[Place], folder: Path
) -> dict[str, Path]:
    """The forms that keep the promise of accuracy, by name."""
    targets = dict.fromkeys(place.target.name for place in places)
    wanted = [("int8", target) for target in targets] + [("int8-dynamic", next(iter(targets)))]
    found = {}
    for recipe, target in wanted:
        path = folder / f"{model.stem}.{target}.{recipe}.onnx"
        try:
            plan = onnxq.make_plan(model, data, recipe=recipe, target=target)
            onnxq.apply_plan(model, plan, output=path)
        except InputError:
            # There is nothing to quantize.
            continue
        report = onnxq.compare(model, path, data, latency=False, layers=False)
        if with_gates(report, promise(report, Options(min_speedup=0.0), is_timed=False)).passed:
            found[f"{recipe} for {target}"] = path
    return found


def measured(
    forms: Mapping[str, Path],
    places: Sequence[Place],
    model: Path,
    data: Mapping[str, np.ndarray],
    seconds: float,
    threads: int,
) -> list[Entry]:
    """All forms on all providers, timed in turn."""
    held: list[tuple[str, Place, Runnable]] = []
    feeds: Mapping[str, np.ndarray] = {}
    for form, place, session in opened(forms, places, threads):
        feeds = feeds or single_feed(onnxq.data.read(data, session.inputs), session.inputs).feeds
        try:
            session.run(feeds)
        except InputError:
            continue
        held.append((form, place, session))
    sessions = [session for _, _, session in held]
    timings = interleaved(sessions, feeds, seconds=seconds * len(sessions))
    return [Entry(form, place, t) for (form, place, _), t in zip(held, timings, strict=True)]


def opened(
    forms: Mapping[str, Path], places: Sequence[Place], threads: int
) -> Iterator[tuple[str, Place, Runnable]]:
    """Every form on every provider that loads it."""
    for place in places:
        backend = load_backend(place.backend)
        for form, path in forms.items():
            try:
                session = backend.session(path, provider=place.target.provider, threads=threads)
            except InputError:
                continue
            yield form, place, session


def told(entry: Entry) -> str:
    """A form, where it ran, and its time."""
    where = f"{entry.place.target.provider}{' elsewhere' if entry.place.python else ''}"
    return f"{entry.form} on {where}, {entry.timing.p10_ms:.3g} ms"


def described(named: DeploymentFacts, pythons: Sequence[str]) -> str:
    """What ``--target fastest`` named, without where interpreters lie."""
    model, elsewhere = named.model, " elsewhere" if named.python else ""
    for python in pythons:
        model = model.replace(f" of '{python}'", " elsewhere")
    return f"{model} on {named.provider}{elsewhere}, {named.speedup:.2f}x"


if __name__ == "__main__":
    main()
