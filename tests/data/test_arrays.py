"""Arrays and .npz files: conventions of rank and dtype, and refusals by name."""

from __future__ import annotations

import io
import os
import zipfile
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxq.data import Batch, read
from onnxq.data.tensors import conform
from onnxq.errors import InputError
from onnxq.runtime import TensorSpec
from onnxq.runtime.specs import dtype_of


def spec(name: str, onnx_type: str, *shape: int | str | None) -> TensorSpec:
    full = f"tensor({onnx_type})"
    return TensorSpec(name, dtype_of(full), full, shape)


X = spec("x", "float", "N", 3)
FIXED = spec("x", "float", 2, 3)
ONE = spec("x", "float", 1, 3)
SCALAR = spec("rate", "int64")
STATE = spec("state", "float", 2, 1, 4)


def batches(data: Any, *inputs: TensorSpec, **options: Any) -> list[Batch]:
    return list(read(data, inputs, **options).batches())


def refusal(data: Any, *inputs: TensorSpec, **options: Any) -> str:
    with pytest.raises(InputError) as caught:
        list(read(data, inputs, **options).batches())
    text = str(caught.value)
    assert "\n" not in text
    return text


def rows(count: int) -> np.ndarray:
    return np.arange(count * 3, dtype=np.float32).reshape(count, 3)


# --- Ranks ------------------------------------------------------------------------------------


def test_a_dynamic_batch_takes_16_or_what_is_asked() -> None:
    assert [batch.size for batch in batches({"x": rows(40)}, X)] == [16, 16, 8]
    got = batches({"x": rows(5)}, X, batch_size=3)
    assert [(batch.size, batch.valid) for batch in got] == [(3, 3), (2, 2)]
    np.testing.assert_array_equal(np.concatenate([b.feeds["x"] for b in got]), rows(5))


def test_a_fixed_batch_wins_over_the_option() -> None:
    got = batches({"x": rows(5)}, FIXED, batch_size=64)
    assert [(batch.size, batch.valid) for batch in got] == [(2, 2), (2, 2), (2, 1)]


def test_one_fixed_input_decides_for_the_dynamic_ones() -> None:
    got = batches({"x": rows(4), "z": rows(4)}, X, spec("z", "float", 2, 3))
    assert [batch.size for batch in got] == [2, 2]


def test_one_rank_more_means_whole_feeds() -> None:
    data = np.arange(24, dtype=np.float32).reshape(4, 2, 3)
    got = batches({"x": data}, X)
    assert [(batch.size, batch.valid) for batch in got] == [(2, 2)] * 4
    np.testing.assert_array_equal(got[3].feeds["x"], data[3])


def test_scalars_and_states_come_one_feed_at_a_time() -> None:
    state = np.random.default_rng(0).normal(size=(5, 2, 1, 4)).astype(np.float32)
    rate = np.array([8, 16, 8, 16, 8])
    got = batches({"x": rows(5), "state": state, "rate": rate}, ONE, STATE, SCALAR)
    assert len(got) == 5
    for index, batch in enumerate(got):
        np.testing.assert_array_equal(batch.feeds["x"], rows(5)[index : index + 1])
        np.testing.assert_array_equal(batch.feeds["state"], state[index])
        assert batch.feeds["rate"].shape == ()
        assert batch.feeds["rate"] == rate[index]
        assert (batch.size, batch.valid) == (1, 1)


def test_a_single_number_for_a_scalar_goes_to_every_feed() -> None:
    got = batches({"x": rows(3), "rate": np.int64(16000)}, X, SCALAR)
    assert [int(batch.feeds["rate"]) for batch in got] == [16000] * 3
    assert [batch.feeds["x"].shape for batch in got] == [(1, 3)] * 3
    assert len(read({"rate": 5}, [SCALAR])) == 1


def test_different_fixed_first_dimensions_are_cut_each_by_its_own() -> None:
    state = np.arange(24, dtype=np.float32).reshape(6, 1, 4)
    got = batches({"x": rows(3), "state": state}, ONE, STATE)
    assert len(got) == 3
    np.testing.assert_array_equal(got[2].feeds["state"], state[4:])
    assert "no multiple of the 2" in refusal({"x": rows(3), "state": state[:5]}, ONE, STATE)


