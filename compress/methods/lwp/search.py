"""Teach a controller which connections a network can do without, and choose the best child of what it learnt.

    search(...)      batches of children: draw, price, run, reward, learn; the network learns too where it may
    children(...)    what a taught controller proposes, each within the budget and filling it

A child is run by masking the live network (`connections.Masks`), so that all children share its weights. LWP, section
3.4 and Algorithm 1. Differs from the paper: rewards use the batch norms' statistics of the child's own batch, since the
running ones belong to no child (with those, the controller learns to keep everything); the network's loss in joint
training, not stated there, is the children's own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import fmean

import numpy as np
import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from compress.budget.connections import Mask, Scores, project
from compress.budget.limits import Budget
from compress.budget.price import COLUMNS, Ints
from compress.errors import UsageError
from compress.methods.lwp.policy import Agent, Reward, entropy, margins, sample
from compress.reading.inputs import Batch
from compress.surgery.connections import Masks, Wiring
from compress.training.seeds import seed_of
from compress.training.task import classification
from compress.training.train import Loop, Watch, modes_kept, seed_dropout, set_rate


@dataclass(frozen=True, slots=True)
class Terms:
    """What a search goes by. Its functions are asked with the number of the step since the run began."""

    reward: Reward
    budget: Budget
    children: int
    """Networks that share a batch."""
    weight: float
    """Of the policy's entropy, beta."""
    released: Callable[[int], int]
    """Layers that the controller decides, counted from the last."""
    tightness: Callable[[int], float]
    """How far the limits have come from the full network's cost, 0, to the budget, 1."""
    lr: Callable[[int], float]
    """The controller's learning rate."""
    net_lr: Callable[[int], float] | None = None
    """The network's; None leaves its weights as they are."""
    placed: int | None = None
    """Of a metric that is not top-1, what its scores are multiplied with so that larger is better."""


@dataclass(frozen=True, slots=True)
class Searched:
    """What a stretch of searching came to: means over its steps, and where it ended."""

    reward: float
    eta: float
    """MACs of the children over those of the full network."""
    accuracy: float
    """Share of the training images that their children got right."""
    loss: float
    entropy: float
    """Of the policy at the end, in nats per connection that it decides."""
    value: float
    """V at the end."""
    released: int
    """Layers that are decided at the end."""
    images: int


def search(masks: Masks, agent: Agent, terms: Terms, loop: Loop) -> Searched:
    """Search for the loop's steps: batch n is the one that training would see in step n.

    Each batch is shared out among the children drawn for it. The loop's optimizer is the network's, and used where it
    learns (`terms.net_lr`). Leaves the model unmasked. Raises UsageError where a loss is not finite.
    """
    wiring, controller = masks.wiring, agent.controller
    full = wiring.costs(wiring.full)
    watch = Watch(loop)  # its rows: loss, reward, eta and accuracy
    with _masked(masks, frozen=terms.net_lr is None):
        for step, (x, y) in enumerate(loop.data.stream(loop.start, loop.steps), loop.start):
            released = terms.released(step)
            probabilities, decided = controller(released), controller.released(released)
            drawn = sample(probabilities, terms.children, seed_of(loop.seed, "children", step))
            costs = wiring.costs(drawn.numpy())
            seed_dropout(seed_of(loop.seed, "dropout", step), loop.data.device)
            rate = None if terms.net_lr is None else terms.net_lr(step)
            right, losses = _tried(masks, drawn, x, y, loop, rate)
            if not bool(losses.isfinite().all()):
                raise UsageError(
                    f"The loss became {losses.mean().item()} in step {step}, of a search. Try a third of the learning "
                    "rate, or train.precision: fp32."
                )
            eta = torch.from_numpy(costs[:, 1] / full[0, 1]).float()
            share = torch.from_numpy(used(costs, full, terms.budget, terms.tightness(step))).float()
            good = right if terms.placed is None else controller.placed(terms.placed * right)
            earned = terms.reward(good, eta, share)
            agent.learn(probabilities, drawn, earned, decided, weight=terms.weight, lr=terms.lr(step))
            watch.rows.append([each.mean().item() for each in (losses, earned, eta, right)])
            if watch.is_due(step):
                watch.tell(step)
    last = terms.released(loop.start + loop.steps - 1)
    with torch.no_grad():
        open_still = entropy(controller(last), controller.released(last)).item()
    loss, reward, eta_, accuracy = (fmean(column) for column in zip(*watch.rows, strict=True))
    return Searched(
        reward=reward,
        eta=eta_,
        accuracy=accuracy,
        loss=loss,
        entropy=open_still,
        value=controller.value.item(),
        released=last,
        images=loop.steps * loop.data.batch,
    )


