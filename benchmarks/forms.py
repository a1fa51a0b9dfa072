"""Print how fast the fused and the unfused form of a computation are, as a Markdown table.

Usage: python benchmarks/forms.py [FORM ...] [--where alone float int8] [--seconds S] [--operators]

FORM is the beginning of a form's name; without one all are measured. A form stands alone, between
two float MatMuls (1x1 Convs for those of images), or between the same in static 8-bit integers with
the passes that this processor's target asks for. Both forms are measured in turn in one process on
one thread. The last column is the speed of the fused form relative to the unfused one:
above 1 the fusion pays. onnxruntime fuses much by itself at session start; `--operators` adds
what it really runs.

Among the forms of residual-as-sum are whole models: before is the model as it is (float, or after
onnxruntime's dynamic or this project's static quantization), after is the same with its residual
Adds written as Sum. Those of gathered rows are embeddings in 4 bits.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path
from string import Template

import numpy as np
import onnx
import onnx.numpy_helper
import onnx.parser
from form_table import FORMS, HIDDEN, PLACES, Form, Shape
from onnxruntime.quantization import quantize_dynamic

from onnxq import Recipe, apply_plan, make_plan
from onnxq.data import read
from onnxq.ir import Pipeline, default_passes, load, parse_passes, to_proto
from onnxq.ir.loading import from_proto
from onnxq.passes.fusion.residual_as_sum import ResidualAsSum
from onnxq.runtime import Session, interleaved
from onnxq.runtime.operators import optimized_operators
from onnxq.verify.workload import single_feed

TRIALS = 5
Feeds = dict[str, np.ndarray]
MODELS = Path(__file__).resolve().parent.parent / "models"
_PLAIN = """extends = "cpu-x64"
without = ["Sub", "Div"]
[operators]
Add = { role = "follow", constant_inputs = true }
Mul = { role = "follow", constant_inputs = true }
Resize = { role = "share", activations = [0], attributes = { mode = "nearest" } }
"""


def build_pair(form: Form, shape: Shape, where: str) -> tuple[onnx.ModelProto, onnx.ModelProto]:
    """The model with the unfused form and the one with the fused form.

    Raises:
        ValueError: ``where`` is none of `PLACES`.
    """
    if where not in PLACES:
        raise ValueError(f"{where} is none of {', '.join(PLACES)}")
    unfused = _model(form, shape, where, form.unfused)
    fused = _model(form, shape, where, form.fused) if form.fused else unfused
    if form.passes:
        fused = _run(form.passes, unfused)
    if where == "int8":
        feeds = random_feeds(unfused)
        with tempfile.TemporaryDirectory() as folder:
            plain = Path(folder) / "plain.toml"
            plain.write_text(_PLAIN, encoding="utf-8")
            target = "auto" if form.fused or form.passes else str(plain)
            return quantized(unfused, feeds, target), quantized(fused, feeds)
    return unfused, fused


def _run(passes: str, model: onnx.ModelProto) -> onnx.ModelProto:
    graph = from_proto(model)
    Pipeline(parse_passes(passes)).run(graph)
    return to_proto(graph)


def quantized(model: onnx.ModelProto, feeds: Feeds, target: str = "auto") -> onnx.ModelProto:
    """The model in static 8-bit integers, as `onnxq.optimize` places them on a target."""
    # Any other float pass might fuse the form.
    recipe = Recipe(passes="eliminate-dead", precision="int8")
    # Half of the data is held out.
    plan = make_plan(model, [feeds, feeds], recipe=recipe, target=target)
    return to_proto(apply_plan(model, plan))


def random_feeds(model: onnx.ModelProto) -> Feeds:
    """Normally distributed numbers for every input of a model of floats with fixed shapes."""
    generator = np.random.default_rng(0)
    return {
        spec.name: generator.standard_normal(spec.shape).astype(np.float32)
        for spec in Session(model).inputs
    }


def residual_pairs() -> Iterator[tuple[str, onnx.ModelProto, onnx.ModelProto, Feeds]]:
    """Whole transformers with residual Adds, and the same with Sums: name, both, a sample."""
    for name, data in (("digits_vit", "digits"), ("text_lm", "text")):
        graph = load(MODELS / f"{name}.onnx")
        Pipeline(tuple(p for p in default_passes() if not isinstance(p, ResidualAsSum))).run(graph)
        model = to_proto(graph)
        specs = Session(model).inputs
        feeds = single_feed(read(MODELS / f"{data}.npz", specs), specs).feeds
        yield from _precisions(name, model, dict(feeds))
    encoder = _encoder(layers=2, length=128, width=768, heads=12)
    yield from _precisions("encoder 2 x [1, 128, 768]", encoder, random_feeds(encoder))


def row_pairs() -> Iterator[tuple[str, onnx.ModelProto, onnx.ModelProto, Feeds]]:
    """Rows in 4 bits as they are stored, and by GatherBlockQuantized: name, both, a sample."""
    for rows, columns, tokens in ((49152, 576, 128), (49152, 576, 1), (30522, 384, 64)):
        text = (
            f'<ir_version: 10, opset_import: ["": 21]> g (int64[1, {tokens}] x) => '
            f"(float[1, {tokens}, {columns}] y) {{ y = Gather(t, x) }}"
        )
        model, generator = onnx.parser.parse_model(text), np.random.default_rng(0)
        table = generator.standard_normal((rows, columns)).astype(np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(table, "t"))
        form = "quantize-weights{format=uint4, scheme=zero-point, gather=%s}"
        pair = (_run(form % "rows", model), _run(form % "contrib", model))
        feeds = {"x": generator.integers(0, rows, (1, tokens))}
        yield f"[{rows}, {columns}], {tokens} tokens", *pair, feeds


def main() -> None:
    """Measure the forms that are asked for and print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("forms", nargs="*", metavar="FORM", help="beginning of a form's name")
    parser.add_argument("--where", nargs="+", choices=PLACES, default=PLACES)
    parser.add_argument("--seconds", type=float, default=1.0, help="for each pair of models")
    parser.add_argument("--operators", action="store_true", help="what onnxruntime really runs")
    options = parser.parse_args()
    heads = ["form", "where", "shape", "unfused ms", "fused ms", "fused"]
    heads += ["operators unfused", "operators fused"] if options.operators else []
    print(_line(heads))
    print(_line(["---"] * len(heads)))
    for name, where, shape, pair, feeds in _cases(tuple(options.forms), options.where):
        unfused_ms, fused_ms, speed = _measure(pair, feeds, options.seconds)
        cells = [name, where, shape, f"{unfused_ms:.3f}", f"{fused_ms:.3f}", f"{speed:.2f}"]
        if options.operators:
            cells += [_operators(model) for model in pair]
        print(_line(cells), flush=True)


