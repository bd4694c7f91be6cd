"""An ONNX file tells what it costs, and cannot be cut short, edited or lied to unnoticed."""

import math
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import NodeProto, TensorProto
from onnx.helper import make_graph, make_model, make_node, make_opsetid, make_tensor, make_tensor_value_info

from compress.errors import ArtifactError, UsageError
from compress.export.onnx import file as onnx_file

FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64
Shape = Sequence[int | str]


def model(
    nodes: Sequence[NodeProto],
    shape: Shape = ("N", 3, 8, 8),
    weights: Mapping[str, Shape] = {},
    constants: Sequence[TensorProto] = (),
    domains: Sequence[str] = (),
) -> onnx.ModelProto:
    """A network from `x` of this shape to `y`, with weights of these shapes."""
    numbers = [make_tensor(k, FLOAT, s, np.ones(math.prod(s)).tolist()) for k, s in weights.items()]
    ends = [make_tensor_value_info("x", FLOAT, shape)], [make_tensor_value_info("y", FLOAT, None)]
    graph = make_graph(nodes, "net", *ends, initializer=[*numbers, *constants])
    opsets = [make_opsetid("", 20), *(make_opsetid(domain, 1) for domain in domains)]
    net = make_model(graph, ir_version=10, opset_imports=opsets)
    inferred = onnx.shape_inference.infer_shapes(net).graph.output[0]  # a whole file states the shape of its output
    net.graph.output[0].CopyFrom(inferred)
    return net


def integers(name: str, *values: int) -> TensorProto:
    return make_tensor(name, INT64, [len(values)], values)


SMALL = model([make_node("Conv", ["x", "w"], ["y"], name="conv", pads=[1, 1, 1, 1])], weights={"w": (4, 3, 3, 3)})


def naive_conv(size: int, kernel: int, stride: int, pad: int, dilation: int, groups: int, per: tuple[int, int]) -> int:
    """MACs of a square convolution, by walking over every output number and every weight that it meets."""
    macs = 0
    reach = dilation * (kernel - 1)
    starts = range(-pad, size + pad - reach, stride)
    for _ in range(groups * per[1]):
        for _ in [(y, x) for y in starts for x in starts]:
            macs += per[0] * kernel * kernel
    return macs


@settings(max_examples=40)
@given(st.integers(5, 9), st.integers(1, 3), st.integers(1, 3), st.integers(0, 2), st.integers(1, 2), st.integers(1, 3),
       st.tuples(st.integers(1, 3), st.integers(1, 3)))  # fmt: skip
def test_a_convolution_costs_what_a_walk_over_its_outputs_counts(size, kernel, stride, pad, dilation, groups, per):
    options = {"strides": [stride] * 2, "pads": [pad] * 4, "dilations": [dilation] * 2, "group": groups}
    weights = {"w": (groups * per[1], per[0], kernel, kernel)}
    net = model([make_node("Conv", ["x", "w"], ["y"], **options)], ("N", groups * per[0], size, size), weights)
    assert onnx_file.count_file(net).macs == naive_conv(size, kernel, stride, pad, dilation, groups, per)


def recurrent(kind: str, gates: int, directions: int) -> onnx.ModelProto:
    """Six steps of 3 inputs each through 5 hidden units; the steps come first in ONNX, so x [N, 6, 3] is turned."""
    options = {"hidden_size": 5, "direction": "bidirectional" if directions == 2 else "forward"}
    nodes = [make_node("Transpose", ["x"], ["t"], perm=[1, 0, 2]), make_node(kind, ["t", "w", "r"], ["y"], **options)]
    return model(nodes, ("N", 6, 3), {"w": (directions, gates * 5, 3), "r": (directions, gates * 5, 5)})


def one(kind: str, *inputs: str, shape: Shape = ("N", 3, 8, 8), **options: object) -> onnx.ModelProto:
    """One operator; the weights w, b get the shapes given as options of that name."""
    weights = {k: options.pop(k) for k in ("w", "b") if k in options}
    return model([make_node(kind, inputs, ["y"], **options)], shape, weights)


