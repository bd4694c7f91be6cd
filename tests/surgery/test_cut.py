"""Masked, cut, built again and exported, a network without some of its connections computes the same."""

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import torch.nn.functional as fn
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from compress import models
from compress.budget.limits import Budget
from compress.errors import ArtifactError, UsageError
from compress.export.artifact import contiguous, save_models
from compress.export.parts import Preprocessing
from compress.export.weights import load
from compress.reading.graph import read
from compress.reading.measure import measure
from compress.surgery.connections import Bools, Masks, Wiring, cut, cuts_in, merged, rewire
from compress.surgery.finalize import finalize
from compress.surgery.structure import Structure
from compress.surgery.surgeon import Surgeon
from compress.surgery.survey import survey

SHAPE = (3, 8, 8)
ARGS: dict[str, dict[str, Any]] = {
    "basic": {"depths": [3, 2], "growth": 3, "init": 4, "classes": 5},
    "bottleneck": {"depths": [2, 1, 2], "growth": 3, "init": 6, "bottleneck": 5, "shrink": 2, "classes": 5},
    "longer": {"depths": [4, 3], "growth": 2, "init": 3, "classes": 4},
    "narrower": {"depths": [3, 2, 2], "growth": 2, "init": 4, "bottleneck": 3, "shrink": 2, "classes": 4},
}


def trained(model: nn.Module) -> nn.Module:
    """Numbers as training leaves them: no norm is the identity."""
    draws = torch.Generator().manual_seed(0)
    for name, tensor in model.state_dict().items():
        if tensor.dim() == 1:
            spread = torch.rand(tensor.shape, generator=draws)
            tensor.copy_(spread + 0.5 if name.endswith(("weight", "var")) else spread - 0.5)
    return model.eval()


