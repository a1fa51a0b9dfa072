"""Input that `optimize` cannot use: one sentence that names the cause, and nothing written."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper

from tests.cli.conftest import Command
from tests.cli.models import SAMPLES, Case, classifier, images
from tests.helpers import RUNTIME


@pytest.fixture
def refuse(onnxq: Command, case: Case, tmp_path: Path):  # type: ignore[no-untyped-def]
    """Run `optimize`, check that it refuses, and that nothing new lies in the output's folder."""

    def refuse(
        *parts: str,
        model: Path = case.model,
        data: Path | str = case.data,
        out: Path | None = None,
        more: tuple[str | Path, ...] = (),
    ) -> None:
        folder = tmp_path / "out"
        folder.mkdir(exist_ok=True)
        before = sorted(tmp_path.rglob("*"))
        target = folder / "out.onnx" if out is None else out
        given = ("--data", data, "-o", target, "--recipe", "int8", *more)
        onnxq("optimize", model, *given).refused(*parts)
        assert sorted(tmp_path.rglob("*")) == before

    return refuse


def npz(folder: Path, **arrays: object) -> Path:
    path = folder / "samples.npz"
    np.savez(path, **arrays)  # type: ignore[arg-type]
    return path


def changed(place: tuple[int, ...], value: float) -> np.ndarray:
    x = images()
    x[place] = value
    return x


def test_missing_files(refuse, tmp_path: Path) -> None:
    refuse("no.onnx", "does not exist", model=tmp_path / "no.onnx")
    refuse("no.npz", "no such file", data=tmp_path / "no.npz")
    refuse("no_eval", "no such file", more=("--eval", tmp_path / "no_eval"))
    refuse("no.toml", "recipe", more=("--recipe", tmp_path / "no.toml"))


def test_names_that_do_not_exist(refuse) -> None:
    refuse("'int7'", "int8", more=("--recipe", "int7"))
    refuse("'abacus'", "cpu-x64", more=("--target", "abacus"))
    refuse("'beauty'", "accuracy", more=("--metric", "beauty"))
    refuse("no_such_module", data="no_such_module:feeds")


@pytest.mark.parametrize("minutes", ["0", "-1", "nan", "soon"])
def test_no_time_at_all(refuse, minutes: str) -> None:
    refuse("--time-budget", f"'{minutes}' is not a", more=("--time-budget", minutes))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "is empty"),
        (b"\n", "model.onnx"),
        (b"This is a text about a model.", "model.onnx"),
        (b"\x89PNG\r\n\x1a\n" + bytes(200), "model.onnx"),
        (b"PK\x03\x04" + bytes(range(256)), "model.onnx"),
        (bytes(4096), "model.onnx"),
        (b"\xff" * 4096, "model.onnx"),
        ("Modell für Zahlen".encode(), "model.onnx"),
    ],
    ids=["empty", "newline", "text", "png", "zip", "zeros", "ones", "utf-8"],
)
def test_a_file_that_is_no_model(refuse, tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    refuse(str(path), reason, model=path)


def test_a_folder_as_model(refuse, tmp_path: Path) -> None:
    refuse("is a folder", model=tmp_path)


def test_the_data_as_model_and_the_model_as_data(refuse, case: Case) -> None:
    refuse("data.npz", model=case.data)
    refuse("model.onnx", "no .npz file", data=case.model)


@pytest.mark.parametrize("share", [0.001, 0.01, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99, 0.999])
def test_a_truncated_model(refuse, case: Case, tmp_path: Path, share: float) -> None:
    whole = case.model.read_bytes()
    path = tmp_path / "cut.onnx"
    path.write_bytes(whole[: int(len(whole) * share)])
    refuse(str(path), model=path)


@pytest.mark.slow
def test_a_model_cut_off_anywhere_near_its_ends(onnxq: Command, case: Case, tmp_path: Path) -> None:
    """Where a message's field ends the rest still parses, so every byte there is tried."""
    whole = case.model.read_bytes()
    path = tmp_path / "cut.onnx"
    cuts = [*range(0, 40), *range(len(whole) - 40, len(whole))]
    for cut in cuts:
        path.write_bytes(whole[:cut])
        arguments = ("optimize", path, "--data", case.data, "-o", tmp_path / "out.onnx")
        onnxq(*arguments).refused(str(path))
    assert list(tmp_path.iterdir()) == [path]


def test_a_model_with_a_missing_constant(refuse, tmp_path: Path) -> None:
    model = classifier()
    del model.graph.initializer[0]
    path = tmp_path / "model.onnx"
    onnx.save(model, path)
    refuse("'w0'", "'first'", model=path)


def test_a_model_with_a_wrong_shape(refuse, tmp_path: Path) -> None:
    model = classifier()
    del model.graph.initializer[5].dims[:]
    model.graph.initializer[5].dims.extend([5, 9])
    model.graph.initializer[5].raw_data = bytes(5 * 9 * 4)
    path = tmp_path / "model.onnx"
    onnx.save(model, path)
    # Before 1.28 onnxruntime finds out when it runs the model, in a file of our own.
    refuse(str(path) if RUNTIME >= (1, 28) else "Gemm", model=path)


def test_a_model_whose_external_data_is_gone(refuse, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    options = {"save_as_external_data": True, "location": "weights", "size_threshold": 0}
    onnx.save(classifier(), path, **options)
    (tmp_path / "weights").unlink()
    refuse("weights", model=path)


def test_a_model_with_nothing_to_quantize(refuse, tmp_path: Path) -> None:
    inputs = [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["N", 2, 6, 6])]
    outputs = [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["N", 2, 6, 6])]
    graph = helper.make_graph([helper.make_node("Exp", ["x"], ["y"])], "g", inputs, outputs)
    path = tmp_path / "exp.onnx"
    opsets = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, ir_version=8, opset_imports=opsets), path)
    refuse("nothing in the model can be quantized", model=path, data=npz(tmp_path, x=images()))


