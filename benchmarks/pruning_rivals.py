"""Other tools as arms of pruning.py: they cut the same trained nets, and what they leave is tuned by the same protocol.

    pip install torch-pruning --no-deps
    pip install nvidia-modelopt torchprofile requests huggingface_hub

Torch-Pruning has no budget: its loop goes on until a count says that the target is met, here ours. `l1` judges layers
one by one; `group` and `taylor` compare layers of the same form, and of three bounds on what a layer may lose they get
the one whose net has most validation images right after its batch norms were recalibrated. FastNAS (ModelOpt) looks at
the accuracy when a layer alone is narrow, in steps of a twentieth of its width; of its defaults only the divisor of
widths is changed, 32, which would leave these nets as they are.

None of them understands a shortcut that pads with zero channels. They get it as a 1x1 convolution whose weights do the
same; it is pruned and trained with the rest, and its MACs count.
"""

from __future__ import annotations

import copy
import io
import warnings
from collections.abc import Callable, Iterable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from rival import counted
from torch import nn

from compress.errors import Infeasible
from compress.methods.protocol import Lab, Method
from compress.methods.prune.method import Pruning, State
from compress.methods.prune.settings import L1
from compress.models.resnet import BasicBlock, Subsample
from compress.recipe.step import Tune
from compress.surgery.surgeon import Surgeon
from compress.surgery.survey import survey
from compress.training.bench import Bench
from compress.training.task import classification
from compress.training.train import Loop, recalibrate, score

STEPS = 200  # of Torch-Pruning's loop, from all channels to none
MOST = (0.75, 0.9, 1.0)  # of a layer's channels that it may take, where it compares layers
BATCHES = 32  # of training images, for gradients and to recalibrate
QUEUE, IMAGES = 50, 40  # the batches that FastNAS calibrates batch norms on, a number of its own, and their size
RATIOS = tuple(step / 20 for step in range(1, 21))  # of a layer's width, that FastNAS tries: its defaults


def torch_pruning_l1(lab: Bench, model: nn.Module) -> nn.Module:
    """Every layer loses the same share, by l1 norms of its group."""
    import torch_pruning as tp

    cut = _descended(lab, model, tp.importance.MagnitudeImportance(p=1))
    if cut is None:
        raise Infeasible("Torch-Pruning's loop ended above the budget.")
    return cut


def torch_pruning_group(lab: Bench, model: nn.Module) -> nn.Module:
    """Layers of one form are compared, by l2 norms of their groups."""
    import torch_pruning as tp

    return _bounded(lab, model, tp.importance.GroupMagnitudeImportance(p=2))


def torch_pruning_taylor(lab: Bench, model: nn.Module) -> nn.Module:
    """The same by weights times gradients, summed up over training batches."""
    import torch_pruning as tp

    def run(loop: Loop) -> None:
        task = loop.task or classification(loop.data)
        for x, y in loop.data.stream(loop.start, loop.steps):
            task.run(model, x, y, loop.precision)[0].backward()  # type: ignore[no-untyped-call]

    model.eval().zero_grad()
    lab.loop(BATCHES, run)
    return _bounded(lab, model, tp.importance.GroupTaylorImportance())


def _bounded(lab: Bench, model: nn.Module, importance: Any) -> nn.Module:
    """The net of the bound that validation images choose."""
    nets = []
    for most in MOST:
        way = {"global_pruning": True, "isomorphic": True, "max_pruning_ratio": most}
        if (cut := _descended(lab, _copy(model), importance, **way)) is not None:
            seen = copy.deepcopy(cut)
            recalibrate(seen, lab.data, BATCHES)
            nets.append((score(seen, lab.data, "val", task=lab.task).accuracy, cut))
            lab.spent += counted(cut, lab.shape).macs * (BATCHES * lab.data.batch + lab.data.counts["val"])
    if not nets:
        raise Infeasible("Torch-Pruning's loop ended above the budget with every bound.")
    return max(nets, key=lambda net: net[0])[1]


def _copy(model: nn.Module) -> nn.Module:
    """With the gradients, which copy.deepcopy leaves out of a parameter."""
    other = copy.deepcopy(model)
    for mine, theirs in zip(other.parameters(), model.parameters(), strict=True):
        mine.grad = None if theirs.grad is None else theirs.grad.clone()
    return other


def _descended(lab: Bench, model: nn.Module, importance: Any, **way: Any) -> nn.Module | None:
    """The net at the first step of Torch-Pruning's loop that keeps the budget by our count; None where none does."""
    import torch_pruning as tp

    last = [module for module in model.modules() if isinstance(module, nn.Linear)][-1]
    pruner = tp.pruner.BasePruner(
        model.eval(),
        torch.zeros(1, *lab.shape),
        importance=importance,
        pruning_ratio=1.0,
        iterative_steps=STEPS,
        ignored_layers=[last],
        **way,
    )
    for _ in range(STEPS):
        pruner.step()
        if lab.budget.holds(counted(model, lab.shape)):
            return model
    return None


