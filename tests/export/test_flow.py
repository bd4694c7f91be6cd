"""What may hold parameters out of sight is named; what is made of what is found in time that grows with the file."""

import sys
from collections.abc import Callable

import onnx
import pytest
from onnx import TensorProto, helper
from onnx_files import FLOAT, INT64, array, file, graph, node, value, weight

from compress.export.onnx.count import count
from compress.export.onnx.flow import read_flow

X = {"x": ("N", 8)}
SCALE = array("s", 0.1, "f4")
MATMUL = node("MatMul", ["x", "w"], ["y"])


def attributes(**numbers: object) -> onnx.NodeProto:
    return node("Blob", ["x"], ["y"], domain="mine", **numbers)


HIDDEN = {
    "a compiled network": file(
        [node("EPContext", ["x"], ["y"], domain="com.microsoft", ep_cache_context=b"weights")],
        X,
        domains=["com.microsoft"],
    ),
    "an operator of onnxruntime that is not known here": file(
        [node("QMoE", ["x", "w"], ["y"], domain="com.microsoft")], X, [weight("w", 8, 5)], domains=["com.microsoft"]
    ),
    "trees": file(
        [node("TreeEnsembleRegressor", ["x"], ["y"], domain="ai.onnx.ml", nodes_values=[0.5] * 3)],
        X,
        domains=["ai.onnx.ml"],
    ),
    "support vectors": file(
        [node("SVMRegressor", ["x"], ["y"], domain="ai.onnx.ml", support_vectors=[0.5] * 16)], X, domains=["ai.onnx.ml"]
    ),
    "a stranger's attribute": file([attributes(numbers=[0.5, 0.25])], X, domains=["mine"]),
    "a stranger's tensor": file([attributes(numbers=weight("", 8))], X, domains=["mine"]),
    "a stranger's text": file([attributes(numbers=b"0.5 0.25")], X, domains=["mine"]),
    "a stranger's whole numbers": file(
        [node("Blob", ["x", "q"], ["y"], domain="mine")], X, [weight("q", 8, 5, dtype="u1")], domains=["mine"]
    ),
    "an argument of a function": file(
        [node("F", ["x"], ["y"], domain="mine", value=weight("", 8, 5))],
        X,
        domains=["mine"],
        functions=[
            helper.make_function(
                "mine", "F", ["x"], ["y"], [MATMUL], [helper.make_opsetid("", 18)], attributes=["value"]
            )
        ],
    ),
}


@pytest.mark.parametrize("name", HIDDEN)
def test_what_may_hold_numbers_out_of_sight_is_named(name: str) -> None:
    assert [
        word
        for word in ("EPContext", "QMoE", "Tree", "SVM", "Blob", "mine::F")
        if word in count(HIDDEN[name]).hidden[0]
    ]


def words(*nodes: onnx.NodeProto, **more: object) -> onnx.ModelProto:
    """A network whose weights are read from stored texts."""
    return file([*nodes, MATMUL], X, [helper.make_tensor("t", TensorProto.STRING, [8, 5], [b"0.5"] * 40)], **more)


def handed(kind: str) -> onnx.ModelProto:
    """A function whose branch is given by its caller."""
    choice = node("If", ["c"], ["w"])
    choice.attribute.add(name="then_branch", ref_attr_name="then", type=onnx.AttributeProto.GRAPH)
    inside = helper.make_function("mine", kind, ["c"], ["w"], [choice], [helper.make_opsetid("", 18)], ["then"])
    given = graph([node("Identity", ["v"], ["o"])], {}, [weight("v", 8, 5)], outputs=["o"])
    nodes = [node(kind, ["c"], ["w"], domain="mine", then=given), MATMUL]
    return file(nodes, {**X, "c": (TensorProto.BOOL, [])}, domains=["mine"], functions=[inside])


