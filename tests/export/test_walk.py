"""Shapes are reckoned as onnx reckons them, in every opset; and no file, however small, takes long or much."""

import tracemalloc
from contextlib import suppress
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator
from onnx_files import array, file, graph, node, value, weight

from compress.errors import ArtifactError
from compress.export.onnx.fold import RULES, SMALL, fold
from compress.export.onnx.shapes import Opsets, infer, options_of, stored
from compress.export.onnx.walk import VISITS, walk
from compress.export.onnx.wire import ALLOWED, weigh

INTS = np.array([3, -4, 5], "i8")
GRID = np.arange(12, dtype="i8").reshape(3, 4)

# Operators, their inputs, and the opset they are written for; onnx's own reference says what must come out.
FOLDED: dict[str, tuple[onnx.NodeProto, list[Any], int]] = {
    name: (node(name, ["a", "b"], ["y"]), [INTS, np.array([2, 3, -2], "i8")], 18)
    for name in ("Add", "Sub", "Mul", "Mod", "Equal", "Less", "Greater", "LessOrEqual", "GreaterOrEqual", "Max", "Min")
} | {
    "Div of what divides": (node("Div", ["a", "b"], ["y"]), [np.array([6, 9, 8], "i8"), np.array([2, 3, 4], "i8")], 18),
    "Neg": (node("Neg", ["a"], ["y"]), [INTS], 18),
    "Abs": (node("Abs", ["a"], ["y"]), [INTS], 18),
    "Floor": (node("Floor", ["a"], ["y"]), [np.array([1.5, -1.5], "f4")], 18),
    "Ceil": (node("Ceil", ["a"], ["y"]), [np.array([1.5, -1.5], "f4")], 18),
    "Reciprocal": (node("Reciprocal", ["a"], ["y"]), [np.array([4.0], "f4")], 18),
    "Exp": (node("Exp", ["a"], ["y"]), [np.array([1.0], "f4")], 18),
    "Sqrt": (node("Sqrt", ["a"], ["y"]), [np.array([4.0], "f4")], 18),
    "Pow": (node("Pow", ["a", "b"], ["y"]), [INTS, np.array(2, "i8")], 18),
    "Not": (node("Not", ["a"], ["y"]), [INTS > 0], 18),
    "Where": (node("Where", ["c", "a", "b"], ["y"]), [INTS > 0, INTS, -INTS], 18),
    "Cast to int": (node("Cast", ["a"], ["y"], to=TensorProto.INT64), [np.array([1.7, -1.7], "f4")], 18),
    "Cast to float": (node("Cast", ["a"], ["y"], to=TensorProto.FLOAT), [INTS], 18),
    "Clip": (node("Clip", ["a", "l", "h"], ["y"]), [INTS, np.array(0, "i8"), np.array(4, "i8")], 18),
    "ReduceProd of an old opset": (node("ReduceProd", ["a"], ["y"], axes=[0], keepdims=0), [GRID + 1], 13),
    "ReduceSum": (node("ReduceSum", ["a", "x"], ["y"], keepdims=1), [GRID, np.array([1], "i8")], 18),
    "ReduceMax": (node("ReduceMax", ["a"], ["y"], keepdims=0), [GRID], 18),
    "CumSum": (node("CumSum", ["a", "x"], ["y"]), [GRID, np.array(1, "i8")], 18),
    "Slice": (
        node("Slice", ["a", "s", "e", "x", "t"], ["y"]),
        [GRID, *(np.array(n, "i8") for n in ([-1, 0], [-5, 9], [1, 0], [-2, 2]))],
        18,
    ),
    "Slice of an old opset": (node("Slice", ["a"], ["y"], starts=[1], ends=[2**31], axes=[0]), [GRID], 9),
    "Gather": (node("Gather", ["a", "i"], ["y"], axis=1), [GRID, np.array([[0, -1]], "i8")], 18),
    "Concat": (node("Concat", ["a", "b"], ["y"], axis=0), [GRID, GRID], 18),
    "Unsqueeze": (node("Unsqueeze", ["a", "x"], ["y"]), [INTS, np.array([0, -1], "i8")], 18),
    "Unsqueeze of an old opset": (node("Unsqueeze", ["a"], ["y"], axes=[1]), [INTS], 11),
    "Squeeze": (node("Squeeze", ["a"], ["y"]), [INTS.reshape(1, 3, 1)], 18),
    "Squeeze of an old opset": (node("Squeeze", ["a"], ["y"], axes=[0]), [INTS.reshape(1, 3, 1)], 11),
    "Reshape": (node("Reshape", ["a", "s"], ["y"]), [GRID, np.array([0, 2, -1], "i8")], 18),
    "Transpose": (node("Transpose", ["a"], ["y"]), [GRID], 18),
    "Flatten": (node("Flatten", ["a"], ["y"], axis=2), [GRID.reshape(3, 2, 2)], 18),
    "Range": (node("Range", ["a", "b", "c"], ["y"]), [np.array(n, "i8") for n in (9, 1, -3)], 18),
    "ConstantOfShape": (node("ConstantOfShape", ["a"], ["y"], value=array("", [7])), [np.array([2, 3], "i8")], 18),
    "Expand": (node("Expand", ["a", "s"], ["y"]), [INTS, np.array([2, 1], "i8")], 18),
    "Tile": (node("Tile", ["a", "s"], ["y"]), [INTS, np.array([2], "i8")], 18),
    "NonZero": (node("NonZero", ["a"], ["y"]), [GRID % 2], 18),
    "Identity": (node("Identity", ["a"], ["y"]), [GRID], 18),
    "Split": (node("Split", ["a", "s"], ["y", "z"], axis=1), [GRID, np.array([1, 3], "i8")], 18),
    "Split in two": (node("Split", ["a"], ["y", "z"], axis=1, num_outputs=2), [GRID], 18),
}


