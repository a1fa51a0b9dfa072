"""Print what adaptive sessions see, do, win and cost.

Usage: python benchmarks/adaptive.py FOLDER [PART ...] [--undisturbed N] [--requests N]
       [--output FILE]

FOLDER keeps bundles and what was measured, so that a second run does only what is missing. A PART
is a beginning of streams/MODEL/..., undisturbed/MODEL, cost/MODEL, threads/MODEL or cascade/MODEL.
CIFAR-10 models and photographs lie in the folder that ONNXQ_CORPUS names. What is calibrated on is
never in a stream.
"""

from __future__ import annotations

import argparse
import gc
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnxruntime as ort
from cases import MODELS
from disturbances import NONE, Change, Photographs, blur, both, contrast, gain, noise, offset, only
from heading import heading
from memory import memory_bytes

from onnxq import optimize, watch
from onnxq.adaptive.bundle import Bundle
from onnxq.adaptive.cascade import margins_of
from onnxq.adaptive.deployment import Deployment
from onnxq.adaptive.fitting import fitted
from onnxq.adaptive.judge import Amounts
from onnxq.adaptive.parts import Parts
from onnxq.adaptive.replay import Rules
from onnxq.adaptive.serving import Sessions
from onnxq.adaptive.session import AdaptiveSession
from onnxq.adaptive.twin import Twin
from onnxq.runtime import Session
from onnxq.saved import SavedAsJson

RESULTS = Path(__file__).parent / "results" / "adaptive.md"

USUAL, ALLOWED, JUDGED = 300, 500, 1200
"""Requests before anything changes, in which a session may adapt, and on which it is judged: whole
twentieths of a stream, into which `onnxq watch` parts it."""

SLOW = 1000
"""Requests over which a slow change takes place."""

SUFFERS = 0.03
"""What float itself loses where adapting is no help."""

LOST, BACK = 0.03, 0.005
"""What static int8 loses against float for a stream to be one that needs adapting, and what an
adaptive session may lose."""

PROMISED = 0.995
"""Share of decisions that a cascade is to make as float."""

_AT_ONCE = 10_000
"""Requests whose photographs are in memory together."""

MODELS_WATCHED = ("cifar_resnet20", "digits_vit")


@dataclass(frozen=True)
class Stream:
    """A model that was calibrated on photographs as they begin, which then change.

    Attributes:
        model: Its name.
        first: What photographs are like at first.
        last: And later.
        is_slow: Whether they change little by little.
    """

    model: str
    first: Change
    last: Change
    is_slow: bool = False

    @property
    def name(self) -> str:
        """Tells it from others."""
        how = "slowly" if self.is_slow else "suddenly"
        return f"streams/{self.model}/{self.first.name} to {self.last.name} {how}"

    def parts(self) -> tuple[tuple[int, Change, Change], ...]:
        """What `Photographs.stream` takes."""
        change = ((SLOW, self.first, self.last),) if self.is_slow else ()
        return (
            (USUAL, self.first, self.first),
            *change,
            (ALLOWED + JUDGED, self.last, self.last),
        )


def streams() -> list[Stream]:
    """Changes that static int8 does not bear, that it bears, and that float does not bear."""
    dark_blur = both(blur(1.0), gain(0.5))
    digits_dark, flat = both(blur(1.0), gain(0.7)), contrast(0.35)
    found = [
        *(
            Stream("cifar_resnet20", c, NONE)
            for c in (gain(0.5), offset(0.3), dark_blur, only(3, 5))
        ),
        Stream("cifar_resnet20", gain(0.5), NONE, is_slow=True),
        Stream("cifar_resnet20", offset(0.3), NONE, is_slow=True),
        *(Stream("cifar_resnet20", NONE, c) for c in (gain(2), offset(-0.5), offset(0.5))),
        *(Stream("cifar_resnet20", NONE, c) for c in (blur(1.5), noise(0.15), contrast(0.3))),
        *(Stream("cifar_resnet20", NONE, c) for c in (contrast(1.5), only(3, 5))),
        *(Stream("digits_vit", c, NONE) for c in (gain(0.7), offset(-0.3), flat, digits_dark)),
        Stream("digits_vit", gain(0.7), NONE, is_slow=True),
        *(Stream("digits_vit", NONE, c) for c in (gain(2), blur(1.0), noise(0.15), only(0, 1))),
    ]
    return found


