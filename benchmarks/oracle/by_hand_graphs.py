"""Graphs by hand: branches, loops, functions, Einsum in full, attention, and operators that are seldom seen."""

from __future__ import annotations

from functools import partial
from math import prod
from pathlib import Path

import numpy as np
import onnx
from hand import const, node, save, tensor, weight
from onnx import TensorProto, helper
from table import Make, Truth

PACKAGES = ("onnx",)


def branch(name: str, kernel: int) -> onnx.GraphProto:
    """A convolution of x, 8 channels to 8, whose weights are the branch's own."""
    pads = [kernel // 2] * 4
    nodes = [node("Conv", ["x", f"w_{name}"], [f"o_{name}"], pads=pads)]
    out = tensor(f"o_{name}", ["batch", 8, 10, 10])
    return helper.make_graph(nodes, name, [], [out], [weight(f"w_{name}", 8, 8, kernel, kernel)])


def if_branches(path: Path, nested: bool) -> Truth:
    """The sum of the input decides for a 3x3 or a 1x1 convolution, or, one level deeper, for a 5x5."""
    bright = [node("ReduceSum", ["x"], ["s"], keepdims=0), node("Greater", ["s", "zero"], ["c"])]
    kernels = {"three": 3, "one": 1}
    other = branch("one", 1)
    if nested:
        kernels["five"] = 5
        inner = node("If", ["c"], ["o_inner"], then_branch=branch("one", 1), else_branch=branch("five", 5))
        other = helper.make_graph([inner], "inner", [], [tensor("o_inner", ["batch", 8, 10, 10])])
    choice = node("If", ["c"], ["y"], then_branch=branch("three", 3), else_branch=other)
    image = [tensor("x", ["batch", 8, 10, 10])]
    save(path, [*bright, choice], image, [tensor("y", ["batch", 8, 10, 10])], [const("zero", 0, np.float32)])
    squares = [64 * size * size for size in kernels.values()]
    how = f"the worst of 100 pixels x 64 x {[size * size for size in kernels.values()]}; all branches are stored"
    return Truth(100 * max(squares), sum(squares), how, either={"MACs": r"\bIf\b"})


def body(condition: list[onnx.NodeProto]) -> onnx.GraphProto:
    """One turn: the state times a 16 x 16 matrix, and whether to go on."""
    turn = [node("MatMul", ["state", "w"], ["next"]), *condition]
    ins = [tensor("i", [], TensorProto.INT64), tensor("go", [], TensorProto.BOOL), tensor("state", ["batch", 16])]
    outs = [tensor("on", [], TensorProto.BOOL), tensor("next", ["batch", 16])]
    return helper.make_graph(turn, "turn", ins, outs)


def loop(path: Path, early: bool = False) -> Truth:
    """Five turns, or at most five: once in a while it may stop before."""
    stop = [node("ReduceSum", ["next"], ["s"], keepdims=0), node("Less", ["s", "most"], ["on"])]
    turn = body(stop if early else [node("Identity", ["go"], ["on"])])
    numbers = [const("trips", 5), const("yes", True, np.bool_), const("most", 9, np.float32), weight("w", 16, 16)]
    nodes = [node("Loop", ["trips", "yes", "x"], ["y"], body=turn)]
    save(path, nodes, [tensor("x", ["batch", 16])], [tensor("y", ["batch", 16])], numbers)
    return Truth(5 * 256, 256, "5 turns x 16 x 16", either={"MACs": "Loop"})


def loop_unknown(path: Path) -> Truth:
    """As many turns as an input says."""
    nodes = [node("Loop", ["trips", "yes", "x"], ["y"], body=body([node("Identity", ["go"], ["on"])]))]
    ins = [tensor("x", ["batch", 16]), tensor("trips", [], TensorProto.INT64)]
    save(path, nodes, ins, [tensor("y", ["batch", 16])], [const("yes", True, np.bool_), weight("w", 16, 16)])
    return Truth(None, 256, "as many turns as an input says", refused={"MACs": "Loop|trips"})


def scan(path: Path) -> Truth:
    """Six steps over the first axis, which is time."""
    step = [node("Concat", ["state", "now"], ["both"], axis=0), node("MatMul", ["both", "w"], ["m"])]
    step += [node("Tanh", ["m"], ["next"]), node("Identity", ["next"], ["out"])]
    ins, outs = [tensor("state", [8]), tensor("now", [4])], [tensor("next", [8]), tensor("out", [8])]
    graph = helper.make_graph(step, "step", ins, outs)
    nodes = [node("Scan", ["first", "x"], ["last", "all"], body=graph, num_scan_inputs=1)]
    numbers = [weight("first", 8), weight("w", 12, 8)]
    save(path, nodes, [tensor("x", [6, 4])], [tensor("last", [8])], numbers)
    return Truth(6 * 96, 96 + 8, "6 steps x 12 x 8; the first state is stored too", either={"MACs": "Scan"})


def functions(path: Path, used: int) -> Truth:
    """A local function, a padded convolution whose pads are its attribute, called twice or never."""
    conv = node("Conv", ["a", "b"], ["c"])
    conv.attribute.add(name="pads", ref_attr_name="around", type=onnx.AttributeProto.INTS)
    block = helper.make_function(
        "my", "Block", ["a", "b"], ["d"], [conv, node("Relu", ["c"], ["d"])], [helper.make_opsetid("", 17)], ["around"]
    )
    around = {"domain": "my", "around": [1, 1, 1, 1]}
    calls = [node("Block", ["x", "w"], ["h"], **around), node("Block", ["h", "v"], ["y"], **around)]
    plain = [node("Conv", ["x", "w"], ["h"], pads=[1, 1, 1, 1]), node("Conv", ["h", "v"], ["y"], pads=[1, 1, 1, 1])]
    ins, outs = [tensor("x", ["batch", 3, 10, 10])], [tensor("y", ["batch", 4, 10, 10])]
    numbers = [weight("w", 8, 3, 3, 3), weight("v", 4, 8, 3, 3)]
    save(path, calls if used else plain, ins, outs, numbers, domains=["my"], functions=[block])
    return Truth(100 * (216 + 288), 216 + 288, "100 pixels x (8 x 27 + 4 x 72)")


def function_of_functions(path: Path) -> Truth:
    """A function that calls another one twice and brings a weight of its own as a Constant."""
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("my", 1)]
    own = node("Constant", [], ["k"], value=weight("k", 6, 6))
    leaf = helper.make_function("my", "Leaf", ["a"], ["b"], [own, node("MatMul", ["a", "k"], ["b"])], imports)
    twice = [node("Leaf", ["a"], ["m"], domain="my"), node("Leaf", ["m"], ["b"], domain="my")]
    tree = helper.make_function("my", "Tree", ["a"], ["b"], twice, imports)
    calls = [node("Tree", ["x"], ["t"], domain="my"), node("MatMul", ["t", "w"], ["y"])]
    ins, outs = [tensor("x", ["batch", 6])], [tensor("y", ["batch", 3])]
    save(path, calls, ins, outs, [weight("w", 6, 3)], domains=["my"], functions=[leaf, tree])
    # The Constant is stored once, in the function; who inlines finds it twice. Neither hides anything.
    return Truth(2 * 36 + 18, 36 + 18, "twice 6 x 6, and 6 x 3", also={"params": [2 * 36 + 18]})


