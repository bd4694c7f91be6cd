"""Training, scoring and batch-norm statistics: one plain loop that every method shares.

    place(model, device, memory_format_of("auto", device, model))
    train(model, Loop(data, optimizer, start=0, steps=data.steps_per_epoch, seed=0), lambda step: 0.1) -> Trained
    score(model, data, "val") -> Score

Step n sees batch n of the data's stream, and dropout that depends on (seed, n) alone: 100 steps in one call or in two
calls of 50 give the same weights, bit for bit, on one machine with one number of threads.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import fmean
from time import perf_counter

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from compress.errors import UsageError
from compress.reading.ghost import copied, flat
from compress.reading.inputs import Shape, arguments, each
from compress.training.average import Average
from compress.training.data import Data
from compress.training.events import Listener, Progress, silent
from compress.training.seeds import seed_of
from compress.training.task import Task, classification

TELL_EVERY = 0.5  # seconds from one report of progress to the next; on a GPU also from one look at the losses
VOLUME = 5  # axes of what convolves volumes [N, C, D, H, W]
NARROW = 28  # channels; below, several CPU threads are in each other's way in channels_last
BF16_MACS = 250_000  # of one image; below this, casting costs what the faster arithmetic saves


@dataclass(frozen=True, slots=True)
class Trained:
    """What a stretch of training came to, on its own images as they were varied."""

    loss: float
    """Mean of the steps' losses."""
    accuracy: float
    """Mean score of the images when they were trained on: the share that was right."""
    images: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Score:
    """How well a model does on one split."""

    accuracy: float
    """Share of images that are right, or the mean of the task's own metric."""
    loss: float
    """Mean loss."""
    images: int
    sign: int = 1
    """What `accuracy` is multiplied with so that larger is better."""

    @property
    def worth(self) -> float:
        """The accuracy, or the score turned so that larger is better: what decisions are made by."""
        return self.sign * self.accuracy


@dataclass(frozen=True, slots=True)
class Loop:
    """Some optimizer steps of a run, and all that they depend on beside the model."""

    data: Data
    optimizer: torch.optim.Optimizer
    start: int
    """The number of the first step since the run began: step n sees batch n of the stream."""
    steps: int
    seed: int
    precision: str = "fp32"
    """Or "bf16" (autocast)."""
    task: Task | None = None
    """What for; None is classification."""
    listen: Listener = silent
    """Hears of progress."""
    average: Average | None = None
    """Of the weights, which each step adds to."""


def lr_at(schedule: str, lr: float, progress: float, warmup: float = 0.0) -> float:
    """Return the learning rate at `progress` (0 to 1) of a stage with peak `lr`.

    During the first `warmup` (a share of the stage) the rate rises linearly from 0. Then "constant" stays, "cosine"
    falls along half a wave to 0 at the end, "onecycle" is another name for that, "linear" falls evenly to 0, "steps" is
    lr, lr / 10 and lr / 100 in the three thirds of the whole stage, and "staircase" is that with the steps at a half
    and at three quarters.
    """
    if progress < warmup:
        return lr * progress / warmup
    match schedule:
        case "constant":
            return lr
        case "cosine" | "onecycle":
            return lr * (1 + math.cos(math.pi * (progress - warmup) / (1 - warmup))) / 2
        case "linear":
            return lr * (1 - progress) / (1 - warmup)
        case "steps":
            return float(lr * 10.0 ** -min(2, int(3 * progress)))
        case "staircase":
            return lr if progress < 0.5 else lr / 10 if progress < 0.75 else lr / 100
    raise UsageError(
        f"There is no schedule '{schedule}'; choose constant, cosine, linear, onecycle, staircase or steps."
    )


