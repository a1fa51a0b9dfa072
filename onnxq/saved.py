"""Results that round-trip through a file, and the text files they lie in."""

from __future__ import annotations

import json
import os
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, ClassVar, Self

from onnxq.errors import InputError
from onnxq.ir.saving import replacing
from onnxq.plain import finite, read, to_plain


class Saved:
    """A dataclass that a user can write to a file, look at, edit and use again.

    Attributes:
        schema: Name and version of the file's form.
        what: What messages call it.
        remedy: What to do about a file that is wrong.
    """

    schema: ClassVar[str]
    what: ClassVar[str]
    remedy: ClassVar[str]

    def to_dict(self) -> dict[str, Any]:
        """The file's entries."""
        return {"schema": self.schema, **to_plain(self)}

    @classmethod
    def from_dict(cls, body: Any, where: str = "") -> Self:
        """Read a file's entries; ``where`` names it in messages.

        Raises:
            InputError: an entry is unknown, missing or wrong.
        """
        where = where or f"the {cls.what}"
        try:
            entries: dict[str, Any] = read(dict[str, Any], body, where)
            found = entries.pop("schema", None)
            if found != cls.schema:
                raise InputError(f"{where} has schema '{found}', not '{cls.schema}'")
            return cls._read(entries, where)
        except InputError as error:
            raise InputError(f"{error}; {cls.remedy}") from error

    @classmethod
    def _read(cls, entries: dict[str, Any], where: str) -> Self:
        found: Self = read(cls, entries, where)
        return found


class SavedAsJson(Saved):
    """One whose file is JSON, in which infinite numbers and NaN are texts."""

    def to_dict(self) -> dict[str, Any]:
        """The file's entries."""
        body: dict[str, Any] = finite(super().to_dict())
        return body

    def to_json(self) -> str:
        """The file's text; the same result gives the same text."""
        return json.dumps(self.to_dict(), indent=1, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str, where: str = "") -> Self:
        """Read the file's text; ``where`` names it in messages.

        Raises:
            InputError: it is no JSON, or an entry is unknown, missing or wrong.
        """
        try:
            body = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise InputError(
                f"{where or f'the {cls.what}'} is not valid JSON: {error}; {cls.remedy}"
            ) from error
        return cls.from_dict(body, where)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the file, complete or not at all.

        Raises:
            InputError: it cannot be written.
        """
        write_text(path, self.to_json())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read a file.

        Raises:
            InputError: it cannot be read, or see `from_json`.
        """
        return cls.from_json(read_text(path, f"the {cls.what}"), f"the {cls.what} '{path}'")


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write a file in UTF-8, complete or not at all.

    Raises:
        InputError: it cannot be written.
    """
    with replacing(Path(path)) as file:
        file.write(text.encode())


def read_text(path: str | os.PathLike[str], what: str) -> str:
    """Read a file in UTF-8; ``what`` says in messages what it is to hold, as ``the plan``.

    Raises:
        InputError: it is missing, cannot be read or holds no text.
    """
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no text"
        raise InputError(f"cannot read {what} '{path}': {reason}") from error


@cache
def built_in(package: str) -> tuple[str, ...]:
    """Names of the TOML files that come with onnxq in one of its packages."""
    names = (entry.name for entry in files(package).iterdir())
    return tuple(sorted(n.removesuffix(".toml") for n in names if n.endswith(".toml")))


def toml_text(name: str, package: str, what: str) -> str:
    """The text of a built-in TOML file by name, or of the user's own by path.

    Raises:
        InputError: the file cannot be read.
    """
    if name in built_in(package):
        return (files(package) / f"{name}.toml").read_text(encoding="utf-8")
    return read_text(name, what)


def cache_folder() -> Path:
    """What is kept for all runs: in ``$ONNXQ_CACHE``, or the user's cache folder."""
    if own := os.environ.get("ONNXQ_CACHE"):
        return Path(own)
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return Path(base) / "onnxq"
