"""What is installed, and what works here."""

from __future__ import annotations

import importlib.metadata
import platform
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import onnxruntime as ort

from onnxq.cost.cache import machine
from onnxq.errors import InputError
from onnxq.ir import Graph, to_proto
from onnxq.runtime import Backend, available_providers, load_backend
from onnxq.runtime.browser import find_browser, missing_browser
from onnxq.runtime.pool import machine_memory, processors
from onnxq.runtime.providers import provider_alias
from onnxq.runtime.specs import Array
from onnxq.runtime.web_package import missing_package
from onnxq.targets import load_target, processor_flags

BRINGS = {
    "cluster": "workers on other machines (--scheduler), data at addresses (s3://...)",
    "docs": "making the documentation",
    "gguf": "GGUF files (onnxq gguf)",
    "images": "folders of images as data",
    "lint": "checking onnxq's own code",
    "models": "making the example models",
    "serve": "serving a model over HTTP",
    "test": "onnxq's own tests",
    "train": "training by distillation (onnxq train), methods with gradients",
    "web": "latency in a browser (onnxq bench --web)",
}
"""What each extra is for."""

_FEATURES = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8")
"""What onnxruntime's int8 kernels for x64 use, as Linux calls it."""

_REQUIREMENT = re.compile(r"""([\w.-]+)\s*([^;]*?)\s*(?:;.*\bextra\s*==\s*['"]([\w.-]+)['"].*)?""")

# Every number is exact in both models and in half precision, so that they have equal results.
_STEP = 0.125
_INPUT = np.arange(-8, 8, dtype=np.float32).reshape(2, 8) * _STEP
_WEIGHT = ((np.arange(32).reshape(8, 4) * 5) % 16 - 8).astype(np.float32) * _STEP
_EXPECTED = np.maximum(_INPUT @ _WEIGHT, 0)
_OUTPUT_STEP = _STEP * _STEP


@dataclass(frozen=True)
class PackageFacts:
    """A package that onnxq, or one of its extras, requires; ``version`` is empty without it."""

    name: str
    required: str
    extra: str
    version: str

    @property
    def is_there(self) -> bool:
        """Whether a version of it is here that is enough."""
        return bool(self.version) and _release(self.version) >= _release(self.required)


@dataclass(frozen=True)
class ProviderCheck:
    """A small model in float and in static int8 on a provider.

    ``float_error`` and ``int8_error`` are the largest differences to the exact result; None where
    there is no result. ``reason`` says what is wrong, and is empty if nothing is.
    """

    name: str
    float_error: float | None
    int8_error: float | None
    reason: str


@dataclass(frozen=True)
class Missing:
    """What is not here, what it would bring, and how to get it."""

    what: str
    brings: str
    how: str


@dataclass(frozen=True)
class Examination:
    """What is installed, what works here, and what is missing.

    ``onnxruntime`` names the package, too, where it is another than onnxruntime; ``target`` is
    what ``auto`` stands for; ``features`` are those of the processor that integer kernels use, and
    ``memory_bytes`` is None where the system does not say.
    """

    python: str
    system: str
    onnxq: str
    onnxruntime: str
    processor: str
    features: tuple[str, ...]
    target: str
    cores: int
    memory_bytes: int | None
    packages: tuple[PackageFacts, ...]
    providers: tuple[ProviderCheck, ...]
    browser: str
    npm: str
    missing: tuple[Missing, ...]

    @property
    def works(self) -> bool:
        """Whether the core does: what it requires is here, and the CPU provider computes right."""
        cpu = (check for check in self.providers if check.name == "cpu")
        return all(p.is_there for p in self.packages if not p.extra) and any(
            not check.reason for check in cpu
        )


def examine() -> Examination:
    """Find out what is installed and what works here; nothing is fetched or written."""
    backend = load_backend("onnxruntime")
    packages = tuple(_packages(backend.version))
    browser = find_browser()
    flags = processor_flags()
    return Examination(
        python=platform.python_version(),
        system=platform.platform(),
        onnxq=importlib.metadata.version("onnxq"),
        onnxruntime=backend.version,
        processor=machine("cpu", 1)["processor"],
        features=tuple(feature for feature in _FEATURES if feature in flags),
        target=load_target("auto").name,
        cores=processors(),
        memory_bytes=machine_memory(),
        packages=packages,
        providers=tuple(check_provider(backend, name) for name in _provider_names()),
        browser=str(browser or ""),
        npm=shutil.which("npm") or "",
        missing=tuple(_missing(packages)),
    )


