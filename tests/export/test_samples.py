"""Operators keep samples apart, or they do not; what is not known to is taken to mix them."""

import onnx
import pytest
from onnx import TensorProto
from onnx_files import FLOAT, INT64, array, file, graph, node, weight

from compress.export.onnx.count import count

W = weight("w", 8, 5)
PRODUCT = node("MatMul", ["h", "w"], ["y"])
ROWS = {"x": ("N", 8)}
ONE, TWO = array("one", [1]), array("two", [2])


def rows(*nodes: onnx.NodeProto, stored: tuple[TensorProto, ...] = ()) -> onnx.ModelProto:
    """Something done to x [N, 8], which ends in h, and then a product of 40 for each row."""
    return file([*nodes, PRODUCT], ROWS, [W, ONE, array("zero", [0]), *stored])


def looped(often: list[onnx.NodeProto]) -> onnx.ModelProto:
    """A loop of as many rounds as nodes reckon into n, with a product in each."""
    body = graph(
        [node("Identity", ["c"], ["d"]), node("MatMul", ["s", "v"], ["t"])],
        {"i": (INT64, []), "c": (TensorProto.BOOL, []), "s": (FLOAT, [1, 8])},
        outputs=["d", "t"],
        ranks={"t": 2},
    )
    nodes = [*often, node("Loop", ["n", "", "begin"], ["l"], body=body), node("Add", ["x", "l"], ["h"]), PRODUCT]
    return file(nodes, ROWS, [W, weight("v", 8, 8), weight("begin", 1, 8), array("zero", 0)])


STEPS = [node("Shape", ["x"], ["s"]), node("Gather", ["s", "zero"], ["n"])]
MIXED = {
    "the largest of all, taken away": rows(node("ReduceMax", ["x", "zero"], ["m"]), node("Sub", ["x", "m"], ["h"])),
    "the mean of all, taken away": rows(node("ReduceMean", ["x", "zero"], ["m"]), node("Sub", ["x", "m"], ["h"])),
    "a sum that runs on": rows(node("CumSum", ["x", "first"], ["h"]), stored=(array("first", 0),)),
    "the one before": rows(
        node("Slice", ["x", "zero", "minus", "zero"], ["a"]),
        node("Pad", ["a", "pads"], ["h"]),
        stored=(array("minus", [-1]), array("pads", [1, 0, 0, 0])),
    ),
    "differences": rows(
        node("Slice", ["x", "one", "end", "zero"], ["a"]),
        node("Slice", ["x", "zero", "minus", "zero"], ["b"]),
        node("Sub", ["a", "b"], ["h"]),
        stored=(array("end", [2**31]), array("minus", [-1])),
    ),
    "half of them": rows(
        node("Resize", ["x", "", "scales"], ["h"], mode="nearest"), stored=(array("scales", [2, 1], "f4"),)
    ),
    "from the last to the first of each": rows(
        node("ReverseSequence", ["x", "lengths"], ["h"], time_axis=0, batch_axis=1), stored=(array("lengths", [1] * 8),)
    ),
    "a look-up among them": file([node("Gather", ["x", "i"], ["h"]), PRODUCT], {**ROWS, "i": (INT64, ["E"])}, [W]),
    "one of them for another": rows(
        node("ScatterND", ["x", "where", "what"], ["h"]), stored=(array("where", [[0]]), weight("what", 1, 8))
    ),
    "their places, looked up": rows(
        *STEPS,
        node("Squeeze", ["n"], ["m"]),
        node("Range", ["from", "m", "by"], ["r"]),
        node("Gather", ["table", "r"], ["p"]),
        node("Add", ["x", "p"], ["h"]),
        stored=(array("from", 0), array("by", 1), weight("table", 512, 8)),
    ),
    "as many rounds as there are": looped(STEPS),
    "an answer for all beside those for each": file(
        [node("MatMul", ["x", "w"], ["y"]), node("ReduceMax", ["y", "zero"], ["z"])],
        ROWS,
        [W, array("zero", [0])],
        outputs=["y", "z"],
    ),
    "boxes and the images that they are of": file(
        [
            node("MatMul", ["x", "w"], ["y"]),
            node("MatMul", ["b", "v"], ["z"]),
        ],
        {**ROWS, "b": ("K", 4)},
        [W, weight("v", 4, 5)],
        outputs=["y", "z"],
    ),
}