def train(model: nn.Module, loop: Loop, lr: Callable[[int], float]) -> Trained:
    """Train for the loop's steps; `lr` is given the number of each.

    A parameter group's `lr_scale`, if it has one, multiplies its rate. Seeds torch's global generators anew in each
    step. Raises UsageError when the loss is not finite; on a CPU before the step that would spoil the weights.
    """
    model.train()
    begin, optimizer, data = perf_counter(), loop.optimizer, loop.data
    task = loop.task or classification(data)
    watch = Watch(loop)
    waiting: list[Tensor] = []  # steps not looked at yet: looking makes a GPU wait
    for step, (x, y) in enumerate(data.stream(loop.start, loop.steps), loop.start):
        set_rate(optimizer, lr(step))
        seed_dropout(seed_of(loop.seed, "dropout", step), data.device)
        loss, score_sum = task.run(model, x, y, loop.precision)
        waiting.append(torch.stack([loss.detach(), score_sum]))
        due = watch.is_due(step)
        if due or data.device.type == "cpu":
            for row in torch.stack(waiting).tolist():
                _refuse_infinite(row[0], loop.start + len(watch.rows), lr)
                watch.rows.append(row)
            waiting.clear()
        if not loss.requires_grad:
            raise UsageError(
                "Nothing of the model can be trained: requires_grad is False everywhere, or forward() detaches."
            )
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        if loop.average is not None:
            loop.average.update(model)
        if due:
            watch.tell(step)
    images = loop.steps * data.batch
    return Trained(
        loss=fmean(loss for loss, _ in watch.rows) if watch.rows else 0.0,
        accuracy=sum(good for _, good in watch.rows) / images if images else 0.0,
        images=images,
        seconds=perf_counter() - begin,
    )


def _refuse_infinite(loss: float, step: int, lr: Callable[[int], float]) -> None:
    if not math.isfinite(loss):
        raise UsageError(
            f"The loss became {loss} in step {step}, at a learning rate of {lr(step):g}. Try a third of the rate, a "
            "warm-up, or train.precision: fp32."
        )


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Give all parameter groups this learning rate, each times its `lr_scale` if it has one."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get("lr_scale", 1.0)


class Watch:
    """Tells of a loop's progress twice a second and at its end: steps done, mean loss and speed since it last did."""

    def __init__(self, loop: Loop) -> None:
        self.loop = loop
        self.rows: list[list[float]] = []  # of every step looked at: its loss, and whatever else the loop writes down
        self._since, self._heard = perf_counter(), 0  # when it last told, and of how many steps

    def is_due(self, step: int) -> bool:
        """Whether it is time to tell, after this step."""
        last = self.loop.start + self.loop.steps - 1
        return step == last or perf_counter() - self._since >= TELL_EVERY

    def tell(self, step: int) -> None:
        """Tell how far the loop has come."""
        done, now = step - self.loop.start + 1, perf_counter()
        speed = (done - self._heard) * self.loop.data.batch / max(now - self._since, 1e-9)
        loss = fmean(row[0] for row in self.rows[self._heard :])
        self.loop.listen(Progress(done, self.loop.steps, loss, speed))
        self._since, self._heard = now, done


@torch.no_grad()
def score(
    model: nn.Module,
    data: Data,
    split: str,
    precision: str = "fp32",
    task: Task | None = None,
    most: int | None = None,
) -> Score:
    """Return the accuracy and loss on "train", "val" or "test", in eval mode; the model is left as it was.

    Of all images, or of `most`, evenly spread.

    Raises UsageError where the data has no such images.
    """
    task = task or classification(data)
    loss = good = images = 0.0
    with modes_kept(model):
        model.eval()
        for x, y in data.split(split, most=most):
            mean, scores = task.run(model, x, y, precision)
            loss += mean.item() * len(y)
            good += scores.item()
            images += len(y)
    return Score(good / images, loss / images, int(images), task.sign)


@torch.no_grad()
def recalibrate(model: nn.Module, data: Data, batches: int) -> None:
    """Estimate the batch norms' running statistics anew: the mean over the stream's first `batches` batches.

    The images are not varied, as those that the model will meet are not; everything but batch norm is in eval mode, so
    dropout is off. Weights, momenta and modes are left as they were; a model without batch norm is left alone.
    """
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.running_mean is not None]
    if not norms:
        return
    momenta = [norm.momentum for norm in norms]
    with modes_kept(model):
        model.eval()
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # None is torch's word for the plain mean over all batches
            norm.train()
        try:
            for x, _ in data.stream(0, batches, varied=False):
                model(*arguments(x))
        finally:
            for norm, momentum in zip(norms, momenta, strict=True):
                norm.momentum = momentum


def place(model: nn.Module, device: torch.device, memory_format: str) -> None:
    """Move a model to a device, its weights laid out as "channels_last" or "contiguous"; again after each edit.

    Images need no such layout: a convolution takes it from its weights and hands it on.
    """
    layout = torch.channels_last if memory_format == "channels_last" else torch.contiguous_format
    model.to(device=device)
    model.to(memory_format=layout)


