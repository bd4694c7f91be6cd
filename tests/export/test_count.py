"""Every product in an ONNX file is counted, whatever it is written with; what is not known is named."""

from itertools import product
from math import prod
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from onnx import TensorProto, helper
from onnx_files import FLOAT, INT64, array, file, graph, node, value, weight

from compress.export.onnx.count import count

BLOCK = helper.make_function(
    "mine", "Block", ["x", "w"], ["y"], [node("Conv", ["x", "w"], ["y"], pads=[1] * 4)], [helper.make_opsetid("", 18)]
)
TWICE = helper.make_function(
    "mine",
    "Twice",
    ["x", "w"],
    ["y"],
    [node("Block", ["x", "w"], ["h"], domain="mine"), node("Block", ["h", "w"], ["y"], domain="mine")],
    [helper.make_opsetid("", 18), helper.make_opsetid("mine", 1)],
)
SIZED = helper.make_function(
    "mine",
    "Sized",
    ["x", "w"],
    ["y"],
    [node("Conv", ["x", "w"], ["y"])],
    [helper.make_opsetid("", 18)],
    attributes=["strides"],
)
stride = SIZED.node[0].attribute.add()
stride.name, stride.ref_attr_name, stride.type = "strides", "strides", onnx.AttributeProto.INTS
IMAGE = {"x": ("N", 3, 32, 32)}
KERNEL = weight("w", 64, 3, 3, 3)
ONE = 64 * 27 * 32 * 32  # a convolution of 3 to 64 channels, 3 x 3, on 32 x 32 pixels
SCALES = [array("s", 0.1, "f4"), array("z", 0, "u1")]


def rounds(often: list[TensorProto], *, condition: str = "go", grows: bool = False) -> onnx.ModelProto:
    """A loop that multiplies x [N, 8] with [8, 8] in each round, or appends to it."""
    step = node("Concat", ["s", "s"], ["t"], axis=0) if grows else node("MatMul", ["s", "w"], ["t"])
    body = graph(
        [node("Identity", ["c"], ["d"]), step],
        {"i": (INT64, []), "c": (TensorProto.BOOL, []), "s": (FLOAT, [None, 8])},
        outputs=["d", "t"],
        ranks={"t": 2},
    )
    stored = [*often, array("go", True, "?"), weight("w", 8, 8)]
    nodes = [node("Loop", ["n" if often else "", condition, "x"], ["l"], body=body), node("MatMul", ["l", "w"], ["y"])]
    return file(nodes, {"x": ("N", 8)}, stored)


def either(first: int, second: int) -> onnx.ModelProto:
    """One of two products of x [N, 8] with 8 x these many, by a sum over x."""

    def branch(n: int) -> onnx.GraphProto:
        return graph(
            [node("MatMul", ["x", f"w{n}"], ["b"]), node("ReduceSum", ["b"], ["o"])],
            {},
            [weight(f"w{n}", 8, n)],
            outputs=["o"],
            ranks={"o": 2},
        )

    nodes = [
        node("ReduceSum", ["x", "all"], ["s"], keepdims=0),
        node("Greater", ["s", "zero"], ["c"]),
        node("If", ["c"], ["o"], then_branch=branch(first), else_branch=branch(second)),
        node("Add", ["x", "o"], ["y"]),
    ]
    return file(nodes, {"x": (1, 8)}, [array("all", [0, 1]), array("zero", 0, "f4")])


