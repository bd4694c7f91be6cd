"""The keys of l1 pruning."""

from typing import Literal

from compress.recipe.keys import Count, Duration, SpanOrNone
from compress.recipe.step import Step, Tune


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

    share_before = 2.0

    @property
    def last_epochs(self) -> float:
        """Of the final shape."""
        return self.tune.epochs