def _measure(
    pair: tuple[onnx.ModelProto, onnx.ModelProto], feeds: Feeds, seconds: float
) -> tuple[float, float, float]:
    """Milliseconds of both, and the second's speed relative to the first: medians of trials.

    Each trial has new sessions, created in turn in either order: where a session's weights happen
    to lie in memory can outweigh the difference of the forms.
    """
    trials = []
    for trial in range(TRIALS):
        order = (0, 1) if trial % 2 == 0 else (1, 0)
        sessions = {at: Session(pair[at]) for at in order}
        unfused, fused = interleaved([sessions[0], sessions[1]], feeds, seconds=seconds / TRIALS)
        trials.append((unfused.median_ms, fused.median_ms, fused.speedup))
    unfused_ms, fused_ms, speed = np.median(np.array(trials), axis=0)
    return float(unfused_ms), float(fused_ms), float(speed)


def _cases(
    names: tuple[str, ...], places: list[str]
) -> Iterator[tuple[str, str, str, tuple[onnx.ModelProto, onnx.ModelProto], Feeds]]:
    for form in FORMS:
        if not names or form.name.startswith(names):
            for where in (place for place in places if place in form.places):
                for shape in form.shapes:
                    pair = build_pair(form, shape, where)
                    feeds = random_feeds(pair[0])
                    _check_equal(form.name, pair, feeds, exactly=where != "int8")
                    yield form.name, where, str(list(shape)), pair, feeds
    if not names or "residual-as-sum".startswith(names):
        for name, before, after, feeds in residual_pairs():
            yield "residual-as-sum", name, "", (before, after), feeds
    if not names or "gathered rows".startswith(names):
        for name, before, after, feeds in row_pairs():
            yield "gathered rows", name, "", (before, after), feeds