@dataclass(frozen=True)
class Row(SavedAsJson):
    """What came of a stream; accuracies as shares of the requests that are judged.

    Attributes:
        before: Of the float model, before the change.
        floating: Of the float model.
        static: Of the bundle's first model.
        adaptive: Of the session.
        alarm: Requests from the change to the first alarm; None without one.
        events: Requests from the change, kinds and reasons.
        seconds: For the whole stream.
    """

    schema: ClassVar[str] = "onnxq/adaptive-row/1"
    what: ClassVar[str] = "row"
    remedy: ClassVar[str] = "measure it anew"

    before: float
    floating: float
    static: float
    adaptive: float
    alarm: int | None
    events: tuple[tuple[int, str, str], ...]
    seconds: float


@dataclass
class Bench:
    """Makes bundles and streams, and keeps what it measures.

    Attributes:
        folder: Where.
        photographs: By model.
    """

    folder: Path
    photographs: dict[str, Photographs] = field(default_factory=dict)

    def of(self, model: str) -> Photographs:
        """A model's photographs."""
        return self.photographs.setdefault(model, Photographs.of(model))

    def bundle(self, model: str, change: Change, recipe: str | None = "int8") -> Bundle:
        """A bundle of a model that was calibrated on changed photographs.

        Its models are int8 and float, or what a search finds where there is no recipe.
        """
        folder = self.folder / f"{model}-{_plain(change.name)}{'' if recipe else '-searched'}"
        if not folder.exists():
            data = self.of(model).usual(change)
            with tempfile.TemporaryDirectory() as scratch:
                optimize(
                    model_path(model),
                    data,
                    **({"recipe": recipe} if recipe else {}),
                    output=Path(scratch) / "model.onnx",
                    adaptive=folder,
                    keep_failed=True,
                    min_speedup=0.0,
                )
        return Bundle.load(folder)

    def row(self, stream: Stream, *, anew: bool) -> Row | None:
        """What comes of a stream; None where it was not measured and is not to be."""
        path = self.folder / f"{_plain(stream.name)}.json"
        if path.exists():
            return Row.load(path)
        if not anew:
            return None
        row = self._measured(stream)
        row.save(path)
        return row

    def _measured(self, stream: Stream) -> Row:
        started = time.perf_counter()
        bundle = self.bundle(stream.model, stream.first)
        data = self.of(stream.model).stream(stream.parts())
        total = len(data["labels"])
        changed, settled = USUAL, total - JUDGED
        found = watch(bundle, data, Rules(requests_per_second=10.0)).adaptive
        judged = [own for own in found.stretches if own.first > settled]
        assert judged[0].first == settled + 1, "the stretches do not fit"
        values = [own.value for own in judged]
        right = [
            answers(bundle.model(place), data["image"]).argmax(1) == data["labels"]
            for place in (len(bundle.variants) - 1, bundle.facts.chosen)
        ]
        told = tuple((h.request - changed, h.kind, h.reason) for h in found.happenings)
        alarms = [at for at, kind, _ in told if kind == "drift"]
        return Row(
            float(right[0][:changed].mean()),
            float(right[0][settled:].mean()),
            float(right[1][settled:].mean()),
            float(np.mean([value for value in values if value is not None])),
            alarms[0] if alarms else None,
            told,
            time.perf_counter() - started,
        )


def model_path(name: str) -> Path:
    """A model's file."""
    own = MODELS / f"{name}.onnx"
    return own if own.exists() else Path(os.environ["ONNXQ_CORPUS"]) / "models" / own.name


def answers(model: Path, image: np.ndarray) -> np.ndarray:
    """What a model says of photographs, 100 at a time."""
    session = Session(model)
    spec, output = session.inputs[0].name, session.outputs[0].name
    parts = range(0, len(image), 100)
    return np.concatenate([session.run({spec: image[at : at + 100]})[output] for at in parts])


