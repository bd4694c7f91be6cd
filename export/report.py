"""What a run tells, as types: the content of report.json, its JSON Schema, and how it is read and judged. No torch.

Accuracies, shares and utilisations are fractions of 1; params, MACs and bytes are exact integers. `FLOPs` are one per
multiply-accumulate, by thop's total (batch norm and pooling included) or by our MACs, whichever is more.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import ConfigDict, Discriminator, Field, Tag, ValidationError, WithJsonSchema, model_validator
from pydantic.config import JsonDict
from pydantic.json_schema import GenerateJsonSchema

from compress.budget.limits import Budget, Cost, Latency
from compress.budget.units import percent, show, show_score, threads
from compress.errors import ArtifactError
from compress.export.canonical import LARGEST, read_json
from compress.export.parts import (
    DIGEST,
    Costs,
    Dataset,
    Digest,
    Environment,
    Flag,
    HistoryRow,
    Listed,
    Parity,
    Part,
    Preprocessing,
    Real,
    SpaceRow,
    StepRow,
    StrictCount,
    StrictNotNegative,
    StrictWhole,
    Text,
    refusal,
)
from compress.export.seal import FILES, STATE, TIMED

SCHEMA_VERSION = 2
ModelName = Literal["model.onnx", "model.pt2", "model.py", "model.safetensors"]
_FILE = f"^({'|'.join(map(re.escape, FILES))}|{STATE})$"
FileName = Annotated[str, Field(strict=True, pattern=_FILE)]
_DIGESTS = {
    "type": "object",
    "propertyNames": {"pattern": _FILE},
    "additionalProperties": {"type": "string", "pattern": DIGEST},
}
UNWRITTEN: Mapping[str, Any] = {"files": {}, "digest": "0" * 64}  # until `page.write_report` fills them in
Unit = Literal["params", "MACs", "FLOPs", "FLOPs@2", "B", "B@activations"]
Level = Literal["error", "warn"]


class Outcome(Part):
    """What came of the run: 0 the budget is kept and what is required is reached, 1 it is not; and a sentence."""

    code: Literal[0, 1]
    text: Text


class Row(Part):
    """A limit, and what the network takes of it."""

    unit: Unit
    limit: StrictCount
    value: StrictWhole
    utilisation: StrictNotNegative
    kept: Flag = Field(alias="pass")
    level: Level
    text: Text

    @property
    def broken(self) -> bool:
        """Whether it fails the run."""
        return self.level == "error" and not self.kept

    def in_words(self) -> str:
        """Say what it takes of what it may: "42.9 MFLOPs (42,900,000) of 43MFLOPs (99.76 %)"."""
        return f"{exactly(self.value, self.unit)} of {self.text} ({percent(self.utilisation)})"


class TimedRow(Row):
    """A limit on a latency, in nanoseconds, and what was measured."""

    unit: Annotated[str, Field(strict=True, pattern=f"^{TIMED}$")]  # type: ignore[assignment]
    spread: tuple[StrictWhole, StrictWhole]  # nanoseconds: the runs from the 10th to the 90th percentile
    runs: StrictCount
    processor: Text


def _kind(row: Any) -> str:
    unit = row.get("unit") if isinstance(row, Mapping) else getattr(row, "unit", None)
    return "timed" if isinstance(unit, str) and unit.startswith("ns@") else "counted"


AnyRow = Annotated[Annotated[Row, Tag("counted")] | Annotated[TimedRow, Tag("timed")], Discriminator(_kind)]


class Landing(Part):
    """How near the network came to the tightest limit on what is counted."""

    unit: Unit
    utilisation: StrictNotNegative
    left: Annotated[int, Field(strict=True)]  # negative where it is over


_SHARES: JsonDict = {key: {"minimum": 0, "maximum": 1} for key in ("val", "test", "required")}


class Accuracy(Part):
    """Accuracies, fractions of 1 where the metric is "top-1", else scores by a metric of the recipe's own."""

    model_config = ConfigDict(
        json_schema_extra={"if": {"properties": {"metric": {"const": "top-1"}}}, "then": {"properties": _SHARES}}
    )

    metric: Text
    better: Literal["larger", "smaller"] = "larger"
    val: Real
    test: Real | None  # None: no test set
    required: Real | None  # the least `val` by the recipe, or the largest where smaller is better

    @model_validator(mode="after")
    def _shares(self) -> Self:
        if self.metric == "top-1":
            for key in _SHARES:
                if not 0 <= (getattr(self, key) or 0) <= 1:
                    raise ValueError(f"a top-1 accuracy is a fraction of 1, and {key} is {getattr(self, key)}")
        return self

    @property
    def missed(self) -> bool:
        """Whether worse was reached than the recipe requires."""
        if self.required is None:
            return False
        return self.val > self.required if self.better == "smaller" else self.val < self.required

    @property
    def shortfall(self) -> str:
        """Where worse was reached, by what side of what is required."""
        of = "accuracy" if self.metric == "top-1" else "score"
        side = "above" if self.better == "smaller" else "below"
        return f"validation {of} {self.words('val')} is {side} the required {self.words('required')}"

    def words(self, key: Literal["val", "test", "required"]) -> str:
        """Say one of the three; nothing where it is None."""
        return show_score(getattr(self, key), self.metric)


class Baseline(Part):
    """The full model, trained as long as anybody would: what the cost of training is a share of."""

    name: Text | None
    epochs: StrictNotNegative
    train_images: StrictWhole
    macs_images: StrictWhole


