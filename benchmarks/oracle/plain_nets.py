"""Two small float networks, by hand, that onnxruntime's quantizer and optimizer are given."""

from __future__ import annotations

from pathlib import Path

from hand import node, save, tensor, weight

CNN_MACS = 64 * 16 * 27 + 64 * 16 * 9 + 64 * 32 * 16 + 32 * 10  # 8 x 8 pixels; the second one is depthwise
CNN_WEIGHTS, CNN_BIASES = 16 * 27 + 16 * 9 + 32 * 16 + 32 * 10, 16 + 16 + 32 + 10
MLP_MACS = MLP_WEIGHTS = 64 * 96 + 96 * 32
MLP_BIASES = 96 + 32


def cnn(path: Path) -> None:
    """Three convolutions, the second depthwise, and a linear layer."""
    nodes = [
        node("Conv", ["x", "w1", "b1"], ["c1"], pads=[1, 1, 1, 1]),
        node("Relu", ["c1"], ["r1"]),
        node("Conv", ["r1", "w2", "b2"], ["c2"], pads=[1, 1, 1, 1], group=16),
        node("Relu", ["c2"], ["r2"]),
        node("Conv", ["r2", "w3", "b3"], ["c3"]),
        node("GlobalAveragePool", ["c3"], ["g"]),
        node("Flatten", ["g"], ["f"]),
        node("Gemm", ["f", "w4", "b4"], ["y"], transB=1),
    ]
    numbers = [weight("w1", 16, 3, 3, 3), weight("w2", 16, 1, 3, 3), weight("w3", 32, 16, 1, 1), weight("w4", 10, 32)]
    numbers += [weight("b1", 16), weight("b2", 16), weight("b3", 32), weight("b4", 10)]
    save(path, nodes, [tensor("x", ["batch", 3, 8, 8])], [tensor("y", ["batch", 10])], numbers)


def mlp(path: Path, opset: int = 17) -> None:
    """Two matrix products, each with a bias."""
    nodes = [
        node("MatMul", ["x", "w1"], ["m1"]),
        node("Add", ["m1", "b1"], ["a1"]),
        node("Relu", ["a1"], ["r1"]),
        node("MatMul", ["r1", "w2"], ["m2"]),
        node("Add", ["m2", "b2"], ["y"]),
    ]
    numbers = [weight("w1", 64, 96), weight("b1", 96), weight("w2", 96, 32), weight("b2", 32)]
    save(path, nodes, [tensor("x", ["batch", 64])], [tensor("y", ["batch", 32])], numbers, opset=opset)
