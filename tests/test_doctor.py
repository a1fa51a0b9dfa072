from __future__ import annotations

import importlib.metadata
from dataclasses import replace

import numpy as np
import pytest

from onnxq import doctor
from onnxq.errors import InputError
from onnxq.runtime import load_backend
from onnxq.runtime.onnxruntime import Onnxruntime


class Shifted:
    """A session whose first output's last number is off."""

    def __init__(self, session, by: float) -> None:  # type: ignore[no-untyped-def]
        self._session, self._by = session, by

    def run(self, feeds):  # type: ignore[no-untyped-def]
        outputs = dict(self._session.run(feeds))
        outputs["y"] = outputs["y"].copy()
        outputs["y"].flat[-1] += self._by
        return outputs


class Faulty(Onnxruntime):
    """Computes wrong numbers."""

    by = 0.25

    def session(self, model, **options):  # type: ignore[no-untyped-def,override]
        return Shifted(super().session(model, **options), self.by)


class Refusing(Onnxruntime):
    """Loads no quantized model."""

    def session(self, model, **options):  # type: ignore[no-untyped-def,override]
        if any(node.op_type == "QuantizeLinear" for node in model.graph.node):
            raise InputError("no kernel")
        return super().session(model, **options)


def test_both_models_are_exact_on_the_cpu() -> None:
    found = doctor.check_provider(load_backend("onnxruntime"), "cpu")
    assert found == doctor.ProviderCheck("cpu", 0.0, 0.0, "")


def test_the_int8_model_is_computed_on_integers() -> None:
    backend = load_backend("onnxruntime")
    model = doctor.to_proto(doctor.Graph.from_text(doctor._MODELS["int8"]))
    assert backend.integer_operators & set(backend.operators(model))


@pytest.mark.parametrize("by", [0.25, np.nan])
def test_wrong_numbers_are_found(by: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Faulty, "by", by)
    found = doctor.check_provider(Faulty(), "cpu")
    assert "float is wrong" in found.reason and "int8 is wrong" in found.reason
    assert found.float_error == pytest.approx(by, nan_ok=True)


def test_what_does_not_run_is_no_result() -> None:
    found = doctor.check_provider(Refusing(), "cpu")
    assert (found.float_error, found.int8_error) == (0.0, None)
    assert found.reason == "int8 does not run: no kernel"


def test_a_missing_extra_says_what_it_brings_and_how(monkeypatch: pytest.MonkeyPatch) -> None:
    without(monkeypatch, "torch")
    found = doctor.examine()
    (missing,) = (m for m in found.missing if m.how == 'pip install "onnxq[train]"')
    assert "torch" in missing.what and missing.brings == doctor.BRINGS["train"]
    assert found.works, "an extra is no part of the core"


def test_the_core_needs_its_packages_and_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    without(monkeypatch, "scipy")
    found = doctor.examine()
    assert not found.works
    assert 'pip install "onnxq"' in [m.how for m in found.missing if "scipy" in m.what]
    whole = replace(found, packages=())
    assert whole.works
    assert not replace(whole, providers=(doctor.ProviderCheck("cpu", 1.0, 0.0, "wrong"),)).works
    assert not replace(whole, providers=()).works


def test_another_package_may_bring_onnxruntime(monkeypatch: pytest.MonkeyPatch) -> None:
    without(monkeypatch, "onnxruntime")
    found = doctor.examine()
    (package,) = (p for p in found.packages if p.name == "onnxruntime")
    assert package.version == found.onnxruntime
    assert found.works


def test_every_extra_has_a_purpose() -> None:
    extras = importlib.metadata.metadata("onnxq").get_all("Provides-Extra") or []
    assert {*extras} <= {*doctor.BRINGS}


def without(monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    version = importlib.metadata.version

    def hidden(name: str) -> str:
        if name == missing:
            raise importlib.metadata.PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(importlib.metadata, "version", hidden)


def test_a_package_that_is_too_old_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    version = importlib.metadata.version
    monkeypatch.setattr(
        importlib.metadata, "version", lambda name: "1.9" if name == "scipy" else version(name)
    )
    found = doctor.examine()
    assert not found.works
    assert "scipy>=1.15 (has 1.9)" in [m.what for m in found.missing]


@pytest.mark.parametrize(
    ("required", "version", "is_there"),
    [
        (">=2.1", "2.1.0", True),
        (">=2.1", "2.10", True),
        (">=2.1.0", "2.1", True),
        (">=9", "10.0rc1", True),
        (">=2.1", "2.0.9", False),
        ("", "0.1", True),
        (">=1.24", "1.24.1 (onnxruntime-openvino)", True),
        (">=1", "", False),
    ],
)
def test_versions_that_are_enough(required: str, version: str, is_there: bool) -> None:
    assert doctor.PackageFacts("p", required, "", version).is_there == is_there
