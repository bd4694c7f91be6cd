"""tf2onnx: networks of Keras and functions of TensorFlow, channels last, batches called unk__12."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

os.environ |= {"TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": ""}
import tensorflow as tf
import tf2onnx
from table import Make, Truth

PACKAGES = ("tf2onnx", "tensorflow_cpu", "keras")

keras = tf.keras
L = keras.layers
Net = Callable[[], Any]


def convert(path: Path, function: Any, *specs: Any, opset: int = 13) -> None:
    logging.getLogger("tf2onnx").setLevel(logging.ERROR)
    graph = tf.function(function, input_signature=list(specs))
    tf2onnx.convert.from_function(graph, list(specs), opset=opset, output_path=str(path))


def layer_macs(layer: Any) -> int:
    """MACs of one layer of Keras for one sample, by the shapes that Keras says."""
    sizes = prod(layer.output.shape[1:])
    if isinstance(layer, L.SeparableConv2D):
        middle = layer.depthwise_kernel.shape[2] * layer.depthwise_kernel.shape[3]
        return sizes // layer.filters * middle * (prod(layer.kernel_size) + layer.filters)
    if isinstance(layer, L.DepthwiseConv2D):
        return sizes * prod(layer.kernel_size)
    if isinstance(layer, L.Conv2DTranspose):  # its kernel is [h, w, outputs, inputs]
        return prod(layer.input.shape[1:]) * prod(layer.kernel.shape[:3])
    if isinstance(layer, L.Conv1D | L.Conv2D | L.Conv3D | L.Dense):
        return sizes * prod(layer.kernel.shape[:-1])
    return 0


def redrawn(net: Net) -> Any:
    """Every weight random, so that no two tensors are equal; variances stay positive."""
    random, model = np.random.default_rng(14), net()
    model.set_weights([random.random(one.shape) * 0.2 + 0.1 for one in model.get_weights()])
    return model


def network(
    path: Path, *, net: Net, params: int | None = None, macs: int | None = None, how: str = "", **rest: Any
) -> Truth:
    """A network of Keras of one input [batch, ...], counted layer by layer where it is not said otherwise."""
    keras.backend.clear_session()
    model = redrawn(net)
    kind = rest.pop("kind", tf.float32)
    spec = tf.TensorSpec((None, *model.input.shape[1:]), kind, name="x")
    convert(path, lambda x: model(x), spec, opset=rest.pop("opset", 13))
    total = sum(map(layer_macs, model.layers)) if macs is None else macs
    return Truth(total, model.count_params() if params is None else params, how or "layer by layer in Keras", **rest)


def stack(layers: list[Any]) -> Any:
    """One layer after the other, the first an Input."""
    x = y = layers[0]
    for layer in layers[1:]:
        y = layer(y)
    return keras.Model(x, y)


def cnn() -> Any:
    return stack([
        L.Input((16, 16, 3)), L.Conv2D(8, 3, padding="same", use_bias=False), L.BatchNormalization(), L.ReLU(),
        L.DepthwiseConv2D(3, strides=2, padding="same"), L.SeparableConv2D(12, 3, activation="relu"),
        L.Conv2DTranspose(6, 3, strides=2, padding="same"), L.GlobalAveragePooling2D(),
        L.Dense(5, activation="softmax"),
    ])  # fmt: skip


def wave() -> Any:
    return stack([
        L.Input((40, 2)), L.Conv1D(8, 5, dilation_rate=2, padding="causal"), L.Activation("relu"),
        L.Conv1D(6, 3, strides=2), L.Flatten(), L.Dense(4),
    ])  # fmt: skip


def volume() -> Any:
    return stack([L.Input((6, 8, 8, 2)), L.Conv3D(5, 3), L.MaxPooling3D(2), L.Flatten(), L.Dense(4)])


def recurrent(layer: Any) -> Any:
    return stack([L.Input((7, 6)), layer, L.Dense(4)])


def heads() -> Any:
    x = L.Input((9, 16))
    y = L.LayerNormalization()(L.MultiHeadAttention(4, 8)(x, x))
    return keras.Model(x, L.Dense(3)(y))


def words() -> Any:
    return stack([L.Input((9,)), L.Embedding(40, 12), L.GlobalAveragePooling1D(), L.Dense(4)])


def any_size() -> Any:
    return stack([L.Input((None, None, 3)), L.Conv2D(8, 3, padding="same"), L.Conv2D(2, 1)])


def mobilenet(path: Path) -> Truth:
    """MobileNetV2 a third as wide: norms after a convolution are folded, after a depthwise one become two vectors."""
    keras.backend.clear_session()
    model = keras.applications.MobileNetV2((32, 32, 3), 0.35, weights=None, classes=10)
    norms = [layer for layer in model.layers if isinstance(layer, L.BatchNormalization)]
    gone = sum(norm.gamma.shape[0] for norm in norms if "depthwise" not in norm.name)
    params = sum(prod(one.shape) for one in model.trainable_weights) - gone
    return network(path, net=lambda: model, params=params)


def plain(path: Path, *, rows: int | None) -> Truth:
    """A function of TensorFlow, no Keras: a product, another one with its result, and a sum over the middle."""
    w = np.random.default_rng(14).random((12, 7))

    def function(x: Any) -> Any:
        y = tf.matmul(x, tf.constant(w, tf.float32))
        return tf.reduce_sum(tf.matmul(y, y, transpose_b=True), 1)

    convert(path, function, tf.TensorSpec((rows, 5, 12), tf.float32, name="photos"), opset=15)
    if rows:
        return Truth(None, 84, f"{rows} samples are not one", refused={"MACs": "photos"})
    return Truth(5 * 84 + 25 * 7, 84, "5 x 12 x 7 and 5 x 5 x 7")


def thumbnail(path: Path) -> Truth:
    """A photo of any size is made 16 x 16 first: what comes after costs the same for all of them."""
    kernel = np.random.default_rng(14).random((3, 3, 3, 8))

    def function(photo: Any) -> Any:
        return tf.nn.conv2d(tf.image.resize(photo[tf.newaxis], (16, 16)), tf.constant(kernel, tf.float32), 1, "SAME")

    convert(path, function, tf.TensorSpec((None, None, 3), tf.float32, name="photo"))
    return Truth(256 * 216, 216, "16 x 16 x 8 x 27, whatever the photo", either={"MACs": "unk__|photo"})


def captured(path: Path) -> Truth:
    """A constant that the function captures becomes a second input, of which no axis is a batch: nothing is stored."""
    w = tf.constant(np.random.default_rng(14).random((12, 7)), tf.float32)
    convert(path, lambda x: tf.matmul(x, w), tf.TensorSpec((None, 12), tf.float32, name="x"))
    return Truth(84, None, "12 x 7")


UNNAMED = {"MACs": r"unk__\d+|\bx\b"}
STEP = 4 * 10 * (6 + 10)
FILES: dict[str, Make] = {
    "cnn": partial(network, net=cnn, params=1197 - 32 + 8, how="layer by layer; a norm of 4 x 8 became 8 biases"),
    "wave": partial(network, net=wave),
    "volume": partial(network, net=volume),
    "lstm": partial(
        network, net=lambda: recurrent(L.LSTM(10)), params=724 + 40, macs=7 * STEP + 40,
        how="7 x 4 x 10 x 16 and 10 x 4; ONNX has a second bias for each gate",
    ),
    "lstm_all_steps": partial(
        network, net=lambda: recurrent(L.LSTM(10, return_sequences=True)), params=724 + 40, macs=7 * (STEP + 40),
        opset=9, how="7 x (4 x 10 x 16 and 10 x 4); ONNX has a second bias for each gate",
    ),
    "lstm_any_steps": partial(
        network, net=lambda: stack([L.Input((None, 6)), L.LSTM(10), L.Dense(4)]), params=724 + 40, macs=7 * STEP + 40,
        how="7 x 4 x 10 x 16 and 10 x 4, if it is 7 steps", shape=("x=1,7,6",), refused=UNNAMED,
    ),
    "gru_loops": partial(
        network, net=lambda: recurrent(L.Bidirectional(L.GRU(10))), macs=2 * 7 * 3 * 10 * 16 + 20 * 4,
        how="2 loops of 7 x 3 x 10 x 16, and 20 x 4", either={"MACs": "Loop"},
    ),
    "heads": partial(
        network, net=heads, macs=4 * 9 * 16 * 32 + 2 * 4 * 81 * 8 + 9 * 48,
        how="four of 9 x 16 x 32, two of 4 x 9 x 9 x 8, and 9 x 16 x 3",
    ),
    "words": partial(network, net=words, kind=tf.int32),
    "any_size": partial(
        network, net=any_size, macs=16 * 12 * (216 + 16), how="16 x 12 x (8 x 27 + 2 x 8)",
        shape=("x=1,16,12,3",), refused=UNNAMED,
    ),
    "mobilenet": mobilenet,
    "plain": partial(plain, rows=None),
    "plain_fixed": partial(plain, rows=4),
    "thumbnail": thumbnail,
    "captured": captured,
}  # fmt: skip
