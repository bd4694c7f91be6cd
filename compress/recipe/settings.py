"""Every key a recipe may say: its unit, its range, its default and why that is the default.

Values are frozen and unknown keys refused. The text under a key is its description in the JSON Schema. The methods' own
keys are in their folders.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self, Union

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Discriminator,
    Field,
    JsonValue,
    PrivateAttr,
    Tag,
    WithJsonSchema,
    model_validator,
)

from compress.budget import limits as budgets
from compress.errors import UsageError
from compress.methods import METHODS, settings_of
from compress.recipe.keys import (
    Count,
    Duration,
    Fraction,
    Keys,
    NotNegative,
    Positive,
    Span,
    Whole,
    import_path,
    number,
    share_or_count,
)
from compress.recipe.step import Own, Step
from compress.recipe.teacher import Teacher, or_full

OWN = "own"  # the tag of methods that are named by import path


def _tag(given: Any) -> str | None:
    """Which of the methods' tables of keys is meant."""
    name = given.get("name") if isinstance(given, Mapping) else getattr(given, "name", None)
    return OWN if isinstance(name, str) and name not in METHODS and ":" in name else name


if TYPE_CHECKING:
    Method = Step
else:
    _KINDS = [Annotated[settings_of(name), Tag(name)] for name in METHODS]
    Method = Annotated[Union[*_KINDS, Annotated[Own, Tag(OWN)]], Discriminator(_tag)]


Shape = tuple[int, ...] | tuple[tuple[int, ...], ...]  # of the one input, or of each of several
_SIZES = {"type": "array", "items": {"type": "integer", "minimum": 1}}
_SHAPE = {"anyOf": [{**_SIZES, "minItems": 1}, {"type": "array", "items": _SIZES, "minItems": 1}]}


def _shape(given: Any) -> Shape:
    shapes = list(given) if isinstance(given, list | tuple) else []
    several = bool(shapes) and all(isinstance(one, list | tuple) for one in shapes)
    for one in shapes if several else [shapes]:
        if not one or any(type(size) is not int or size < 1 for size in one):
            raise ValueError(
                f"expected whole numbers from 1, as [3, 32, 32] or, for two inputs, [[3, 8, 8], [10]], got {given}"
            )
    return tuple(map(tuple, shapes)) if several and len(shapes) > 1 else tuple(shapes[0] if several else shapes)


def _stated(limits: Any) -> Any:
    return [e.model_dump() if isinstance(e, Stated) else e for e in limits] if isinstance(limits, tuple) else limits


def _budget(given: Any) -> Any:
    if given is not None:
        try:
            budgets.amounts(_stated(given))
        except UsageError as error:
            raise ValueError(str(error)) from None
    return given


def _named(steps: Any) -> Any:
    return [{"name": step} if isinstance(step, str) else step for step in steps] if isinstance(steps, list) else steps


def _from(schema: dict[str, Any]) -> None:
    """Let a JSON Schema of the model have the key that `start.written_out` replaces."""
    text = (
        "The folder of a finished run, relative to the recipe, to go on from its network as it is: short for its "
        "factory and args, the folder as weights, and the mean and std of its pixels."
    )
    schema["properties"]["from"] = {"type": "string", "description": text}
    schema["anyOf"] = [{"required": ["factory"]}, {"required": ["from"]}]
    schema.pop("required", None)


class Model(Keys, json_schema_extra=_from):
    """The full network, which 'base', '50%' and the train-cost refer to."""

    factory: Annotated[str, AfterValidator(import_path)]
    """Callable that builds the full net, required: 'package.module:callable', or './file.py:callable' by the recipe."""
    args: dict[str, JsonValue] = Field({})
    """Keyword arguments of the factory; none by default."""
    input: Annotated[Shape, BeforeValidator(_shape), WithJsonSchema(_SHAPE)] | None = None
    """Shape of the input, [channels, height, width] in pixels or [channels, ...] of other arrays, or of each of
    several, the images first, as in [[3, 8, 8], [10]]; null takes it from the data."""
    weights: str | None = None
    """A .safetensors file, a saved state_dict or the folder of a finished run to start from, relative to the recipe (a
    run's network is the full one, as narrow as it is); null: the factory's own, which it may have loaded itself. For
    methods that prune or that grow with begin: present; the others draw anew."""
    weights_key: str | None = None
    """Which weights of a checkpoint that holds several, such as 'state_dict_ema', or 'ema.model' where dictionaries lie
    in each other; null: the only ones."""
    uncounted: tuple[str, ...] = ()
    """Operators whose cost is not known, such as aten.cummax, that are to count as nothing; the report repeats them."""
    include: tuple[str, ...] = ("*",)
    """Modules whose filters may come and go: shell patterns over their dotted names, such as 'layer*.conv1'; all."""
    exclude: tuple[str, ...] = ()
    """Modules whose filters stay as they are, likewise; none."""


