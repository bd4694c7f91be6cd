"""Shapes by hand: which axis is a batch, which symbol may be left out, and what a fixed first axis means."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from hand import Dims, const, node, save, tensor, weight
from onnx import TensorProto
from table import Make, Truth

PACKAGES = ("onnx",)

PIXEL = 8 * 3 * 3 * 3  # MACs of one pixel of the convolution here, which are its numbers too
LSTM = 4 * 12 * (16 + 12)  # of one step from 16 inputs to 12 units; its numbers with 2 * 4 * 12 biases


def conv(path: Path, dims: Dims, macs: int | None, how: str, **rest: object) -> Truth:
    """A 3x3 convolution of an image of any shape whatever."""
    out = [dims[0], 8, *dims[2:]]
    nodes = [node("Conv", ["image", "w"], ["y"], pads=[1, 1, 1, 1])]
    save(path, nodes, [tensor("image", dims)], [tensor("y", out)], [weight("w", 8, 3, 3, 3)])
    return Truth(macs, PIXEL, f"8 x 27 a pixel: {how}", **rest)  # type: ignore[arg-type]


def image(path: Path, dims: Dims, perm: list[int] | None, macs: int, name: str = "", given: str = "") -> Truth:
    """One image without a batch axis, turned to channels first where it is not."""
    turn = [node("Transpose", ["image"], ["t"], perm=perm or [0, 1, 2])]
    nodes = [*turn, node("Unsqueeze", ["t", "zero"], ["u"]), node("Conv", ["u", "w"], ["y"], pads=[1, 1, 1, 1])]
    out = [1, 8, *[dims[axis] for axis in (perm or [0, 1, 2])[1:]]]
    save(path, nodes, [tensor("image", dims)], [tensor("y", out)], [weight("w", 8, 3, 3, 3), const("zero", [0])])
    shape, refused = ((given,), {"MACs": name}) if name else ((), {})
    return Truth(macs, PIXEL, "8 x 27 a pixel of one image", shape, refused)


def lstm(path: Path, dims: Dims, out: str, name: str = "", layout: int = 0) -> Truth:
    """An LSTM over 7 steps, or over as many as somebody says."""
    numbers = [weight("w", 1, 48, 16), weight("r", 1, 48, 12), weight("b", 1, 96)]
    nodes = [node("LSTM", ["x", "w", "r", "b"], ["all", "last", "cell"], hidden_size=12, layout=layout)]
    steps, batch = (dims[1], dims[0]) if layout else dims[:2]
    all_dims = [batch, steps, 1, 12] if layout else [steps, 1, batch, 12]
    last_dims = [batch, 1, 12] if layout else [1, batch, 12]
    save(path, nodes, [tensor("x", dims)], [tensor(out, all_dims if out == "all" else last_dims)], numbers)
    shape, refused = (("x=1,7,16" if layout else "x=7,1,16",), {"MACs": name}) if name else ((), {})
    return Truth(7 * LSTM, LSTM + 96, "7 steps x 4 x 12 x (16 + 12)", shape, refused)


def gru_both_ways(path: Path) -> Truth:
    numbers = [weight("w", 2, 30, 6), weight("r", 2, 30, 10)]
    nodes = [node("GRU", ["x", "w", "r"], ["all", "last"], hidden_size=10, direction="bidirectional")]
    save(path, nodes, [tensor("x", [9, 1, 6])], [tensor("last", [2, 1, 10])], numbers)
    return Truth(9 * 2 * 3 * 10 * 16, 2 * 3 * 10 * 16, "9 steps x 2 directions x 3 x 10 x (6 + 10)")


def positions(path: Path) -> Truth:
    """Tokens, and their positions as a second input with no batch."""
    nodes = [
        node("MatMul", ["tokens", "w"], ["q"]),
        node("Gather", ["table", "positions"], ["p"]),
        node("Add", ["q", "p"], ["a"]),
        node("Transpose", ["a"], ["t"], perm=[0, 2, 1]),
        node("MatMul", ["a", "t"], ["y"]),
    ]
    ins = [tensor("tokens", ["batch", "seq", 32]), tensor("positions", ["seq"], TensorProto.INT64)]
    save(path, nodes, ins, [tensor("y", ["batch", "seq", "seq"])], [weight("w", 32, 24), weight("table", 50, 24)])
    macs = 12 * 32 * 24 + 12 * 12 * 24
    how = "12 x 32 x 24 and 12 x 12 x 24"
    return Truth(macs, 32 * 24 + 50 * 24, how, ("tokens=1,12,32", "positions=12"), {"MACs": r"\bseq\b"})


def second_negative(path: Path) -> Truth:
    """Products of two inputs, where the second one's inner size is -1: nothing there may count backwards."""
    nodes = [node("MatMul", ["queries", "w"], ["m"]), node("MatMul", ["m", "keys"], ["y"])]
    ins = [tensor("queries", ["batch", 4, 16]), tensor("keys", ["batch", 8, -1])]
    save(path, nodes, ins, [tensor("y", ["batch", 4, -1])], [weight("w", 16, 8)])
    shape = ("queries=1,4,16", "keys=1,8,5")
    return Truth(4 * 16 * 8 + 4 * 8 * 5, 128, "4 x 16 x 8 and 4 x 8 x 5", shape, {"MACs": "keys"})


