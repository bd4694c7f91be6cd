"""Shapes of operators that onnx has no rules for: what onnxruntime's optimizer and quantizer write, and the smaller
part of ai.onnx.ml. Where a shape is not known, or an operator is used in an uncommon way, the output's is unknown.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

Shape = tuple[int, ...]
Options = Mapping[str, Any]  # attributes of a node, as Python's values
FLOAT, FIRST = -1, 0  # whose kind of number an output has: float32, or that of an input


class Rule(NamedTuple):
    """Shapes of the outputs from those of the inputs, KeyError or worse where that cannot be told."""

    shapes: Callable[[Sequence[Any], Options], Sequence[Shape]]
    kind: int = FIRST


def _same(x: Sequence[Any], options: Options) -> list[Shape]:
    return [x[0]]


def _sides(at: int, bt: int) -> Callable[[Sequence[Any], Options], list[Shape]]:
    """A product of stacks of matrices, each turned where the options say so."""

    def shapes(x: Sequence[Any], options: Options) -> list[Shape]:
        if options.get("transBatchA") or options.get("transBatchB"):
            raise KeyError("transBatch")
        a, b = x[at], x[bt]
        a = (*a[:-2], a[-1], a[-2]) if options.get("transA") else a
        b = (*b[:-2], b[-1], b[-2]) if options.get("transB") else b
        if len(a) < 2 or len(b) < 2 or a[-1] != b[-2]:
            raise KeyError("sides")
        return [(*np.broadcast_shapes(a[:-2], b[:-2]), a[-2], b[-1])]

    return shapes


def _convolution(x: Sequence[Any], options: Options) -> list[Shape]:
    """x [N, C, *in], weight [out, C / groups, *kernel]."""
    image, weight = x[0], x[1]
    return [(image[0], weight[0], *_slid(image[2:], weight[2:], options))]


def _pool(x: Sequence[Any], options: Options) -> list[Shape]:
    if options.get("channels_last") or options.get("ceil_mode"):
        raise KeyError("layout")
    return [(*x[0][:2], *_slid(x[0][2:], options["kernel_shape"], options))]


def _slid(sizes: Shape, kernel: Sequence[int], options: Options) -> list[int]:
    """How often a kernel fits along each axis."""
    n = len(sizes)
    strides = options.get("strides", [1] * n)
    if (pad := options.get("auto_pad", b"NOTSET")) in (b"SAME_UPPER", b"SAME_LOWER"):
        return [-(-size // stride) for size, stride in zip(sizes, strides, strict=True)]
    pads = options.get("pads", [0] * 2 * n) if pad == b"NOTSET" else [0] * 2 * n
    reach = [(k - 1) * d for k, d in zip(kernel, options.get("dilations", [1] * n), strict=True)]
    return [(sizes[i] + pads[i] + pads[n + i] - reach[i] - 1) // strides[i] + 1 for i in range(n)]


def _concat(x: Sequence[Any], options: Options) -> list[Shape]:
    parts, axis = list(x[2::3]), options["axis"]
    whole = list(parts[0])
    whole[axis] = sum(part[axis] for part in parts)
    return [tuple(whole)]


def _global_pool(x: Sequence[Any], options: Options) -> list[Shape]:
    ones = (1,) * (len(x[0]) - 2)
    return [(x[0][0], *ones, x[0][-1]) if options.get("channels_last") else (*x[0][:2], *ones)]


def _attention(x: Sequence[Any], options: Options) -> list[Shape]:
    """x [batch, steps, in], weight [in, queries + keys + values]."""
    sizes = options.get("qkv_hidden_sizes")
    return [(*x[0][:2], sizes[2] if sizes else x[1][1] // 3)]


def _lstm(x: Sequence[Any], options: Options) -> list[Shape]:
    steps, batch, _ = x[0]
    sides, hidden = x[2][0], x[2][1]
    return [(steps, sides, batch, hidden), (sides, batch, hidden), (sides, batch, hidden)]


def _picked(x: Sequence[Any], options: Options) -> list[Shape]:
    """Rows of a table: packed, or of a kind of 4 bits, as its scales tell, of which there is one in each block."""
    table, rows, scales = x[0], x[1], x[2]
    if options.get("gather_axis", 0) != 0:
        raise KeyError("gather_axis")
    last = options.get("quantize_axis", 1) % len(table) == len(table) - 1
    block = options.get("block_size", 128) if last else 1
    wide = {
        each * table[-1] for each in (1, 8 // options.get("bits", 4)) if -(-each * table[-1] // block) == scales[-1]
    }
    if len(wide) != 1:
        raise KeyError("scales")
    return [(*rows, *table[1:-1], wide.pop())]


def _linear(x: Sequence[Any], options: Options) -> list[Shape]:
    return [(x[0][0], options.get("targets", 1))]


def _classes(x: Sequence[Any], options: Options) -> list[Shape]:
    classes = max(len(options.get("classlabels_ints", ())), len(options.get("classlabels_strings", ())))
    return [(x[0][0],), (x[0][0], classes)]


_SAME = """
    Gelu FastGelu BiasGelu QuickGelu BiasAdd SkipLayerNormalization SkipSimplifiedLayerNormalization BiasSoftmax
    QLinearSigmoid QLinearLeakyRelu QLinearSoftmax RotaryEmbedding Trilu GroupNorm
