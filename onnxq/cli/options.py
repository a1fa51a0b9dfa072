"""Every option there is, declared once; a command names those it takes."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from typing import Any

from onnxq.cli import values
from onnxq.gguf import TYPES
from onnxq.observe import CALIBRATORS
from onnxq.options import DEFAULT_RECIPE
from onnxq.precision import searchable
from onnxq.recipe import built_in_recipes
from onnxq.runtime.executor import HANGS_AFTER
from onnxq.sensitivity.loss import PROXIES
from onnxq.targets import available_targets
from onnxq.training import BITS
from onnxq.tune import available_methods
from onnxq.verify.metrics import LABEL_FREE, available_metrics

Keywords = dict[str, Any]

_GROUPS = {
    "promise": None,
    "plan": None,
    "training": None,
    "limit": "one of these (default: --min-sqnr 15)",
    "layers": "one of these (default: list the weakest)",
    "images": "for data that is a folder of images; x = (pixel * scale - mean) / std",
}
"""Groups of options in the help, and what is said of each."""

_ALTERNATIVES = ("limit", "layers")
"""Groups of which only one option may be given."""


def _value(
    metavar: str | tuple[str, str],
    help: str,
    read: Callable[[str], Any] = values.named,
    **keywords: Any,
) -> Keywords:
    return {"metavar": metavar, "help": help, "type": read, **keywords}


def _values(metavar: str, help: str, **keywords: Any) -> Keywords:
    return _value(metavar, f"{help} (repeatable)", action="append", **keywords)


def _choice(choices: tuple[str, ...], help: str, **keywords: Any) -> Keywords:
    return {"choices": choices, "help": help, **keywords}


def _switch(help: str, **keywords: Any) -> Keywords:
    return {"action": "store_true", "help": help, **keywords}


def _promise(metavar: str, help: str) -> Keywords:
    return _value(metavar, help, values.number, group="promise")


def _training(metavar: str, help: str, read: Callable[[str], Any]) -> Keywords:
    return _value(metavar, help, read, group="training")


def _image(metavar: str, help: str, read: Callable[[str], Any]) -> Keywords:
    return _value(metavar, help, read, group="images")


_DECLARED: Mapping[str, Keywords] = {
    "action": {"metavar": "ACTION", "help": "export or import", "choices": ("export", "import")},
    "model": _value("MODEL", "float model, an .onnx file"),
    "models": _value("MODEL", "models; the first is 1.00", nargs="+"),
    "reports": _value("JSON", "report.json files; several are compared", nargs="+"),
    "float": _value("FLOAT", "float model"),
    "candidate": _value("CANDIDATE", "model to judge"),
    "manifest": _value("MANIFEST", "models, data and promises, a .toml or .csv file"),
    "plan": _value("PLAN", "the plan, a .toml file"),
    "bundle": _value("BUNDLE", "folder that `onnxq optimize --adaptive` wrote"),
    "weights": _value("GGUF", "file with the tensors"),
    "name": _value(
        "NAME|FILE",
        "target to check and show as a whole; auto is this machine's processor (default: list all)",
    ),
    "--data": _value(
        "DATA",
        "representative samples: .npz, folder of .npz, test data or images, module:function",
    ),
    "--output -o": _value("OUT", "file to write"),
    "--eval": _value("DATA", "held-out samples (default: part of DATA)"),
    "--recipe": _value(
        "NAME|FILE",
        f"what to do: {', '.join(built_in_recipes())}, or a .toml file (default {DEFAULT_RECIPE}: "
        "the fastest mixture of precisions that keeps the promise)",
        str,
    ),
    "--target": _value(
        "NAME|FILE",
        f"where it is to run: auto, {', '.join(available_targets())}, or a .toml file (default "
        "auto)",
        str,
    ),
    "--python": _values(
        "PATH",
        "with --target fastest: an interpreter whose environment has another onnxruntime, as "
        "onnxruntime-openvino; that one is tried, too",
        dest="pythons",
    ),
    "--precision": _values(
        "P",
        f"consider this precision: {', '.join(searchable())}; default: the target's",
        dest="precisions",
    ),
    "--calibrator": _value(
        "C",
        f"how ranges are found: {', '.join(CALIBRATORS)}, with options as "
        "percentile{percentile=99.9} (default: the recipe's)",
    ),
    "--methods": _value(
        "auto|none|LIST",
        f"methods that compute weights, scales and factors: {', '.join(available_methods())} "
        "(default: the recipe's, mostly auto: those that the precisions name)",
        str,
    ),
    "--from": _value(
        "RANGES",
        "choose from what was seen before, instead of running a model; several are merged",
        dest="sources",
        action="append",
    ),
    "--metric": _value(
        "M",
        f"{', '.join((*available_metrics(), *LABEL_FREE))}, with options as name{{option=value}}, "
        "or module:function (default: by the labels; agreement where there are none, sqnr where "
        "the outputs are no decisions)",
        str,
    ),
    "--max-drop": _promise("D", "largest drop of the metric (default 0.01; bits: 2 %% of float's)"),
    "--min-agreement": _promise(
        "A",
        "smallest share of decisions that equal float's (default without labels: 0.95; "
        "of nearest neighbours 0.7)",
    ),
    "--min-speedup": _promise("X", "smallest speedup (default 1)"),
    "--min-sqnr": _promise(
        "DB", "smallest SQNR of any output in dB (default without decisions: 15)"
    ),
    "--max-size-ratio": _promise("X", "largest size of the file relative to the float one, as 0.5"),
    "--keep-failed": _switch("write the model even if a promise broke", group="promise"),
    "--diff": _value(("A", "B"), "print in what two plans differ, instead of making one", nargs=2),
    "--pareto": _switch("print plans of which none is better than another in both cost and loss"),
    "--cost": _choice(
        ("latency", "size", "flops"),
        "latency is measured here, the others are computed (default latency)",
    ),
    "--cost-table": _value("FILE", "costs that `onnxq cost` found elsewhere", dest="costs"),
    "--method": _choice(
        ("suffix", "exhaustive"),
        "exhaustive runs the whole model for each node on all samples (default suffix)",
        dest="sensitivity",
    ),
    "--proxy": _choice(
        tuple(PROXIES),
        "; ".join(f"{name}: {what}" for name, what in PROXIES.items()) + " (default noise)",
    ),
    "--budget": _value("LOSS", "largest predicted loss", values.number, group="limit"),
    "--max-latency": _value(
        "MS",
        "largest predicted latency in ms; the plan loses as little as it can",
        values.seconds,
        group="limit",
    ),
    "--max-bytes": _value(
        "N",
        "largest size of the weights, with --cost size; likewise",
        values.positive,
        group="limit",
    ),
    "--plan-out": _value(
        "FILE", "write the plan of the model that was made, for `onnxq apply`", group="plan"
    ),
    "--adaptive": _value(
        "DIR",
        "write a bundle for adaptive sessions: the model, variants of it, and what is usual",
        group="plan",
    ),
    "--cascade": _value(
        "SHARE",
        "let the bundle's models answer together, the cheapest as far as it is sure, so that this "
        "share of decisions is float's, as 0.995",
        values.part,
        group="plan",
    ),
    "--pin": _values(
        "PATTERN=P",
        "precision of the nodes whose name matches, as 'head*=float32'",
        dest="pins",
        group="plan",
    ),
    "--candidate": _values(
        "PLAN",
        "try this plan, too, as `onnxq train --plan-out` writes it",
        dest="candidates",
        group="plan",
    ),
    "--work-dir": _value(
        "DIR",
        "keep ranges, sensitivity and costs here, for another run",
        dest="work_folder",
        group="plan",
    ),
    "--gate": _values("EXPR", "a promise", type=str),
    "--no-layers": _switch("leave out the error of every layer", group="layers"),
    "--layers": _switch(
        "list every layer: accumulated and own error, worst channel, what is cut off",
        group="layers",
    ),
    "--junit": _value("FILE", "write the gates as JUnit XML"),
    "--markdown": _value(
        "FILE", "write a summary in GitHub-flavoured Markdown, as for $GITHUB_STEP_SUMMARY"
    ),
    "--report": _value("FOLDER", "write report.json, .html, .md and junit.xml"),
    "--passes -p": _value(
        "PASSES", 'passes with options, as "fold-constants{limit=1024},fuse-batch-norm"', str
    ),
    "--list": _switch("list the passes there are"),
    "--bisect-passes": _switch(
        "find the first pass that changes the outputs on random inputs; writes nothing"
    ),
    "--external-data": _switch("keep large tensors in OUT.data"),
    "--type": _choice(TYPES, "type of the weights (default q8_0)"),
    "--nodes": _switch("list every node"),
    "--samples": _value("N", "use only about so many samples", values.positive),
    "--calibration-samples": _value(
        "N",
        "samples to calibrate on (default: half of DATA, at most 512)",
        values.positive,
        dest="samples",
    ),
    "--memory-limit": _value(
        "SIZE",
        "memory to observe with beyond plain inference, as 500MB or 2GB; the data is passed over "
        "several times if it is short, and models larger than a quarter run in segments",
        values.memory,
    ),
    "--time-budget": _value(
        "MINUTES",
        "begin no optional work later than that: methods, further samples and candidates; what is "
        "tried then depends on the clock, and plan and report say what was not (default: no limit)",
        values.seconds,
    ),
    "--workers": _value(
        "N",
        "spread work over so many processes of this machine, of one thread each; the result is the "
        "same for any number (default: this process alone)",
        values.positive,
    ),
    "--scheduler": _value(
        "ADDRESS",
        "spread work over the workers of a Dask scheduler, as tcp://HOST:PORT or tls://HOST:PORT; "
        "all machines have to see --work-dir and the data under the same names",
    ),
    "--per-machine": _value(
        "N",
        "models at a time on one machine of the cluster (default: as many as it has workers)",
        values.positive,
    ),
    "--hangs-after": _value(
        "S",
        "seconds in which no worker gives anything, after which they count as hung and others do "
        f"their part (default {HANGS_AFTER:g})",
        values.seconds,
        default=HANGS_AFTER,
    ),
    "--keep-overridable": _switch(
        "keep weights that are all listed as inputs overridable; they are made constants without it"
    ),
    "--opset": _value(
        "N",
        "raise the model to at least this opset (default: only as far as the formats need)",
        values.positive,
    ),
    "--seed": _value(
        "N",
        "chooses the held-out part, and samples where only some are used (default 0)",
        values.whole,
    ),
    "--bits": _value(
        "BITS",
        f"of weights and activations: {BITS}; first and last layer have 8 (default w8a8)",
        default="w8a8",
    ),
    "--through": _training(
        "LIST",
        "bits to train in before, as long in each: w4a4 on the way to w3a3 (default none)",
        values.names,
    ),
    "--loss": _choice(
        ("task", "distill", "both"),
        "both: labels and the float model's outputs; task: labels alone; distill: outputs alone "
        "(default both)",
        group="training",
    ),
    "--features": _training(
        "W",
        "weight of the distance from the float model at the tensors that all ways lead through "
        "(default 0)",
        values.number,
    ),
    "--batch-norm": _choice(
        ("frozen", "live", "restored"),
        "live: train it with the statistics of batches where the model has it, and fold it at the "
        "end; restored: behind every convolution, also where it was folded at export; frozen: fold "
        "it before (default frozen)",
        group="training",
    ),
    "--epochs": _training(
        "N", "passes over DATA (default 10, more on little data)", values.positive
    ),
    "--lr": _training(
        "R",
        "largest learning rate, relative to the size of what is learned (default by bits: 0.001 to "
        "0.01)",
        values.amount,
    ),
    "--optimizer": _choice(("adamw", "sgd"), "default adamw", group="training"),
    "--weight-decay": _training("D", "of weights (default 0)", values.number),
    "--average": _training(
        "DECAY",
        "judge and keep moving averages of what is learned, with this decay by update, such as "
        "0.999 (default 0: none)",
        values.number,
    ),
    "--schedule": _choice(
        ("cosine", "one-cycle"), "how the learning rate falls (default cosine)", group="training"
    ),
    "--warmup": _training("S", "share of updates in which it rises (default 0.05)", values.number),
    "--augment": _training(
        "LIST",
        "change images at random: flip, crop, cutout, mixup, or none (default: auto, flip and crop "
        "where the float model decides as before)",
        values.names,
    ),
    "--accumulate": _training(
        "N", "parts into which an update is split, to save memory (default 1)", values.positive
    ),
    "--patience": _training(
        "N", "stop after so many epochs that were no better (default: never)", values.positive
    ),
    "--device": _training("D", "cpu or cuda (default: cuda if it is there)", values.named),
    "--mixed-precision": _switch(
        "compute products in bfloat16: faster on CUDA, and on processors that have it",
        group="training",
    ),
    "--processes": _training(
        "N",
        "processes that compute an update together (default 1); but for rounding the result is the "
        "same, where no loss is relative to a batch (--features, outputs that decide nothing)",
        values.positive,
    ),
    "--resume": _training(
        "FOLDER",
        "keep checkpoints and a log in FOLDER, and go on from there after an interruption",
        values.named,
    ),
    "--provider": _values(
        "P",
        "execution provider to measure on: cpu, cuda, openvino, ...; default cpu",
        type=str,
    ),
    "--web": _switch(
        "run them in onnxruntime-web (wasm) in a browser, and hold outputs against the CPU's"
    ),
    "--provider-option": _values(
        "K=V",
        "tell the execution provider this, as device_type=GPU",
        dest="provider_options",
        type=str,
    ),
    "--reference": _switch("let onnx.reference compute some samples, too, which is slow"),
    "--seconds": _value(
        "S", "time to spend on each provider (default 3)", values.seconds, default=3.0
    ),
    "--threads": _value("N", "threads inside one operator (default 1)", values.threads, default=1),
    "--batch-size": _value(
        "N",
        "samples in a batch where the model leaves it open, for latency too (default: that of one)",
        values.positive,
    ),
    "--throughput": _value(
        "N[,N...]", "measure throughput over batches of so many samples", values.batches
    ),
    "--latency-of": _choice(
        ("prompt", "token"),
        "which latency of a decoder the promise and the search mean (default prompt)",
    ),
    "--image-size": _image("HxW", "default: the model's", values.size),
    "--image-mean": _image("M[,M,M]", "default 0", values.numbers),
    "--image-std": _image("S[,S,S]", "default 1", values.numbers),
    "--image-scale": _image("F", "default 1/255", values.number),
    "--image-layout": _choice(("NCHW", "NHWC"), "default: by the channels", group="images"),
    "--image-color": _choice(("RGB", "BGR", "L"), "default: RGB or L", group="images"),
    "--image-resize": _choice(("crop", "stretch"), "default crop", group="images"),
    "--sampling": _value("SHARE", "of the requests that are looked at (default 0.02)", values.part),
    "--false-alarms-per-day": _value(
        "N", "that may be raised where nothing changes (default 1)", values.amount
    ),
    "--requests-per-second": _value(
        "N", "of the service, by which a day is measured (default 1)", values.amount
    ),
    "--state": _value(
        "FILE", "go on from what FILE holds, and keep there what is known (default: keep nothing)"
    ),
    "--json": _value("PATH", "write the result as JSON; - is standard output"),
    "--quiet -q": _switch("print nothing but errors"),
}
"""By name and short form, what argparse is told of an option, and its group."""

_NAMED = {flags.split()[0]: (flags.split()[::-1], told) for flags, told in _DECLARED.items()}

IMAGES = " ".join(name for name in _NAMED if name.startswith("--image"))
"""How a folder of images becomes input."""

STUDY = (
    "--precision --recipe --target --provider-option --calibrator --methods --samples "
    "--keep-overridable --opset --seed --memory-limit --workers --scheduler --hangs-after "
    "--work-dir --threads --batch-size "
    f"--latency-of {IMAGES}"
)
"""How a model is read, rewritten and observed."""


def declare(
    parser: argparse.ArgumentParser, needs: str, takes: str, changes: Mapping[str, Keywords]
) -> None:
    """Add a command's options, and those that every command takes.

    Args:
        parser: The command's parser.
        needs: Names of what has to be given.
        takes: Names of what may be given.
        changes: What differs from the declaration in this command.
    """
    groups: dict[str, argparse._ActionsContainer] = {"": parser}
    required = needs.split()
    for name in [*required, *takes.split(), "--json", "--quiet"]:
        flags, declared = _NAMED[name]
        keywords = {"group": "", **declared, **changes.get(name, {})}
        group = keywords.pop("group")
        if group not in groups:
            titled = parser.add_argument_group(group, _GROUPS[group])
            is_choice = group in _ALTERNATIVES
            groups[group] = titled.add_mutually_exclusive_group() if is_choice else titled
        if name.startswith("-"):
            keywords["required"] = name in required
        elif name not in required:
            keywords["nargs"] = "?"
        groups[group].add_argument(*flags, **keywords)