class Data(Keys):
    """The images: where they are, how they are split and how training varies them."""

    source: Literal["digits", "mnist", "fashionmnist", "svhn", "cifar10", "cifar100", "folder", "npz", "own"] = "digits"
    """Data set; 'digits' ships with the package, so that a first run needs no download. An npz holds x_train, y_train,
    x_test, y_test and, if you like, x_val, y_val: images uint8 [N, H, W, C], or floats [N, C, ...] as of series and
    volumes; of a model with several inputs also x2_train, x2_test and so on: floats, or ids, which come as floats."""
    path: str | None = None
    """File (npz) or folder (others), relative to the recipe; null: its usual place, which npz and folder lack."""
    dataset: Annotated[str, AfterValidator(import_path)] | None = None
    """Callable that returns data sets of one's own, {"train": ..., "val": ..., "test": ...}, each with len() and [i]
    giving (x, y), as torch's and torchvision's do: 'package.module:callable', or './file.py:callable' by the recipe."""
    args: dict[str, JsonValue] = Field(default={})
    """Keyword arguments of that callable; none by default."""
    download: bool = False
    """Fetch a missing data set; off, so that a run asks nothing of a network."""
    val: Annotated[float, BeforeValidator(number), AfterValidator(share_or_count(2, "images"))] = 0.1
    """Training images held out for decisions: a fraction below 1 (float), or a number of images (int). A tenth is 5,000
    of CIFAR's, a standard error of half a point. 'digits' has its own fixed split."""
    train: Count | None = None
    """Use only this many training images, after a seeded shuffle; null uses all, as results do."""
    background: Literal["white", "black"] = "white"
    """What shows where an image of a folder is transparent."""
    crop: Whole = 0
    """Zero padding in pixels before a random crop; 0 is off, 4 is usual for 32-pixel images."""
    padding: Literal["zero", "reflect"] = "zero"
    """What a crop finds outside of the image: black, or the image mirrored at its edge."""
    flip: Literal[False, True, "alternate"] = False
    """Mirror half of the training images, drawn anew each time; 'alternate': each image every other epoch, so that two
    epochs show both (Jordan 2024). Off, since it is wrong for digits."""
    cutout: Whole = 0
    """Side in pixels of a square that is blanked in each training image, anywhere (DeVries and Taylor 2017); 0 is off,
    8 of 32 is what VGG16 within 43 MFLOPs was trained with for 64 epochs; alone it was not measured."""
    mean: tuple[Annotated[float, BeforeValidator(number)], ...] | None = None
    """Mean of each channel that is subtracted, of pixels from 0 to 1 or of arrays as they are; null measures it on the
    training images. Weights trained elsewhere need theirs."""
    std: tuple[Positive, ...] | None = None
    """Standard deviation of each channel that is divided by, likewise."""
    size: Count | None = None
    """Resize a folder's images to this many pixels a side; null keeps them."""
    workers: Whole = 2
    """Processes that read folders too large for memory and data sets of one's own; 2 keep a small net on a small CPU
    fed, 0 reads in the run's own process, where a debugger stops."""

    @model_validator(mode="before")
    @classmethod
    def _is_own(cls, given: Any) -> Any:
        own = isinstance(given, dict) and given.get("dataset") is not None
        return {"source": "own", **given} if own else given

    @model_validator(mode="after")
    def _has_place(self) -> Self:
        if (self.source == "own") != (self.dataset is not None):
            raise ValueError("dataset names data of one's own: leave out source, or write the dataset that it means")
        if self.args and not self.dataset:
            raise ValueError("args are those of a dataset of one's own, and none is named")
        if self.source in ("folder", "npz") and self.path is None:
            raise ValueError(f"the source '{self.source}' needs a path; write data.path, relative to the recipe")
        return self


