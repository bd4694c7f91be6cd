"""The keys of LWP."""

from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, model_validator

from compress.recipe.keys import Count, Duration, NotNegative, Positive, Schedule, SpanOrNone, number
from compress.recipe.step import Course, Step, Tune, preset


class Pretrain(Course):
    """Training of the full net before a search in it."""

    epochs: NotNegative | None = None
    """Epochs; null: 20 where model.weights are left out, and 0 where they are given or another method came before."""


class Lwp(Step):
    """Drop connections of a densely connected net that a controller learns it can do without (LWP)."""

    name: Literal["lwp"] = "lwp"
    """The method."""
    preset: Literal["default", "published"] = "default"
    """'published' fills every key left out with the paper's value, where it states one; 'default' has what worked in
    little training and keeps a budget in view."""
    pretrain: Pretrain = Pretrain()
    """Training of the full net, which the search needs trained."""
    hidden: Count = 128
    """Size of the controller's LSTM; not published, and it matters little."""
    bias: Annotated[float, BeforeValidator(number)] = 2.0
    """What the controller's outputs start at, before the sigmoid; 2 keeps 88 % of the connections: near the full net,
    and still open to change (3 did not converge when tried)."""
    children: Count = 4
    """Networks tried in each step, each on its part of the batch; 1 as published, more make calmer gradients at no
    cost."""
    alpha: Positive = 2.0
    """Exponent of the cost in the reward 1 - eta^alpha of a right answer; larger ones keep larger nets. 2 as
    published, or 3."""
    gamma: NotNegative = 0.5
    """Penalty of a wrong answer; 0.5 as published."""
    over: NotNegative = 0.5
    """Penalty of a net twice as large as the budget; what counts as the budget falls to it from the full cost, until
    half of 'joint'. With 2 the controller dropped in haste when tried; 0 as published: the last choice alone cares."""
    entropy: NotNegative = 1.0
    """Weight of the policy's mean entropy beside the reward; not published. Connections are chosen by their rank, and
    with 0.03 the controller settled early and ranked them worse when tried."""
    lr: Positive = 5e-3
    """The controller's peak learning rate (Adam); 1e-3 as published takes many more steps."""
    schedule: Schedule = "constant"
    """Its course, over each of the two stages; constant, as they are short."""
    release: SpanOrNone = Duration(20.0, "steps")
    """Training between two layers that the controller is given to decide, from the last one backwards; 0 steps: all at
    once. Fewer than 20 steps teach it nothing about a layer."""
    search: SpanOrNone | None = None
    """Training of the controller alone, the net's weights held; at least 'release' for every layer, which null is."""
    joint: SpanOrNone = Duration(20.0, "epochs")
    """Training of net and controller together; it is what keeps the accuracy."""
    joint_lr: Positive = 0.01
    """The net's learning rate in that stage; a tenth of the usual, as it is trained already."""
    joint_controller_lr: Positive | None = None
    """The controller's; null is lr."""
    samples: Count = 16
    """Nets drawn at the end beside the likeliest one, of which the best is kept; not published. The likeliest is often
    not the best."""
    recalibrate: Count = 8
    """Training batches that each of them has its batch norms estimated on before it is scored; 8 were enough."""
    fill: bool = True
    """Let them use the budget that they leave, since it was given to be used; off as published."""
    retrain: Literal["tune", "scratch"] = "tune"
    """Train the chosen net on, or from newly drawn weights as published; tuning needs far fewer epochs."""
    tune: Tune = Tune()
    """Training of the final shape; epochs: 0 leaves the weights as they are."""

    share_before = 2.0
    cuts_connections = True

    @property
    def last_epochs(self) -> float:
        """Of the final shape."""
        return self.tune.epochs

    @model_validator(mode="after")
    def _trains_what_it_draws(self) -> Self:
        if self.retrain == "scratch" and self.tune.epochs == 0:
            raise ValueError("a net from newly drawn weights would never be trained with tune.epochs: 0")
        return self

    @model_validator(mode="before")
    @classmethod
    def _published(cls, given: object) -> object:
        return preset(given, PUBLISHED_LWP, PUBLISHED_LWP_TUNE)


PUBLISHED_LWP = {
    "children": 1,
    "alpha": 2.0,
    "gamma": 0.5,
    "over": 0.0,
    "lr": 1e-3,
    "schedule": "staircase",
    "release": "1 epoch",
    "search": "1000 epochs",
    "joint": "1000 epochs",
    "joint_lr": 1e-4,
    "joint_controller_lr": 1e-4,
    "fill": False,
    "retrain": "scratch",
}


PUBLISHED_LWP_TUNE = {"epochs": 300, "schedule": "cosine"}