def used(costs: Ints, full: Ints, budget: Budget, tightness: float) -> Scores:
    """The share that costs [N, 3] have of the tightest limit, on its way from the `full` cost [1, 3] to the budget [N].

    At `tightness` 1 the limits are the budget's, at 0 the full network's cost; those above that cost stay there.
    """
    shares = np.zeros(len(costs))
    for limit in budget.hard:
        columns, times = COLUMNS[limit.unit]
        spent, whole = costs[:, columns].max(1) * times, full[0, columns].max() * times
        shares = np.maximum(shares, spent / (whole + tightness * min(0, limit.limit - whole)))
    return shares


def children(agent: Agent, wiring: Wiring, budget: Budget, count: int, seed: int, *, fill: bool = True) -> list[Mask]:
    """What the controller proposes, each projected onto the budget [E]: the likeliest child and `count` drawn ones.

    A drawn one is projected by what drew it (`policy.margins`), so that it stays a draw: by the probabilities alone
    nearly all end as one. Those that come to the same network are one. Raises what `project` raises.
    """
    with torch.no_grad():
        probabilities = agent.controller()
    blocks = wiring.block[wiring.edge_layer]
    drawn = margins(probabilities, count, seed_of(seed, "candidates", 0))
    proposed = [
        project(scores.numpy(), wiring, budget, (scores > 0).numpy(), blocks, fill=fill)
        for scores in (probabilities.double() - 0.5, *drawn)
    ]
    return list({mask.tobytes(): mask for mask in proposed}.values())


def _tried(masks: Masks, drawn: Tensor, x: Batch, y: Tensor, loop: Loop, rate: float | None) -> tuple[Tensor, Tensor]:
    """The share of right answers and the loss [m] of children [m, E], each on its part of the batch.

    With a learning `rate`, one step of the network down the mean of their losses.
    """
    count, rows = len(drawn), []
    if rate is not None:
        loop.optimizer.zero_grad(set_to_none=True)
    several = () if isinstance(x, Tensor) else [one.tensor_split(count) for one in x]
    parts: Sequence[Batch] = x.tensor_split(count) if isinstance(x, Tensor) else [*zip(*several, strict=True)]
    task = loop.task or classification(loop.data)
    for mask, xs, ys in zip(drawn, parts, y.tensor_split(count), strict=True):
        masks.set(mask.numpy())
        with torch.set_grad_enabled(rate is not None):
            loss, good = task.run(masks.model, xs, ys, loop.precision)
            if rate is not None:
                (loss * (len(ys) / len(y))).backward()  # type: ignore[no-untyped-call]
        rows.append(torch.stack([good / len(ys), loss.detach()]))
    if rate is not None:
        set_rate(loop.optimizer, rate)
        loop.optimizer.step()
    right, losses = torch.stack(rows).cpu().unbind(1)
    return right, losses


@contextmanager
def _masked(masks: Masks, frozen: bool) -> Iterator[None]:
    """The model ready to try children: batch norms go by the batch, and where it is frozen learn nothing of it."""
    model = masks.model
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    with modes_kept(model):
        model.train(not frozen)
        try:
            for norm in norms if frozen else ():
                norm.train()
                norm.track_running_stats = False
            yield
        finally:
            for norm in norms:
                norm.track_running_stats = True
            masks.set(None)
