"""How important channels are: a function for each score, that gives for every free space an array [width].

Layers that are coupled are judged together: those that make a channel of a space, and those that read it. Where a score
is a sum over layers of different scales, each layer is divided by its mean over the space, so that it has one vote.

l1        Li et al. 2017, "Pruning Filters for Efficient ConvNets", section 3.1: the l1 norm of a filter.
group     the l2 norms of a channel's filters and of all columns that read it. The idea to judge coupled layers together
          is that of Fang et al. 2023, "DepGraph"; its text was not read for this: one vote a layer, as for l1, is ours.
taylor    Molchanov et al. 2019, "Importance Estimation for Neural Network Pruning": the squared first-order change of
          the loss, averaged over batches. Theirs is read off a gate behind the batch norm; here off what reads the
          channel, whose weights times their gradients sum up to the same derivative. Its text was not read for this.
hessian   LeCun et al. 1990, "Optimal Brain Damage": half of the squared weights times the diagonal of the curvature,
          for which the mean squared gradient of batches stands, summed over the filters that make a channel and the
          columns that read it. Likewise not read.
slimming, soft                    see `before.py`
grow_prune                        see `gates.py`
thinet, provable, reconstruct     see `layerwise.py`
random    numbers drawn from the run's seed: the control.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from torch import Tensor

from compress.methods.protocol import Lab
from compress.methods.prune.before import slimming, soft
from compress.methods.prune.gates import grow_prune
from compress.methods.prune.layerwise import provable, reconstruct, thinet
from compress.methods.prune.settings import ByGradients, Prune
from compress.surgery.ranking import Ranks, importance, per_channel
from compress.training.seeds import seed_of
from compress.training.task import classification
from compress.training.train import Loop, Watch


def l1(lab: Lab, keys: Prune) -> Ranks:
    """The l1 norms of filters."""
    return importance(lab.model, lab.graph)


def group(lab: Lab, keys: Prune) -> Ranks:
    """The l2 norms of filters and of the columns that read them."""
    return importance(lab.model, lab.graph, power=2, readers=True)


def taylor(lab: Lab, keys: Prune) -> Ranks:
    """The squared derivative of the loss by a factor on the channel, as it is where all that reads it takes part."""
    assert isinstance(keys, ByGradients)
    graph, tensors = lab.graph, dict(lab.model.named_parameters())
    ranks = {name: np.zeros(graph.spaces[name].width) for name in graph.free}

    def look() -> None:
        for name in ranks:
            space = graph.spaces[name]
            whole = np.zeros(space.width)
            for axis in space.consumers or space.producers:
                if (tensor := tensors.get(axis[0])) is not None and tensor.grad is not None:
                    whole += per_channel(graph, name, axis, (tensor.detach() * tensor.grad).double())
            ranks[name] += whole**2

    _gradients(lab, keys.batches, look)
    return ranks


def hessian(lab: Lab, keys: Prune) -> Ranks:
    """Half of the squared weights of a channel's filters and columns, times their mean squared gradients."""
    assert isinstance(keys, ByGradients)
    tensors = dict(lab.model.named_parameters())
    curvature: dict[str, Tensor] = {}

    def look() -> None:
        for name, tensor in tensors.items():
            if tensor.grad is not None:
                curvature[name] = curvature.get(name, 0) + tensor.grad.double() ** 2 / keys.batches

    _gradients(lab, keys.batches, look)
    ranks = {}
    for name in lab.graph.free:
        space = lab.graph.spaces[name]
        axes = [axis for axis in (*space.producers, *space.consumers) if axis[0] in curvature]
        parts = [
            per_channel(lab.graph, name, (of, dim), tensors[of].detach().double() ** 2 * curvature[of] / 2)
            for of, dim in axes
        ]
        ranks[name] = np.sum(parts, 0) if parts else np.zeros(space.width)
    return ranks


def random(lab: Lab, keys: Prune) -> Ranks:
    """Dice."""
    draw = np.random.default_rng(seed_of(lab.seed, "which channels stay", lab.step))
    return {name: draw.random(lab.graph.spaces[name].width) for name in lab.graph.free}


SCORES: Mapping[str, Callable[[Lab, Prune], Ranks]] = {
    score.__name__: score
    for score in (l1, group, taylor, hessian, slimming, soft, grow_prune, thinet, provable, reconstruct, random)
}


def _gradients(lab: Lab, batches: int, look: Callable[[], None]) -> None:
    """Let `look` see the gradients of every batch, of the network as it is when it is used."""

    def run(loop: Loop) -> None:
        task, watch = loop.task or classification(loop.data), Watch(loop)
        lab.model.eval()
        for step, (x, y) in enumerate(loop.data.stream(loop.start, loop.steps), loop.start):
            lab.model.zero_grad(set_to_none=True)
            loss, _ = task.run(lab.model, x, y, loop.precision)
            loss.backward()  # type: ignore[no-untyped-call]
            watch.rows.append([loss.item()])
            look()
            if watch.is_due(step):
                watch.tell(step)
        lab.model.zero_grad(set_to_none=True)

    lab.loop(batches, run)
