"""Virtual environments for what onnxq does not need itself, and packages by name."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

HERE = Path(__file__).resolve().parent


def make_environment(folder: Path, requirements: Path, *, first: str = "") -> Path:
    """A virtual environment with exact versions; gives its Python.

    ``first`` is installed before all else: of torch there are variants, and what depends on it
    is to be content with the one that the package index prefers.
    """
    python = folder / "bin" / "python"
    done = folder / ".installed"
    wanted = f"{first}\n{requirements.read_text()}"
    if not done.is_file() or done.read_text() != wanted:
        venv.create(folder, with_pip=True)
        if first:
            _pip(python, "install", first)
        _pip(python, "install", "--requirement", str(requirements))
        done.write_text(wanted)
    return python


def download(requirement: str, folder: Path, *, source: bool = False) -> Path:
    """The archive of a package, as ``name==version``, without what it depends on.

    Packages are read as archives and never installed. There is a folder for each, because the name
    of the file does not always begin with that of the package.
    """
    name = requirement.partition("=")[0]
    place = folder / name
    if not place.is_dir() or not any(place.iterdir()):
        form = ("--no-binary", name) if source else ("--only-binary", ":all:")
        where = ("--no-deps", "--dest", str(place))
        _pip(Path(sys.executable), "download", *where, *form, requirement)
    return next(place.iterdir())


def members(archive: Path) -> dict[str, bytes]:
    """What a wheel or source archive holds, by path, sorted."""
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as wheel:
            found = {i.filename: wheel.read(i) for i in wheel.infolist() if not i.is_dir()}
    else:
        with tarfile.open(archive) as source:
            opened = ((m.name, source.extractfile(m)) for m in source if m.isfile())
            found = {name: file.read() for name, file in opened if file is not None}
    return dict(sorted(found.items()))


def _pip(python: Path, *arguments: str) -> None:
    command = [str(python), "-m", "pip", "--quiet", "--disable-pip-version-check", *arguments]
    # Exact versions of the project's own environment do not hold for this one.
    variables = {k: v for k, v in os.environ.items() if k != "PIP_CONSTRAINT"}
    subprocess.run(command, check=True, env=variables)
