"""What the comparison on real models counts, and what it hands to other quantizers."""

from __future__ import annotations

import tarfile
import zipfile
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest
from candidates import Made
from cases import Case, readied
from decoder import VOCABULARY, build
from real.environment import members
from real_models import Entry, advantage

from onnxq.runtime import Session


def _entry(speed: float, sqnr_db: float, problem: str = "", broken: str = "") -> Entry:
    made = Made(problem=problem, broken=broken)
    return Entry("any", Path("any.onnx"), made, speed, sqnr_db, problem=problem)


@pytest.mark.parametrize(
    ("ours", "peers", "wanted"),
    [
        (_entry(3.0, 20.0), [], 3.0),
        (_entry(3.0, 20.0), [_entry(0.5, 40.0)], 3.0),
        (_entry(3.0, 20.0), [_entry(2.0, 19.9), _entry(1.5, 40.0)], 1.5),
        (_entry(3.0, 20.0), [_entry(6.0, 15.0)], 3.0),
        (_entry(3.0, 20.0), [_entry(6.0, 25.0, "does not load")], 3.0),
        (_entry(0.0, -np.inf, "took too long"), [_entry(2.0, 20.0)], 0.5),
        (_entry(3.0, 20.0, broken="sqnr>=25"), [_entry(2.0, 20.0)], 0.5),
    ],
)
def test_advantage_is_over_float_and_what_is_as_accurate(
    ours: Entry, peers: list[Entry], wanted: float
) -> None:
    assert advantage([ours, *peers], ours.sqnr_db - 0.5) == pytest.approx(wanted)


def test_useless_models_count_nowhere() -> None:
    peers = [_entry(6.0, 9.9), _entry(2.0, 12.0)]
    assert advantage([_entry(3.0, 20.0), *peers], -np.inf) == pytest.approx(1.5)


def test_other_quantizers_get_constants_and_an_opset_with_channels(tmp_path: Path) -> None:
    text = """
        <ir_version: 4, opset_import: ["" : 9]>
        model (float[1, 3] x, float[3, 2] w = {1.0, 2.0, 3.0, 4.0, 5.0, 6.0}) => (float[1, 2] y)
        { y = MatMul(x, w) }
    """
    path = tmp_path / "model.onnx"
    onnx.save(onnx.parser.parse_model(text), path)
    made = readied(Case("any", path, {}), tmp_path / "out.onnx")
    model = onnx.load(made.model)
    assert [value.name for value in model.graph.input] == ["x"]
    assert model.opset_import[0].version == 13
    feeds = {"x": np.ones((1, 3), np.float32)}
    assert np.array_equal(Session(path).run(feeds)["y"], Session(made.model).run(feeds)["y"])


def test_a_model_that_is_ready_stays(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    text = '<ir_version: 8, opset_import: ["" : 17]> m (float[1] x) => (float[1] y) { y = Relu(x) }'
    onnx.save(onnx.parser.parse_model(text), path)
    case = Case("any", path, {})
    assert readied(case, tmp_path / "out.onnx") is case


def test_members_of_both_kinds_of_archives(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"content")
    with zipfile.ZipFile(tmp_path / "any-1.whl", "w") as wheel:
        wheel.write(tmp_path / "file", "any/file")
    with tarfile.open(tmp_path / "any-1.tar.gz", "w:gz") as source:
        source.add(tmp_path / "file", "any/file")
    for name in ("any-1.whl", "any-1.tar.gz"):
        assert members(tmp_path / name) == {"any/file": b"content"}


def test_the_decoder_has_its_size_and_looks_back_only(tmp_path: Path) -> None:
    path = tmp_path / "decoder.onnx"
    build(path, 80_000_000, 256)
    written = path.with_name(path.name + ".data").stat().st_size
    assert written == pytest.approx(80_000_000, rel=0.05)
    session = Session(path)
    tokens = np.random.default_rng(0).integers(0, VOCABULARY, (1, 12))
    whole, part = (
        next(iter(session.run({"input_ids": t}).values())) for t in (tokens, tokens[:, :7])
    )
    np.testing.assert_allclose(whole[:, :7], part, atol=1e-4)
    assert whole.std() == pytest.approx(1.0, rel=0.1)
