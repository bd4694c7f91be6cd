"""The keys of AdeNeL."""

from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from compress.recipe.keys import Count, Duration, Positive, Span, SpanOrNone, number, share_or_count
from compress.recipe.step import Growing, Tune, preset


class Adenel(Growing):
    """Grow a narrow net where its filters prove to be in use, until the budget is filled (AdeNeL)."""

    name: Literal["adenel"] = "adenel"
    """The method."""
    preset: Literal["default", "published"] = "default"
    """'published' fills every key left out with the paper's value, or its code's where it states none; 'default' has
    what trained small CIFAR-10 nets well at equal cost."""
    begin: Literal["seed", "present"] | None = None
    """Start from narrow layers with newly drawn weights, or grow the net as it is, weights kept; null: 'seed', but
    'present' after another step."""
    seed_width: Annotated[float, BeforeValidator(number), AfterValidator(share_or_count(1, "filters"))] = 8
    """Filters of each free layer at the start, or a fraction below 1 of its full width; with 4 filters, training starts
    slowly."""
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
    grow: Literal["support", "score", "all", "random"] = "support"
    """Grow layers whose support passes tau; all, each by its score (see sharpness); all alike; or each with an even
    chance. 'support' is the method as published, 'all' and 'random' are its controls."""
    sharpness: Positive = 4.0
    """With grow score: a layer's growth is in proportion to this power of its score, the mean of |Z| / (clock |W|) over
    its filters and, half of it, over earlier rounds: how much of their norm filters keep when averaged over time."""
    spread: Annotated[float, Field(gt=1), BeforeValidator(number)] | None = None
    """Hold back layers that have more than so many times the share of their full width that the narrowest has, so that
    shapes stay as even as the full net's; null: none."""
    max_width: Positive | None = None
    """Most channels of a layer, in widths of the full net: 1 keeps it within that, 2 allows twice; null: no bound, for
    where a layer is cheap under the limits that there are, growing it may be what pays."""
    rewind: bool = False
    """Draw the weights of the found shape anew before it is tuned."""
    amount: Literal["fixed", "even", "ratio", "equal_cost"] = "equal_cost"
    """What a growth adds to a layer: 'filters'; or in proportion to its full width, 'filters' on average, which leads
    to a narrower full net; or up to max(width + filters, ratio x width); or as many as take the same share of what is
    left of the budget, together what 'filters' a layer take, several limits weighted so that they run out together.
    Equal counts would spend it on early layers."""
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

    @model_validator(mode="before")
    @classmethod
    def _published(cls, given: object) -> object:
        return preset(given, PUBLISHED, PUBLISHED_TUNE)


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