def _check_equal(
    name: str, pair: tuple[onnx.ModelProto, onnx.ModelProto], feeds: Feeds, *, exactly: bool
) -> None:
    """Refuse to time two forms that compute different things."""
    one, other = (next(iter(Session(model).run(feeds).values())) for model in pair)
    limit = 1e-5 if exactly else 0.1
    if np.abs(one - other).max() > limit * np.abs(one).max():
        raise SystemExit(f"the forms of {name} differ by {np.abs(one - other).max()}")


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _operators(model: onnx.ModelProto) -> str:
    counts = optimized_operators(model)
    return ", ".join(f"{n.rpartition(':')[2]} {c}" for n, c in sorted(counts.items()))


def _model(form: Form, shape: Shape, where: str, body: str) -> onnx.ModelProto:
    frame = _frame(form, shape, where)
    vector = (shape[1],) if form.frame == "Conv" else (shape[-1],)
    broadcast = (shape[1], 1, 1)
    weights = {**frame.weights}
    weights |= {n: broadcast if n in ("factor", "addend") else vector for n in form.weights}
    feeds = {n: (1, 1, shape[-2], shape[-2]) if n == "mask" else shape for n in form.feeds}
    constants = f"<{form.constants}>" if form.constants else ""
    text = (
        f'<ir_version: 10, opset_import: ["": {form.opset}]> '
        f"g ({_declare({**weights, **frame.inputs, **feeds})}) "
        f"=> ({_declare({frame.output: frame.shape})}) {constants} "
        f"{{ {frame.before} {body} {frame.after} }}"
    )
    return _parse(text, weights)


@dataclass(frozen=True)
class _Frame:
    """What stands around a form: inputs, statements before and after, the output, weights."""

    inputs: dict[str, Shape]
    before: str
    after: str
    output: str
    shape: Shape
    weights: dict[str, Shape]


def _frame(form: Form, shape: Shape, where: str) -> _Frame:
    if where == "alone":
        names = ("q", "k", "v") if form.frame == "Attention" else ("x",)
        return _Frame({n: shape for n in names}, "", "", "y", shape, {})
    if form.frame == "Attention":
        return _attention_frame(shape)
    if form.frame == "Conv":
        kernel = (shape[1], shape[1], 1, 1)
        weights = {"w": kernel, "u": kernel}
        before, after = "x = Conv(input, w)", "out = Conv(y, u)"
        return _Frame({"input": shape}, before, after, "out", shape, weights)
    # The hidden layer of a feed-forward block is four times as wide as what goes in and out.
    width = shape[-1] // 4 if form.shapes is HIDDEN else min(shape[-1], 1024)
    outside = (*shape[:-1], width)
    weights = {"w": (width, shape[-1]), "u": (shape[-1], width)}
    before, after = "x = MatMul(input, w)", "out = MatMul(y, u)"
    return _Frame({"input": outside}, before, after, "out", outside, weights)


def _attention_frame(shape: Shape) -> _Frame:
    batch, heads, length, size = shape
    outside = (batch, length, heads * size)
    split, join = f"{batch}, {length}, {heads}, {size}", f"{batch}, {length}, {heads * size}"
    before = f"split = Constant<value_ints = [{split}]>() join = Constant<value_ints = [{join}]>() "
    before += " ".join(_head(n, "input") for n in "qkv")
    weights = {f"w{n}": (outside[-1], outside[-1]) for n in "qkvo"}
    return _Frame({"input": outside}, before, _joined("y", "out"), "out", outside, weights)


def _head(name: str, source: str) -> str:
    return (
        f"{name}0 = MatMul({source}, w{name}) {name}1 = Reshape({name}0, split) "
        f"{name} = Transpose<perm = [0, 2, 1, 3]>({name}1)"
    )


def _joined(source: str, result: str) -> str:
    return (
        f"{result}0 = Transpose<perm = [0, 2, 1, 3]>({source}) "
        f"{result}1 = Reshape({result}0, join) {result} = MatMul({result}1, wo)"
    )


