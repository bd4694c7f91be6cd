"""What a model does with training images before it is trained: `prepare(images)`, where it has such a method."""

from __future__ import annotations

from itertools import islice
from math import prod

import torch
from torch import Tensor, nn

from compress.errors import UsageError, one_line
from compress.reading.inputs import Batch, arguments, each
from compress.training.data import Data
from compress.training.train import modes_kept

IMAGES = 5000  # as many as it is shown, where there are so many
BYTES = 2**28  # ... and they take no more than this


def prepare(model: nn.Module, data: Data, name: str) -> None:
    """Call `model.prepare` with training images as forward() gets them, if it has one; the model is on the CPU.

    They are the first of the training stream, not varied: float32 [N, C, H, W], at most `IMAGES` and a pass over all.
    Raises UsageError for whatever goes wrong in it, and where it leaves other shapes or numbers that are not finite.
    """
    own = getattr(model, "prepare", None)
    if not callable(own):
        return
    shapes = {key: tensor.shape for key, tensor in model.state_dict().items()}
    try:
        with modes_kept(model), torch.no_grad():
            own(*arguments(shown(data)))
    except Exception as error:
        raise UsageError(f"{name}: prepare(images) of the model failed ({one_line(error)})") from error
    state = model.state_dict()
    if odd := sorted(key for key in shapes.keys() | state if key not in state or shapes.get(key) != state[key].shape):
        raise UsageError(f"{name}: prepare(images) changed the shape of {odd[0]}; it may set numbers alone")
    if bad := [key for key, tensor in state.items() if tensor.is_floating_point() and not tensor.isfinite().all()]:
        raise UsageError(f"{name}: prepare(images) set {bad[0]} to numbers that are not finite")


def shown(data: Data) -> Batch:
    """The images that a model is shown, and what stands beside them, on the CPU."""
    most = max(1, min(IMAGES, BYTES // (4 * sum(prod(shape) for shape in each(data.shape)))))
    steps = min(data.steps_per_epoch, -(-most // data.batch))
    batches = [arguments(x) for x, _ in islice(data.stream(0, steps, varied=False), steps)]
    columns: list[Tensor] = [torch.cat([part.cpu() for part in parts])[:most] for parts in zip(*batches, strict=True)]
    return columns[0] if len(columns) == 1 else tuple(columns)
