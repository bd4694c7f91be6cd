"""What the keys of all methods are made of: a step of a recipe, a course of training, published presets."""

from collections.abc import Mapping

from compress.recipe.keys import Keys, NotNegative, Part, Positive, Schedule


class Step(Keys):
    """What every method has."""

    name: str
    """The method."""
    share: Positive | None = None
    """Part of the budget that its net may take, where a recipe has several steps; null: 1 for the last, 0.5 before a
    step that grows, 2 before one that prunes, so that the next has something to do."""


def preset(said: object, published: Mapping[str, object], tuning: Mapping[str, object]) -> object:
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


class Tune(Course):
    """Training of the final shape."""

    epochs: NotNegative = 20.0
    """Epochs; 20 let a cosine settle on small images, results worth publishing take more."""
