"""One axis is the batch where that can be shown; every other free axis has a size by the caller, or none at all."""

from pathlib import Path

import onnx
import pytest
from onnx import TensorProto
from onnx_files import INT64, array, file, node, weight

from compress.errors import UsageError
from compress.export.onnx.count import count
from compress.export.verify import verify

KERNEL = weight("w", 64, 3, 3, 3)
CONV = node("Conv", ["x", "w"], ["y"], pads=[1] * 4)
ONE = 64 * 27 * 32 * 32
LSTM = [weight("W", 1, 4 * 6, 5), weight("R", 1, 4 * 6, 6)]
STEP = 4 * 6 * (5 + 6)  # of that LSTM
MATRIX = weight("w", 8, 5)
MATMUL = node("MatMul", ["x", "w"], ["y"])


def lstm(*shape: int | str, **options: int) -> onnx.ModelProto:
    return file([node("LSTM", ["x", "W", "R"], ["y"], hidden_size=6, **options)], {"x": shape}, LSTM)


BATCH = {
    "a symbol": (file([CONV], {"x": ("N", 3, 32, 32)}, [KERNEL]), ONE),
    "none": (file([CONV], {"x": (None, 3, 32, 32)}, [KERNEL]), ONE),
    "0": (file([CONV], {"x": (0, 3, 32, 32)}, [KERNEL]), ONE),
    "-1": (file([CONV], {"x": (-1, 3, 32, 32)}, [KERNEL]), ONE),
    "tf2onnx's": (file([CONV], {"x": ("unk__12", 3, 32, 32)}, [KERNEL]), ONE),
    "a sequence's batch": (lstm("batch", 7, 5, layout=1), 7 * STEP),
    "of two inputs": (file([node("MatMul", ["x", "v"], ["y"])], {"x": ("N", 3, 4), "v": ("N", 4, 5)}), 60),
    "of two inputs by different names": (
        file([node("MatMul", ["x", "v"], ["y"])], {"x": ("a", 3, 4), "v": ("b", 4, 5)}),
        60,
    ),
    "turned to the middle and back": (
        file(
            [
                node("Transpose", ["x"], ["t"], perm=[1, 0, 2]),
                node("LSTM", ["t", "W", "R"], ["l"], hidden_size=6),
                node("Squeeze", ["l", "one"], ["q"]),
                node("Transpose", ["q"], ["y"], perm=[1, 0, 2]),
            ],
            {"x": ("N", 7, 5)},
            [*LSTM, array("one", [1])],
        ),
        7 * STEP,
    ),
    "folded into the rows of a product and back": (
        file(
            [
                node("Reshape", ["x", "rows"], ["r"]),
                node("MatMul", ["r", "w"], ["m"]),
                node("Reshape", ["m", "back"], ["y"]),
            ],
            {"x": ("N", 3, 8)},
            [MATRIX, array("rows", [-1, 8]), array("back", [-1, 3, 5])],
        ),
        120,
    ),
}