class Train(Keys):
    """The optimizer and the loss, shared by all methods."""

    batch: Count = 128
    """Images a step; 128 is what the published results used."""
    cost: Positive | None = None
    """Train-cost of the whole run, MACs x images (forward): the last stage lasts as long as what is left of it pays
    for, in place of its epochs, one step at least; what comes before is not cut short. null: as the epochs say."""
    optimizer: Literal["sgd", "muon"] = "sgd"
    """What trains: SGD, or Muon for the filters of convolutions (Jordan et al. 2024) and SGD for all else."""
    lr: Positive = 0.1
    """Peak learning rate of SGD; 0.1 is usual with batch norm (0.05 without it)."""
    muon_lr: Positive = 0.1
    """Peak learning rate of Muon, which follows the same schedule."""
    muon_momentum: Fraction = 0.6
    """Momentum of Muon (Nesterov's); 0.6 as in its first use on CIFAR-10."""
    muon_decay: NotNegative = 0.1
    """Decay of the weights that Muon trains: of the weight itself, times the rate."""
    momentum: Fraction = 0.9
    """SGD momentum, below 1; 0.9 is what the published results used."""
    nesterov: bool = False
    """Nesterov's momentum; off, as in the published results."""
    weight_decay: NotNegative = 5e-4
    """L2 decay of weights, per step; as the published baselines."""
    ema: Fraction = 0.0
    """Decay per step of the moving average of the weights, which is what is scored and exported, in stages of one
    shape; 0 is off. 1 / (1 - ema) steps should be a tenth of the last stage or less."""
    label_smoothing: Fraction = 0.0
    """Share of the target spread over all classes; 0 is plain."""
    loss: Annotated[str, AfterValidator(import_path)] | None = None
    """loss(output, y) -> one number, as 'package.module:callable' or './file.py:callable'; null is cross-entropy."""
    metric: Annotated[str, AfterValidator(import_path)] | None = None
    """metric(output, y) -> a score for each image, or their mean; null is top-1."""
    metric_better: Literal["larger", "smaller"] = "larger"
    """Which scores of train.metric are the better ones; 'smaller' for any error or loss."""
    step: Annotated[str, AfterValidator(import_path)] | None = None
    """step(model, x, y) -> (loss, output), where a batch needs more than model(x) and a loss; null is just that."""
    teacher: Teacher | None = Field(default=None, json_schema_extra=or_full)
    """A trained network to learn from beside the labels; its forward passes count in the train-cost. null: none."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Number format of training; 'auto' is bf16 where the processor is faster with it, else fp32."""
    memory_format: Literal["auto", "channels_last", "contiguous"] = "auto"
    """Layout of images in memory; 'auto' is channels_last where it is faster, see train.memory_format_of."""

    @property
    def sign(self) -> int:
        """What scores are multiplied with so that larger ones are better."""
        return -1 if self.metric_better == "smaller" else 1

    @model_validator(mode="after")
    def _top1_is_better_where_larger(self) -> Self:
        if self.metric is None and self.metric_better == "smaller":
            raise ValueError("metric_better: of top-1 the larger is better; leave the key out, or name a metric")
        return self

    @model_validator(mode="after")
    def _nesterov_has_momentum(self) -> Self:
        if self.nesterov and self.momentum == 0:
            raise ValueError("nesterov needs momentum above 0; write momentum: 0.9 or nesterov: false")
        return self


class Stated(Keys):
    """One limit with its level."""

    limit: str
    """Amount with its unit: '43MFLOPs', '0.58Mparams', '2.4MB', '256KiB@activations', '5ms@onnxruntime-cpu/1', '50%' of
    the full net."""
    level: Literal["error", "warn"] | None = None
    """What a broken limit does; a warning never fails. null is 'error', but 'warn' for a latency: that is measured."""


class Require(Keys):
    """What the result reaches, or the run fails."""

    val_accuracy: Annotated[float, Field(gt=0, le=1), BeforeValidator(number)] | None = None
    """Least accuracy on the validation images, as a fraction of 1; null: none."""
    val_score: Annotated[float, BeforeValidator(number)] | None = None
    """Least mean score on them by train.metric, or the largest where metric_better is smaller; null: none."""
    max_drop: Annotated[float, Field(ge=0), BeforeValidator(number)] | None = None
    """How much worse than the uncut network's the score may be: 0.01 is one point of accuracy; null: none."""

    def bound(self, uncut: float | None, sign: int) -> float | None:
        """What the score on validation images must reach, where that is known; `uncut` is the uncut network's."""
        if self.max_drop is not None:
            return None if uncut is None else uncut - sign * self.max_drop
        return self.val_accuracy if self.val_score is None else self.val_score

    @model_validator(mode="after")
    def _asks_for_one(self) -> Self:
        if sum(wish is not None for wish in (self.val_accuracy, self.val_score, self.max_drop)) != 1:
            raise ValueError("write val_accuracy, val_score where the recipe has a train.metric, or max_drop")
        return self


