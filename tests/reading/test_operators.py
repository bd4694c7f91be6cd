"""One table knows every operator: what is in it is read, priced, counted and cut around, and what is not is refused."""

import warnings
from collections.abc import Callable

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as fn

from compress.errors import UsageError
from compress.export.onnx import count as onnx_count
from compress.reading import operators, rules
from compress.reading.calls import Calls, probed, traced
from compress.reading.graph import read
from compress.reading.measure import measure
from compress.reading.operators import OVER, Operator
from compress.surgery.connections import Wiring, cut
from compress.surgery.survey import survey

SHAPE = (3, 8, 8)


def aten(text: str) -> set[str]:
    return {f"aten.{name}" for name in text.split()}


# ---- what was known when the table was made, and what it cost -------------------------------------------------------

ALONE = aten(
    "relu relu_ silu silu_ gelu sigmoid sigmoid_ tanh tanh_ hardtanh hardtanh_ hardswish hardswish_ hardsigmoid "
    "hardsigmoid_ leaky_relu leaky_relu_ elu elu_ softplus exp expm1 log log1p sqrt rsqrt neg abs sign square erf sin "
    "cos mish mish_ reciprocal round floor ceil threshold threshold_ softshrink hardshrink log_sigmoid_forward "
    "clone detach detach_ alias _to_copy contiguous lift_fresh fill fill_ zero_ empty_like zeros_like ones_like "
    "full_like bitwise_not logical_not isnan native_dropout"
)
TOGETHER = aten(
    "add add_ sub sub_ mul mul_ div div_ pow pow_ clamp clamp_ clamp_min clamp_max maximum minimum where addcmul lerp "
    "rsub copy_ masked_fill masked_fill_ remainder eq ne lt le gt ge logical_and logical_or bitwise_and bitwise_or "
    "_prelu_kernel"
)
MOVES = aten(
    "view _unsafe_view reshape t permute transpose split split_with_sizes unsqueeze squeeze expand slice select unbind "
    "roll flip repeat narrow unfold"
)
POOLS = aten(
    "max_pool2d_with_indices max_pool3d_with_indices max_pool1d max_pool2d avg_pool1d avg_pool2d avg_pool3d "
    "_adaptive_avg_pool2d _adaptive_avg_pool3d adaptive_max_pool2d adaptive_max_pool3d upsample_nearest1d "
    "upsample_nearest2d upsample_nearest3d upsample_linear1d upsample_bilinear2d upsample_trilinear3d "
    "upsample_bicubic2d _upsample_nearest_exact2d reflection_pad1d reflection_pad2d replication_pad1d "
    "replication_pad2d"
)
NORMS = aten("native_batch_norm _native_batch_norm_legit _native_batch_norm_legit_no_training")
MEANS = aten("mean sum amax amin")
OTHERS = aten(
    "_softmax _log_softmax _safe_softmax native_layer_norm native_group_norm pixel_shuffle pixel_unshuffle "
    "channel_shuffle native_channel_shuffle empty zeros ones full arange new_zeros new_ones new_full new_empty "
    "scalar_tensor eye linspace bernoulli_ cat stack glu constant_pad_nd as_strided as_strided_ max min var std cumsum "
    "topk sort norm linalg_vector_norm var_mean prod any all logsumexp tril triu index index_select gather argmax "
    "embedding _assert_async _weight_norm_interface"
)
MULTIPLIED = aten("convolution mm bmm addmm baddbmm")
WRITTEN_OVER = NORMS | aten(
    "relu relu_ sigmoid sigmoid_ tanh tanh_ hardtanh hardtanh_ hardsigmoid hardsigmoid_ leaky_relu leaky_relu_ elu "
    "elu_ hardswish hardswish_ exp log sqrt neg abs sin cos reciprocal round floor ceil clone _to_copy contiguous "
    "_prelu_kernel rsub add add_ sub sub_ mul mul_ div div_ pow pow_ clamp clamp_ clamp_min clamp_max maximum minimum"
)
BYTES = (
    dict.fromkeys(aten("relu relu_ add add_ mul sigmoid"), 56)
    | dict.fromkeys(aten("hardtanh hardtanh_ addmm"), 128)
    | dict.fromkeys(POOLS, 208)
    | dict.fromkeys(NORMS, 152)
    | dict.fromkeys(MEANS, 144)
    | dict.fromkeys(MOVES | aten("constant_pad_nd"), 176)
    | {"aten.convolution": 184, "aten.cat": 64}
)
IN_FILES = set(
    """
    Abs Acos Acosh Add And ArgMax ArgMin Asin Asinh Atan Atanh AveragePool BatchNormalization BitShift
    BitwiseAnd BitwiseNot BitwiseOr BitwiseXor Cast CastLike Ceil Celu CenterCropPad Clip Concat Constant
    ConstantOfShape Cos Cosh CumSum DepthToSpace DequantizeLinear Div Dropout Elu Equal Erf Exp Expand EyeLike
    Flatten Floor Gather GatherElements GatherND Gelu GlobalAveragePool GlobalLpPool GlobalMaxPool Greater
    GreaterOrEqual GridSample GroupNormalization HardSigmoid HardSwish Hardmax Identity InstanceNormalization
    IsInf IsNaN LRN LayerNormalization LeakyRelu Less LessOrEqual Log LogSoftmax LpNormalization LpPool Max
    MaxPool Mean MeanVarianceNormalization Min Mish Mod Mul Neg NonZero Not OneHot Or PRelu Pad Pow
    QuantizeLinear RMSNormalization Range Reciprocal ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax
    ReduceMean ReduceMin ReduceProd ReduceSum ReduceSumSquare Relu Reshape Resize Round ScatterElements
    ScatterND Selu Shape Shrink Sigmoid Sign Sin Sinh Size Slice Softmax Softplus Softsign SpaceToDepth Split
    Sqrt Squeeze Sub Sum Swish Tan Tanh ThresholdedRelu Tile TopK Transpose Trilu Unsqueeze Upsample Where Xor
    """.split()  # noqa: SIM905
)
VIEWED_IN_FILES = set("Dropout Expand Flatten Identity Reshape Slice Split Squeeze Transpose Unsqueeze".split())  # noqa: SIM905
WRITTEN_OVER_IN_FILES = set(
    """
    Abs Add BatchNormalization Cast Ceil Celu Clip Cos Div Elu Erf Exp Floor HardSigmoid HardSwish LeakyRelu Log Max Min
    Mul Neg PRelu Pow Reciprocal Relu Round Selu Sigmoid Sin Softplus Softsign Sqrt Sub Tanh
    """.split()  # noqa: SIM905
)


