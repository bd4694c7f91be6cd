"""The keys of distillation: which network teaches, and how much its word counts."""

from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field, JsonValue, model_validator

from compress.recipe.keys import Keys, Positive, import_path, number


class Teacher(Keys):
    """A trained network whose logits the net learns from, beside the labels (Hinton et al. 2015); or just 'full'."""

    factory: Annotated[str, AfterValidator(import_path)] | None = None
    """Callable that builds it, as model.factory says one; null is the recipe's own full net, with the weights that
    model.weights names. 'teacher: full' says just that."""
    args: dict[str, JsonValue] = Field({})
    """Keyword arguments of the factory; none by default."""
    weights: str | None = None
    """A .safetensors file, a saved state_dict or the folder of a finished run, relative to the recipe; null: the
    factory's own, which it must have loaded itself: a teacher of drawn weights is refused."""
    temperature: Positive = 4.0
    """What both nets' logits are divided by where they are compared; 4 shows of a trained net, which is nearly sure,
    what else it thought of. Hinton et al. found 2.5 to 4 best for small nets."""
    weight: Annotated[float, Field(gt=0, le=1), BeforeValidator(number)] = 0.9
    """Share of the teacher in the loss, the labels having the rest; the labels deserve little, as in that paper."""

    @model_validator(mode="before")
    @classmethod
    def _full(cls, given: Any) -> Any:
        return {} if given == "full" else given

    @model_validator(mode="after")
    def _arguments_have_a_factory(self) -> "Teacher":
        if self.args and self.factory is None:
            raise ValueError("args are those of a factory; write teacher.factory, or leave args out")
        return self


def or_full(schema: dict[str, Any]) -> None:
    """Let a JSON Schema of the key say that the word will do."""
    schema["anyOf"].insert(0, {"const": "full"})
