"""onnxruntime-web in a browser: what is missing for it, its package, and models in it."""

from __future__ import annotations

import importlib
import subprocess
import tarfile
from pathlib import Path

import pytest

from onnxq import optimize
from onnxq.benchmark import bench
from onnxq.errors import InputError
from onnxq.runtime import load_backend
from onnxq.runtime.browser import find_browser, missing_browser
from onnxq.runtime.web_package import FILES, web_package

MODELS = Path(__file__).parents[2] / "models"
PACKAGE = importlib.import_module("onnxq.runtime.web_package")


@pytest.fixture
def executable(tmp_path: Path) -> Path:
    path = tmp_path / "chromium"
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    return path


def test_the_browser_is_the_named_one_else_one_on_the_path(
    executable: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("ONNXQ_CHROMIUM", raising=False)
    monkeypatch.setenv("PATH", str(executable.parent))
    assert find_browser() == executable
    monkeypatch.setenv("ONNXQ_CHROMIUM", "/nowhere/chrome")
    assert find_browser() is None
    monkeypatch.setenv("PATH", "")
    monkeypatch.setenv("ONNXQ_CHROMIUM", str(executable))
    assert find_browser() == executable


def test_what_is_missing_is_told_with_what_to_do(
    executable: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "pip install 'onnxq[web]'" in missing_browser()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: "found")
    monkeypatch.setenv("ONNXQ_CHROMIUM", "/nowhere/chrome")
    assert "'/nowhere/chrome', which is no executable" in missing_browser()
    monkeypatch.delenv("ONNXQ_CHROMIUM")
    monkeypatch.setenv("PATH", "")
    assert "install the package chromium" in missing_browser()
    runs = load_backend("onnxruntime-web")
    assert "install the package chromium" in runs.missing("wasm")
    assert "'webgpu'" in runs.missing("webgpu")
    monkeypatch.setenv("ONNXQ_CHROMIUM", str(executable))
    assert "install npm" in runs.missing("wasm")
    with pytest.raises(InputError, match="install npm"):
        runs.session(MODELS / "digits_resnet.onnx", provider="wasm")


def packed(folder: Path) -> None:
    """What `npm pack` leaves, of another package."""
    archive = folder / "onnxruntime-web.tgz"
    with tarfile.open(archive, "w:gz") as members:
        for name in FILES:
            members.add(__file__, f"package/dist/{name}")


def test_a_fetched_package_is_that_of_the_sum_and_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def npm(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        asked.append(command[1:3])
        packed(Path(command[-1]))
        return subprocess.CompletedProcess(command, 0, "", "")

    asked: list[list[str]] = []
    monkeypatch.delenv("ONNXQ_ORT_WEB", raising=False)
    monkeypatch.setenv("ONNXQ_CACHE", str(tmp_path))
    monkeypatch.setattr(PACKAGE.shutil, "which", lambda name: name)
    monkeypatch.setattr(PACKAGE.subprocess, "run", npm)
    with pytest.raises(InputError, match="is not that package"):
        web_package()
    assert not list(tmp_path.iterdir())
    # Archives differ by their times: any sum is taken.
    monkeypatch.setattr(PACKAGE.base64, "b64encode", lambda _: PACKAGE._SHA512.encode())
    folder = web_package()
    assert sorted(path.name for path in folder.iterdir()) == sorted(FILES)
    assert folder == web_package() and asked == [["pack", "onnxruntime-web@1.30.0"]] * 2


def test_a_cache_that_cannot_be_written_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.delenv("ONNXQ_ORT_WEB", raising=False)
    monkeypatch.setenv("ONNXQ_CACHE", str(tmp_path / "file" / "x"))
    monkeypatch.setattr(PACKAGE.shutil, "which", lambda name: name)
    with pytest.raises(InputError, match=r"cannot be kept in .*Not a directory.*ONNXQ_CACHE"):
        web_package()


def test_npm_that_fails_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ONNXQ_ORT_WEB", raising=False)
    monkeypatch.setenv("ONNXQ_CACHE", str(tmp_path))
    monkeypatch.setattr(PACKAGE.shutil, "which", lambda name: name)
    failed = subprocess.CompletedProcess([], 1, "", "npm error code ENOTFOUND\nnpm error more")
    monkeypatch.setattr(PACKAGE.subprocess, "run", lambda *_, **__: failed)
    with pytest.raises(InputError, match=r"\(npm error code ENOTFOUND\); name a folder .*ORT_WEB"):
        web_package()


def test_a_package_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONNXQ_ORT_WEB", str(tmp_path))
    with pytest.raises(InputError, match=r"lacks ort\.wasm\.min\.mjs"):
        web_package()
    dist = tmp_path / "dist"
    dist.mkdir()
    for name in FILES:
        (dist / name).touch()
    assert web_package() == dist


@pytest.mark.slow
def test_models_run_in_a_browser(tmp_path: Path) -> None:
    if lacking := load_backend("onnxruntime-web").missing("wasm"):
        pytest.skip(lacking)
    try:
        web_package()
    except InputError as error:
        pytest.skip(str(error))
    model, data = MODELS / "digits_resnet.onnx", MODELS / "digits.npz"
    candidate = tmp_path / "candidate.onnx"
    optimize(model, data, output=candidate, recipe="int8", min_speedup=0.0)
    options = {"backend": "onnxruntime-web", "providers": ("wasm",), "data": data}
    float_row, row = bench([model, candidate], seconds=1.0, **options)  # type: ignore[arg-type]
    assert float_row.sqnr_db is not None and float_row.sqnr_db > 100
    assert row.sqnr_db is not None and row.sqnr_db > 60
    assert (float_row.provider, float_row.speedup) == ("wasm", 1.0) and row.runs >= 5
