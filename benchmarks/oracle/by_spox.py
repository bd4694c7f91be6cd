"""spox, which builds graphs from typed Python calls: opsets 17 to 23."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import spox.opset.ai.onnx.ml.v3 as ml
import spox.opset.ai.onnx.v17 as op
import spox.opset.ai.onnx.v21 as op21
import spox.opset.ai.onnx.v23 as op23
from spox import Tensor, argument, build
from table import Make, Truth

PACKAGES = ("spox", "onnx")

RANDOM = np.random.default_rng(14)


def stored(*shape: int) -> Any:
    return op.const(RANDOM.standard_normal(shape).astype(np.float32))


def floats(*shape: int | str) -> Any:
    return argument(Tensor(np.float32, shape))


def save(path: Path, inputs: dict[str, Any], output: Any) -> None:
    onnx.save(build(inputs=inputs, outputs={"y": output}), path)


def cnn(path: Path) -> Truth:
    x = floats("batch", 4, 20)
    y = op.relu(op.conv(x, stored(8, 2, 5), stored(8), group=2, strides=[2]))  # [batch, 8, 8]
    y = op.reduce_mean(op.conv_transpose(y, stored(8, 6, 3), strides=[2]), axes=[2], keepdims=0)
    save(path, {"x": x}, op.gemm(y, stored(6, 3), stored(3)))
    macs = 8 * 8 * 10 + 8 * 8 * 18 + 18
    return Truth(macs, 80 + 8 + 144 + 18 + 3, "8 outputs x 8 x 10, 8 inputs x 8 x 18, 6 x 3")


def norms(path: Path) -> Truth:
    """Opset 21: instance and layer normalisation."""
    x = floats("batch", 8, 6)
    y = op21.instance_normalization(x, stored(8), stored(8))
    y, _, _ = op21.layer_normalization(y, stored(6), stored(6))
    save(path, {"x": x}, op21.matmul(op21.sigmoid(y), stored(6, 5)))
    return Truth(8 * 30, 16 + 12 + 30, "8 x 6 x 5; 2 x 8 and 2 x 6 of the norms")


def cached_attention(path: Path) -> Truth:
    """Three new queries look at themselves and at five keys from before."""
    q, k, v = (floats("batch", 2, 3, 8) for _ in range(3))
    before = [floats("batch", 2, 5, 8) for _ in range(2)]
    y, *_ = op23.attention(q, k, v, None, *before)
    names = dict(zip(["q", "k", "v", "past_key", "past_value"], [q, k, v, *before], strict=True))
    save(path, names, op23.matmul(y, stored(8, 4)))
    return Truth(2 * 2 * 3 * 8 * 8 + 2 * 3 * 32, 32, "two products, 2 heads x 3 x (5 + 3) x 8, and 2 x 3 x 8 x 4")


def branches(path: Path) -> Truth:
    """A flag from outside chooses between two layers and one."""
    x, flag = floats("batch", 10), argument(Tensor(np.bool_, ()))
    wide, narrow, direct = stored(10, 40), stored(40, 4), stored(10, 4)
    (y,) = op.if_(
        flag,
        then_branch=lambda: [op.matmul(op.relu(op.matmul(x, wide)), narrow)],
        else_branch=lambda: [op.matmul(x, direct)],
    )
    save(path, {"x": x, "flag": flag}, y)
    return Truth(560, 600, "the worse of 10 x 40 + 40 x 4 and 10 x 4; all three are stored", either={"MACs": r"\bIf\b"})


def peepholes(path: Path) -> Truth:
    """An LSTM both ways that looks at its cell: a product number by number, which is free."""
    x = floats(5, 1, 4)
    weights = stored(2, 24, 4), stored(2, 24, 6), stored(2, 48)
    _, y, _ = op.lstm(x, *weights, P=stored(2, 18), hidden_size=6, direction="bidirectional")
    save(path, {"x": x}, y)
    return Truth(5 * 2 * 24 * 10, 2 * (24 * 10 + 48 + 18), "5 steps x 2 ways x 4 x 6 x (4 + 6); 2 x 18 peepholes")


def waves(path: Path) -> Truth:
    """Positions that are computed and not stored: Range, Pow, ConstantOfShape, Sin."""
    x = floats("batch", 7, 6)
    real = op.cast(op.range(op.const(0), op.const(7), op.const(1)), to=np.float32)
    powers = op.pow(
        op.const(np.float32(100)), op.div(op.const(np.arange(6, dtype=np.float32)), op.const(np.float32(6)))
    )
    angles = op.div(op.unsqueeze(real, op.const([1])), powers)
    ones = op.constant_of_shape(op.const([7, 6]), value=np.array([1], np.float32))
    save(path, {"x": x}, op.matmul(op.add(x, op.mul(op.sin(angles), ones)), stored(6, 4)))
    return Truth(7 * 24, 24 + 6, "7 x 6 x 4; six exponents are stored")


def boxes(path: Path) -> Truth:
    """Nobody knows before how many boxes are left, and what is left is multiplied."""
    places, scores = floats(1, 20, 4), floats(1, 1, 20)
    left = op.non_max_suppression(places, scores, op.const([5]))
    rows = op.gather(left, op.const(2), axis=1)
    y = op.matmul(op.gather(op.squeeze(places, op.const([0])), rows), stored(4, 8))
    save(path, {"places": places, "scores": scores}, y)
    return Truth(None, 32, "as many rows as there are boxes left", refused={"MACs": "NonMaxSuppression|Gather|MatMul"})


def picked(path: Path) -> Truth:
    """Rows that a condition lets through, a condition that is computed."""
    x = floats(9, 6)
    bright = op.greater(op.reduce_sum(x, op.const([1]), keepdims=0), op.const(np.float32(0)))
    save(path, {"x": x}, op.matmul(op.compress(x, bright, axis=0), stored(6, 5)))
    return Truth(None, 30, "as many rows as are let through", refused={"MACs": "Compress|MatMul"})


def regression(path: Path) -> Truth:
    x = floats("batch", 7)
    coefficients, offsets = RANDOM.random(14).tolist(), RANDOM.random(2).tolist()
    save(path, {"x": x}, ml.linear_regressor(x, coefficients=coefficients, intercepts=offsets, targets=2))
    word = r"LinearRegressor|ai\.onnx\.ml"
    return Truth(14, 16, "7 x 2; 2 offsets", either={"MACs": word, "params": word})


def einsum_chain(path: Path) -> Truth:
    """A bilinear form of two inputs, and a trace over what is left of it."""
    x, z = floats("batch", 4, 6), floats("batch", 4, 5)
    y = op.einsum([x, stored(6, 5), z], equation="bip,pq,bjq->bij")
    save(path, {"x": x, "z": z}, op.einsum([y], equation="bii->b"))
    how = "from the left, 4 x 6 x 5 and 4 x 4 x 5; a trace only adds"
    return Truth(120 + 80, 30, how, either={"MACs": "Einsum"})


FILES: dict[str, Make] = {
    "cnn": cnn,
    "norms": norms,
    "cached_attention": cached_attention,
    "if": branches,
    "peepholes": peepholes,
    "waves": waves,
    "boxes": boxes,
    "picked": picked,
    "regression": regression,
    "einsum_chain": einsum_chain,
}