def precision_of(precision: str, device: torch.device, macs: int) -> str:
    """Resolve "auto" to "fp32" or "bf16" for a model of `macs` multiply-accumulates an image.

    bf16 where the processor computes in it (AVX512-BF16, AMX, or a GPU that does) and the model is not tiny. A training
    step of 128 on one core of a Xeon with AMX, fp32 -> bf16: 0.45 MMACs 5.9 -> 4.1 ms, 1.25 MMACs 37 -> 28 ms,
    10 MMACs 118 -> 69 ms, 42 MMACs 335 -> 153 ms.
    """
    if precision != "auto":
        return precision
    return "bf16" if macs >= BF16_MACS and _computes_bf16(device) else "fp32"


def memory_format_of(memory_format: str, device: torch.device, model: nn.Module) -> str:
    """Resolve "auto" to "channels_last" or "contiguous", for a model that `runs_in_channels_last`.

    channels_last wins on GPUs and on one CPU thread. With more threads torch's channels_last batch norm sums gradients
    into one row of `width` floats per thread, and rows that share a 64-byte cache line slow narrow layers: it wins
    there unless most norms are narrower than `NARROW` and no multiple of 16. (Steps on 2 threads, channels_last and
    contiguous: 13 layers 8 wide 42 and 20 ms, 16 wide 23 and 35 ms; VGG16 of uneven widths 20 to 118, 353 and 414 ms;
    DenseNet-40 4.6 and 6.5 s.)

    Raises UsageError for "channels_last" on a CPU with a strided 1x1 convolution: see `strided_points`.
    """
    if memory_format == "channels_last" and device.type == "cpu" and (bad := strided_points(model)):
        raise UsageError(
            f"train.memory_format: channels_last on a CPU can corrupt memory in the backward pass of {bad}, a 1x1 "
            "convolution with a stride (a fault of torch); write auto or contiguous"
        )
    if memory_format != "auto":
        return memory_format
    if device.type == "cpu" and torch.get_num_threads() > 1:
        widths = [m.num_features for m in model.modules() if isinstance(m, _BatchNorm)]
        shared = sum(width < NARROW and width % 16 > 0 for width in widths)
        return "contiguous" if shared > len(widths) / 2 else "channels_last"
    return "channels_last" if device.type in ("cpu", "cuda") else "contiguous"


def strided_points(model: nn.Module) -> str | None:
    """The first 1x1 convolution with a stride, by name.

    Its backward pass in channels_last writes outside of its memory where it has few channels (torch 2.15 with oneDNN,
    4 channels, stride 2, on a processor with AVX2): the process dies, sooner or later.
    """
    for name, module in model.named_modules():
        points = isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d) and set(module.kernel_size) == {1}
        if points and max(module.stride) > 1:
            return name or type(module).__name__
    return None


def runs_in_channels_last(model: nn.Module, shape: Shape, device: torch.device) -> bool:
    """Whether a copy of the model can be trained in that layout: x.view() after a convolution, for one, cannot, and a
    convolution of volumes has another.
    """
    if (device.type == "cpu" and strided_points(model)) or any(p.dim() == VOLUME for p in model.state_dict().values()):
        return False
    trial = copied(model, lambda tensor: tensor.clone()).to(device).to(memory_format=torch.channels_last).train()
    with torch.random.fork_rng([device] if device.type == "cuda" else []), torch.enable_grad():
        try:
            outputs = flat(trial(*(torch.zeros(2, *one, device=device) for one in each(shape))))
            sum(out.sum() for out in outputs if out.requires_grad).backward()  # type: ignore[union-attr]
        except Exception:
            return False
    return True


def _computes_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type != "cpu":
        return False
    if hasattr(torch.cpu, "get_capabilities"):
        return bool(torch.cpu.get_capabilities().get("avx512_bf16"))  # processors with AMX have it too
    return bool(getattr(torch.cpu, "_is_avx512_bf16_supported", bool)())  # torch 2.6 has no public way to ask


def seed_dropout(seed: int, device: torch.device) -> None:
    """Seed torch's global generators, of which dropout draws."""
    torch.default_generator.manual_seed(seed)  # torch.manual_seed takes 0.1 ms, a twentieth of a small step
    if device.type == "cuda":
        torch.cuda.manual_seed_all(seed)


@contextmanager
def modes_kept(model: nn.Module) -> Iterator[None]:
    """Whatever is done to the modes of a model's modules, training or eval, they end as they were."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
