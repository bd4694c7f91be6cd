"""An LSTM that proposes which connections of a network to keep, and learns from what its proposals earn.

Layer by layer it puts out one probability for every source that the layer may read; a child network is a Bernoulli
draw from them. LWP ("Learning to search efficient DenseNet with layer-wise pruning", ICLR 2019 submission), 3.2 to 3.4:

    o_i = sigmoid(W h_i + b), h_i = LSTM(o_{i-1}), o_0 = 0                    section 3.2
    pi(a) = prod_ij o_ij^a_ij (1 - o_ij)^(1 - a_ij)                           equations 5 and 6
    r = 1 - eta^alpha for an image that is right, else -gamma                 equation 7
    grad J = (r - V) grad log pi + beta grad H                                equations 10 and 11
    grad L_v = -2 (r - V)                                                     equation 12

The state that the policy sees is always the same, so V is one number. All images of a child share its log-probability,
so the mean of their rewards is all that matters.

Differs from the paper: beta and the LSTM's size are not stated there, see `settings.Lwp`; H is the mean over the
connections, so that one beta suits small and large networks; the curriculum is counted in steps per released layer, and
releases the last t layers at stage t (the guard of Algorithm 1, t < K - t, would release all of them halfway).
The controller stays on the CPU: its steps follow one another, and every device then draws the same children.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from compress.training.seeds import seed_of

CLAMP = 1e-6  # probabilities keep this distance from 0 and 1, so that no logarithm is infinite
BASELINE_RATE = 0.05  # of the gradient descent on L_v: V is then a running mean of rewards with decay 0.9


class Controller(nn.Module):
    """The policy over the connections of layers with `sources[i]` sources each, in the order of computation.

    Connections are numbered layer by layer, a layer's sources in their order: E = sum(sources) in all. `value` is V.
    """

    value: Tensor
    seen: Tensor  # the least and the largest score so far, of a metric that is not top-1

    def __init__(self, sources: Sequence[int], hidden: int = 128, bias: float = 2.0, seed: int = 0) -> None:
        super().__init__()
        self.sources = tuple(sources)
        size = max(
            len(sources), *sources, 1
        )  # K, as in the paper, unless a layer has more sources than there are layers
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed_of(seed, "controller", 0))
            self.cell = nn.LSTMCell(size, hidden)
            self.head = nn.Linear(hidden, size)
        nn.init.constant_(self.head.bias, bias)
        self.register_buffer("value", torch.zeros(()))
        self.register_buffer("seen", torch.tensor([torch.inf, -torch.inf]))

    def forward(self, released: int | None = None) -> Tensor:
        """The probability of keeping each connection [E]: learnt for the last `released` layers, 1 for the others."""
        held = 0 if released is None else len(self.sources) - released
        output, state, kept = self.head.bias.new_zeros(1, self.head.out_features), None, []
        for layer, count in enumerate(self.sources):
            state = self.cell(output, state)
            mask = (torch.arange(self.head.out_features) < count).to(output.dtype)
            output = mask.expand(1, -1) if layer < held else torch.sigmoid(self.head(state[0])) * mask
            kept.append(output[0, :count])
        return torch.cat(kept)

    def placed(self, scores: Tensor) -> Tensor:
        """Where scores [m], the larger the better, lie between the worst and the best so far: [m], from 0 to 1.

        What stands for the share of right answers where a metric has another unit, or none.
        """
        low, high = torch.minimum(self.seen[0], scores.min()), torch.maximum(self.seen[1], scores.max())
        self.seen = torch.stack([low, high])
        return (scores - low) / (high - low) if high > low else torch.full_like(scores, 0.5)

    def released(self, released: int) -> Tensor:
        """Which connections belong to the last `released` layers: bool [E]."""
        held = len(self.sources) - released
        return torch.repeat_interleave(torch.arange(len(self.sources)) >= held, torch.tensor(self.sources))


def stage(step: int, length: int, layers: int) -> int:
    """How many layers, counted from the last, are decided in this step: one more every `length` steps; 0: all at once.

    Step 0 is stage 1. From stage K on the policy decides all of the K layers.
    """
    return min(layers, 1 + step // length) if length else layers


def margins(probabilities: Tensor, children: int, seed: int) -> Tensor:
    """By how much each of `children` networks keeps each connection [children, E], as logits; the same for one seed.

    Where it is positive, the connection is kept: with these probabilities [E], independently. Its order is the draw's
    own order of what to drop first, where a limit asks for that.
    """
    draw = torch.Generator().manual_seed(seed)
    p = probabilities.detach().double()
    chance = torch.rand(children, len(p), generator=draw, dtype=torch.float64)
    return torch.logit(p).clamp(-50, 50) - torch.logit(chance).clamp(-49, 49)  # certain is certain, and finite


def sample(probabilities: Tensor, children: int, seed: int) -> Tensor:
    """Masks of `children` networks, bool [children, E]: true with these probabilities [E]; the same for one seed."""
    return margins(probabilities, children, seed) > 0


def log_probability(probabilities: Tensor, masks: Tensor, decided: Tensor) -> Tensor:
    """log pi of masks [m, E] over the connections that are `decided` [E]: [m]."""
    p = probabilities[decided].clamp(CLAMP, 1 - CLAMP)
    kept = masks[:, decided].to(p.dtype)
    return (kept * p.log() + (1 - kept) * (1 - p).log()).sum(1)


def entropy(probabilities: Tensor, decided: Tensor) -> Tensor:
    """The mean Bernoulli entropy of the `decided` connections, in nats: ln 2 where all of them are open."""
    p = probabilities[decided].clamp(CLAMP, 1 - CLAMP)
    return -(p * p.log() + (1 - p) * (1 - p).log()).mean()


@dataclass(frozen=True, slots=True)
class Reward:
    """What a child earns: a right answer more, the cheaper the child is; a wrong one the penalty.

    The share eta is the child's MACs over the full network's. Not in the paper is a budget, of which a child has `used`
    a share. What is above it costs `over` times the excess, whether the answer is right or not: else being wrong could
    pay for being too large. What is below it will be filled, and so earns what the budget would (`fill`): else the
    controller learns to drop what is then added again, untrained.
    """

    alpha: float = 2.0
    gamma: float = 0.5
    over: float = 0.0
    fill: bool = False

    def __call__(self, right: Tensor, eta: Tensor, used: Tensor) -> Tensor:
        """Mean reward of children with these shares of `right` answers [m], `eta` [m] and `used` [m]: [m]."""
        cost = eta / used.clamp(max=1) if self.fill else eta
        above = (used - 1).clamp(min=0)
        return right * (1 - cost**self.alpha) - (1 - right) * self.gamma - self.over * above


@dataclass(frozen=True, slots=True)
class Agent:
    """A controller and the optimizer that trains it."""

    controller: Controller
    optimizer: torch.optim.Adam

    @classmethod
    def create(cls, sources: Sequence[int], hidden: int, bias: float, seed: int) -> Agent:
        """A new agent; equal ones for equal arguments."""
        controller = Controller(sources, hidden, bias, seed)
        return cls(controller, torch.optim.Adam(controller.parameters()))

    def learn(
        self, probabilities: Tensor, masks: Tensor, rewards: Tensor, decided: Tensor, *, weight: float, lr: float
    ) -> None:
        """One step up the gradient of expected reward plus `weight` times entropy.

        `probabilities` [E] as the controller gave them; children [m, E] drawn from them, and what each earned [m].
        """
        loss = loss_of(probabilities, masks, rewards - self.controller.value, decided, weight)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.step()
        self.controller.value += 2 * BASELINE_RATE * (rewards - self.controller.value).mean()

    def tensors(self) -> dict[str, Tensor]:
        """All that the agent has learnt, by name: what a checkpoint must hold."""
        names = {id(p): name for name, p in self.controller.named_parameters()}
        moments = {
            f"adam/{names[id(parameter)]}/{key}": value
            for parameter, values in self.optimizer.state.items()
            for key, value in values.items()
        }
        return {f"controller/{name}": tensor for name, tensor in self.controller.state_dict().items()} | moments

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Go on with what `tensors` returned, also of another agent of the same shape."""
        learnt = {name.removeprefix("controller/"): t for name, t in tensors.items() if name.startswith("controller/")}
        self.controller.load_state_dict(learnt)
        parameters = dict(self.controller.named_parameters())
        for name, tensor in tensors.items():
            if name.startswith("adam/"):
                owner, _, key = name.removeprefix("adam/").rpartition("/")
                self.optimizer.state[parameters[owner]][key] = tensor.clone()


def loss_of(probabilities: Tensor, masks: Tensor, advantages: Tensor, decided: Tensor, weight: float) -> Tensor:
    """The scalar whose negative gradient is equation 11 with beta = `weight`, for masks [m, E] with r - V [m]."""
    gain = (advantages.detach() * log_probability(probabilities, masks, decided)).mean()
    return -gain - weight * entropy(probabilities, decided)
