"""A bundle: variants of one model, from the cheapest to float, and what was usual when it was made.

A folder with the models, ``bundle.json`` and ``baseline.json``. Nothing in it ever changes.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from onnxq.adaptive.baseline import Baseline
from onnxq.adaptive.cascade import Cascade
from onnxq.adaptive.deployment import Deployment
from onnxq.errors import InputError
from onnxq.saved import SavedAsJson
from onnxq.verify.decisions import Decision
from onnxq.verify.facts import file_sha256

FACTS, BASELINE = "bundle.json", "baseline.json"
_DATA = ".data"


@dataclass(frozen=True)
class Variant:
    """A model of the ladder.

    Attributes:
        name: What it is, in a few words.
        file: Its file's name in the bundle.
        sha256: Hash of the file.
        speedup: Measured, over the float model of the bundle, which has 1.
        sqnr_db: The worst output's SQNR on held-out samples; infinite for equal outputs.
        agreement: Share of held-out decisions that equal float's; None where nothing is decided.
        data_sha256: Hash of the weights' file, which is called as the model's with ``.data``
            behind it; empty where the weights lie in the model's.
    """

    name: str
    file: str
    sha256: str
    speedup: float
    sqnr_db: float
    agreement: float | None
    data_sha256: str = ""

    def hashes(self) -> dict[str, str]:
        """Hash of each of its files, by name."""
        data = {self.file + _DATA: self.data_sha256} if self.data_sha256 else {}
        return {self.file: self.sha256, **data}


def data_sha256(model: Path) -> str:
    """Hash of the weights beside a model; empty where there are none."""
    data = model.with_name(model.name + _DATA)
    return file_sha256(data) if data.exists() else ""


@dataclass(frozen=True)
class BundleFacts(SavedAsJson):
    """What ``bundle.json`` says.

    Attributes:
        variants: The ladder: the cheapest first, the float model last.
        chosen: Place of the variant that kept its promise, with which a session begins.
        decisions: What the outputs decide; empty for mere numbers.
        tensors: What any variant quantizes and the float model computes, too, in its order.
        unmatched: Why the other tensors that a variant quantizes are not watched, by name.
        backend: What the variants were measured with.
        provider: Execution provider to run on.
        threads: Threads inside one operator.
        baseline_sha256: Hash of ``baseline.json``.
        outputs: Names of the model's outputs in order.
        cascade: Which variants answer each request; None where one answers all.
    """

    schema = "onnxq/bundle/1"
    what = "bundle"
    remedy = "make it again with `onnxq optimize --adaptive`"

    variants: tuple[Variant, ...]
    chosen: int
    decisions: tuple[Decision, ...]
    tensors: tuple[str, ...]
    unmatched: Mapping[str, str]
    backend: str
    provider: str
    threads: int
    baseline_sha256: str = ""
    outputs: tuple[str, ...] = ()
    cascade: Cascade | None = None


@dataclass(frozen=True)
class Bundle:
    """A bundle that was opened.

    Attributes:
        folder: Where it lies.
        facts: What it says of itself.
        baseline: What was usual when it was made.
    """

    folder: Path
    facts: BundleFacts
    baseline: Baseline = field(repr=False)

    @property
    def variants(self) -> tuple[Variant, ...]:
        """The ladder: the cheapest first, the float model last."""
        return self.facts.variants

    @property
    def deployment(self) -> Deployment:
        """What answers before anything was adapted."""
        return Deployment(self.facts.chosen)

    def model(self, variant: int) -> Path:
        """File of a variant, which is as it was when the bundle was made.

        Raises:
            InputError: it is missing, cannot be read, or was changed.
        """
        own = self.variants[variant]
        for name, sha256 in own.hashes().items():
            _check(self.folder / name, sha256)
        return self.folder / own.file

    def save(self, folder: str | os.PathLike[str]) -> Bundle:
        """Write it to another place, complete or not at all; a bundle that lies there is replaced.

        Raises:
            InputError: something else lies there, a model is damaged, or it cannot be written.
        """
        target = Path(folder)
        check_folder(target)
        try:
            # No `scratch_folder`: who was killed while one takes the other's place leaves both
            # bundles in here, where their owner shall find them.
            hidden = tempfile.TemporaryDirectory(
                prefix=f".{target.name}-", dir=target.parent, ignore_cleanup_errors=True
            )
            with hidden as made:
                new, old = Path(made) / "new", Path(made) / "old"
                new.mkdir()
                for place, variant in enumerate(self.variants):
                    self.model(place)
                    for name in variant.hashes():
                        shutil.copyfile(self.folder / name, new / name)
                self.baseline.save(new / BASELINE)
                entries = self.facts.to_dict() | {"baseline_sha256": file_sha256(new / BASELINE)}
                BundleFacts.from_dict(entries).save(new / FACTS)
                try:
                    if target.exists():
                        target.replace(old)
                    new.replace(target)
                except BaseException:
                    if old.exists() and not target.exists():
                        old.replace(target)
                    raise
        except OSError as error:
            raise InputError(f"cannot write the bundle '{target}': {error.strerror}") from error
        return Bundle.load(target)

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> Bundle:
        """Open a bundle; the models are read when they are asked for.

        Raises:
            InputError: a file is missing or damaged.
        """
        place = Path(folder)
        if not place.is_dir():
            raise InputError(f"the bundle '{place}' is no folder; name one that `--adaptive` wrote")
        facts = BundleFacts.load(place / FACTS)
        names = {variant.file for variant in facts.variants}
        if not 0 <= facts.chosen < len(facts.variants) or any(Path(n).name != n for n in names):
            raise InputError(
                f"the bundle '{place}' is damaged: '{FACTS}' names no variant; {facts.remedy}"
            )
        _check(place / BASELINE, facts.baseline_sha256)
        return cls(place, facts, Baseline.load(place / BASELINE))


def check_folder(folder: Path) -> None:
    """Find out before long work whether a bundle could be written.

    Raises:
        InputError: something else lies there, or the folder around it is missing.
    """
    if not folder.absolute().parent.is_dir():
        raise InputError(f"cannot write the bundle '{folder}': the folder around it is missing")
    is_empty = False
    with suppress(OSError):
        is_empty = not any(folder.iterdir())
    if folder.exists() and not is_empty and not (folder / FACTS).is_file():
        raise InputError(
            f"cannot write the bundle '{folder}': something else lies there; name a new folder"
        )


def _check(path: Path, sha256: str) -> None:
    try:
        found = file_sha256(path)
    except OSError as error:
        raise InputError(
            f"the bundle lacks '{path}': {error.strerror}; {BundleFacts.remedy}"
        ) from error
    if found != sha256:
        raise InputError(f"'{path}' is not what the bundle was made with; {BundleFacts.remedy}")