def test_an_input_of_unknown_rank_has_samples_first() -> None:
    unranked = TensorSpec("x", np.dtype(np.float32), "tensor(float)", None)
    got = batches({"x": rows(5)}, unranked, batch_size=5)
    assert got[0].feeds["x"].shape == (5, 3)
    assert "first axis must be samples" in refusal({"x": 1.0}, unranked)


def test_labels_follow_their_feed() -> None:
    data = np.zeros((4, 2, 3), np.float32)
    (first, *_) = batches({"x": data, "labels": np.arange(8).reshape(4, 2)}, X)
    np.testing.assert_array_equal(first.labels, [0, 1])
    one = batches({"x": data[:, :1], "labels": np.arange(4)}, X)
    np.testing.assert_array_equal([batch.labels for batch in one], [[0], [1], [2], [3]])
    text = batches({"x": data[:, :1], "labels": np.arange(20).reshape(4, 5)}, X)
    np.testing.assert_array_equal(text[1].labels, [[5, 6, 7, 8, 9]])
    assert "each of the 4 feeds holds 2 samples" in refusal({"x": data, "labels": np.arange(4)}, X)


def test_labels_and_split_may_be_inputs_themselves() -> None:
    inputs = [X, spec("labels", "int64", "N"), spec("split", "int64", "N")]
    dataset = read({"x": rows(3), "labels": np.arange(3), "split": np.array([5, 6, 7])}, inputs)
    assert not dataset.has_labels
    (batch,) = dataset.batches()
    np.testing.assert_array_equal(batch.feeds["labels"], [0, 1, 2])
    np.testing.assert_array_equal(batch.feeds["split"], [5, 6, 7])


# --- Dtypes -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "target"),
    [
        (np.array([0, 255], np.uint8), "float"),
        (np.array([0.1, -2.5], np.float64), "float"),
        (np.array([0.1, -2.5], np.float32), "float16"),
        (np.array([0.1, -2.5], np.float32), "bfloat16"),
        (np.array([1.5, -2.5], np.float16), "double"),
        (np.array([-5, 5], np.int32), "int64"),
        (np.array([-5, 5], np.int64), "int32"),
        (np.array([-128, 127], np.int64), "int8"),
        (np.array([2**24, -7], np.int64), "float"),
        (np.array([0, 1], np.uint8), "bool"),
        (np.array([True, False]), "float"),
        (np.array([1.5, -2.5], ">f4"), "float"),
        (np.array([-8, 7], np.int8), "int4"),
        (np.array([1.5, -2.5], ml_dtypes.bfloat16), "float"),
    ],
)
def test_casts_that_keep_the_values(source: np.ndarray, target: str) -> None:
    cast = conform(source, spec("x", target, "N"), "here")
    assert cast.dtype == dtype_of(f"tensor({target})")
    np.testing.assert_array_equal(cast, source.astype(cast.dtype))


@pytest.mark.parametrize(
    ("source", "target", "fragment"),
    [
        (np.array([1.0]), "int64", "is float64, which cannot stand for"),
        (np.array([1j]), "float", "is complex128"),
        (np.array(["a"]), "float", "is string"),
        (np.array([1, 2**31], np.int64), "int32", "values that do not fit"),
        (np.array([-1], np.int8), "uint8", "values that do not fit"),
        (np.array([2**63], np.uint64), "int64", "values that do not fit"),
        (np.array([2**24 + 1], np.int64), "float", "values that do not fit"),
        (np.array([2], np.uint8), "bool", "values that do not fit"),
        (np.array([8], np.int8), "int4", "values that do not fit"),
        (np.array([0.0, 1e300]), "float", "holds 1e+300 in sample 1, which is too large"),
        (np.array([0.0, 1e5], np.float32), "float16", "too large for float16"),
        (np.array([1.0, np.nan]), "float", "holds nan in sample 1"),
        (np.array([[1.0, 1], [1, 1], [1, -np.inf]]), "float", "holds -inf in sample 2"),
        (np.array(np.nan), "float", "holds nan; remove"),
        (np.array([1.0]), "string", "holds no strings"),
        (np.array(["a", 1], object), "string", "holds no strings"),
    ],
)
def test_casts_that_would_not(source: np.ndarray, target: str, fragment: str) -> None:
    with pytest.raises(InputError) as caught:
        conform(source, spec("x", target, "N"), "here")
    assert str(caught.value).startswith("here ")
    assert fragment in str(caught.value)


