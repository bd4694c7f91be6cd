"""The operators of a forward pass by what they do, and what each costs.

One multiply-accumulate is 1. Convolutions and matrix products are counted; the operators in `FREE` cost nothing by the
field's convention (element-wise work, normalisation, pooling, moving data); anything else is refused by name.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

from torch import Tensor


def _convolution(args: Sequence[Any], out: Tensor) -> int:
    x, weight, transposed = args[0], args[1], args[6]
    return int(weight.numel() * prod((x if transposed else out).shape[2:]) * x.shape[0])


def _product(a: int, b: int) -> Callable[[Sequence[Any], Tensor], int]:
    return lambda args, out: int(args[a].numel() * args[b].shape[-1])


MACS: dict[str, Callable[[Sequence[Any], Tensor], int]] = {
    "aten.convolution": _convolution,
    "aten.mm": _product(0, 1),
    "aten.bmm": _product(0, 1),
    "aten.addmm": _product(1, 2),
    "aten.baddbmm": _product(1, 2),
}


def _names(text: str) -> frozenset[str]:
    return frozenset(f"aten.{name}" for name in text.split())


UNARY = _names(
    "relu relu_ silu silu_ gelu sigmoid sigmoid_ tanh tanh_ hardtanh hardtanh_ hardswish hardswish_ hardsigmoid "
    "hardsigmoid_ leaky_relu leaky_relu_ elu elu_ softplus exp expm1 log log1p sqrt rsqrt neg abs sign square erf sin "
    "cos mish mish_ reciprocal round floor ceil threshold threshold_ softshrink hardshrink log_sigmoid_forward "
    "clone detach detach_ alias _to_copy contiguous lift_fresh fill fill_ zero_ empty_like zeros_like ones_like "
    "full_like bitwise_not logical_not isnan native_dropout"
)
POINTWISE = _names(
    "add add_ sub sub_ mul mul_ div div_ pow pow_ clamp clamp_ clamp_min clamp_max maximum minimum where addcmul lerp "
    "rsub copy_ masked_fill masked_fill_ remainder eq ne lt le gt ge logical_and logical_or bitwise_and bitwise_or "
    "_prelu_kernel"
)
OVER = _names(  # element by element, and one operator in an ONNX file too: its output may take an operand's place
    "relu relu_ sigmoid sigmoid_ tanh tanh_ hardtanh hardtanh_ hardsigmoid hardsigmoid_ leaky_relu leaky_relu_ elu "
    "elu_ hardswish hardswish_ exp log sqrt neg abs sin cos reciprocal round floor ceil clone _to_copy contiguous "
    "_prelu_kernel rsub add add_ sub sub_ mul mul_ div div_ pow pow_ clamp clamp_ clamp_min clamp_max maximum minimum "
    "native_batch_norm _native_batch_norm_legit _native_batch_norm_legit_no_training"
)
COPIES = _names("detach alias clone _to_copy")
TURNS = _names("t permute transpose")
VIEWS = _names("view _unsafe_view reshape")
SPLITS = _names("split split_with_sizes")
MOVES = VIEWS | TURNS | SPLITS | _names("unsqueeze squeeze expand slice select unbind roll flip repeat narrow unfold")
POOLS = _names(
    "max_pool2d_with_indices max_pool3d_with_indices max_pool1d max_pool2d avg_pool1d avg_pool2d avg_pool3d "
    "_adaptive_avg_pool2d _adaptive_avg_pool3d adaptive_max_pool2d adaptive_max_pool3d upsample_nearest1d "
    "upsample_nearest2d upsample_nearest3d upsample_linear1d upsample_bilinear2d upsample_trilinear3d "
    "upsample_bicubic2d _upsample_nearest_exact2d reflection_pad1d reflection_pad2d replication_pad1d "
    "replication_pad2d"
)
NORMS = _names("native_batch_norm _native_batch_norm_legit _native_batch_norm_legit_no_training")
MEANS = _names("mean sum amax amin")
AVERAGES = _names("_softmax _log_softmax _safe_softmax native_layer_norm native_group_norm")
SHUFFLES = _names("pixel_shuffle pixel_unshuffle channel_shuffle native_channel_shuffle")
MAKERS = _names("empty zeros ones full arange new_zeros new_ones new_full new_empty scalar_tensor eye linspace")
DICE = _names("bernoulli_")
OTHERS = _names(
    "cat stack glu constant_pad_nd pixel_unshuffle as_strided as_strided_ max min var std cumsum topk sort norm "
    "linalg_vector_norm var_mean prod any all logsumexp tril triu index index_select gather argmax embedding "
    "_assert_async _weight_norm_interface"
)
FREE = UNARY | POINTWISE | MOVES | POOLS | NORMS | MEANS | AVERAGES | SHUFFLES | MAKERS | DICE | OTHERS