SHAPED = {"x": ("N", 8), "w": (8, 5)}
NAMED = {
    "input 'w'": [
        file([MATMUL], SHAPED),
        file([node("Transpose", ["w"], ["t"]), node("Gemm", ["x", "t"], ["y"])], {"x": ("N", 8), "w": (5, 8)}),
        file([node("DequantizeLinear", ["w", "s"], ["q"]), node("Conv", ["x", "q"], ["y"])],
             {"x": ("N", 3, 9, 9), "w": (TensorProto.INT8, [4, 3, 3, 3])}, [SCALE]),
        file([node("LSTM", ["x", "w", "r"], ["y"], hidden_size=2)], {"x": (5, 1, 3), "w": (1, 8, 3)},
             [weight("r", 1, 8, 2)]),
    ],
    "texts 't'": [
        words(node("Cast", ["t"], ["w"], to=FLOAT)),
        words(node("Reshape", ["t", "to"], ["r"]), node("StringSplit", ["r"], ["p", "n"], delimiter=" "),
              node("Cast", ["p"], ["w"], to=FLOAT), opset=20),
    ],
    "TfIdfVectorizer": [
        file([node("TfIdfVectorizer", ["x"], ["y"], mode="TFIDF", weights=[0.5] * 17, pool_int64s=range(17))], X),
    ],
    "mine::Hand with graphs": [handed("Hand")],
}  # fmt: skip


@pytest.mark.parametrize("name", NAMED)
def test_what_stands_in_for_weights_is_named(name: str) -> None:
    for model in NAMED[name]:
        (hidden,) = count(model).hidden
        assert name in hidden


def test_products_of_activations_name_no_weights() -> None:
    for reads, shapes in (
        (["x", "k"], {"x": ("N", 4, 8), "k": ("N", 8, 4)}),
        (["x", "k"], {"x": ("N", 4, 8), "k": (8, "slots")}),
        (["w", "x"], {"x": (8, 3)}),
    ):
        assert count(file([node("MatMul", reads, ["y"])], shapes, [weight("w", 8, 8)])).hidden == ()


def test_a_stranger_whose_weights_are_plain_hides_nothing() -> None:
    model = file([node("Blob", ["x", "w"], ["y"], domain="mine")], X, [weight("w", 8, 5)], domains=["mine"])
    assert (count(model).hidden, count(model).params) == ((), 40)


def chain(links: int) -> onnx.ModelProto:
    """Indices into a table that are looked up in it again and again."""
    looks = [node("Gather", ["t", f"i{k}"], [f"i{k + 1}"]) for k in range(links)]
    return file([*looks, MATMUL], X, [array("t", range(4)), array("i0", range(4)), weight("w", 8, 5)])


def loop(carried: int) -> onnx.ModelProto:
    """A loop that carries this many numbers and changes none."""
    names = [f"b{k}" for k in range(carried)]
    ends = [value("go", [], TensorProto.BOOL), *(value(n, [1]) for n in names)]
    body = helper.make_graph([node("Identity", ["on"], ["go"])], "b", [], ends)
    body.input.extend([value("k", [], INT64), value("on", [], TensorProto.BOOL), *(value(n, [1]) for n in names)])
    run = node("Loop", ["n", "t", *["one"] * carried], [f"o{k}" for k in range(carried)], body=body)
    return file([run, MATMUL], X, [array("n", 2), array("t", True, "?"), array("one", [1], "f4"), weight("w", 8, 5)])


def calls_of(model: onnx.ModelProto) -> int:
    """How many functions are called to count a model."""
    calls = 0

    def called(frame: object, event: str, argument: object) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")

    sys.setprofile(called)
    try:
        assert count(model).params == 40
    finally:
        sys.setprofile(None)
    return calls


@pytest.mark.parametrize("many", [chain, loop])
def test_ties_and_lookups_take_steps_that_grow_with_the_file(many: Callable[[int], onnx.ModelProto]) -> None:
    few, more = calls_of(many(250)), calls_of(many(1000))
    assert more < 6 * few  # four times as many, and not their square


def test_a_loop_ties_each_of_its_names_once() -> None:
    ties = [step for step in read_flow(loop(300)).steps if step.name in ("", "Loop")]
    assert sum(len(step.reads) + len(step.makes) for step in ties) < 10 * 300


def test_what_a_function_makes_is_constant_where_a_call_gives_constants() -> None:
    inside = helper.make_function(
        "mine", "F", ["a"], ["o"], [node("Relu", ["a"], ["o"])], [helper.make_opsetid("", 18)]
    )
    calls = [node("F", ["x"], ["y"], domain="mine"), node("F", ["w"], ["z"], domain="mine")]
    flow = read_flow(file(calls, X, [weight("w", 8)], domains=["mine"], functions=[inside]))
    assert {"w", "z"} <= flow.constant
    assert "x" not in flow.constant