def averaged(path: Path, frames: int | str) -> Truth:
    """The first axis is averaged away: frames of one sample, whatever they are called, and fixed or not."""
    nodes = [node("MatMul", ["x", "w"], ["m"]), node("ReduceMean", ["m"], ["y"], axes=[0], keepdims=1)]
    save(path, nodes, [tensor("x", [frames, 16])], [tensor("y", [1, 6])], [weight("w", 16, 6)])
    how = "5 frames x 16 x 6"
    return Truth(5 * 96, 96, how) if frames == 5 else Truth(5 * 96, 96, how, ("x=5,16",), {"MACs": "frames"})


def turned(path: Path) -> Truth:
    """The symbol of the first axis ends on the second axis of the output: no batch of the outputs."""
    nodes = [node("MatMul", ["x", "w"], ["m"]), node("Transpose", ["m"], ["y"], perm=[1, 0])]
    save(path, nodes, [tensor("x", ["columns", 16])], [tensor("y", [6, "columns"])], [weight("w", 16, 6)])
    return Truth(3 * 96, 96, "3 columns x 16 x 6", ("x=3,16",), {"MACs": "columns"})


def rows_attend(path: Path, rows: int | str) -> Truth:
    """Attention among the rows: the first axis is the outputs' first axis too, and yet no batch."""
    nodes = [
        node("MatMul", ["x", "w"], ["q"]),
        node("Transpose", ["q"], ["t"], perm=[1, 0]),
        node("MatMul", ["q", "t"], ["s"]),
        node("Softmax", ["s"], ["p"]),
        node("MatMul", ["p", "q"], ["y"]),
    ]
    save(path, nodes, [tensor("x", [rows, 16])], [tensor("y", [rows, 8])], [weight("w", 16, 8)])
    macs, how = 6 * 128 + 2 * 36 * 8, "6 x 16 x 8 and twice 6 x 6 x 8"
    return Truth(macs, 128, how) if rows == 6 else Truth(macs, 128, how, ("x=6,16",), {"MACs": "words"})


def two_inputs(path: Path) -> Truth:
    """An image and six figures, of one batch."""
    nodes = [
        node("Conv", ["image", "w"], ["c"], strides=[2, 2]),
        node("GlobalAveragePool", ["c"], ["g"]),
        node("Flatten", ["g"], ["f"]),
        node("Concat", ["f", "figures"], ["j"], axis=1),
        node("Gemm", ["j", "v", "b"], ["y"], transB=1),
    ]
    ins = [tensor("image", ["batch", 3, 17, 17]), tensor("figures", ["batch", 6])]
    numbers = [weight("w", 8, 3, 3, 3), weight("v", 5, 14), weight("b", 5)]
    save(path, nodes, ins, [tensor("y", ["batch", 5])], numbers)
    return Truth(64 * PIXEL + 70, PIXEL + 75, "8 x 8 pixels x 8 x 27, and 14 x 5")