COUNTED = {
    # each of the 4 x 5 x 5 inputs is spread over 3 channels by 2x2 kernels
    "ConvTranspose": (
        one("ConvTranspose", "x", "w", shape=("N", 4, 5, 5), w=(4, 3, 2, 2), strides=[2, 2]),
        100 * 3 * 4,
    ),
    "Gemm": (one("Gemm", "x", "w", "b", shape=("N", 7), w=(5, 7), b=(5,), transB=1), 7 * 5),
    "Gemm, turned": (one("Gemm", "x", "w", shape=("N", 7), w=(1, 5), transA=1), 7 * 1 * 5),
    "MatMul": (one("MatMul", "x", "w", shape=("N", 9, 7), w=(7, 5)), 9 * 7 * 5),
    "MatMul, stacked": (one("MatMul", "x", "x", shape=("N", 3, 6, 6)), 3 * 6 * 6 * 6),
    "MatMul, vector": (one("MatMul", "x", "w", shape=("N", 9, 7), w=(7,)), 9 * 7),
    "Einsum": (one("Einsum", "x", "w", w=(3, 5), equation="bchw,cd->bdhw"), 64 * 3 * 5),
    "Einsum, sum in one": (one("Einsum", "x", "w", w=(3, 5), equation="bchw,cd->bd"), 3 * 5),
    "Einsum, no sum": (one("Einsum", "x", "x", equation="bchw,bchw->bchw"), 0),
    "Einsum, one operand": (one("Einsum", "x", equation="bchw->bwhc"), 0),
    "LSTM": (recurrent("LSTM", 4, 2), 6 * 2 * 4 * 5 * (3 + 5)),
    "GRU": (recurrent("GRU", 3, 1), 6 * 3 * 5 * (3 + 5)),
    "RNN": (recurrent("RNN", 1, 1), 6 * 5 * (3 + 5)),
    "Relu": (one("Relu", "x"), 0),
}


@pytest.mark.parametrize("name", COUNTED)
def test_each_counted_operator_costs_its_formula(name):
    net, macs = COUNTED[name]
    cost = onnx_file.count_file(net)
    assert (cost.macs, cost.unknown) == (macs, ())


def test_a_symbolic_batch_counts_as_one_input():
    cost = onnx_file.count_file(SMALL)
    assert (cost.macs, cost.params, cost.input, cost.output) == (4 * 64 * 27, 4 * 27, (1, 3, 8, 8), (1, 4, 8, 8))


def test_a_batch_fixed_above_one_is_refused():
    assert "'x' is fixed at 8" in onnx_file.count_file(one("Relu", "x", shape=(8, 3, 4, 4))).why


def test_axes_of_no_known_size_are_refused_by_name_and_params_are_counted():
    cost = onnx_file.count_file(one("Conv", "x", "w", shape=("N", 3, "height", "width"), w=(4, 3, 3, 3)))
    assert "axis 2 of input 'x' ('height') has no size" in cost.why
    assert (cost.params, cost.memory) == (4 * 27, None)


def test_contradictory_shapes_are_refused():
    cost = onnx_file.count_file(one("MatMul", "x", "w", shape=("N", 9, 7), w=(6, 5)))
    assert "cannot be inferred" in cost.why


def test_shapes_that_the_graph_computes_are_followed():
    """Flatten as exporters write it: the batch read off the input, the rest multiplied where onnx gives up."""
    nodes = [
        make_node("Shape", ["x"], ["batch"], end=1),
        make_node("Shape", ["x"], ["rest"], start=1),
        make_node("ReduceProd", ["rest"], ["flat"], keepdims=1),
        make_node("Concat", ["batch", "flat"], ["shape"], axis=0),
        make_node("Reshape", ["x", "shape"], ["r"]),
        make_node("MatMul", ["r", "w"], ["y"]),
    ]
    cost = onnx_file.count_file(model(nodes, weights={"w": (192, 10)}))
    assert (cost.macs, cost.params, cost.output) == (192 * 10, 192 * 10, (1, 10))


def test_what_a_file_says_about_its_inner_shapes_is_not_believed():
    nodes = [make_node("Conv", ["x", "w"], ["c"]), make_node("Relu", ["c"], ["y"])]
    net = model(nodes, weights={"w": (4, 3, 3, 3)})
    net.graph.value_info.append(make_tensor_value_info("c", FLOAT, (1, 4, 1, 1)))
    assert onnx_file.count_file(net).macs == 4 * 36 * 27


