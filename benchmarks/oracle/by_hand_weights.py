"""Weights by hand: every way to store numbers that a counter may overlook, and numbers that are no weights."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
from hand import RANDOM, const, node, save, tensor, weight
from onnx import TensorProto, helper, numpy_helper
from table import Make, Truth

PACKAGES = ("onnx",)

X, Y = tensor("x", ["batch", 32]), tensor("y", ["batch", 64])
FULL = 32 * 64  # MACs and numbers of the one matrix that most files here hide
SCALE, ZERO = const("scale", 0.02, np.float32), const("zero", 0, np.int8)


def hidden(
    path: Path, nodes: Sequence[onnx.NodeProto], numbers: Sequence[Any], params: int, how: str, **rest: Any
) -> Truth:
    """A matrix product whose stored operand is what `nodes` make of `numbers` and call w."""
    either = rest.pop("either", {})
    save(path, [*nodes, node("MatMul", ["x", "w"], ["y"])], [X], [Y], numbers, **rest)
    return Truth(FULL, params, how, either=either)


def palette(path: Path) -> Truth:
    """16 values, and an index of a byte for each place."""
    nodes = [node("Cast", ["places"], ["at"], to=TensorProto.INT64), node("Gather", ["values", "at"], ["w"])]
    places = numpy_helper.from_array(RANDOM.integers(0, 16, (32, 64)).astype(np.uint8), "places")
    return hidden(path, nodes, [weight("values", 16), places], 16 + FULL, "16 values, 32 x 64 places")


def palette_rows(path: Path) -> Truth:
    """A palette for each row: 32 x 16 values, chosen by GatherElements."""
    places = numpy_helper.from_array(RANDOM.integers(0, 16, (32, 64)), "places")
    nodes = [node("GatherElements", ["values", "places"], ["w"], axis=1)]
    return hidden(path, nodes, [weight("values", 32, 16), places], 32 * 16 + FULL, "32 x 16 values, 32 x 64 places")


def four_bits_by_hand(path: Path) -> Truth:
    """Two numbers in a byte, taken apart by a mask and a shift, scaled by column."""
    nodes = [
        node("BitwiseAnd", ["bytes", "fifteen"], ["low"]),
        node("BitShift", ["bytes", "four"], ["high"], direction="RIGHT"),
        node("Concat", ["low", "high"], ["all"], axis=1),
        node("Cast", ["all"], ["real"], to=TensorProto.FLOAT),
        node("Sub", ["real", "eight"], ["even"]),
        node("Mul", ["even", "by"], ["w"]),
    ]
    masks = [const("fifteen", 15, np.uint8), const("four", 4, np.uint8), const("eight", 8, np.float32)]
    numbers = [weight("bytes", 32, 32, kind=np.uint8), *masks, weight("by", 64)]
    name = {"params": "BitwiseAnd|BitShift|bytes"}
    return hidden(path, nodes, numbers, FULL + 64, "two 4-bit numbers a byte, and 64 scales", opset=18, either=name)


def four_bits(path: Path, zeros: bool) -> Truth:
    """INT4 of opset 21, in blocks of 8 rows with a scale each, and with a zero point each or none."""
    packed = [TensorProto(name="q", dims=[32, 64], data_type=TensorProto.INT4, raw_data=bytes(FULL // 2))]
    packed += [TensorProto(name="z", dims=[4, 64], data_type=TensorProto.INT4, raw_data=bytes(4 * 32))] * zeros
    ins = ["q", "s", "z"] if zeros else ["q", "s"]
    nodes = [node("DequantizeLinear", ins, ["w"], axis=0, block_size=8)]
    params = FULL + 4 * 64 * (1 + zeros)
    return hidden(path, nodes, [*packed, weight("s", 4, 64)], params, f"32 x 64 and 4 x 64 x {1 + zeros}", opset=21)


def narrow(path: Path, kind: int, opset: int = 19) -> Truth:
    """fp8, scaled by one number."""
    numbers = [TensorProto(name="q", dims=[32, 64], data_type=kind, raw_data=bytes(FULL)), SCALE]
    return hidden(
        path, [node("DequantizeLinear", ["q", "scale"], ["w"])], numbers, FULL, "32 x 64 of 8 bits", opset=opset
    )


def real(path: Path, kind: int, numpy_kind: Any) -> Truth:
    """The same product in another precision from end to end."""
    numbers = [weight("w", 32, 64, kind=numpy_kind)]
    ins, outs = tensor("x", ["batch", 32], kind), tensor("y", ["batch", 64], kind)
    save(path, [node("MatMul", ["x", "w"], ["y"])], [ins], [outs], numbers, opset=21)
    return Truth(FULL, FULL, "32 x 64")


def chain(path: Path) -> Truth:
    """int8, turned, shaped, cast and scaled by columns before it is a weight."""
    nodes = [
        node("Identity", ["q"], ["i"]),
        node("Reshape", ["i", "shape"], ["r"]),
        node("Transpose", ["r"], ["t"], perm=[1, 0]),
        node("Cast", ["t"], ["c"], to=TensorProto.FLOAT),
        node("Mul", ["c", "by"], ["w"]),
    ]
    numbers = [weight("q", 2, 32, 32, kind=np.int8), const("shape", [64, 32]), weight("by", 1, 64)]
    return hidden(path, nodes, numbers, FULL + 64, "2 x 32 x 32 of 8 bits, 64 scales")


def constants(path: Path) -> Truth:
    """Nothing but Constant nodes: a tensor, a list of floats, a single float."""
    nodes = [
        node("Constant", [], ["w"], value=weight("", 32, 64)),
        node("Constant", [], ["b"], value_floats=[0.5] * 64),
        node("Constant", [], ["two"], value_float=2.0),
        node("MatMul", ["x", "w"], ["m"]),
        node("Add", ["m", "b"], ["a"]),
        node("Mul", ["a", "two"], ["y"]),
    ]
    save(path, nodes, [X], [Y])
    return Truth(FULL, FULL + 64, "32 x 64 and 64; a single number is no parameter")


def sparse(path: Path) -> Truth:
    """300 of 32 x 64 numbers are stored, with their places."""
    places = np.sort(RANDOM.choice(FULL, 300, replace=False))
    values = helper.make_tensor("w", TensorProto.FLOAT, [300], RANDOM.standard_normal(300).astype(np.float32))
    index = helper.make_tensor("w_places", TensorProto.INT64, [300], places)
    stored = helper.make_sparse_tensor(values, index, [32, 64])
    save(path, [node("MatMul", ["x", "w"], ["y"])], [X], [Y], sparse_initializer=[stored])
    either = {"params": r"sparse|\bw\b"}
    return Truth(FULL, 300, "a dense product; 300 values stored", either=either, also={"params": [FULL]})


def beside(path: Path) -> Truth:
    """The weight lies in a file of its own, beside this one."""
    model = save(path, [node("MatMul", ["x", "w"], ["y"])], [X], [Y], [weight("w", 32, 64)])
    data = f"{path.stem}.data"
    (path.parent / data).unlink(missing_ok=True)
    onnx.save(model, path, save_as_external_data=True, location=data, size_threshold=0)
    return Truth(FULL, FULL, "32 x 64, in a file beside it")


def embedding(path: Path) -> Truth:
    """An embedding of 8 bits: rows are taken first, and scaled after."""
    nodes = [
        node("Gather", ["rows", "ids"], ["g"]),
        node("DequantizeLinear", ["g", "scale", "zero"], ["e"]),
        node("MatMul", ["e", "w"], ["y"]),
    ]
    numbers = [weight("rows", 200, 32, kind=np.int8), SCALE, ZERO, weight("w", 32, 5)]
    ids = tensor("ids", ["batch", 9], TensorProto.INT64)
    save(path, nodes, [ids], [tensor("y", ["batch", 9, 5])], numbers)
    return Truth(9 * 160, 6400 + 160, "9 tokens x 32 x 5; 200 x 32 rows and 32 x 5")


def integers(path: Path, channels: bool) -> Truth:
    """QLinearConv with a bias of 32 bits, QLinearMatMul; scales and zero points one by one, or by channel."""
    u8 = [const("xs", 0.02, np.float32), const("xz", 128, np.uint8)]
    count = 6 if channels else 1
    by = [weight("ws", 6), const("wz", [0] * 6, np.int8)] if channels else [SCALE, ZERO]
    ws, wz = by[0].name, by[1].name
    nodes = [
        node("QuantizeLinear", ["x", "xs", "xz"], ["q"]),
        node("QLinearConv", ["q", "xs", "xz", "w", ws, wz, "xs", "xz", "b"], ["c"], pads=[1, 1, 1, 1]),
        node("Flatten", ["c"], ["f"]),
        node("QLinearMatMul", ["f", "xs", "xz", "v", "scale", "zero", "xs", "xz"], ["m"]),
        node("DequantizeLinear", ["m", "xs", "xz"], ["y"]),
    ]
    numbers = [*u8, *by, *([SCALE, ZERO] if channels else [])]
    numbers += [weight("w", 6, 3, 3, 3, kind=np.int8), weight("b", 6, kind=np.int32), weight("v", 96, 5, kind=np.int8)]
    save(path, nodes, [tensor("x", ["batch", 3, 4, 4])], [tensor("y", ["batch", 5])], numbers)
    extra = 2 * count if channels else 0
    return Truth(16 * 162 + 480, 162 + 6 + 480 + extra, f"16 x 6 x 27 and 96 x 5; {extra} scales and zero points")


def integer_products(path: Path) -> Truth:
    """ConvInteger and MatMulInteger, as dynamic quantisation writes them."""
    nodes = [
        node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"]),
        node("ConvInteger", ["q", "w", "z", "zero"], ["c"], pads=[1, 1, 1, 1]),
        node("Cast", ["c"], ["r"], to=TensorProto.FLOAT),
        node("Flatten", ["r"], ["f"]),
        node("DynamicQuantizeLinear", ["f"], ["fq", "fs", "fz"]),
        node("MatMulInteger", ["fq", "v", "fz", "zero"], ["m"]),
        node("Cast", ["m"], ["y"], to=TensorProto.FLOAT),
    ]
    numbers = [weight("w", 6, 3, 3, 3, kind=np.uint8), const("zero", 100, np.uint8), weight("v", 96, 5, kind=np.uint8)]
    save(path, nodes, [tensor("x", ["batch", 3, 4, 4])], [tensor("y", ["batch", 5])], numbers)
    return Truth(16 * 162 + 480, 162 + 480, "16 x 6 x 27 and 96 x 5")


def shared(path: Path) -> Truth:
    """One matrix used twice, once turned; another one stored and never used."""
    nodes = [
        node("MatMul", ["x", "w"], ["m"]),
        node("Transpose", ["w"], ["t"], perm=[1, 0]),
        node("MatMul", ["m", "t"], ["y"]),
    ]
    numbers = [weight("w", 32, 64), weight("idle", 50, 50)]
    save(path, nodes, [X], [tensor("y", ["batch", 32])], numbers)
    return Truth(2 * FULL, FULL, "32 x 64 there and back; what reaches nothing does not count")


def norms(path: Path) -> Truth:
    """Batch, instance, group and layer normalisation: their scales and shifts count, means and variances do not."""
    nodes = [
        node("Conv", ["x", "w"], ["c"], pads=[1, 1, 1, 1]),
        node("BatchNormalization", ["c", "s1", "b1", "mean", "var"], ["n1"]),
        node("InstanceNormalization", ["n1", "s2", "b2"], ["n2"]),
        node("GroupNormalization", ["n2", "s3", "b3"], ["n3"], num_groups=4),
        node("LayerNormalization", ["n3", "s4", "b4"], ["n4"], axis=-1),
        node("PRelu", ["n4", "slope"], ["y"]),
    ]
    pairs = [weight(f"{kind}{index}", size) for index, size in ((1, 8), (2, 8), (3, 8), (4, 10)) for kind in "sb"]
    numbers = [weight("w", 8, 3, 3, 3), *pairs, weight("mean", 8), weight("var", 8), weight("slope", 8, 1, 1)]
    save(path, nodes, [tensor("x", ["batch", 3, 10, 10])], [tensor("y", ["batch", 8, 10, 10])], numbers, opset=21)
    return Truth(100 * 216, 216 + 2 * 34 + 8, "100 x 216; 2 x (8 + 8 + 8 + 10) and 8 slopes")


def masked(path: Path) -> Truth:
    """Attention with a mask that a Where chooses by, sizes of a Resize and of a Slice: none of them is a weight."""
    nodes = [
        node("MatMul", ["x", "w"], ["q"]),
        node("Transpose", ["q"], ["t"], perm=[0, 2, 1]),
        node("MatMul", ["q", "t"], ["s"]),
        node("Where", ["mask", "s", "low"], ["m"]),
        node("Softmax", ["m"], ["p"]),
        node("MatMul", ["p", "q"], ["a"]),
        node("Slice", ["a", "start", "stop", "axis"], ["half"]),
        node("Resize", ["half", "", "sizes"], ["z"], mode="linear"),
        node("Clip", ["z", "least", "most"], ["y"]),
    ]
    limits = [const("low", -1e9, np.float32), const("least", -6, np.float32), const("most", 6, np.float32)]
    cuts = [const("start", [0]), const("stop", [3]), const("axis", [1])]
    numbers = [weight("w", 16, 8), const("mask", np.tri(6), np.bool_), const("sizes", [1, 1, 2], np.float32)]
    ins, outs = tensor("x", ["batch", 6, 16]), tensor("y", ["batch", 3, 16])
    save(path, nodes, [ins], [outs], [*numbers, *limits, *cuts])
    return Truth(6 * 128 + 2 * 36 * 8, 128, "6 x 16 x 8 and twice 6 x 6 x 8; nothing else is a value")


def anchors(path: Path) -> Truth:
    """A detector's grid, added to what a convolution says, and strides to multiply by: numbers that compute."""
    nodes = [
        node("Conv", ["x", "w", "b"], ["c"]),
        node("Reshape", ["c", "flat"], ["f"]),
        node("Add", ["f", "grid"], ["a"]),
        node("Mul", ["a", "stride"], ["y"]),
    ]
    numbers = [weight("w", 4, 8, 1, 1), weight("b", 4), const("flat", [-1, 4, 25]), weight("grid", 1, 4, 25)]
    numbers += [const("stride", [[8.0] * 25], np.float32)]
    save(path, nodes, [tensor("x", ["batch", 8, 5, 5])], [tensor("y", ["batch", 4, 25])], numbers)
    return Truth(25 * 32, 32 + 4 + 100 + 25, "25 x 4 x 8; a grid of 100 and 25 strides")


FILES: dict[str, Make] = {
    "palette": palette,
    "palette_rows": palette_rows,
    "four_bits_by_hand": four_bits_by_hand,
    "four_bits": partial(four_bits, zeros=False),
    "four_bits_zeros": partial(four_bits, zeros=True),
    "fp8": partial(narrow, kind=TensorProto.FLOAT8E4M3FN),
    "fp8_wide": partial(narrow, kind=TensorProto.FLOAT8E5M2),
    "fp16": partial(real, kind=TensorProto.FLOAT16, numpy_kind=np.float16),
    "bf16": partial(real, kind=TensorProto.BFLOAT16, numpy_kind=ml_dtypes.bfloat16),
    "fp64": partial(real, kind=TensorProto.DOUBLE, numpy_kind=np.float64),
    "chain": chain,
    "constants": constants,
    "sparse": sparse,
    "beside": beside,
    "embedding": embedding,
    "integers": partial(integers, channels=False),
    "integers_channels": partial(integers, channels=True),
    "integer_products": integer_products,
    "shared": shared,
    "norms": norms,
    "masked": masked,
    "anchors": anchors,
}