# What is no batch, by the word that the refusal must hold, and how it is counted with a shape.
REFUSED = {
    "steps first": (lstm("seq", 1, 5), "'seq'", {"x": (50, 1, 5)}, 50 * STEP),
    "steps first, unnamed": (lstm(None, 1, 5), "the steps of a sequence", {"x": (50, 1, 5)}, 50 * STEP),
    "steps first, called batch": (lstm("batch", 1, 5), "the steps of a sequence", {"x": (50, 1, 5)}, 50 * STEP),
    "a batch in the second place": (lstm(7, "batch", 5), "'batch'", {"x": (7, 2, 5)}, 14 * STEP),
    "rows of an image": (
        file(
            [
                node("Transpose", ["x"], ["t"], perm=[2, 0, 1]),
                node("Unsqueeze", ["t", "ax"], ["u"]),
                node("Conv", ["u", "w"], ["y"], pads=[1] * 4),
            ],
            {"x": ("height", 32, 3)},
            [KERNEL, array("ax", [0])],
        ),
        "'height'",
        {"x": (32, 32, 3)},
        ONE,
    ),
    "rows of an image, unnamed": (
        file(
            [
                node("Transpose", ["x"], ["t"], perm=[2, 0, 1]),
                node("Unsqueeze", ["t", "ax"], ["u"]),
                node("Conv", ["u", "w"], ["y"], pads=[1] * 4),
            ],
            {"x": (-1, 32, 3)},
            [KERNEL, array("ax", [0])],
        ),
        "axis 0 of input 'x' is not shown",
        {"x": (32, 32, 3)},
        ONE,
    ),
    "height and width": (
        file([CONV], {"x": ("N", 3, "H", "W")}, [KERNEL]),
        "axis 2 of input 'x' ('H')",
        {"x": (1, 3, 32, 32)},
        ONE,
    ),
    "height and width of 0": (
        file([CONV], {"x": (1, 3, 0, 0)}, [KERNEL]),
        "axis 2 of input 'x'",
        {"x": (1, 3, 32, 32)},
        ONE,
    ),
    "height and width of -1": (
        file([CONV], {"x": (1, 3, -1, -1)}, [KERNEL]),
        "axis 2 of input 'x'",
        {"x": (1, 3, 32, 32)},
        ONE,
    ),
    "one symbol for all": (
        file([CONV], {"x": ("N", 3, "N", "N")}, [KERNEL]),
        "axis 0 of input 'x' ('N')",
        {"x": (32, 3, 32, 32)},
        32 * ONE,
    ),
    "positions beside words": (
        file(
            [node("Gather", ["table", "p"], ["t"]), node("Add", ["x", "t"], ["a"]), node("MatMul", ["a", "w"], ["y"])],
            {"x": ("batch", "seq", 8), "p": (INT64, ["seq"])},
            [weight("table", 512, 8), MATRIX],
        ),
        "'seq'",
        {"x": (1, 384, 8)},
        384 * 40,
    ),
    "positions alone": (
        file(
            [node("Gather", ["table", "p"], ["t"]), node("Add", ["x", "t"], ["a"]), node("MatMul", ["a", "w"], ["y"])],
            {"x": ("batch", 16, 8), "p": (INT64, [None])},
            [weight("table", 512, 8), MATRIX],
        ),
        "not shown",
        {"x": (1, 16, 8), "p": (16,)},
        16 * 40,
    ),
    "words that attend to each other": (
        file(
            [node("Transpose", ["x"], ["t"]), node("MatMul", ["x", "t"], ["s"]), node("MatMul", ["s", "x"], ["y"])],
            {"x": ("N", 8)},
        ),
        "not twice",
        {"x": (6, 8)},
        2 * 6 * 6 * 8,
    ),
    "words that attend in a line": (
        file(
            [node("Transpose", ["x"], ["t"]), node("MatMul", ["t", "x"], ["s"]), node("MatMul", ["x", "s"], ["y"])],
            {"x": ("N", 8)},
        ),
        "does not keep it",
        {"x": (6, 8)},
        2 * 6 * 8 * 8,
    ),
    "a share of all": (
        file([MATMUL, node("Softmax", ["y"], ["z"], axis=0)], {"x": ("N", 8)}, [MATRIX], outputs=["z"]),
        "mixes along it",
        {"x": (6, 8)},
        240,
    ),
    "steps along which a kernel slides": (
        file(
            [
                node("Transpose", ["x"], ["t"]),
                node("Unsqueeze", ["t", "z"], ["u"]),
                node("Conv", ["u", "k"], ["c"], pads=[1, 1]),
                node("Squeeze", ["c", "z"], ["s"]),
                node("Transpose", ["s"], ["y"]),
            ],
            {"x": ("N", 8)},
            [weight("k", 5, 8, 3), array("z", [0])],
        ),
        "does not take it for its samples",
        {"x": (6, 8)},
        6 * 5 * 24,
    ),
    "frames that end in one answer": (
        file(
            [MATMUL, node("ReduceMean", ["y", "z"], ["m"])], {"x": ("N", 8)}, [MATRIX, array("z", [0])], outputs=["m"]
        ),
        "told of all of them together",
        {"x": (6, 8)},
        240,
    ),
    "a batch that the graph does not keep": (
        file(
            [node("Reshape", ["x", "to"], ["r"]), node("MatMul", ["r", "w"], ["y"])],
            {"x": ("N", 8)},
            [MATRIX, array("to", [1, 8])],
        ),
        "does not fit",
        {"x": (1, 8)},
        40,
    ),
    "a given weight with a free axis": (
        file([node("MatMul", ["x", "v"], ["y"])], {"x": ("N", 8), "v": ("K", 5)}),
        "not shown",
        {"x": (1, 8), "v": (8, 5)},
        40,
    ),
    "no shape at all": (file([MATMUL], {"x": (1, 8)}, [MATRIX]), "has no shape", {"x": (1, 8)}, 40),
}
REFUSED["no shape at all"][0].graph.input[0].type.tensor_type.ClearField("shape")

