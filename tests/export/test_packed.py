"""Numbers that hold several, or that choose from a palette, count by what becomes of them, or are refused by name."""

import onnx
import pytest
from onnx import TensorProto, helper
from onnx_files import FLOAT, INT64, UINT8, array, file, graph, node, packed, weight

from compress.export.onnx.count import count

X = {"x": ("N", 8)}
IDS = {"i": (INT64, ["N", 3])}
MATMUL = node("MatMul", ["x", "w"], ["y"])
SCALE, FOUR, FIFTEEN = array("s", 0.1, "f4"), array("four", 4, "u1"), array("m", 15, "u1")
SIXTEEN = array("k", 16, "f4")
BYTES = weight("p", 4, 5, dtype="u1")  # 20 bytes, which hold 40 numbers of 4 bits, as [8, 5]
CODES = weight("c", 8, 5, dtype="i8")
COLOURS = weight("colours", 16)
OPSETS = [helper.make_opsetid("", 18), helper.make_opsetid("com.microsoft", 1)]


def halves(source: str = "p", axis: int = 0) -> list[onnx.NodeProto]:
    """Low and high half of each byte, one behind the other, as real numbers."""
    return [
        node("BitwiseAnd", [source, "m"], ["low"]),
        node("BitShift", [source, "four"], ["high"], direction="RIGHT"),
        node("Concat", ["low", "high"], ["both"], axis=axis),
        node("Cast", ["both"], ["real"], to=FLOAT),
        node("Mul", ["real", "s"], ["w"]),
    ]


def inside() -> list[onnx.NodeProto]:
    return [node("Constant", [], [t.name], value=t) for t in (FIFTEEN, FOUR)]


def function(reads: list[str], makes: list[str], nodes: list[onnx.NodeProto]) -> onnx.FunctionProto:
    return helper.make_function("mine", "F", reads, makes, nodes, OPSETS)


def branched(nodes: list[onnx.NodeProto], stored: list[onnx.TensorProto]) -> onnx.ModelProto:
    """A weight that comes from one of two branches: made by these nodes, or stored as it is."""
    one = graph(nodes, {}, outputs=["w"], ranks={"w": 2})
    two = graph([node("Identity", ["other"], ["v"])], {}, [weight("other", 8, 5)], outputs=["v"], ranks={"v": 2})
    either = node("If", ["b"], ["e"], then_branch=one, else_branch=two)
    return file([either, node("MatMul", ["x", "e"], ["y"])], {**X, "b": (TensorProto.BOOL, [])}, stored)


def nbits(source: str = "q", **more: int) -> onnx.NodeProto:
    options = {"K": 8, "N": 5, "bits": 4, "block_size": 16} | more
    return node("MatMulNBits", ["x", source, "c"], ["y"], domain="com.microsoft", **options)


def block_table(kind: int, zeros: bool = False) -> onnx.ModelProto:
    """A table of 50 rows of 32 numbers of 4 bits, with a scale and a zero point for each 16."""
    last = 16 if kind == UINT8 else 32
    table = weight("q", 50, 16, dtype="u1") if kind == UINT8 else packed("q", kind, 50, last)
    reads = ["q", "i", "c", "z"] if zeros else ["q", "i", "c"]
    looked = node("GatherBlockQuantized", reads, ["e"], domain="com.microsoft", bits=4, block_size=16, quantize_axis=1)
    stored = [table, weight("c", 50, 2), weight("z", 50, 1, dtype="u1"), weight("w", 32, 2)]
    product = node("MatMul", ["e", "w"], ["y"])
    return file([looked, product], {"i": (INT64, [1, 3])}, stored, opset=21, domains=["com.microsoft"])


def where(condition: list[onnx.NodeProto], *stored: onnx.TensorProto) -> onnx.ModelProto:
    return file([*condition, node("Where", ["t", "a", "n"], ["w"]), MATMUL], X, stored)


