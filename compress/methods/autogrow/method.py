"""AutoGrow: append blocks to the stages of a shallow net in turn, until they no longer help or no longer fit.

The stages form a circular list. Again and again the whole net is trained for an interval K; if the best validation
accuracy then stood still for J, the stage that grew last leaves the list; then the next stage in turn gets a block.
When the list is empty, the net is tuned. AutoGrow (Wen et al. 2020), section 3 and Algorithm 1.

Differs from the paper, which leaves these open, or whose code does otherwise:
- accuracy is that of validation images held out of the training set; the published code looks at the test set;
- policy convergent judges a growth once, when accuracy first stands still after it: judged by the same test that allows
  the next growth, as printed, every growth would be undone;
- vectors (batch norm, biases) have no weight decay here; the published code decays all;
- the paper knows no budget: here a stage whose next block does not fit leaves the list too, and what then is left of
  the budget goes into more blocks and narrower last ones (`fill.py`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import inf
from typing import Any

import torch
from torch import Tensor, nn

from compress.budget.limits import Budget
from compress.errors import UsageError
from compress.methods.autogrow.fill import deeper, fill_with_depth
from compress.methods.autogrow.settings import Autogrow
from compress.methods.protocol import ALONE, Around, Lab, Method
from compress.reading.inputs import Shape
from compress.recipe.keys import Duration
from compress.surgery.stages import Stage, find, last_norm, layout
from compress.surgery.surgeon import Surgeon
from compress.training.seeds import seed_of
from compress.training.train import lr_at

ADAM_LR, ADAM_DECAY, ADAM_EPOCHS = 1e-3, 5e-4, 10  # of the initialiser "adam", section 3.2
ADAM_LOSS = 0.005  # of training accuracy, that it may leave


@dataclass(frozen=True, slots=True)
class State:
    """Where a run stands; with the tensors and the depths, all that a restart needs."""

    phase: str = "grow"  # "grow", then "tune", then "done"
    clock: int = 0  # optimizer steps of growing so far, those of the initialiser "adam" not counted
    at: int = 0  # optimizer steps into this interval, or into tuning
    round: int = 0  # intervals so far
    alive: tuple[str, ...] = ()  # the circular list of stages
    next: str = ""  # the stage that grows next
    grown: str = ""  # the one that grew last
    growths: tuple[tuple[int, str], ...] = ()  # clock, stage
    judged: bool = True  # whether the last growth was (policy convergent)
    best: tuple[tuple[int, float], ...] = ()  # clock, running maximum of validation accuracy (or of scores, turned)
    least: float | None = None  # of those seen
    trained: float = 0.0  # accuracy of the last epoch on the training images
    why: str = ""  # what ended the growing


@dataclass(frozen=True, slots=True)
class AutoGrow(Method[State]):
    """The method with its hyper-parameters, as the recipe says them."""

    settings: Autogrow
    around: Around = ALONE

    @property
    def keeps_weights(self) -> bool:
        """Whether it deepens the net as it is."""
        return self.settings.grows_present(after=self.around.after)

    def deepens(self, model: nn.Module, shape: Shape) -> Sequence[Stage]:
        """All stages that the recipe names, or that there are."""
        return find(model, shape, self.settings.stages)

    def smallest(self, surgeon: Surgeon) -> None:
        """Leave the seed's blocks in every stage; a net that is deepened as it is stays so."""
        self.first(surgeon)

    def first(self, surgeon: Surgeon) -> None:
        """Leave the seed's blocks in every stage."""
        if not self.keeps_weights:
            stages = self.deepens(surgeon.model, surgeon.graph.shape)
            surgeon.arrange(layout(surgeon.model, self._seed(surgeon.model, stages)))

    def check(self, budget: Budget, batch: int, smallest: Surgeon, full: nn.Module) -> None:
        """Raise UsageError where a stage of the smallest net cannot take another block."""
        for stage in self.deepens(full, smallest.graph.shape):
            depth = stage.depth(smallest.model)
            try:
                deeper(smallest, {stage: depth + 1}, templates(smallest.model, full, [stage]))
            except UsageError as error:
                made = callable(getattr(full, "new_block", None))
                what = f"what new_block({stage.container!r}) makes" if made else "a block like the full network's"
                hint = "it must take and return what the stage's last block returns" if made else (
                    "give the model a method new_block(stage), or grow what is there with begin: present"
                )  # fmt: skip
                raise UsageError(f"autogrow: {what} does not fit {stage.name} ({error}); {hint}") from None

    def _seed(self, model: nn.Module, stages: Sequence[Stage]) -> dict[Stage, int]:
        return {stage: min(self.settings.seed_depth, stage.depth(model)) for stage in stages}

    def init(self, lab: Lab) -> State:
        """Make the stages shallow, draw all weights anew, and make the optimizer."""
        stages = self._stages(lab)
        if not self.keeps_weights:
            lab.arrange(layout(lab.model, self._seed(lab.model, stages)))
            lab.refill()
        names = tuple(stage.name for stage in stages)
        state = State(alive=names, next=names[0])
        self.ready(lab, state)
        lab.note("seed", depths=depths(lab, stages), widths=lab.widths)
        return state

    def step(self, lab: Lab, state: State) -> State:
        """Train for an epoch, or up to the end of the interval; there, stop a stage and grow the next."""
        return self._grow(lab, state) if state.phase == "grow" else self._tune(lab, state)

    def done(self, lab: Lab, state: State) -> str | None:
        """Why the run is over."""
        return state.why if state.phase == "done" else None

    def load(self, fields: Mapping[str, Any]) -> State:
        """The state whose fields these are."""
        pairs = {key: tuple((at, value) for at, value in fields[key]) for key in ("growths", "best")}
        return State(**{**fields, **pairs, "alive": tuple(fields["alive"])})

    # growing

    def _stages(self, lab: Lab) -> tuple[Stage, ...]:
        return lab.stages(self.settings.stages)

    def span(self, lab: Lab, duration: Duration) -> int:
        """Steps of an interval: as many as with all the training images there are."""
        share = lab.share if self.settings.scale_to_data and duration.unit == "epochs" else 1.0
        return max(1, round(duration.steps(lab.epoch) / share))

    def _tau(self, lab: Lab, state: State) -> float:
        """The least gain that counts; of a metric of one's own as a part of all that was gained, whatever its unit."""
        tau = max(5e-4, 1 / lab.images["val"]) if self.settings.tau is None else self.settings.tau
        gained = state.best[-1][1] - state.least if state.best and state.least is not None else 0.0
        return tau if lab.keys.metric is None else tau * gained or inf

    def _grow(self, lab: Lab, state: State) -> State:
        s, length = self.settings, self.span(lab, self.settings.interval)
        steps = min(length - state.at, lab.epoch)
        start, peak = lab.step - state.at, s.grow_lr or lab.keys.lr
        trained = lab.train(steps, lambda step: lr_at(s.schedule, peak, (step - start) / length))
        score = lab.score()
        best = max(score.worth, state.best[-1][1] if state.best else -inf)
        clock = state.clock + steps
        state = replace(state, clock=clock, at=state.at + steps, best=(*state.best, (clock, best)))
        state = replace(state, least=score.worth if state.least is None else min(score.worth, state.least))
        state = replace(state, trained=trained.accuracy)
        if state.at < length:
            return state
        state = replace(state, at=0, round=state.round + 1)
        shape = depths(lab, self._stages(lab))
        lab.note("round", round=state.round, loss=trained.loss, val=score.accuracy, depths=shape)
        state = self.decide(lab, state)
        over = state.clock >= s.max_epochs * lab.epoch
        if over and state.alive:
            state = replace(state, alive=(), why=f"{s.max_epochs:g} epochs, the most allowed")
        return state if state.alive else self.end_growing(lab, state)

    def decide(self, lab: Lab, state: State) -> State:
        """End an interval as Algorithm 1 has it: first the stage that grew last may stop, then the next one grows."""
        stop, grow, judged = self.verdict(lab, state)
        state = replace(state, judged=judged)
        if stop and state.grown in state.alive:
            state = self._left(lab, state, state.grown, "accuracy")
        while grow and state.alive:
            stage = next(stage for stage in self._stages(lab) if stage.name == state.next)
            depth = stage.depth(lab.model)
            if depth >= self.settings.max_depth:
                state = self._left(lab, state, stage.name, "max_depth")
            elif not self._fits(lab, stage, depth + 1):
                state = self._left(lab, state, stage.name, "budget")
            else:
                self.append(lab, {stage: depth + 1}, {}, state.trained)
                growths = (*state.growths, (state.clock, stage.name))
                state = replace(state, grown=stage.name, growths=growths, judged=False)
                state = replace(state, next=follower(state.alive, stage.name))
                lab.note("grown", stage=stage.name, depths=depths(lab, self._stages(lab)), widths=lab.widths)
                break
        return state

    def _fits(self, lab: Lab, stage: Stage, depth: int) -> bool:
        graph = deeper(lab.sketch(), {stage: depth}, templates(lab.model, lab.original, [stage])).graph
        return lab.budget.holds(graph.price.cost(graph.widths))

    def verdict(self, lab: Lab, state: State) -> tuple[bool, bool, bool]:
        """Whether the last grown stage stops, whether the next one grows, and whether the last growth is judged now."""
        s, tau = self.settings, self._tau(lab, state)
        worst = 0.0 if lab.keys.metric is None else -inf
        if s.policy == "periodic":
            return gained(state.best, self.span(lab, s.patience), worst) < tau, True, True
        still = gained(state.best, self.span(lab, s.interval), worst) < tau
        since = state.growths[-1][0] if state.growths else 0
        helped = state.best[-1][1] - best_at(state.best, since, worst) > tau
        return still and not state.judged and not helped, still, state.judged or still

    def _left(self, lab: Lab, state: State, stage: str, why: str) -> State:
        """A stage leaves the list; the pointer moves on if it stood there."""
        following = follower(state.alive, stage)
        alive = tuple(name for name in state.alive if name != stage)
        lab.note("left", stage=stage, why=why, depths=depths(lab, self._stages(lab)))
        reasons = {
            "accuracy": f"the best accuracy stood still: {stage} was the last to leave",
            "budget": f"no stage has room for another block: {stage} was the last to leave",
            "max_depth": f"{stage} reached {self.settings.max_depth} blocks, the most allowed",
        }
        return replace(state, alive=alive, next=following if state.next == stage else state.next, why=reasons[why])

    def append(self, lab: Lab, goal: Mapping[Stage, int], widths: Mapping[str, int], trained: float) -> None:
        """Append blocks, narrow those that are to be, and initialise each one's last batch norm."""
        new = lab.arrange(layout(lab.model, goal), templates(lab.model, lab.original, list(goal)))
        if widths:
            lab.resize(widths)
        norms = [norm for block in new if (norm := last_norm(lab.model, lab.shape, block)) is not None]
        affine = [lab.model.get_parameter(f"{norm}.{key}") for norm in norms for key in ("weight", "bias")]
        generator = torch.Generator().manual_seed(seed_of(lab.seed, "last batch norm", lab.step))
        for parameter in affine:
            initialise(parameter, self.settings, generator)
        if self.settings.init == "adam" and affine:
            self._train_alone(lab, affine, trained)

    def _train_alone(self, lab: Lab, parameters: list[nn.Parameter], trained: float) -> None:
        """AdamInit: train nothing but these, until the training accuracy is nearly that of before."""
        held, epoch = lab.optimizer, lab.epoch
        lab.optimizer = torch.optim.Adam(parameters, lr=ADAM_LR, weight_decay=ADAM_DECAY)
        for _ in range(ADAM_EPOCHS):
            sign, worst = lab.keys.sign, ADAM_LOSS * (1 if lab.keys.metric is None else abs(trained))
            if sign * lab.train(epoch, lambda _: ADAM_LR).accuracy > sign * trained - worst:
                break
        lab.optimizer = held

    def end_growing(self, lab: Lab, state: State) -> State:
        """Cut what was of no use, fill the budget, and go on to tuning, as the settings say."""
        s, stages = self.settings, self._stages(lab)
        if s.overshoot == "cut":
            wanted = useful(state, self._tau(lab, state), depths(lab, stages))
            lab.arrange(layout(lab.model, {stage: wanted[stage.name] for stage in stages}))
            lab.note("cut", depths=depths(lab, stages), widths=lab.widths)
        if s.on_saturation == "fill":
            copied = templates(lab.model, lab.original, stages)
            goal, widths = fill_with_depth(lab.sketch(), stages, lab.budget, self.around.align, s.max_depth, copied)
            if goal:
                self.append(lab, goal, widths, state.trained)
                lab.note("filled", depths=depths(lab, stages), widths=lab.widths)
        return replace(state, phase="tune", at=0)

    # tuning

    def _tune(self, lab: Lab, state: State) -> State:
        tune = self.settings.tune
        total = max(1, lab.last(tune.epochs, state.at))
        state = replace(state, at=lab.stretch("tune", tune, state.at, total))
        return replace(state, phase="done") if state.at >= total else state