def memory(path: Path) -> Truth:
    """Queries of a batch look at one memory of unknown length that all of them share."""
    nodes = [
        node("Transpose", ["memory"], ["t"], perm=[1, 0]),
        node("MatMul", ["queries", "t"], ["s"]),
        node("MatMul", ["s", "memory"], ["o"]),
        node("MatMul", ["o", "w"], ["y"]),
    ]
    ins = [tensor("queries", ["batch", 4, 8]), tensor("memory", ["slots", 8])]
    save(path, nodes, ins, [tensor("y", ["batch", 4, 10])], [weight("w", 8, 10)])
    macs = 2 * 4 * 11 * 8 + 4 * 8 * 10
    shape = ("queries=1,4,8", "memory=11,8")
    return Truth(macs, 80, "twice 4 x 11 x 8, and 4 x 8 x 10", shape, {"MACs": "slots"})


def time_axis(path: Path) -> Truth:
    save(
        path,
        [node("MatMul", ["x", "w"], ["y"])],
        [tensor("x", ["batch", "moments", 16])],
        [tensor("y", ["batch", "moments", 6])],
        [weight("w", 16, 6)],
    )
    return Truth(10 * 96, 96, "10 x 16 x 6", ("x=1,10,16",), {"MACs": "moments"})


def folded_batch(path: Path) -> Truth:
    """Five tokens a sample, laid into the batch for a matrix product and taken out again."""
    nodes = [
        node("Reshape", ["x", "flat"], ["f"]),
        node("MatMul", ["f", "w"], ["m"]),
        node("Reshape", ["m", "back"], ["y"]),
    ]
    numbers = [const("flat", [-1, 16]), weight("w", 16, 6), const("back", [-1, 5, 6])]
    save(path, nodes, [tensor("x", ["batch", 5, 16])], [tensor("y", ["batch", 5, 6])], numbers)
    return Truth(5 * 96, 96, "5 x 16 x 6")


def arithmetic(path: Path) -> Truth:
    """Shapes that are computed: Shape, Gather, Mul, Concat, Range, ConstantOfShape, Expand; all but the batch known."""
    nodes = [
        node("Shape", ["x"], ["s"]),
        node("Gather", ["s", "zero"], ["n"]),
        node("Gather", ["s", "two"], ["h"]),
        node("Gather", ["s", "three"], ["w_"]),
        node("Mul", ["h", "w_"], ["pixels"]),
        node("Concat", ["n", "channels", "pixels"], ["flat"], axis=0),
        node("Reshape", ["x", "flat"], ["f"]),  # [batch, 3, 48]
        node("Squeeze", ["pixels"], ["stop"]),
        node("Range", ["start", "stop", "step"], ["r"]),
        node("Cast", ["r"], ["rf"], to=TensorProto.FLOAT),
        node("Add", ["f", "rf"], ["g"]),
        node("ConstantOfShape", ["pixels"], ["o"]),
        node("Mul", ["g", "o"], ["e"]),
        node("MatMul", ["e", "w"], ["y"]),
    ]
    axes = {"zero": [0], "two": [2], "three": [3], "channels": [3], "start": 0, "step": 1}
    numbers = [*(const(name, value) for name, value in axes.items()), weight("w", 48, 6)]
    save(path, nodes, [tensor("x", ["batch", 3, 6, 8])], [tensor("y", ["batch", 3, 6])], numbers)
    return Truth(3 * 48 * 6, 48 * 6, "3 x 48 x 6, with sizes computed from the input's own")


def nonzero(path: Path, of_input: bool) -> Truth:
    """Rows chosen by NonZero: of a stored mask their number is known, of the input's values it is not."""
    source = "x" if of_input else "chosen"
    nodes = [
        node("NonZero", [source], ["where"]),
        node("Gather", ["where", "first"], ["rows"], axis=0),
        node("Squeeze", ["rows", "axis"], ["list"]),
        node("Gather", ["x", "list"], ["picked"], axis=0),
        node("MatMul", ["picked", "w"], ["y"]),
    ]
    numbers = [const("first", [0]), const("axis", [0]), weight("w", 16, 6)]
    numbers += [] if of_input else [const("chosen", [1, 0, 1, 1, 0, 0, 0])]
    save(path, nodes, [tensor("x", [7, 16])], [tensor("y", ["rows", 6])], numbers)
    if of_input:
        return Truth(
            None, 96, "as many rows as the input has numbers that are not 0", (), {"MACs": "NonZero|rows|Gather|MatMul"}
        )
    return Truth(3 * 96, 96, "3 of 7 rows x 16 x 6", either={"MACs": "NonZero|rows|Gather|MatMul"})