def check_provider(backend: Backend, provider: str) -> ProviderCheck:
    """Hold a small model's outputs on a provider against the exact ones, in float and int8."""
    errors: dict[str, float] = {}
    wrong = []
    for kind, text in _MODELS.items():
        try:
            session = backend.session(to_proto(Graph.from_text(text)), provider=provider)
            errors[kind] = _error(session.run({"x": _INPUT}))
        except InputError as error:
            wrong.append(f"{kind} does not run: {error}")
            continue
        # Half a step of the int8 output; NaN is wrong, too.
        if not errors[kind] <= _OUTPUT_STEP / 2:
            wrong.append(f"{kind} is wrong by {errors[kind]:.3g}")
    return ProviderCheck(provider, errors.get("float"), errors.get("int8"), "; ".join(wrong))


def _error(outputs: Mapping[str, Array]) -> float:
    found = outputs["y"]
    if found.shape != _EXPECTED.shape:
        return float("inf")
    return float(np.abs(found - _EXPECTED).max())


def _provider_names() -> list[str]:
    """Those that run models on this machine: onnxruntime's Azure one calls a service."""
    names = map(provider_alias, available_providers())
    return sorted(name for name in names if name != "azure")


def _packages(onnxruntime: str) -> Iterator[PackageFacts]:
    """What onnxq's own metadata require, those of its core first."""
    found = []
    for text in importlib.metadata.requires("onnxq") or ():
        matched = _REQUIREMENT.fullmatch(text)
        assert matched is not None, "the requirements are onnxq's own"
        name, required, extra = matched.groups(default="")
        version = _version(name)
        # Packages such as onnxruntime-openvino take its place.
        if name == ort.__name__ and not version:
            version = onnxruntime
        found.append(PackageFacts(name, required, extra, version))
    yield from sorted(found, key=lambda package: (package.extra, package.name))


def _release(text: str) -> tuple[int, ...]:
    """The numbers of a version, or of the least one that is required, without zeros at the end."""
    found = re.search(r"\d+(?:\.\d+)*", text)
    return tuple(map(int, re.sub(r"(\.0+)+$", "", found[0]).split("."))) if found else ()


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _missing(packages: tuple[PackageFacts, ...]) -> Iterator[Missing]:
    lacking: dict[str, list[str]] = {}
    for package in packages:
        if not package.is_there:
            old = f" (has {package.version})" if package.version else ""
            lacking.setdefault(package.extra, []).append(f"{package.name}{package.required}{old}")
    for extra, names in lacking.items():
        brings = BRINGS.get(extra, "") if extra else "what onnxq cannot work without"
        wanted = f"onnxq[{extra}]" if extra else "onnxq"
        yield Missing(", ".join(names), brings, f'pip install "{wanted}"')
    # Without the extra its absence is all that the browser's check would say.
    if "web" not in lacking and (how := missing_browser()):
        yield Missing("browser", BRINGS["web"], how)
    if how := missing_package():
        yield Missing("onnxruntime-web", BRINGS["web"], how)


def _numbers(values: Array) -> str:
    return ", ".join(f"{value:g}" for value in values.ravel())


_HEAD = '<ir_version: 8, opset_import: ["": 17]> g (float[2, 8] x) => (float[2, 4] y)'
_MODELS = {
    "float": f"""{_HEAD}
        <float[8, 4] w = {{{_numbers(_WEIGHT)}}}>
        {{
            p = MatMul(x, w)
            y = Relu(p)
        }}""",
    "int8": f"""{_HEAD}
        <float s = {{{_STEP}}}, float t = {{{_OUTPUT_STEP}}},
         uint8 half = {{128}}, int8 zero = {{0}}, uint8 none = {{0}},
         int8[8, 4] w = {{{_numbers(_WEIGHT / _STEP)}}}>
        {{
            xq = QuantizeLinear(x, s, half)
            xd = DequantizeLinear(xq, s, half)
            wd = DequantizeLinear(w, s, zero)
            p = MatMul(xd, wd)
            r = Relu(p)
            yq = QuantizeLinear(r, t, none)
            y = DequantizeLinear(yq, t, none)
        }}""",
}
