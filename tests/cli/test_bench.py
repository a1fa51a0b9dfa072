"""``onnxq bench``."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from onnxq.benchmark import BenchRow
from onnxq.cli import main
from onnxq.runtime import Backend, Timing
from tests.cli.conftest import Command
from tests.cli.models import Case, images
from tests.cli.test_optimize import strict_json
from tests.cli.test_terminal import pretend


def test_random_inputs(onnxq: Command, case: Case) -> None:
    found = onnxq("bench", case.model, case.candidate)
    assert (found.code, found.err) == (0, "")
    table = found.out.partition("\n\n")[0]
    assert [line.split()[0] for line in table.splitlines()] == [
        "model",
        case.model.name,
        case.candidate.name,
    ]
    assert [h for h in ("median", "speedup", "size") if h not in found.out] == []
    assert "1.00x" in found.out.replace("\n", " ")


def test_models_of_one_name_are_told_apart_by_their_folders(
    onnxq: Command, case: Case, tmp_path: Path
) -> None:
    other = tmp_path / case.model.name
    other.write_bytes(case.candidate.read_bytes())
    found = onnxq("bench", case.model, other)
    joined = "".join(line.split("  ")[0] for line in found.out.partition("\n\n")[0].splitlines())
    assert joined == f"model{case.model}{other}"


@pytest.mark.parametrize(("speedup", "busy"), [(2.0, False), (3.0, True)])
def test_times_that_contradict_the_ratio_are_explained(
    onnxq: Command, case: Case, monkeypatch: pytest.MonkeyPatch, speedup: float, busy: bool
) -> None:
    def measured(*_: object, **__: object) -> list[Timing]:
        return [Timing(4.0, 1.0, 9.0, 10, 1.0), Timing(2.0, 1.0, 9.0, 10, speedup)]

    monkeypatch.setattr(Backend, "time", measured)
    out = onnxq("bench", case.model, case.candidate).out
    assert f"{speedup:.2f}x" in out
    assert ("machine was busy" in out.splitlines()[-1]) == busy


def test_json(onnxq: Command, case: Case) -> None:
    found = onnxq("bench", case.model, case.candidate, "--json", "-", "--threads", "2")
    body = strict_json(found.out)
    assert {k: body[k] for k in body if k != "rows"} == {"schema": "onnxq/bench/1", "threads": 2}
    rows = body["rows"]
    assert isinstance(rows, list)
    keys = {"model", "provider", "median_ms", "p10_ms", "p90_ms", "speedup", "runs", "bytes"}
    keys |= {"low", "high", "sqnr_db", "batch"}
    assert all(set(row) == keys for row in rows)
    assert [row["model"] for row in rows] == [str(case.model), str(case.candidate)]
    assert [row["bytes"] for row in rows] == [
        case.model.stat().st_size,
        case.candidate.stat().st_size,
    ]
    assert rows[0]["speedup"] == 1.0


def test_data_and_batch_size(onnxq: Command, case: Case, tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    arguments = ("--data", case.data, "--batch-size", "4", "--json", path, "-q")
    found = onnxq("bench", case.model, *arguments)
    assert (found.code, found.out, found.err) == (0, "", "")
    (row,) = strict_json(path.read_text())["rows"]  # type: ignore[attr-defined]
    assert row["batch"] == 4


def test_data_that_does_not_fit(onnxq: Command, case: Case, tmp_path: Path) -> None:
    data = tmp_path / "d.npz"
    np.savez(data, image=images())
    onnxq("bench", case.model, "--data", data).refused("'x'", "image")
    onnxq("bench", case.model, "--data", tmp_path / "no.npz").refused("no.npz")


def test_an_unknown_provider(onnxq: Command, case: Case) -> None:
    onnxq("bench", case.model, "--provider", "[/b]").refused("'[/b]'", "cpu")


def test_too_large_a_batch(onnxq: Command, case: Case) -> None:
    for size in ("1" + "0" * 13, "1" + "0" * 25):
        onnxq("bench", case.model, "--batch-size", size).refused("memory", "x float32", size)


def test_progress_shows_a_provider_as_it_is(
    case: Case, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    terminal = pretend(monkeypatch, "stderr")
    assert main(["bench", str(case.model), "--provider", "[/b]"]) == 2
    assert "measuring latency on [/b]" in terminal.getvalue()
    assert "onnxq: error: provider '[/b]'" in terminal.getvalue()


@pytest.mark.parametrize(("sqnr_db", "code"), [(30.0, 0), (29.9, 1)])
def test_other_outputs_in_a_browser_are_a_failure(
    onnxq: Command, case: Case, monkeypatch: pytest.MonkeyPatch, sqnr_db: float, code: int
) -> None:
    def measured(models: list[str], **options: object) -> list[BenchRow]:
        assert (options["backend"], options["providers"]) == ("onnxruntime-web", ("wasm",))
        return [BenchRow(models[0], "wasm", 4.0, 1.0, 9.0, 1.0, 10, 99, sqnr_db=sqnr_db)]

    monkeypatch.setattr("onnxq.cli.bench.bench", measured)
    found = onnxq("bench", f"{'a' * 23}.onnx", "--web")
    assert found.code == code and f"{sqnr_db} dB" in found.out
    assert found.out.splitlines()[1].startswith(f"{'a' * 23}.onnx ")
    assert (f"'{'a' * 23}.onnx' computes something else" in found.out) == bool(code)


def test_a_browser_has_its_own_provider(onnxq: Command, case: Case) -> None:
    onnxq("bench", case.model, "--web", "--provider", "cpu").refused("--web", "--provider")


def test_what_a_browser_does_not_take(onnxq: Command, case: Case) -> None:
    found = onnxq("bench", "--web", case.model, "--provider-option", "device_type=GPU")
    found.refused("--provider-option")


def test_quotes_that_do_not_close(onnxq: Command, case: Case) -> None:
    onnxq("bench", case.model, "--provider", "cpu{x='1}").refused("cpu{x='1}", "quotes")
