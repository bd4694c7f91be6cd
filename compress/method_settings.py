"""Every key of the methods that a recipe may name; see `settings` for all others."""

from collections.abc import Mapping
from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from compress.keys import Count, Duration, Keys, NotNegative, Part, Positive, Schedule, Span, SpanOrNone, number


class Step(Keys):
    """What every method has."""

    name: str
    """The method."""
    share: Positive | None = None
    """Part of the budget that its net may take, where a recipe has several steps; null: 1 for the last, 0.5 before a
    step that grows, 2 before one that prunes, so that the next has something to do."""


def _preset(said: object, published: Mapping[str, object], tuning: Mapping[str, object]) -> object:
    """What was said, with the published values for what was not, where that is asked for."""
    if not isinstance(said, Mapping) or said.get("preset") != "published":
        return said
    tune = said.get("tune", {})
    return {**published, **said, "tune": {**tuning, **tune} if isinstance(tune, Mapping) else tune}


class Course(Keys):
    """Training along a schedule."""

    epochs: NotNegative | None = None
    """Epochs."""
    schedule: Schedule = "cosine"
    """Course of the learning rate; cosine needs no milestones."""
    lr: Positive | None = None
    """Peak learning rate; null is train.lr."""
    warmup: Part = 0.0
    """Share of the stage during which the rate rises; 0 is enough with batch norm."""


class Pretrain(Course):
    """Training of the full net before a search in it."""

    epochs: NotNegative | None = None
    """Epochs; null: 20 where model.weights are left out, and 0 where they are given or another method came before."""


class Tune(Course):
    """Training of the final shape."""

    epochs: NotNegative = 20.0
    """Epochs; 20 let a cosine settle on small images, results worth publishing take more."""


class Adenel(Step):
    """Grow a narrow net where its filters prove to be in use, until the budget is filled (AdeNeL)."""

    name: Literal["adenel"] = "adenel"
    """The method."""
    preset: Literal["default", "published"] = "default"
    """'published' fills every key left out with the paper's value, or its code's where it states none; 'default' has
    what trained small CIFAR-10 nets well at equal cost."""
    begin: Literal["seed", "present"] | None = None
    """Start from narrow layers with newly drawn weights, or grow the net as it is, weights kept; null: 'seed', but
    'present' after another step."""
    seed_width: Count = 8
    """Filters of each free layer at the start; with 4, training starts slowly."""
    round: Span = Duration(1.0, "epochs")
    """Training between two growths; short, as growing early is cheap."""
    max_rounds: Count = 100
    """Rounds at most; far above what budgets need, so only a safeguard. The last one fills the budget, or does not, as
    on_saturation says."""
    tau: Annotated[float, Field(gt=0, le=1), BeforeValidator(number)] = 0.8
    """A layer grows when this share of its filters is in the support; 0.8 as published."""
    lambda_mode: Literal["absolute", "layer", "filter"] = "filter"
    """What the support's threshold is relative to: nothing, the layer's mean norm, or each filter's own norm at the
    start of the round. Per filter, since an absolute one is right for one round length only."""
    theta: Positive = 0.9
    """Threshold over what an unchanged filter would reach in a round (modes layer and filter); 0.9 separates layers in
    rounds of one epoch or more, 0.97 in rounds of about 100 steps."""
    lambda_value: Positive = 1.0
    """Threshold of mode absolute; 1 as in the published code."""
    nu: Positive = 100.0
    """Looseness of the coupling of weights and support; 100 as published, 10 cost 9 points of accuracy when tried."""
    kappa: Positive = 1.0
    """Damping of the support's path; 1 as published, it does not move decisions."""
    grow: Literal["support", "all"] = "support"
    """Grow layers whose support passes tau, or all; 'support' is the method, 'all' its control."""
    amount: Literal["fixed", "ratio", "equal_cost"] = "equal_cost"
    """What a growth adds to a layer: 'filters'; or up to max(width + filters, ratio x width); or as many as take the
    same share of what is left of the budget, together what 'filters' a layer take, several limits weighted so that they
    run out together. Equal counts would spend it on early layers."""
    filters: Count = 4
    """Filters added to a layer in a growth, see amount; 4 as the published code has it for residual nets."""
    ratio: Annotated[float, Field(gt=1), BeforeValidator(number)] = 1.1
    """Growth of a width with amount ratio; 1.1 as in the published code."""
    new_rows: Literal["kaiming"] = "kaiming"
    """Initial weights of new filters; Kaiming as published."""
    new_columns: Literal["zero", "kaiming"] = "zero"
    """Initial weights that read new filters; zero keeps the net's function, worth a point of accuracy when tried."""
    residual: Literal["stage"] = "stage"
    """What grows together when added: all of a stage."""
    include_1x1: bool = False
    """Let 1x1 convolutions be judged; off, as in the published code."""
    empty_rounds: Count = 2
    """Rounds without growth that end growing; one alone may be chance."""
    on_saturation: Literal["fill", "stop"] = "fill"
    """When growing ends below the budget: fill it, since it was given to be used, or stop."""
    prune_unsupported: bool = False
    """Remove filters outside the support at the end; off, as the support lags behind the weights."""
    grow_lr: Positive | None = None
    """Constant learning rate while growing; null is train.lr."""
    warmup: SpanOrNone = Duration(0.0, "steps")
    """Rise of the rate at the start; none needed from width 8."""
    tune: Tune = Tune()
    """Training after growing ended."""

    @model_validator(mode="after")
    def _trains_what_it_grows(self) -> Self:
        if self.tune.epochs == 0:
            raise ValueError("the last growth would never be trained with tune.epochs: 0; write at least 1")
        return self

    @model_validator(mode="before")
    @classmethod
    def _published(cls, said: object) -> object:
        return _preset(said, PUBLISHED, PUBLISHED_TUNE)


