"""``onnxq targets``."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from onnxq.cli.terminal import Outcome, table
from onnxq.errors import InputError
from onnxq.forms import form_passes
from onnxq.ir import parse_passes
from onnxq.precision import require_searchable
from onnxq.progress import Progress
from onnxq.quant import Scheme
from onnxq.runtime import load_backend
from onnxq.targets import OperatorRule, Target, available_targets, load_target

HELP = "list the targets there are tables for, or show what one computes on integers"

EXAMPLES = """examples:
  onnxq targets
  onnxq targets tensorrt
  onnxq targets mine.toml
"""

NEEDS = ""
TAKES = "name"


def run(parsed: argparse.Namespace, _: Progress) -> Outcome:
    """Run the command."""
    names = available_targets() if parsed.name is None else (parsed.name,)
    targets = [load_target(name) for name in names]
    if parsed.name is not None:
        _check(targets[0])
    body = {"schema": "onnxq/targets/1", "targets": [_facts(target) for target in targets]}
    if parsed.name is None:
        ending = f"auto is {load_target('auto').name} on this machine."
        return Outcome(body, _overview(targets), ending)
    return Outcome(body, _whole(targets[0]))


def _check(target: Target) -> None:
    """Find out whether there are the passes and precisions that a target names."""
    checks: tuple[tuple[str, Callable[[], object]], ...] = (
        ("passes", lambda: target.passes and parse_passes(target.passes)),
        ("finish", lambda: target.finish and parse_passes(target.finish)),
        ("precisions", lambda: require_searchable((*target.precisions, *target.small))),
        ("forms", lambda: form_passes(target)),
    )
    for entry, check in checks:
        try:
            check()
        except InputError as error:
            raise InputError(f"entry '{entry}' of target '{target.name}': {error}") from error


def _facts(target: Target) -> dict[str, Any]:
    return {
        "name": target.name,
        "digest": target.digest,
        "description": target.description,
        "backend": target.backend,
        "provider": target.provider,
        "available": not _missing(target),
        "measured": target.measured,
        "opset": target.opset,
        "activations": {"format": target.activation_format.name, **vars(target.activation_scheme)},
        "weights": {
            "format": target.weight_format.name,
            **vars(target.weight_scheme),
            "per_channel": target.weight_per_channel,
        },
        "bias": target.bias,
        "everything": target.everything,
        "precisions": list(target.precisions),
        "small": list(target.small),
        "alternatives": list(target.alternatives),
        "passes": target.passes,
        "finish": target.finish,
        "forms": list(target.forms),
        "operators": {name: _rule(rule) for name, rule in sorted(target.operators.items())},
        "reasons": dict(sorted(target.reasons.items())),
    }


def _missing(target: Target) -> str:
    return load_backend(target.backend).missing(target.provider)


def _rule(rule: OperatorRule) -> dict[str, Any]:
    given = {key: value for key, value in vars(rule).items() if key != "op_type"}
    return {**given, "attributes": dict(rule.attributes)}


def _overview(targets: list[Target]) -> Table:
    rows = (
        (
            target.name,
            target.activation_format.name if target.has_integer_kernels else "float",
            ", ".join(_weight_formats(target)),
            f"{target.provider}{', not here' * bool(_missing(target))}",
            "yes" if target.measured else "no",
            target.description,
        )
        for target in targets
    )
    return table(rows, ("target", "activations", "weights", "provider", "measured", ""))


def _weight_formats(target: Target) -> list[str]:
    if target.has_integer_kernels:
        return [target.weight_format.name]
    return [precision.removesuffix("-weight") for precision in target.precisions]


def _whole(target: Target) -> Group:
    rules, reasons = sorted(target.operators.items()), sorted(target.reasons.items())
    operators = [
        *((name, rule.role, "; ".join(_remarks(rule, target))) for name, rule in rules),
        *((name, "float", reason) for name, reason in reasons if name not in target.operators),
    ]
    return Group(table(_rows(target)), Text(), table(operators, ("operator", "role", "")))


def _rows(target: Target) -> Iterator[tuple[str, str]]:
    yield "target", f"{target.name}: {target.description}"
    available = f"{target.provider}, available here with {target.backend}"
    yield "provider", _missing(target) or available
    yield "measured", target.measured or "no: written by documentation, not run where it is for"
    yield "precisions", ", ".join(target.precisions)
    if target.alternatives:
        yield "also tried", f"{', '.join(target.alternatives)} (all int8, or in part)"
    if target.small:
        yield "small", f"{', '.join(target.small)} (where a size is promised)"
    if target.forms:
        yield "forms", ", ".join(target.forms)
    activations = _scheme(target.activation_format.name, target.activation_scheme)
    if target.has_integer_kernels:
        yield "activations", f"{activations}, one scale for the tensor"
        scales = "one scale for each output channel" if target.weight_per_channel else "one scale"
        weights = _scheme(target.weight_format.name, target.weight_scheme)
        yield "weights", f"{weights}, {scales}"
        yield "biases", "int32, scale of input times weight" if target.bias == "int32" else "float"
    else:
        yield "activations", "float: it has no integer kernels"
    yield "opset", f"{target.opset} or higher"
    if target.everything:
        yield "placement", "every operator that has a rule, wherever it stands"
    if target.passes:
        yield "passes", f"{target.passes}, before integers go in"
    if target.finish:
        yield "finish", f"{target.finish}, when all integers are in"


def _scheme(format: str, scheme: Scheme) -> str:
    words = [f"{format} {'absmax' if scheme.symmetric else 'zero-point'}"]
    for name in ("narrow_range", "power_of_two", "reduced_range"):
        if getattr(scheme, name):
            words.append(name.replace("_", " "))
    return ", ".join(words)


def _remarks(rule: OperatorRule, target: Target) -> Iterator[str]:
    if rule.role == "compute" and target.has_integer_kernels:
        yield f"result {'as integers' if rule.output == 'quantized' else 'may be float'}"
        if not rule.per_channel:
            yield "one scale for the weight"
        if rule.two_activations:
            yield "also of two activations"
    if rule.constant_inputs:
        yield "inputs may be constant"
    if rule.form:
        yield f"written as {rule.form}"
    for limits, when in ((rule.range, ""), (rule.range_16bit, ", in 16 bits")):
        if limits is not None:
            yield f"result from {limits[0]:g} to {limits[1]:g}{when}"
    for name, value in rule.attributes.items():
        yield f"if {name} is {value}"
    if rule.broken_by:
        yield f"without {', '.join(rule.broken_by)}"
    if rule.minimum_opset > 1:
        yield f"from opset {rule.minimum_opset}"
