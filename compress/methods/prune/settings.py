"""The keys of pruning, which are the same whatever the channels are judged by."""

from typing import Annotated, ClassVar, Literal

from pydantic import BeforeValidator, Field

from compress.recipe.keys import Count, Duration, Fraction, Positive, SpanOrNone, Whole, number
from compress.recipe.step import Course, Step, Tune


class Prune(Step):
    """What all ways to judge channels have."""

    rounds: Count = 1
    """Cuts in which the widths go down to the budget's, with training between them; at equal epochs one cut was better
    when tried, by 0.6 to 1 points on small nets."""
    round: SpanOrNone = Duration(1.0, "epochs")
    """Training between two cuts, at a constant rate."""
    allocate: Literal["even", "score", "sensitivity"] = "even"
    """How the cut is shared out: all layers by one factor; where channels count least for what they cost; or where
    validation images lose least when a layer alone is cut, to three widths."""
    floor: Fraction = 0.5
    """Least part of its even width that another allocation leaves a layer, so that none is starved."""
    recalibrate: Whole = 32
    """Training batches on which batch norms' statistics are estimated anew after each cut; 0 leaves them."""
    repair: Literal["none", "scale", "solve"] = "none"
    """What is done to the layers that read a narrowed space, at the cut: nothing; a factor for each channel that stays;
    or all their weights solved anew, so that they put out what they did (least squares, on 32 training batches)."""
    tune: Tune = Tune()
    """Training of the final shape; epochs: 0 leaves the weights as they are."""
    rates: tuple[Positive, ...] = (1.0, 0.3, 0.1)
    """Where tune.lr says none: shares of train.lr that are tried as rates, for a tenth of tune's epochs each, and the
    validation images choose. The right rate matters more than the right channels. [] takes train.lr."""

    share_before = 2.0
    relative: ClassVar[bool] = True  # whether the scores of two layers cannot be compared as they are

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

    relative = False

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


class ByReaders(Prune):
    """What scores have that look at what a layer's readers put out."""

    batches: Count = 32
    """Training batches that are looked at before each cut; they are in the train-cost."""


class Thinet(ByReaders):
    """The same by what the next layers' outputs would lose, one channel after the other (Luo et al. 2017)."""

    name: Literal["thinet"] = "thinet"
    """The method."""
    repair: Literal["none", "scale", "solve"] = "scale"
    """As elsewhere; a factor for each channel that stays is the paper's."""


class Provable(ByReaders):
    """The same by the largest share that a channel has in what a next layer puts out (Liebenwein et al. 2020)."""

    name: Literal["provable"] = "provable"
    """The method."""


class Reconstruct(ByReaders):
    """The same by what the next layers cannot make up for, and their weights are solved anew (OSSCAR, 2024)."""

    name: Literal["reconstruct"] = "reconstruct"
    """The method."""
    repair: Literal["none", "scale", "solve"] = "solve"
    """As elsewhere; solved anew is what this is for."""


class Before(Prune):
    """What methods have that train the full net before they cut it."""

    before: Course = Course(epochs=10, schedule="constant")
    """Training of the full net that shows which channels can go."""


class Slimming(Before):
    """The same by the scales of batch norms, which are trained under an l1 penalty first (Liu et al. 2017)."""

    name: Literal["slimming"] = "slimming"
    """The method."""
    penalty: Positive = 1e-4
    """Weight of the scales' absolute values in the loss, as published."""
    allocate: Literal["even", "score", "sensitivity"] = "score"
    """As elsewhere; scales of all layers are compared, as published."""

    relative = False


class Soft(Before):
    """The same by the l2 norms of filters; those that would go are set to zero after each epoch, and may recover (He et
    al. 2018)."""

    name: Literal["soft"] = "soft"
    """The method."""


class GrowPrune(Before):
    """Learn which channels are needed, in a net that grows from a few of them and is pruned at once (Yuan et al. 2021);
    all weights are drawn anew."""

    name: Literal["grow_prune"] = "grow_prune"
    """The method."""
    before: Course = Course(epochs=20, schedule="constant")
    """Training in which channels come and go."""
    seed: Fraction = 0.25
    """Part of each layer's channels that is open at the start."""
    gate_lr: Positive = 0.5
    """Learning rate of gates."""
    weight: Positive = 0.02
    """Weight of the cost, as long as it is twice the budget."""
    steepest: Annotated[float, Field(gt=1), BeforeValidator(number)] = 200.0
    """Steepness of gates at the end, 1 at the start; 200 leaves nearly none between open and closed."""
    allocate: Literal["even", "score", "sensitivity"] = "score"
    """As elsewhere; score: as many in each layer as have opened."""


class Tuning(Step):
    """Train a network on as it is, at the best of a few rates: on new data, say, or for longer."""

    name: Literal["tune"] = "tune"
    """The method."""
    tune: Tune = Tune()
    """The training."""
    rates: tuple[Positive, ...] = (1.0, 0.3, 0.1)
    """Where tune.lr says none: shares of train.lr that are tried as rates, for a tenth of tune's epochs each, and the
    validation images choose. [] takes train.lr."""

    @property
    def last_epochs(self) -> float:
        """All of them."""
        return self.tune.epochs
