"""What is known of every operator: one row says all of it, and whoever reads, counts, cuts or verifies asks here.

A row in `TORCH` says how channel ids pass through an operator of torch (by a rule of `rules.py`), where its output is
kept, the bytes of its node in model.onnx, which operators of ONNX it is exported as, and how many multiply-accumulates
it takes. From that follow the reading of a network (`flow`), its price (`count`), what LWP may cut around
(`calls`, `through`), and the two counters of ONNX files (`export.onnx.count`, `export.onnx.memory`).

`ONNX` holds what other exporters write, what multiplies, and what several operators of torch that differ come out as.
Convolutions and matrix products are counted; all other rows cost nothing by the field's convention (element-wise work,
normalisation, pooling, moving data); an operator without a row is refused by name. Neither torch nor onnx is needed.
"""

from __future__ import annotations

from typing import NamedTuple

from compress.reading import formulas

NEW = "new"  # its output needs room of its own
OVER = "over"  # element by element, and one operator in an ONNX file too: its output may take an operand's place
VIEW = "view"  # its output is its operand, looked at in another way
NONE = "none"  # what it tells is known once the shapes are: no activation


class Operator(NamedTuple):
    """One row; what is left out is so for most operators."""

    ids: str = ""  # the rule by which channel ids pass; without one the channels that it touches stay as they are
    place: str = NEW  # where its output is kept
    bytes: int = 400  # of its node with small constants, without the names of its tensors; it may become several nodes
    onnx: str = ""  # what it is exported as
    macs: formulas.Formula | None = None  # of its arguments and output, or of an ONNX node and shapes; None: nothing


def row(op: str) -> Operator | None:
    """What is known of an operator of torch: what goes element by element does the same in place, `relu_` as `relu`."""
    if op in TORCH or not op.endswith("_"):
        return TORCH.get(op)
    twin = TORCH.get(op[:-1])
    return twin if twin is not None and twin.ids in ("same", "copy", "pointwise") else None


def onnx() -> dict[str, Operator]:
    """What is known of the operators of ONNX, by name: those of `ONNX`, and those that rows of torch come out as.

    Where an operator of torch is one node in the file, that node is kept where its output is.
    """
    rows: dict[str, Operator] = {}
    for known in TORCH.values():
        names = known.onnx.split() if known.macs is None else []
        for name in names:
            if len(names) == 1:
                rows[name] = known
            else:
                rows.setdefault(name, Operator())
    return rows | ONNX