def _plain(name: str) -> str:
    return "".join(c if c.isalnum() or c in "+-." else "-" for c in name)


def stream_table(rows: dict[Stream, Row]) -> Iterator[str]:
    """Accuracies on the last requests of every stream, and what was told."""
    yield f"Accuracy on the {JUDGED} requests from {ALLOWED} after a change on, in percent:"
    yield ""
    columns = ("model", "at first", "then", "float at first", "float", "static int8", "adaptive")
    yield f"| {' | '.join(columns)} | alarm after |"
    yield f"|{'---|' * 8}"
    for stream, row in rows.items():
        shares = (row.before, row.floating, row.static, row.adaptive)
        then = f"{stream.last.name}{', slowly' if stream.is_slow else ''}"
        cells = [stream.model, stream.first.name, then, *(f"{100 * s:.1f}" for s in shares)]
        yield f"| {' | '.join(cells)} | {'' if row.alarm is None else row.alarm} |"
    yield ""
    yield verdict(rows)
    yield ""
    for stream, row in rows.items():
        yield f"`{stream.name}`:"
        yield ""
        for at, kind, reason in row.events:
            yield f"- {at:+d} {kind}: {reason}"
        if not row.events:
            yield "- nothing was told"
        yield ""


def verdict(rows: dict[Stream, Row]) -> str:
    """In how many streams the goal is met, of those where it can be missed."""
    needed = {
        stream: row
        for stream, row in rows.items()
        if row.floating - row.static >= LOST and row.before - row.floating < SUFFERS
    }
    missed = [s.name for s, row in needed.items() if row.floating - row.adaptive > BACK]
    text = (
        f"Static int8 loses at least {100 * LOST:.0f} points, and float no more than "
        f"{100 * SUFFERS:.0f}, in {len(needed)} streams; adaptive is within {100 * BACK:g} points "
        f"of float in {len(needed) - len(missed)} of them"
    )
    return f"{text}, not in {', '.join(missed)}." if missed else f"{text}."


def undisturbed(bench: Bench, model: str, requests: int) -> str:
    """Alarms and changes where nothing changes."""
    bundle, started = bench.bundle(model, NONE), time.perf_counter()
    told, looked_at = [], 0
    with tempfile.TemporaryDirectory() as scratch:
        rules = Rules(state=str(Path(scratch) / "state.sqlite"))
        for first in range(0, requests, _AT_ONCE):
            count = min(_AT_ONCE, requests - first)
            data = bench.of(model).stream([(count, NONE, NONE)], seed=first + 1)
            found = watch(bundle, data, replace(rules, seed=first)).adaptive
            told += [(first + own.request, own.kind, own.reason) for own in found.happenings]
            looked_at += found.nearness.sampled
            # The next session takes over what is known once this one is gone.
            gc.collect()
    kinds = [kind for _, kind, _ in told]
    return (
        f"{model}: {requests:,} undisturbed requests ({requests / 86400:.2f} days at one a "
        f"second), {looked_at:,} looked at: {kinds.count('drift')} alarms, "
        f"{kinds.count('adapted')} changes (one alarm a day is asked for; "
        f"{time.perf_counter() - started:.0f} s). "
        + "; ".join(f"{at} {kind}: {reason}" for at, kind, reason in told)
    ).strip()


