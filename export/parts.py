"""What a report is made of: texts without paths, numbers in their ranges, and its tables of facts. No torch.

`report.Report` puts them together and says what came of it. Numbers are never turned into others: a count is a whole
number in JSON too, and text is no number.
"""

import math
import platform
import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    FailFast,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    WithJsonSchema,
    model_serializer,
)

from compress.budget.limits import Cost
from compress.errors import ArtifactError
from compress.export.machine import processor, version

_MANY = 1_000  # mistakes: to name the first, pydantic must describe all, which takes a kilobyte each
_ABSOLUTE = re.compile(r"""(?<![\w.:/~)])(?:[A-Za-z]:[\\/]|[\\/]{1,2})(?:[^\s'",;:\\/]+[\\/])*([^\s'",;:\\/]+)""")


def portable(text: str) -> str:
    """Return the text with every absolute path cut to its last part: "--out /home/me/x" becomes "--out x"."""
    return _ABSOLUTE.sub(r"\1", text)


def _history_cell(value: Any) -> Any:
    """A cell of the history: a single value, or a table of numbers."""
    if isinstance(value, Mapping) and all(_plain_number(inner) for inner in value.values()):
        return dict(value)
    if isinstance(value, str):
        return portable(value)
    if value is None or isinstance(value, bool) or _plain_number(value):
        return value
    raise ValueError("a cell of the history holds a finite number, text, true, false, null, or a table of numbers")


def _plain_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


Item = TypeVar("Item")
Listed = Annotated[tuple[Item, ...], FailFast()]  # a list of millions of wrong values has one mistake
Text = Annotated[str, Field(strict=True), AfterValidator(portable)]
Flag = Annotated[bool, Field(strict=True)]
StrictWhole = Annotated[int, Field(strict=True, ge=0)]
StrictCount = Annotated[int, Field(strict=True, ge=1)]
StrictNotNegative = Annotated[float, Field(strict=True, ge=0)]
Real = Annotated[float, Field(strict=True)]
DIGEST = "^[0-9a-f]{64}$"
Digest = Annotated[str, Field(strict=True, pattern=DIGEST)]
Cell = Annotated[
    Any,
    AfterValidator(_history_cell),
    WithJsonSchema(
        {"type": ["number", "string", "boolean", "null", "object"], "additionalProperties": {"type": "number"}}
    ),
]


