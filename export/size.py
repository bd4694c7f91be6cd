"""How many bytes model.onnx will have less than a price says: found by writing the file of the full network once.

A price reckons a file's bytes by upper bounds, since what an exporter writes beside the numbers of weights is not known
before: two kilobytes for a header and metadata, and some for each operator and tensor. In a small file that is much.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import onnx
import torch
from torch import nn

from compress.budget.limits import Budget, Cost
from compress.export.artifact import contiguous
from compress.export.onnx import file as onnx_file
from compress.export.parts import Preprocessing
from compress.export.seal import LONGEST
from compress.export.translate import to_onnx, to_program
from compress.reading.count import CLASS_BYTES, FILE_BYTES
from compress.reading.inputs import Shape, each, plainly

TEXT, MOST = 16, 10**9  # a limit's text, and what it comes to: so that what is foreseen does not hang on the budget
VARINTS = 4  # bytes of one tensor's lengths and sizes, which grow where it does


def overstated(model: nn.Module, shape: Shape, predicted: Cost, budget: Budget, *, baked: bool, frame: bool) -> int:
    """The bytes that the file of a network has less than was predicted for it, below 0 where it has more.

    What is not known yet, accuracies and digests, the names of classes, is as long as it may be. With `frame` only what
    is beside operators and weights is looked at: for a network whose operators will be others.
    """
    program = to_program(_drawn(model), *(torch.zeros(2, *one) for one in each(shape)))
    file = onnx_file.clean(to_onnx(program, ["images", *(f"x{number}" for number in range(2, len(each(shape)) + 1))]))
    if baked:
        channels = each(shape)[0][0]
        file = onnx_file.bake(file, [1.0] * channels, [0.0] * channels, len(each(shape)[0]))
    outputs, tensors = _classes(file), len(file.graph.initializer)
    metadata = onnx_file.metadata_bytes(_topics(predicted, budget, foreseen(shape, outputs, baked=baked)))
    if frame:
        del file.graph.node[:]
        del file.graph.initializer[:]
        return FILE_BYTES + CLASS_BYTES * outputs - metadata - int(file.ByteSize())
    return predicted.bytes - metadata - int(file.ByteSize()) - VARINTS * tensors


def _drawn(model: nn.Module) -> nn.Module:
    """A copy with numbers that no exporter leaves out, as it does a bias of zeros."""
    copied = contiguous(model)
    draw = torch.Generator().manual_seed(0)
    for tensor in (*copied.parameters(), *copied.buffers()):
        if tensor.is_floating_point():
            tensor.data += torch.rand(tensor.shape, generator=draw).to(tensor.dtype)
    return copied


def foreseen(shape: Shape, classes: int, *, baked: bool) -> Preprocessing:
    """What the metadata says of images that nobody has looked at, as long as it may be."""
    third, names = [1 / 3] * each(shape)[0][0], ["x" * (CLASS_BYTES - 4)] * classes
    return Preprocessing.of_inputs(
        each(shape), mean=third, std=third, classes=names, baked=baked, colours="as stored", resized=True
    )


def shorter(known: Preprocessing) -> int:
    """By how many bytes the metadata of a data set is shorter than was foreseen for images of its shape."""
    shapes = (known.shape, *(other.shape for other in known.others))
    longest = foreseen(plainly(shapes), max(len(known.classes), 1), baked=known.baked)
    most, size = (onnx_file.metadata_bytes({"preprocessing": it.plain()}) for it in (longest, known))
    return most - size


def _classes(file: onnx.ModelProto) -> int:
    sizes = file.graph.output[0].type.tensor_type.shape.dim
    return max(int(sizes[1].dim_value), 1) if len(sizes) > 1 else 1


def _topics(base: Cost, budget: Budget, preprocessing: Preprocessing) -> dict[str, Any]:
    """The metadata in its longest form."""
    return {
        "base": asdict(base),
        "budget": [asdict(limit) | {"text": limit.text.ljust(TEXT, "x"), "limit": MOST} for limit in budget.limits],
        "claims": {name: 10 * of for name, of in asdict(base).items() if name != "bytes"},
        "preprocessing": preprocessing.plain(),
        "sealed": LONGEST,
        "structure": "0" * 64,
        "versions": {"onnx": onnx.__version__, "torch": str(torch.__version__)},
    }