A, N = array("a", 1, "f4"), array("n", -1, "f4")
COUNTED = {
    "halves by dividing and cutting off": (
        file(
            [
                node("Cast", ["p"], ["f"], to=FLOAT),
                node("Div", ["f", "k"], ["d"]),
                node("Cast", ["d"], ["h"], to=TensorProto.INT32),
                node("Cast", ["h"], ["high"], to=FLOAT),
                node("Mul", ["high", "k"], ["back"]),
                node("Sub", ["f", "back"], ["low"]),
                node("Concat", ["low", "high"], ["w"], axis=0),
                MATMUL,
            ],
            X,
            [BYTES, SIXTEEN],
        ),
        40,
    ),
    "halves of real numbers": (
        file(
            [
                node("Div", ["p", "k"], ["d"]),
                node("Floor", ["d"], ["high"]),
                node("Mul", ["high", "k"], ["back"]),
                node("Sub", ["p", "back"], ["low"]),
                node("Concat", ["low", "high"], ["w"], axis=0),
                MATMUL,
            ],
            X,
            [weight("p", 4, 5), SIXTEEN],
        ),
        40,
    ),
    "halves by overflow": (
        file(
            [
                node("Mul", ["p", "b"], ["l"]),
                node("Concat", ["p", "l"], ["both"], axis=0),
                node("Cast", ["both"], ["w"], to=FLOAT),
                MATMUL,
            ],
            X,
            [BYTES, array("b", 16, "u1")],
        ),
        40,
    ),
    "two tensors of halves, added to each other": (
        file(
            [
                node("BitwiseAnd", ["p", "m"], ["a"]),
                node("BitwiseAnd", ["r", "m"], ["b"]),
                node("Add", ["a", "b"], ["t"]),
                node("Cast", ["t"], ["w"], to=FLOAT),
                MATMUL,
            ],
            X,
            [weight("p", 8, 5, dtype="u1"), weight("r", 8, 5, dtype="u1"), FIFTEEN],
        ),
        40 + 40,
    ),
    "a byte for two weights of a table": (
        file(
            [node("Gather", ["colours", "c"], ["g"]), node("Reshape", ["g", "to"], ["w"]), MATMUL],
            X,
            [weight("c", 20, dtype="u1"), weight("colours", 4, 2), array("to", [8, 5])],
        ),
        40 + 8,
    ),
    "one of two numbers by a truth": (where([], weight("t", 8, 5, dtype="?"), A, N), 40),
    "one of two rows by a truth": (
        where([], weight("t", 8, 5, dtype="?"), weight("a", 5), weight("n", 5)),
        40 + 5 + 5,
    ),
    "one of two numbers by what is equal": (
        where([node("Equal", ["c", "b"], ["t"])], CODES, array("b", 3), A, N),
        40,
    ),
    "a palette by places among zeros": (
        file(
            [node("OneHot", ["c", "d", "v"], ["o"]), node("MatMul", ["o", "colours"], ["w"]), MATMUL],
            X,
            [CODES, array("d", 16), array("v", [0, 1], "f4"), weight("colours", 16)],
        ),
        40 + 2 + 16,
    ),
    "a palette by features": (
        file(
            [
                node("ArrayFeatureExtractor", ["colours", "c"], ["g"], domain="ai.onnx.ml"),
                node("Reshape", ["g", "to"], ["w"]),
                MATMUL,
            ],
            X,
            [weight("c", 40, dtype="i8"), weight("colours", 1, 16), array("to", [8, 5])],
            domains=["ai.onnx.ml"],
        ),
        40 + 16,
    ),
    "a palette that scales": (
        file(
            [node("Gather", ["colours", "c"], ["w"]), node("LayerNormalization", ["x", "w"], ["y"])],
            X,
            [weight("c", 8, dtype="i8"), COLOURS],
        ),
        8 + 16,
    ),
    "a palette of slopes": (
        file(
            [node("Gather", ["colours", "c"], ["w"]), node("PRelu", ["x", "w"], ["y"])],
            X,
            [weight("c", 8, dtype="i4"), COLOURS],
        ),
        8 + 16,
    ),
    "a table of codes of a palette": (
        file(
            [
                node("Gather", ["c", "i"], ["g"]),
                node("Cast", ["g"], ["j"], to=INT64),
                node("Gather", ["colours", "j"], ["y"]),
            ],
            IDS,
            [weight("c", 50, 30, dtype="u1"), COLOURS],
        ),
        1500 + 16,
    ),
    "a small table of wide codes": (
        file(
            [node("Gather", ["c", "i"], ["j"]), node("Gather", ["colours", "j"], ["y"])],
            IDS,
            [weight("c", 16, 64, dtype="i4"), COLOURS],
        ),
        1024 + 16,
    ),
    "4 bits in blocks, with zero points": (block_table(UINT8, zeros=True), 1600 + 100 + 100 + 64),
    "4 bits of ONNX in blocks": (block_table(TensorProto.UINT4), 1600 + 100 + 64),
}

