"""The options of everything that quantizes, or studies what quantizing would do."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from onnxq.cost import Costs
from onnxq.data import ImageOptions
from onnxq.plan import Pin, Plan
from onnxq.recipe import Recipe
from onnxq.runtime.executor import HANGS_AFTER

CostKind = Literal["latency", "size", "flops"]
DEFAULT_RECIPE = "mixed"


@dataclass(frozen=True)
class Options:
    """How a model is read, rewritten, observed, planned for and judged.

    Attributes:
        recipe: A `Recipe`, or the name or file of one.
        target: Where the model is to run: a name or file; ``auto`` is this machine's processor;
            ``fastest``, for `optimize` alone, is whatever is fastest of all that is installed.
        pythons: Interpreters of further environments whose onnxruntime is tried for ``fastest``.
        provider_options: What the target's execution provider is told, as ``device_type=GPU``.
        calibrator: How ranges are found, as ``percentile{percentile=99.9}``; the recipe's if None.
        precisions: What a search may choose from; the recipe's or the target's if empty.
        methods: Tuners that may be used: ``auto`` for those that precisions name, ``none``, or
            names; the recipe's if None.
        pins: Precisions set by hand, as ``"head*=float32"``.
        candidates: Plans of this model that a search tries beside its own, or their files: as
            training, another run, or an editor made them.
        metric: Name of the metric; chosen by the labels, or by the outputs without any, if None.
        max_drop: Largest drop of the metric that is acceptable, in its own unit.
        min_agreement: Smallest share of decisions that equal the float model's.
        min_speedup: Smallest speedup over float.
        min_sqnr: Smallest SQNR of any output in dB.
        max_size_ratio: Largest size of the file relative to the float one.
        cost: What a search makes small: ``latency`` measured here, ``size`` in bytes, or ``flops``
            computed.
        cost_table: Costs found elsewhere, instead.
        sensitivity: ``suffix``, or ``exhaustive`` for one run of the whole model per node.
        proxy: What a loss is, see `onnxq.sensitivity.loss.PROXIES`.
        opset: Raise the model to at least this opset; the lowest that will do if None.
        keep_overridable: Keep weights that are all listed as inputs overridable; they are made
            constants otherwise.
        samples: Samples to calibrate on; half of the data, at most 512, if None.
        batch_size: Samples in a batch where the model leaves it open, for latency as well, which
            is that of one sample if None.
        throughput: Numbers of samples in a batch to measure throughput with.
        latency_of: Which latency of a decoder the promise and the search mean: that of a ``prompt``
            (a whole sample; so if None) or that of one ``token`` more.
        images: How to read a folder of images.
        time_budget: Minutes after which no optional work begins: methods, further samples of the
            sensitivity analysis, further candidates of a search. What is tried then depends on the
            clock; the plan says what was not. Without an end if None.
        memory_limit: Bytes that observing may take beyond plain inference; the data is passed over
            several times where one pass would take more. Models whose weights take over a quarter
            of it, or of the machine's memory if None, are observed and verified in segments.
        threads: Threads inside one operator, for latency.
        seed: Chooses the held-out part, and samples where only some are used.
        workers: Processes to spread work over, which are started on this machine; none if None.
            What they find out does not depend on how many they are.
        scheduler: Address of a Dask scheduler with workers to spread work over, instead.
        hangs_after: Seconds in which no worker gives anything, after which they count as hung.
        work_folder: Where to keep what was found out, for another run; nowhere if None.
        debug: Level of the passes' log, see `onnxq.ir.Context`.
    """

    recipe: str | Recipe = DEFAULT_RECIPE
    target: str = "auto"
    pythons: Sequence[str | os.PathLike[str]] = ()
    provider_options: Sequence[str] = ()
    calibrator: str | None = None
    precisions: Sequence[str] = ()
    methods: str | Sequence[str] | None = None
    pins: Sequence[str | Pin] = ()
    candidates: Sequence[str | os.PathLike[str] | Plan] = ()
    metric: str | None = None
    max_drop: float | None = None
    min_agreement: float | None = None
    min_speedup: float | None = None
    min_sqnr: float | None = None
    max_size_ratio: float | None = None
    cost: CostKind = "latency"
    cost_table: Costs | None = None
    sensitivity: Literal["suffix", "exhaustive"] = "suffix"
    proxy: str = "noise"
    opset: int | None = None
    keep_overridable: bool = False
    samples: int | None = None
    batch_size: int | None = None
    throughput: Sequence[int] = ()
    latency_of: Literal["prompt", "token"] | None = None
    images: ImageOptions | None = None
    time_budget: float | None = None
    memory_limit: int | None = None
    threads: int = 1
    seed: int = 0
    workers: int | None = None
    scheduler: str | None = None
    hangs_after: float = HANGS_AFTER
    work_folder: str | os.PathLike[str] | None = None
    debug: int = 0
