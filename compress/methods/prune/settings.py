"""The keys of pruning, which are the same whatever the channels are judged by."""

from typing import Literal

from compress.recipe.keys import Count, Duration, SpanOrNone, Whole
from compress.recipe.step import Step, Tune


class Prune(Step):
    """What all ways to judge channels have."""

    rounds: Count = 1
    """Cuts in which the widths go down to the budget's, with training between them."""
    round: SpanOrNone = Duration(1.0, "epochs")
    """Training between two cuts, at a constant rate."""
    recalibrate: Whole = 32
    """Training batches on which batch norms' statistics are estimated anew after each cut; 0 leaves them."""
    tune: Tune = Tune()
    """Training of the final shape; epochs: 0 leaves the weights as they are."""

    share_before = 2.0

    @property
    def last_epochs(self) -> float:
        """Of the final shape."""
        return self.tune.epochs


class L1(Prune):
    """Narrow a trained net to its budget by the l1 norms of its filters, and tune it (Li et al. 2017)."""

    name: Literal["l1"] = "l1"
    """The method."""


class Group(Prune):
    """The same by the norms of all weights that make a channel or read it, each layer with one vote."""

    name: Literal["group"] = "group"
    """The method."""


class Random(Prune):
    """The same by dice: the control."""

    name: Literal["random"] = "random"
    """The method."""


class ByGradients(Prune):
    """What scores have that look at the loss."""

    batches: Count = 32
    """Training batches whose gradients are looked at before each cut; they are in the train-cost."""


class Taylor(ByGradients):
    """The same by how much the loss would change, to first order, without a channel (Molchanov et al. 2019)."""

    name: Literal["taylor"] = "taylor"
    """The method."""


class Hessian(ByGradients):
    """The same by how much it would to second order, with squared gradients for curvature (LeCun et al. 1990)."""

    name: Literal["hessian"] = "hessian"
    """The method."""
