"""The keys of training from scratch."""

from typing import Literal, Self

from pydantic import model_validator

from compress.recipe.keys import Count, Fraction, Positive, Schedule
from compress.recipe.step import Step


class FromNew(Step):
    """What training from newly drawn weights has, whatever the shape."""

    epochs: Positive
    """Epochs. Required: a comparison is only as good as its equal cost."""
    schedule: Schedule = "cosine"
    """Course of the learning rate; cosine needs no milestones."""
    warmup: Fraction = 0.0
    """Share of training during which the rate rises; 0 is enough with batch norm."""
    lr: Positive | None = None
    """Peak learning rate; null is train.lr."""

    @property
    def last_epochs(self) -> float:
        """All of them."""
        return self.epochs


class Uniform(FromNew):
    """Narrow all layers by one factor until the budget holds, and train that net from newly drawn weights: a width
    multiplier (Howard et al. 2017, "MobileNets")."""

    name: Literal["uniform"] = "uniform"
    """The method."""


class Scratch(FromNew):
    """Train one shape from newly drawn weights: the control that every method is compared with."""

    name: Literal["scratch"] = "scratch"
    """The method."""
    like: str | None = None
    """A model.safetensors whose shapes are used, its weights are not; null: the full net's shapes."""
    widths: dict[str, Count] | None = None
    """Channels of spaces, by name; null leaves them as they are."""

    @model_validator(mode="after")
    def _one_shape(self) -> Self:
        if self.like is not None and self.widths is not None:
            raise ValueError("like and widths both say the shape; keep one of them")
        return self
