"""Print how fast the fused and the unfused form of a computation are, as a Markdown table.

Usage: python benchmarks/forms.py [FORM ...] [--where alone float int8] [--seconds S] [--operators]

FORM is the beginning of a form's name; without one all are measured. A form stands alone, between
two float MatMuls (1x1 Convs for those of images), or between the same quantized by insert-qdq
with the passes that this processor's target asks for. Both forms are measured in turn in one
process on one thread. The last column is the speed of the fused form relative to the unfused one:
above 1 the fusion pays. onnxruntime fuses much by itself at session start; `--operators` adds
what it really runs.

The forms of residual-as-sum compare whole models: before is the model as it is (float, or after
onnxruntime's dynamic or this project's static quantization), after is the same with its residual
Adds written as Sum.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from string import Template

import numpy as np
import onnx
import onnx.numpy_helper
import onnx.parser
from onnxruntime.quantization import quantize_dynamic

from onnxq.calibrate import calibrate
from onnxq.data import read
from onnxq.ir import Context, Graph, Pipeline, infer_types, load, parse_passes, to_proto
from onnxq.ir.load import from_proto
from onnxq.passes.insert_qdq import InsertQdq
from onnxq.passes.placement import place
from onnxq.passes.residual_as_sum import ResidualAsSum
from onnxq.quant import load_target
from onnxq.runtime import Session, interleaved
from onnxq.runtime.operators import optimized_operators

PLACES = ("alone", "float", "int8")
"""Where a form stands: by itself, between float operators, between integer operators."""

Shape = tuple[int, ...]

TOKENS: tuple[Shape, ...] = ((1, 128, 768), (1, 197, 192), (8, 65, 384), (1, 1, 1024))
HIDDEN: tuple[Shape, ...] = ((1, 128, 3072), (1, 197, 768), (8, 65, 768), (1, 1, 4096))
IMAGES: tuple[Shape, ...] = ((1, 16, 112, 112), (1, 96, 28, 28), (1, 240, 14, 14), (8, 32, 32, 32))
SCORES: tuple[Shape, ...] = ((1, 12, 128, 128), (1, 3, 197, 197), (8, 4, 64, 64), (1, 12, 1, 512))
LOGITS: tuple[Shape, ...] = ((1, 128, 768), (32, 10), (1, 1, 32000))
HEADS: tuple[Shape, ...] = ((1, 12, 128, 64), (1, 3, 197, 64), (8, 4, 64, 32), (1, 12, 1, 64))


@dataclass(frozen=True)
class Form:
    """Two ways to write one computation, as statements in ONNX text syntax.

    They read ``x`` (attention: ``q``, ``k``, ``v``) and make ``y`` of the same shape. ``$C`` is
    the last dimension, ``$R`` the rank, ``$S`` the last but one. ``constants`` are declared beside
    the weights; ``weights`` are random, one row of ``$C`` numbers each.
    """

    name: str
    opset: int
    unfused: str
    fused: str
    constants: str = ""
    weights: tuple[str, ...] = ()
    shapes: tuple[Shape, ...] = TOKENS
    frame: str = "MatMul"
    feeds: dict[str, str] = field(default_factory=dict)


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
_MASKED = "float root = {0.125}, float eighth = {0.35355339}"


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


def _attention(name: str, unfused: str, fused: str, *, mask: str = "") -> Form:
    feeds = {"mask": mask} if mask else {}
    return Form(
        f"attention {name}",
        23,
        unfused,
        fused,
        _MASKED,
        shapes=HEADS,
        frame="Attention",
        feeds=feeds,
    )


_TRANSPOSED = "t = Transpose<perm = [0, 1, 3, 2]>(k) "

FORMS = (
    _layer_norm("Pow, Div", "Pow(d, two)", "n = Div(d, r)"),
    _layer_norm("Pow, Div, axes as input", "Pow(d, two)", "n = Div(d, r)", 18),
    _layer_norm("Mul, Div", "Mul(d, d)", "n = Div(d, r)"),
    _layer_norm("Pow, Reciprocal", "Pow(d, two)", "i = Reciprocal(r) n = Mul(d, i)"),
    _layer_norm("Mul, Reciprocal", "Mul(d, d)", "i = Reciprocal(r) n = Mul(d, i)"),
    _rms_norm("Pow, Div", "Pow(x, two)", "n = Div(x, r)"),
    _rms_norm("Mul, Div", "Mul(x, x)", "n = Div(x, r)"),
    _rms_norm("Pow, Reciprocal", "Pow(x, two)", "i = Reciprocal(r) n = Mul(x, i)"),
    _rms_norm("Pow, 1/r", "Pow(x, two)", "i = Div(one, r) n = Mul(x, i)"),
    _gelu("x/√2, (x·half)·", "d = Div(x, root) e = Erf(d) a = Add(e, one) h = Mul(x, half) "
          "y = Mul(h, a)"),
    _gelu("x/√2, (x·)·half", "d = Div(x, root) e = Erf(d) a = Add(e, one) h = Mul(x, a) "
          "y = Mul(h, half)"),
    _gelu("x·(1/√2), x·(half·)", "d = Mul(x, inverse) e = Erf(d) a = Add(e, one) "
          "h = Mul(a, half) y = Mul(x, h)"),
    _gelu("x·(1/√2), (x·half)·", "d = Mul(x, inverse) e = Erf(d) a = Add(e, one) "
          "h = Mul(x, half) y = Mul(h, a)"),
    _tanh("Pow, (x·half)·", "Pow(x, three)", "h = Mul(x, half) y = Mul(h, f)"),
    _tanh("Pow, x·(half·)", "Pow(x, three)", "h = Mul(f, half) y = Mul(x, h)"),
    _image("hard-sigmoid", 14, "a = Add(x, three) c = Clip(a, zero, six) y = Div(c, six)",
           f"y = {_HARD_SIGMOID}", _SIX),
    _image("hard-swish Clip, HardSigmoid", 14,
           "a = Add(x, three) c = Clip(a, zero, six) d = Div(c, six) y = Mul(x, d)",
           f"h = {_HARD_SIGMOID} y = Mul(x, h)", _SIX),
    _image("hard-swish Clip, HardSwish", 14,
           "a = Add(x, three) c = Clip(a, zero, six) d = Div(c, six) y = Mul(x, d)",
           "y = HardSwish(x)", _SIX),
    _image("hard-swish (x·clip)/6", 14,
           "a = Add(x, three) c = Clip(a, zero, six) d = Mul(x, c) y = Div(d, six)",
           "y = HardSwish(x)", _SIX),
    _image("hard-swish HardSigmoid, HardSwish", 14, f"h = {_HARD_SIGMOID} y = Mul(x, h)",
           "y = HardSwish(x)", _SIX),
    _image("swish", 24, "s = Sigmoid(x) y = Mul(x, s)", "y = Swish(x)"),
    _image("swish alpha", 24, "a = Mul(x, alpha) s = Sigmoid(a) y = Mul(x, s)",
           "y = Swish<alpha = 1.702>(x)", "float alpha = {1.702}"),
    Form("softmax plain", 13, "e = Exp(x) s = ReduceSum(e, axes) y = Div(e, s)",
         "y = Softmax<axis = -1>(x)", "int64[1] axes = {-1}", shapes=SCORES),
    Form("softmax max", 13, "m = ReduceMax<axes = [-1]>(x) d = Sub(x, m) e = Exp(d) "
         "s = ReduceSum(e, axes) y = Div(e, s)", "y = Softmax<axis = -1>(x)",
         "int64[1] axes = {-1}", shapes=SCORES),
    Form("log-softmax Log of Softmax", 13, "p = Softmax<axis = -1>(x) y = Log(p)",
         "y = LogSoftmax<axis = -1>(x)", shapes=LOGITS),
    Form("log-softmax x - lse", 18, "l = ReduceLogSumExp(x, axes) y = Sub(x, l)",
         "y = LogSoftmax<axis = -1>(x)", "int64[1] axes = {-1}", shapes=LOGITS),
    _image("clip Max, Min", 13, "a = Max(x, zero) y = Min(a, six)", "y = Clip(x, zero, six)", _SIX),
    _image("clip Relu, Min", 13, "a = Relu(x) y = Min(a, six)", "y = Clip(x, zero, six)", _SIX),
    _image("clip Relu, Clip", 13, "a = Relu(x) y = Clip(a, zero, six)",
           "y = Clip(x, zero, six)", _SIX),
    _image("clip Clip, Relu", 13, "a = Clip(x, , six) y = Relu(a)", "y = Clip(x, zero, six)", _SIX),
    _image("clip Clip, Clip", 13, "a = Clip(x, zero, six) y = Clip(a, zero, three)",
           "y = Clip(x, zero, three)", _SIX),
    _image("clip Max zero to Relu", 13, "y = Max(x, zero)", "y = Relu(x)", _SIX),
    _attention("scale after", _TRANSPOSED + "a = MatMul(q, t) b = Mul(a, root) "
               "p = Softmax<axis = -1>(b) y = MatMul(p, v)",
               "y = Attention<scale = 0.125>(q, k, v)"),
    _attention("scale both", "t = Transpose<perm = [0, 1, 3, 2]>(k) f = Mul(q, eighth) "
               "u = Mul(t, eighth) a = MatMul(f, u) p = Softmax<axis = -1>(a) y = MatMul(p, v)",
               "y = Attention<scale = 0.125>(q, k, v)"),
    _attention("mask", _TRANSPOSED + "a = MatMul(q, t) b = Mul(a, root) c = Add(b, mask) "
               "p = Softmax<axis = -1>(c) y = MatMul(p, v)",
               "y = Attention<scale = 0.125>(q, k, v, mask)", mask="1, 1, $S, $S"),
)


def build_pair(form: Form, shape: Shape, where: str) -> tuple[onnx.ModelProto, onnx.ModelProto]:
    """The model with the unfused form and the one with the fused form.

    Raises:
        ValueError: ``where`` is none of `PLACES`.
    """
    if where not in PLACES:
        raise ValueError(f"{where} is none of {', '.join(PLACES)}")
    models = [_model(form, shape, where, body) for body in (form.unfused, form.fused)]
    if where == "int8":
        models = [quantized(model, random_feeds(model)) for model in models]
    return models[0], models[1]


def quantized(model: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> onnx.ModelProto:
    """The model in static 8-bit integers, as `onnxq.optimize` places them on this machine."""
    target = load_target("auto")
    graph = from_proto(model)
    Pipeline(parse_passes(target.passes)).run(graph)
    infer_types(graph)
    data = read([feeds], Session(model).inputs)
    ranges = calibrate(graph, data, place(graph, target).observed()).ranges
    step = InsertQdq({name: (r.min, r.max) for name, r in ranges.items()})
    Pipeline((step,), fixed_point=False).run(graph)
    return to_proto(graph)


def random_feeds(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    """Normally distributed numbers for every input of a model of floats with fixed shapes."""
    generator = np.random.default_rng(0)
    return {
        spec.name: generator.standard_normal(spec.shape).astype(np.float32)
        for spec in Session(model).inputs
    }


def _model(form: Form, shape: Shape, where: str, body: str) -> onnx.ModelProto:
    inputs, before, after, out, weights = _frame(form, shape, where)
    sizes = {"C": shape[-1], "S": shape[-2], "R": len(shape)}
    inputs = {**inputs, **form.feeds}
    weights = {**weights, **{name: (shape[-1],) for name in form.weights}}
    declared = [f"float[{_dims(s)}] {n}" for n, s in weights.items()]
    declared += [f"float[{s}] {n}" for n, s in inputs.items()]
    constants = f"<{form.constants}>" if form.constants else ""
    text = Template(
        f'<ir_version: 10, opset_import: ["": {form.opset}]> g ({", ".join(declared)}) '
        f"=> (float[{_dims(shape)}] {out}) {constants} {{ {before} {body} {after} }}"
    ).substitute(sizes)
    model = onnx.parser.parse_model(text)
    _fill(model, weights)
    onnx.checker.check_model(model, full_check=True)
    return model


def _frame(
    form: Form, shape: Shape, where: str
) -> tuple[dict[str, str], str, str, str, dict[str, Shape]]:
    """What stands around a form: inputs, statements before and after, output, weights."""
    if where == "alone":
        names = ("q", "k", "v") if form.frame == "Attention" else ("x",)
        return {n: _dims(shape) for n in names}, "", "", "y", {}
    if form.frame == "Conv":
        channels = shape[1]
        weights = {"w": (channels, channels, 1, 1), "u": (channels, channels, 1, 1)}
        return {"input": _dims(shape)}, "x = Conv(input, w)", "out = Conv(y, u)", "out", weights
    if form.frame == "Attention":
        return _attention_frame(shape)
    # The hidden layer of a feed-forward block is four times as wide as what goes in and out.
    last = shape[-1]
    width = last // 4 if form.shapes is HIDDEN else last
    weights = {"w": (width, last), "u": (last, width)}
    before, after = "x = MatMul(input, w)", "out = MatMul(y, u)"
    return {"input": _dims((*shape[:-1], width))}, before, after, "out", weights


def _attention_frame(
    shape: Shape,
) -> tuple[dict[str, str], str, str, str, dict[str, Shape]]:
    batch, heads, length, size = shape
    width = heads * size
    before = "".join(
        f"{n}0 = MatMul(input, w{n}) {n}1 = Reshape({n}0, split) "
        f"{n} = Transpose<perm = [0, 2, 1, 3]>({n}1) "
        for n in "qkv"
    )
    after = "y1 = Transpose<perm = [0, 2, 1, 3]>(y) y2 = Reshape(y1, join) out = MatMul(y2, wo)"
    weights = {f"w{n}": (width, width) for n in "qkvo"}
    return {"input": _dims((batch, length, width))}, before, after, "out", weights