COUNTED: dict[str, tuple[onnx.ModelProto, int]] = {
    "whole numbers, ConvInteger": (
        file(
            [
                node("DynamicQuantizeLinear", ["x"], ["q", "a", "b"]),
                node("ConvInteger", ["q", "w", "b"], ["i"], pads=[1] * 4),
                node("Cast", ["i"], ["y"], to=FLOAT),
            ],
            IMAGE,
            [weight("w", 64, 3, 3, 3, dtype="i1")],
        ),
        ONE,
    ),
    "whole numbers, QLinearConv": (
        file(
            [
                node("QuantizeLinear", ["x", "s", "z"], ["q"]),
                node("QLinearConv", ["q", "s", "z", "w", "s", "z", "s", "z"], ["i"], pads=[1] * 4),
                node("DequantizeLinear", ["i", "s", "z"], ["y"]),
            ],
            IMAGE,
            [weight("w", 64, 3, 3, 3, dtype="u1"), *SCALES],
        ),
        ONE,
    ),
    "whole numbers, QLinearMatMul": (
        file(
            [
                node("QuantizeLinear", ["x", "s", "z"], ["q"]),
                node("QLinearMatMul", ["q", "s", "z", "w", "s", "z", "s", "z"], ["i"]),
                node("DequantizeLinear", ["i", "s", "z"], ["y"]),
            ],
            {"x": ("N", 5, 7)},
            [weight("w", 7, 9, dtype="u1"), *SCALES],
        ),
        5 * 7 * 9,
    ),
    "whole numbers, MatMulInteger": (
        file(
            [
                node("DynamicQuantizeLinear", ["x"], ["q", "a", "b"]),
                node("MatMulInteger", ["q", "w", "b"], ["i"]),
                node("Cast", ["i"], ["y"], to=FLOAT),
            ],
            {"x": ("N", 7)},
            [weight("w", 7, 9, dtype="i1")],
        ),
        63,
    ),
    "onnxruntime's 4 bits": (
        file(
            [node("MatMulNBits", ["x", "w", "c"], ["y"], domain="com.microsoft", K=64, N=10, bits=4, block_size=32)],
            {"x": ("N", 6, 64)},
            [weight("w", 10, 2, 16, dtype="u1"), weight("c", 20)],
            domains=["com.microsoft"],
        ),
        6 * 64 * 10,
    ),
    "onnxruntime's DynamicQuantizeMatMul": (
        file(
            [node("DynamicQuantizeMatMul", ["x", "w", "s", "z"], ["y"], domain="com.microsoft")],
            {"x": ("N", 7)},
            [weight("w", 7, 9, dtype="u1"), *SCALES],
            domains=["com.microsoft"],
        ),
        63,
    ),
    "onnxruntime's FusedMatMul, turned": (
        file(
            [node("FusedMatMul", ["x", "x"], ["y"], domain="com.microsoft", transB=1)],
            {"x": ("N", 4, 7, 5)},
            domains=["com.microsoft"],
        ),
        4 * 7 * 7 * 5,
    ),
    "onnxruntime's FusedConv": (
        file(
            [node("FusedConv", ["x", "w"], ["y"], domain="com.microsoft", activation="Relu", pads=[1] * 4)],
            IMAGE,
            [KERNEL],
            domains=["com.microsoft"],
        ),
        ONE,
    ),
    "onnxruntime's Attention": (
        file(
            [node("Attention", ["x", "w", "b"], ["y"], domain="com.microsoft", num_heads=4)],
            {"x": ("N", 10, 32)},
            [weight("w", 32, 96), weight("b", 96)],
            domains=["com.microsoft"],
        ),
        10 * 32 * 96 + 2 * 10 * 10 * 32,
    ),
    "Attention with as many heads": (
        file([node("Attention", ["q", "k", "v"], ["y"])], {n: ("N", 8, 12, 16) for n in "qkv"}, opset=23),
        2 * 8 * 12 * 12 * 16,
    ),
    "Attention with shared keys, in three axes": (
        file(
            [node("Attention", ["q", "k", "v"], ["y"], q_num_heads=8, kv_num_heads=2)],
            {"q": ("N", 12, 8 * 16), "k": ("N", 20, 2 * 16), "v": ("N", 20, 2 * 6)},
            opset=23,
        ),
        8 * 12 * 20 * (16 + 6),
    ),
    "a convolution whose kernel is bent": (
        file(
            [node("DeformConv", ["x", "w", "o"], ["y"], pads=[1] * 4, kernel_shape=[3, 3])],
            {**IMAGE, "o": ("N", 18, 32, 32)},
            [KERNEL],
            opset=19,
        ),
        ONE,
    ),
    "a function": (
        file([node("Block", ["x", "w"], ["y"], domain="mine")], IMAGE, [KERNEL], domains=["mine"], functions=[BLOCK]),
        ONE,
    ),
    "a function that calls one twice": (
        file(
            [node("Twice", ["x", "w"], ["y"], domain="mine")],
            {"x": ("N", 3, 8, 8)},
            [weight("w", 3, 3, 3, 3)],
            domains=["mine"],
            functions=[BLOCK, TWICE],
        ),
        2 * 64 * 3 * 27,
    ),
    "a function with an attribute of the call": (
        file(
            [node("Sized", ["x", "w"], ["y"], domain="mine", strides=[2, 2])],
            {"x": ("N", 3, 9, 9)},
            [KERNEL],
            domains=["mine"],
            functions=[SIZED],
        ),
        16 * 64 * 27,
    ),
    "a function that nobody calls": (
        file([node("Conv", ["x", "w"], ["y"], pads=[1] * 4)], IMAGE, [KERNEL], domains=["mine"], functions=[BLOCK]),
        ONE,
    ),
    "a loop": (rounds([array("n", 1000)]), 1001 * 64),
    "a loop that may end sooner": (rounds([array("n", 5)], condition=""), 6 * 64),
    "the dearer branch, first": (either(9, 2), 72),
    "the dearer branch, second": (either(2, 9), 72),
    "a shape reckoned as opset 9 does": (
        file(
            [
                node("Shape", ["x"], ["s"]),
                node("Slice", ["s"], ["b"], starts=[0], ends=[1]),
                node("Squeeze", ["b"], ["c"], axes=[0]),
                node("Unsqueeze", ["c"], ["d"], axes=[0]),
                node("Concat", ["d", "rest"], ["e"], axis=0),
                node("Reshape", ["x", "e"], ["f"]),
                node("MatMul", ["f", "w"], ["y"]),
            ],
            {"x": ("N", 3, 4)},
            [array("rest", [-1]), weight("w", 12, 5)],
            opset=9,
        ),
        60,
    ),
    "a shape reckoned with Range, Pow and ConstantOfShape": (
        file(
            [
                node("Range", ["one", "four", "one"], ["r"]),
                node("Pow", ["r", "two"], ["p"]),
                node("ReduceSum", ["p", "ax"], ["t"]),
                node("ConstantOfShape", ["t"], ["c"], value=array("", [1.0], "f4")),
                node("Unsqueeze", ["c", "zero"], ["u"]),
                node("MatMul", ["x", "u"], ["y"]),
            ],
            {"x": ("N", 1)},
            [array("one", 1), array("four", 4), array("two", 2), array("ax", [0]), array("zero", [0])],
        ),
        1 + 4 + 9,
    ),
    "weights that are made of nothing": (
        file(
            [node("ConstantOfShape", ["s"], ["w"]), node("MatMul", ["x", "w"], ["y"])],
            {"x": ("N", 7)},
            [array("s", [7, 9])],
        ),
        63,
    ),
    "weights at random": (
        file([node("RandomNormal", [], ["w"], shape=[7, 9]), node("MatMul", ["x", "w"], ["y"])], {"x": ("N", 7)}),
        63,
    ),
    "weights that are given": (
        file([node("Conv", ["x", "w"], ["y"], pads=[1] * 4)], {**IMAGE, "w": (64, 3, 3, 3)}),
        ONE,
    ),
    "an old file that lists its weights as inputs": (
        file(
            [node("Conv", ["x", "w"], ["y"], pads=[1] * 4)],
            {"x": (1, 3, 32, 32), "w": (64, 3, 3, 3)},
            [KERNEL],
            opset=8,
        ),
        ONE,
    ),
    "a linear model of scikit-learn": (
        file(
            [
                node(
                    "LinearClassifier",
                    ["x"],
                    ["l", "y"],
                    domain="ai.onnx.ml",
                    coefficients=[0.1] * 12,
                    intercepts=[0.0] * 3,
                    classlabels_ints=[0, 1, 2],
                )
            ],
            {"x": (None, 4)},
            domains=["ai.onnx.ml"],
        ),
        12,
    ),
}