UNKNOWN = {
    "mine::Magic": model([make_node("Magic", ["x"], ["y"], domain="mine")], domains=["mine"]),
    "GridFFT": one("GridFFT", "x"),
    "Einsum 'bchw,bxhw->bz'": one("Einsum", "x", "x", equation="bchw,bxhw->bz"),
    "Scan": model([make_node("Scan", ["x"], ["y"], body=SMALL.graph, num_scan_inputs=1)]),
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_an_operator_of_unknown_cost_is_named_never_counted_as_zero(name):
    assert onnx_file.count_file(UNKNOWN[name]).unknown == (name,)


def test_behind_an_unknown_operator_the_count_is_a_lower_bound():
    nodes = [
        make_node("Conv", ["x", "w"], ["c"], name="known"),
        make_node("Magic", ["c"], ["m"], domain="mine"),
        make_node("Conv", ["m", "w"], ["y"], name="of unknown shape"),
    ]
    cost = onnx_file.count_file(model(nodes, weights={"w": (3, 3, 3, 3)}, domains=["mine"]))
    assert (cost.macs, cost.unknown) == (3 * 36 * 27, ("mine::Magic",))


def test_weights_inside_the_branches_of_an_operator_are_params():
    branches = {"then_branch": COUNTED["Gemm"][0].graph, "else_branch": SMALL.graph}
    assert onnx_file.count_file(model([make_node("If", ["x"], ["y"], **branches)])).params == (7 * 5 + 5) + 4 * 27


def test_params_are_the_numbers_in_weights_and_nothing_else():
    nodes = [
        make_node("BatchNormalization", ["x", "scale", "bias", "mean", "variance"], ["n"]),
        make_node("Reshape", ["n", "flat"], ["r"]),
        make_node("Constant", [], ["k"], value=make_tensor("", FLOAT, [192, 5], [0.5] * 960)),
        make_node("DequantizeLinear", ["q", "step"], ["d"]),
        make_node("MatMul", ["r", "k"], ["m"]),
        make_node("MatMul", ["m", "d"], ["y"]),
    ]
    quantised = make_tensor("q", TensorProto.INT8, [5, 2], range(10))
    step = make_tensor("step", FLOAT, [], [0.1])
    vectors = dict.fromkeys(("scale", "bias", "mean", "variance"), (3,))
    net = model(nodes, weights=vectors, constants=[integers("flat", 1, -1), quantised, step])
    # batch norm's scale and bias, the Constant's value, the integers that stand for weights
    assert onnx_file.count_file(net).params == 2 * 3 + 192 * 5 + 5 * 2


def dirty() -> onnx.ModelProto:
    """The small network, with everything that exporters leave behind."""
    net = onnx.ModelProto()
    net.CopyFrom(SMALL)
    net.producer_name, net.producer_version, net.doc_string = "pytorch", "2.15", "exported from /home/me/net.py"
    net.graph.doc_string = "/home/me"
    for thing in (net, net.graph, net.graph.node[0], net.graph.initializer[0], net.graph.input[0]):
        thing.metadata_props.add(key="stack_trace", value='File "/home/me/net.py", line 8')
    net.graph.node[0].doc_string = "/home/me"
    net.graph.node[0].attribute[0].doc_string = "/home/me"
    net.graph.value_info.append(make_tensor_value_info("c", FLOAT, (1, 4, 1, 1)))
    return net


def test_cleaning_leaves_the_network_and_nothing_of_the_machine():
    net = onnx_file.clean(dirty())
    assert b"/home/me" not in net.SerializeToString()
    assert b"pytorch" not in net.SerializeToString()
    assert not net.graph.value_info
    assert onnx_file.count_file(net).macs == onnx_file.count_file(SMALL).macs
    assert net.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"


METADATA = {"zeta": [1, 2.5], "claims": {"macs": 3, "b": None, "a": "é"}}


def write(path: Path, net: onnx.ModelProto = SMALL) -> Path:
    onnx_file.write_sealed(onnx_file.stamp(onnx_file.clean(net), METADATA), path)
    onnx_file.read(path)  # whole to begin with
    return path


def test_equal_networks_give_equal_bytes(tmp_path):
    one, two = write(tmp_path / "one.onnx"), write(tmp_path / "two.onnx", dirty())
    assert one.read_bytes() == two.read_bytes()


def test_metadata_comes_back_and_its_size_is_known_before(tmp_path):
    path = write(tmp_path / "net.onnx")
    net = onnx_file.read(path)
    assert onnx_file.metadata(net) == METADATA
    keys = [entry.key for entry in net.metadata_props]
    assert keys == ["compress.claims", "compress.zeta", "compress.seal"]
    assert path.stat().st_size == onnx_file.clean(SMALL).ByteSize() + onnx_file.metadata_bytes(METADATA)
    assert onnx_file.count_file(path).bytes == path.stat().st_size


def test_metadata_holds_no_nan():
    with pytest.raises(ValueError, match="not JSON compliant"):
        onnx_file.stamp(SMALL, {"drift": math.nan})


def test_a_topic_that_is_there_twice_is_refused_whichever_a_reader_takes():
    net = onnx_file.stamp(SMALL, {"claims": 1})
    net.metadata_props.add(key="compress.claims", value="2")
    with pytest.raises(ArtifactError, match=r"'compress\.claims' is there twice"):
        onnx_file.metadata(net)


def test_more_topics_than_anybody_writes_are_refused():
    assert len(onnx_file.metadata(onnx_file.stamp(SMALL, {f"t{n}": n for n in range(64)}))) == 64
    with pytest.raises(ArtifactError, match="65 entries of compress, of at most 64"):
        onnx_file.metadata(onnx_file.stamp(SMALL, {f"t{n}": n for n in range(65)}))


def test_metadata_that_is_not_json_is_refused():
    net = onnx_file.stamp(SMALL, {})
    net.metadata_props.add(key="compress.claims", value="{macs")
    with pytest.raises(ArtifactError, match=r"compress\.claims"):
        onnx_file.metadata(net)


def test_a_file_cut_short_anywhere_is_refused(tmp_path):
    data = write(tmp_path / "net.onnx").read_bytes()
    for length in range(len(data)):
        (tmp_path / "cut.onnx").write_bytes(data[:length])
        with pytest.raises(ArtifactError):
            onnx_file.read(tmp_path / "cut.onnx")


def test_a_file_with_any_byte_changed_is_refused(tmp_path):
    data = write(tmp_path / "net.onnx").read_bytes()
    for at in range(0, len(data), 3):
        (tmp_path / "bad.onnx").write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
        with pytest.raises(ArtifactError):
            onnx_file.read(tmp_path / "bad.onnx")


def test_a_file_edited_and_saved_again_is_refused(tmp_path):
    net = onnx_file.read(write(tmp_path / "net.onnx"))
    net.metadata_props[0].value = net.metadata_props[0].value.replace("3", "2")
    onnx.save(net, tmp_path / "edited.onnx")
    with pytest.raises(ArtifactError, match="changed or cut short"):
        onnx_file.read(tmp_path / "edited.onnx")


OUTSIDE = onnx.ModelProto()
OUTSIDE.CopyFrom(SMALL)
OUTSIDE.graph.initializer[0].ClearField("float_data")
OUTSIDE.graph.initializer[0].data_location = TensorProto.EXTERNAL
OUTSIDE.graph.initializer[0].external_data.add(key="location", value="weights.bin")
HOLLOW = onnx.ModelProto()
HOLLOW.CopyFrom(SMALL)
HOLLOW.graph.initializer[0].ClearField("float_data")
FOREIGN = {
    "empty": (b"", "is empty"),
    "a picture": (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "not an ONNX model"),
    "text": (b"not a network\n", "not an ONNX model"),
    "a model without a graph": (onnx.ModelProto(ir_version=10).SerializeToString(), "no ONNX graph"),
    "weights elsewhere, and not there": (OUTSIDE.SerializeToString(), "is missing"),
    "a name that is no text": (SMALL.SerializeToString().replace(b"conv", b"c\xff\xfev"), "no UTF-8"),
    "weights without numbers": (HOLLOW.SerializeToString(), "not a valid ONNX model"),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_what_is_no_whole_model_is_refused(name, tmp_path):
    data, why = FOREIGN[name]
    path = tmp_path / "net.onnx"
    path.write_bytes(data)
    with pytest.raises(ArtifactError, match=why):
        onnx_file.count_file(path)


def test_files_of_other_tools_are_read_without_a_seal(tmp_path):
    onnx.save(SMALL, tmp_path / "other.onnx")
    assert onnx_file.metadata(onnx_file.read(tmp_path / "other.onnx")) == {}


def test_a_missing_file_is_a_mistake_of_the_caller(tmp_path):
    with pytest.raises(UsageError, match="no such file"):
        onnx_file.read(tmp_path / "none.onnx")


def test_baked_preprocessing_scales_and_shifts_each_channel_and_costs_nothing():
    from onnx.reference import ReferenceEvaluator

    net = onnx_file.bake(one("Relu", "x"), (2, 3, 4), (-1, 0, 1))
    x = np.random.default_rng(0).normal(size=(2, 3, 8, 8)).astype(np.float32)
    per_channel = np.array([2, 3, 4]).reshape(1, 3, 1, 1), np.array([-1, 0, 1]).reshape(1, 3, 1, 1)
    expected = np.maximum(x * per_channel[0] + per_channel[1], 0)
    np.testing.assert_allclose(ReferenceEvaluator(net).run(None, {"x": x})[0], expected, rtol=1e-6)
    cost = onnx_file.count_file(net)
    assert (cost.macs, cost.params, cost.unknown) == (0, 0, ())
    with pytest.raises(ArtifactError, match="baked in"):
        onnx_file.bake(net, (1, 1, 1), (0, 0, 0))


def test_weights_cannot_hide_under_the_names_of_preprocessing():
    net = one("MatMul", "x", "preprocessing.scale", shape=("N", 9, 7))
    net.graph.initializer.append(make_tensor("preprocessing.scale", FLOAT, (7, 5), [1.0] * 35))
    assert onnx_file.count_file(net).params == 35


def test_counting_needs_neither_torch_nor_onnxruntime(tmp_path):
    code = (
        "import sys; from compress.export.onnx import file as onnx_file; print(onnx_file.count_file(sys.argv[1]).macs);"
        "assert not {'torch', 'onnxruntime'} & set(sys.modules)"
    )
    command = [sys.executable, "-c", code, str(write(tmp_path / "net.onnx"))]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2])
    assert int(done.stdout) == 4 * 64 * 27


