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
from onnxruntime.quantization import quantize_dynamic

from onnxq import Recipe, apply_plan, make_plan
from onnxq.data import read
from onnxq.ir import Pipeline, default_passes, load, parse_passes, to_proto
from onnxq.ir.loading import from_proto
from onnxq.passes.fusion.residual_as_sum import ResidualAsSum
from onnxq.runtime import Session, interleaved
from onnxq.runtime.operators import optimized_operators
from onnxq.verify.workload import single_feed

PLACES = ("alone", "float", "int8")
"""Where a form stands: by itself, between float operators, between integer operators."""

TRIALS = 5

Shape = tuple[int, ...]
Feeds = dict[str, np.ndarray]

MODELS = Path(__file__).resolve().parent.parent / "models"

TOKENS: tuple[Shape, ...] = ((1, 128, 768), (1, 197, 192), (8, 65, 384), (1, 1, 1024))
HIDDEN: tuple[Shape, ...] = ((1, 128, 3072), (1, 197, 768), (8, 65, 768), (1, 1, 4096))
IMAGES: tuple[Shape, ...] = ((1, 16, 112, 112), (1, 96, 28, 28), (1, 240, 14, 14), (8, 32, 32, 32))
SCORES: tuple[Shape, ...] = ((1, 12, 128, 128), (1, 3, 197, 197), (8, 4, 64, 64), (1, 12, 1, 512))
LOGITS: tuple[Shape, ...] = ((1, 128, 768), (32, 10), (1, 1, 32000))
PAIRS: tuple[Shape, ...] = ((1, 17640, 2), (1, 4420, 2), (1, 512, 2), (64, 2))
BOXES: tuple[Shape, ...] = ((1, 17640, 4), (1, 4420, 4), (1, 300, 4), (64, 4))
HEADS: tuple[Shape, ...] = ((1, 12, 128, 64), (1, 3, 197, 64), (8, 4, 64, 32), (1, 8, 512, 64))


@dataclass(frozen=True)
class Form:
    """Two ways to write one computation, as statements in ONNX text syntax.

    They read ``x`` (attention: ``q``, ``k``, ``v``) and make ``y`` of the same shape. Without the
    fused one, it is what ``passes`` make of the unfused one and what stands around it; without
    these, it is quantized as this processor's target says, and unfused as a table without forms of
    its own says. ``weights``
    names vectors along the last dimension, or along the channels of an image; ``feeds`` names more
    inputs: ``mask`` is one of scores, any other has the shape of ``x``.
    """

    name: str
    opset: int
    unfused: str
    fused: str = ""
    constants: str = ""
    weights: tuple[str, ...] = ()
    shapes: tuple[Shape, ...] = TOKENS
    frame: str = "MatMul"
    feeds: tuple[str, ...] = ()
    passes: str = ""
    places: tuple[str, ...] = PLACES


def _layer_norm(name: str, square: str, divide: str, opset: int = 17) -> Form:
    """The decomposition with a choice of how it squares and how it divides by the deviation."""
    axes = "<axes = [-1]>(%s)" if opset < 18 else "(%s, axes)"
    mean, variance = axes % "x", axes % "s"
    return Form(
        f"layer-norm {name}",
        opset,
        f"m = ReduceMean{mean} d = Sub(x, m) s = {square} v = ReduceMean{variance} "
        f"e = Add(v, eps) r = Sqrt(e) {divide} g = Mul(n, scale) y = Add(g, bias)",
        "y = LayerNormalization<axis = -1, epsilon = 1e-5>(x, scale, bias)",
        "float eps = {1e-5}, float two = {2}, float one = {1}, int64[1] axes = {-1}",
        ("scale", "bias"),
    )


def _residual(name: str, unfused: str) -> Form:
    """As the default pipeline writes it: a Sum, which onnxruntime does not fuse, and the norm."""
    return Form(
        name,
        17,
        unfused,
        "t = Sum(x, other) y = LayerNormalization<axis = -1, epsilon = 1e-5>(t, scale, bias)",
        "float eps = {1e-5}",
        ("scale", "bias"),
        feeds=("other",),
    )


def _rms_norm(name: str, square: str, divide: str) -> Form:
    return Form(
        f"rms-norm {name}",
        23,
        f"s = {square} v = ReduceMean(s, axes) e = Add(v, eps) r = Sqrt(e) {divide} "
        "y = Mul(n, scale)",
        "y = RMSNormalization<axis = -1, epsilon = 1e-5>(x, scale)",
        "float eps = {1e-5}, float two = {2}, float one = {1}, int64[1] axes = {-1}",
        ("scale",),
    )