def test_what_was_known_is_known_at_the_same_cost() -> None:
    free = ALONE | TOGETHER | MOVES | POOLS | NORMS | MEANS | OTHERS
    rows = {op: operators.row(op) for op in free | MULTIPLIED}
    assert {op for op, row in rows.items() if row is not None and row.macs is not None} == MULTIPLIED
    assert {op: row.bytes for op, row in rows.items() if row is not None} == {op: BYTES.get(op, 400) for op in rows}
    # two more than there were: the exporter writes one node for them
    over = {op for op, row in rows.items() if row is not None and row.place == OVER}
    assert over == WRITTEN_OVER | aten("erf square")
    in_files = operators.onnx()
    multiplied = {"Conv", "ConvTranspose", "Einsum", "GRU", "Gemm", "LSTM", "MatMul", "RNN"}
    assert {name for name, row in in_files.items() if row.macs is not None} >= multiplied
    assert in_files.keys() >= IN_FILES | multiplied
    assert not any(in_files[name].macs for name in IN_FILES)
    assert {name for name, row in in_files.items() if row.place == operators.VIEW} == VIEWED_IN_FILES
    assert {name for name, row in in_files.items() if row.place == OVER} == WRITTEN_OVER_IN_FILES


def test_every_row_is_one_that_its_readers_understand() -> None:
    for op, row in operators.TORCH.items():
        assert not row.ids or row.ids in rules.RULES, op
        assert row.place in (operators.NEW, OVER, operators.VIEW), op
        multiplied = {name for name in row.onnx.split() if operators.ONNX.get(name, Operator()).macs is not None}
        assert bool(multiplied) == (row.macs is not None), op
    assert {row.ids for row in operators.TORCH.values()} - {""} == rules.RULES.keys()


def test_what_several_operators_of_torch_come_out_as_is_kept_as_all_of_them_are() -> None:
    places: dict[str, set[str]] = {}
    for row in operators.TORCH.values():
        if row.onnx and " " not in row.onnx and row.onnx not in operators.ONNX:
            places.setdefault(row.onnx, set()).add(row.place)
    assert {name: kinds for name, kinds in places.items() if len(kinds) > 1} == {}


# ---- a trial operator -----------------------------------------------------------------------------------------------