TORCH: dict[str, Operator] = {
    # multiplied
    "aten.convolution": Operator("convolution", NEW, 184, "Conv ConvTranspose", formulas.convolution),
    "torchvision.deform_conv2d": Operator("deformed", onnx="DeformConv", macs=formulas.deformed),
    "aten.addmm": Operator("linear", NEW, 128, "Gemm", formulas.product(1, 2)),
    "aten.mm": Operator("linear", onnx="MatMul", macs=formulas.product(0, 1)),
    "aten.bmm": Operator(onnx="MatMul", macs=formulas.product(0, 1)),
    "aten.baddbmm": Operator(onnx="MatMul", macs=formulas.product(1, 2)),
    # element by element, on one tensor
    "aten.relu": Operator("same", OVER, 56, "Relu"),
    "aten.silu": Operator("same", onnx="Sigmoid Mul"),
    "aten.gelu": Operator("same", onnx="Gelu"),
    "aten.sigmoid": Operator("same", OVER, 56, "Sigmoid"),
    "aten.sigmoid_": Operator("same", OVER, onnx="Sigmoid"),  # priced with more room than it takes, as mul_ is
    "aten.tanh": Operator("same", OVER, onnx="Tanh"),
    "aten.hardtanh": Operator("same", OVER, 128, "Clip"),
    "aten.hardswish": Operator("same", OVER, onnx="HardSwish"),
    "aten.hardsigmoid": Operator("same", OVER, onnx="HardSigmoid"),
    "aten.leaky_relu": Operator("same", OVER, onnx="LeakyRelu"),
    "aten.elu": Operator("same", OVER, onnx="Elu"),
    "aten.celu": Operator("same", OVER, onnx="Celu"),
    "aten.mish": Operator("same", onnx="Mish"),
    "aten.softplus": Operator("same", onnx="Greater Softplus Where"),
    "aten.threshold": Operator("same", onnx="LessOrEqual Where"),
    "aten.softshrink": Operator("same", onnx="Abs Greater Sign Mul Sub Where"),
    "aten.hardshrink": Operator("same", onnx="Abs LessOrEqual Where"),
    "aten.log_sigmoid_forward": Operator("same", onnx="Sigmoid Log"),
    "aten.exp": Operator("same", OVER, onnx="Exp"),
    "aten.expm1": Operator("same", onnx="Exp Sub"),
    "aten.log": Operator("same", OVER, onnx="Log"),
    "aten.log1p": Operator("same", onnx="Add Log"),
    "aten.sqrt": Operator("same", OVER, onnx="Sqrt"),
    "aten.rsqrt": Operator("same", onnx="Sqrt Reciprocal"),
    "aten.square": Operator("same", OVER, onnx="Pow"),
    "aten.reciprocal": Operator("same", OVER, onnx="Reciprocal"),
    "aten.neg": Operator("same", OVER, onnx="Neg"),
    "aten.abs": Operator("same", OVER, onnx="Abs"),
    "aten.sign": Operator("same", onnx="Sign"),
    "aten.erf": Operator("same", OVER, onnx="Erf"),
    "aten.sin": Operator("same", OVER, onnx="Sin"),
    "aten.cos": Operator("same", OVER, onnx="Cos"),
    "aten.round": Operator("same", OVER, onnx="Round"),
    "aten.floor": Operator("same", OVER, onnx="Floor"),
    "aten.ceil": Operator("same", OVER, onnx="Ceil"),
    "aten.bitwise_not": Operator("same", onnx="Not"),
    "aten.logical_not": Operator("same", onnx="Not"),
    "aten.isnan": Operator("same", onnx="IsNaN"),
    # ... or a tensor of its shape, with its numbers, or others
    "aten.contiguous": Operator("same", OVER, onnx="Identity"),
    "aten.lift_fresh": Operator("same", VIEW),
    "aten.fill": Operator("same", onnx="Shape Expand"),
    "aten.zero_": Operator("same"),
    "aten.empty_like": Operator("same"),
    "aten.zeros_like": Operator("same", onnx="Shape Expand"),
    "aten.ones_like": Operator("same", onnx="Shape Expand"),
    "aten.full_like": Operator("same", onnx="Shape Expand"),
    "aten.native_dropout": Operator("same"),
    "aten.clone": Operator("copy", OVER, onnx="Identity"),
    "aten._to_copy": Operator("copy", OVER, onnx="Cast"),
    "aten.detach": Operator("copy", VIEW, onnx="Identity"),
    "aten.alias": Operator("copy", VIEW, onnx="Identity"),
    # element by element, on several tensors
    "aten.add": Operator("pointwise", OVER, 56, "Add"),
    "aten.sub": Operator("pointwise", OVER, onnx="Sub"),
    "aten.rsub": Operator("pointwise", OVER, onnx="Sub"),
    "aten.mul": Operator("pointwise", OVER, 56, "Mul"),
    "aten.mul_": Operator("pointwise", OVER, onnx="Mul"),
    "aten.div": Operator("pointwise", OVER, onnx="Div"),
    "aten.pow": Operator("pointwise", OVER, onnx="Pow"),
    "aten.clamp": Operator("pointwise", OVER, onnx="Clip"),
    "aten.clamp_min": Operator("pointwise", OVER, onnx="Clip"),
    "aten.clamp_max": Operator("pointwise", OVER, onnx="Clip"),
    "aten.maximum": Operator("pointwise", OVER, onnx="Max"),
    "aten.minimum": Operator("pointwise", OVER, onnx="Min"),
    "aten._prelu_kernel": Operator("pointwise", OVER, onnx="PRelu"),
    "aten.where": Operator("pointwise", onnx="Where"),
    "aten.addcmul": Operator("pointwise", onnx="Mul Add"),
    "aten.lerp": Operator("pointwise", onnx="Sub Mul Add Where"),
    "aten.copy_": Operator("pointwise"),
    "aten.masked_fill": Operator("pointwise", onnx="Where"),
    "aten.remainder": Operator("pointwise", onnx="Div Floor Mul Sub"),
    "aten.eq": Operator("pointwise", onnx="Equal"),
    "aten.ne": Operator("pointwise", onnx="Equal Not"),
    "aten.lt": Operator("pointwise", onnx="Less"),
    "aten.le": Operator("pointwise", onnx="LessOrEqual"),
    "aten.gt": Operator("pointwise", onnx="Greater"),
    "aten.ge": Operator("pointwise", onnx="GreaterOrEqual"),
    "aten.logical_and": Operator("pointwise", onnx="And"),
    "aten.logical_or": Operator("pointwise", onnx="Or"),
    "aten.bitwise_and": Operator("pointwise", onnx="And"),
    "aten.bitwise_or": Operator("pointwise", onnx="Or"),
    # normalisation
    "aten.native_batch_norm": Operator("batch_norm", OVER, 152, "BatchNormalization"),
    "aten._native_batch_norm_legit": Operator("batch_norm", OVER, 152, "BatchNormalization"),
    "aten._native_batch_norm_legit_no_training": Operator("batch_norm", OVER, 152, "BatchNormalization"),
    "aten.native_group_norm": Operator("group_norm", onnx="Reshape InstanceNormalization Mul Add"),
    "aten.native_layer_norm": Operator("average", onnx="LayerNormalization"),
    "aten._softmax": Operator("average", onnx="Softmax"),
    "aten._log_softmax": Operator("average", onnx="LogSoftmax"),
    "aten._safe_softmax": Operator("average", onnx="Softmax"),
    # data that moves
    "aten.view": Operator("view", VIEW, 176, "Reshape"),
    "aten._unsafe_view": Operator("view", VIEW, 176, "Reshape"),
    "aten.reshape": Operator("view", VIEW, 176, "Reshape"),
    "aten.t": Operator("turn", VIEW, 176, "Transpose"),
    "aten.permute": Operator("turn", VIEW, 176, "Transpose"),
    "aten.transpose": Operator("turn", VIEW, 176, "Transpose"),
    "aten.transpose_": Operator("turn", VIEW, 176, "Transpose"),
    "aten.unsqueeze": Operator("squeeze", VIEW, 176, "Unsqueeze"),
    "aten.squeeze": Operator("squeeze", VIEW, 176, "Squeeze"),
    "aten.expand": Operator("expand", VIEW, 176, "Expand"),
    "aten.repeat": Operator("repeat", bytes=176, onnx="Tile"),
    "aten.split": Operator("split", VIEW, 176, "Split"),
    "aten.split_with_sizes": Operator("split", VIEW, 176, "Split"),
    "aten.unsafe_split": Operator("split", VIEW, 176, "Split"),
    "aten.slice": Operator("move", VIEW, 176, "Slice"),
    "aten.select": Operator("move", VIEW, 176, "Gather"),
    "aten.narrow": Operator("move", VIEW, 176, "Slice"),
    "aten.unbind": Operator("move", VIEW, 176, "Slice Squeeze"),
    "aten.unfold": Operator("move", VIEW, 176, "Gather Transpose"),
    "aten.roll": Operator("move", bytes=176, onnx="Slice Concat"),
    "aten.flip": Operator("move", bytes=176, onnx="Slice"),
    "aten.as_strided_": Operator("restride"),
    "aten.pixel_shuffle": Operator("pixel_shuffle", onnx="DepthToSpace"),
    "aten.im2col": Operator("unfold", onnx="Pad Gather Transpose Reshape"),
    "aten.col2im": Operator("fold", onnx="Col2Im"),
    "aten.pixel_unshuffle": Operator("pixel_unshuffle", onnx="Reshape Transpose"),
    "aten.channel_shuffle": Operator("channel_shuffle", onnx="Reshape Transpose"),
    "aten.native_channel_shuffle": Operator("channel_shuffle", onnx="Reshape Transpose"),
    "aten.glu": Operator("glu", onnx="Split Sigmoid Mul"),
    "aten.cat": Operator("concat", bytes=64, onnx="Concat"),
    "aten.stack": Operator("stack", onnx="Unsqueeze Concat"),
    "aten.constant_pad_nd": Operator("pad", bytes=176, onnx="Pad"),
    # pooling, resizing, and averages over positions
    "aten.max_pool1d": Operator("pool", bytes=208, onnx="MaxPool"),
    "aten.max_pool2d": Operator("pool", bytes=208, onnx="MaxPool"),
    "aten.max_pool2d_with_indices": Operator("pool", bytes=208, onnx="MaxPool"),
    "aten.max_pool3d_with_indices": Operator("pool", bytes=208, onnx="MaxPool"),
    "aten.adaptive_max_pool2d": Operator("pool", bytes=208, onnx="MaxPool"),
    "aten.adaptive_max_pool3d": Operator("pool", bytes=208, onnx="MaxPool"),
    "aten.avg_pool1d": Operator("pool", bytes=208, onnx="AveragePool"),
    "aten.avg_pool2d": Operator("pool", bytes=208, onnx="AveragePool"),
    "aten.avg_pool3d": Operator("pool", bytes=208, onnx="AveragePool"),
    "aten._adaptive_avg_pool2d": Operator("pool", bytes=208, onnx="AveragePool"),
    "aten._adaptive_avg_pool3d": Operator("pool", bytes=208, onnx="AveragePool"),
    "aten.upsample_nearest1d": Operator("pool", bytes=208, onnx="Resize"),
    "aten.upsample_nearest2d": Operator("pool", bytes=208, onnx="Resize"),
    "aten.upsample_nearest3d": Operator("pool", bytes=208, onnx="Resize"),
    "aten._upsample_nearest_exact2d": Operator("pool", bytes=208, onnx="Resize"),
    "aten.upsample_linear1d": Operator("pool", bytes=208, onnx="Resize"),
    "aten.upsample_bilinear2d": Operator("pool", bytes=208, onnx="Resize"),
    "aten.upsample_trilinear3d": Operator("pool", bytes=208, onnx="Resize"),
    "aten.upsample_bicubic2d": Operator("pool", bytes=208, onnx="Resize"),
    "aten.reflection_pad1d": Operator("pool", bytes=208, onnx="Pad"),
    "aten.reflection_pad2d": Operator("pool", bytes=208, onnx="Pad"),
    "aten.replication_pad1d": Operator("pool", bytes=208, onnx="Pad"),
    "aten.replication_pad2d": Operator("pool", bytes=208, onnx="Pad"),
    "aten.grid_sampler_2d": Operator("sampled", onnx="GridSample"),
    "aten.grid_sampler_3d": Operator("sampled", onnx="GridSample"),
    "aten.affine_grid_generator": Operator(onnx="AffineGrid"),
    "aten.mean": Operator("mean", bytes=144, onnx="ReduceMean"),
    "aten.sum": Operator("mean", bytes=144, onnx="ReduceSum"),
    "aten.amax": Operator("mean", bytes=144, onnx="ReduceMax"),
    "aten.amin": Operator("mean", bytes=144, onnx="ReduceMin"),
    # tensors of a stated size
    "aten.empty": Operator("maker"),
    "aten.zeros": Operator("blank"),
    "aten.ones": Operator("maker"),
    "aten.full": Operator("maker"),
    "aten.arange": Operator("maker", onnx="Range"),
    "aten.new_zeros": Operator("blank"),
    "aten.new_ones": Operator("maker"),
    "aten.new_full": Operator("maker"),
    "aten.new_empty": Operator("maker"),
    "aten.scalar_tensor": Operator("maker"),
    "aten.linspace": Operator("maker"),
    "aten.eye": Operator("maker", onnx="EyeLike"),
    "aten.bernoulli_": Operator("dice"),
    # known to cost nothing; the channels that they touch stay
    "aten._assert_async": Operator(),
    "aten._weight_norm_interface": Operator(onnx="ReduceL2 Div Mul"),
    "aten.all": Operator(onnx="Cast ReduceMin"),
    "aten.any": Operator(onnx="Cast ReduceMax"),
    "aten.argmax": Operator("mean", onnx="ArgMax"),
    "aten.as_strided": Operator(),
    "aten.bucketize": Operator(onnx="Unsqueeze GreaterOrEqual Less And Where"),
    "aten.cumsum": Operator(onnx="CumSum"),
    "aten.embedding": Operator(onnx="Gather"),
    "aten.gather": Operator(onnx="GatherElements"),
    "aten.index": Operator(onnx="Transpose GatherND"),
    "aten.index_select": Operator(onnx="Gather"),
    "aten.linalg_vector_norm": Operator("mean", onnx="ReduceL2"),
    "aten.logcumsumexp": Operator(onnx="ReduceMax Sub Exp CumSum Log Add"),
    "aten.logsumexp": Operator("mean", onnx="ReduceLogSumExp"),
    "aten.max": Operator("mean", onnx="ReduceMax"),
    "aten.min": Operator("mean", onnx="ReduceMin"),
    "aten.norm": Operator("mean", onnx="ReduceL2"),
    "aten.prod": Operator("mean", onnx="ReduceProd"),
    "aten.renorm": Operator(onnx="ReduceL2 Greater Reciprocal Where Mul"),
    "aten.scatter": Operator(onnx="ScatterElements"),
    "aten.scatter_add": Operator(onnx="ScatterElements"),
    "aten.sort": Operator(onnx="TopK"),
    "aten.std": Operator("mean", onnx="ReduceMean Sub Mul Div Sqrt"),
    "aten.topk": Operator(onnx="TopK"),
    "aten.trace": Operator(onnx="EyeLike Mul ReduceSum"),
    "aten.tril": Operator(onnx="Trilu"),
    "aten.triu": Operator(onnx="Trilu"),
    "aten.var": Operator("mean", onnx="ReduceMean Sub Mul Div"),
    "aten.var_mean": Operator("mean", onnx="ReduceMean Sub Mul Div"),
}