"""

RULES: dict[str, Rule] = {
    **{f"com.microsoft::{name}": Rule(_same) for name in _SAME.split()},
    "SimplifiedLayerNormalization": Rule(_same),
    "GroupNormalization": Rule(_same),
    "com.microsoft::QuantizeLinear": Rule(_same, 2),
    "com.microsoft::DequantizeLinear": Rule(_same, FLOAT),
    "com.microsoft::QLinearAdd": Rule(lambda x, options: [np.broadcast_shapes(x[0], x[3])]),
    "com.microsoft::QLinearMul": Rule(lambda x, options: [np.broadcast_shapes(x[0], x[3])]),
    "com.microsoft::QLinearConcat": Rule(_concat, 2),
    "com.microsoft::QLinearGlobalAveragePool": Rule(_global_pool),
    "com.microsoft::QLinearAveragePool": Rule(_pool),
    "com.microsoft::FusedConv": Rule(_convolution),
    "com.microsoft::FusedMatMul": Rule(_sides(0, 1)),
    "com.microsoft::FusedMatMulActivation": Rule(_sides(0, 1)),
    "com.microsoft::TransposeMatMul": Rule(_sides(0, 1)),
    "com.microsoft::FusedGemm": Rule(_sides(0, 1)),
    "com.microsoft::QGemm": Rule(_sides(0, 3)),
    "com.microsoft::MatMulIntegerToFloat": Rule(_sides(0, 1), FLOAT),
    "com.microsoft::DynamicQuantizeMatMul": Rule(_sides(0, 1)),
    "com.microsoft::MatMulNBits": Rule(lambda x, options: [(*x[0][:-1], options["N"])]),
    "com.microsoft::MatMulBnb4": Rule(lambda x, options: [(*x[0][:-1], options["N"])]),
    "com.microsoft::GatherBlockQuantized": Rule(_picked, 2),
    "com.microsoft::Attention": Rule(_attention),
    "com.microsoft::QAttention": Rule(_attention, FLOAT),
    "com.microsoft::MultiHeadAttention": Rule(lambda x, options: [(*x[0][:2], x[2][2])]),
    "com.microsoft::EmbedLayerNormalization": Rule(lambda x, options: [(*x[0], x[2][1]), (x[0][0],)], 2),
    "com.microsoft::DynamicQuantizeLSTM": Rule(_lstm),
    "ai.onnx.ml::LinearRegressor": Rule(_linear, FLOAT),
    "ai.onnx.ml::LinearClassifier": Rule(_classes, FLOAT),
    "ai.onnx.ml::Scaler": Rule(_same, FLOAT),
    "ai.onnx.ml::Normalizer": Rule(_same, FLOAT),
    "ai.onnx.ml::Binarizer": Rule(_same),
    "ai.onnx.ml::Imputer": Rule(_same),
}


def shapes(rule: Rule, inputs: Sequence[Shape | None], options: Options) -> list[Shape]:
    """The shapes of the outputs by a rule, as many as it knows; none where it cannot tell."""
    try:
        made = [tuple(int(n) for n in shape) for shape in rule.shapes(inputs, options)]
    except (KeyError, IndexError, TypeError, ValueError, ZeroDivisionError):
        return []
    return made if all(n >= 0 for shape in made for n in shape) else []
