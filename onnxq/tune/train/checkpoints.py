"""Where training stands, in a folder, so that it can go on after it was broken off."""

from __future__ import annotations

import csv
import io
import pickle
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch

from onnxq.errors import InputError
from onnxq.ir.saving import replacing
from onnxq.saved import write_text
from onnxq.tune.training import EpochFacts

State = dict[str, Any]

_FILE, _LOG = "checkpoint.pt", "training.csv"


class Checkpoints:
    """A folder with the last state and a log of the epochs; without a folder nothing is kept.

    Args:
        folder: Made if need be.
        basis: What a run must have in common with the one whose state is in the folder.

    Raises:
        InputError: the folder cannot be made.
    """

    def __init__(self, folder: Path | None, basis: Mapping[str, str]) -> None:
        self._folder = folder
        self._basis = dict(basis)
        try:
            if folder is not None:
                folder.mkdir(parents=True, exist_ok=True)
                for partial in folder.glob(f".{_FILE}.*"):
                    # What a kill in the middle of writing left behind.
                    partial.unlink()
        except OSError as error:
            raise InputError(
                f"the folder '{folder}' for checkpoints cannot be made: {error.strerror}"
            ) from error

    def load(self) -> State | None:
        """The state to go on from; None where there is none.

        Raises:
            InputError: it cannot be read, or is of another training.
        """
        path = None if self._folder is None else self._folder / _FILE
        if path is None or not path.exists():
            return None
        try:
            state: State = torch.load(path, map_location="cpu", weights_only=True)
            basis = state["basis"]
        except (OSError, RuntimeError, EOFError, KeyError, pickle.UnpicklingError) as error:
            raise InputError(
                f"'{path}' is no checkpoint of a training; remove it to begin anew, or name "
                "another folder"
            ) from error
        for name, wanted in self._basis.items():
            if basis.get(name) != wanted:
                raise InputError(
                    f"the checkpoint in '{self._folder}' is of a training that differs in {name} "
                    f"({basis.get(name)}, not {wanted}); go on with that one, or name another "
                    "folder"
                )
        return state

    def save(self, state: State) -> None:
        """Keep a state instead of the one before, complete or not at all.

        Raises:
            InputError: it cannot be written.
        """
        if self._folder is None:
            return
        with replacing(self._folder / _FILE) as file:
            torch.save({**state, "basis": self._basis}, file)

    def log(self, history: Sequence[EpochFacts]) -> None:
        """Write the epochs as CSV.

        Raises:
            InputError: it cannot be written.
        """
        if self._folder is None:
            return
        text = io.StringIO()
        writer = csv.DictWriter(text, [f.name for f in fields(EpochFacts)], lineterminator="\n")
        writer.writeheader()
        writer.writerows(map(asdict, history))
        write_text(self._folder / _LOG, text.getvalue())
