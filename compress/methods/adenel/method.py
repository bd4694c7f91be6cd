"""AdeNeL: grow filters where the inverse scale space says that a layer lacks capacity, until the budget is filled.

From a narrow net, rounds of training with DI-ISS (`diiss.py`). At the end of a round, a layer whose share of filters in
the support of Gamma, s = |supp(Gamma)| / |W|, is at least tau uses all it has, and grows. The round that would cross
the budget is scaled to fit and topped up (`budget/landing.py`), then the net is tuned. AdeNeL, section 3.2 and
Algorithm 1.

Differs from the paper, which leaves these open or silent:
- a space (a residual stage, say) has the mean s of the convolutions that make it, and grows as a whole;
- thresholds are relative to each filter's norm, because an absolute lambda fits only one round length;
- growth may follow a score that is no share over a threshold, and the full net's proportions (`grow`, `amount`);
- new columns start at zero, so that growing keeps the function; the published Kaiming columns are an option;
- the paper has no rule for a budget: here it is never crossed, and filled.
The paper calls s a layer's redundancy; a high s means the opposite, that none of its filters is idle.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from math import inf
from typing import Any

import numpy as np
import torch
from torch import nn

from compress.budget.landing import beyond, land
from compress.errors import UsageError
from compress.methods.adenel.amounts import proposal
from compress.methods.adenel.diiss import DIISS, thresholds
from compress.methods.adenel.settings import Adenel
from compress.methods.protocol import ALONE, Around, Lab, Method
from compress.reading.graph import Graph
from compress.surgery.surgeon import Surgeon
from compress.training.optim import groups
from compress.training.seeds import seed_of

WIDEST = "every layer that can grow is as wide as method.max_width allows"


@dataclass(frozen=True, slots=True)
class State:
    """Where a run stands; with the tensors, all that a restart needs."""

    phase: str = "grow"  # "grow", then "tune", then "done"
    begin: int = 0  # optimizer steps of the run before it
    round: int = 0
    at: int = 0  # optimizer steps into this round, or into tuning
    empty: int = 0  # rounds in a row in which no layer reached tau
    due: Mapping[str, int] = field(default_factory=dict)  # channels of growths so far that alignment holds back
    full: Mapping[str, int] = field(default_factory=dict)  # widths of the full net
    scores: Mapping[str, float] = field(default_factory=dict)  # of every space, smoothed over rounds
    why: str = ""  # what ended the growing


@dataclass(frozen=True, slots=True)
class AdeNeL(Method[State]):
    """The method with its hyper-parameters, as the recipe says them."""

    settings: Adenel
    around: Around = ALONE
    keeps_operators = True

    @property
    def align(self) -> int:
        """Widths that growing makes are multiples of this."""
        return self.around.align

    @property
    def keeps_weights(self) -> bool:
        """Whether it grows the net as it is."""
        return self.settings.grows_present(after=self.around.after)

    @property
    def widens(self) -> bool:
        """Whether layers may become wider than the full net's."""
        return self.settings.max_width is None or self.settings.max_width > 1

    def smallest(self, surgeon: Surgeon) -> None:
        """Leave one filter, or one aligned block, wherever a layer can grow; a net that is grown as it is stays so."""
        surgeon.resize(self._narrow(surgeon.graph, self.align))

    def first(self, surgeon: Surgeon) -> None:
        """Make every space that can be judged narrow; the others keep their widths."""
        surgeon.resize(self.seeds(surgeon.graph))

    def seeds(self, graph: Graph) -> dict[str, int]:
        """Widths to start from, where the budget allows them."""
        return self._narrow(graph, self.settings.seed_width)

    def remarks(self, graph: Graph) -> dict[str, str]:
        """Which free spaces the method never judges."""
        return dict.fromkeys(self.unjudged(graph), "adenel widens it only to fill the budget")

    def unjudged(self, graph: Graph) -> list[str]:
        """The free spaces that no round grows; landing may widen them a little, to fill the budget."""
        return [name for name in graph.free if not judged_weights(graph, name, self.settings.include_1x1)]

    def _narrow(self, graph: Graph, width: float) -> dict[str, int]:
        names = set(graph.free).difference(self.unjudged(graph))
        if not names:
            small = "" if self.settings.include_1x1 else " above 1x1 (method.include_1x1: true judges those too)"
            raise UsageError(f"adenel has nothing to grow: no free layer of this model is made by a convolution{small}")
        narrow = set() if self.keeps_weights else names
        few = {name: max(1, round(width * full)) if width < 1 else int(width) for name, full in graph.widths.items()}
        return {n: min(full, up(few[n], self.align)) if n in narrow else full for n, full in graph.widths.items()}

    def init(self, lab: Lab) -> State:
        """Narrow the full net to the seed, draw its weights anew, and make the optimizer."""
        graph, state = lab.graph, State(begin=lab.step, full=lab.widths)
        seeds = self.seeds(graph)
        if not lab.budget.holds(graph.price.cost(seeds)):  # too small a budget to grow in: the seed itself is landed
            least = self._narrow(graph, self.align)
            seeds = land(graph.price, least, seeds, lab.budget, align=self.align)
            state = replace(state, phase="tune", why="the seed fills the budget")
        if not self.keeps_weights:
            lab.resize(seeds)
            lab.refill()
        self.ready(lab, state)
        lab.note("seed", widths=lab.widths)
        return state

    def ready(self, lab: Lab, state: State) -> None:
        """DI-ISS over all parameters: judged convolutions follow a path, vectors have no weight decay.

        As published, hidden linear layers follow one too, entry by entry; it is never asked whether they should grow.
        """
        s, t = self.settings, lab.keys
        path = list({id(w): w for weights in self._judged(lab).values() for w in weights.values()}.values())
        hidden = self._hidden(lab) if s.preset == "published" else []
        each = {"path": True, "couple": self._couples(state.phase), "weight_decay": t.weight_decay}
        paths = [{"params": path, **each}, {"params": hidden, "penalty": "entry", **each}]
        lab.optimizer = DIISS(
            groups(lab.model, t, paths),
            lr=t.lr, nu=s.nu, kappa=s.kappa, momentum=t.momentum, nesterov=t.nesterov,
        )  # fmt: skip

    def step(self, lab: Lab, state: State) -> State:
        """Train up to the next checkpoint; at the end of a round, judge every layer and grow or land."""
        return self._grow(lab, state) if state.phase == "grow" else self._tune(lab, state)

    def done(self, lab: Lab, state: State) -> str | None:
        """Why the run is over."""
        return state.why if state.phase == "done" else None

    def load(self, fields: Mapping[str, Any]) -> State:
        """The state whose fields these are."""
        return State(**fields)

    # growing

    def _grow(self, lab: Lab, state: State) -> State:
        epoch = lab.epoch
        length = self.settings.round.steps(epoch)
        if state.at == 0:
            self._restart(lab, state, length)
        steps = min(length - state.at, lab.pace)
        trained = lab.train(steps, self._growing_lr(lab, state))
        state = replace(state, at=state.at + steps)
        if state.at < length:
            return state
        support, score = self.support(lab), lab.score()
        state = replace(state, round=state.round + 1, at=0, scores=self.scores(lab, state.scores))
        state = self.judge(lab, state, support)
        lab.note(
            "round",
            round=state.round,
            loss=trained.loss,
            val=score.accuracy,
            support=support,
            scores=dict(state.scores),
            widths=lab.widths,
        )
        return state

    def _growing_lr(self, lab: Lab, state: State) -> Callable[[int], float]:
        peak, begin = self.settings.grow_lr or lab.keys.lr, state.begin
        rise = self.settings.warmup.steps(lab.epoch)
        return lambda step: peak * min(1.0, (step - begin + 1) / rise) if rise else peak

    def _restart(self, lab: Lab, state: State, length: int) -> None:
        """Z = Gamma = 0, and thresholds for what the clock will say at the end of a round of this many steps."""
        s, optimizer, lr = self.settings, lab.optimizer, self._growing_lr(lab, state)
        assert isinstance(optimizer, DIISS)
        clock = sum(lr(step) for step in range(lab.step, lab.step + length)) / s.nu
        optimizer.restart(
            {
                weight: thresholds(weight, s.lambda_mode, clock * scale, s.theta, s.lambda_value, group["penalty"])
                for group in optimizer.param_groups
                for scale in [group.get("lr_scale", 1.0)]
                for weight in (group["params"] if group["path"] else ())
            }
        )

    def _hidden(self, lab: Lab) -> list[nn.Parameter]:
        """The weights of linear layers whose outputs are channels of the net's own, not its logits."""
        graph = lab.graph
        names = [tensor for name in graph.free for tensor, dim in graph.spaces[name].producers if dim == 0]
        weights = {name: lab.model.get_parameter(name) for name in names if name not in graph.kernels}
        return [weight for weight in weights.values() if weight.dim() == 2]

    def _judged(self, lab: Lab) -> dict[str, dict[str, nn.Parameter]]:
        """Of every space that can grow, the convolutions that are judged for it, by name."""
        graph = lab.graph
        names = {name: judged_weights(graph, name, self.settings.include_1x1) for name in graph.free}
        return {name: {m: lab.model.get_parameter(m) for m in members} for name, members in names.items() if members}

    def _supported(self, lab: Lab) -> dict[str, list[set[int]]]:
        """The units in the support, for every space that can grow and each of its convolutions.

        A convolution may make channels of several spaces (where zeros are padded behind a narrower stage).
        """
        graph, optimizer = lab.graph, lab.optimizer
        assert isinstance(optimizer, DIISS)
        return {
            name: [
                set(graph.slots[tensor, 0].units[optimizer.support(w).cpu().numpy()].tolist())
                & set(graph.spaces[name].units)
                for tensor, w in weights.items()
            ]
            for name, weights in self._judged(lab).items()
        }

    def support(self, lab: Lab) -> dict[str, float]:
        """s of every space that can grow: the mean share of filters in the support, over its convolutions."""
        widths = lab.widths
        return {n: sum(map(len, sets)) / (len(sets) * widths[n]) for n, sets in self._supported(lab).items()}

    def scores(self, lab: Lab, before: Mapping[str, float]) -> dict[str, float]:
        """The score of every space that can grow: half of what it was, and half of what this round says.

        A filter's is |Z| / (clock |W|): while it is not in the support, the norm of its average over time as a share of
        its own. Unlike a share of filters over a threshold it tells layers apart that all pass, or all fail.
        """
        optimizer = lab.optimizer
        assert isinstance(optimizer, DIISS)
        now = {
            name: float(np.mean([optimizer.kept(weight) for weight in weights.values()]))
            for name, weights in self._judged(lab).items()
        }
        return {name: (score + before.get(name, score)) / 2 for name, score in now.items()}

    def _ready(self, lab: Lab, state: State, support: Mapping[str, float]) -> list[str]:
        """The spaces that may grow after this round."""
        s, widths, full = self.settings, lab.widths, state.full
        names = [name for name, share in support.items() if s.grow in ("all", "score") or share >= s.tau]
        if s.grow == "random":
            draw = torch.Generator().manual_seed(seed_of(lab.seed, "a random gate", state.round))
            names = [name for name in support if torch.rand((), generator=draw) < 0.5]
        names = [name for name in names if widths[name] < self._most(lab, state).get(name, inf)]
        if s.spread is None:
            return names
        least = min(widths[name] / full[name] for name in support)
        return [name for name in names if widths[name] / full[name] <= s.spread * least]

    def _most(self, lab: Lab, state: State) -> dict[str, int]:
        """The most channels that each space may have, where that is bounded; none where it is not."""
        times = self.settings.max_width
        if times is None:
            return {}
        return {
            name: max(width, int(times * state.full[name]) // self.align * self.align)
            for name, width in lab.widths.items()
        }

    def judge(self, lab: Lab, state: State, support: Mapping[str, float]) -> State:
        """End a round: grow what its support s says, or end the growing and fill the budget."""
        s, price = self.settings, lab.graph.price
        ready, most = self._ready(lab, state, support), self._most(lab, state)
        if most and all(lab.widths[name] >= most[name] for name in support):
            return self._end_growing(lab, replace(state, why=WIDEST))
        state = replace(state, empty=0 if ready else state.empty + 1)
        fill, last = s.on_saturation == "fill", state.round >= s.max_rounds
        why = f"{state.round} rounds, the most allowed" if last else f"no layer reached tau in {state.empty} rounds"
        if not ready:
            if not last and state.empty < s.empty_rounds:
                return state
            if fill:  # a budget was given to be used: the layers nearest to tau go on
                could = {name: share for name, share in support.items() if lab.widths[name] < most.get(name, inf)}
                ready = [name for name, share in could.items() if share == max(could.values())]
        goal = proposal(price, lab.widths, ready, lab.budget, s, due=state.due, full=state.full, scores=state.scores)
        goal = {name: min(width, most.get(name, width)) for name, width in goal.items()}
        whole = self._aligned(goal, lab.widths)
        if ready and not last and lab.budget.holds(price.cost(whole)):
            lab.resize(whole, s.new_columns)
            held = {name: goal[name] - whole[name] for name in ready}
            return replace(state, due={name: n for name, n in {**state.due, **held}.items() if n})
        if s.prune_unsupported:
            self._prune(lab)
            goal = {name: goal[name] if name in ready else width for name, width in lab.widths.items()}
        if fill:
            goal = beyond(price, goal, lab.budget, support)
            goal = {name: min(width, most.get(name, width)) for name, width in goal.items()}
            why = WIDEST if most else why
        if not lab.budget.holds(price.cost(goal)):
            goal = land(price, lab.widths, goal, lab.budget, align=self.align, ceiling=most or None)
            why = "the budget is filled"
        lab.resize(self._aligned(goal, lab.widths), s.new_columns)
        return self._end_growing(lab, replace(state, why=why))

    def _aligned(self, goal: Mapping[str, int], widths: Mapping[str, int]) -> dict[str, int]:
        """The goal with multiples of `align` where it grows a space: the last one that it reaches."""
        return {name: max(width, goal[name] // self.align * self.align) for name, width in widths.items()}

    def _prune(self, lab: Lab) -> None:
        """Remove filters that no judged convolution of their space supports; widths stay multiples of `align`."""
        keep, spaces = {}, lab.graph.spaces
        for name, sets in self._supported(lab).items():
            units, alive = spaces[name].units, set().union(*sets)
            order = sorted(range(len(units)), key=lambda position: units[position] not in alive)  # stable: alive first
            keep[name] = sorted(order[: max(up(len(alive), self.align), self.align)])
        lab.narrow(keep)

    def _couples(self, phase: str) -> bool:
        return phase == "grow" or self.settings.preset == "published"  # there, tuning goes on with DI-ISS

    def _end_growing(self, lab: Lab, state: State) -> State:
        state = replace(state, phase="tune", at=0)
        if self.settings.rewind:
            lab.refill()
            self.ready(lab, state)
        for group in lab.optimizer.param_groups:
            group["couple"] = self._couples(state.phase)
        if self._couples(state.phase):
            self._restart(lab, state, self._tuning(lab, state))
        return state

    # tuning

    def _tuning(self, lab: Lab, state: State) -> int:
        return max(1, lab.last(self.settings.tune.epochs, state.at))

    def _tune(self, lab: Lab, state: State) -> State:
        total = self._tuning(lab, state)
        state = replace(state, at=lab.stretch("tune", self.settings.tune, state.at, total))
        return replace(state, phase="done") if state.at >= total else state


def judged_weights(graph: Graph, name: str, include_1x1: bool) -> list[str]:
    """The convolution weights whose filters are the space's channels, one row each: those that can be judged.

    Convolutions of one pixel follow the others unless `include_1x1`; linear layers never grow (in the published code
    their entry-wise share stays below any tau).
    """
    weights = []
    for tensor, dim in graph.spaces[name].producers:
        kernel = graph.kernels.get(tensor, ())
        if dim == 0 and kernel and (include_1x1 or max(kernel) > 1):
            weights.append(tensor)
    return weights


def up(width: int, align: int) -> int:
    """The width, or the next multiple of `align`."""
    return -(-width // align) * align
