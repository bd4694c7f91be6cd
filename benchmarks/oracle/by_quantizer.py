"""onnxruntime's quantizers: dynamic, static with QDQ or QOperator, of 4 and 8 bits; float16 by onnxconverter-common.

MACs are those of the float network. Its weights and biases all stay, in another type; scales and zero points come to
them where there is more than one of each.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import plain_nets as nets
from hand import node, save, tensor, weight
from onnx import TensorProto
from onnxconverter_common import float16
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_dynamic, quantize_static
from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer
from table import Make, Truth

PACKAGES = ("onnxruntime", "onnxconverter_common", "onnx")

CNN = nets.CNN_WEIGHTS + nets.CNN_BIASES
MLP = nets.MLP_WEIGHTS + nets.MLP_BIASES
BLOCKS = nets.MLP_WEIGHTS // 16  # of the quantizers of 4 bits here: 16 numbers share a scale
ort.set_default_logger_severity(4)
logging.disable(logging.WARNING)


class Calibration(CalibrationDataReader):  # type: ignore[misc]
    """Two random images."""

    def __init__(self) -> None:
        images = np.random.default_rng(14).random((2, 1, 3, 8, 8), np.float32)
        self.images: Iterator[dict[str, Any]] = iter([{"x": image} for image in images])

    def get_next(self) -> dict[str, Any] | None:
        """Return the next image, None after the last one."""
        return next(self.images, None)


def from_float(path: Path, write: Callable[[Path], None], quantize: Callable[[Path], None]) -> None:
    """Write a float network beside `path`, quantize it to `path`, and remove it."""
    source = path.with_name(f"{path.stem}.float")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            write(source)
            quantize(source)
    finally:
        source.unlink(missing_ok=True)


def dynamic(path: Path, *, net: Callable[[Path], None], truth: Truth, **options: Any) -> Truth:
    from_float(path, net, lambda source: quantize_dynamic(source, path, **options))
    return truth


def static(path: Path, *, extra: int = 0, **options: Any) -> Truth:
    from_float(path, nets.cnn, lambda source: quantize_static(source, path, Calibration(), **options))
    how = f"as the float net; {CNN} weights and biases, {extra} scales and zero points"
    return Truth(nets.CNN_MACS, CNN + extra, how)


def few_bits(path: Path, *, extra: int, **options: Any) -> Truth:
    def quantize(source: Path) -> None:
        quantizer = MatMulNBitsQuantizer(onnx.load(source), block_size=16, **options)
        quantizer.process()
        quantizer.model.save_model_to_file(str(path))

    from_float(path, partial(nets.mlp, opset=21), quantize)
    how = f"64 x 96 and 96 x 32; {MLP} weights and biases, {extra} scales and zero points of blocks of 16"
    return Truth(nets.MLP_MACS, MLP + extra, how)


def half(path: Path, **options: Any) -> Truth:
    def quantize(source: Path) -> None:
        onnx.save(float16.convert_float_to_float16(onnx.load(source), **options), path)

    from_float(path, nets.cnn, quantize)
    return Truth(nets.CNN_MACS, CNN, "as the float net, in 16 bits")


def lstm(path: Path) -> None:
    numbers = [weight("w", 1, 48, 16), weight("r", 1, 48, 12), weight("b", 1, 96), weight("v", 12, 5)]
    nodes = [node("LSTM", ["x", "w", "r", "b"], ["", "last"], hidden_size=12), node("MatMul", ["last", "v"], ["y"])]
    save(path, nodes, [tensor("x", [7, 1, 16])], [tensor("y", [1, 1, 5])], numbers)


def words(path: Path) -> None:
    numbers = [weight("rows", 200, 32), weight("w", 32, 5)]
    nodes = [node("Gather", ["rows", "ids"], ["e"]), node("MatMul", ["e", "w"], ["y"])]
    save(path, nodes, [tensor("ids", ["batch", 9], TensorProto.INT64)], [tensor("y", ["batch", 9, 5])], numbers)


def upwards(path: Path) -> None:
    """A transposed convolution after a plain one."""
    nodes = [
        node("Conv", ["x", "w", "b"], ["c"], pads=[1, 1, 1, 1]),
        node("Relu", ["c"], ["r"]),
        node("ConvTranspose", ["r", "v"], ["y"], strides=[2, 2]),
    ]
    numbers = [weight("w", 6, 3, 3, 3), weight("b", 6), weight("v", 6, 4, 2, 2)]
    save(path, nodes, [tensor("x", ["batch", 3, 8, 8])], [tensor("y", ["batch", 4, 16, 16])], numbers)


def static_upwards(path: Path) -> Truth:
    options = {"quant_format": QuantFormat.QDQ, "op_types_to_quantize": ["Conv", "ConvTranspose"]}
    from_float(path, upwards, lambda source: quantize_static(source, path, Calibration(), **options))
    return Truth(64 * 162 + 64 * 6 * 16, 162 + 6 + 96, "64 x 6 x 27 and 64 inputs x 6 x 16")


QDQ, QOPERATOR = {"quant_format": QuantFormat.QDQ}, {"quant_format": QuantFormat.QOperator}
FILES: dict[str, Make] = {
    "cnn_dynamic": partial(
        dynamic, net=nets.cnn, weight_type=QuantType.QUInt8,
        truth=Truth(nets.CNN_MACS, CNN, "as the float net, in 8 bits"),
    ),
    "mlp_dynamic_channels": partial(
        dynamic, net=nets.mlp, weight_type=QuantType.QInt8, per_channel=True,
        truth=Truth(nets.MLP_MACS, MLP + 2 * 128, "a scale and a zero point for each of 96 and 32 columns"),
    ),
    "lstm_dynamic": partial(
        dynamic, net=lstm, weight_type=QuantType.QInt8,
        truth=Truth(
            7 * 48 * 28 + 60, 48 * 28 + 96 + 60, "7 steps x 4 x 12 x 28 and 12 x 5",
            either={"MACs": "DynamicQuantizeLSTM"},
        ),
    ),
    "words_dynamic": partial(
        dynamic, net=words, weight_type=QuantType.QUInt8,
        truth=Truth(9 * 160, 6400 + 160, "9 x 32 x 5; 200 rows of 32 in 8 bits"),
    ),
    "cnn_qdq": partial(static, **QDQ),
    "cnn_qdq_channels": partial(static, per_channel=True, extra=4 * nets.CNN_BIASES, **QDQ),
    "cnn_qdq_wide": partial(static, activation_type=QuantType.QUInt16, extra_options={"UseQDQContribOps": True}, **QDQ),
    "cnn_qdq_four": partial(static, weight_type=QuantType.QInt4, **QDQ),
    "cnn_qoperator": partial(static, activation_type=QuantType.QUInt8, weight_type=QuantType.QUInt8, **QOPERATOR),
    "cnn_qoperator_channels": partial(static, per_channel=True, extra=2 * nets.CNN_BIASES, **QOPERATOR),
    "upwards_qdq": static_upwards,
    "mlp_four": partial(few_bits, is_symmetric=True, extra=BLOCKS),
    "mlp_four_zeros": partial(few_bits, is_symmetric=False, extra=2 * BLOCKS),
    "mlp_four_qdq": partial(few_bits, is_symmetric=True, quant_format=QuantFormat.QDQ, extra=BLOCKS),
    "mlp_eight": partial(few_bits, is_symmetric=True, bits=8, extra=BLOCKS),
    "cnn_half": half,
    "cnn_half_inside": partial(half, keep_io_types=True),
}  # fmt: skip
