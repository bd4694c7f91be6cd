"""The keys of refitting."""

from typing import Literal

from compress.recipe.step import Step, Tune


class Refit(Step):
    """Fit the network of a finished run to another budget, from what it was on its way or as it ended, and tune it."""

    name: Literal["refit"] = "refit"
    """The method."""
    of: str
    """The folder of that run, relative to the recipe. Required."""
    start: Literal["end", "nearest"] = "end"
    """What smaller nets begin with: the run's end, narrowed, or what is nearest in size of that and of the states that
    it kept (export.states). The end, since on digits narrowed nets are up to 19 points better after 10 epochs and level
    after 40; a state may have fewer blocks, where depth was grown."""
    tune: Tune = Tune(epochs=5.0)
    """Training of the final shape; few epochs, as the weights are trained already."""

    @property
    def last_epochs(self) -> float:
        """Of the final shape."""
        return self.tune.epochs
