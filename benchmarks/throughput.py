"""How fast training is on a CPU: our loop beside a plain PyTorch loop with torchvision's transforms in a DataLoader.

    python benchmarks/throughput.py cifar10.npz --out benchmarks/results/throughput.md

The same net, images, crops of 4 pixels, flips, batch of 128, SGD, float32 and NCHW for all. They take turns, a few
steps each, in an order that is turned around every round, so that whatever else the machine does hits all alike: what
counts are the ratios within a round. Before each turn some steps go untimed, in which the loader's queue empties or
fills as it will stay. torch.compile is tried on our loop, its compilation timed apart. GPU graphs are not looked at.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import torch
from evidence import machine
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from compress import measure
from compress.models import vgg
from compress.recipe.settings import Data as Images
from compress.recipe.settings import Train
from compress.training.data import Data, load
from compress.training.optim import sgd
from compress.training.train import Loop, memory_format_of, place, precision_of, train

BATCH, IMAGES = 128, 10_000
NETS: dict[str, dict[str, Any]] = {
    "9.6 MMACs, 13 layers": {"widths": [15, 19, 27, 26, 38, 37, 44, 51, 65, 58, 52, 49, 24], "pools": [2, 4, 7, 10]},
    "0.74 MMACs, 4 layers": {"widths": [8, 16, 24, 32], "pools": [1, 2, 3]},
}
NCHW, DEFAULT = "float32, NCHW", "as by default"
WAYS = {NCHW: ("fp32", "contiguous"), "float32, channels_last": ("fp32", "channels_last"), DEFAULT: ("auto", "auto")}
OURS, PLAIN, LOADED = "ours", "plain, no worker", "plain, 2 workers"


@dataclass(slots=True)
class Arm:
    """Something that trains: `steps(n)` does n steps more."""

    steps: Callable[[int], None]
    speeds: list[float] = field(default_factory=list)  # images a second, of each round

    def timed(self, warm: int, steps: int) -> None:
        """Take a turn."""
        self.steps(warm)
        begin = time.perf_counter()
        self.steps(steps)
        self.speeds.append(steps * BATCH / (time.perf_counter() - begin))


class Pictures(Dataset[tuple[Tensor, int]]):
    """The training images as torchvision's own data sets hold them: one at a time, through PIL."""

    def __init__(self, data: Data, path: str) -> None:
        import numpy as np

        _, numbers = data.parts["train"]
        with np.load(path, allow_pickle=False) as arrays:
            self.x, self.y = arrays["x_train"][numbers.numpy()], arrays["y_train"][numbers.numpy()]
        varied = [transforms.RandomCrop(32, padding=4), transforms.RandomHorizontalFlip(), transforms.ToTensor()]
        self.change = transforms.Compose([*varied, transforms.Normalize(data.mean, data.std)])

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, at: int) -> tuple[Tensor, int]:
        return self.change(Image.fromarray(self.x[at])), int(self.y[at])


def network(name: str) -> nn.Module:
    """The same net for everybody."""
    torch.manual_seed(0)
    return vgg(**NETS[name], last_pool="global", in_channels=3, size=32)


def ours(data: Data, model: nn.Module, *, compiled: bool = False, how: str = NCHW) -> Arm:
    """Our loop, as every method trains, in the precision and layout of `how`."""
    precision, layout = WAYS[how]
    precision = precision_of(precision, data.device, measure(model, data.shape).macs)
    place(model, data.device, memory_format_of(layout, data.device, model))
    optimizer, done = sgd(model, Train()), 0
    called = torch.compile(model) if compiled else model

    def steps(n: int) -> None:
        nonlocal done
        train(called, Loop(data, optimizer, done, n, seed=0, precision=precision), lambda step: 0.01)  # type: ignore[arg-type]
        done += n

    return Arm(steps)