@pytest.mark.parametrize("name", FOLDED)
def test_the_arithmetic_of_shapes_is_onnx_s_own(name: str) -> None:
    operator, arrays, opset = FOLDED[name]
    ours = fold(operator.op_type, arrays, options_of(operator))
    graph_of = helper.make_graph(
        [operator],
        "g",
        [
            value(n, a.shape, helper.np_dtype_to_tensor_dtype(a.dtype))
            for n, a in zip(operator.input, arrays, strict=True)
        ],
        [value(n, None) for n in operator.output],
    )
    model = helper.make_model(graph_of, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    theirs = ReferenceEvaluator(model).run(None, dict(zip(operator.input, arrays, strict=True)))
    assert len(ours) == len(theirs)
    for one, two in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(one, two)
        assert one.shape == np.shape(two)


def test_whole_numbers_are_divided_towards_zero() -> None:
    assert fold("Div", [np.array([7, -7], "i8"), np.array(2, "i8")], {})[0].tolist() == [3, -3]
    assert fold("Div", [np.array([7], "i8"), np.array(0, "i8")], {}) == []


@given(st.sampled_from(sorted(RULES)), st.lists(st.lists(st.integers(-9, 9), max_size=4), max_size=4))
def test_arithmetic_on_anything_gives_arrays_or_nothing(name: str, lists: list[list[int]]) -> None:
    for made in fold(name, [np.array(numbers, "i8") for numbers in lists], {}):
        assert made.size <= max(SMALL, 4**4)


def test_an_axis_below_0_is_no_shape() -> None:
    operator = node("Reshape", ["x", "s"], ["y"])
    gaps: list[str] = []
    known = [stored(weight("x", 4)), stored(array("s", [-7, 4]))]
    assert infer(operator, "Reshape", known, Opsets([helper.make_opsetid("", 18)]), gaps)[0].shape is None


# ---- small files that would take long, or much ----------------------------------------------------------------------


def chain(nodes: list[onnx.NodeProto], **more: Any) -> onnx.ModelProto:
    return file(
        [*nodes, node("MatMul", ["x", "w"], ["y"])],
        {"x": ("N", 8)},
        [weight("w", 8, 8), *more.pop("stored", [])],
        **more,
    )


def doubling(deep: int) -> onnx.ModelProto:
    """Functions each of which calls the one before twice."""
    functions = [
        helper.make_function("f", "F0", ["a"], ["b"], [node("Relu", ["a"], ["b"])], [helper.make_opsetid("", 18)])
    ]
    for at in range(1, deep):
        calls = [node(f"F{at - 1}", ["a"], ["c"], domain="f"), node(f"F{at - 1}", ["c"], ["b"], domain="f")]
        functions.append(helper.make_function("f", f"F{at}", ["a"], ["b"], calls, [helper.make_opsetid("f", 1)]))
    return chain([node(f"F{deep - 1}", ["x"], ["z"], domain="f")], domains=["f"], functions=functions)


def endless() -> onnx.ModelProto:
    call = helper.make_function(
        "f", "F", ["a"], ["b"], [node("F", ["a"], ["b"], domain="f")], [helper.make_opsetid("f", 1)]
    )
    return chain([node("F", ["x"], ["z"], domain="f")], domains=["f"], functions=[call])


ONES = [weight(f"c{i}", *(100 if i == j else 1 for j in range(4))) for i in range(4)]
LINKS = [
    made
    for i in range(400)
    for made in (node("Shape", [f"r{i}"], [f"s{i}"]), node("Reshape", [f"r{i}", f"s{i}"], [f"r{i + 1}"]))
]
BOMBS = {
    "numbers that spread to 100 million": chain([node("Max", ["c0", "c1", "c2", "c3"], ["z"])], stored=ONES),
    "a shape of 400 links": chain([node("Relu", ["x"], ["r0"]), *LINKS]),
    "a table made of nothing": chain(
        [node("ConstantOfShape", ["s"], ["z"]), node("NonZero", ["z"], ["o"])], stored=[array("s", [10**6] * 3)]
    ),
    "a range to the end of the numbers": chain(
        [node("Range", ["a", "b", "c"], ["z"])], stored=[array("a", 0), array("b", 2**62), array("c", 1)]
    ),
    "tiles of tiles": chain([node("Tile", ["a", "b"], ["z"])], stored=[array("a", [1] * 9), array("b", [10**12])]),
    "a power": chain([node("Pow", ["a", "b"], ["z"])], stored=[array("a", 10**9), array("b", 10**9)]),
    "loops in loops": chain([]),
}
for depth in range(30):
    inner = BOMBS["loops in loops"].graph
    body = graph(
        [node("Identity", ["c"], [f"d{depth}"]), node("Identity", [f"s{depth}"], [f"t{depth}"])],
        {},
        outputs=[f"d{depth}", f"t{depth}"],
    )
    body.input.extend(
        [value(f"i{depth}", [], TensorProto.INT64), value("c", [], TensorProto.BOOL), value(f"s{depth}", [1, 8])]
    )
    inner.node.insert(0, node("Loop", ["n", "go", "x"], [f"o{depth}"], body=body))
BOMBS["loops in loops"].graph.initializer.extend([array("n", 10**6), array("go", True, "?")])


@pytest.mark.parametrize("name", BOMBS)
def test_each_operator_of_a_small_file_is_looked_at_once_and_takes_no_memory(name: str) -> None:
    tracemalloc.start()
    seen = walk(BOMBS[name], {"x": (1, 8)})
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert seen.macs == 64
    assert seen.visits <= 1000  # each operator once
    assert peak < 20 * 2**20


@pytest.mark.parametrize(
    "model", [doubling(40), endless()], ids=["functions that double", "a function that calls itself"]
)
def test_calls_without_end_are_refused(model: onnx.ModelProto) -> None:
    with pytest.raises(ArtifactError, match=r"more than"):
        walk(model, {"x": (1, 8)})


def test_more_operators_than_any_network_has_are_refused() -> None:
    many = chain([node("Relu", ["x"], [f"r{i}"]) for i in range(VISITS)])
    with pytest.raises(ArtifactError, match=f"more than {VISITS:,} operators"):
        walk(many, {"x": (1, 8)})


def test_a_file_that_would_swell_is_not_read() -> None:
    hollow = b"\x0a\x00" * 1_000_000  # a million nodes of nothing, two bytes each
    length = len(hollow)
    varint = bytes([length & 127 | 128, length >> 7 & 127 | 128, length >> 14 & 127 | 128, length >> 21])
    with pytest.raises(ArtifactError, match="more than"):
        weigh(b"\x3a" + varint + hollow, onnx.ModelProto.DESCRIPTOR)


def test_what_is_weighed_is_near_what_is_taken() -> None:
    model = chain([node("Relu", ["x"], [f"r{i}"]) for i in range(5000)])
    data = model.SerializeToString()
    assert 10_000 * 64 < weigh(data, onnx.ModelProto.DESCRIPTOR) < ALLOWED


@given(st.binary(max_size=200))
def test_bytes_that_are_no_message_are_weighed_without_complaint(data: bytes) -> None:
    with suppress(UnicodeDecodeError):
        assert weigh(data, onnx.ModelProto.DESCRIPTOR) >= 0


@given(st.data())
def test_a_real_message_with_bytes_changed_is_weighed_without_complaint(data: st.DataObject) -> None:
    whole = bytearray(chain([node("Relu", ["x"], ["r"])]).SerializeToString())
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    with suppress(UnicodeDecodeError):
        assert weigh(bytes(whole), onnx.ModelProto.DESCRIPTOR) >= 0
