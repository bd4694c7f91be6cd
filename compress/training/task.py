"""What a network is trained for: its loss, its score, and how a batch goes through it.

Classification is built in. Another task (segmentation, regression, several inputs or losses) names its own functions in
the recipe, by import path or file as a model's factory is:

    train.loss     loss(output, y) -> one number to go down, a mean over the batch
    train.metric   metric(output, y) -> one score for each image [B], or their mean; train.metric_better says which
    train.step     step(model, x, y) -> (loss, output), in place of output = model(x) and the loss

Where a model takes several inputs, x is a tuple of them and output = model(*x).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from compress.errors import CompressError, UsageError, one_line
from compress.reading.ghost import flat
from compress.reading.inputs import Batch, arguments
from compress.surgery.structure import locate
from compress.training.data import Data

if TYPE_CHECKING:
    from compress.recipe import settings
    from compress.training.teacher import Teacher


@dataclass(frozen=True, slots=True)
class Task:
    """How good an output is; `loss` and `metric` take what the model returned and the targets."""

    loss: Callable[[Any, Tensor], Tensor]
    metric: Callable[[Any, Tensor], Tensor]
    step: Callable[[nn.Module, Batch, Tensor], tuple[Tensor, Any]] | None = None
    name: str = "top-1"  # of the metric
    sign: int = 1  # what scores are multiplied with so that larger ones are better
    teacher: Teacher | None = None  # asked where something is learnt, never where it is scored

    def run(self, model: nn.Module, x: Batch, y: Tensor, precision: str) -> tuple[Tensor, Tensor]:
        """The mean loss of a batch and the sum of its images' scores; `precision` is "fp32" or "bf16" (autocast)."""
        with torch.autocast(y.device.type, torch.bfloat16, enabled=precision == "bf16"):
            if self.step is not None:
                loss, output = self.step(model, x, y)
            else:
                output = model(*arguments(x))
            teacher = self.teacher if torch.is_grad_enabled() else None
            hints = teacher.hints(x, len(y)) if teacher else None
        if self.step is None:
            output = _single(output)
            loss = self.loss(output, y)
        if teacher is not None and hints is not None:
            loss = teacher.mixed(loss, output, hints)
        with torch.no_grad():
            scores = self.metric(output, y).float()
        return loss.float(), scores.sum() if scores.dim() else scores * len(y)


def classification(data: Data, label_smoothing: float = 0.0) -> Task:
    """Cross-entropy and top-1; of several outputs the first is taken for the logits [B, classes]."""

    def loss(output: Any, y: Tensor) -> Tensor:
        return functional.cross_entropy(logits(output, data, len(y)), y, label_smoothing=label_smoothing)

    return Task(loss, lambda output, y: top1(output, y, data))


def task_of(train: settings.Train, data: Data, folder: Path = Path()) -> Task:
    """The task that a recipe states. Raises UsageError where a function is missing, or is needed and not stated."""
    if train.step and train.loss:
        raise UsageError("train.step and train.loss both say the loss; keep train.step, which calls what it needs.")
    if not data.classes and not (train.metric and (train.loss or train.step)):
        lacking = "train.metric" if train.loss or train.step else "train.loss and train.metric"
        raise UsageError(f"The targets of {data.name} are no class labels; name {lacking}, such as ./net.py:function.")
    usual = classification(data, train.label_smoothing)
    named = {key: _named(key, getattr(train, key), folder) for key in ("loss", "metric", "step")}
    return Task(
        _checked("loss", train.loss, named["loss"]) if named["loss"] else usual.loss,
        _checked("metric", train.metric, named["metric"]) if named["metric"] else usual.metric,
        _checked_step(train.step, named["step"]) if named["step"] else None,
        train.metric or usual.name,
        train.sign,
    )


def logits(output: Any, data: Data, images: int) -> Tensor:
    """The logits [B, classes] in an output. Raises UsageError where it has none."""
    tensor = output if isinstance(output, Tensor) else next(flat(output), torch.empty(0))
    if tensor.ndim != 2 or tensor.shape[0] != images or tensor.shape[1] < len(data.classes):
        raise UsageError(
            f"The model returns {list(tensor.shape)} for {images} images of {data.name}, which has {len(data.classes)} "
            f"classes; it must return [{images}, {len(data.classes)}]. Give the factory the number of classes."
        )
    return tensor.float()


def top1(output: Any, y: Tensor, data: Data) -> Tensor:
    """1 for every image whose largest logit is its class, else 0: [B]."""
    return (logits(output, data, len(y)).argmax(1) == y).float()


def _single(output: Any) -> Any:
    """The output in float32, as losses want it."""
    if isinstance(output, Tensor):
        return output.float() if output.is_floating_point() else output
    if isinstance(output, dict):
        return {key: _single(value) for key, value in output.items()}
    if isinstance(output, tuple) and hasattr(output, "_fields"):
        return type(output)(*map(_single, output))
    return type(output)(map(_single, output)) if isinstance(output, (list, tuple)) else output


def _named(key: str, path: str | None, folder: Path) -> Callable[..., Any] | None:
    return None if path is None else locate(path, folder, f"train.{key}")


def _checked(key: str, path: str | None, call: Callable[..., Any]) -> Callable[[Any, Tensor], Tensor]:
    """The user's function; what it raises, or returns instead of numbers, is told with its name."""

    def checked(output: Any, y: Tensor) -> Tensor:
        returned = _called(key, path, call, output, y)
        if isinstance(returned, (int, float)):
            returned = torch.tensor(float(returned))
        if not isinstance(returned, Tensor) or list(returned.shape) not in ([], [len(y)] if key == "metric" else []):
            got = list(returned.shape) if isinstance(returned, Tensor) else type(returned).__name__
            want = f"one number, or one for each of {len(y)} images" if key == "metric" else "a tensor of one number"
            raise UsageError(f"train.{key}: {path} returned {got}; it must return {want}")
        if key == "metric" and not bool(returned.isfinite().all()):
            raise UsageError(f"train.metric: {path} returned nan or inf for {len(y)} images; scores must be numbers")
        return returned

    return checked


def _checked_step(path: str | None, call: Callable[..., Any]) -> Callable[..., tuple[Tensor, Any]]:
    def checked(model: nn.Module, x: Batch, y: Tensor) -> tuple[Tensor, Any]:
        returned = _called("step", path, call, model, x, y)
        pair = returned if isinstance(returned, tuple) and len(returned) == 2 else (None, None)
        if not isinstance(pair[0], Tensor) or pair[0].dim():
            raise UsageError(f"train.step: {path} returned {type(returned).__name__}; it must return (loss, output)")
        return pair[0], pair[1]

    return checked


def _called(key: str, path: str | None, call: Callable[..., Any], *given: Any) -> Any:
    try:
        return call(*given)
    except CompressError:
        raise
    except Exception as error:
        raise UsageError(f"train.{key}: {path} failed ({one_line(error)})") from error