def _encoder(layers: int, length: int, width: int, heads: int) -> onnx.ModelProto:
    """A BERT-like encoder of random weights: LayerNormalization after each residual Add."""
    outside, size = (1, length, width), width // heads
    weights: dict[str, Shape] = {"scale": (width,), "bias": (width,)}
    body = (
        f"split = Constant<value_ints = [1, {length}, {heads}, {size}]>() "
        f"join = Constant<value_ints = [1, {length}, {width}]>() "
    )
    source = "x"
    for layer in range(layers):
        result = "y" if layer == layers - 1 else f"l{layer}_out"
        weights |= {f"l{layer}_w{n}": (width, width) for n in "qkvo"}
        weights |= {f"l{layer}_up": (width, 4 * width), f"l{layer}_down": (4 * width, width)}
        weights |= {f"l{layer}_b1": (4 * width,), f"l{layer}_b2": (width,)}
        body += Template(
            "${l}q0 = MatMul($x, ${l}wq) ${l}q1 = Reshape(${l}q0, split) "
            "${l}q = Transpose<perm = [0, 2, 1, 3]>(${l}q1) "
            "${l}k0 = MatMul($x, ${l}wk) ${l}k1 = Reshape(${l}k0, split) "
            "${l}k = Transpose<perm = [0, 2, 3, 1]>(${l}k1) "
            "${l}v0 = MatMul($x, ${l}wv) ${l}v1 = Reshape(${l}v0, split) "
            "${l}v = Transpose<perm = [0, 2, 1, 3]>(${l}v1) "
            "${l}a = MatMul(${l}q, ${l}k) ${l}s = Mul(${l}a, root) "
            "${l}p = Softmax<axis = -1>(${l}s) ${l}o = MatMul(${l}p, ${l}v) "
            "${l}o0 = Transpose<perm = [0, 2, 1, 3]>(${l}o) ${l}o1 = Reshape(${l}o0, join) "
            "${l}o2 = MatMul(${l}o1, ${l}wo) ${l}r = Add(${l}o2, $x) "
            "${l}n = LayerNormalization(${l}r, scale, bias) "
            "${l}h0 = MatMul(${l}n, ${l}up) ${l}h1 = Add(${l}h0, ${l}b1) ${l}h = Gelu(${l}h1) "
            "${l}d0 = MatMul(${l}h, ${l}down) ${l}d = Add(${l}d0, ${l}b2) "
            "${l}t = Add(${l}d, ${l}n) $y = LayerNormalization(${l}t, scale, bias) "
        ).substitute(l=f"l{layer}_", x=source, y=result)
        source = result
    text = (
        f'<ir_version: 10, opset_import: ["": 21]> g ({_declare({**weights, "x": outside})}) '
        f"=> ({_declare({'y': outside})}) <float root = {{{size**-0.5}}}> {{ {body} }}"
    )
    return _parse(text, weights)


def _precisions(
    name: str, model: onnx.ModelProto, feeds: Feeds
) -> Iterator[tuple[str, onnx.ModelProto, onnx.ModelProto, Feeds]]:
    """The model and its Sum form in float, in dynamic and in static 8-bit integers."""
    for label, convert in (("float", None), ("dynamic int8", _dynamic), ("int8", quantized)):
        before = model if convert is None else convert(model, feeds)
        graph = from_proto(before)
        made = Pipeline((ResidualAsSum(),)).run(graph)[0].rewrites
        yield f"{name}, {label}, {made} Sums", before, to_proto(graph), feeds


def _dynamic(model: onnx.ModelProto, feeds: Feeds) -> onnx.ModelProto:
    with tempfile.TemporaryDirectory() as folder:
        before, after = Path(folder) / "before.onnx", Path(folder) / "after.onnx"
        onnx.save(model, before)
        quantize_dynamic(before, after, per_channel=True)
        return onnx.load(after)


def _parse(text: str, weights: dict[str, Shape]) -> onnx.ModelProto:
    """A model from text, in which what is named as a weight gets random numbers."""
    model = onnx.parser.parse_model(text)
    generator = np.random.default_rng(0)
    inputs = [i for i in model.graph.input if i.name not in weights]
    del model.graph.input[:]
    model.graph.input.extend(inputs)
    for name, shape in weights.items():
        # Scaled so that what goes through many layers keeps its size.
        spread = prod(shape[1:] if len(shape) == 4 else shape[:1]) ** -0.5
        numbers = generator.standard_normal(shape) * (spread if len(shape) > 1 else 0.1)
        array = (numbers + (name == "scale")).astype(np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    onnx.checker.check_model(model, full_check=True)
    return model


def _declare(tensors: dict[str, Shape]) -> str:
    return ", ".join(f"float[{', '.join(map(str, s))}] {n}" for n, s in tensors.items())


if __name__ == "__main__":
    main()
