"""The keys of AutoGrow."""

from typing import Literal

from pydantic import model_validator

from compress.recipe.keys import Count, Duration, NotNegative, Positive, Span
from compress.recipe.step import Growing, Tune, preset


class Autogrow(Growing):
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

    needs_stages = True

    @model_validator(mode="before")
    @classmethod
    def _published(cls, given: object) -> object:
        return preset(given, PUBLISHED_AUTOGROW, {"epochs": 200, "schedule": "staircase"})


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
