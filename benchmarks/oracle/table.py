"""What a file of the oracle set costs, and the ways to know it that have nothing to do with our counter.

Multiply-accumulates are those of convolutions, linear layers, matrix products (Einsum where it contracts), recurrent
layers (input and recurrent products) and the two products of attention, for one input; everything else is free.
Parameters are the stored numbers that reach a computation as values, whatever their type: not the running mean and
variance of a batch norm, not single numbers, not shapes, axes, indices into tensors, scales of a Resize, or the masks
that a Where chooses by.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Truth:
    """The right answers about one file.

    `macs` and `params` are None where nothing is asked. `shape` is given along where MACs depend on it. `refused` says
    for which units a refusal is the only right answer as long as no shape is given, and what its sentence must name;
    `either` for which units it may be refused by that name or else counted as it is here. Names are regular
    expressions, since one of several will do.
    """

    macs: int | None
    params: int | None
    how: str
    shape: tuple[str, ...] = ()
    refused: Mapping[str, str] = field(default_factory=dict)
    either: Mapping[str, str] = field(default_factory=dict)
    also: Mapping[str, Sequence[int]] = field(default_factory=dict)
    never: Mapping[str, int] = field(default_factory=dict)


Make = Callable[[Path], Truth]  # writes the file there, and says what it costs

CONVOLUTIONS = {"Conv": 1, "FusedConv": 1, "ConvInteger": 1, "QLinearConv": 3}  # and which operand is the weight
PRODUCTS = ("MatMul", "MatMulInteger", "QLinearMatMul", "MatMulNBits", "DynamicQuantizeMatMul", "MatMulIntegerToFloat")
RECURRENT = ("LSTM", "GRU", "RNN")
SILENT = ("Einsum", "Attention", "MultiHeadAttention", "FusedMatMul", "FusedGemm", "DeformConv", "QAttention",
          "DynamicQuantizeLSTM", "LinearClassifier", "LinearRegressor", "SVMClassifier")  # fmt: skip


def counted(model: Any, *inputs: Any) -> int:
    """MACs of one pass of a torch module by torch's own counter, attention as the two products that it is."""
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    torch.backends.mha.set_fastpath_enabled(False)
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), counter:
        model(*inputs)
    return int(counter.get_total_flops()) // 2


def parameters(model: Any) -> int:
    """Numbers in the parameters of a torch module; shared ones once."""
    return sum(parameter.numel() for parameter in model.parameters())


def folded(model: Any) -> int:
    """Numbers left of a torch module after each batch norm is folded into the convolution before it.

    Its scale and shift go; a convolution without a bias gets one.
    """
    from torch import nn

    kinds = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
    norms = sum(2 * norm.num_features for norm in model.modules() if isinstance(norm, kinds))
    plain = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d)
    biases = sum(conv.out_channels for conv in model.modules() if isinstance(conv, plain) and conv.bias is None)
    return parameters(model) - norms + biases


def profiled(path: Path, shape: Sequence[str] = ()) -> int | None:
    """MACs by onnxruntime's profile: shapes as they were when it ran the file, unchanged by its optimizer.

    A first axis without a number is 1, other shapes are as given ("x=1,3,16,16"). None where onnxruntime refuses the
    file, or runs what is not counted here: recurrent layers, Einsum, attention, operators of its own.
    """
    import numpy as np
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.enable_profiling = True
    options.profile_file_prefix = str(path.with_suffix(""))
    options.log_severity_level = 4
    options.add_session_config_entry("session.disable_prepacking", "1")  # a packed weight has no shape any more
    given = {name: [int(size) for size in sizes.split(",")] for name, sizes in (one.split("=") for one in shape)}
    log = None
    try:
        session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        feeds = {}
        for one in session.get_inputs():
            first = [size if isinstance(size, int) and size > 0 else 1 for size in one.shape[:1]]
            inner = one.type.removeprefix("tensor(").removesuffix(")")
            kind = {"float": "float32", "double": "float64"}.get(inner, inner)
            feeds[one.name] = np.ones(given.get(one.name, [*first, *one.shape[1:]]), np.dtype(kind))
        session.run(None, feeds)
        log = Path(session.end_profiling())
        return _products(json.loads(log.read_text()))
    except Exception:  # whatever it is, it is no witness
        return None
    finally:
        for left in [log] if log else path.parent.glob(f"{path.stem}_*.json"):
            left.unlink()


def _products(events: list[dict[str, Any]]) -> int | None:
    """MACs of all operators that ran; each knows how many numbers a number of its output was summed from."""
    total = 0
    for event in events:
        kind = event.get("args", {}).get("op_name")
        if kind is None or not event["name"].endswith("_kernel_time"):
            continue
        if kind in SILENT:
            return None
        ins, outs = (
            [next(iter(one.values())) for one in event["args"][f"{side}_type_shape"]] for side in ("input", "output")
        )
        if kind in CONVOLUTIONS:
            total += prod(outs[0]) * prod(ins[CONVOLUTIONS[kind]][1:])
        elif kind == "ConvTranspose":
            total += prod(ins[0]) * prod(ins[1][1:])
        elif kind in ("Gemm", "QGemm"):
            total += outs[0][1] * prod(ins[0])  # M x K numbers, each times N, whichever way it is turned
        elif kind in PRODUCTS:
            total += prod(outs[0]) * ins[0][-1]
        elif kind in RECURRENT:
            total += ins[0][0] * ins[0][1] * (prod(ins[1]) + prod(ins[2]))
    return total
