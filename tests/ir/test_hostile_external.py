"""Models whose data lies where it should not, see test_hostile.py."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from onnx import ModelProto, TensorProto

from tests.ir import hostile_worker
from tests.ir.hostile import (
    EITHER,
    REFUSED,
    TAKEN,
    Case,
    assert_none_wrong,
    attempt,
    graph,
)

SECRET = hostile_worker.SECRET
PLACES: dict[str, tuple[str, dict[str, str]]] = {
    "inside": (TAKEN, {"location": "weights.bin"}),
    "inside a folder": (TAKEN, {"location": "more/weights.bin"}),
    "from a byte on": (TAKEN, {"location": "weights.bin", "offset": "4"}),
    "one folder up": (REFUSED, {"location": "../outside/secret.bin"}),
    "down and up": (REFUSED, {"location": "more/../../outside/secret.bin"}),
    "up and back": (EITHER, {"location": "../model/weights.bin"}),
    "absolute": (REFUSED, {"location": "{outside}/secret.bin"}),
    "symlink to a file": (REFUSED, {"location": "link.bin"}),
    "symlink to a folder": (REFUSED, {"location": "linked/secret.bin"}),
    "symlink to itself": (REFUSED, {"location": "loop.bin"}),
    "a folder": (REFUSED, {"location": "more"}),
    "the folder": (REFUSED, {"location": "."}),
    "nothing": (REFUSED, {"location": ""}),
    "no place": (REFUSED, {"offset": "0"}),
    "not there": (REFUSED, {"location": "lost.bin"}),
    "a name of zero": (REFUSED, {"location": "wei\0ghts.bin"}),
    "a very long name": (REFUSED, {"location": "w" * 5000}),
    "a pipe": (REFUSED, {"location": "pipe"}),
    "beyond the end": (REFUSED, {"location": "weights.bin", "offset": "1000"}),
    "over the end": (REFUSED, {"location": "weights.bin", "offset": "56"}),
    "before the start": (REFUSED, {"location": "weights.bin", "offset": "-4"}),
    "far beyond": (REFUSED, {"location": "weights.bin", "offset": str(1 << 70)}),
    "no number": (REFUSED, {"location": "weights.bin", "offset": "four"}),
    "too short": (REFUSED, {"location": "weights.bin", "length": "3"}),
    "too long": (EITHER, {"location": "weights.bin", "length": str(1 << 50)}),
    "negative length": (REFUSED, {"location": "weights.bin", "length": "-16"}),
}


def _external(entries: dict[str, str], outside: Path) -> ModelProto:
    model = graph("a = Neg(w)  y = Add(x, a)", w=np.ones(5, np.float32))
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in entries.items():
        tensor.external_data.add(key=key, value=value.replace("{outside}", str(outside)))
    return model


@pytest.fixture
def places(tmp_path: Path) -> Path:
    """A model's folder with all kinds of files in it and beside it; gives the folder."""
    folder, outside = tmp_path / "model", tmp_path / "outside"
    (folder / "more").mkdir(parents=True)
    outside.mkdir()
    for path in (folder / "weights.bin", folder / "more" / "weights.bin"):
        path.write_bytes(np.arange(16, dtype=np.float32).tobytes())
    (outside / "secret.bin").write_bytes(SECRET * 4)
    (folder / "link.bin").symlink_to(outside / "secret.bin")
    (folder / "linked").symlink_to(outside)
    (folder / "loop.bin").symlink_to("loop.bin")
    os.mkfifo(folder / "pipe")
    return folder


def test_external_data(places: Path, tmp_path: Path) -> None:
    cases = []
    for name, (_, entries) in PLACES.items():
        path = places / f"{name.replace(' ', '_')}.onnx"
        path.write_bytes(_external(entries, tmp_path / "outside").SerializeToString())
        cases.append(Case(path.stem, path))
    cases.append(Case("attribute", places / "attribute.onnx"))
    cases[-1].path.write_bytes(_external_attribute().SerializeToString())
    found = attempt(cases, tmp_path)
    assert_none_wrong(found)
    for name, (wanted, _) in PLACES.items():
        assert found[name.replace(" ", "_")].startswith(wanted), (name, found)
    assert found["attribute"].startswith(REFUSED)


def _external_attribute() -> ModelProto:
    """Has a constant whose numbers lie outside the model's folder."""
    model = graph("a = Constant<value = float[1] {1}>()  y = Add(x, a)")
    outside = _external(PLACES["one folder up"][1], Path()).graph.initializer[0]
    model.graph.node[0].attribute[0].t.CopyFrom(outside)
    return model