def cost(bench: Bench, model: str, requests: int) -> str:
    """Latency against a plain session in turn, and memory of a process with each."""
    bundle = bench.bundle(model, NONE)
    image = bench.of(model).stream([(500, NONE, NONE)], seed=2)["image"]
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    plain = ort.InferenceSession(
        bundle.model(bundle.facts.chosen), options, providers=["CPUExecutionProvider"]
    )
    with (
        tempfile.TemporaryDirectory() as scratch,
        AdaptiveSession(bundle, state=Path(scratch) / "state.sqlite") as adaptive,
    ):
        seconds = np.zeros((2, requests))
        sessions: tuple[Any, ...] = (plain, adaptive)
        for at in range(-100, requests):
            feeds = {"image": image[at % len(image)][None]}
            for place in (0, 1) if at % 2 else (1, 0):
                started = time.perf_counter()
                sessions[place].run(None, feeds)
                seconds[place, at] = time.perf_counter() - started
        statistics = adaptive.statistics()
    median, worst = np.percentile(seconds, [50, 99], axis=1) * 1000
    memory = [_memory(bundle.folder, kind) for kind in ("plain", "adaptive")]
    return (
        f"{model}: median {median[0]:.3f} to {median[1]:.3f} ms ({median[1] / median[0]:.3f} x), "
        f"p99 {worst[0]:.3f} to {worst[1]:.3f} ms ({worst[1] / worst[0]:.3f} x), "
        f"memory of a process {memory[0] / 1e6:.0f} to {memory[1] / 1e6:.0f} MB "
        f"({memory[1] / memory[0]:.2f} x); "
        f"{statistics['judged']} of {statistics['requests']} requests were looked at"
    )