_GELU = "float root = {1.4142135623730951}, float half = {0.5}, float one = {1}, " + (
    "float inverse = {0.7071067811865476}"
)
_TANH = "float half = {0.5}, float one = {1}, float three = {3}, float cube = {0.044715}, " + (
    "float root = {0.7978845608028654}"
)
_TANH_INNER = "a = %s b = Mul(a, cube) c = Add(x, b) d = Mul(c, root) e = Tanh(d) f = Add(e, one) "
_SIX = "float three = {3}, float zero = {0}, float six = {6}, float sixth = {0.16666667}"
_HARD_SIGMOID = "HardSigmoid<alpha = 0.16666667, beta = 0.5>(x)"


def _gelu(name: str, unfused: str) -> Form:
    return Form(f"gelu {name}", 20, unfused, "y = Gelu(x)", _GELU, shapes=HIDDEN)


def _tanh(name: str, cubed: str, last: str) -> Form:
    return Form(
        f"gelu-tanh {name}",
        20,
        _TANH_INNER % cubed + last,
        'y = Gelu<approximate = "tanh">(x)',
        _TANH,
        shapes=HIDDEN,
    )


def _image(name: str, opset: int, unfused: str, fused: str, constants: str = "") -> Form:
    return Form(name, opset, unfused, fused, constants, shapes=IMAGES, frame="Conv")


def _rewritten(
    name: str, unfused: str, passes: str, frame: str, weights: tuple[str, ...] = ()
) -> Form:
    """A form that is made by passes, of operators beside it that it goes into."""
    return Form(
        name,
        13,
        unfused,
        constants="float eighth = {0.125}",
        weights=weights,
        shapes=IMAGES if frame == "Conv" else HIDDEN,
        frame=frame,
        passes=passes,
        places=("float", "int8"),
    )


def _attention(name: str, unfused: str, fused: str, *feeds: str) -> Form:
    return Form(
        f"attention {name}",
        23,
        unfused,
        fused,
        "float root = {0.125}, float fourth = {0.35355339}",
        shapes=HEADS,
        frame="Attention",
        feeds=feeds,
    )


def _in_integers(name: str, computed: str, constants: str = "") -> Form:
    """What a target's table has a form for in integers."""
    return Form(
        name, 13, computed, constants=constants, shapes=IMAGES, frame="Conv", places=("int8",)
    )


_PLAIN = """extends = "cpu-x64"
without = ["Sub", "Div"]
[operators]
Add = { role = "follow", constant_inputs = true }
Mul = { role = "follow", constant_inputs = true }
Resize = { role = "share", activations = [0], attributes = { mode = "nearest" } }
"""
_FLOOR = 'mode = "nearest", coordinate_transformation_mode = "asymmetric", nearest_mode = "floor"'

_TRANSPOSED = "t = Transpose<perm = [0, 1, 3, 2]>(k) "