class Waves(nn.Module):
    """A dense layer, and an operator that nobody knows on the concatenation that the classifier reads."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.layer, self.fc = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1), nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.fc(torch.sinh(torch.cat([x, self.layer(x)], 1)).mean((2, 3)))


def as_file(model: nn.Module) -> onnx.ModelProto:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter, about its own insides
        options = {"dynamo": True, "external_data": False, "verbose": False}
        axes = ({0: torch.export.Dim("batch")},)
        program = torch.onnx.export(model.eval(), (torch.rand(2, *SHAPE),), dynamic_shapes=axes, **options)
    assert program is not None
    return program.model_proto


def test_an_operator_without_a_row_is_refused_and_one_row_is_all_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    net, file = Waves(), as_file(Waves())
    monkeypatch.delitem(operators.ONNX, "Sinh")  # which other exporters write too
    monkeypatch.setattr("compress.reading.trace.ELEMENTWISE", None)  # as if torch did not say what it is
    with pytest.raises(UsageError, match=r"no rule for aten\.sinh \(in forward\(\)\)"):
        measure(net, SHAPE)
    assert onnx_count.count(file).unknown == ("Sinh",)
    assert read(net, SHAPE).free == ()
    with pytest.raises(UsageError, match=r"no dense layer: .*; layer is left out: stem:cat:sinh takes it as a whole"):
        Wiring.read(net, SHAPE)

    monkeypatch.setitem(operators.TORCH, "aten.sinh", Operator("same", OVER, onnx="Sinh"))

    macs, memory = 64 * (3 * 4 + 4 * 2) + 6 * 5, 4 * 64 * (4 + 2 + 6)  # the concatenation and its parts at once
    cost, counted = measure(net, SHAPE), onnx_count.count(file)
    assert (cost.macs, cost.memory) == (counted.macs, counted.memory) == (macs, memory)
    assert read(net, SHAPE).free == ("stem", "layer")
    assert read(net, SHAPE).price.cost({"stem": 4, "layer": 2}) == cost
    wiring = Wiring.read(net, SHAPE)
    assert (wiring.layers, wiring.sources) == (("layer",), ("layer", "stem"))
    child = cut(net, wiring.cuts_of(np.array([False])), SHAPE)
    assert measure(child, SHAPE).macs == 64 * 3 * 4 + 4 * 5


# ---- what one table knew and another refused ------------------------------------------------------------------------


def headed(*middle: nn.Module | Callable[[Tensor], Tensor]) -> nn.Module:
    """A net [N, 3, 8, 8] -> [N, 5] that reads its classifier's input through something."""

    class Headed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.fc = nn.Conv2d(3, 6, 1), nn.Linear(6, 5)
            self.parts = nn.ModuleList([part for part in middle if isinstance(part, nn.Module)])

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            for part in self.parts or middle:
                x = part(x)
            return self.fc(x.mean((2, 3)))

    return Headed()


def is_through(net: nn.Module, shaped: bool) -> bool:
    graph = traced(net)
    calls = Calls(graph, probed(graph, SHAPE)[0] if shaped else None)
    readers = [node for node in graph.graph.nodes if node.all_input_nodes and str(node.all_input_nodes[0]) == "stem"]
    return calls.is_through(readers[-1])


ALIKE: dict[str, nn.Module | Callable[[Tensor], Tensor]] = {
    "celu": nn.CELU(),
    "celu in place": nn.CELU(inplace=True),
    "selu": nn.SELU(),
    "one slope for all": nn.PReLU(),
    "a slope for each": nn.PReLU(6),
    "instance norm": nn.InstanceNorm2d(6, affine=True),
    "instance norm with statistics": nn.InstanceNorm2d(6, affine=True, track_running_stats=True),
    "shrink": nn.Hardshrink(),
    "log sigmoid": nn.LogSigmoid(),
    "a mirrored border": nn.ReflectionPad2d(1),
    "a border of ones": nn.ConstantPad2d(1, 1.0),
    "a large kernel": nn.AdaptiveAvgPool2d(1),
    "exp in place": lambda x: x.exp_(),
    "arithmetic": lambda x: (x + 1) * 2,
    "half of the pixels": lambda x: x[:, :, ::2],
    "a function of torch": torch.tanh,
}
UNLIKE: dict[str, nn.Module | Callable[[Tensor], Tensor]] = {
    "softmax": nn.Softmax(1),
    "group norm": nn.GroupNorm(2, 6),
    "another order": lambda x: x.flip(1),
    "other channels": lambda x: torch.roll(x, 1, 1),
    "depthwise": nn.Conv2d(6, 6, 3, groups=6),
}


@pytest.mark.parametrize("shaped", [True, False])
@pytest.mark.parametrize("name", ALIKE)
def test_what_works_on_each_channel_does_so_for_both_who_read(name: str, shaped: bool) -> None:
    net = headed(ALIKE[name])
    assert is_through(net, shaped)
    assert measure(net, SHAPE).macs == 64 * 18 + 30
    assert survey(net, SHAPE).free == ("stem",)


@pytest.mark.parametrize("shaped", [True, False])
@pytest.mark.parametrize("name", UNLIKE)
def test_what_mixes_moves_or_multiplies_is_taken_as_a_whole(name: str, shaped: bool) -> None:
    assert not is_through(headed(UNLIKE[name]), shaped)


def test_a_pool_on_what_is_no_picture_is_not_taken_for_one() -> None:
    net = nn.Sequential(nn.Conv1d(3, 6, 1), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(12, 5))  # it pools channels
    graph = traced(net)
    calls = Calls(graph, probed(graph, (3, 8))[0])
    assert not calls.is_through(next(node for node in graph.graph.nodes if node.target == "1"))
    assert "max_pool2d_with_indices in 1 is not understood" in str(read(net, (3, 8)).spaces["0"].frozen)


def test_a_view_that_says_how_many_channels_there_are_is_taken_as_a_whole() -> None:
    net = headed(lambda x: x.view(x.size(0), 6, -1, 8))
    assert not is_through(net, True)
    assert is_through(headed(lambda x: fn.celu(x)), True)