class Part(BaseModel):
    """A table of report.json: frozen, no keys but its own, every number finite; what it does not know is left out."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @model_serializer(mode="wrap")
    def _known(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        unknown = type(self).model_fields.keys() - self.model_fields_set
        return {key: value for key, value in write(self).items() if key not in unknown}

    @classmethod
    def of(cls, parts: Mapping[str, Any]) -> Self:
        """Put it together; the parts are typed ones, or tables of their keys.

        Raises ArtifactError naming the place and the value that is not as it must be, such as a number that is NaN.
        """
        try:
            return cls.model_validate(parts)
        except ValidationError as error:
            raise ArtifactError(f"{refusal(error)}.") from None

    def plain(self) -> dict[str, Any]:
        """Return it as JSON knows it."""
        return self.model_dump(mode="json", by_alias=True)


def refusal(error: ValidationError) -> str:
    """Say the first thing that is wrong: where, which value, and why; of thousands of things, how many they are."""
    if error.error_count() > _MANY:
        return f"{error.title.lower()}: {error.error_count():,} values are not as they must be"
    first = error.errors(include_url=False)[0]
    if first["type"] == "json_invalid":
        return str(first["msg"])
    steps = [step for step in first["loc"] if step not in ("counted", "timed")]  # which kind of row it was taken for
    place = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in steps)
    value = repr(first["input"])
    shown = value if len(value) <= 60 else f"{value[:57]}..."
    place = place if len(place) <= 200 else f"{place[:197]}..."
    return f"{error.title.lower()}{place} is {shown}: {first['msg'][:1].lower()}{first['msg'][1:]}"


class Costs(Part):
    """What a network costs: one input, batch 1; `limits.Cost` says how each is counted."""

    params: StrictWhole
    macs: StrictWhole
    thop: StrictWhole
    bytes: StrictWhole  # of model.onnx
    memory: StrictWhole  # bytes

    @classmethod
    def of_cost(cls, cost: Cost) -> Self:
        """Return a cost as a report has it."""
        return cls(params=cost.params, macs=cost.macs, thop=cost.thop, bytes=cost.bytes, memory=cost.memory)

    def cost(self) -> Cost:
        """Return it as the rest of compress has it."""
        return Cost(**self.plain())


class Counted(Part):
    """What the network costs that a method left, before it is finished: no file was written yet."""

    params: StrictWhole
    macs: StrictWhole
    thop: StrictWhole


class Parity(Part):
    """What a file gave, run in a process of its own, beside what the network gives."""

    bytes: StrictWhole
    images: StrictWhole
    max_abs: StrictNotNegative
    max_rel: StrictNotNegative  # the same over the largest output
    top1_equal: Flag | None  # on every image; None without classes


class FurtherInput(Part):
    """A further input of the network, float32, beside the images."""

    name: Text
    shape: Annotated[Listed[StrictWhole], Field(min_length=1)]  # without the batch


Colours = Literal["RGB", "gray", "as stored"]
RESIZE = "the shorter side to the size, bilinear with antialiasing, then the middle"


class Preprocessing(Part):
    """How pixels become the input of model.onnx: divided by 255, less the mean, over the standard deviation.

    Other arrays are not divided.
    """

    layout: Literal["NCHW", "NC..."]
    shape: Annotated[Listed[StrictWhole], Field(min_length=1)]  # [C, H, W], or [C, ...]
    range: tuple[Literal[0], Literal[1, 255]] | None  # of the pixels that the file takes; None: no pixels
    mean: Listed[Real]  # [C], of pixels in [0, 1]
    std: Listed[StrictNotNegative]  # [C]
    baked: Flag  # whether model.onnx does it itself
    classes: Listed[str]  # labels, in the order of the outputs
    others: Annotated[Listed[FurtherInput], Field(min_length=1)] = ()
    colours: Colours | None = None  # the order of the channels: readers that give BGR, as OpenCV does, turn it round
    resize: Literal["the shorter side to the size, bilinear with antialiasing, then the middle"] | None = None

    @classmethod
    def of_inputs(
        cls,
        shapes: Sequence[Sequence[int]],
        *,
        mean: Sequence[float],
        std: Sequence[float],
        classes: Sequence[str],
        baked: bool,
        pixels: bool = True,
        colours: Colours | None = None,
        resized: bool = False,
    ) -> Self:
        """Return the preprocessing for inputs of these shapes, [C, H, W] of the images and those of the others; without
        `pixels` of arrays [C, ...]. `resized`: images of other sizes were made [H, W] by our one rule.
        """
        images, *others = shapes
        parts: dict[str, Any] = {
            "layout": "NCHW" if pixels else "NC...",
            "shape": images,
            "range": (0, 255 if baked else 1) if pixels else None,
            "mean": [float(m) for m in mean],
            "std": [float(s) for s in std],
            "baked": baked,
            "classes": list(classes),
        }
        parts |= {"colours": colours} if colours and pixels else {}
        parts |= {"resize": RESIZE} if resized else {}
        if others:
            parts["others"] = [{"name": f"x{number}", "shape": shape} for number, shape in enumerate(others, 2)]
        return cls.model_validate(parts)

    @property
    def scale(self) -> int:
        """What 1 is stored as: 255 in images, 1 in other arrays."""
        return 1 if self.range is None else 255


class SpaceRow(Part):
    """A space of channels, in the finished and in the full network; 0 wide where one of them lacks it."""

    name: Text
    width: StrictWhole
    full: StrictWhole
    frozen: Text | None  # why it cannot change


class StepRow(Part):
    """What one of the recipe's methods spent and gained."""

    method: Text
    share: StrictNotNegative | None  # of the budget, what it aimed at; None: nothing but the budget
    steps: StrictWhole  # of the optimizer
    macs_images: StrictWhole  # what they cost, as in the cost of training
    cost: Counted  # of the network after it
    val: Real | None  # of the network after it


class Matrix(Part):
    """Which sources each layer of a block reads: a row a layer, a column a source."""

    block: Text
    layers: Listed[Text]
    sources: Listed[Text]
    rows: Listed[Listed[Literal[0, 1]]]


class HistoryRow(Part):
    """What happened, after how many optimizer steps, at what cost, and what an event of its kind tells beside that."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, Cell]

    event: Text
    step: StrictWhole
    method: Text
    macs: StrictWhole
    params: StrictWhole
    used: StrictNotNegative  # of the budget
    round: StrictWhole | None = None
    epoch: StrictNotNegative | None = None
    stage: Text | None = None
    why: Text | None = None
    reward: Real | None = None
    eta: StrictNotNegative | None = None  # of sampled networks, MACs over the full network's
    accuracy: Real | None = None  # of sampled networks, on training images
    loss: Real | None = None
    val: Real | None = None
    entropy: Real | None = None  # of the controller, nats for each connection
    widths: dict[str, StrictWhole] = {}
    depths: dict[str, StrictWhole] = {}
    connections: Listed[Matrix] = ()


class Dataset(Part):
    """The images."""

    name: Text
    counts: dict[str, StrictWhole]
    digest: Text


class Environment(Part):
    """What the figures depend on: versions (None: not installed), the processor's name, threads and device."""

    python: Text
    numpy: Text | None
    onnx: Text | None
    onnxruntime: Text | None
    safetensors: Text | None
    thop: Text | None
    torch: Text | None
    torchvision: Text | None
    cpu: Text
    threads: StrictWhole
    device: Text

    @classmethod
    def here(cls, *, device: str, threads: int) -> Self:
        """Return those of this process."""
        ours = {"python": platform.python_version(), "cpu": processor(), "threads": threads, "device": device}
        return cls.model_validate({name: version(name) for name in cls.model_fields.keys() - ours} | ours)

    def threads_in_words(self) -> str:
        """Say how many threads computed: "1 thread", "2 threads"."""
        return f"{self.threads} thread{'s' if self.threads > 1 else ''}"
