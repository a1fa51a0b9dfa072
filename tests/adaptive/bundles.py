"""Small bundles for tests of what reads them."""

from __future__ import annotations

from pathlib import Path

from onnxq.adaptive.baseline import Baseline
from onnxq.adaptive.bundle import Bundle, BundleFacts, Variant
from onnxq.ir import save
from onnxq.verify.facts import file_sha256
from tests.networks import chain


def plain_bundle(folder: Path) -> Bundle:
    """Two models that are not quantized, and nothing that was usual."""
    variants = []
    for name, speedup in (("fast", 2.0), ("float", 1.0)):
        path = folder / f"{name}.onnx"
        save(chain(2, seed=len(variants)), path)
        variants.append(Variant(name, path.name, file_sha256(path), speedup, 30.0, None))
    facts = BundleFacts(tuple(variants), 0, (), (), {}, "onnxruntime", "cpu", 1)
    return Bundle(folder, facts, Baseline(0, {}, {}))
