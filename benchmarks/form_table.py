"""The computations that can be written in several ways, see forms.py."""

from __future__ import annotations

from dataclasses import dataclass

PLACES = ("alone", "float", "int8")
"""Where a form stands: by itself, between float operators, between integer operators."""

Shape = tuple[int, ...]
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