def cascade(bench: Bench, model: str, samples: int) -> str:
    """A cascade against its variants alone, timed in turn on photographs it was not fitted to."""
    bundle = bench.bundle(model, NONE, recipe=None)
    image = bench.of(model).stream([(2 * samples, NONE, NONE)], seed=4)["image"]
    feeds = [{"image": one[None]} for one in image]
    found = fitted(bundle, feeds[:samples], PROMISED)
    if found is None:
        return f"{model}: only float keeps an agreement of {PROMISED} for certain"
    margins = margins_of(bundle.facts.decisions, bundle.facts.outputs)
    opened = [Sessions(bundle).session(Deployment(n)) for n in _places(bundle)]
    ask = [lambda fed, own=own: tuple(own.run(None, dict(fed))) for own in opened]
    ask.append(lambda fed: found.run([ask[n] for n in found.variants], fed, margins))
    seconds, agreed = np.zeros((len(ask), samples)), np.zeros((len(ask), samples), bool)
    for at, fed in enumerate(feeds[samples:]):
        answers = {}
        for place in np.roll(np.arange(len(ask)), at):
            started = time.perf_counter()
            answers[place] = ask[place](fed)[0].argmax()
            seconds[place, at] = time.perf_counter() - started
        agreed[:, at] = [answers[n] == answers[len(opened) - 1] for n in range(len(ask))]
    # What takes longest is what other work on the machine interrupted.
    mean = 1000 * np.sort(seconds, axis=1)[:, : samples * 98 // 100].mean(axis=1)
    names = [*(variant.name for variant in bundle.variants), "the cascade"]
    told = "; ".join(
        f"{name}: {100 * agreed[n].mean():.2f} % agree, mean {mean[n]:.4f} ms"
        for n, name in enumerate(names)
    )
    used = ", ".join(bundle.variants[n].name for n in found.variants)
    return (
        f"{model}: promised {100 * PROMISED:.1f} %, proved {100 * found.proved:.2f} %, of {used}; "
        f"on {samples} other photographs (mean time of the fastest 98 of 100) {told}"
    )


def _places(bundle: Bundle) -> range:
    return range(len(bundle.variants))


def _memory(folder: Path, kind: str) -> int:
    """Peak memory of a process that answers 2,000 requests."""
    command = [sys.executable, __file__, "--hold", kind, str(folder)]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def _hold(kind: str, folder: Path) -> None:
    """What `_memory` starts."""
    bundle = Bundle.load(folder)
    session: Any = ort.InferenceSession(
        bundle.model(bundle.facts.chosen), providers=["CPUExecutionProvider"]
    )
    shape = [n if isinstance(n, int) else 1 for n in session.get_inputs()[0].shape]
    feeds = {session.get_inputs()[0].name: np.zeros(shape, np.float32)}
    with tempfile.TemporaryDirectory() as scratch:
        if kind == "adaptive":
            session = AdaptiveSession(bundle, state=Path(scratch) / "state.sqlite")
        for _ in range(2000):
            session.run(None, feeds)
        if kind == "adaptive":
            session.close()
    print(memory_bytes("VmHWM"))


@dataclass(frozen=True)
class _Always:
    """A verdict, and a monitor that gives it: requests are never what they were."""

    alarm: bool = True
    suspicious: bool = True
    evidence: float = 1.0
    threshold: float = 1.0
    drifted: tuple[str, ...] = ()
    reason: str = "time for a change"
    requests: int = 1

    def details(self) -> dict[str, Any]:
        return {}

    def verdict(self) -> _Always:
        return self

    def see(self, *arguments: Any) -> None:
        pass

    add = feedback = see

    def renew(self) -> None:
        pass

    def to_plain(self) -> None:
        return None


@dataclass(frozen=True)
class _Proposal:
    deployment: Deployment
    reason: str = "the other variant"


def threads(bench: Bench, model: str, requests: int) -> str:
    """Answers to four threads while two variants take turns."""
    bundle = bench.bundle(model, NONE)
    image = bench.of(model).stream([(64, NONE, NONE)], seed=3)["image"]
    last = len(bundle.variants) - 1
    known = [
        [Session(bundle.model(place)).run({"image": one[None]})["logits"] for one in image]
        for place in (0, last)
    ]
    parts = Parts(
        Twin,
        lambda bundle, earlier: _Always(),
        _Always,
        lambda bundle, live, *rest: _Proposal(Deployment(last - live.variant)),
        lambda *outputs: "",
    )
    wrong, done = [0] * 4, [0] * 4

    def ask(place: int, session: AdaptiveSession) -> None:
        for at in range(requests // 4):
            one = (at * 7 + place) % len(image)
            (answer,) = session.run(None, {"image": image[one][None]})
            wrong[place] += not any(np.array_equal(answer, own[one]) for own in known)
            done[place] += 1

    with (
        tempfile.TemporaryDirectory() as scratch,
        AdaptiveSession(
            bundle,
            state=Path(scratch) / "state.sqlite",
            parts=parts,
            amounts=Amounts(fit=1, held_back=1, prove=100),
        ) as session,
    ):
        workers = [threading.Thread(target=ask, args=(n, session)) for n in range(4)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        session.flush()
        swaps = session.statistics()["generation"]
    return (
        f"{model}: four threads, {requests:,} requests, {sum(done):,} answers, {swaps} swaps among "
        f"them: {sum(wrong)} answers of neither variant"
    )


def main() -> None:
    """Measure what is wanted, and print and write all that is kept."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="keeps bundles and results")
    parser.add_argument("parts", nargs="*", metavar="PART", help="beginning of what to measure")
    parser.add_argument("--undisturbed", type=int, default=100_000, metavar="N")
    parser.add_argument("--requests", type=int, default=20_000, metavar="N", help="to time")
    parser.add_argument("--output", type=Path, default=RESULTS, metavar="FILE")
    parsed = parser.parse_args()
    bench = Bench(parsed.folder.resolve())
    bench.folder.mkdir(parents=True, exist_ok=True)
    wanted = tuple(parsed.parts) or ("",)
    rows = {}
    for stream in streams():
        row = bench.row(stream, anew=stream.name.startswith(wanted))
        if row is not None:
            rows[stream] = row
            print(*list(stream_table({stream: row}))[4:5], sep="\n", flush=True)
    lines = [heading("Adaptive sessions", "adaptive.py FOLDER", 1), *stream_table(rows)]
    measured = (
        ("undisturbed", undisturbed, MODELS_WATCHED, parsed.undisturbed),
        ("cost", cost, MODELS_WATCHED, parsed.requests),
        ("threads", threads, MODELS_WATCHED, parsed.undisturbed),
        ("cascade", cascade, ("cifar_resnet20", "cifar_mobilenet"), 2000),
    )
    for name, measure, models, count in measured:
        for model in models:
            kept = bench.folder / f"{name}-{model}.txt"
            if f"{name}/{model}".startswith(wanted) and not kept.exists():
                kept.write_text(measure(bench, model, count) + "\n")
            if kept.exists():
                lines += [f"{name[0].upper()}{name[1:]}: {kept.read_text()}"]
    text = "\n".join(lines)
    print(text)
    parsed.output.write_text(text.rstrip() + "\n")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--hold"]:
        _hold(sys.argv[2], Path(sys.argv[3]))
    else:
        main()
