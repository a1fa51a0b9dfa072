"""onnxruntime-web's files, from the npm registry or a folder of the user's."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import os
import shutil
import subprocess
import tarfile
from pathlib import Path

from onnxq.errors import InputError
from onnxq.saved import cache_folder
from onnxq.scratch import scratch_folder

VARIABLE = "ONNXQ_ORT_WEB"
"""Environment variable that names a folder with onnxruntime-web, as npm unpacks it."""

VERSION = "1.30.0"
"""What is fetched where no folder is named."""

_SHA512 = "q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ=="

SCRIPT = "ort.wasm.min.mjs"
FILES = (SCRIPT, "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm")
"""What a page needs of it, on the provider wasm."""

_LONGEST_FETCH = 300.0


def missing_package() -> str:
    """Say what is missing to have the files; empty if they are here or npm can be asked."""
    if os.environ.get(VARIABLE) or _is_complete(_cached()) or shutil.which("npm"):
        return ""
    return (
        "npm, which fetches onnxruntime-web, was not found; install npm, or name a folder with "
        f"the package in {VARIABLE}"
    )


def web_package() -> Path:
    """The folder with the files: the one that ``ONNXQ_ORT_WEB`` names, else one in the cache.

    What the cache lacks is fetched with npm once, in the version and with the sum given here.

    Raises:
        InputError: the named folder lacks a file, or npm cannot fetch the package.
    """
    if own := os.environ.get(VARIABLE):
        for folder in (Path(own), Path(own) / "dist"):
            if _is_complete(folder):
                return folder
        raise InputError(
            f"{VARIABLE} names '{own}', which lacks {FILES[0]} and what it loads; name a folder "
            "with the package onnxruntime-web"
        )
    cached = _cached()
    if not _is_complete(cached):
        _fetch(cached)
    return cached


def _cached() -> Path:
    return cache_folder() / f"onnxruntime-web-{VERSION}"


def _is_complete(folder: Path) -> bool:
    return all((folder / name).is_file() for name in FILES)


def _fetch(folder: Path) -> None:
    if lacking := missing_package():
        raise InputError(lacking)
    with contextlib.ExitStack() as held:
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            made = held.enter_context(scratch_folder(folder.parent))
        except OSError as error:
            raise InputError(
                f"onnxruntime-web cannot be kept in '{folder.parent}' ({error.strerror}); name a "
                "folder that can be written in ONNXQ_CACHE"
            ) from error
        archive = _pack(made)
        unpacked = made / "dist"
        unpacked.mkdir()
        with tarfile.open(archive) as members:
            for file in FILES:
                packed = members.extractfile(f"package/dist/{file}")
                assert packed is not None, "the sum is that of an archive with these files"
                with packed, (unpacked / file).open("wb") as out:
                    shutil.copyfileobj(packed, out)
        # Another process may have been first.
        if not _is_complete(folder):
            shutil.rmtree(folder, ignore_errors=True)
            unpacked.rename(folder)


def _pack(folder: Path) -> Path:
    """Have npm put the package's archive into a folder, and check its sum."""
    wanted = f"onnxruntime-web@{VERSION}"
    otherwise = f"name a folder with the package in {VARIABLE}"
    command = [shutil.which("npm") or "npm", "pack", wanted, "--pack-destination", str(folder)]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_LONGEST_FETCH, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise InputError(f"npm did not fetch {wanted} in time; {otherwise}") from error
    archives = list(folder.glob("*.tgz"))
    if done.returncode or not archives:
        said = [line for line in done.stderr.splitlines() if "code" in line] or ["no answer"]
        raise InputError(f"npm cannot fetch {wanted} ({said[0].strip()}); {otherwise}")
    found = base64.b64encode(hashlib.sha512(archives[0].read_bytes()).digest()).decode()
    if found != _SHA512:
        raise InputError(f"what npm fetched as {wanted} is not that package; {otherwise}")
    return archives[0]