@pytest.mark.parametrize("name", COUNTED)
def test_products_are_counted_however_they_are_written(name: str) -> None:
    model, macs = COUNTED[name]
    cost = count(model)
    assert (cost.why, cost.macs) == ("", macs)


NAMED = {
    "an operator of a stranger": (
        file([node("Magic", ["x"], ["y"], domain="mine")], IMAGE, domains=["mine"]),
        "mine::Magic",
    ),
    "a loop that only its condition ends": (rounds([]), "Loop without a fixed number of rounds"),
    "a loop as long as any": (rounds([array("n", 2**63 - 1)]), "Loop without a fixed number of rounds"),
    "a loop that carries more and more": (rounds([array("n", 5)], grows=True), "does not keep its shape"),
    "a product in disguise": (
        file(
            [
                node("Unsqueeze", ["x", "last"], ["u"]),
                node("Mul", ["u", "w"], ["p"], name="p"),
                node("ReduceSum", ["p", "one"], ["y"], keepdims=0),
            ],
            {"x": ("N", 7)},
            [weight("w", 7, 9), array("last", [2]), array("one", [1])],
        ),
        "Mul 'p', summed up",
    ),
    **{
        f"a product in disguise, {how}": (
            file(
                [node("Unsqueeze", ["x", "last"], ["u"]), node("Mul", ["u", "w"], ["p"], name="p"), *nodes],
                {"x": ("N", 7)},
                [weight("w", 7, 9), array("last", [2]), array("one", [1]), array("two", [1, 2])],
            ),
            "Mul 'p', summed up",
        )
        for how, nodes in {
            "passed on": [node("Identity", ["p"], ["q"]), node("ReduceSum", ["q", "one"], ["y"])],
            "turned": [node("Transpose", ["p"], ["q"], perm=[0, 2, 1]), node("ReduceMean", ["q", "two"], ["y"])],
            "pooled": [node("Unsqueeze", ["p", "one"], ["q"]), node("GlobalAveragePool", ["q"], ["y"])],
            "by einsum": [node("Einsum", ["p"], ["y"], equation="bij->bj")],
            "squared": [node("ReduceSumSquare", ["p", "one"], ["y"])],
        }.items()
    },
    "an equation that does not fit": (
        file([node("Einsum", ["x", "x"], ["y"], equation="ij,jk->iz")], {"x": (4, 4)}),
        "Einsum",
    ),
    "nothing to count": (file([node("Relu", ["x"], ["y"])], {"x": ("N", 7)}), "no multiply-accumulate was counted"),
    "trees": (
        file(
            [node("TreeEnsembleRegressor", ["x"], ["y"], domain="ai.onnx.ml", nodes_values=[0.5] * 3)],
            {"x": ("N", 7)},
            domains=["ai.onnx.ml"],
        ),
        "ai.onnx.ml::TreeEnsembleRegressor",
    ),
    "a compiled network": (
        file(
            [node("EPContext", ["x"], ["y"], domain="com.microsoft", ep_cache_context=b"weights")],
            {"x": ("N", 7)},
            domains=["com.microsoft"],
        ),
        "com.microsoft::EPContext",
    ),
    "a product of what an unknown operator gives": (
        file(
            [
                node("NonZero", ["x"], ["n"]),
                node("Cast", ["n"], ["f"], to=FLOAT),
                node("Transpose", ["f"], ["t"]),
                node("MatMul", ["t", "w"], ["y"]),
            ],
            {"x": (1, 7)},
            [weight("w", 2, 9)],
        ),
        "no shape for",
    ),
}