def fastnas(lab: Bench, model: nn.Module) -> nn.Module:
    """The widths whose worst single loss of accuracy is least, by ModelOpt's search."""
    import modelopt.torch.prune as mtp

    share, macs = 1 / lab.budget.utilisation(counted(model, lab.shape)), lab.cost().macs
    queue = [(x[:IMAGES], y[:IMAGES]) for x, y in lab.data.stream(0, QUEUE, varied=False)]

    def judge(candidate: nn.Module) -> float:
        lab.spent += macs * (QUEUE * IMAGES + lab.data.counts["val"])
        return score(candidate, lab.data, "val", task=lab.task).accuracy

    conv = {"channels_ratio": RATIOS, "kernel_size": (), "channel_divisor": 1}
    rest = {"features_ratio": RATIOS, "feature_divisor": 1}
    rules = {"nn.Conv2d": conv, "nn.BatchNorm2d": rest, "nn.Linear": rest}
    with TemporaryDirectory() as folder:  # keeps what was seen, so that only the first search looks at images
        for less in range(100, 84, -1):  # its counter is not ours
            cut, _ = mtp.prune(
                copy.deepcopy(model),
                [("fastnas", {name: {"*": rule} for name, rule in rules.items()})],
                {"flops": f"{less * share}%"},
                torch.zeros(1, *lab.shape),
                {"data_loader": queue, "score_func": judge, "verbose": False, "checkpoint": f"{folder}/seen.pth"},
            )
            if lab.budget.holds(counted(cut, lab.shape)):
                return cut  # type: ignore[no-any-return]
    raise Infeasible("FastNAS leaves more than the budget.")


RIVALS: dict[str, tuple[Callable[[Bench, nn.Module], nn.Module], str]] = {  # and the package that each needs
    "torch-pruning l1": (torch_pruning_l1, "torch-pruning"),
    "torch-pruning group": (torch_pruning_group, "torch-pruning"),
    "torch-pruning taylor": (torch_pruning_taylor, "torch-pruning"),
    "modelopt fastnas": (fastnas, "nvidia-modelopt"),
}


def versions(arm: str) -> list[str]:
    """The package of such an arm with its version, as a row names it; none of our own, or where it is not installed."""
    try:
        return [f"{package} {metadata.version(package)}" for _, package in [RIVALS[arm]]] if arm in RIVALS else []
    except metadata.PackageNotFoundError:
        return []


def installed(arms: Iterable[str]) -> list[str]:
    """The arms among these that can run here; of the others it says what they lack."""
    arms = [*arms]
    lacking = [arm for arm in arms if arm in RIVALS and not versions(arm)]
    for arm in lacking:
        print(f"{RIVALS[arm][1]} is not installed: the rows of {arm} are left out.")
    return [arm for arm in arms if arm not in lacking]


def said(way: str, tune: dict[str, Any]) -> dict[str, Any]:
    """What a recipe says for such an arm."""
    return {"name": f"{Path(__file__).resolve()}:rival", "args": {"way": way, "tune": tune}}


def rival(way: str, tune: dict[str, Any]) -> Method[State]:
    """Prune by another tool, and tune as our own methods do."""
    return Rival(L1(tune=Tune(**tune)), way=way)


@dataclass(frozen=True, slots=True)
class Rival(Pruning):
    """Pruning, except that another tool decides which channels stay, and takes the others out."""

    way: str = ""

    def _narrow(self, lab: Lab, state: State) -> None:
        assert isinstance(lab, Bench)
        prune, noise = RIVALS[self.way][0], io.StringIO()
        with warnings.catch_warnings(), redirect_stdout(noise), redirect_stderr(noise):
            warnings.simplefilter("ignore")
            full = unpadded(copy.deepcopy(lab.model))
            model = prune(lab, full.to(memory_format=torch.contiguous_format))  # FastNAS refuses channels_last
        lab.surgeon = Surgeon(model, survey(model, lab.shape))
        lab.place()
        if not lab.budget.holds(lab.cost()):
            raise Infeasible(f"{self.way} leaves more than the budget.")
        self.ready(lab, state)
        lab.scored("narrowed", widths=lab.widths)
        lab.recalibrate(BATCHES)
        lab.scored("recalibrated")


def unpadded(model: nn.Module) -> nn.Module:
    """The same function, with convolutions for shortcuts that pad."""
    for block in model.modules():
        if isinstance(block, BasicBlock) and isinstance(short := block.downsample, Subsample):
            inp, out = block.conv1.in_channels, block.conv2.out_channels
            conv = nn.Conv2d(inp, out, 1, short.stride, bias=False)
            conv.weight.detach().copy_(torch.eye(out, inp)[:, :, None, None])
            block.downsample = conv
    return model