KEPT = {
    "normalised each by itself": rows(node("LayerNormalization", ["x", "g"], ["h"]), stored=(weight("g", 8),)),
    "the largest of each, taken away": rows(node("ReduceMax", ["x", "one"], ["m"]), node("Sub", ["x", "m"], ["h"])),
    "a share of each": rows(node("Softmax", ["x"], ["h"], axis=1)),
    "a sum that runs through each": rows(node("CumSum", ["x", "second"], ["h"]), stored=(array("second", 1),)),
    "cut and joined, each by itself": rows(
        node("Split", ["x"], ["a", "b"], axis=1, num_outputs=2), node("Concat", ["b", "a"], ["h"], axis=1)
    ),
    "as many of a learnt row as there are": rows(
        *STEPS,
        node("Concat", ["n", "eight"], ["t"], axis=0),
        node("Expand", ["row", "t"], ["e"]),
        node("Add", ["x", "e"], ["h"]),
        stored=(array("eight", [8]), weight("row", 1, 8)),
    ),
    "a condition that is told of all": file(
        [
            node("ReduceSum", ["x", "both"], ["s"], keepdims=0),
            node("Greater", ["s", "null"], ["c"]),
            node(
                "If",
                ["c"],
                ["y"],
                then_branch=graph([node("MatMul", ["x", "w"], ["o"])], {}, outputs=["o"], ranks={"o": 2}),
                else_branch=graph([node("MatMul", ["x", "w"], ["o"])], {}, outputs=["o"], ranks={"o": 2}),
            ),
        ],
        ROWS,
        [W, array("both", [0, 1]), array("null", 0, "f4")],
    ),
}


@pytest.mark.parametrize("name", MIXED)
def test_what_mixes_samples_shows_that_they_are_none(name: str) -> None:
    why = count(MIXED[name]).why
    assert "is not shown to be the batch" in why
    assert "--shape" in why


@pytest.mark.parametrize("name", KEPT)
def test_what_is_done_to_each_alone_keeps_them_samples(name: str) -> None:
    cost = count(KEPT[name])
    assert (cost.why, cost.macs) == ("", 40)


def test_a_batch_that_is_called_so_may_stand_on_another_axis_of_a_state() -> None:
    stored = [weight("W", 1, 4 * 6, 5), weight("R", 1, 4 * 6, 6)]
    nodes = [
        node("Transpose", ["x"], ["t"], perm=[1, 0, 2]),
        node("LSTM", ["t", "W", "R", "", "", "h", "h"], ["l"], hidden_size=6),
        node("Squeeze", ["l", "one"], ["q"]),
        node("Transpose", ["q"], ["y"], perm=[1, 0, 2]),
    ]
    model = file(nodes, {"x": ("batch", 7, 5), "h": (1, "batch", 6)}, [*stored, ONE])
    assert (count(model).why, count(model).macs) == ("", 7 * 4 * 6 * 11)


def test_a_default_of_an_open_input_is_no_size() -> None:
    model = file([node("MatMul", ["x", "w"], ["y"])], {"x": ("N", "seq", 8)}, [weight("x", 1, 1, 8), W])
    assert "axis 1 of input 'x' ('seq') has no size" in count(model).why
    assert count(model, {"x": (1, 384, 8)}).macs == 384 * 40


def test_a_condition_that_a_caller_may_change_is_not_known() -> None:
    def branch(n: int) -> onnx.GraphProto:
        return graph(
            [node("MatMul", ["x", f"w{n}"], ["m"]), node("ReduceSum", ["m", "one"], ["o"])],
            {},
            [weight(f"w{n}", 8, n)],
            outputs=["o"],
            ranks={"o": 2},
        )

    nodes = [node("If", ["c"], ["y"], then_branch=branch(3), else_branch=branch(9))]
    stored = [array("c", True, "?"), ONE]
    assert count(file(nodes, {"x": (1, 8)}, stored)).macs == 24
    assert count(file(nodes, {"x": (1, 8), "c": (TensorProto.BOOL, [])}, stored)).macs == 72
