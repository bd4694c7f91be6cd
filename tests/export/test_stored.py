"""Every number that an ONNX file stores and reckons with is a parameter, however it is stored; what hides is named."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from onnx_files import FLOAT, INT64, array, file, graph, node, packed, value, weight

from compress.export.onnx.count import count
from compress.export.onnx.stored import BAKED

X = {"x": ("N", 8)}
SCALE, ZERO = array("s", 0.1, "f4"), array("z", 0, "i1")
MATMUL = node("MatMul", ["x", "w"], ["y"])
IN_TWO_HALVES = [
    node("BitwiseAnd", ["p", "m"], ["low"]),
    node("BitShift", ["p", "four"], ["high"], direction="RIGHT"),
    node("Concat", ["low", "high"], ["all"], axis=1),
    node("Cast", ["all"], ["f"], to=FLOAT),
    node("Mul", ["f", "s"], ["w"]),
    MATMUL,
]
NIBBLES = [array("m", 15, "u1"), array("four", 4, "u1"), SCALE]


def sparse(stored: int, *dims: int) -> onnx.SparseTensorProto:
    values = helper.make_tensor("w", FLOAT, [stored], [0.5] * stored)
    places = helper.make_tensor("", INT64, [stored], range(stored))
    return helper.make_sparse_tensor(values, places, dims)


def constant(**value_of: object) -> list[onnx.NodeProto]:
    return [node("Constant", [], ["w"], **value_of), MATMUL]


STORED = {
    "floats": (file([MATMUL], X, [weight("w", 8, 5)]), 40),
    "halves": (file([node("Cast", ["h"], ["w"], to=FLOAT), MATMUL], X, [weight("h", 8, 5, dtype="f2")]), 40),
    "a value in an operator": (file(constant(value=weight("", 8, 5)), X), 40),
    "a list in an operator": (
        file([*constant(value_floats=[0.5] * 40)[:1], node("Mul", ["w", "w"], ["y"])], X),
        40,
    ),
    "sparse": (file([MATMUL], X, sparse=[sparse(11, 8, 5)]), 11),
    "sparse in an operator": (file(constant(sparse_value=sparse(11, 8, 5)), X), 11),
    "8 bits, dequantised": (
        file(
            [node("DequantizeLinear", ["q", "s", "z"], ["w"]), MATMUL], X, [weight("q", 8, 5, dtype="i1"), SCALE, ZERO]
        ),
        40,
    ),
    "8 bits, dequantised by column": (
        file(
            [node("DequantizeLinear", ["q", "c", "o"], ["w"], axis=1), MATMUL],
            X,
            [weight("q", 8, 5, dtype="i1"), weight("c", 5), weight("o", 5, dtype="i1")],
        ),
        40 + 5 + 5,
    ),
    "8 bits, turned before": (
        file(
            [
                node("Transpose", ["q"], ["t"]),
                node("Reshape", ["t", "to"], ["r"]),
                node("DequantizeLinear", ["r", "s", "z"], ["w"]),
                MATMUL,
            ],
            X,
            [weight("q", 5, 8, dtype="i1"), SCALE, ZERO, array("to", [8, 5])],
        ),
        40,
    ),
    "8 bits, cast and scaled": (
        file(
            [node("Cast", ["q"], ["f"], to=FLOAT), node("Mul", ["f", "s"], ["w"]), MATMUL],
            X,
            [weight("q", 8, 5, dtype="i1"), SCALE],
        ),
        40,
    ),
    "8 bits, looked up and dequantised": (
        file(
            [node("Gather", ["q", "i"], ["g"]), node("DequantizeLinear", ["g", "s", "z"], ["y"])],
            {"i": (INT64, ["N", 3])},
            [weight("q", 100, 5, dtype="i1"), SCALE, ZERO],
        ),
        500,
    ),
    "weights of which only the largest result's place is told": (
        file([MATMUL, node("ArgMax", ["y"], ["label"], axis=1)], X, [weight("w", 8, 5)], outputs=["label"]),
        40,
    ),
    "8 bits of which only a label is told": (
        file(
            [
                node("DequantizeLinear", ["q", "s", "z"], ["w"]),
                MATMUL,
                node("ArgMax", ["y"], ["i"], axis=1),
                node("Gather", ["labels", "i"], ["label"]),
            ],
            X,
            [weight("q", 8, 5, dtype="i1"), SCALE, ZERO, array("labels", range(5))],
            outputs=["label"],
        ),
        40,
    ),
    "64 bits, as numbers": (
        file(
            [node("Cast", ["q"], ["f"], to=FLOAT), node("Mul", ["f", "s"], ["w"]), MATMUL],
            X,
            [weight("q", 8, 5, dtype="i8"), SCALE],
        ),
        40,
    ),
    "truths, as numbers": (
        file(
            [node("Cast", ["q"], ["f"], to=FLOAT), node("Mul", ["f", "s"], ["w"]), MATMUL],
            X,
            [weight("q", 8, 5, dtype="?"), SCALE],
        ),
        40,
    ),
    "float8": (
        file(
            [node("DequantizeLinear", ["q", "s"], ["w"]), MATMUL],
            X,
            [packed("q", TensorProto.FLOAT8E4M3FN, 8, 5), SCALE],
            opset=19,
        ),
        40,
    ),
    "float8 of the other kind": (
        file([node("Cast", ["q"], ["w"], to=FLOAT), MATMUL], X, [packed("q", TensorProto.FLOAT8E5M2, 8, 5)], opset=19),
        40,
    ),
    "4 bits of ONNX": (
        file(
            [node("DequantizeLinear", ["q", "s"], ["w"]), MATMUL],
            X,
            [packed("q", TensorProto.INT4, 8, 5), SCALE],
            opset=21,
        ),
        40,
    ),
    "4 bits without sign": (
        file(
            [node("DequantizeLinear", ["q", "s"], ["w"]), MATMUL],
            X,
            [packed("q", TensorProto.UINT4, 8, 5), SCALE],
            opset=21,
        ),
        40,
    ),
    "4 bits of onnxruntime": (
        file(
            [node("MatMulNBits", ["x", "q", "c"], ["y"], domain="com.microsoft", K=8, N=5, bits=4, block_size=16)],
            X,
            [weight("q", 5, 1, 8, dtype="u1"), weight("c", 5)],
            domains=["com.microsoft"],
        ),
        40 + 5,
    ),
    "4 bits of onnxruntime, with zero points": (
        file(
            [
                node(
                    "MatMulNBits", ["x", "q", "c", "o"], ["y"], domain="com.microsoft", K=32, N=5, bits=4, block_size=16
                )
            ],
            {"x": ("N", 32)},
            [weight("q", 5, 2, 8, dtype="u1"), weight("c", 10), weight("o", 5, dtype="u1")],
            domains=["com.microsoft"],
        ),
        160 + 10 + 10,
    ),
    "4 bits of onnxruntime, in a table": (
        file(
            [node("GatherBlockQuantized", ["q", "i", "c"], ["y"], domain="com.microsoft", bits=4, block_size=16)],
            {"i": (INT64, ["N", 3])},
            [weight("q", 100, 8, dtype="u1"), weight("c", 100, 1)],
            domains=["com.microsoft"],
        ),
        1600 + 100,
    ),
    "4 bits taken apart by hand": (file(IN_TWO_HALVES, X, [weight("p", 8, 3, dtype="u1"), *NIBBLES]), 48),
    "4 bits taken apart by remainders": (
        file(
            [node("Mod", ["p", "b"], ["low"]), node("Div", ["p", "b"], ["high"]), *IN_TWO_HALVES[2:]],
            X,
            [weight("p", 8, 3, dtype="u1"), array("b", 16, "u1"), SCALE],
        ),
        48,
    ),
    "4 bits taken apart by spreading": (
        file(
            [
                node("Unsqueeze", ["p", "last"], ["u"]),
                node("BitShift", ["u", "by"], ["t"], direction="RIGHT"),
                node("BitwiseAnd", ["t", "m"], ["a"]),
                node("Reshape", ["a", "to"], ["all"]),
                *IN_TWO_HALVES[3:],
            ],
            X,
            [
                weight("p", 8, 3, dtype="u1"),
                array("last", [2]),
                array("by", [0, 4], "u1"),
                array("to", [8, 6]),
                *NIBBLES,
            ],
        ),
        48 + 2,  # the shifts are numbers that it reckons with
    ),
    "4 bits, each half multiplied by itself": (
        file(
            [
                *IN_TWO_HALVES[:2],
                node("Cast", ["low"], ["l"], to=FLOAT),
                node("Cast", ["high"], ["h"], to=FLOAT),
                node("MatMul", ["x", "l"], ["a"]),
                node("MatMul", ["x", "h"], ["b"]),
                node("Add", ["a", "b"], ["y"]),
            ],
            X,
            [weight("p", 8, 3, dtype="u1"), *NIBBLES[:2]],
        ),
        48,
    ),
    "a palette": (
        file(
            [node("Cast", ["p"], ["i"], to=INT64), node("Gather", ["colours", "i"], ["w"]), MATMUL],
            X,
            [weight("p", 8, 5, dtype="u1"), weight("colours", 16)],
        ),
        40 + 16,
    ),
    "a palette with wide indices": (
        file(
            [node("Gather", ["colours", "i"], ["w"]), MATMUL], X, [weight("i", 8, 5, dtype="i8"), weight("colours", 16)]
        ),
        40 + 16,
    ),
    "a palette, scaled": (
        file(
            [node("Gather", ["colours", "i"], ["g"]), node("Mul", ["g", "s"], ["w"]), MATMUL],
            X,
            [weight("i", 8, 5, dtype="i4"), weight("colours", 16), SCALE],
        ),
        40 + 16,
    ),
    "biases in 32 bits": (
        file(
            [
                node("QuantizeLinear", ["x", "s", "u"], ["q"]),
                node("QLinearConv", ["q", "s", "u", "w", "s", "u", "s", "u", "b"], ["y"]),
            ],
            {"x": ("N", 3, 4, 4)},
            [weight("w", 6, 3, 1, 1, dtype="u1"), weight("b", 6, dtype="i4"), SCALE, array("u", 0, "u1")],
        ),
        18 + 6,
    ),
    "normalisation": (
        file(
            [node("BatchNormalization", ["x", "a", "b", "m", "v"], ["y"])],
            {"x": ("N", 3, 4, 4)},
            [weight(n, 3) for n in "abmv"],
        ),
        6,
    ),
    "a linear model": (
        file(
            [node("LinearRegressor", ["x"], ["y"], domain="ai.onnx.ml", coefficients=[0.1] * 8, intercepts=[0.5])],
            X,
            domains=["ai.onnx.ml"],
        ),
        9,
    ),
    "a scaler": (
        file(
            [node("Scaler", ["x"], ["y"], domain="ai.onnx.ml", offset=[0.1] * 8, scale=[0.5] * 8)],
            X,
            domains=["ai.onnx.ml"],
        ),
        16,
    ),
    "values that are looked up by keys": (
        file(
            [
                node(
                    "LabelEncoder",
                    ["i"],
                    ["e"],
                    domain="ai.onnx.ml",
                    keys_tensor=array("", range(9)),
                    values_tensor=weight("", 9),
                ),
                node("MatMul", ["e", "w"], ["y"]),
            ],
            {"i": (INT64, ["N", 8])},
            [weight("w", 8, 2)],
            domains=["ai.onnx.ml"],
        ),
        9 + 16,
    ),
    "more than any network has labels": (
        file([node("Gather", ["t", "i"], ["y"])], {"i": (INT64, ["N"])}, [weight("t", 32_769, dtype="i4")]),
        32_769,
    ),
    "what is only named like preprocessing": (
        file([node("MatMul", ["x", BAKED[0]], ["y"])], X, [weight(BAKED[0], 8, 1)]),
        8,
    ),
    "what is only shaped like preprocessing": (
        file([node("Conv", ["x", BAKED[0]], ["y"])], {"x": ("N", 3, 4, 4)}, [weight(BAKED[0], 1, 3, 1, 1)]),
        3,
    ),
}

NOT_STORED = {
    "preprocessing": file(
        [node("Mul", ["x", BAKED[0]], ["z"]), node("Add", ["z", BAKED[1]], ["y"])],
        {"x": ("N", 3, 4, 4)},
        [weight(name, 1, 3, 1, 1) for name in BAKED],
    ),
    "as many labels as any network has": file(
        [node("Gather", ["t", "i"], ["y"])], {"i": (INT64, ["N"])}, [weight("t", 32_768, dtype="i4")]
    ),
    "shapes": file([node("Reshape", ["x", "to"], ["y"])], X, [array("to", [-1, 2, 2, 2])]),
    "axes, starts and ends": file([node("Slice", ["x", "a", "b", "c"], ["y"])], X, [array(n, [1, 1]) for n in "abc"]),
    "how far an image is resized": file(
        [node("Resize", ["x", "", "by"], ["y"])], {"x": ("N", 3, 4, 4)}, [array("by", [1, 1, 2, 2], "f4")]
    ),
    "what is picked": file([node("Gather", ["x", "i"], ["y"], axis=1)], X, [array("i", [3, 1, 2])]),
    "truths that choose": file([node("Where", ["m", "x", "s"], ["y"])], X, [weight("m", 8, dtype="?"), SCALE]),
    "truths that choose, stored as bytes": file(
        [node("Cast", ["m"], ["t"], to=TensorProto.BOOL), node("Where", ["t", "x", "s"], ["y"])],
        X,
        [weight("m", 8, dtype="u1"), SCALE],
    ),
    "labels": file(
        [node("ArgMax", ["x"], ["i"], axis=1), node("Gather", ["labels", "i"], ["y"])], X, [array("labels", range(8))]
    ),
    "where positions are looked up": file(
        [node("Gather", ["x", "i"], ["p"]), node("Add", ["p", "p"], ["y"])],
        {"x": (1, 8)},
        [array("i", [0, 0, 0])],
    ),
    "weights that nothing reads": file([node("Relu", ["x"], ["y"])], X, [weight("w", 8, 5)]),
    "weights of which nothing becomes": file(
        [MATMUL, node("Relu", ["x"], ["z"])], X, [weight("w", 8, 5)], outputs=["z"]
    ),
    "single numbers": file([node("Mul", ["x", "s"], ["y"])], X, [SCALE]),
    "padding": file([node("Pad", ["x", "p", "s"], ["y"])], X, [array("p", [0, 1, 0, 1]), SCALE]),
}


@pytest.mark.parametrize("name", STORED)
def test_what_is_reckoned_with_is_counted_however_it_is_stored(name: str) -> None:
    model, params = STORED[name]
    cost = count(model)
    assert (cost.hidden, cost.params) == ((), params)


@pytest.mark.parametrize("name", NOT_STORED)
def test_what_only_says_where_or_how_many_is_no_parameter(name: str) -> None:
    cost = count(NOT_STORED[name])
    assert (cost.hidden, cost.params) == ((), 0)


def test_a_table_of_positions_counts_and_the_positions_do_not() -> None:
    nodes = [node("Gather", ["table", "i"], ["t"]), node("Add", ["x", "t"], ["y"])]
    assert count(file(nodes, {"x": ("N", 9, 4)}, [weight("table", 3, 4), array("i", [0, 1, 2] * 3)])).params == 12


def test_a_weight_is_one_wherever_else_it_serves() -> None:
    nodes = [
        node("BatchNormalization", ["x", "a", "b", "m", "v"], ["n"]),
        node("Conv", ["n", "w"], ["c"]),
        node("Mul", ["c", "m"], ["y"]),
    ]
    stored = [*(weight(n, 3) for n in "abv"), weight("m", 3), weight("w", 3, 3, 1, 1)]
    assert (
        count(file(nodes, {"x": ("N", 3, 4, 3)}, stored)).params == 3 + 3 + 3 + 9
    )  # m too: something is multiplied by it


def test_weights_in_branches_loops_and_functions_are_counted_once() -> None:
    def branch(name: str, kind: str) -> onnx.GraphProto:
        return graph(
            [node("DequantizeLinear", [name, "s"], ["v"]), node("MatMul", ["x", "v"], ["o"])],
            {},
            [weight(name, 8, 8, dtype=kind)],
            outputs=["o"],
            ranks={"o": 2},
        )

    inside = helper.make_function(
        "mine", "F", ["x"], ["y"], [*constant(value=weight("", 8, 8))], [helper.make_opsetid("", 18)]
    )
    nodes = [
        node("If", ["c"], ["a"], then_branch=branch("q", "i1"), else_branch=branch("r", "u1")),
        node("F", ["a"], ["b"], domain="mine"),
        node("F", ["b"], ["y"], domain="mine"),
    ]
    model = file(nodes, {**X, "c": (TensorProto.BOOL, [])}, [SCALE], domains=["mine"], functions=[inside])
    assert count(model).params == 3 * 64


def test_params_need_no_shapes_of_inputs() -> None:
    model = file([node("Conv", ["x", "w"], ["y"])], {"x": ("N", 3, "H", "W")}, [weight("w", 4, 3, 3, 3)])
    assert count(model).why
    assert (count(model).hidden, count(model).params) == ((), 108)


def test_texts_are_no_numbers() -> None:
    model = file(
        [node("Identity", ["t"], ["y"])], X, [helper.make_tensor("t", TensorProto.STRING, [3], [b"a", b"b", b"c"])]
    )
    model.graph.output[0].CopyFrom(value("y", [3], TensorProto.STRING))
    assert count(model).params == 0
    assert np.prod(model.graph.initializer[0].dims) == 3
