"""Benchmarking from Python: feeds, rows and refusals."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import pytest

from onnxq.benchmark import BenchRow, bench, random_feeds
from onnxq.errors import InputError
from onnxq.ir import Graph, save
from onnxq.runtime import Backend, Session, TensorSpec, Timing

MODULE = importlib.import_module("onnxq.benchmark")


class Recorder:
    """Stands in for the measuring: keeps what it was given, tells of made-up times."""

    def __init__(self) -> None:
        self.feeds: list[list[dict[str, np.ndarray]]] = []
        self.providers: list[list[str]] = []
        self.seconds: list[float] = []

    def __call__(
        self, sessions: list[Session], feeds: list[dict[str, np.ndarray]], *, seconds: float
    ) -> list[Timing]:
        self.feeds.append(feeds)
        self.providers.append([s.provider for s in sessions])
        self.seconds.append(seconds)
        return [Timing(4.0 / 2**i, 1.0, 9.0, 10 * (i + 1), 2.0**i) for i in range(len(sessions))]


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    found = Recorder()
    monkeypatch.setattr(Backend, "time", found)
    return found


def model(folder: Path, text: str, name: str = "m.onnx") -> Path:
    graph = Graph.from_text(f'<ir_version: 8, opset_import: ["": 17]>\n{text}')
    save(graph, folder / name)
    return folder / name


def relu(folder: Path, shape: str = "N, 3", name: str = "m.onnx") -> Path:
    return model(folder, f"g (float[{shape}] x) => (float[{shape}] y) {{ y = Relu(x) }}", name)


def test_rows_tell_what_was_measured(tmp_path: Path, recorder: Recorder) -> None:
    a, b = relu(tmp_path, name="a.onnx"), relu(tmp_path, name="b.onnx")
    rows = bench([a, str(b)], providers=("cpu", "CPUEXECUTIONPROVIDER"), seconds=0.5)
    first = BenchRow(str(a), "cpu", 4.0, 1.0, 9.0, 1.0, 10, a.stat().st_size)
    second = BenchRow(str(b), "cpu", 2.0, 1.0, 9.0, 2.0, 20, b.stat().st_size)
    assert rows == [first, second], "no provider is measured twice"
    assert recorder.seconds == [0.5]
    assert recorder.providers == [["CPUExecutionProvider"] * 2]


def test_real_times_are_positive_and_ordered(tmp_path: Path) -> None:
    (row,) = bench([relu(tmp_path)], seconds=0.01)
    assert 0 < row.p10_ms <= row.median_ms <= row.p90_ms
    assert row.speedup == 1.0 and row.runs >= 5


def test_models_of_one_interface_get_the_same_feed(tmp_path: Path, recorder: Recorder) -> None:
    bench([relu(tmp_path, name="a.onnx"), relu(tmp_path, name="b.onnx")], batch_size=7)
    ((one, other),) = recorder.feeds
    assert one["x"].shape == (7, 3)
    np.testing.assert_array_equal(one["x"], other["x"])


def test_models_of_other_interfaces_get_feeds_of_their_own(
    tmp_path: Path, recorder: Recorder
) -> None:
    bench([relu(tmp_path, name="a.onnx"), relu(tmp_path, "5, 3", "b.onnx")], batch_size=2)
    ((one, other),) = recorder.feeds
    assert (one["x"].shape, other["x"].shape) == ((2, 3), (5, 3))


def test_the_seed_chooses_random_inputs(tmp_path: Path, recorder: Recorder) -> None:
    path = relu(tmp_path)
    for seed in (0, 0, 1):
        bench([path], seed=seed)
    one, same, other = (feeds[0]["x"] for feeds in recorder.feeds)
    np.testing.assert_array_equal(one, same)
    assert not np.array_equal(one, other)


def test_the_first_samples_are_fed(tmp_path: Path, recorder: Recorder) -> None:
    x = np.arange(30, dtype=np.float32).reshape(10, 3)
    bench([relu(tmp_path)], data={"x": x}, batch_size=4)
    np.testing.assert_array_equal(recorder.feeds[0][0]["x"], x[:4])


@pytest.mark.parametrize(("shape", "size"), [("N, 3", 16), ("2, 3", 2)])
@pytest.mark.parametrize("has_data", [True, False])
def test_rows_tell_the_batch_that_was_fed(
    tmp_path: Path, recorder: Recorder, shape: str, size: int, has_data: bool
) -> None:
    """Samples are fed over again where there are fewer; a model may leave no choice."""
    data = {"x": np.arange(30, dtype=np.float32).reshape(10, 3)} if has_data else None
    (row,) = bench([relu(tmp_path, shape)], data=data, batch_size=16)
    fed = recorder.feeds[0][0]["x"]
    assert len(fed) == row.batch == size
    if has_data and size > 10:
        np.testing.assert_array_equal(fed[10:], fed[:6])


def test_data_that_can_be_read_only_once_is_read_once(tmp_path: Path, recorder: Recorder) -> None:
    def feeds() -> Iterator[dict[str, np.ndarray]]:
        yield {"x": np.full((1, 3), 7, np.float32)}

    paths = [relu(tmp_path, name="a.onnx"), relu(tmp_path, name="b.onnx")]
    bench(paths, data=feeds())
    fed = [feed["x"] for both in recorder.feeds for feed in both]
    assert len(fed) == 2
    assert all((array == 7).all() for array in fed)


def test_what_the_progress_is_told(tmp_path: Path, recorder: Recorder) -> None:
    told: list[str] = []

    class Listener:
        def stage(self, name: str, total: int | None = None) -> None:
            told.append(name)

        def advance(self, done: int) -> None:
            raise AssertionError("nobody knows how long it takes")

        def finish(self) -> None:
            told.append("finished")

    bench([relu(tmp_path)], progress=Listener())
    assert told == ["measuring latency on cpu", "finished"]


def test_bytes_count_external_data(tmp_path: Path, recorder: Recorder) -> None:
    weights = onnx.numpy_helper.from_array(np.ones((3, 500), np.float32), "w")
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("MatMul", ["x", "w"], ["y"])],
        "g",
        [onnx.helper.make_tensor_value_info("x", 1, ["N", 3])],
        [onnx.helper.make_tensor_value_info("y", 1, ["N", 500])],
        [weights],
    )
    opsets = [onnx.helper.make_opsetid("", 17)]
    proto = onnx.helper.make_model(graph, ir_version=8, opset_imports=opsets)
    path = tmp_path / "m.onnx"
    onnx.save(proto, path, save_as_external_data=True, location="w.bin", size_threshold=0)
    (row,) = bench([path])
    assert row.bytes == path.stat().st_size + 6000


def test_a_model_that_random_inputs_do_not_suit(tmp_path: Path, recorder: Recorder) -> None:
    path = model(
        tmp_path,
        "g (float[2] x, int64[1] i) => (float[1] y) { y = Gather <axis = 0> (x, i) }",
    )
    # One of the seeds draws an index above 1.
    with pytest.raises(InputError, match=r"m\.onnx' cannot be run on random inputs .* --data"):
        for seed in range(10):
            bench([path], seed=seed)
    x, i = np.array([3, 4], np.float32), np.array([9])
    with pytest.raises(InputError, match="onnxruntime cannot run") as refused:
        bench([path], data=[{"x": x, "i": i}])
    assert "random inputs" not in str(refused.value)
    assert bench([path], data=[{"x": x, "i": np.array([1])}])


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        ({"models": ["nowhere.onnx"]}, "nowhere.onnx"),
        ({"providers": ("abacus",)}, "'abacus'"),
        ({"data": {"z": np.zeros((1, 3), np.float32)}}, "'x'"),
    ],
)
def test_refusals(tmp_path: Path, arguments: dict[str, object], part: str) -> None:
    with pytest.raises(InputError, match=part):
        bench(**{"models": [relu(tmp_path)], **arguments})  # type: ignore[arg-type]


def spec(dtype: object, shape: tuple[int | str | None, ...] | None) -> TensorSpec:
    return TensorSpec(
        "x", None if dtype is None else np.dtype(dtype), "tensor(of some type)", shape
    )  # type: ignore[call-overload]


def test_shapes_of_random_inputs() -> None:
    shapes = {
        ("N", 3): (5, 3),
        (None, "time", 2): (5, 16, 2),
        (4, "N"): (4, 16),
        (): (),
        (0, 2): (0, 2),
    }
    for declared, wanted in shapes.items():
        found = random_feeds([spec(np.float32, declared)], batch_size=5)["x"]
        assert found.shape == wanted and found.dtype == np.float32


@pytest.mark.parametrize(
    "dtype", [np.float64, np.float16, ml_dtypes.bfloat16, np.int64, np.uint8, np.int8, np.bool_]
)
def test_types_and_ranges_of_random_inputs(dtype: type) -> None:
    found = random_feeds([spec(dtype, (40, 50))])["x"]
    assert found.dtype == np.dtype(dtype) and found.shape == (40, 50)
    numbers = found.astype(np.float64)
    if np.dtype(dtype).kind in "iu":
        assert set(numbers.ravel()) == set(range(10))
    elif dtype is np.bool_:
        assert 0.45 < numbers.mean() < 0.55
    else:
        assert abs(numbers.mean()) < 0.1 and 0.95 < numbers.std() < 1.05


@pytest.mark.parametrize("bad", [spec(None, (1,)), spec(np.float32, None), spec(object, (1,))])
def test_inputs_without_random_values(bad: TensorSpec) -> None:
    with pytest.raises(InputError, match="no random values for the input x"):
        random_feeds([bad])


@pytest.mark.parametrize("batch", [10**13, 10**25])
def test_inputs_larger_than_the_memory(batch: int) -> None:
    with pytest.raises(InputError, match=f"memory for an input x .*{batch}"):
        random_feeds([spec(np.float32, ("N", 1000))], batch_size=batch)