def einsum(path: Path, equation: str, x: list[int], stored: list[list[int]], macs: int, how: str) -> Truth:
    """An Einsum of x, whose first axis is the batch unless its size is not 1, and of stored operands."""
    names = [f"w{index}" for index in range(len(stored))]
    result = np.einsum(equation, *(np.zeros(shape) for shape in [x, *stored])).shape
    free = ["batch", *x[1:]] if x[0] == 1 else x
    out = ["batch", *result[1:]] if x[0] == 1 else list(result)
    numbers = [weight(name, *shape) for name, shape in zip(names, stored, strict=True)]
    save(
        path,
        [node("Einsum", ["x", *names], ["y"], equation=equation)],
        [tensor("x", free)],
        [tensor("y", out)],
        numbers,
    )
    params = sum(prod(shape) for shape in stored)
    return Truth(macs, params, f"{equation}: {how}", either={"MACs": "Einsum"})


def einsum_outer(path: Path) -> Truth:
    """A linear layer, and then a product of every pair: nothing is summed there, so nothing is accumulated."""
    nodes = [node("MatMul", ["x", "w"], ["m"]), node("Einsum", ["m", "m"], ["y"], equation="bi,bj->bij")]
    save(path, nodes, [tensor("x", ["batch", 9])], [tensor("y", ["batch", 5, 5])], [weight("w", 9, 5)])
    return Truth(45, 45, "9 x 5; an outer product sums nothing", either={"MACs": "Einsum"})