class Lessons(Part):
    """What a teacher's forward passes cost, which the cost of training holds already."""

    name: Text
    macs: StrictWhole  # of one image
    macs_images: StrictWhole
    share: StrictNotNegative  # of the cost of training
    digest: Digest  # of its weights

    def in_words(self) -> str:
        """Say how much of the cost it was: "41.27 % of it for the teacher, ./net.py:big"."""
        return f"{percent(self.share)} of it for the teacher, {self.name}"


class TrainCost(Part):
    """What training cost, beside a baseline: the sum over all training images of the MACs of the network at that step.

    Backward passes cancel in the share (AdeNeL, section 4). The sum holds a teacher's forward passes; it has no others.
    """

    macs_images: StrictWhole
    images: StrictWhole
    share: StrictNotNegative
    baseline: Baseline
    teacher: Lessons | None = None


class Origin(Part):
    """How the network came to be: what a report tells before any file is written, and model.onnx seals."""

    train_cost: TrainCost | None  # None: trained elsewhere
    drift: StrictNotNegative  # largest difference of the masked and the compact network's outputs
    spaces: Listed[SpaceRow]
    steps: Listed[StepRow]
    history: Listed[HistoryRow]
    seeds: dict[str, Annotated[int, Field(strict=True)]]
    data: Dataset
    code: dict[str, Digest] = Field({})  # of every file of the user's own that the recipe names: code and weights


class Report(Origin):
    """Everything that report.json holds."""

    schema_version: Literal[2]
    verdict: Outcome
    budget: Annotated[Listed[AnyRow], Field(min_length=1)]
    landing: Landing
    cost: Costs  # of the compact network
    base: Costs  # of the full model
    accuracy: Accuracy
    parity: dict[ModelName, Parity]  # by file
    preprocessing: Preprocessing
    environment: Environment
    command: Text
    resumed_from: StrictWhole | None  # the optimizer step that an interrupted run went on from
    seconds: StrictNotNegative
    notes: Listed[Text]
    uncounted: Listed[Text]  # operators of model.onnx whose cost is not known and counts as nothing
    files: Annotated[dict[FileName, Digest], WithJsonSchema(_DIGESTS)]  # the SHA-256 of every other file of the folder
    digest: Digest  # the SHA-256 of all of the above as JSON with sorted keys, without spaces, in ASCII

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read report.json. Raises ArtifactError where it is damaged, or holds something else."""
        return cls.of_file(path, document(path))

    @classmethod
    def of_file(cls, path: Path, content: Mapping[str, Any]) -> Self:
        """Take what a file holds for a report. Raises ArtifactError, with the file's path, where it is none."""
        try:
            return cls.model_validate(content)
        except ValidationError as error:
            raise ArtifactError(f"{path}: not a report, or a damaged one ({refusal(error)}).") from None


def document(path: Path) -> dict[str, Any]:
    """Return what report.json holds, unchecked. Raises ArtifactError where it is no JSON, or no table of it."""
    try:
        with path.open("rb") as file:
            content = read_json(file.read(LARGEST + 1))
        if not isinstance(content, dict):
            raise ValueError("it is no table")
    except ValueError as error:
        raise ArtifactError(f"{path}: not a report, or a damaged one ({error}).") from None
    return content


def report_schema() -> dict[str, Any]:
    """Return the public JSON Schema of report.json."""
    return {
        "$schema": GenerateJsonSchema.schema_dialect,
        **Report.model_json_schema(),
        "title": "compress report",
    }


def judged(rows: Sequence[Row], accuracy: Accuracy) -> tuple[Outcome, Landing]:
    """Reckon what came of a run from its limits and from what its recipe requires, and how near it came.

    Broken limits come first; where none is broken, the tightest one on what is counted is told.
    """
    counted = [row for row in rows if row.level == "error" and threads(row.unit) is None]
    tightest = max(counted, key=lambda row: row.utilisation)
    broken = [row.in_words() for row in rows if row.broken]
    sentences = list(broken)
    if accuracy.missed:
        sentences.append(accuracy.shortfall)
    if not broken:
        sentences.append(("the budget holds: " if accuracy.missed else "") + tightest.in_words())
    failed = bool(broken) or accuracy.missed
    text = f"{'not kept' if failed else 'kept'}: {'; '.join(sentences)}"
    landing = Landing(unit=tightest.unit, utilisation=tightest.utilisation, left=tightest.limit - tightest.value)
    return Outcome(code=1 if failed else 0, text=text), landing


def rows_of(budget: Budget, cost: Cost, measured: Mapping[str, Latency]) -> tuple[Row, ...]:
    """Return one row a limit, warnings included; `measured` holds the latency for every unit of time."""
    rows = budget.rows(cost, measured)
    return tuple((TimedRow if "runs" in row else Row).model_validate(row) for row in rows)


def train_cost(
    macs_images: int,
    images: int,
    *,
    base: Cost,
    train_images: int,
    epochs: float,
    name: str | None,
    teacher: Lessons | None = None,
) -> TrainCost:
    """Return what training cost, beside a baseline: the full model trained on `train_images` for `epochs`.

    `macs_images` holds what the `teacher` cost.
    """
    whole = base.macs * train_images * epochs
    baseline = Baseline(name=name, epochs=epochs, train_images=train_images, macs_images=round(whole))
    parts = {"macs_images": macs_images, "images": images, "share": macs_images / whole, "baseline": baseline}
    return TrainCost.of(parts | ({"teacher": teacher} if teacher else {}))  # what was never there is left out


def exactly(value: int, unit: str) -> str:
    """Say a count in short, and to the last digit: "42.9 MFLOPs (42,900,000)"."""
    return f"{value:,} {unit}" if value < 10_000 else f"{show(value, unit)} ({value:,})"