ONNX: dict[str, Operator] = {
    # multiplied
    "Conv": Operator(macs=formulas.onnx_conv(1)),
    "DeformConv": Operator(macs=formulas.onnx_conv(1)),
    "ConvTranspose": Operator(macs=formulas.onnx_conv_transpose),
    "Gemm": Operator(macs=formulas.onnx_product),
    "MatMul": Operator(macs=formulas.onnx_product),
    "Einsum": Operator(macs=formulas.onnx_einsum),
    "GRU": Operator(macs=formulas.onnx_recurrent),
    "LSTM": Operator(macs=formulas.onnx_recurrent),
    "RNN": Operator(macs=formulas.onnx_recurrent),
    "Attention": Operator(macs=formulas.onnx_attention),
    # ... on whole numbers, as quantizers write it: as many as their twins
    "ConvInteger": Operator(macs=formulas.onnx_conv(1)),
    "QLinearConv": Operator(macs=formulas.onnx_conv(3)),
    "MatMulInteger": Operator(macs=formulas.onnx_product),
    "QLinearMatMul": Operator(macs=formulas.onnx_product),
    **{
        f"com.microsoft::{name}": Operator(macs=formulas.onnx_product)
        for name in """
        DynamicQuantizeMatMul FusedGemm FusedMatMul FusedMatMulActivation MatMulBnb4 MatMulIntegerToFloat MatMulNBits
        QGemm TransposeMatMul
        """.split()  # noqa: SIM905 -- a list that a reader can take in
    },
    "com.microsoft::DynamicQuantizeLSTM": Operator(macs=formulas.onnx_recurrent),
    # ... and as optimizers do
    "com.microsoft::FusedConv": Operator(macs=formulas.onnx_conv(1)),
    "com.microsoft::Attention": Operator(macs=formulas.onnx_attention_block),
    "com.microsoft::QAttention": Operator(macs=formulas.onnx_attention_block),
    "com.microsoft::MultiHeadAttention": Operator(macs=formulas.onnx_attention_of_three),
    "ai.onnx.ml::LinearClassifier": Operator(macs=formulas.onnx_linear),
    "ai.onnx.ml::LinearRegressor": Operator(macs=formulas.onnx_linear),
    # what operators of torch that differ come out as
    "Identity": Operator(place=VIEW),
    "Slice": Operator(place=VIEW),
    "Gather": Operator(),
    # what other exporters write, and what operators of torch are only a part of
    "Dropout": Operator(place=VIEW),
    "Flatten": Operator(place=VIEW),
    "Selu": Operator(place=OVER),
    "Softplus": Operator(place=OVER),
    "Softsign": Operator(place=OVER),
    "Shape": Operator(place=NONE),
    "Size": Operator(place=NONE),
    **dict.fromkeys(
        """
        Acos Acosh AffineGrid ArgMin Asin Asinh Atan Atanh Bernoulli BitShift BitwiseAnd BitwiseNot BitwiseOr
        BitwiseXor CastLike CenterCropPad Col2Im Compress Constant ConstantOfShape Cosh DequantizeLinear
        DynamicQuantizeLinear GlobalAveragePool GlobalLpPool GlobalMaxPool GridSample GroupNormalization Hardmax
        IsInf LRN LpNormalization LpPool MaxRoiPool MaxUnpool Mean MeanVarianceNormalization Mod Multinomial
        NonMaxSuppression NonZero OneHot QuantizeLinear RMSNormalization RandomNormal RandomNormalLike
        RandomUniform RandomUniformLike ReduceL1 ReduceLogSum ReduceSumSquare ReverseSequence RoiAlign
        ScatterElements ScatterND Shrink SimplifiedLayerNormalization Sinh SpaceToDepth Sum Swish Tan
        ThresholdedRelu Upsample Xor
        """.split(),  # noqa: SIM905 -- a list that a reader can take in
        Operator(),
    ),
    **{
        name: Operator()
        for domain, names in {
            "com.microsoft": """
                BiasAdd BiasGelu BiasSoftmax DequantizeLinear EmbedLayerNormalization FastGelu GatherBlockQuantized Gelu
                GroupNorm QLinearAdd QLinearAveragePool QLinearConcat QLinearGlobalAveragePool QLinearLeakyRelu
                QLinearMul QLinearSigmoid QLinearSoftmax QuantizeLinear QuickGelu RotaryEmbedding SkipLayerNormalization
                SkipSimplifiedLayerNormalization Trilu
                """,
            "ai.onnx.ml": """
                ArrayFeatureExtractor Binarizer FeatureVectorizer Imputer LabelEncoder Normalizer OneHotEncoder Scaler
                ZipMap
                """,
        }.items()
        for name in (f"{domain}::{short}" for short in names.split())
    },
}
