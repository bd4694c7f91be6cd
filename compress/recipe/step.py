"""What the keys of all methods are made of: a step of a recipe, a course of training, published presets."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, Self

from pydantic import AfterValidator, Field, JsonValue, model_validator

from compress.recipe.keys import Fraction, Keys, NotNegative, Positive, Schedule, import_path


class Step(Keys):
    """What every method has."""

    name: str
    """The method."""
    share: Positive | None = None
    """Part of the budget that its net may take, where a recipe has several steps; null: 1 for the last, 0.5 before a
    step that grows, 2 before one that prunes, so that the next has something to do."""

    share_before: ClassVar[float] = 1.0
    """What a step before one of this method may take, of the part of the budget that this one may."""
    cuts_connections: ClassVar[bool] = False
    """Whether it leaves a network whose connections were cut, which has no stages any more."""
    needs_stages: ClassVar[bool] = False

    def grows_present(self, *, after: bool) -> bool:
        """Whether it makes the net that it is given larger; `after` another step, or as the first."""
        return False

    @property
    def last_epochs(self) -> float:
        """Epochs of its last stage of training, where they are known before: what a clock may go by."""
        return 0.0


class Own(Step):
    """A method of your own; its arguments are checked when its file is imported, and until then kept as written."""

    name: Annotated[str, AfterValidator(import_path)]
    """What makes the method, a subclass of compress.Method: 'package.module:callable', or './file.py:callable'."""
    args: dict[str, JsonValue] = Field({})
    """Its keyword arguments; none by default."""


def preset(given: object, published: Mapping[str, object], tuning: Mapping[str, object]) -> object:
    """What was given, with the published values for what was not, where that is asked for."""
    if not isinstance(given, Mapping) or given.get("preset") != "published":
        return given
    tune = given.get("tune", {})
    return {**published, **given, "tune": {**tuning, **tune} if isinstance(tune, Mapping) else tune}


class Course(Keys):
    """Training along a schedule."""

    epochs: NotNegative | None = None
    """Epochs."""
    schedule: Schedule = "cosine"
    """Course of the learning rate; cosine needs no milestones."""
    lr: Positive | None = None
    """Peak learning rate; null is train.lr."""
    warmup: Fraction = 0.0
    """Share of the stage during which the rate rises; 0 is enough with batch norm."""


class Tune(Course):
    """Training of the final shape."""

    epochs: NotNegative = 20.0
    """Epochs; 20 let a cosine settle on small images, results worth publishing take more."""


class Growing(Step):
    """What every method has that makes a network larger, and trains it at its end."""

    share_before = 0.5

    if TYPE_CHECKING:  # declared by each method, in its own order and words
        begin: Literal["seed", "present"] | None
        tune: Tune

    def grows_present(self, *, after: bool) -> bool:
        """Whether it goes on from the net as it is; unless the recipe says so, `after` another step alone."""
        return after if self.begin is None else self.begin == "present"

    @property
    def last_epochs(self) -> float:
        """Of the final shape."""
        return self.tune.epochs

    @model_validator(mode="after")
    def _trains_what_it_grows(self) -> Self:
        if self.tune.epochs == 0:
            raise ValueError("the last growth would never be trained with tune.epochs: 0; write at least 1")
        return self