def fixed_batch(path: Path) -> Truth:
    """Eight samples for ever: eight answers come out, one for each."""
    nodes = [
        node("Conv", ["images", "w"], ["c"], pads=[1, 1, 1, 1]),
        node("GlobalAveragePool", ["c"], ["g"]),
        node("Flatten", ["g"], ["f"]),
        node("Gemm", ["f", "v"], ["y"]),
    ]
    numbers = [weight("w", 8, 3, 3, 3), weight("v", 8, 10)]
    save(path, nodes, [tensor("images", [8, 3, 16, 16])], [tensor("y", [8, 10])], numbers)
    return Truth(None, PIXEL + 80, "eight samples are not one", (), {"MACs": "images"})


ALL = 256 * PIXEL  # of 16 x 16 pixels
GIVEN = ("image=1,3,16,16",)
BATCHES: dict[str, Dims] = {"symbol": ["batch", 3, 16, 16], "minus": [-1, 3, 16, 16], "none": [None, 3, 16, 16],
                            "zero": [0, 3, 16, 16], "one": [1, 3, 16, 16]}  # fmt: skip
HEIGHTS: dict[str, tuple[Dims, str]] = {  # what a refusal must name: the symbol, or the input where there is none
    "symbols": (["batch", 3, "height", "width"], "height|width"),
    "minus": ([1, 3, -1, 16], "image"),
    "zeros": ([1, 3, 0, 0], "image"),
    "none": (["batch", 3, None, None], "image"),
}
FILES: dict[str, Make] = {
    **{f"batch_{name}": partial(conv, dims=dims, macs=ALL, how="16 x 16") for name, dims in BATCHES.items()},
    **{
        f"height_{name}": partial(conv, dims=dims, macs=ALL, how="16 x 16", shape=GIVEN, refused={"MACs": word})
        for name, (dims, word) in HEIGHTS.items()
    },
    "height_as_batch": partial(
        conv, dims=["side", 3, "side", 16], macs=None, how="as many samples as pixels", refused={"MACs": r"\bside\b"}
    ),
    "hwc_height": partial(
        image, dims=["height", 24, 3], perm=[2, 0, 1], macs=16 * 24 * PIXEL, name="height", given="image=16,24,3"
    ),
    "hwc_fixed": partial(image, dims=[16, 24, 3], perm=[2, 0, 1], macs=16 * 24 * PIXEL),
    "chw_fixed": partial(image, dims=[3, 16, 24], perm=None, macs=16 * 24 * PIXEL),
    "lstm_seq": partial(lstm, dims=["seq", 1, 16], out="all", name=r"\bseq\b"),
    "lstm_seq_batch": partial(lstm, dims=["seq", "batch", 16], out="last", name=r"\bseq\b"),
    "lstm_batch_second": partial(lstm, dims=[7, "pupils", 16], out="last", name="pupils"),
    "lstm_fixed": partial(lstm, dims=[7, 1, 16], out="last"),
    "lstm_fixed_all": partial(lstm, dims=[7, 1, 16], out="all"),
    "lstm_batch_first": partial(lstm, dims=["batch", 7, 16], out="last", layout=1),
    "gru_both_ways": gru_both_ways,
    "positions": positions,
    "second_negative": second_negative,
    "averaged": partial(averaged, frames="frames"),
    "averaged_fixed": partial(averaged, frames=5),
    "turned": turned,
    "rows_attend": partial(rows_attend, rows="words"),
    "rows_attend_fixed": partial(rows_attend, rows=6),
    "two_inputs": two_inputs,
    "memory": memory,
    "time_axis": time_axis,
    "folded_batch": folded_batch,
    "arithmetic": arithmetic,
    "nonzero_stored": partial(nonzero, of_input=False),
    "nonzero_input": partial(nonzero, of_input=True),
    "fixed_batch": fixed_batch,
}