def images(count: int = 3, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(count, *SHAPE, generator=torch.Generator().manual_seed(1), dtype=dtype)


def gap(a: Tensor, b: Tensor) -> float:
    a, b = a.detach(), b.detach()
    return float((a - b).abs().max()) / max(1.0, float(a.abs().max()))


# ---- against an oracle that knows nothing of graphs ----------------------------------------------------------------


def pruned(model: Any, live: dict[str, list[str]], x: Tensor) -> Tensor:
    """What a DenseNet of ours computes if a layer sums up what its columns make of each source that it still reads."""
    features = dict(model.features.named_children())
    values: dict[str, Tensor] = {"features.conv0": features["conv0"](x)}
    block = ["features.conv0"]
    for name, part in features.items():
        path = f"features.{name}"
        if name.startswith("denseblock"):
            widths = {source: values[source].shape[1] for source in block}
            for key, layer in part.items():
                root = f"{path}.{key}.{'conv2' if hasattr(layer, 'conv2') else 'conv1'}"
                widths[root] = (layer.conv2 if hasattr(layer, "conv2") else layer.conv1).out_channels
                if live[root]:
                    y = total(layer.norm1, layer.conv1, values, widths, live[root])
                    values[root] = layer.conv2(layer.norm2(y).relu()) if hasattr(layer, "conv2") else y
                block.append(root)
        elif name.startswith("transition"):
            y = total(part.norm, part.conv, values, widths, [source for source in block if source in values])
            block = [f"{path}.conv"]
            values = {block[0]: part.pool(y)}
        elif name.startswith("norm"):
            alive = [source for source in block if source in values]
            return total(part, model.classifier, values, widths, alive)
    raise AssertionError


def total(norm: Any, reader: Any, values: dict[str, Tensor], widths: dict[str, int],
          sources: list[str]) -> Tensor:  # fmt: skip
    result: Tensor | None = None
    start = 0
    for source, width in widths.items():
        own = slice(start, start := start + width)
        if source in sources and own.stop <= norm.num_features:
            y = fn.batch_norm(
                values[source], norm.running_mean[own], norm.running_var[own], norm.weight[own], norm.bias[own]
            ).relu()
            linear = isinstance(reader, nn.Linear)
            y = fn.linear(y.mean((2, 3)), reader.weight[:, own]) if linear else fn.conv2d(
                y, reader.weight[:, own], padding=reader.padding
            )  # fmt: skip
            result = y if result is None else result + y
    assert result is not None
    return result if reader.bias is None else result + reader.bias


NETS = {name: trained(models.densenet(**args)).double() for name, args in ARGS.items()}
WIRINGS = {name: Wiring.read(net, SHAPE) for name, net in NETS.items()}


MASKS = {name: Masks(net, WIRINGS[name]) for name, net in NETS.items()}


@settings(max_examples=1000)
@given(name=st.sampled_from(["longer", "narrower"]), number=st.integers(0, 2**16 - 1))
def test_a_masked_net_computes_what_its_live_connections_sum_up_to(name: str, number: int) -> None:
    """With dead layers and empty blocks among the masks."""
    wiring, net = WIRINGS[name], NETS[name]
    edges = len(wiring.full)
    mask = np.array([number >> bit & 1 for bit in range(edges)], dtype=bool)
    live: dict[str, list[str]] = {layer: [] for layer in wiring.layers}
    for layer, source, on in zip(wiring.edge_layer, wiring.edge_source, mask, strict=True):
        if on and (source >= len(wiring.layers) or live[wiring.sources[source]]):
            live[wiring.layers[layer]].append(wiring.sources[source])
    MASKS[name].set(mask)
    with torch.no_grad():
        assert gap(net(images()), pruned(net, live, images())) <= 1e-12


def children(wiring: Wiring) -> Bools:
    """Every child there is, once."""
    edges = len(wiring.full)
    masks = (np.arange(2**edges)[:, None] >> np.arange(edges) & 1).astype(bool)
    all_of_them: Bools = np.unique(wiring.settle(masks), axis=0)
    return all_of_them


@pytest.mark.parametrize("bottleneck", [0, 3])
def test_every_child_is_the_same_masked_cut_and_built_again(bottleneck: int) -> None:
    """In evaluation and, by the statistics of the batch, in training."""
    args = {"depths": [2, 1], "growth": 2, "init": 3, "bottleneck": bottleneck, "classes": 4}
    model = trained(models.densenet(**args))
    wiring = Wiring.read(model, SHAPE)
    masks = Masks(model, wiring)
    x = images()
    for mask in children(wiring):
        child = cut(model, wiring.cuts_of(mask), SHAPE)
        again = rebuilt(child, args)
        assert wiring.costs(mask)[0].tolist() == [getattr(measure(child, SHAPE), n) for n in ("params", "macs", "thop")]
        masks.set(mask)
        with torch.no_grad():
            assert gap(model(x.float()), child(x.float())) <= 1e-5
            for training in (False, True):
                nets = [copy.deepcopy(net).double().train(training) for net in (model, child, again)]
                masked, compact, fresh = (net(x) for net in nets)
                assert gap(masked, compact) <= 1e-12
                assert torch.equal(compact, fresh)


def rebuilt(child: nn.Module, args: dict[str, Any]) -> nn.Module:
    """The network that its factory, its cuts and its shapes describe, through JSON, with the same numbers."""
    stored = json.loads(json.dumps(Structure.read(child, "compress.models:densenet", args).to_json()))
    shapes = {name: tuple(tensor.shape) for name, tensor in child.state_dict().items()}
    cuts = {layer: tuple(gone) for layer, gone in stored["cuts"]}
    again = Structure(stored["factory"], stored["args"], shapes, cuts=cuts).build()
    again.load_state_dict(child.state_dict())
    return again.train(child.training)


def test_a_cut_net_holds_nothing_of_what_is_gone() -> None:
    model, wiring = NETS["bottleneck"], WIRINGS["bottleneck"]
    child = cut(model, wiring.cuts_of(~wiring.full), SHAPE)
    names = {name.split(".")[1] for name in child.state_dict() if name.startswith("features.")}
    assert names == {"conv0", "norm4", "transition1", "transition2"}
    assert [node.name for node in child.graph.nodes if "cat" in node.name] == []
    assert child.features.transition1.norm.num_features == child.features.transition1.conv.in_channels == 6
    mask = wiring.full
    mask[0] = False  # the first layer's only source: it is dead, and the second reads one source only
    child = cut(model, wiring.cuts_of(mask), SHAPE)
    cats = [len(node.args[0]) for node in child.graph.nodes if "cat" in node.name]
    assert cats == [2, 2, 2, 3]  # two transitions, the second layer of the last block, the last norm
    assert "features.denseblock1.denselayer1.conv1.weight" not in child.state_dict()


def test_cutting_leaves_the_model_itself_alone() -> None:
    model = trained(models.densenet(**ARGS["basic"]))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    wiring = Wiring.read(model, SHAPE)
    child = cut(model.train(), wiring.cuts_of(some_mask(wiring)), SHAPE)
    assert model.training
    assert child.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert not {id(p) for p in model.parameters()} & {id(p) for p in child.parameters()}


def some_mask(wiring: Wiring, seed: int = 0, share: float = 0.6) -> Bools:
    return np.random.default_rng(seed).random(len(wiring.full)) < share


def test_widths_and_cuts_change_in_any_order() -> None:
    """A net that was widened and narrowed is cut; the cut net is widened, cut again, and built again."""
    args = ARGS["basic"]
    model = trained(models.densenet(**args))
    surgeon = Surgeon(model, survey(model, SHAPE))
    surgeon.widen("features.denseblock1.denselayer2.conv1", 2)
    surgeon.narrow("features.conv0", [0, 1, 3])
    wiring = Wiring.read(model, SHAPE)
    mask = some_mask(wiring, 1)
    once = cut(model, wiring.cuts_of(mask), SHAPE)
    assert wiring.costs(mask)[0].tolist()[:2] == [measure(once, SHAPE).params, measure(once, SHAPE).macs]
    surgeon = Surgeon(once, survey(once, SHAPE))
    assert "features.transition1.conv" in surgeon.graph.free
    surgeon.widen("features.transition1.conv", 3)
    second = Wiring.read(once, SHAPE)
    assert set(second.layers) == {wiring.layers[n] for n in np.flatnonzero(wiring.alive(wiring.settle(mask))[0])}
    less = second.full
    less[-1] = False
    twice = cut(once, second.cuts_of(less), SHAPE)
    assert cuts_in(twice) == merged(wiring.cuts_of(mask), second.cuts_of(less))
    assert gap(twice.double()(images()), rebuilt(twice, args).double()(images())) == 0
    masks = Masks(once, second)
    masks.set(less)
    assert gap(once.double()(images()), twice(images())) <= 1e-12
    assert cuts_in(copy.deepcopy(twice)) == cuts_in(twice)
    assert cuts_in(cut(twice, cuts_in(once), SHAPE)) == cuts_in(twice)  # what is cut already may be said again


@pytest.mark.parametrize("share", [0.6, 0.0])
def test_a_cut_net_is_finalized_exported_and_loaded_like_any_other(tmp_path: Path, share: float) -> None:
    model, args = trained(models.densenet(**ARGS["bottleneck"])), ARGS["bottleneck"]
    wiring = Wiring.read(model, SHAPE)
    child = cut(model, wiring.cuts_of(some_mask(wiring, share=share)), SHAPE)
    structure = Structure.read(child, "compress.models:densenet", args)
    compact = finalize(child, SHAPE, structure, [images(4).float()])
    assert compact.structure.cuts == structure.cuts
    preprocessing = Preprocessing.of_inputs([SHAPE], mean=[0.5] * 3, std=[0.25] * 3, classes="abcde", baked=False)
    network, budget = contiguous(compact.model), Budget.parse("1GMACs")
    draft, notes = save_models(
        network, compact, tmp_path, budget=budget, base=compact.cost, preprocessing=preprocessing
    )
    assert notes == []
    draft.sealed(tmp_path, {})
    x = images(4).float()
    expected = network(x).detach()
    again = load(tmp_path)
    assert cuts_in(again) == cuts_in(child)
    assert torch.equal(again(x), expected)
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    assert gap(expected, torch.from_numpy(session.run(None, {"images": x.numpy()})[0])) <= 1e-5
    assert gap(expected, torch.export.load(tmp_path / "model.pt2").module()(x)) <= 1e-5
    graph = onnx.load(tmp_path / "model.onnx").graph
    joined = sorted(len(node.input) for node in graph.node if node.op_type == "Concat")
    assert joined == sorted(len(node.args[0]) for node in child.graph.nodes if node.target is torch.cat)
    assert {node.op_type for node in graph.node}.isdisjoint({"Gather", "Slice", "Split", "Mul"})
    text = (tmp_path / "model.py").read_text(encoding="utf-8")
    assert text.count("torch.cat(") == len(joined)
    for path in tmp_path.iterdir():
        assert not any(word in path.read_bytes() for word in (b"eval_with_key", b"Rewired", b"GraphModule")), path.name


def test_a_file_with_cuts_that_its_factory_does_not_know_is_refused() -> None:
    cuts = {"features.denseblock1.denselayer1.conv1": ("nowhere",)}
    with pytest.raises(ArtifactError, match=r"does not build the stored network: .*does not read 'nowhere'"):
        Structure("compress.models:densenet", ARGS["basic"], {}, cuts=cuts).build()


@pytest.mark.parametrize(
    ("cuts", "why"),
    [
        ({"nobody": ["features.conv0"]}, "no dense layer named 'nobody'; the layers are features.denseblock1"),
        ({"features.denseblock1.denselayer2.conv1": ["features.relu3"]}, "does not read 'features.relu3'; it reads"),
    ],
)
def test_unknown_connections_are_refused(cuts: dict[str, list[str]], why: str) -> None:
    with pytest.raises(UsageError, match=why):
        cut(NETS["basic"], cuts, SHAPE)
    with pytest.raises(UsageError, match=why):
        rewire(models.densenet(**ARGS["basic"]), cuts)


# ---- masks on a live model ------------------------------------------------------------------------------------------


def test_masks_can_change_between_a_forward_and_its_backward_pass() -> None:
    model = trained(models.densenet(**ARGS["basic"])).double()
    wiring = Wiring.read(model, SHAPE)
    masks = Masks(model, wiring)
    grads = []
    for order in (False, True):
        model.zero_grad()
        outputs = []
        for seed in (0, 1):
            masks.set(some_mask(wiring, seed))
            outputs.append(model(images()).square().sum())
            if not order:
                outputs[-1].backward()
        if order:
            masks.set(None)
            sum(outputs).backward()
        grads.append([parameter.grad.clone() for parameter in model.parameters()])
    assert all(torch.allclose(a, b, rtol=1e-10, atol=1e-12) for a, b in zip(*grads, strict=True))


def test_what_is_masked_learns_nothing() -> None:
    model = trained(models.densenet(**ARGS["basic"]))
    wiring = Wiring.read(model, SHAPE)
    masks = Masks(model, wiring)
    mask = wiring.full
    mask[2] = False  # the second layer does not read the first
    masks.set(mask)
    model(images(dtype=torch.float32)).square().sum().backward()
    grad = model.get_parameter("features.denseblock1.denselayer2.conv1.weight").grad
    assert grad is not None
    assert (grad[:, 4:7] == 0).all()
    assert (grad[:, :4] != 0).any()


def test_masks_come_off_without_a_trace_and_do_not_show_on_paper() -> None:
    model = trained(models.densenet(**ARGS["basic"]))
    wiring = Wiring.read(model, SHAPE)
    x = images(dtype=torch.float32)
    before, price, graph = model(x), measure(model, SHAPE), read(model, SHAPE)
    masks = Masks(model, wiring)
    masks.set(~wiring.full)
    assert measure(model, SHAPE) == price  # what is priced and resized is the whole net
    assert graph.alike(read(model, SHAPE))
    child = cut(model, wiring.cuts_of(~wiring.full), SHAPE)
    assert gap(model(x), child(x)) <= 1e-5
    masks.set(wiring.full)
    assert torch.equal(child(x), cut(model, wiring.cuts_of(~wiring.full), SHAPE)(x))  # its copy is not masked
    assert torch.equal(model(x), before)
    masks.set(~wiring.full)
    masks.remove()
    assert torch.equal(model(x), before)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert Wiring.read(model, SHAPE).costs(wiring.full).tolist() == wiring.costs(wiring.full).tolist()


def test_masks_work_in_bfloat16_and_channels_last() -> None:
    model = trained(models.densenet(**ARGS["bottleneck"])).to(memory_format=torch.channels_last)
    wiring = Wiring.read(model, SHAPE)
    masks = Masks(model, wiring)
    mask = some_mask(wiring)
    masks.set(mask)
    child = cut(model, wiring.cuts_of(mask), SHAPE).to(memory_format=torch.channels_last)
    x = images(dtype=torch.float32).contiguous(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16):
        assert gap(model(x).float(), child(x).float()) < 0.05
        model(x).sum().backward()
    assert gap(model(x), child(x)) <= 1e-5


def test_a_mask_of_another_network_is_refused() -> None:
    with pytest.raises(ValueError, match="the network has 9 edges"):
        WIRINGS["basic"].settle(np.ones(7, dtype=bool))