def test_data_whose_names_do_not_fit(refuse, tmp_path: Path) -> None:
    refuse("'x'", "image", data=npz(tmp_path, image=images()))
    refuse("'mask'", data=npz(tmp_path, x=images(), mask=images()))
    refuse("'x'", data=npz(tmp_path, labels=np.zeros(SAMPLES, np.int64)))


@pytest.mark.parametrize(
    "shape",
    [(SAMPLES, 6, 6, 2), (SAMPLES, 2, 6, 7), (SAMPLES, 2, 6), (SAMPLES,), (), (1, 1, 1, 1, 2, 6)],
    ids=str,
)
def test_data_whose_shape_does_not_fit(refuse, tmp_path: Path, shape: tuple[int, ...]) -> None:
    refuse("'x'", "samples.npz", data=npz(tmp_path, x=np.zeros(shape, np.float32)))


def test_data_whose_type_does_not_fit(refuse, tmp_path: Path) -> None:
    refuse("'x'", data=npz(tmp_path, x=images().astype("U8")))
    refuse("'x'", data=npz(tmp_path, x=images().astype(np.complex64)))
    refuse("pickled", data=npz(tmp_path, x=np.array([{}, None], dtype=object)))


def test_labels_that_do_not_fit(refuse, tmp_path: Path) -> None:
    refuse("labels", data=npz(tmp_path, x=images(), labels=np.zeros(SAMPLES - 1, np.int64)))
    refuse("label", data=npz(tmp_path, x=images(), labels=np.full(SAMPLES, 77)))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [(0, 0, 0, 0), (SAMPLES - 1, 1, 5, 5)])
def test_numbers_that_are_not_finite(
    refuse, tmp_path: Path, value: float, place: tuple[int, ...]
) -> None:
    refuse("'x'", f"holds {value}", "samples.npz", data=npz(tmp_path, x=changed(place, value)))


def test_numbers_too_large_for_the_input(refuse, tmp_path: Path) -> None:
    large = images().astype(np.float64)
    large[1, 1, 1, 1] = 1e300
    refuse("'x'", "too large", data=npz(tmp_path, x=large))


def test_not_finite_held_out_samples(refuse, tmp_path: Path) -> None:
    held_out = npz(tmp_path, x=changed((2, 0, 3, 3), np.nan), labels=np.zeros(SAMPLES, np.int64))
    refuse("'x'", "nan", more=("--eval", held_out))