@pytest.mark.parametrize("name", NAMED)
def test_what_cannot_be_counted_is_named(name: str) -> None:
    model, word = NAMED[name]
    assert word in count(model).why


def naive_einsum(inputs: str, output: str, sizes: dict[str, int]) -> int:
    """Multiply-accumulates of an einsum of two, by walking over every product that it adds up."""
    one, two = inputs.split(",")
    kept = [label for label in sizes if label in output or (label in one and label in two)]  # others are summed before
    if not any(label in one and label in two and label not in output for label in kept):
        return 0  # nothing is added up
    return sum(1 for _ in product(*(range(sizes[label]) for label in kept)))


@given(st.text("abcd", min_size=1, max_size=3), st.text("abcd", min_size=1, max_size=3), st.data())
def test_an_einsum_of_two_costs_what_a_walk_over_its_products_counts(one: str, two: str, data: st.DataObject) -> None:
    assume(len(set(one)) == len(one) and len(set(two)) == len(two))
    labels = sorted(set(one + two))
    output = "".join(data.draw(st.lists(st.sampled_from(labels), unique=True, max_size=3)))
    sizes = {label: data.draw(st.integers(1, 4)) for label in labels}
    equation = f"{one},{two}->{output}"
    shapes = {name: tuple(sizes[label] for label in term) for name, term in (("x", one), ("w", two))}
    model = file([node("Einsum", ["x", "w"], ["y"], equation=equation)], shapes)
    np.einsum(equation, *(np.ones(shape) for shape in shapes.values()))  # it is one
    cost = count(model)
    assert cost.macs == naive_einsum(f"{one},{two}", output, sizes)
    assert not cost.unknown