FIXED = {
    "an image without a batch": (
        file(
            [node("Unsqueeze", ["x", "z"], ["u"]), node("Conv", ["u", "w"], ["y"], pads=[1] * 4)],
            {"x": (3, 32, 32)},
            [KERNEL, array("z", [0])],
        ),
        ONE,
    ),
    "a state of two layers": (
        file(
            [node("Gather", ["h", "k"], ["g"]), node("LSTM", ["x", "W", "R", "", "", "g", "g"], ["y"], hidden_size=6)],
            {"x": (1, 1, 5), "h": (2, 1, 6)},
            [*LSTM, array("k", [0])],
        ),
        STEP,
    ),
    "a sequence": (lstm(50, 1, 5), 50 * STEP),
    "a weight": (file([CONV], {"x": ("N", 3, 32, 32), "w": (64, 3, 3, 3)}), ONE),
    "a square": (file([node("Transpose", ["x"], ["t"]), node("MatMul", ["x", "t"], ["y"])], {"x": (6, 8)}), 288),
}


@pytest.mark.parametrize("name", BATCH)
def test_what_is_shown_to_be_the_batch_is_one(name: str) -> None:
    model, macs = BATCH[name]
    cost = count(model)
    assert (cost.why, cost.macs) == ("", macs)
    assert all(shape[0] == 1 for shape in cost.shapes.values())


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_is_refused_by_name_with_the_way_out(name: str) -> None:
    model, word, shapes, macs = REFUSED[name]
    cost = count(model)
    assert word in cost.why
    assert "--shape" in cost.why
    assert cost.memory is None
    given = count(model, shapes)
    assert (given.why, given.macs) == ("", macs)
    assert shapes.items() <= given.shapes.items()


@pytest.mark.parametrize("name", FIXED)
def test_a_first_axis_that_is_fixed_and_no_batch_is_counted_as_it_is(name: str) -> None:
    model, macs = FIXED[name]
    cost = count(model)
    assert (cost.why, cost.macs) == ("", macs)


@pytest.mark.parametrize("shape", [(8, 3, 32, 32), (2, 3, 32, 32)])
def test_a_batch_that_is_fixed_above_one_is_refused(shape: tuple[int, ...]) -> None:
    assert f"the batch of input 'x' is fixed at {shape[0]}" in count(file([CONV], {"x": shape}, [KERNEL])).why


@pytest.mark.parametrize("size", [2**62, 2**63 - 1])
def test_a_batch_as_large_as_any_number_is_refused(size: int) -> None:
    assert count(file([MATMUL], {"x": (size, 8)}, [MATRIX])).why