@pytest.mark.parametrize("command", ["optimize", "compare"])
def test_image_options_without_images(
    onnxq: Command, case: Case, tmp_path: Path, command: str
) -> None:
    rest: tuple[str | Path, ...] = ("-o", tmp_path / "o.onnx", "--eval", case.data)
    arguments = (case.model, *((case.candidate,) if command == "compare" else rest))
    found = onnxq(command, *arguments, "--data", case.data, "--image-mean", "0.5")
    found.refused("--image-mean", "data.npz", "folder of images")
    assert not list(tmp_path.iterdir())


def test_empty_data(refuse, tmp_path: Path) -> None:
    refuse("no samples", data=npz(tmp_path, x=images(0)))
    refuse("'x'", data=npz(tmp_path))
    (tmp_path / "nothing").mkdir()
    refuse("nothing", "holds no", data=tmp_path / "nothing")


def test_a_single_sample_cannot_be_split(refuse, tmp_path: Path) -> None:
    refuse("one sample", data=npz(tmp_path, x=images(1)))


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 0.999])
def test_truncated_data(refuse, case: Case, tmp_path: Path, share: float) -> None:
    whole = case.data.read_bytes()
    path = tmp_path / "cut.npz"
    path.write_bytes(whole[: int(len(whole) * share)])
    refuse(str(path), data=path)


def test_a_bare_array(refuse, tmp_path: Path) -> None:
    path = tmp_path / "bare.npz"
    with path.open("wb") as file:
        np.save(file, images())
    refuse(str(path), data=path)


def test_an_output_in_no_folder(refuse, tmp_path: Path) -> None:
    refuse("'" + str(tmp_path / "no") + "'", out=tmp_path / "no" / "out.onnx")


def test_a_folder_as_output(refuse, tmp_path: Path) -> None:
    refuse(str(tmp_path), "is a folder", out=tmp_path)


def test_an_output_below_a_file(refuse, case: Case) -> None:
    refuse(str(case.model / "out.onnx"), out=case.model / "out.onnx")


@pytest.mark.skipif(
    os.name != "posix" or os.geteuid() == 0, reason="the administrator may write everywhere"
)
def test_an_output_in_a_folder_that_may_not_be_written(refuse, tmp_path: Path) -> None:
    folder = tmp_path / "locked"
    folder.mkdir(mode=0o555)
    refuse("locked", out=folder / "out.onnx")


def test_an_output_that_may_not_be_written(
    refuse, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As above for the administrator: the system refuses to make a file in the folder."""
    import tempfile

    make = tempfile.TemporaryFile

    def locked(*_: object, dir: Path | None = None, **__: object) -> object:
        if dir is not None:
            raise PermissionError(13, "Permission denied", str(dir))
        return make()

    monkeypatch.setattr(tempfile, "TemporaryFile", locked)
    refuse("out.onnx", "Permission denied")


def test_a_disk_that_is_full_at_the_end(
    onnxq: Command, case: Case, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def full(self: Path, target: Path) -> None:
        raise OSError(28, "No space left on device", str(target))

    monkeypatch.setattr(Path, "replace", full)
    out = tmp_path / "out.onnx"
    arguments = ("--data", case.data, "--recipe", "int8", "--min-speedup", "0", "-o", out)
    found = onnxq("optimize", case.model, *arguments)
    assert (found.code, found.out) == (2, "")
    assert found.err.count("\n") == 1 and "No space left on device" in found.err
    assert not list(tmp_path.iterdir())


def test_a_recipe_with_a_mistake(refuse, tmp_path: Path) -> None:
    recipe = tmp_path / "mine.toml"
    for text, part in (
        ("passes = ", "TOML"),
        ("speed = 3", "'speed'"),
        ('calibrator = "dowsing"', "'dowsing'"),
        ('passes = "fold-everything"', "'fold-everything'"),
        ('keep_float = ["no_such_node"]', "'no_such_node'"),
        ("keep_float = 3", "'keep_float'"),
    ):
        recipe.write_text(text)
        refuse(part, more=("--recipe", recipe))
    recipe.write_bytes(b"\xff\xfe\x00")
    refuse("mine.toml", more=("--recipe", recipe))


def test_an_unknown_option_sends_to_the_help_of_the_command(refuse) -> None:
    refuse("--max-dorp", "`onnxq optimize -h`", more=("--max-dorp", "0.1"))