EQUATIONS: dict[str, tuple[list[tuple[int, ...]], int]] = {
    "ij,jk": ([(3, 4), (4, 5)], 60),
    "...j,jk->...k": ([(2, 3, 4), (4, 5)], 120),
    "b...d,b...d->b...": ([(2, 3, 4), (2, 3, 4)], 24),
    "ij,jk,kl->il": ([(3, 4), (4, 5), (5, 6)], 60 + 90),
    "bij,bjk->bik": ([(2, 3, 4), (1, 4, 5)], 120),
    "bhid,bhjd->bhij": ([(2, 3, 4, 5), (2, 3, 6, 5)], 2 * 3 * 4 * 5 * 6),
    "ii,ij->j": ([(4, 4), (4, 5)], 20),
    "i,j->ij": ([(4,), (5,)], 0),
    " b i j -> b j i ": ([(2, 3, 4)], 0),
}


@pytest.mark.parametrize("equation", EQUATIONS)
def test_einsum_is_followed_in_full(equation: str) -> None:
    shapes, macs = EQUATIONS[equation]
    names = "xwv"[: len(shapes)]
    model = file([node("Einsum", list(names), ["y"], equation=equation)], dict(zip(names, shapes, strict=True)))
    cost = count(model)
    assert (cost.macs, cost.unknown) == (macs, ())


def test_an_output_of_several_branches_has_a_shape_only_where_all_have_the_same() -> None:
    def branch(n: int) -> onnx.GraphProto:
        return graph(
            [node("MatMul", ["x", f"w{n}"], ["o"])], {}, [weight(f"w{n}", 8, n)], outputs=["o"], ranks={"o": 2}
        )

    nodes = [node("If", ["c"], ["o"], then_branch=branch(3), else_branch=branch(4)), node("MatMul", ["o", "v"], ["y"])]
    model = file(nodes, {"x": ("N", 8), "c": (TensorProto.BOOL, [])}, [weight("v", 3, 5)])
    assert "no shape for" in count(model).why
    known = file(nodes, {"x": ("N", 8)}, [weight("v", 3, 5), array("c", True, "?")])
    assert (count(known).why, count(known).macs) == ("", 24 + 15)


def test_the_memory_of_activations_is_not_told_where_shapes_are_not_shown() -> None:
    open_axes = file([node("Conv", ["x", "w"], ["y"])], {"x": ("N", 3, "H", "W")}, [KERNEL])
    assert count(open_axes).memory is None
    assert count(open_axes, {"x": (1, 3, 32, 32)}).memory == 4 * (3 * 32 * 32 + 64 * 30 * 30)


def test_the_memory_of_activations_inside_a_function_is_not_seen_and_so_not_told() -> None:
    called = file(
        [node("Block", ["x", "w"], ["y"], domain="mine")], IMAGE, [KERNEL], functions=[BLOCK], domains=["mine"]
    )
    plain = file([node("Conv", ["x", "w"], ["y"], pads=[1] * 4)], IMAGE, [KERNEL], functions=[BLOCK], domains=["mine"])
    assert (count(called).memory, count(called).macs) == (None, ONE)
    assert count(plain).memory == 4 * (3 + 64) * 32 * 32


def test_an_ordinary_value_says_nothing_of_its_kind() -> None:
    model: Any = file([node("MatMul", ["x", "w"], ["y"])], {"x": ("N", 7)}, [weight("w", 7, 9)])
    model.graph.value_info.append(value("y", (1, 1)))
    assert count(model).macs == prod((7, 9))
