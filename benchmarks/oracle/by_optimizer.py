"""onnxruntime's optimizer: what a session writes at its three levels, and what its tool for transformers fuses."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path

import onnx
import onnxruntime as ort
import plain_nets as plain
import torch
import torch_nets as nets
from by_quantizer import from_float
from onnxruntime.quantization import QuantType, quantize_dynamic
from onnxruntime.transformers import optimizer
from table import Make, Truth, counted, folded, parameters

PACKAGES = ("onnxruntime", "torch", "onnx")

LEVELS = ort.GraphOptimizationLevel
BASIC, EXTENDED, ALL = LEVELS.ORT_ENABLE_BASIC, LEVELS.ORT_ENABLE_EXTENDED, LEVELS.ORT_ENABLE_ALL
BERT = ("input_ids", "token_type_ids", "attention_mask")
FUSED = "Fused|BiasGelu|Attention|LayerNormalization|nchwc|com.microsoft"
EITHER = {"MACs": FUSED, "params": FUSED}  # operators of its own: counted, or refused by name
ort.set_default_logger_severity(4)
logging.disable(logging.WARNING)


def session(path: Path, *, write: Callable[[Path], None], level: LEVELS, truth: Callable[[], Truth]) -> Truth:
    """Have a session of a level write down the graph that it would run."""

    def optimize(source: Path) -> None:
        options = ort.SessionOptions()
        options.graph_optimization_level, options.optimized_model_filepath = level, str(path)
        ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])

    from_float(path, write, optimize)
    return truth()


def traced(path: Path, model: torch.nn.Module, inputs: dict[str, torch.Tensor], free: dict[int, str]) -> None:
    axes = {name: free for name in inputs} | {"y": {0: "batch"}}
    names = {"input_names": list(inputs), "output_names": ["y"], "dynamic_axes": axes}
    if isinstance(model, nets.UNet):  # batch norms are left to the optimizer
        names |= {"training": torch.onnx.TrainingMode.PRESERVE, "do_constant_folding": False}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(model, tuple(inputs.values()), path, dynamo=False, opset_version=14, **names)


def unet(path: Path) -> None:
    traced(path, nets.redraw(nets.UNet()), {"x": torch.rand(2, 3, 16, 16)}, {0: "batch"})


def bert(path: Path, free: dict[int, str] | None = None) -> None:
    tokens = {name: torch.ones(2, 12, dtype=torch.int64) for name in BERT}
    traced(path, nets.redraw(nets.Bert()), tokens, free or {0: "batch"})


def unet_truth(exact: bool = True, own: bool = True) -> Truth:
    model = nets.UNet().eval()
    macs, params, how = counted(model, torch.rand(1, 3, 16, 16)), folded(model), "torch's counter; batch norms folded"
    if exact:
        return Truth(macs, params, how, either=EITHER if own else {})
    return Truth(None, None, f"{how}; filters are padded to blocks", never={"MACs": macs - 1, "params": params - 1})


def bert_truth(own: bool = True) -> Truth:
    model = nets.Bert().eval()
    macs = counted(model, *(torch.ones(1, 12, dtype=torch.int64) for _ in BERT))
    return Truth(macs, parameters(model), "torch's counter", either=EITHER if own else {})


def transformer(path: Path, *, half: bool = False, eight: bool = False, free: dict[int, str] | None = None) -> Truth:
    """Attention, embeddings, norms and Gelu become one operator each; then, perhaps, fewer bits."""

    def fuse(source: Path) -> None:
        model = optimizer.optimize_model(str(source), "bert", num_heads=4, hidden_size=32, opt_level=0)
        if half:
            model.convert_float_to_float16()
        model.save_model_to_file(str(path))
        if eight:
            path.replace(source)
            real = {"DefaultTensorType": onnx.TensorProto.FLOAT}  # of what comes out of an operator of its own
            quantize_dynamic(source, path, weight_type=QuantType.QInt8, extra_options=real)

    from_float(path, partial(bert, free=free), fuse)
    truth = bert_truth()
    if not free:
        return truth
    given = tuple(f"{name}=1,12" for name in BERT)
    return Truth(truth.macs, truth.params, truth.how, given, {"MACs": f"words|{FUSED}"}, {"params": FUSED})


def cnn_truth(own: bool = True) -> Truth:
    params = plain.CNN_WEIGHTS + plain.CNN_BIASES
    how = "64 pixels x (16 x 27 + 16 x 9 + 32 x 16) and 32 x 10"
    return Truth(plain.CNN_MACS, params, how, either=EITHER if own else {})


def mlp_truth(own: bool = True) -> Truth:
    params = plain.MLP_WEIGHTS + plain.MLP_BIASES
    return Truth(plain.MLP_MACS, params, "64 x 96 and 96 x 32", either=EITHER if own else {})


FILES: dict[str, Make] = {
    "cnn_basic": partial(session, write=plain.cnn, level=BASIC, truth=partial(cnn_truth, own=False)),
    "cnn_extended": partial(session, write=plain.cnn, level=EXTENDED, truth=cnn_truth),
    "cnn_all": partial(session, write=plain.cnn, level=ALL, truth=cnn_truth),
    "mlp_basic": partial(session, write=plain.mlp, level=BASIC, truth=partial(mlp_truth, own=False)),
    "mlp_extended": partial(session, write=plain.mlp, level=EXTENDED, truth=mlp_truth),
    "unet_basic": partial(session, write=unet, level=BASIC, truth=partial(unet_truth, own=False)),
    "unet_extended": partial(session, write=unet, level=EXTENDED, truth=unet_truth),
    "unet_all": partial(session, write=unet, level=ALL, truth=partial(unet_truth, exact=False)),
    "bert_basic": partial(session, write=bert, level=BASIC, truth=partial(bert_truth, own=False)),
    "bert_extended": partial(session, write=bert, level=EXTENDED, truth=bert_truth),
    "bert_fused": transformer,
    "bert_fused_half": partial(transformer, half=True),
    "bert_fused_eight": partial(transformer, eight=True),
    "bert_fused_words": partial(transformer, free={0: "batch", 1: "words"}),
}