class Baseline(Keys):
    """What the train-cost is relative to: the full net's MACs x training images x epochs."""

    epochs: Positive = 300.0
    """Epochs of the baseline; 300 is what the published results took on CIFAR."""
    name: str | None = None
    """What the report calls it; null names the factory and the epochs."""


class Export(Keys):
    """The files that a run leaves."""

    bake_preprocessing: bool = False
    """Put normalisation into the graph; off, so that costs are the net's own. The metadata has it."""
    states: bool = False
    """Keep what a growing net was on its way, in states/, a file for each quarter more of the tightest limit, together
    at most four times the result; off, since nets narrowed from the end are better. See refit's start."""


class Recipe(Keys):
    """A run, completely: equal recipes, data and machines give equal files."""

    model: Model
    """The full network."""
    data: Data = Data()
    """The images."""
    train: Train = Train()
    """The optimizer."""
    method: Method | None = None
    """How the network becomes compact; required, unless 'steps' says it."""
    steps: Annotated[tuple[Method, ...] | None, BeforeValidator(_named)] = None
    """Several methods, one after the other, by name or as what 'method' takes: each goes on with the network that the
    one before it left. null: just 'method'."""
    budget: Annotated[str | tuple[str | Stated, ...] | None, BeforeValidator(_budget)] = None
    """What the result may cost, all limits at once; null: the command line says it."""
    align: Annotated[
        Literal[1, 8, 16],
        BeforeValidator(lambda given: 1 if given == "none" else number(given)),
        WithJsonSchema({"enum": [1, 8, 16, "none"]}),
    ] = 1
    """Widths are multiples of this; 1 ('none') fills the budget best, 8 or 16 suit tensor cores, and with 16 nets train
    faster on several CPU threads: VGG16 on two, 118 ms a step at 45 MMACs, 139 to 176 at 42 with uneven widths."""
    require: Require | None = None
    """What the result reaches or fails; null asks for nothing."""
    baseline: Baseline = Baseline()
    """What the train-cost is relative to."""
    export: Export = Export()
    """What the files of a run hold beyond the net."""
    checkpoint: Span = Duration(5.0, "epochs")
    """Training between two saves: what an interruption costs at most; saving more often would only cost time."""
    seed: Annotated[int, Field(ge=0, lt=2**32), BeforeValidator(number)] = 0
    """Number that all randomness starts from, below 2**32; any will do."""

    _folder: Path = PrivateAttr(default=Path())

    @model_validator(mode="after")
    def _has_methods(self) -> Self:
        if (self.method is None) == (not self.steps):
            raise ValueError("write method: {name: adenel}, or several as steps: [autogrow, adenel], and not both")
        if self.method is not None and self.method.share is not None:
            raise ValueError("method.share: one method has the whole budget; leave the key out, or write steps")
        if self.shares[-1] > 1:
            raise ValueError(f"the last step may take {self.shares[-1]:g} of the budget; write a share of at most 1")
        names, shares = [method.name for method in self.methods], self.shares
        for at, method in list(enumerate(self.methods))[1:]:
            if method.grows_present(after=True) and shares[at - 1] > shares[at]:
                raise ValueError(
                    f"{names[at - 1]} may take {shares[at - 1]:g} of the budget, but {method.name}, which grows what "
                    f"it leaves, only {shares[at]:g}"
                )
            cut = next((before.name for before in self.methods[:at] if before.cuts_connections), None)
            if method.needs_stages and cut:
                raise ValueError(
                    f"{method.name} cannot follow {cut}: a network whose connections were cut has no stages left"
                )
        return self

    @property
    def methods(self) -> tuple[Method, ...]:
        """The methods in their order."""
        return (self.method,) if self.method is not None else self.steps or ()

    @property
    def shares(self) -> tuple[float, ...]:
        """The part of the budget that each method's net may take."""
        shares: list[float] = []
        for at, method in reversed(list(enumerate(self.methods))):
            usual = shares[0] * self.methods[at + 1].share_before if shares else 1.0
            shares.insert(0, usual if method.share is None else method.share)
        return tuple(shares)

    @property
    def folder(self) -> Path:
        """The folder that relative paths of this recipe start from."""
        return self._folder

    def placed(self, folder: Path) -> Self:
        """Return the same recipe, lying in `folder`."""
        copy = self.model_copy()
        copy._folder = folder
        return copy

    def limits(self, base: budgets.Cost | None = None) -> budgets.Budget:
        """Return the budget, shares being of `base`; raises UsageError where the recipe states none."""
        if self.budget is None:
            raise UsageError("The recipe states no budget; write `budget: 43MFLOPs` in it or give --budget 43MFLOPs.")
        return budgets.Budget.parse(_stated(self.budget), base)