def templates(model: nn.Module, full: nn.Module, stages: Sequence[Stage]) -> dict[str, nn.Module]:
    """What new blocks are copies of where a stage of the model has only its first one: the full network's."""
    copied = {}
    for stage in stages:
        if len(stage.blocks) > 1 and (depth := stage.depth(model)) < 2:
            inside = f"{stage.container}.{stage.names(depth + 1)[-1]}".removeprefix(".")
            copied[inside] = full.get_submodule(f"{stage.container}.{stage.blocks[-1]}".removeprefix("."))
    return copied


def depths(lab: Lab, stages: Sequence[Stage]) -> dict[str, int]:
    """The present number of blocks of every stage."""
    return {stage.name: stage.depth(lab.model) for stage in stages}


def follower(alive: Sequence[str], name: str) -> str:
    """The one behind a name in a circular list, which may be itself."""
    return alive[(alive.index(name) + 1) % len(alive)]


def best_at(best: Sequence[tuple[int, float]], step: int, before: float = 0.0) -> float:
    """The running maximum as it was after these steps; `before` the first look what nothing is worse than."""
    return max((value for at, value in best if at <= step), default=before)


def gained(best: Sequence[tuple[int, float]], steps: int, before: float = 0.0) -> float:
    """How much the running maximum rose within the last steps; all of it, where it is younger than that."""
    return best[-1][1] - best_at(best, best[-1][0] - steps, before)


def useful(state: State, tau: float, now: Mapping[str, int]) -> dict[str, int]:
    """The depths at which the running maximum was first within tau of the last one: what came later was of no use."""
    reached = next(at for at, value in state.best if value >= state.best[-1][1] - tau)
    late = [stage for at, stage in state.growths if at >= reached]
    return {stage: depth - late.count(stage) for stage, depth in now.items()}


@torch.no_grad()
def initialise(tensor: Tensor, settings: Autogrow, generator: torch.Generator) -> None:
    """Set the weight or the bias [C] of a new block's last batch norm (section 3.2).

    The paper's uniform has "standard deviation 1.0", its code U(0, 1), of mean 0.5: "centred" is the one, "uniform" the
    other. Nothing changes for "adam", which starts from 1 and 0.
    """
    scale, size = settings.init_scale, tensor.shape
    drawn = {
        "zero": lambda: torch.zeros(size),
        "gauss": lambda: torch.randn(size, generator=generator) * scale,
        "uniform": lambda: torch.rand(size, generator=generator) * scale,
        "centred": lambda: (2 * torch.rand(size, generator=generator) - 1) * 3**0.5 * scale,
    }
    if settings.init in drawn:
        tensor.copy_(drawn[settings.init]())
