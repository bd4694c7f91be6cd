"""What the keys of a recipe are made of: durations, numbers in their ranges, frozen tables that refuse unknown keys."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, PlainValidator, WithJsonSchema


@dataclass(frozen=True, slots=True)
class Duration:
    """A stretch of training, in epochs (passes over the training images) or in optimizer steps."""

    count: float
    unit: Literal["epochs", "steps"]

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read "10 epochs", "0.5 epochs", "1 epoch" or "100 steps"; raises ValueError for anything else."""
        match = re.fullmatch(r"\s*([0-9]{1,9}(?:\.[0-9]{1,9})?)\s*(epoch|step)s?\s*", text)
        if match is None or (match[2] == "step" and not float(match[1]).is_integer()):
            raise ValueError(f"expected a duration such as '10 epochs' or '100 steps', got {text!r}")
        return cls(float(match[1]), "epochs" if match[2] == "epoch" else "steps")

    def steps(self, steps_per_epoch: int) -> int:
        """Return the optimizer steps it lasts: at least 1, and 0 only for a duration of zero."""
        exact = self.count * (steps_per_epoch if self.unit == "epochs" else 1)
        return max(1, round(exact)) if self.count else 0

    def __str__(self) -> str:
        count = str(int(self.count)) if float(self.count).is_integer() else f"{self.count:.9f}".rstrip("0")
        return f"{count} {self.unit.removesuffix('s') if self.count == 1 else self.unit}"


def number(given: object) -> object:
    """Let anything pass but true and false: a validator that goes before a number's own."""
    if isinstance(given, bool):  # a bool is an int to Python, never to a reader of recipes
        raise ValueError(f"expected a number, got {str(given).lower()}")
    return given


def _duration(least: float) -> Callable[[object], Duration]:
    def read(given: object) -> Duration:
        duration = given if isinstance(given, Duration) else Duration.parse(str(given))
        if duration.count < least:
            raise ValueError(f"expected a duration above zero, got '{duration}'")
        return duration

    return read


def share_or_count(least: int, what: str) -> Callable[[float], float]:
    """Let pass a fraction of all, or so many: a validator of numbers below 1, and of whole ones from `least`."""

    def read(given: float) -> float:
        if given >= least and given.is_integer():
            return int(given)
        if not 0 < given < 1:
            raise ValueError(
                f"expected a fraction above 0 and below 1, or a whole number of {what} from {least}, got {given:g}"
            )
        return given

    return read


def import_path(text: str) -> str:
    """Let pass what names something to import: 'package.module:callable' or './file.py:callable'."""
    module, _, name = text.rpartition(":")
    dotted = all(part.isidentifier() for part in module.split("."))
    if not (name.isidentifier() and (dotted or (module.endswith(".py") and module != ".py"))):
        raise ValueError(f"expected 'package.module:callable' or './file.py:callable', got {text!r}")
    return text


_SPAN = {"type": "string", "pattern": r"^\s*[0-9]{1,9}(\.[0-9]{1,9})?\s*(epoch|step)s?\s*$"}
_WRITTEN = (PlainSerializer(str, return_type=str), WithJsonSchema(_SPAN))
Span = Annotated[Duration, PlainValidator(_duration(1e-9)), *_WRITTEN]
SpanOrNone = Annotated[Duration, PlainValidator(_duration(0)), *_WRITTEN]
Whole = Annotated[int, Field(ge=0), BeforeValidator(number)]
Count = Annotated[int, Field(ge=1), BeforeValidator(number)]
Positive = Annotated[float, Field(gt=0), BeforeValidator(number)]
NotNegative = Annotated[float, Field(ge=0), BeforeValidator(number)]
Fraction = Annotated[float, Field(ge=0, lt=1), BeforeValidator(number)]
Schedule = Literal["linear", "cosine", "steps", "staircase", "onecycle", "constant"]


class Keys(BaseModel):
    """A table of a recipe: frozen, every key known, every number finite."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)
