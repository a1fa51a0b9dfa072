"""A bundle of what `optimize` makes: the ladder, the baseline, and when nothing is written."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from onnxq import optimize
from onnxq.adaptive.bundle import Bundle
from onnxq.adaptive.deployment import Sampled
from onnxq.adaptive.monitor import Monitor
from onnxq.adaptive.scores import KINDS, STREAMS
from onnxq.adaptive.twin import Twin
from onnxq.bundling import Rung, _worth
from onnxq.errors import InputError
from onnxq.ir import Graph, load
from onnxq.runtime import Backend, Session, interleaved
from onnxq.runtime.specs import Array
from tests.verify.reports import a_report

MODELS = Path(__file__).parents[2] / "models"
FAST = {"recipe": "int8", "min_speedup": 0.0, "methods": "none"}


@pytest.fixture(scope="module", autouse=True)
def _short_timing() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Backend, "time", staticmethod(partial(interleaved, rounds=3)))
        yield


@pytest.fixture(scope="module")
def samples() -> dict[str, Array]:
    """Images of digits; the last of the held-out ones is far brighter than all others."""
    with np.load(MODELS / "digits.npz") as file:
        found = {name: file[name][::6] for name in file.files}
    found["split"] = np.arange(len(found["labels"])) % 2
    found["image"][found["split"].nonzero()[0][-1]] *= 40
    return found


@pytest.fixture(scope="module")
def made(samples: dict[str, Array], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    model = MODELS / "digits_resnet.onnx"
    optimize(model, samples, output=folder / "q.onnx", adaptive=folder / "bundle", **FAST)
    return folder


@pytest.fixture(scope="module")
def bundle(made: Path) -> Bundle:
    return Bundle.load(made / "bundle")


def test_the_first_variant_is_the_model_that_was_written(bundle: Bundle, made: Path) -> None:
    assert [v.name for v in bundle.variants] == ["int8", "float"]
    assert bundle.facts.chosen == 0
    assert bundle.model(0).read_bytes() == (made / "q.onnx").read_bytes()
    assert bundle.variants[0].agreement is not None and bundle.variants[0].agreement > 0.9
    assert bundle.variants[1].sqnr_db == math.inf
    assert [d.kind for d in bundle.facts.decisions] == ["classes"]


def test_the_same_data_gives_the_same_bundle(
    bundle: Bundle, samples: dict[str, Array], tmp_path: Path
) -> None:
    optimize(MODELS / "digits_resnet.onnx", samples, adaptive=tmp_path / "again", **FAST)
    again = Bundle.load(tmp_path / "again")
    assert again.baseline == bundle.baseline
    pairs = zip(again.variants, bundle.variants, strict=True)
    assert [replace(v, speedup=w.speedup) for v, w in pairs] == [*bundle.variants]


def test_the_twin_computes_what_the_float_model_does(
    bundle: Bundle, samples: dict[str, Array]
) -> None:
    feeds = {"image": samples["image"][:1]}
    found = Twin(bundle).run(feeds)
    (wanted,) = Session(MODELS / "digits_resnet.onnx").run(feeds).values()
    np.testing.assert_allclose(found.outputs[0], wanted, rtol=1e-4, atol=1e-4)
    # Independently: what onnxruntime gives of the file before the pairs, with all else in float.
    read = {
        node.input(0).name  # type: ignore[union-attr]
        for node in load(bundle.model(0)).nodes()
        if node.is_op("QuantizeLinear") and not node.input(0).is_constant  # type: ignore[union-attr]
    }
    assert set(found.tensors) == read - bundle.facts.unmatched.keys()
    assert np.array_equal(found.tensors["image"], feeds["image"])


def test_the_ranges_are_those_of_the_chosen_variant(bundle: Bundle) -> None:
    pairs = {
        node.input(0).name: node  # type: ignore[union-attr]
        for node in load(bundle.model(0)).nodes()
        if node.is_op("QuantizeLinear")
    }
    for name, tensor in bundle.baseline.tensors.items():
        scale, zero = (pairs[name].input(slot).numpy() for slot in (1, 2))  # type: ignore[union-attr]
        ends = np.array([np.iinfo(zero.dtype).min, np.iinfo(zero.dtype).max], np.float64)
        assert [tensor.low, tensor.high] == pytest.approx((ends - zero) * scale)
        # Of the calibration samples hardly anything lies outside of a range that was made of them.
        assert max(tensor.usual[kind].mean for kind in ("above", "below")) < 1e-4
        assert set(tensor.usual) == set(KINDS)


def test_the_bag_holds_the_scores_of_what_was_held_out(
    bundle: Bundle, samples: dict[str, Array]
) -> None:
    bag, count = bundle.baseline.bag, int(samples["split"].sum())
    assert set(bag) == {*STREAMS, "entropy", "disagreement", "classes"}
    assert {len(scores) for scores in bag.values()} == {count}
    assert bundle.baseline.samples == len(samples["split"]) - count
    assert bag["saturation"][-1] > 10 * max(bag["saturation"][:-1])


@pytest.mark.parametrize(
    "change",
    [lambda image: image * np.float32(2), lambda image: image + np.float32(0.5)],
    ids=["gain", "offset"],
)
def test_another_camera_is_noticed_within_a_few_images(
    bundle: Bundle, change: Callable[[Array], Array]
) -> None:
    with np.load(MODELS / "digits.npz") as file:
        images = file["image"][1::6]
    monitor, twin, served = Monitor(bundle), Twin(bundle), Session(bundle.model(0))

    def is_alarmed(image: Array, at: int) -> bool:
        feeds = {"image": image[None]}
        answer = tuple(served.run(feeds).values())
        monitor.see(Sampled(at, feeds, answer, bundle.deployment), twin.run(feeds), at * 5.0)
        return monitor.verdict().alarm

    assert not any(is_alarmed(image, at) for at, image in enumerate(images[:60]))
    assert any(is_alarmed(change(image), at) for at, image in enumerate(images[60:75], start=60))


def test_nothing_is_written_where_a_promise_broke(
    samples: dict[str, Array], tmp_path: Path
) -> None:
    found = optimize(
        MODELS / "digits_resnet.onnx",
        samples,
        adaptive=tmp_path / "bundle",
        **{**FAST, "min_speedup": 1e6},
    )
    assert not found.passed
    assert not [*tmp_path.iterdir()]


def test_what_lies_in_the_way_is_found_before_long_work(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="something else lies there"):
        optimize("no model", "no data", adaptive=tmp_path / "file")


@pytest.mark.parametrize("taken", ["output", "plan_output"])
def test_a_bundle_and_a_file_cannot_have_one_place(taken: str, tmp_path: Path) -> None:
    place = tmp_path / "q"
    with pytest.raises(InputError, match=r"a bundle and a file both go to .*q'; name another"):
        optimize("no model", "no data", adaptive=place, **{taken: place})


def test_a_cascade_of_the_bundle_is_fitted_to_held_out_samples(
    samples: dict[str, Array], tmp_path: Path
) -> None:
    made = optimize(
        MODELS / "digits_resnet.onnx", samples, adaptive=tmp_path / "b", cascade=0.8, **FAST
    )
    found = Bundle.load(tmp_path / "b").facts.cascade
    assert found is not None
    assert (found.promised, found.variants[0]) == (0.8, 0)
    assert made.report.notes[-1].startswith("Sessions on the bundle answer by 'int8': at least 8")
    assert found.proved >= 0.8 and found.samples == 24


def test_a_cascade_that_cannot_be_is_found_before_long_work(
    samples: dict[str, Array], tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="name its folder by --adaptive"):
        optimize("no model", "no data", cascade=0.9)
    with pytest.raises(InputError, match=r"0\.999 cannot be proved with \d+ samples; give 5990"):
        optimize(
            MODELS / "digits_resnet.onnx", samples, adaptive=tmp_path / "b", cascade=0.999, **FAST
        )
    assert not [*tmp_path.iterdir()]


@pytest.mark.slow
def test_a_search_leaves_a_ladder_and_cifar_in_another_light_is_noticed(
    tmp_path: Path, corpus: Path
) -> None:
    """On images that neither calibration nor the bag saw: 500 as they are, then brighter ones."""
    mean, spread = np.float32([[0.4914, 0.4822, 0.4465], [0.2470, 0.2435, 0.2616]])[
        :, :, None, None
    ]

    def read(part: str) -> Array:
        with np.load(corpus / "data" / f"cifar10_{part}.npz") as file:
            return file["image"].transpose(0, 3, 1, 2).astype(np.float32) / 255

    def fed(pixels: Array) -> Array:
        return ((pixels - mean) / spread).astype(np.float32)

    live = read("eval")
    optimize(
        corpus / "models" / "cifar_resnet20.onnx",
        {"image": fed(read("calib"))},
        adaptive=tmp_path / "bundle",
        eval_data={"image": fed(live[:1000])},
    )
    bundle = Bundle.load(tmp_path / "bundle")
    agreed = [variant.agreement or 0.0 for variant in bundle.variants]
    assert len(bundle.variants) >= 2 and bundle.variants[-1].name == "float"
    assert agreed == sorted(agreed) and not bundle.facts.unmatched
    monitor, twin = Monitor(bundle), Twin(bundle)
    served = Session(bundle.model(bundle.facts.chosen))
    changed = [*live[1000:1500], *(live[1500:1530] * np.float32(1.3))]
    alarms = []
    for at, pixels in enumerate(changed):
        feeds = {"image": fed(pixels[None])}
        answer = tuple(served.run(feeds).values())
        monitor.see(Sampled(at, feeds, answer, bundle.deployment), twin.run(feeds), at * 5.0)
        alarms.append(monitor.verdict().alarm)
    assert alarms.index(True) in range(500, 512)


def test_only_what_is_faster_than_all_that_is_nearer_to_float_is_kept() -> None:
    def rung(name: str, speedup: float, sqnr_db: float) -> tuple[Rung, float, object]:
        report = a_report()
        outputs = (replace(report.outputs[0], sqnr_db=sqnr_db),)
        return Rung(name, Graph(name), Path()), speedup, a_report(outputs=outputs, agreement=None)

    rungs = [
        rung("fast", 3.0, 20.0),
        rung("slower and worse", 1.9, 19.0),
        rung("nearer", 2.0, 30.0),
        rung("as fast, less near", 2.05, 29.0),
        rung("as slow as float", 1.01, 60.0),
    ]

    def names(chosen: Graph) -> list[str]:
        return [rung.name for rung, *_ in _worth(rungs, chosen)]  # type: ignore[arg-type]

    assert names(Graph("float")) == ["fast", "nearer"]
    assert names(rungs[1][0].graph) == ["fast", "nearer", "slower and worse"]