@given(
    st.sampled_from(["int8", "uint8", "int16", "int32", "uint32", "int64", "uint64", "float"]),
    st.sampled_from(["int8", "uint8", "int16", "int32", "uint32", "int64", "uint64", "bool"]),
    st.lists(st.integers(-(2**63), 2**64 - 1), min_size=1, max_size=5),
)
def test_integers_survive_or_are_refused(target: str, source: str, values: list[int]) -> None:
    dtype = dtype_of(f"tensor({source})")
    assert dtype is not None
    array = np.array([value % 2**64 for value in values], np.uint64).astype(dtype)
    exact = [int(value) for value in array]
    try:
        cast = conform(array, spec("x", target, "N"), "here")
    except InputError:
        wanted = dtype_of(f"tensor({target})")
        assert wanted is not None
        if wanted.kind == "f":
            assert any(int(np.float32(value)) != value for value in exact)
        else:
            limits = np.iinfo(wanted)
            assert any(not limits.min <= value <= limits.max for value in exact)
    else:
        assert [int(value) for value in cast] == exact


def test_strings_become_objects() -> None:
    for source in (np.array(["a", "bc"]), np.array(["a", "bc"], object)):
        (batch,) = batches({"x": source}, spec("x", "string", "N"))
        assert batch.feeds["x"].dtype == object
        assert batch.feeds["x"].tolist() == ["a", "bc"]


def test_no_tensor_no_feed() -> None:
    sequence = TensorSpec("x", None, "seq(tensor(float))", None)
    assert "only tensors can be fed" in refusal({"x": rows(2)}, sequence)


def test_nan_is_found_far_down_in_a_large_array() -> None:
    data = np.zeros((40_000, 128), np.float32)
    data[33_333, 5] = np.nan
    text = refusal({"x": data}, spec("x", "float", "N", 128))
    assert "array 'x' holds nan in sample 33333" in text


# --- Refusals ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "inputs", "fragment"),
    [
        ({"z": rows(2)}, [X], "no array for the model's input 'x'; its arrays are: z"),
        ({}, [X], "its arrays are: none; the model's inputs are: x float32 [N, 3]"),
        ({"x": rows(2), "q": rows(2)}, [X], "array 'q' that is no input"),
        (
            {"x": np.zeros((2, 4))},
            [X],
            "does not fit the model's input x float32 [N, 3]; give samples",
        ),
        ({"x": np.zeros(3)}, [X], "has shape [3]"),
        ({"x": np.zeros((1, 2, 3, 3))}, [X], "has shape [1, 2, 3, 3]"),
        ({"x": np.zeros((4, 3, 3))}, [FIXED], "element of the data: array 'x' has shape [3, 3]"),
        ({"x": np.zeros((2, 2)), "rate": 1}, [FIXED, SCALAR], "has shape [2, 2]"),
        ({"x": rows(0)}, [X], "holds no samples"),
        ({"x": np.zeros((0, 2, 3))}, [X], "holds no samples"),
        ({"x": rows(2), "z": rows(3)}, [X, spec("z", "float", "N", 3)], "x 2, z 3"),
        ({"x": rows(2), "labels": np.zeros(3)}, [X], "'labels' has shape [3], but there are 2"),
        ({"x": rows(2), "labels": 1}, [X], "'labels' has shape []"),
        ({"x": rows(2), "split": np.array([0, 2])}, [X], "'split' must hold one 0"),
        ({"x": rows(2), "split": np.array([0])}, [X], "each of the 2 samples"),
    ],
)
def test_data_that_does_not_fit(
    data: dict[str, Any], inputs: list[TensorSpec], fragment: str
) -> None:
    assert fragment in refusal(data, *inputs)


# --- Files ------------------------------------------------------------------------------------


def test_a_file_is_read_like_a_mapping(tmp_path: Path) -> None:
    path = tmp_path / "d.npz"
    image = np.arange(30, dtype=np.uint8).reshape(10, 3)
    np.savez_compressed(path, x=image, labels=np.arange(10), split=np.array([0, 1] * 5, bool))
    for source in (path, str(path)):
        dataset = read(source, [X], batch_size=4)
        assert dataset.source == f"'{path}'"
        first = next(iter(dataset.batches()))
        assert first.feeds["x"].dtype == np.float32
        np.testing.assert_array_equal(first.feeds["x"], image[:4])
        calibration, _ = dataset.split(0)
        (batch, _) = calibration.batches()
        np.testing.assert_array_equal(batch.labels, [0, 2, 4, 6])
    assert len(read(path, [X], samples=3)) == 3


