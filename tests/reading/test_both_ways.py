"""A network read as operators that run, and as the calls of its Python code, is one network.

The networks are those of `benchmarks/coverage.py`, on device meta: shapes are all that either look needs.
"""

import ast
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from compress.errors import UsageError
from compress.reading.calls import Calls, probed, traced
from compress.reading.count import Tally
from compress.reading.flow import Flow
from compress.reading.through import passed
from compress.reading.trace import Trace, trace

ROOT = Path(__file__).parents[2]
TRAINING = "forward\\(\\) makes other calls in training than in evaluation"
UNTRACED = {"googlenet": TRAINING, "inception_v3": TRAINING}  # by torch.fx, and why: they have auxiliary heads

SIZES = {"vit_b_16": 224, "inception_v3": 299}  # of pictures, for those that take no small ones


def listed() -> list[str]:
    """The networks of the coverage table."""
    tree = ast.parse((ROOT / "benchmarks" / "coverage.py").read_text(encoding="utf-8"))
    lists = {node.targets[0].id: node.value for node in tree.body if isinstance(node, ast.Assign)}  # type: ignore[attr-defined]
    return [name for key in ("CLASSIFIERS", "SEGMENTERS", "TIMM") for name in ast.literal_eval(lists[key])]


def made(name: str) -> tuple[nn.Module, tuple[int, ...]]:
    with torch.device("cpu" if name.startswith("regnet") else "meta"):  # that one reckons its widths with tensors
        if name.startswith("timm:"):
            timm: Any = pytest.importorskip("timm")
            return timm.create_model(name[5:], pretrained=False), tuple(timm.get_pretrained_cfg(name[5:]).input_size)
        zoo: Any = pytest.importorskip("torchvision").models
        size = SIZES.get(name, 64)
        if name in ("fcn_resnet50", "deeplabv3_resnet50"):
            return getattr(zoo.segmentation, name)(weights=None, weights_backbone=None), (3, size, size)
        options = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
        return getattr(zoo, name)(weights=None, **options), (3, size, size)


def alone(ran: Trace) -> dict[str, bool]:
    """Whether a module works on each channel by itself, of those without parts that are called once, as they ran."""
    names = [visit.name for visit in ran.visits]
    once = [
        v for v in ran.visits if names.count(v.name) == 1 and len(v.inputs) == 1 and isinstance(v.inputs[0], Tensor)
    ]
    calls = {v.name: [call for call in ran.calls if call.module == v.name] for v in once}
    return {v.name: passed(v.module, calls[v.name], v.inputs[0], v.output) is not None for v in once}


@pytest.mark.parametrize("name", listed())
def test_both_looks_agree(name: str) -> None:
    model, shape = made(name)
    ran = trace(model, shape)
    if name in UNTRACED:
        with pytest.raises(UsageError, match=UNTRACED[name]):
            traced(model)
        return
    net = traced(model)
    shapes, counts = probed(net, shape)
    calls = Calls(net, shapes)
    modules = {str(node.target): node for node in net.graph.nodes if node.op == "call_module"}

    cost = Tally(ran).price().cost({})
    assert tuple(sum(each) for each in zip(*counts.values(), strict=True)) == (cost.macs, cost.thop)
    read = {id(tensor) for call in ran.calls for tensor in call.tensors}
    used = {id(tensor) for node in net.graph.nodes for tensor in calls.tensors(node)}
    assert {n for n, p in ran.model.named_parameters() if id(p) in read} == {
        n for n, p in net.named_parameters() if id(p) in used
    }

    there = {path: is_alone for path, is_alone in alone(ran).items() if path in modules}
    assert {path: calls.is_through(modules[path]) for path in there} == there
    assert any(there.values())
    roles = Flow(ran).roles
    readers = [path for path, node in modules.items() if calls.is_reader(node)]
    assert {roles[f"{path}.weight", axis] for path in readers for axis in calls.axes(modules[path]).values()} <= {"in"}
    unshaped = Calls(net)  # as a network is built again: what was cut by its shapes has to be found without them
    assert [n for n in net.graph.nodes if calls.is_through(n) and not unshaped.is_through(n)] == []