def plain(pictures: Pictures, model: nn.Module, workers: int) -> Arm:
    """The loop of a tutorial."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)
    loader = DataLoader(
        pictures, BATCH, shuffle=True, drop_last=True, num_workers=workers, persistent_workers=workers > 0
    )

    def endless() -> Iterator[tuple[Tensor, Tensor]]:
        while True:
            yield from loader

    batches = endless()

    def steps(n: int) -> None:
        model.train()
        for _, (x, y) in zip(range(n), batches, strict=False):
            optimizer.zero_grad()
            loss = functional.cross_entropy(model(x), y)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()

    return Arm(steps)


def rounds(arms: Mapping[str, Arm], count: int, warm: int, steps: int) -> None:
    """Turns in both orders."""
    for number in range(count):
        names = list(arms) if number % 2 == 0 else list(arms)[::-1]
        for name in names:
            arms[name].timed(warm, steps)


def ratio(arms: Mapping[str, Arm], one: str, other: str) -> str:
    """How much faster one is than another: the median over rounds, and the least and the most of them."""
    each = sorted(a / b for a, b in zip(arms[one].speeds, arms[other].speeds, strict=True))
    return f"{median(each):.2f} ({each[0]:.2f} to {each[-1]:.2f})"


def compared(name: str, data: Data, pictures: Pictures, threads: int, count: int) -> str:
    """A row: our loop and the plain ones."""
    torch.set_num_threads(threads)
    arms = {
        OURS: ours(data, network(name)),
        PLAIN: plain(pictures, network(name), 0),
        LOADED: plain(pictures, network(name), 2),
    }
    rounds(arms, count, warm=4, steps=8)
    speeds = [f"{median(arm.speeds):,.0f}" for arm in arms.values()]
    return f"| {name} | {threads} | {' | '.join(speeds)} | {ratio(arms, OURS, PLAIN)} | {ratio(arms, OURS, LOADED)} |"


def ways(name: str, data: Data, count: int) -> str:
    """A row: our loop in other layouts and number formats, on one thread."""
    torch.set_num_threads(1)
    arms = {how: ours(data, network(name), how=how) for how in WAYS}
    rounds(arms, count, warm=2, steps=6)
    speeds = [f"{median(arm.speeds):,.0f}" for arm in arms.values()]
    others = [ratio(arms, how, NCHW) for how in WAYS if how != NCHW]
    return f"| {name} | {' | '.join(speeds)} | {' | '.join(others)} |"


def compiled(name: str, data: Data, how: str, count: int) -> str:
    """A row: our loop with and without torch.compile, on one thread."""
    torch.set_num_threads(1)
    torch._dynamo.reset()
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = tempfile.mkdtemp()  # nothing was compiled before
    arms = {on: ours(data, network(name), compiled=on == "on", how=how) for on in ("off", "on")}
    begin = time.perf_counter()
    arms["on"].steps(1)
    first = time.perf_counter() - begin
    rounds(arms, count, warm=2, steps=8)
    on, off = (BATCH / median(arms[key].speeds) for key in ("on", "off"))  # seconds a step
    pays = f"after {(first - on) / (off - on):,.0f} steps" if on < off else "never"
    return (
        f"| {name} | {how} | {BATCH / off:,.0f} | {BATCH / on:,.0f} | {ratio(arms, 'on', 'off')} | "
        f"{first - on:.0f} s | {pays} |"
    )


def page(path: str, count: int, parts: str) -> Iterator[str]:
    """The lines of the results page, as they are known; of its tables those of one part, or all."""
    data = load(
        Images(source="npz", path=path, crop=4, flip=True, train=IMAGES, val=1000),
        batch=BATCH, seed=0, device=torch.device("cpu"),
    )  # fmt: skip
    pictures = Pictures(data, path)
    yield HEAD.format(machine=machine(), count=count)
    for threads in (1, 2) if parts != "compile" else ():
        for name in NETS:
            yield compared(name, data, pictures, threads, count)
    yield DIFFERENT
    for name in NETS if parts != "compile" else ():
        yield ways(name, data, count)
    yield COMPILED
    for name, how in ((name, how) for how in WAYS for name in NETS) if parts != "loops" else ():
        yield compiled(name, data, how, count)
    yield FOOT


HEAD = """\
# How fast training is on a CPU

`python benchmarks/throughput.py cifar10.npz`: our loop beside a plain PyTorch loop with torchvision's transforms in a
DataLoader, in images a second; CIFAR-10, crops of 4 pixels and flips, batch 128, SGD, float32, NCHW. The machine, which
was busy, as other training ran on both of its cores all the time: {machine}. So the figures are low, above all with two
threads, which wait for each other, and the ratios within a round are what counts. Medians of {count} rounds, in which
all take turns; in brackets the least and the most.

| net | threads | ours | plain, no worker | plain, 2 workers | ours over no worker | ours over 2 workers |
|---|---|---|---|---|---|---|"""
DIFFERENT = """
Our loop keeps images as bytes in memory and varies a whole batch at once; the plain one goes through PIL, image by
image, and its two workers take cores of their own, which were taken here already.

## What a run takes by itself

Our loop on one thread. By default it takes channels_last, and bfloat16 where the processor is faster with it and the
net not tiny, as here.

| net | float32, NCHW | float32, channels_last | as by default | channels_last over NCHW | default over NCHW |
|---|---|---|---|---|---|"""
COMPILED = """
## torch.compile

Our loop with it on and off, one thread, nothing compiled before. Compilation is the first step's time less a later
one's.

| net | computed in | off | on | on over off | compilation | pays for itself |
|---|---|---|---|---|---|---|"""
FOOT = """
It wins in NCHW about what channels_last wins without it. As runs train by default it wins nothing beyond the spread,
after a minute or two of compilation on this machine; and growing changes shapes, which compiles anew. So it is no part
of compress. Captured graphs on a GPU were not measured: there was no GPU."""


def main() -> None:
    """Write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="An .npz file with x_train, y_train, x_test, y_test.")
    parser.add_argument("--out", type=Path, help="The page to write; else it is printed.")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--parts", choices=["both", "loops", "compile"], default="both", help="Which of the tables.")
    given = parser.parse_args()
    lines = []
    for line in page(given.data, given.rounds, given.parts):
        print(line, flush=True)
        lines.append(line)
    if given.out:
        given.out.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