REFUSED = {
    "halves in a function": file(
        [node("F", ["p", "s"], ["v"], domain="mine"), node("MatMul", ["x", "v"], ["y"])],
        X,
        [BYTES, SCALE],
        domains=["mine"],
        functions=[function(["p", "s"], ["w"], [*inside(), *halves()])],
    ),
    "halves that a function multiplies": file(
        [*halves(), node("F", ["x", "w"], ["y"], domain="mine")],
        X,
        [BYTES, SCALE, FOUR, FIFTEEN],
        domains=["mine"],
        functions=[function(["x", "w"], ["y"], [MATMUL])],
    ),
    "halves in a branch": branched(halves(), [BYTES, SCALE, FOUR, FIFTEEN]),
    "halves of rows that are looked up": file(
        [node("Gather", ["p", "i"], ["r"]), *halves("r", axis=2), node("MatMul", ["w", "u"], ["y"])],
        IDS,
        [weight("p", 50, 4, dtype="u1"), SCALE, FOUR, FIFTEEN, weight("u", 8, 2)],
    ),
    "halves of rows that are handed out": file(
        [node("Gather", ["p", "i"], ["r"]), *halves("r", axis=2), node("Identity", ["w"], ["y"])],
        IDS,
        [weight("p", 50, 4, dtype="u1"), SCALE, FOUR, FIFTEEN],
    ),
    "what is put together of more than can be followed": file(
        [
            *(node("BitwiseOr", [f"q{i}", f"u{i - 1}" if i else "q0"], [f"u{i}"]) for i in range(80)),
            node("Cast", ["u79"], ["w"], to=FLOAT),
            MATMUL,
        ],
        X,
        [weight(f"q{i}", 8, 5, dtype="u1") for i in range(80)],
    ),
    "MatMulNBits of what is turned": file(
        [node("Reshape", ["r", "to"], ["q"]), nbits()],
        X,
        [weight("r", 5, 8, dtype="u1"), array("to", [5, 1, 8]), weight("c", 5)],
        domains=["com.microsoft"],
    ),
    "MatMulNBits in a function": file(
        [node("F", ["x", "q", "c"], ["y"], domain="mine")],
        X,
        [weight("q", 5, 1, 8, dtype="u1"), weight("c", 5)],
        domains=["mine", "com.microsoft"],
        functions=[function(["x", "q", "c"], ["y"], [nbits()])],
    ),
}

NO_PALETTES = {
    "positions that are looked up and added": (
        file(
            [node("Gather", ["t", "c"], ["g"]), node("Add", ["x", "g"], ["y"])],
            {"x": ("N", 4, 4)},
            [weight("t", 7), weight("c", 4, 4, dtype="i8")],
        ),
        7,
    ),
    "a truth that hides what is not to be seen": (
        file([node("Where", ["m", "x", "s"], ["y"])], X, [weight("m", 8, dtype="?"), SCALE]),
        0,
    ),
    "positions in a row, of which some are taken": (
        file(
            [
                node("Slice", ["c", "z", "n"], ["p"]),
                node("Gather", ["t", "p"], ["g"]),
                node("Add", ["x", "g"], ["y"]),
            ],
            {"x": (1, 4), "n": (INT64, [1])},
            [weight("t", 9, 4), weight("c", 9, dtype="i8"), array("z", [0])],
        ),
        36,
    ),
}


@pytest.mark.parametrize("name", COUNTED)
def test_what_is_packed_or_chosen_counts_by_what_becomes_of_it(name: str) -> None:
    model, params = COUNTED[name]
    cost = count(model)
    assert (cost.hidden, cost.params) == ((), params)


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_taken_apart_out_of_sight_is_refused(name: str) -> None:
    (hidden,) = count(REFUSED[name]).hidden
    assert "taken apart" in hidden or "packed numbers are not stored" in hidden


@pytest.mark.parametrize("name", NO_PALETTES)
def test_what_only_says_where_is_no_palette(name: str) -> None:
    model, params = NO_PALETTES[name]
    cost = count(model)
    assert (cost.hidden, cost.params) == ((), params)


@pytest.mark.parametrize("kind", [UINT8, TensorProto.UINT4])
def test_rows_of_a_packed_table_have_their_unpacked_width(kind: int) -> None:
    assert count(block_table(kind)).macs == 3 * 32 * 2


def test_a_palette_counts_through_six_functions() -> None:
    names = [f"I{k}" for k in range(6)]
    functions = [
        helper.make_function("mine", name, ["a"], ["o"], [node("Identity", ["a"], ["o"])], OPSETS) for name in names
    ]
    calls = [node(name, [f"c{k}" if k else "c"], [f"c{k + 1}"], domain="mine") for k, name in enumerate(names)]
    nodes = [*calls, node("Gather", ["colours", "c6"], ["w"]), MATMUL]
    cost = count(file(nodes, X, [CODES, COLOURS], domains=["mine"], functions=functions))
    assert (cost.hidden, cost.params) == ((), 40 + 16)


def test_of_equal_names_in_two_branches_the_larger_counts() -> None:
    def branch(columns: int) -> onnx.GraphProto:
        nodes = [nbits(N=columns), node("ReduceSum", ["y", "ax"], ["o"])]
        stored = [weight("q", columns, 1, 8, dtype="u1"), weight("c", columns)]
        return graph(nodes, {}, stored, outputs=["o"], ranks={"o": 2})

    either = node("If", ["b"], ["z"], then_branch=branch(200), else_branch=branch(10))
    model = file(
        [either], {**X, "b": (TensorProto.BOOL, [])}, [array("ax", [1])], outputs=["z"], domains=["com.microsoft"]
    )
    assert count(model).params >= 8 * (200 + 10) + 200 + 10