class Autogrow(Step):
    """Append blocks to a shallow net's stages in turn, until a stage's next block does not help or fit (AutoGrow)."""

    name: Literal["autogrow"] = "autogrow"
    """The method."""
    preset: Literal["default", "published"] = "default"
    """'published' fills every key left out with the paper's value for CIFAR; 'default' has what small data needs."""
    begin: Literal["seed", "present"] | None = None
    """Start from shallow stages with newly drawn weights, or deepen the net as it is, weights kept; null: 'seed', but
    'present' after another step."""
    stages: tuple[str, ...] | None = None
    """Stages that may grow, by the names that `compress plan` lists; null: all that are found."""
    seed_depth: Count = 1
    """Blocks of each stage at the start; 1 as published: deeper seeds end no better."""
    policy: Literal["periodic", "convergent"] = "periodic"
    """Grow after every interval, or only once accuracy stood still for one; periodic did better in the paper."""
    interval: Span = Duration(3.0, "epochs")
    """Training between two decisions (K); shorter ends deeper and takes longer."""
    patience: Span = Duration(12.0, "epochs")
    """A stage stops when the best accuracy gained less than tau within this (J); about patience / interval blocks are
    appended in vain. Published: 100 epochs, a third of a long schedule. Policy convergent looks at one interval."""
    scale_to_data: bool = True
    """Make both last as many steps with data.train as with all training images, as published for smaller data sets."""
    tau: NotNegative | None = None
    """Least gain of the best validation accuracy, as a fraction of 1; null: the published 0.0005, or one image of the
    validation set if that is more."""
    init: Literal["zero", "gauss", "uniform", "centred", "adam"] = "zero"
    """The last batch norm of a new residual block: zero (the function stays), gauss N(0, 1), uniform U(0, 1) as the
    published code has it, centred U(-sqrt 3, sqrt 3), or 1 and 0 and then trained alone with Adam. Published: gauss;
    zero did better on little data."""
    init_scale: Positive = 1.0
    """Factor of gauss, uniform and centred; 1 as published, less where tiny nets blow up."""
    schedule: Literal["constant", "staircase"] = "constant"
    """Learning rate while growing; staircase falls within every interval, to a tenth at 1/2 and a hundredth at 3/4."""
    grow_lr: Positive | None = None
    """Learning rate while growing; null is train.lr."""
    max_depth: Count = 200
    """Blocks of a stage at most; a safeguard, as published."""
    max_epochs: Positive = 4000.0
    """Epochs of growing at most; a safeguard, as published."""
    overshoot: Literal["keep", "cut"] = "keep"
    """Blocks appended after the last gain: kept, as published, or cut again before anything is filled."""
    on_saturation: Literal["fill", "stop"] = "fill"
    """When growing ends below the budget: go on in turn to the deepest net that fits and add narrower last blocks,
    since the budget was given to be used, or stop."""
    tune: Tune = Tune()
    """Training after growing ended."""

    @model_validator(mode="after")
    def _trains_what_it_grows(self) -> Self:
        if self.tune.epochs == 0:
            raise ValueError("the last growth would never be trained with tune.epochs: 0; write at least 1")
        return self

    @model_validator(mode="before")
    @classmethod
    def _published(cls, said: object) -> object:
        return _preset(said, PUBLISHED_AUTOGROW, {"epochs": 200, "schedule": "staircase"})


