"""Batches: what a manifest may hold, models that fail alone, and what is not done twice."""

from __future__ import annotations

import json
import os
import re
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onnxq import batching, job
from onnxq.batching import batch, read_manifest
from onnxq.cli import main
from onnxq.errors import InputError, UnreachableError
from onnxq.ir import save
from onnxq.optimization import Optimized, optimize
from onnxq.options import Options
from onnxq.report.summary import to_csv, write_summary
from onnxq.runtime.executor import IN_PROCESS
from tests.networks import chain, computed, inputs

__all__ = ["computed"]

pytestmark = pytest.mark.usefixtures("computed")

CSV = """name,model,data,max_drop,recipe
one,m.onnx,d.npz,0.5,int8
two,m.onnx,d.npz,,
"""


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    graph = chain()
    save(graph, tmp_path / "m.onnx")
    np.savez(tmp_path / "d.npz", **inputs(graph, 16))
    path = tmp_path / "models.toml"
    path.write_text("""
        [defaults]
        recipe = "int8"
        data = "d.npz"
        min_agreement = 0.01
        min_speedup = 0.001
        [[model]]
        model = "m.onnx"
        [[model]]
        model = "gone.onnx"
        [[model]]
        name = "strict"
        model = "m.onnx"
        min_sqnr = 200.0
    """)
    return path


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The models that were optimized, in the order in which they were."""
    done: list[str] = []

    def noted(model: str, *rest: Any, **options: Any) -> Optimized:
        done.append(Path(options["output"]).stem)
        return optimize(model, *rest, **options)

    monkeypatch.setattr(batching, "optimize", noted)
    return done


def test_a_model_fails_alone_and_nothing_is_made_twice(
    manifest: Path, made: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    out = manifest.parent / "out"
    command = ["batch", str(manifest), "-o", str(out), "--json", "-"]
    assert main(command) == 2, "a model cannot be read"
    body = json.loads(capsys.readouterr().out)
    assert body["schema"] == "onnxq/batch/1"
    states = {row["name"]: row["state"] for row in body["models"]}
    assert states == {"m": "kept", "gone": "failed", "strict": "broken"}
    assert "gone.onnx' does not exist" in body["models"][1]["sentence"]
    assert body["models"][2]["gates"] == "sqnr>=200"
    assert {p.name for p in (out / "m").iterdir()} >= {"m.onnx", "plan.toml", "report.html"}
    assert not (out / "strict" / "strict.onnx").exists() and not (out / "m" / "work").exists()
    page = (out / "index.html").read_text()
    assert 'href="m/report.html"' in page and "does not exist" in page
    assert len((out / "summary.csv").read_text().splitlines()) == 4
    assert made == ["m", "gone", "strict"]
    assert main(command) == 2 and made == ["m", "gone", "strict"]
    capsys.readouterr()
    assert main(command[:-2]) == 2
    (row,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("m "))
    assert re.fullmatch(r"m +kept( +[\d.]+x){2} +[\d.]+ m?s", row)
    # What was broken off has no result; what changed is another model.
    (out / "m" / "result.json").unlink()
    manifest.write_text(manifest.read_text().replace("200.0", "1.0"))
    (manifest.parent / "gone.onnx").write_bytes((manifest.parent / "m.onnx").read_bytes())
    assert main(command) == 0
    assert made[3:] == ["m", "gone", "strict"]


def test_a_defect_is_told_of_and_done_again(
    manifest: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("by zero")

    out = manifest.parent / "out"
    with monkeypatch.context() as patched:
        patched.setattr(batching, "optimize", broken)
        assert main(["batch", str(manifest), "-o", str(out), "-q"]) == 70
    assert "by zero" in (out / "m" / "defect.txt").read_text()
    assert batch(manifest, out).results[0].state == "kept"


def test_what_a_model_depends_on_is_more_than_its_file(tmp_path: Path, made: list[str]) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    save(chain(), folder / "m.onnx", external_data=True)
    np.savez(folder / "d.npz", **inputs(chain(), 16))
    table = folder / "t.toml"
    table.write_text('extends = "cpu-x64"\ndescription = "mine"\n')
    (folder / "models.toml").write_text(f"""
        [[model]]
        model = "m.onnx"
        data = "d.npz"
        recipe = "int8"
        target = "{table}"
        min_agreement = 0.01
        min_speedup = 0.001
    """)
    out = tmp_path / "out"
    for times, change in (
        (1, lambda: None),
        (1, lambda: None),
        (2, lambda: save(chain(seed=3), folder / "m.onnx", external_data=True)),
        (3, lambda: table.write_text('extends = "cpu-x64"\ndescription = "other"\n')),
        (4, lambda: os.utime(folder / "m.onnx.data", (1, 1))),
    ):
        change()
        assert [done.state for done in batch(folder / "models.toml", out).results] == ["kept"]
        assert len(made) == times


def test_a_promise_that_breaks_leaves_no_model_of_before(manifest: Path) -> None:
    out = manifest.parent / "out"
    batch(manifest, out)
    manifest.write_text(
        manifest.read_text().replace("min_speedup", "min_sqnr = 300.0\nmin_speedup")
    )
    assert batch(manifest, out).results[0].state == "broken"
    assert not (out / "m" / "m.onnx").exists() and not (out / "m" / "plan.toml").exists()


@pytest.mark.parametrize("error", [MemoryError(), OSError(28, "No space left on device")])
def test_a_model_without_room_fails_alone_and_is_tried_again(
    manifest: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def full(model: str, *rest: Any, **options: Any) -> Optimized:
        if Path(options["output"]).stem == "m":
            raise error
        return optimize(model, *rest, **options)

    out = manifest.parent / "out"
    with monkeypatch.context() as patched:
        patched.setattr(batching, "optimize", full)
        first = batch(manifest, out).results
    assert [done.state for done in first] == ["failed", "failed", "broken"]
    assert "no room" in first[0].sentence
    assert batch(manifest, out).results[0].state == "kept"


def test_what_cannot_be_reached_is_tried_again(
    manifest: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreachable(model: str, *rest: Any, **options: Any) -> Optimized:
        raise UnreachableError("cannot read 's3://bucket/d.npz': it is away")

    out = manifest.parent / "out"
    with monkeypatch.context() as patched:
        patched.setattr(batching, "optimize", unreachable)
        assert batch(manifest, out).results[0].sentence.endswith("it is away")
    assert batch(manifest, out).results[0].state == "kept"


def test_recipes_and_targets_lie_beside_the_manifest(tmp_path: Path) -> None:
    path = tmp_path / "models.csv"
    path.write_text("model,data,recipe,target\nm.onnx,d.npz,mine.toml,cpu-x64\n")
    (one,) = read_manifest(path)
    assert (one.recipe, one.target) == (str(tmp_path / "mine.toml"), "cpu-x64")


def test_a_worker_takes_part_of_its_memory_for_itself(
    manifest: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits = []
    monkeypatch.setattr("onnxq.runtime.pool._most", 1)
    for workers in (None, 2):
        options = Options(recipe="int8", memory_limit=1 << 30, workers=workers)
        monkeypatch.setattr(job, "_executor", lambda *_: nullcontext(IN_PROCESS))
        with job.open_job(manifest.parent / "m.onnx", manifest.parent / "d.npz", options) as own:
            limits.append(own.options.memory_limit)
    assert limits[0] == limits[1] and limits[0] is not None and limits[0] < 1 << 30


def test_a_table_is_a_manifest(tmp_path: Path) -> None:
    path = tmp_path / "models.csv"
    path.write_text(CSV)
    one, two = read_manifest(path)
    assert (one.name, one.max_drop, one.recipe) == ("one", 0.5, "int8")
    assert (two.max_drop, two.recipe, two.model) == (None, None, str(tmp_path / "m.onnx"))


@pytest.mark.parametrize("row", ["m.onnx", "m.onnx,d.npz,int8"])
def test_a_row_with_a_cell_too_few_or_too_many_is_told(row: str, tmp_path: Path) -> None:
    path = tmp_path / "models.csv"
    path.write_text(f"model,data\nm.onnx,d.npz\n{row}\n")
    with pytest.raises(InputError, match=r"model 2 of .* more or fewer cells than the first row"):
        read_manifest(path)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "names no models"),
        ("models = 1", "unknown entry 'models'"),
        ("[[model]]\nmodel = 'a'", "lacks the entry 'data'"),
        ("[[model]]\nmodel = 'a'\ndata = 'b'\nrecip = 'int8'", "unknown entry 'recip'"),
        ("[[model]]\nmodel = 'a'\ndata = 'b'\nmax_drop = 'x'", "'max_drop' .* takes .*number"),
        ("[[model]]\nmodel = 'a'\ndata = 'b'\nname = '../c'", "'../c', which is no folder's"),
        ("[[model]]\nmodel = 'a'\ndata = 'b'\nname = '.spread'", "'.spread', which is no folder's"),
        ("[[model]]\nmodel = 'a'\ndata = 'b'\n" * 2, "several models 'a'"),
    ],
)
def test_a_wrong_manifest_is_told_in_a_sentence(text: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "models.toml"
    path.write_text(text)
    with pytest.raises(InputError, match=said):
        read_manifest(path)


def test_figures_of_the_page_read_as_those_of_reports(tmp_path: Path) -> None:
    measured = {"speedup": 2.0, "size_ratio": 3.5, "sqnr_db": 31.2, "metric": "accuracy"}
    row = {"name": "m", "state": "kept", "sentence": "", "gates": "", "seconds": 6.11378}
    write_summary([{**row, **measured, "float_value": 1.0, "value": 0.995}], tmp_path)
    page = (tmp_path / "index.html").read_text("utf-8")
    cells = re.findall(r'<td class="number">(.*?)</td>', page)
    assert cells == ["2.00×", "3.50×", "31.2 dB", "100.00 %", "99.50 %", "6.11 s"]
    assert "1 kept its promise." in page


def test_no_text_of_the_table_is_a_formula() -> None:
    row = {"name": "=1+1", "model": "a\x1b[31m.onnx", "sentence": "-2", "drop": -0.5}
    text = to_csv([row])
    assert text == "name,model,sentence,drop\n'=1+1,a\\x1b[31m.onnx,'-2,-0.5\n"
