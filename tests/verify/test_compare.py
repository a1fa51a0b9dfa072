"""Comparing two files: what is measured, against numpy, and what is refused."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from rich.console import Console

from onnxq.data import Dataset, read
from onnxq.errors import InputError
from onnxq.ir import Graph, PassRecord, save
from onnxq.report import to_text
from onnxq.report.providers import providers_notes
from onnxq.runtime import Session, Timing
from onnxq.verify import CompareOptions, Gate, Report, compare, compare_files
from onnxq.verify.compare import LAYER_SAMPLES
from onnxq.verify.facts import model_bytes
from onnxq.verify.workload import Workload, single_feed
from tests.quantization import observed_bounds, quantized

TEXT = """<ir_version: 8, opset_import: ["": 17]>
g (float[N, 4] x) => (float[N, 3] y) <float[4, 3] w = {{{weight}}}>
{{ h = MatMul(x, w) y = Mul(h, h) }}"""
WEIGHT = np.random.default_rng(3).standard_normal((4, 3)).astype(np.float32)
QUICK = CompareOptions(latency=False)


class Recorder:
    """Keeps what a Progress is told."""

    def __init__(self) -> None:
        self.stages: list[str] = []
        self.done = 0
        self.finished = False

    def stage(self, name: str, total: int | None = None) -> None:
        self.stages.append(name)

    def advance(self, done: int) -> None:
        self.done = done

    def finish(self) -> None:
        self.finished = True


def _graph(weight: np.ndarray = WEIGHT) -> Graph:
    numbers = ", ".join(repr(float(n)) for n in weight.reshape(-1))
    return Graph.from_text(TEXT.format(weight=numbers))


def _samples(count: int = 20) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((count, 4)).astype(np.float32)


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    """A float model and its quantized form, with weights that overflow on no processor."""
    before = _graph()
    bounds = observed_bounds(before.copy(), {"x": _samples()})
    after = quantized(before, bounds, target="cpu-x64-avx2")
    save(before, tmp_path / "m.onnx")
    save(after, tmp_path / "q.onnx")
    return tmp_path / "m.onnx", tmp_path / "q.onnx"


def _data(path: Path, labels: np.ndarray | None = None) -> Dataset:
    arrays = {"x": _samples()}
    if labels is not None:
        arrays["labels"] = labels
    return read(arrays, Session(path).inputs, batch_size=8)


def _compare(
    files: tuple[Path, Path], options: CompareOptions = QUICK, labels: np.ndarray | None = None,
    **more: object,
) -> Report:  # fmt: skip
    data = _data(files[0], labels)
    one = single_feed(data, Session(files[0]).inputs)
    return compare_files(*files, data, Workload(one), options, **more)  # type: ignore[arg-type]


def _outputs(path: Path) -> np.ndarray:
    return Session(path).run({"x": _samples()})["y"].astype(np.float64)


def test_outputs_over_all_batches(files: tuple[Path, Path]) -> None:
    ours, theirs = (_outputs(path) for path in files)
    (found,) = _compare(files).outputs
    noise = np.square(ours - theirs).sum()
    assert found.name == "y"
    assert found.sqnr_db == pytest.approx(10 * np.log10(np.square(ours).sum() / noise), rel=1e-5)
    assert found.max_abs == pytest.approx(np.abs(ours - theirs).max(), rel=1e-4)
    cosine = (ours * theirs).sum() / np.sqrt((ours**2).sum() * (theirs**2).sum())
    assert found.cosine == pytest.approx(cosine, abs=1e-9)


def test_each_provider_is_held_against_float_on_the_cpu(files: tuple[Path, Path]) -> None:
    report = _compare(files, CompareOptions(latency=False, each=True, reference=True, layers=False))
    cpu, reference = report.providers
    assert (cpu.name, cpu.nodes_left, cpu.left, cpu.difference_db) == ("cpu", 0, {}, np.inf)
    assert cpu.nodes_taken > 0 and cpu.sqnr_db == report.outputs[0].sqnr_db
    assert cpu.metric == report.metric
    assert (reference.name, reference.version) == ("onnx.reference", onnx.__version__)
    assert reference.agrees and reference.float_agrees and reference.nodes_taken == 5
    assert reference.sqnr_db > 10 and reference.difference_db > 30 and reference.metric is None
    assert Report.from_json(report.to_json()) == report
    assert _compare(files).providers == ()


def test_what_is_too_large_to_run_by_parts_is_not_said_to_agree(
    files: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object) -> str:
        raise AssertionError("no part is run")

    monkeypatch.setattr("onnxq.verify.providers.first_parting", never)
    monkeypatch.setattr("onnxq.verify.providers.constant_bytes", lambda graph: 1 << 60)
    options = CompareOptions(latency=False, each=True, reference=True, layers=False)
    assert _compare(files, options).providers[1].agrees is True, "outputs are within a step"
    monkeypatch.setattr("onnxq.verify.providers.outputs_differ", lambda *_: True)
    report = _compare(files, options)
    assert [(p.agrees, p.float_agrees) for p in report.providers] == [(True, True), (None, None)]
    told = providers_notes(report)
    assert "not known of the candidate" in told[0] and "not known of the float model" in told[1]
    assert Report.from_json(report.to_json()) == report


def test_what_falls_to_another_provider_is_told(files: tuple[Path, Path]) -> None:
    report = _compare(files, CompareOptions(latency=False, each=True, layers=False))
    (cpu,) = report.providers
    some = replace(
        cpu, name="gpu", nodes_taken=3, nodes_left=2, left={"TopK": 2}, agrees=False,
        parts_at="conv", float_agrees=False, float_parts_at="top",
    )  # fmt: skip
    none = replace(cpu, name="npu", nodes_taken=0, nodes_left=5, left={"Conv": 5})
    assert providers_notes(replace(report, providers=(cpu,))) == ()
    told = providers_notes(replace(report, providers=(some, none)))
    assert "gpu leaves 2 of 5 operators" in told[0] and "TopK 2" in told[0]
    assert "part at node 'conv' of the candidate" in told[1]
    assert "part at node 'top' of the float model" in told[2]
    assert told[3].startswith("Provider npu takes no operator")
    console = Console(width=300)
    with console.capture() as shown:
        console.print(to_text(replace(report, providers=(some,))))
    assert "parts from the CPU provider at conv" in shown.get()


def test_files_are_described(files: tuple[Path, Path]) -> None:
    report = _compare(files)
    for facts, path in zip((report.model, report.output), files, strict=True):
        assert facts.path == str(path)
        assert facts.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
        assert facts.bytes == path.stat().st_size
        assert facts.opset == 17
    assert report.size.ratio == report.model.bytes / report.output.bytes
    assert (report.model.nodes, report.output.nodes) == (2, 5)
    assert report.model.integer_operators == {}
    assert report.output.integer_operators == {"com.microsoft:MatMulIntegerToFloat": 1}
    assert {"onnxq", "onnx", "onnxruntime", "numpy", "python"} <= set(report.versions)
    assert report.peak_rss_bytes > 10_000_000
    assert report.passed and report.gates == ()


def test_external_data_counts(tmp_path: Path) -> None:
    weight = np.zeros((64, 64), np.float32)
    graph = Graph.from_text("""<ir_version: 8, opset_import: ["": 17]>
        g (float[N, 64] x) => (float[N, 64] y) { y = Relu(x) }""")
    graph.replace_uses(
        graph.outputs[0],
        graph.add("MatMul", [graph.inputs[0], graph.constant(weight, "w")]).output,
    )
    save(graph, tmp_path / "m.onnx", external_data=True)
    from onnxq.ir import load

    loaded = load(tmp_path / "m.onnx")
    size = (tmp_path / "m.onnx").stat().st_size
    assert size < 64 * 64 and model_bytes(loaded, tmp_path / "m.onnx") == size + 64 * 64 * 4


def test_a_metric_where_there_are_labels(files: tuple[Path, Path]) -> None:
    ours, theirs = (_outputs(path) for path in files)
    labels = ours.argmax(axis=1)
    labels[:5] = (labels[:5] + 1) % 3
    report = _compare(files, labels=labels)
    assert report.metric is not None
    assert report.metric.name == "accuracy" and report.metric.samples == 20
    assert report.metric.float == 0.75
    accuracy = float((theirs.argmax(axis=1) == labels).mean())
    assert report.metric.candidate == pytest.approx(accuracy)
    assert report.metric.drop == pytest.approx(0.75 - accuracy)
    low, high = report.metric.confidence
    assert low <= report.metric.drop <= high
    equal = float((theirs.argmax(axis=1) == ours.argmax(axis=1)).mean())
    assert report.agreement is not None and report.agreement.value == equal
    agreed = _compare(files, CompareOptions("agreement", latency=False), labels)
    assert agreed.metric is not None and _compare(files).metric is None
    assert (agreed.metric.name, agreed.metric.candidate) == ("agreement", equal)
    without = _compare(files, CompareOptions("sqnr", latency=False), labels)
    assert without.metric is None and without.agreement is None


def test_latency_of_every_provider(files: tuple[Path, Path]) -> None:
    options = CompareOptions(
        providers=("cpu", "CPUExecutionProvider"), latency_seconds=0.01, layers=False
    )
    report = _compare(files, options)
    assert [x.provider for x in report.latencies] == ["cpu", "CPUExecutionProvider"]
    assert report.latency == report.latencies[0]
    for found in report.latencies:
        assert found.float_ms > 0 and found.candidate_ms > 0 and found.speedup > 0
        assert found.threads == 1
    assert _compare(files).latency is None and _compare(files).latencies == ()


@pytest.mark.parametrize(("opening", "wanted"), [(0.0, [8, 2, 8]), (1.0, [2, 2, 2])])
def test_each_feed_says_whether_several_sessions_are_timed(
    files: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, opening: float, wanted: list[int]
) -> None:
    now, timed = [0.0], list[int]()

    class Slow:
        """Takes two milliseconds for a sample, and its time to open."""

        def session(self, *_: object, **__: object) -> Slow:
            now[0] += opening
            return self

        def run(self, feeds: Mapping[str, np.ndarray]) -> None:
            now[0] += len(feeds["x"]) / 500

        def time(self, sessions: Sequence[object], *_: object, seconds: float) -> list[Timing]:
            timed.append(len(sessions))
            return [Timing(1.0, 1.0, 1.0, 5, 1.0)] * len(sessions)

    monkeypatch.setattr(compare, "load_backend", lambda _: Slow())
    monkeypatch.setattr(compare, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    data = _data(files[0])
    one, long = (single_feed(data, Session(files[0]).inputs, size) for size in (1, 20))
    workload = Workload(one, "short", {"long": long}, [one])
    options = CompareOptions(layers=False, operators=False)
    compare_files(*files, data, workload, options)
    assert timed == wanted


def test_layers_with_and_without_their_error(files: tuple[Path, Path]) -> None:
    with_error = {layer.node: layer.sqnr_db for layer in _compare(files).layers}
    assert set(with_error) == {"h", "y"} and all(with_error.values())
    without = _compare(files, CompareOptions(latency=False, layers=False)).layers
    assert {layer.node: layer.sqnr_db for layer in without} == {"h": None, "y": None}
    assert [layer.precision for layer in without] == ["int8", "float32"]
    assert len(_samples()) > LAYER_SAMPLES


def test_gates_passes_and_progress(files: tuple[Path, Path]) -> None:
    recorder = Recorder()
    gates = (Gate.parse("sqnr>=20"), Gate.parse("size_ratio>=100"))
    report = _compare(
        files,
        CompareOptions(latency_seconds=0.01, gates=gates),
        passes=[PassRecord("insert-qdq", 3, 0.5, 2, 5)],
        progress=recorder,
    )
    assert [g.passed for g in report.gates] == [True, False] and not report.passed
    assert [(p.name, p.rewrites, p.seconds) for p in report.passes] == [("insert-qdq", 3, 0.5)]
    assert recorder.stages == ["verifying", "measuring latency on cpu", "comparing layers"]
    assert recorder.done == 20 and recorder.finished


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("float[N, 4] x", "float[N, 4] z", "has other inputs than the float model: z float32"),
        ("float[N, 4] x", "float[4] x", "has other inputs .* x float32 .4. instead of x float32"),
        ("float[N, 4] x", "double[N, 4] x", "has other inputs"),
        ("float[N, 3] y", "float[N, 3] z", "has other outputs than the float model: z float32"),
        ("float[N, 3] y", "float[N, 3] y, float[N, 3] h", "has other outputs"),
    ],
)
def test_another_interface_is_refused(
    files: tuple[Path, Path], tmp_path: Path, old: str, new: str, message: str
) -> None:
    numbers = ", ".join(["1"] * 12)
    text = TEXT.format(weight=numbers).replace(old, new)
    if "z" in new:
        text = text.replace("(x, w)", f"({'z' if 'x' in old else 'x'}, w)")
        text = text.replace("y = Mul", f"{'z' if 'y' in old else 'y'} = Mul")
    text = text.replace("<float[4, 3]", "<double[4, 3]") if "double" in new else text
    text = text.replace("(float[N, 3] y)", "(double[N, 3] y)") if "double" in new else text
    save(Graph.from_text(text), tmp_path / "other.onnx")
    with pytest.raises(InputError, match=message) as found:
        _compare((files[0], tmp_path / "other.onnx"))
    assert "other.onnx' has other" in str(found.value)


def test_the_order_of_outputs_and_names_of_sizes_do_not_matter(tmp_path: Path) -> None:
    text = """<ir_version: 8, opset_import: ["": 17]>
        g (float[N, 4] x) => (float[N, 4] a, float[N, 4] b) { a = Exp(x) b = Abs(x) }"""
    save(Graph.from_text(text), tmp_path / "m.onnx")
    other = text.replace("float[N, 4] a, float[N, 4] b", "float[M, 4] b, float[M, 4] a")
    save(Graph.from_text(other), tmp_path / "c.onnx")
    report = _compare((tmp_path / "m.onnx", tmp_path / "c.onnx"))
    assert [o.name for o in report.outputs] == ["a", "b"]
    assert all(o.max_abs == 0 for o in report.outputs)


def test_no_provider_or_one_that_is_not_there(files: tuple[Path, Path]) -> None:
    with pytest.raises(InputError, match="no execution provider is named"):
        _compare(files, CompareOptions(providers=()))
    with pytest.raises(InputError, match="provider 'tpu' is not in the installed onnxruntime"):
        _compare(files, CompareOptions(providers=("tpu",)))


def test_labels_that_do_not_fit(files: tuple[Path, Path]) -> None:
    with pytest.raises(InputError, match="label 7 is beyond the model's 3 classes"):
        _compare(files, labels=np.full(20, 7))


def test_a_wrong_rank_that_a_file_states_of_an_output_is_no_other_interface(tmp_path: Path) -> None:
    for name, stated in (("m", ""), ("c", "[N, 4]")):
        text = f"""<ir_version: 8, opset_import: ["": 17]>
            g (float[N, 4] x) => (float{stated} y) {{ y = Relu(x) }}"""
        save(Graph.from_text(text), tmp_path / f"{name}.onnx")
    report = _compare((tmp_path / "m.onnx", tmp_path / "c.onnx"))
    assert report.outputs[0].max_abs == 0