def test_a_folder_of_files_is_one_sequence(tmp_path: Path) -> None:
    for number, count in ((10, 3), (2, 4), (1, 2)):
        data = {"x": np.full((count, 3), number, np.float32), "labels": np.full(count, number)}
        np.savez(tmp_path / f"part_{number}.npz", **data)
    (tmp_path / "README.md").write_text("other files do not matter")
    dataset = read(tmp_path, [FIXED])
    got = list(dataset.batches())
    assert [batch.labels.tolist() for batch in got if batch.labels is not None] == [
        [1, 1],
        [2, 2],
        [2, 2],
        [10, 10],
        [10, 10],
    ]
    assert [batch.valid for batch in got] == [2, 2, 2, 2, 1]
    assert len(dataset) == 9
    first, second = dataset.split(0)
    assert len(first) + len(second) == 9
    assert sum(batch.valid for batch in first.batches()) == len(first) == 4


def test_a_folder_may_hold_sequences_of_different_length(tmp_path: Path) -> None:
    for length in (5, 7):
        np.savez(tmp_path / f"{length}.npz", x=np.zeros((3, length), np.float32))
    got = batches(tmp_path, spec("x", "float", "N", "T"), batch_size=2)
    assert [b.feeds["x"].shape for b in got] == [(2, 5), (1, 5), (2, 7), (1, 7)]


def test_a_folder_of_whole_feeds(tmp_path: Path) -> None:
    for number in (0, 1):
        np.savez(tmp_path / f"{number}.npz", x=np.full((2, 4, 3), number, np.float32))
    dataset = read(tmp_path, [X])
    assert len(dataset) == 16
    assert [int(batch.feeds["x"][0, 0]) for batch in dataset.batches()] == [0, 0, 1, 1]


def test_files_of_a_folder_must_agree(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=rows(2))
    np.savez(tmp_path / "b.npz", x=rows(2), labels=np.arange(2))
    assert "b.npz" in refusal(tmp_path, X)
    np.savez(tmp_path / "b.npz", x=rows(2)[None])
    assert "same rank" in refusal(tmp_path, X)
    (tmp_path / "b.npz").write_bytes(b"PK\x03\x04 broken")
    assert "b.npz' is damaged" in refusal(tmp_path, X)


def archive(**members: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        for name, content in members.items():
            file.writestr(name.replace("_npy", ".npy"), content)
    return buffer.getvalue()


def test_damaged_files_are_named(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, x=np.random.default_rng(0).normal(size=(50, 3)))
    good = buffer.getvalue()
    bare = io.BytesIO()
    np.save(bare, rows(2))
    flipped = bytearray(good)
    flipped[len(good) // 2] ^= 0xFF
    contents = {
        "text": (b"hello", "is damaged or no .npz"),
        "empty": (b"", "is damaged or no .npz"),
        "half": (good[: len(good) // 2], "is damaged or no .npz"),
        "cut": (good[:-10], "is damaged or no .npz"),
        "flipped": (bytes(flipped), "is damaged or no .npz"),
        "bare": (bare.getvalue(), "one bare array"),
        "header": (archive(x_npy=b"\x93NUMPY\x01\x00\x10\x00{'descr': '<f4' "), "is damaged"),
        "member": (archive(x=b"hello"), "'x' is not an array"),
    }
    for name, (content, fragment) in contents.items():
        path = tmp_path / f"{name}.npz"
        path.write_bytes(content)
        text = refusal(path, X)
        assert str(path) in text
        assert fragment in text, name


def test_a_cut_at_any_place_is_no_crash(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    np.savez(buffer, x=rows(4))
    good = buffer.getvalue()
    path = tmp_path / "d.npz"
    for end in range(0, len(good), 7):
        path.write_bytes(good[:end])
        assert str(path) in refusal(path, X)


def test_pickles_are_refused_and_not_run(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(tmp_path / "boom"),)

    path = tmp_path / "d.npz"
    np.savez(path, x=np.array([Bomb()], object), allow_pickle=True)
    assert "pickled objects" in refusal(path, X)
    assert not (tmp_path / "boom").exists()


def test_paths_that_hold_nothing(tmp_path: Path) -> None:
    assert "no such file or folder" in refusal(tmp_path / "missing.npz", X)
    assert "holds no .npz files" in refusal(tmp_path, X)