PUBLISHED_AUTOGROW = {
    "seed_depth": 1,
    "policy": "periodic",
    "interval": "3 epochs",
    "patience": "100 epochs",
    "tau": 0.0005,
    "init": "gauss",
    "init_scale": 1.0,
    "schedule": "constant",
    "overshoot": "keep",
    "on_saturation": "stop",
}
PUBLISHED = {
    "seed_width": 16,
    "round": "10 epochs",
    "tau": 0.8,
    "lambda_mode": "absolute",
    "lambda_value": 1.0,
    "nu": 100.0,
    "kappa": 1.0,
    "grow": "support",
    "amount": "ratio",
    "ratio": 1.1,
    "filters": 8,
    "new_columns": "kaiming",
    "empty_rounds": 1,
    "on_saturation": "stop",
}
PUBLISHED_TUNE = {"epochs": 40, "schedule": "steps"}


class L1(Step):
    """Narrow a trained net to its budget by the l1 norms of its filters, and tune it (Li et al. 2017)."""

    name: Literal["l1"] = "l1"
    """The method."""
    rounds: Count = 1
    """Cuts in which the widths go down to the budget's; more, with training between them, help where much goes."""
    round: SpanOrNone = Duration(1.0, "epochs")
    """Training between two cuts, at a constant rate."""
    tune: Tune = Tune()
    """Training of the final shape; epochs: 0 leaves the weights as they are."""


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

    @model_validator(mode="after")
    def _trains_what_it_draws(self) -> Self:
        if self.retrain == "scratch" and self.tune.epochs == 0:
            raise ValueError("a net from newly drawn weights would never be trained with tune.epochs: 0")
        return self

    @model_validator(mode="before")
    @classmethod
    def _published(cls, said: object) -> object:
        return _preset(said, PUBLISHED_LWP, PUBLISHED_LWP_TUNE)


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


class Scratch(Step):
    """Train one shape from newly drawn weights: the control that every method is compared with."""

    name: Literal["scratch"] = "scratch"
    """The method."""
    epochs: Positive
    """Epochs. Required: a comparison is only as good as its equal cost."""
    schedule: Schedule = "cosine"
    """Course of the learning rate; cosine needs no milestones."""
    warmup: Part = 0.0
    """Share of training during which the rate rises; 0 is enough with batch norm."""
    lr: Positive | None = None
    """Peak learning rate; null is train.lr."""
    like: str | None = None
    """A model.safetensors whose shapes are used, its weights are not; null: the full net's shapes."""
    widths: dict[str, Count] | None = None
    """Channels of spaces, by name; null leaves them as they are."""

    @model_validator(mode="after")
    def _one_shape(self) -> Self:
        if self.like is not None and self.widths is not None:
            raise ValueError("like and widths both say the shape; keep one of them")
        return self


Method = Annotated[Adenel | Autogrow | L1 | Lwp | Scratch, Field(discriminator="name")]
# What a step before one of this method may take, of the part of the budget that this one may.
SHARES = {"adenel": 0.5, "autogrow": 0.5, "l1": 2.0, "lwp": 2.0, "scratch": 1.0}


def grows_present(method: Adenel | Autogrow, *, after: bool) -> bool:
    """Whether a method that grows goes on from the net as it is; unless it says so, `after` another step alone."""
    return after if method.begin is None else method.begin == "present"
