"""Iterables, readers, functions and ONNX test data: whole feeds in a fixed order."""

from __future__ import annotations

import itertools
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.helper
import pytest

from onnxq.data import Dataset, read
from onnxq.data.functions import load_function
from onnxq.errors import InputError
from onnxq.runtime import TensorSpec
from onnxq.runtime.specs import dtype_of


def spec(name: str, onnx_type: str, *shape: int | str | None) -> TensorSpec:
    full = f"tensor({onnx_type})"
    return TensorSpec(name, dtype_of(full), full, shape)


X = spec("x", "float", "N", 2)


def feed(value: int, count: int = 1) -> dict[str, np.ndarray]:
    return {"x": np.full((count, 2), value, np.float32)}


def values(dataset: Dataset) -> list[int]:
    return [int(batch.feeds["x"][0, 0]) for batch in dataset.batches()]


def refusal(data: Any, *inputs: TensorSpec) -> str:
    with pytest.raises(InputError) as caught:
        list(read(data, inputs or [X]).batches())
    text = str(caught.value)
    assert "\n" not in text
    return text


class Reader:
    """onnxruntime's calibration reader without a way back."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.feeds = iter([feed(value) for value in range(count)])

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self.feeds, None)


class Rewinding(Reader):
    rewinds = 0

    def rewind(self) -> None:
        self.rewinds += 1
        self.feeds = iter([feed(value) for value in range(self.count)])


class Again:
    """An iterable that can be read again, and counts how often it is."""

    passes = 0

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        self.passes += 1
        return iter([feed(value) for value in range(4)])


def test_every_kind_gives_its_feeds_on_every_pass() -> None:
    generator = (feed(value) for value in range(4))
    sources = [[feed(value) for value in range(4)], generator, Again(), Reader(4), Rewinding(4)]
    for source in sources:
        dataset = read(source, [X])
        assert len(dataset) == 4
        assert values(dataset) == values(dataset) == [0, 1, 2, 3]
        first, second = dataset.split(3)
        assert sorted(values(first) + values(second)) == [0, 1, 2, 3]


def test_what_can_be_read_again_is_not_kept() -> None:
    source = Again()
    dataset = read(source, [X])
    values(dataset)
    assert source.passes == 2
    reader = Rewinding(3)
    values(read(reader, [X]))
    assert reader.rewinds == 2


def test_a_generator_may_reuse_its_buffer() -> None:
    def generate() -> Iterator[dict[str, np.ndarray]]:
        buffer = np.zeros((1, 2), np.float32)
        for value in range(3):
            buffer[:] = value
            yield {"x": buffer}

    assert values(read(generate(), [X])) == [0, 1, 2]


def test_an_endless_source_is_read_as_far_as_asked() -> None:
    endless = (feed(value) for value in itertools.count())
    assert values(read(endless, [X], samples=5)) == [0, 1, 2, 3, 4]
    assert next(endless)["x"][0, 0] == 5


def test_values_may_be_lists_and_scalars() -> None:
    inputs = [X, spec("n", "int64"), spec("flag", "bool")]
    (batch,) = read([{"x": [[1, 2]], "n": 7, "flag": True, "labels": 3}], inputs).batches()
    assert batch.feeds["x"].dtype == np.float32
    assert (batch.feeds["n"].shape, int(batch.feeds["n"])) == ((), 7)
    np.testing.assert_array_equal(batch.labels, [3])


def test_a_short_feed_of_a_fixed_batch_is_filled_up() -> None:
    data = [{**feed(1, 4), "labels": np.arange(4)}, {**feed(2, 3), "labels": np.arange(3)}]
    dataset = read(data, [spec("x", "float", 4, 2)])
    _, last = dataset.batches()
    assert (last.valid, last.size, last.feeds["x"].shape) == (3, 4, (4, 2))
    np.testing.assert_array_equal(last.labels, [0, 1, 2, 2])
    assert len(dataset) == 7
    assert "shape [5, 2]" in refusal([feed(0, 5)], spec("x", "float", 4, 2))


def test_labels_tell_the_number_of_samples_where_inputs_do_not() -> None:
    state = spec("state", "float", 2, "N", 3)
    data = [{**feed(0, 5), "state": np.zeros((2, 5, 3), np.float32), "labels": np.zeros(5)}]
    assert len(read(data, [X, state])) == 5
    # One label for a whole sequence of frames.
    assert len(read([{**feed(0, 9), "labels": 1}], [X])) == 1


def test_a_source_that_shuffles_is_refused() -> None:
    class Shuffling:
        def __init__(self) -> None:
            self.random = random.Random(0)

        def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
            return iter([feed(value) for value in self.random.sample(range(20), 20)])

    assert "gives other data on each pass; turn off shuffling" in refusal(Shuffling())


def test_a_source_that_shrinks_is_refused() -> None:
    data = [feed(0), feed(1)]
    dataset = read(data, [X])
    data.pop()
    with pytest.raises(InputError, match="other data on each pass"):
        values(dataset)


def test_string_inputs_are_compared_between_passes_too() -> None:
    dataset = read([{"w": np.array(["a", "b"])}], [spec("w", "string", "N")])
    (batch,) = dataset.batches()
    assert batch.feeds["w"].tolist() == ["a", "b"]


@pytest.mark.parametrize(
    ("data", "fragment"),
    [
        ([], "the data holds no samples"),
        (iter([]), "the data holds no samples"),
        ([feed(0), (1, 2)], "item 1 is a tuple, not a dict"),
        (iter([feed(0), 5]), "item 1 is a int, not a dict"),
        ([feed(0), {}], "item 1 has no array for the model's input 'x'"),
        ([{**feed(0), "q": 1}], "item 0 has an array 'q'"),
        ([{"x": np.zeros(2)}], "item 0, array 'x' has shape [2]"),
        ([{"x": np.zeros((1, 3))}], "has shape [1, 3], which does not fit"),
        ([{"x": np.zeros((0, 2))}], "item 0 holds no samples"),
        ([{"x": np.array([[0, np.inf]])}], "array 'x' holds inf in sample 0"),
        ([{"x": np.array([["a", "b"]])}], "is string"),
        ([{**feed(0, 4), "labels": [1, 2]}], "2 labels for 4 samples"),
        ([{**feed(0), "labels": 1}, feed(1)], "item 1 has other labels"),
        (5, "the data is neither a path, a dict of arrays, an iterable"),
    ],
)
def test_feeds_that_do_not_fit(data: Any, fragment: str) -> None:
    assert fragment in refusal(data)


def test_failures_of_the_users_code_are_told() -> None:
    def failing() -> Iterator[dict[str, np.ndarray]]:
        yield feed(0)
        raise OSError("disk\ngone")

    assert "the data: reading data failed with OSError: disk gone" in refusal(failing())


# --- module:function --------------------------------------------------------------------------


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "my_feeds.py").write_text(
        "import numpy as np\n"
        "def generate():\n"
        "    for value in range(3):\n"
        "        yield {'x': np.full((1, 2), value, np.float32)}\n"
        "def arrays():\n"
        "    return {'x': np.ones((20, 2))}\n"
        "def broken():\n"
        "    raise RuntimeError('no such luck')\n"
        "class Holder:\n"
        "    generate = staticmethod(generate)\n"
        "number = 5\n"
    )
    (tmp_path / "bad_syntax.py").write_text("def :\n")
    (tmp_path / "needs_more.py").write_text("import surely_not_installed\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    for name in ("my_feeds", "bad_syntax", "needs_more"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return tmp_path


@pytest.mark.usefixtures("module")
def test_a_function_in_the_current_folder() -> None:
    dataset = read("my_feeds:generate", [X])
    assert (dataset.source, values(dataset)) == ("'my_feeds:generate'", [0, 1, 2])
    assert values(read("my_feeds:Holder.generate", [X], samples=2)) == [0, 1]
    assert [batch.size for batch in read("my_feeds:arrays", [X]).batches()] == [16, 4]
    assert [b.size for b in read("my_feeds:arrays", [X], batch_size=10).batches()] == [10, 10]


@pytest.mark.usefixtures("module")
@pytest.mark.parametrize(
    ("name", "fragment"),
    [
        ("my_feeds:broken", "calling it failed with RuntimeError: no such luck"),
        ("my_feeds:missing", "has no function 'missing'"),
        ("my_feeds:number", "has no function 'number'"),
        ("nowhere_at_all:f", "there is no module 'nowhere_at_all' in"),
        ("my_feeds.deeper:f", "there is no module"),
        ("needs_more:f", "its module needs 'surely_not_installed', not installed"),
        ("bad_syntax:f", "importing its module failed with SyntaxError"),
        ("no colon here", "no such file or folder"),
    ],
)
def test_functions_that_cannot_be_used(name: str, fragment: str) -> None:
    assert fragment in refusal(name)


@pytest.mark.usefixtures("module")
def test_a_function_gets_no_arguments_and_modules_are_imported_once() -> None:
    assert load_function("my_feeds:generate") is load_function("my_feeds:generate")


# --- ONNX test data ---------------------------------------------------------------------------


def write_set(folder: Path, *arrays: np.ndarray) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for index, array in enumerate(arrays):
        tensor = onnx.numpy_helper.from_array(array)
        (folder / f"input_{index}.pb").write_bytes(tensor.SerializeToString())
    return folder


def test_onnx_test_data_is_matched_by_position(tmp_path: Path) -> None:
    for number in (10, 2, 1):
        folder = write_set(
            tmp_path / f"test_data_set_{number}",
            np.full((1, 2), number, np.float32),
            np.array(number, np.int64),
        )
        (folder / "output_0.pb").write_bytes(b"is not read")
    inputs = [X, spec("n", "int64")]
    dataset = read(tmp_path, inputs)
    assert [int(batch.feeds["n"]) for batch in dataset.batches()] == [1, 2, 10]
    assert values(dataset) == [1, 2, 10]
    (single,) = read(tmp_path / "test_data_set_10", inputs).batches()
    assert single.feeds["n"] == 10
    assert values(read(tmp_path, inputs, samples=2)) == [1, 2]


def test_more_than_ten_inputs_keep_their_order(tmp_path: Path) -> None:
    inputs = [spec(f"n{index}", "int64") for index in range(12)]
    write_set(tmp_path, *(np.array(index) for index in range(12)))
    (batch,) = read(tmp_path, inputs).batches()
    assert [int(value) for value in batch.feeds.values()] == list(range(12))


def test_onnx_test_data_that_does_not_fit(tmp_path: Path) -> None:
    one = write_set(tmp_path / "one", np.zeros((1, 2), np.float32))
    assert "no input_1.pb for the model's input 'n'" in refusal(one, X, spec("n", "int64"))
    two = write_set(tmp_path / "two", np.zeros((1, 2), np.float32), np.zeros(1))
    assert "input_1.pb': the model has only 1 inputs" in refusal(two)
    wide = write_set(tmp_path / "wide", np.zeros((1, 3), np.float32))
    assert "has shape [1, 3]" in refusal(wide)
    sequence = TensorSpec("x", None, "seq(tensor(float))", None)
    assert "only tensors are read" in refusal(one, sequence)
    bad = write_set(tmp_path / "bad", np.zeros((1, 2), np.float32))
    whole = (bad / "input_0.pb").read_bytes()
    for content in (b"hello", b"", whole[:-3]):
        (bad / "input_0.pb").write_bytes(content)
        assert "input_0.pb" in refusal(bad)


def test_onnx_test_data_opens_no_other_file(tmp_path: Path) -> None:
    folder = write_set(tmp_path, np.zeros((1, 2), np.float32))
    tensor = onnx.TensorProto(dims=[1, 2], data_type=onnx.TensorProto.FLOAT)
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="/etc/passwd")
    (folder / "input_0.pb").write_bytes(tensor.SerializeToString())
    assert "refers to another file" in refusal(folder)