def attention(path: Path, flat: bool, kv_heads: int = 4, causal: int = 0) -> Truth:
    """Attention of opset 23: 4 heads of 8 numbers, 6 queries and 10 keys, grouped where there are fewer key heads."""
    sizes = {"q": (4, 6), "k": (kv_heads, 10), "v": (kv_heads, 10)}
    ins = [tensor(name, ["batch", length, heads * 8] if flat else ["batch", heads, length, 8])
           for name, (heads, length) in sizes.items()]  # fmt: skip
    heads = {"q_num_heads": 4, "kv_num_heads": kv_heads} if flat else {}
    nodes = [node("Attention", ["q", "k", "v"], ["a"], is_causal=causal, **heads), node("MatMul", ["a", "w"], ["y"])]
    width, out = (32, ["batch", 6, 5]) if flat else (8, ["batch", 4, 6, 5])
    save(path, nodes, ins, [tensor("y", out)], [weight("w", width, 5)], opset=23)
    return Truth(2 * 4 * 6 * 10 * 8 + 4 * 6 * 8 * 5, width * 5, "two products, 4 heads x 6 x 10 x 8, and 4 x 6 x 8 x 5")


def deform(path: Path) -> Truth:
    nodes = [node("Conv", ["x", "u"], ["o"], pads=[1, 1, 1, 1]),
             node("DeformConv", ["x", "w", "o"], ["y"], pads=[1, 1, 1, 1], kernel_shape=[3, 3])]  # fmt: skip
    numbers = [weight("u", 18, 4, 3, 3), weight("w", 6, 4, 3, 3)]
    save(path, nodes, [tensor("x", ["batch", 4, 9, 9])], [tensor("y", ["batch", 6, 9, 9])], numbers, opset=19)
    macs = 81 * 36 * (18 + 6)
    return Truth(macs, 36 * 24, "81 pixels x 36 x (18 + 6)", either={"MACs": "DeformConv"})


def product_by_hand(path: Path) -> Truth:
    """A matrix product written as a multiplication and a sum."""
    nodes = [node("Unsqueeze", ["x", "last"], ["u"]), node("Mul", ["u", "w"], ["p"]),
             node("ReduceSum", ["p", "first"], ["y"], keepdims=0)]  # fmt: skip
    numbers = [const("last", [2]), const("first", [1]), weight("w", 12, 20)]
    save(path, nodes, [tensor("x", ["batch", 12])], [tensor("y", ["batch", 20])], numbers)
    return Truth(240, 240, "12 x 20, as a Mul and a ReduceSum", either={"MACs": "Mul|ReduceSum"})


def weights_as_inputs(path: Path) -> Truth:
    """Nothing stored: both matrices come from outside, and the weight's first axis is no batch."""
    ins = [tensor("x", ["batch", 3, 10, 10]), tensor("w", [8, 3, 3, 3])]
    save(path, [node("Conv", ["x", "w"], ["y"])], ins, [tensor("y", ["batch", 8, 8, 8])])
    return Truth(64 * 216, None, "8 x 8 pixels x 8 x 27")