def test_a_size_that_is_given_holds_wherever_its_symbol_stands() -> None:
    model = file([node("MatMul", ["x", "v"], ["y"])], {"x": ("N", "seq", 8), "v": ("N", 8, "seq")})
    cost = count(model, {"x": (1, 6, 8)})
    assert (cost.macs, dict(cost.shapes)) == (288, {"x": (1, 6, 8), "v": (1, 8, 6)})


def test_a_given_batch_counts_as_often() -> None:
    assert count(file([CONV], {"x": ("N", 3, 32, 32)}, [KERNEL]), {"x": (4, 3, 32, 32)}).macs == 4 * ONE


@pytest.mark.parametrize(
    ("shapes", "word"),
    [
        ({"z": (1, 3)}, "no input 'z'; its inputs are 'x'"),
        ({"x": (1, 3)}, "has 4 axes"),
        ({"x": (1, 4, 32, 32)}, "axis 1 of input 'x' is fixed at 3"),
    ],
)
def test_a_shape_that_the_file_contradicts_is_a_mistake(shapes: dict[str, tuple[int, ...]], word: str) -> None:
    with pytest.raises(UsageError, match=word):
        count(file([CONV], {"x": ("N", 3, "H", "W")}, [KERNEL]), shapes)


def test_an_input_that_is_no_tensor_is_refused() -> None:
    model = file(
        [node("SequenceAt", ["x", "i"], ["s"]), node("MatMul", ["s", "w"], ["y"])],
        {"x": (1, 8)},
        [MATRIX, array("i", 0)],
    )
    model.graph.input[0].type.sequence_type.elem_type.tensor_type.elem_type = TensorProto.FLOAT
    assert count(model).why


# ---- as a user asks -------------------------------------------------------------------------------------------------


@pytest.fixture
def open_file(tmp_path: Path) -> Path:
    """A convolution whose height and width are open."""
    path = tmp_path / "open.onnx"
    onnx.save(file([CONV], {"x": ("N", 3, "H", "W")}, [KERNEL], ranks={"y": 4}), path)
    return path


def test_an_open_axis_is_refused_for_macs_and_answered_for_all_that_needs_none(open_file: Path) -> None:
    for budget in ("1GMACs", "1GFLOPs", "1GB@activations", "1728params, 1GMACs"):
        verdict = verify(open_file, budget)
        assert verdict.code == 4
        assert "axis 2 of input 'x' ('H') has no size" in verdict.lines[0]
        assert verdict.to_json()["shapes"] == {"x": [1, 3, None, None]}
        assert verdict.to_json()["counted"] == {
            "macs": None,
            "params": 1728,
            "bytes": open_file.stat().st_size,
            "memory": None,
        }
    assert verify(open_file, "1728params, 20kB").code == 0
    assert verify(open_file, "1727params").code == 1


def test_a_shape_closes_an_open_axis_and_is_told(open_file: Path) -> None:
    for shape in ("x=1,3,32,32", "1,3,32,32", ("x=1,3,32,32",)):
        verdict = verify(open_file, f"{ONE}MACs", shape=shape)
        assert verdict.code == 0
        assert "counted for the inputs x=1,3,32,32" in verdict.lines
    assert verify(open_file, f"{ONE - 1}MACs", shape="1,3,32,32").code == 1


@pytest.mark.parametrize(
    ("shape", "word"),
    [
        ("x=1,3,8", "has 4 axes"),
        ("x=1,3,8,0", "is no shape"),
        ("x=1,3,8,-1", "is no shape"),
        ("x=1;3", "is no shape"),
        ("x=", "is no shape"),
        ("x=1,3,8,99999999999999999999", "is no shape"),
        ("z=1,3,8,8", "no input 'z'"),
        (("x=1,3,8,8", "x=1,3,9,9"), "twice"),
    ],
)
def test_a_shape_that_cannot_be_is_2(shape: str | tuple[str, ...], word: str, open_file: Path) -> None:
    with pytest.raises(UsageError, match=word):
        verify(open_file, "1GMACs", shape=shape)
