"""LWP: drop the connections of a densely connected network that a controller learns it can do without.

Five phases. The full network is trained, where nobody did; a controller learns alone which connections to keep, of one
more layer at a time, from the last backwards; network and controller learn together; of what the controller proposes,
brought onto the budget (`budget/connections.py`), the child that does best on validation images is cut out; it is
tuned, or trained from newly drawn weights. LWP ("Learning to search efficient DenseNet with layer-wise pruning"),
section 3.4.

Differs from the paper, which knows no budget: rewards come to charge for what exceeds it, and every candidate is made
to keep and to fill it. See `policy.py` and `search.py` for what else is not as printed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from itertools import takewhile
from typing import Any

import numpy as np
from torch import nn

from compress.budget.connections import Mask, refuse, refuse_units
from compress.budget.limits import Budget
from compress.errors import UsageError
from compress.methods.lwp.policy import Agent, Reward, stage
from compress.methods.lwp.search import Terms, children, search
from compress.methods.lwp.settings import Lwp
from compress.methods.protocol import ALONE, Around, Lab, Method
from compress.surgery.connections import Masks, Wiring, prune
from compress.surgery.surgeon import Surgeon
from compress.training.train import lr_at

PRETRAIN = 20.0  # epochs of a full network that nobody trained
FEWEST = 2  # images a child, as batch norms need


@dataclass(frozen=True, slots=True)
class State:
    """Where a run stands; with the tensors, all that a restart needs."""

    phase: str = "pretrain"  # then "search", "joint", "select", "tune" and "done"
    at: int = 0  # optimizer steps into this phase
    why: str = ""  # what ended the run


@dataclass(frozen=True)
class LWP(Method[State]):
    """The method with its hyper-parameters, as the recipe says them."""

    settings: Lwp
    around: Around = ALONE

    @property
    def draws_anew(self) -> bool:
        """Whether the chosen net is trained from new weights."""
        return self.settings.retrain == "scratch"

    def smallest(self, surgeon: Surgeon) -> None:
        """Drop every connection that may go."""
        wiring = Wiring.read(surgeon.model, surgeon.graph.shape)
        prune(surgeon, wiring.cuts_of(~wiring.full))

    def check(self, budget: Budget, batch: int, smallest: Surgeon, full: nn.Module) -> None:
        """Raise UsageError for a limit that connections have no price for, for a search too short to release all,
        as far as that is known without data, and for more children than a batch feeds.
        """
        refuse_units(budget)
        search, release = self.settings.search, self.settings.release
        if search is not None and search.unit == release.unit:
            self._refuse_short(
                search.count, len(Wiring.read(full, smallest.graph.shape).layers), release.count, search.unit
            )
        if batch < FEWEST * (children := self.settings.children):
            raise UsageError(
                f"method.children: {children} networks share a batch of {batch} images, and each needs {FEWEST}; "
                f"write at most {batch // FEWEST}, or a larger train.batch"
            )

    def init(self, lab: Lab) -> State:
        """Look at the connections. A network that keeps its budget already loses none, unless it is not to be filled.

        Raises UsageError for what the recipe asks and the data or the network cannot give.
        """
        wiring, s = self._wiring(lab), self.settings
        refuse(wiring, len(wiring.full), lab.budget)
        self._refuse_short(self._steps(lab, "search"), len(wiring.layers), s.release.steps(lab.epoch), "steps")
        self.ready(lab, State())
        return self._next(lab, State(at=-1))

    def _refuse_short(self, search: float, layers: int, release: float, unit: str) -> None:
        s, least = self.settings, release * layers
        if search < least:
            raise UsageError(
                f"method.search: {s.search} is too short to release {layers} layers, {s.release} each: that takes "
                f"{least:g} {unit}; write at least as many, or null"
            )

    def step(self, lab: Lab, state: State) -> State:
        """Train up to the next checkpoint, or choose the child."""
        if state.phase == "select":
            self._select(lab)
            return self._next(lab, state)
        s, total = self.settings, self._steps(lab, state.phase, state.at)
        if state.phase in ("search", "joint"):
            at = self._search(lab, state, total)
        else:
            at = lab.stretch(state.phase, s.pretrain if state.phase == "pretrain" else s.tune, state.at, total)
        state = replace(state, at=at)
        return self._next(lab, state) if state.at >= total else state

    def done(self, lab: Lab, state: State) -> str | None:
        """Why the run is over."""
        return state.why or None

    def load(self, fields: Mapping[str, Any]) -> State:
        """The state whose fields these are."""
        return State(**fields)

    # phases

    def _next(self, lab: Lab, state: State) -> State:
        """The first phase after this one that has anything to do."""
        order = ["pretrain", "search", "joint", "select", "tune"]
        rest = order if state.at < 0 else order[order.index(state.phase) + 1 :]
        whole = self.settings.fill and state.phase == "pretrain" and lab.budget.holds(lab.cost())
        for phase in rest if not whole else [phase for phase in rest if phase == "pretrain"]:
            if phase == "select" or self._steps(lab, phase):
                self.ready(lab, State(phase))  # momentum of other aims is of no use
                return State(phase)
        kept = "the network keeps the budget as it is; no connection was dropped"
        return State("done", why=kept if whole else "the connections are chosen and the network is trained")

    def _steps(self, lab: Lab, phase: str, at: int = 0) -> int:
        """Optimizer steps of a phase, `at` of which are done."""
        s, epoch = self.settings, lab.epoch
        match phase:
            case "pretrain":
                epochs = (0 if self.around.trained else PRETRAIN) if s.pretrain.epochs is None else s.pretrain.epochs
                return round(epochs * epoch)
            case "search":
                layers = len(self._wiring(lab).layers)
                return s.release.steps(epoch) * layers if s.search is None else s.search.steps(epoch)
            case "joint":
                return s.joint.steps(epoch)
        return lab.last(s.tune.epochs, at)

    def _search(self, lab: Lab, state: State, total: int) -> int:
        """The controller learns up to the next checkpoint, in the joint phase the network with it; steps done then."""
        s, wiring, begin = self.settings, self._wiring(lab), lab.step - state.at
        steps = min(total - state.at, lab.pace)
        alone = state.phase == "search"
        layers, each = len(wiring.layers), s.release.steps(lab.epoch)
        peak = s.lr if alone else s.joint_controller_lr or s.lr
        done = 0 if alone else self._steps(lab, "search")
        tight = self._steps(lab, "search") + self._steps(lab, "joint") / 2
        terms = Terms(
            reward=Reward(s.alpha, s.gamma, s.over, s.fill),
            budget=lab.budget,
            children=s.children,
            weight=s.entropy,
            released=lambda step: stage(step - begin, each, layers) if alone else layers,
            tightness=lambda step: min(1.0, (done + step - begin + 1) / tight),
            lr=lambda step: lr_at(s.schedule, peak, (step - begin) / total),
            net_lr=None if alone else lambda step: s.joint_lr,
            placed=None if lab.keys.metric is None else lab.keys.sign,
        )
        agent, masks = self.agent(lab), Masks(lab.model, wiring)
        try:
            searched = lab.loop(steps, lambda loop: search(masks, agent, terms, loop))  # masked, the full network runs
        finally:
            masks.remove()
        lab.learnt = agent.tensors()
        lab.note("search", **asdict(searched))
        return state.at + steps

    def _select(self, lab: Lab) -> None:
        """Cut the best child out of the network."""
        wiring = self._wiring(lab)
        best, candidates = self.chosen(lab)
        lab.learnt = {}
        lab.cut(wiring.cuts_of(best))
        if self.draws_anew:
            lab.refill()
        self.ready(lab, State("select"))
        lab.note("selected", candidates=candidates, val=lab.score().accuracy, connections=pictures(wiring, best))

    def chosen(self, lab: Lab) -> tuple[Mask, int]:
        """Of the children [E] that the controller proposes the one that does best, and how many there were.

        The batch norms' statistics are left as that child has them.
        """
        s, wiring = self.settings, self._wiring(lab)
        candidates = children(self.agent(lab), wiring, lab.budget, s.samples, lab.seed, fill=s.fill)
        masks = Masks(lab.model, wiring)

        def scored(mask: Mask) -> tuple[float, float]:
            masks.set(mask)
            lab.recalibrate(s.recalibrate)
            score = lab.score()
            return score.worth, -score.loss

        try:
            best = max(candidates, key=scored)  # the first of equal ones: the likeliest child is the first of all
            scored(best)
        finally:
            masks.remove()
        return best, len(candidates)

    def agent(self, lab: Lab) -> Agent:
        """The controller as it was left, or a new one."""
        s, wiring = self.settings, self._wiring(lab)
        sources = np.bincount(wiring.edge_layer, minlength=len(wiring.layers)).tolist()
        agent = Agent.create(sources, s.hidden, s.bias, lab.seed)
        if lab.learnt:
            agent.load(lab.learnt)
        return agent

    @cached_property
    def _known(self) -> list[tuple[nn.Module, Wiring]]:
        return []

    def _wiring(self, lab: Lab) -> Wiring:
        """The model's connections, read once."""
        if not self._known or self._known[0][0] is not lab.model:
            self._known[:] = [(lab.model, Wiring.read(lab.model, lab.shape))]
        return self._known[0][1]


def pictures(wiring: Wiring, mask: Mask) -> list[dict[str, Any]]:
    """Which sources the layers of each block read, as the history holds it: a row a layer, a column a source."""
    return [
        {
            "block": _common(picture.layers) or f"block {number}",
            "layers": list(picture.layers),
            "sources": list(picture.sources),
            "rows": np.maximum(picture.cells, 0).tolist(),
        }
        for number, picture in enumerate(wiring.matrix(mask), 1)
    ]


def _common(names: Sequence[str]) -> str:
    """The module that holds all of these."""
    paths = [name.split(".")[:-1] for name in names]
    return ".".join(parts[0] for parts in takewhile(lambda parts: len(set(parts)) == 1, zip(*paths, strict=False)))