def filled_weights(path: Path) -> Truth:
    nodes = [node("ConstantOfShape", ["shape"], ["w"], value=const("v", [0.5], np.float32)),
             node("MatMul", ["x", "w"], ["m"]), node("MatMul", ["m", "v"], ["y"])]  # fmt: skip
    numbers = [const("shape", [12, 20]), weight("v", 20, 4)]
    save(path, nodes, [tensor("x", ["batch", 12])], [tensor("y", ["batch", 4])], numbers)
    return Truth(240 + 80, 80, "12 x 20 of one number repeated, and 20 x 4", also={"params": [240 + 80]})


def old_file(path: Path) -> Truth:
    """Opset 9 and IR 3: weights are inputs too, Dropout and BatchNormalization are those of that time."""
    nodes = [
        node("Conv", ["x", "w"], ["c"], kernel_shape=[3, 3]),
        node("BatchNormalization", ["c", "scale", "shift", "mean", "var"], ["n"]),
        node("Dropout", ["n"], ["d"], ratio=0.5),
        node("Upsample", ["d", "sizes"], ["u"], mode="nearest"),
        node("Flatten", ["u"], ["f"]),
        node("Gemm", ["f", "v", "b"], ["y"]),
    ]
    norms = [weight(name, 4) for name in ("scale", "shift", "mean", "var")]
    sizes = const("sizes", [1, 1, 2, 2], np.float32)
    numbers = [weight("w", 4, 3, 3, 3), *norms, sizes, weight("v", 256, 7), weight("b", 7)]
    ins = [tensor("x", ["batch", 3, 6, 6]), *(tensor(one.name, one.dims, one.data_type) for one in numbers)]
    model = save(path, nodes, ins, [tensor("y", ["batch", 7])], numbers, opset=9)
    model.ir_version = 3
    onnx.save(model, path)
    return Truth(
        16 * 108 + 256 * 7, 108 + 8 + 256 * 7 + 7, "16 pixels x 4 x 27 and 256 x 7; mean and variance do not count"
    )


def products(path: Path) -> Truth:
    """Gemm turned both ways, a vector, and matrices that are stretched over one another's leading axes."""
    nodes = [
        node("MatMul", ["x", "w"], ["m"]),  # [batch, 1, 4, 8] x [3, 8, 5]
        node("MatMul", ["m", "v"], ["d"]),  # [batch, 3, 4, 5] x [5]
        node("Flatten", ["d"], ["f"]),  # [batch, 12]
        node("Gemm", ["u", "f"], ["g"], transA=1, transB=1),  # [12, 6]' x [batch, 12]'
        node("Transpose", ["g"], ["y"], perm=[1, 0]),
    ]
    numbers = [weight("w", 3, 8, 5), weight("v", 5), weight("u", 12, 6)]
    save(path, nodes, [tensor("x", ["batch", 1, 4, 8])], [tensor("y", ["batch", 6])], numbers)
    return Truth(3 * 4 * 8 * 5 + 3 * 4 * 5 + 72, 120 + 5 + 72, "3 x 4 x 8 x 5, 3 x 4 x 5, 12 x 6")


def transposed(path: Path) -> Truth:
    """Transposed convolutions, grouped and with an output padding, and convolutions padded as TensorFlow pads."""
    nodes = [
        node("ConvTranspose", ["x", "w"], ["a"], strides=[2, 2], group=2, output_padding=[1, 1], pads=[1, 1, 1, 1]),
        node("Conv", ["a", "v"], ["b"], strides=[2, 2], auto_pad="SAME_UPPER"),
        node("Conv", ["b", "u"], ["y"], auto_pad="VALID", dilations=[2, 2]),
    ]
    numbers = [weight("w", 4, 3, 3, 3), weight("v", 5, 6, 3, 3), weight("u", 2, 5, 3, 3)]
    save(path, nodes, [tensor("x", ["batch", 4, 7, 7])], [tensor("y", ["batch", 2, 3, 3])], numbers)
    macs = 49 * 4 * 27 + 49 * 5 * 54 + 9 * 2 * 45
    return Truth(macs, 108 + 270 + 90, "49 inputs x 4 x 27, 7 x 7 outputs x 5 x 54, 3 x 3 outputs x 2 x 45")