FORMS = (
    _layer_norm("Pow, Div", "Pow(d, two)", "n = Div(d, r)"),
    _layer_norm("Pow, Div, axes as input", "Pow(d, two)", "n = Div(d, r)", 18),
    _layer_norm("Mul, Div", "Mul(d, d)", "n = Div(d, r)"),
    _layer_norm("Pow, Reciprocal", "Pow(d, two)", "i = Reciprocal(r) n = Mul(d, i)"),
    _layer_norm("Mul, Reciprocal", "Mul(d, d)", "i = Reciprocal(r) n = Mul(d, i)"),
    _residual(
        "layer-norm after a residual",
        "t = Add(x, other) m = ReduceMean<axes = [-1]>(t) d = Sub(t, m) s = Mul(d, d) "
        "v = ReduceMean<axes = [-1]>(s) e = Add(v, eps) r = Sqrt(e) n = Div(d, r) "
        "g = Mul(n, scale) y = Add(g, bias)",
    ),
    _residual(
        "residual-as-sum",
        "t = Add(x, other) y = LayerNormalization<axis = -1, epsilon = 1e-5>(t, scale, bias)",
    ),
    _rms_norm("Pow, Div", "Pow(x, two)", "n = Div(x, r)"),
    _rms_norm("Mul, Div", "Mul(x, x)", "n = Div(x, r)"),
    _rms_norm("Pow, Reciprocal", "Pow(x, two)", "i = Reciprocal(r) n = Mul(x, i)"),
    _rms_norm("Pow, 1/r", "Pow(x, two)", "i = Div(one, r) n = Mul(x, i)"),
    _gelu(
        "x/r, (x*half)*",
        "d = Div(x, root) e = Erf(d) a = Add(e, one) h = Mul(x, half) y = Mul(h, a)",
    ),
    _gelu(
        "x/r, (x*)*half",
        "d = Div(x, root) e = Erf(d) a = Add(e, one) h = Mul(x, a) y = Mul(h, half)",
    ),
    _gelu(
        "x*i, x*(half*)",
        "d = Mul(x, inverse) e = Erf(d) a = Add(e, one) h = Mul(a, half) y = Mul(x, h)",
    ),
    _gelu(
        "x*i, (x*half)*",
        "d = Mul(x, inverse) e = Erf(d) a = Add(e, one) h = Mul(x, half) y = Mul(h, a)",
    ),
    Form(
        "gelu after a bias",
        20,
        "b = Add(x, shift) d = Mul(b, inverse) e = Erf(d) a = Add(e, one) h = Mul(b, half) "
        "y = Mul(h, a)",
        "b = Add(x, shift) y = Gelu(b)",
        _GELU,
        ("shift",),
        shapes=HIDDEN,
    ),
    _tanh("Pow, (x*half)*", "Pow(x, three)", "h = Mul(x, half) y = Mul(h, f)"),
    _tanh("Pow, x*(half*)", "Pow(x, three)", "h = Mul(f, half) y = Mul(x, h)"),
    _image(
        "hard-sigmoid",
        14,
        "a = Add(x, three) c = Clip(a, zero, six) y = Div(c, six)",
        f"y = {_HARD_SIGMOID}",
        _SIX,
    ),
    _image(
        "hard-swish x*(clip/6)",
        14,
        "a = Add(x, three) c = Clip(a, zero, six) d = Div(c, six) y = Mul(x, d)",
        "y = HardSwish(x)",
        _SIX,
    ),
    _image(
        "hard-swish (x*clip)/6",
        14,
        "a = Add(x, three) c = Clip(a, zero, six) d = Mul(x, c) y = Div(d, six)",
        "y = HardSwish(x)",
        _SIX,
    ),
    _image(
        "hard-swish HardSigmoid, HardSwish",
        14,
        f"h = {_HARD_SIGMOID} y = Mul(x, h)",
        "y = HardSwish(x)",
        _SIX,
    ),
    _image(
        "hard-swish (x*clip)/6 before opset 14",
        13,
        "a = Add(x, three) c = Clip(a, zero, six) d = Mul(x, c) y = Div(d, six)",
        f"h = {_HARD_SIGMOID} y = Mul(x, h)",
        _SIX,
    ),
    _image(
        "factor-gate",
        13,
        f"g = GlobalAveragePool(x) s = {_HARD_SIGMOID.replace('(x)', '(g)')} m = Mul(x, s) "
        "y = Add(x, m)",
        f"g = GlobalAveragePool(x) s = {_HARD_SIGMOID.replace('(x)', '(g)')} o = Add(s, one) "
        "y = Mul(x, o)",
        "float one = {1}",
    ),
    _image("swish", 24, "s = Sigmoid(x) y = Mul(x, s)", "y = Swish(x)"),
    _image(
        "swish alpha",
        24,
        "a = Mul(x, alpha) s = Sigmoid(a) y = Mul(x, s)",
        "y = Swish<alpha = 1.702>(x)",
        "float alpha = {1.702}",
    ),
    Form(
        "softmax plain",
        13,
        "e = Exp(x) s = ReduceSum(e, axes) y = Div(e, s)",
        "y = Softmax<axis = -1>(x)",
        "int64[1] axes = {-1}",
        shapes=SCORES,
    ),
    Form(
        "softmax max",
        13,
        "m = ReduceMax<axes = [-1]>(x) d = Sub(x, m) e = Exp(d) "
        "s = ReduceSum(e, axes) y = Div(e, s)",
        "y = Softmax<axis = -1>(x)",
        "int64[1] axes = {-1}",
        shapes=SCORES,
    ),
    Form(
        "log-softmax Log of Softmax",
        13,
        "p = Softmax<axis = -1>(x) y = Log(p)",
        "y = LogSoftmax<axis = -1>(x)",
        shapes=LOGITS,
    ),
    Form(
        "log-softmax x - lse",
        18,
        "l = ReduceLogSumExp(x, axes) y = Sub(x, l)",
        "y = LogSoftmax<axis = -1>(x)",
        "int64[1] axes = {-1}",
        shapes=LOGITS,
    ),
    _image("clip Max, Min", 13, "a = Max(x, zero) y = Min(a, six)", "y = Clip(x, zero, six)", _SIX),
    _image("clip Relu, Min", 13, "a = Relu(x) y = Min(a, six)", "y = Clip(x, zero, six)", _SIX),
    _image(
        "clip Relu, Clip", 13, "a = Relu(x) y = Clip(a, zero, six)", "y = Clip(x, zero, six)", _SIX
    ),
    _image("clip Clip, Relu", 13, "a = Clip(x, , six) y = Relu(a)", "y = Clip(x, zero, six)", _SIX),
    _image(
        "clip Clip, Clip",
        13,
        "a = Clip(x, zero, six) y = Clip(a, zero, three)",
        "y = Clip(x, zero, three)",
        _SIX,
    ),
    _image("clip Max zero to Relu", 13, "y = Max(x, zero)", "y = Relu(x)", _SIX),
    _rewritten("conv-scale Mul", "y = Mul(x, factor)", "fuse-conv-scale", "Conv", ("factor",)),
    _rewritten("conv-scale Add", "y = Add(x, addend)", "fuse-conv-scale", "Conv", ("addend",)),
    _rewritten("matmul-scale Mul after", "y = Mul(x, eighth)", "fuse-conv-scale", "MatMul"),
    _rewritten("matmul-input Mul", "t = Tanh(x) y = Mul(t, eighth)", "fuse-conv-input", "MatMul"),
    Form(
        "softmax of two",
        13,
        "y = Softmax(x)",
        "d = MatMul(x, differences) y = Sigmoid(d)",
        "float[2, 2] differences = {1, -1, -1, 1}",
        shapes=PAIRS,
        places=("alone",),
    ),
    Form(
        "linear rows",
        13,
        "c, s = Split<axis = -1>(x, halves) h = Mul(s, half) a = Sub(c, h) b = Add(c, h) "
        "y = Concat<axis = -1>(a, b)",
        "y = MatMul(x, matrix)",
        "int64[2] halves = {2, 2}, float half = {0.5}, "
        "float[4, 4] matrix = {1, 0, 1, 0, 0, 1, 0, 1, -0.5, 0, 0.5, 0, 0, -0.5, 0, 0.5}",
        shapes=BOXES,
        places=("alone",),
    ),
    _rewritten(
        "conv-input Mul, Add",
        "t = Relu(x) a = Mul(t, eighth) y = Add(a, eighth)",
        "fuse-conv-input",
        "Conv",
    ),
    _in_integers(
        "line Mul, Sub", "a = Mul(x, eighth) y = Sub(a, eighth)", "float eighth = {0.125}"
    ),
    _in_integers(
        "repeat",
        "a = MaxPool<kernel_shape = [2, 2], strides = [2, 2]>(x) "
        f"b = Resize<{_FLOOR}>(a, none, twice) y = Add(b, x)",
        "float[0] none = {}, float[4] twice = {1, 1, 2, 2}",
    ),
    _rewritten(
        "batch-norm alone",
        "a = MaxPool<kernel_shape = [3, 3], pads = [1, 1, 1, 1]>(x) "
        "b = BatchNormalization(a, scale, shift, shift, scale) y = Relu(b)",
        "fuse-batch-norm{alone=true}",
        "Conv",
        ("scale", "shift"),
    ),
    _rewritten(
        "transposes around Relu",
        "a = Transpose<perm = [0, 2, 3, 1]>(x) b = Relu(a) y = Transpose<perm = [0, 3, 1, 2]>(b)",
        "merge-transposes",
        "Conv",
    ),
    _rewritten(
        "transposes around Sigmoid and Mul",
        "a = Transpose<perm = [0, 2, 3, 1]>(x) b = Sigmoid(a) c = Mul(a, b) "
        "y = Transpose<perm = [0, 3, 1, 2]>(c)",
        "merge-transposes",
        "Conv",
    ),
    _attention(
        "scale after",
        _TRANSPOSED + "a = MatMul(q, t) b = Mul(a, root) "
        "p = Softmax<axis = -1>(b) y = MatMul(p, v)",
        "y = Attention<scale = 0.125>(q, k, v)",
    ),
    _attention(
        "scale both",
        "t = Transpose<perm = [0, 1, 3, 2]>(k) f = Mul(q, fourth) "
        "u = Mul(t, fourth) a = MatMul(f, u) p = Softmax<axis = -1>(a) y = MatMul(p, v)",
        "y = Attention<scale = 0.125>(q, k, v)",
    ),
    _attention(
        "mask",
        _TRANSPOSED + "a = MatMul(q, t) b = Mul(a, root) c = Add(b, mask) "
        "p = Softmax<axis = -1>(c) y = MatMul(p, v)",
        "y = Attention<scale = 0.125>(q, k, v, mask)",
        "mask",
    ),
)


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
