"""Whether what would be released is whole, and works where the checkout is not.

Usage: release.py BUILT CONSTRAINTS. BUILT holds an sdist and the wheel made from it, and in its
folder `tree` the wheel made from the checkout. Needs the standard library, and git.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import tempfile
import venv
import zipfile
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LINK = "onnxq/passes"


def _main() -> None:
    built, constraints = Path(sys.argv[1]).resolve(), Path(sys.argv[2]).resolve()
    (sdist,), (wheel,) = built.glob("*.tar.gz"), built.glob("*.whl")
    (of_tree,) = (built / "tree").glob("*.whl")
    tracked = _tracked_files()
    _same("the sdist", tracked - {LINK}, _sources(sdist))
    _same("the wheel", {_installed_name(name) for name in tracked - {LINK}}, _modules(wheel))
    _same(
        "the wheel of the checkout, against that of the sdist,",
        _contents(wheel),
        _contents(of_tree),
    )
    with tempfile.TemporaryDirectory(prefix="onnxq-release-") as folder:
        _try_out(wheel, constraints, Path(folder))


def _tracked_files() -> set[str]:
    listed = subprocess.run(
        ["git", "ls-files", "onnxq", "passes"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return set(listed.stdout.split())


def _installed_name(tracked: str) -> str:
    return f"onnxq/{tracked}" if tracked.startswith("passes/") else tracked


def _sources(sdist: Path) -> set[str]:
    with tarfile.open(sdist) as archive:
        names = {m.name.partition("/")[2] for m in archive.getmembers() if m.isfile()}
    if lacking := {"LICENSE", "README.md", "pyproject.toml"} - names:
        sys.exit(f"the sdist lacks {lacking}")
    return {name for name in names if name.startswith(("onnxq/", "passes/"))}


def _contents(wheel: Path) -> set[tuple[str, int]]:
    with zipfile.ZipFile(wheel) as archive:
        return {(entry.filename, entry.CRC) for entry in archive.infolist()}


def _modules(wheel: Path) -> set[str]:
    return {name for name, _ in _contents(wheel) if ".dist-info/" not in name}


def _same(what: str, expected: Iterable[object], found: Iterable[object]) -> None:
    expected, found = set(expected), set(found)
    if expected != found:
        lacks, extra = expected - found, found - expected
        sys.exit(
            f"{what} lacks {sorted(map(str, lacks))} and has besides {sorted(map(str, extra))}"
        )


def _try_out(wheel: Path, constraints: Path, folder: Path) -> None:
    """Install the wheel into an environment of its own and run the main job there."""
    venv.create(folder / "venv")
    python = folder / "venv" / "bin" / "python"
    # The checkout is not to be found, whatever surrounds this.
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "ONNXQ"))}
    clean["ONNXQ_CACHE"] = str(folder / "cache")

    def run(*command: str | Path) -> str:
        done = subprocess.run(command, cwd=folder, env=clean, stdout=subprocess.PIPE, text=True)
        if done.returncode:
            sys.exit(f"{' '.join(map(str, command))} ended with {done.returncode}:\n{done.stdout}")
        return done.stdout

    pip = (sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-compile")
    run(*pip, "--constraint", constraints, wheel)
    where = run(python, "-c", "import onnxq; print(onnxq.__file__)")
    if not where.startswith(str(folder)):
        sys.exit(f"onnxq was imported from {where}")
    onnxq, models = python.with_name("onnxq"), ROOT / "models"
    job = (models / "digits_resnet.onnx", "--data", models / "digits.npz", "--recipe", "int8")
    print(run(onnxq, "optimize", *job, "-o", "model.int8.onnx", "--report", "report"))
    for made in ("model.int8.onnx", "report/report.html", "report/report.json"):
        if not (folder / made).stat().st_size:
            sys.exit(f"{made} is empty")
    run(onnxq, "targets")
    run(onnxq, "rewrite", "--list")


if __name__ == "__main__":
    _main()