def unknown(path: Path, kind: str, domain: str, units: tuple[str, ...]) -> Truth:
    """Operators of which nobody can say what they cost."""
    nodes = [node(kind, ["x", "w"], ["m"], domain=domain), node("MatMul", ["m", "v"], ["y"])]
    ins, outs = [tensor("x", ["batch", 16])], [tensor("y", ["batch", 6])]
    numbers = [weight("w", 16, 16), weight("v", 16, 6)]
    save(path, nodes, ins, outs, numbers, domains=[domain])
    return Truth(None, None, "nobody knows", refused=dict.fromkeys(units, kind))


def rnn(path: Path) -> Truth:
    """A plain recurrent layer, with a first state that is stored."""
    numbers = [weight("w", 1, 9, 5), weight("r", 1, 9, 9), weight("b", 1, 18), weight("first", 1, 1, 9)]
    nodes = [node("RNN", ["x", "w", "r", "b", "", "first"], ["", "last"], hidden_size=9)]
    save(path, nodes, [tensor("x", [8, 1, 5])], [tensor("last", [1, 1, 9])], numbers)
    return Truth(8 * 9 * 14, 9 * 14 + 18 + 9, "8 steps x 9 x (5 + 9); 18 biases, 9 of the first state")


EINSUMS: dict[str, tuple[str, list[int], list[list[int]], int, str]] = {
    "ellipsis": ("...ij,jk->...ik", [1, 2, 3, 4], [[4, 5]], 2 * 3 * 4 * 5, "2 x 3 x 4 x 5"),
    "implicit": ("ij,jk", [1, 12], [[12, 7]], 84, "12 x 7"),
    "three": ("ij,jk,kl->il", [1, 12], [[12, 7], [7, 3]], 84 + 21, "from the left, 12 x 7 and 7 x 3"),
    "diagonal": ("bii,ij->bj", [1, 6, 6], [[6, 4]], 24, "the diagonal's 6 x 4"),
    "stretched": ("bij,bjk->bik", [1, 5, 6], [[1, 6, 4]], 120, "5 x 6 x 4, the stored batch of 1 stretched"),
    "heads": ("bhid,hjd->bhij", [1, 2, 5, 6], [[2, 7, 6]], 2 * 5 * 7 * 6, "2 heads x 5 x 7 x 6"),
}
FILES: dict[str, Make] = {
    "if": partial(if_branches, nested=False),
    "if_nested": partial(if_branches, nested=True),
    "loop": loop,
    "loop_early": partial(loop, early=True),
    "loop_unknown": loop_unknown,
    "scan": scan,
    "functions": partial(functions, used=2),
    "function_unused": partial(functions, used=0),
    "function_of_functions": function_of_functions,
    **{f"einsum_{name}": partial(einsum, equation=row[0], x=row[1], stored=row[2], macs=row[3], how=row[4])
       for name, row in EINSUMS.items()},
    "einsum_outer": einsum_outer,
    "attention": partial(attention, flat=False),
    "attention_causal": partial(attention, flat=False, causal=1),
    "attention_grouped": partial(attention, flat=True, kv_heads=2),
    "deform": deform,
    "product_by_hand": product_by_hand,
    "weights_as_inputs": weights_as_inputs,
    "filled_weights": filled_weights,
    "old_file": old_file,
    "products": products,
    "transposed": transposed,
    "own_operator": partial(unknown, kind="Magic", domain="my.own", units=("MACs",)),
    "ep_context": partial(unknown, kind="EPContext", domain="com.microsoft", units=("MACs", "params")),
    "rnn": rnn,
}  # fmt: skip