def beside(folder: Path) -> Path:
    """A matrix product whose weights, and the shape that it is brought to, lie in another file."""
    nodes = [make_node("Reshape", ["x", "to"], ["r"]), make_node("MatMul", ["r", "w"], ["y"])]
    numbers = {"to": np.array([-1, 8], np.int64), "w": np.ones((8, 5), np.float32)}
    net = model(nodes, ("N", 2, 4), constants=[onnx.numpy_helper.from_array(a, n) for n, a in numbers.items()])
    path = folder / "net.onnx"
    onnx.save(net, path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    return path


def test_weights_in_a_file_beside_count_and_so_do_its_bytes(tmp_path):
    path = beside(tmp_path)
    size = (tmp_path / "weights.bin").stat().st_size
    assert size >= 4 * 40 + 8 * 2
    cost = onnx_file.count_file(path)
    assert (cost.why, cost.macs, cost.params, cost.bytes) == ("", 40, 40, path.stat().st_size + size)


def test_weights_beside_that_are_too_short_or_elsewhere_are_refused(tmp_path):
    path = beside(tmp_path)
    whole = (tmp_path / "weights.bin").read_bytes()
    (tmp_path / "weights.bin").write_bytes(whole[:-1])
    with pytest.raises(ArtifactError, match=r"'weights\.bin', which has .* copy it beside the model"):
        onnx_file.count_file(path)
    (tmp_path / "weights.bin").write_bytes(whole)
    for place in ("../weights.bin", "/etc/hostname", "", "a" * 5000, "nul\0l"):
        net = onnx.load(path, load_external_data=False)
        for tensor in net.graph.initializer:
            tensor.external_data[0].value = place
        (tmp_path / "other.onnx").write_bytes(net.SerializeToString())
        with pytest.raises(ArtifactError):
            onnx_file.count_file(tmp_path / "other.onnx")


@pytest.mark.parametrize(("dims", "size"), [([8, 6], 160), ([8, 5], 164), ([-8, -5], 160), ([2**40, 2**40], 160)])
def test_a_tensor_that_says_more_or_less_than_it_holds_is_refused(dims, size, tmp_path):
    net = model([make_node("MatMul", ["x", "w"], ["y"])], ("N", 8), constants=[onnx.numpy_helper.from_array(
        np.ones((8, 5), np.float32), "w")])  # fmt: skip
    net.graph.initializer[0].dims[:] = dims
    net.graph.initializer[0].raw_data = bytes(size)
    (tmp_path / "net.onnx").write_bytes(net.SerializeToString())
    with pytest.raises(ArtifactError, match="not a valid ONNX model"):
        onnx_file.count_file(tmp_path / "net.onnx")


def test_a_file_that_keeps_a_weight_elsewhere_is_checked_like_any_other(tmp_path):
    net = onnx.load(beside(tmp_path), load_external_data=False)
    net.graph.node.extend([make_node("Relu", ["b"], ["a"]), make_node("Relu", ["a"], ["b"])])  # a circle
    (tmp_path / "circle.onnx").write_bytes(net.SerializeToString())
    with pytest.raises(ArtifactError, match="not a valid ONNX model"):
        onnx_file.read(tmp_path / "circle.onnx")


def test_what_onnxruntime_runs_and_onnx_has_no_name_for_is_read(tmp_path):
    nodes = [make_node("SimplifiedLayerNormalization", ["x", "s"], ["n"]), make_node("MatMul", ["n", "w"], ["y"])]
    net = model(nodes, ("N", 8), weights={"s": (8,), "w": (8, 5)})
    net.graph.output[0].type.tensor_type.ClearField("shape")
    (tmp_path / "net.onnx").write_bytes(net.SerializeToString())
    cost = onnx_file.count_file(tmp_path / "net.onnx")
    assert (cost.why, cost.macs, cost.params) == ("", 40, 48)
