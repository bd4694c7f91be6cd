"""Depth: which blocks of a model can be repeated, and giving its stages more of them or fewer.

A *stage* is a run of blocks of one class within an nn.Sequential, all of which, except perhaps the first, keep the
shape of their input. A new block goes behind the last one: it is what the model's own `new_block(stage)` returns, where
it has such a method, else a copy of a block that keeps the shape. Names of the blocks that are there never change, so
neither do those of their tensors.
"""

from __future__ import annotations

import copy
import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from compress.errors import UsageError, one_line
from compress.reading.ghost import copied, countable, ghost
from compress.reading.inputs import Shape, blanks

Depths = Mapping[str, Sequence[str]]  # of every container that differs from the factory's: its children's names


@dataclass(frozen=True, slots=True)
class Stage:
    """Blocks in a row, as the full network has them."""

    name: str  # the container's path, or its first block's where the container holds more than this stage
    container: str  # path of the nn.Sequential
    blocks: tuple[str, ...]  # children of the container, in order
    own: bool  # whether the container holds nothing else

    def names(self, depth: int) -> tuple[str, ...]:
        """What `depth` blocks are called: the full network's names first."""
        last = self.blocks[-1]
        if self.own and last.isdecimal():
            more = [str(int(last) + 1 + extra) for extra in range(depth - len(self.blocks))]
        else:
            more = [f"{last}_{2 + extra}" for extra in range(depth - len(self.blocks))]
        return (*self.blocks[:depth], *more)

    def depth(self, model: nn.Module) -> int:
        """How many blocks a model has in this stage; 0 where its container is gone, as after a cut."""
        try:
            present = [name for name, _ in model.get_submodule(self.container).named_children()]
        except AttributeError:
            return 0
        return next(depth for depth in range(len(present), -1, -1) if set(self.names(depth)) <= set(present))


def layout(model: nn.Module, depths: Mapping[Stage, int]) -> dict[str, tuple[str, ...]]:
    """The children that containers have once these stages are so deep."""
    children: dict[str, tuple[str, ...]] = {}
    for stage, depth in depths.items():
        names = children.get(stage.container) or tuple(
            name for name, _ in model.get_submodule(stage.container).named_children()
        )
        mine = stage.names(stage.depth(model))
        start = names.index(mine[0])
        children[stage.container] = (*names[:start], *stage.names(depth), *names[start + len(mine) :])
    return children


def find(model: nn.Module, shape: Shape, names: Sequence[str] | None = None) -> tuple[Stage, ...]:
    """The stages of a model for inputs of shape [1, *shape], in the order in which they run; only those in `names`.

    Found are runs of blocks of one class that have modules inside and a second block that keeps the shape; with a
    `new_block` of the model's own, a single block is a stage too where it is all that its container holds and
    `new_block` answers for it. Stages within blocks are left out. Raises UsageError for a name that is no stage, and
    where there is none at all.
    """
    kept, order = _shapes(model, shape)
    runs: list[Stage] = []
    for path, container in model.named_modules():
        if isinstance(container, nn.Sequential):
            runs += [s for s in _runs(path, container, kept) if len(s.blocks) > 1 or (s.own and _offered(model, path))]
    runs = _innermost_of_wrappers(model, runs)
    runs.sort(key=lambda stage: order[f"{stage.container}.{stage.blocks[0]}".removeprefix(".")])
    stages = {stage.name: stage for stage in runs}
    if not stages:
        raise UsageError(
            "the model has no stage that could grow: no nn.Sequential in it has two blocks of one class in a row, of "
            "which the second keeps the shape of its input; make one, or give the model a method new_block(stage)"
        )
    if unknown := [name for name in names or () if name not in stages]:
        near = difflib.get_close_matches(unknown[0], stages, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"they are {', '.join(stages)}"
        raise UsageError(f"method.stages: {unknown[0]!r} is no stage of this model; {hint}")
    return tuple(stage for name, stage in stages.items() if names is None or name in names)


def arrange(model: nn.Module, depths: Depths, templates: Mapping[str, nn.Module] | None = None) -> list[str]:
    """Give containers these children, in this order, and return the paths of the blocks that are new.

    A new one comes from the model's `new_block(container)`, else it is a copy: of what `templates` has for its path, or
    of the child before it. Raises UsageError where there is no such container, or nothing to copy.
    """
    new = []
    for path, names in depths.items():
        try:
            container = model.get_submodule(path)
        except AttributeError:
            raise UsageError(f"the model has no module {path!r} whose depth could be set") from None
        held = dict(container.named_children())
        container._modules.clear()
        before: nn.Module | None = None
        for name in names:
            inside = f"{path}.{name}".removeprefix(".")
            if name not in held:
                held[name] = _new(model, path, (templates or {}).get(inside, before))
                new.append(inside)
            before = held[name]
            container.add_module(name, before)
    return new


def last_norm(model: nn.Module, shape: Shape, block: str) -> str | None:
    """The path of the last batch norm that runs in a residual block; None where there is none, or no residual.

    A block is residual where, with that batch norm silent (weight and bias zero), it passes on what it gets, if that is
    not negative: AutoGrow's initialisers of "the last batch norm in a sub-module" (section 3.2) are about such blocks.
    """
    sizes: list[torch.Size] = []
    ran: list[str] = []
    spectre = ghost(model)
    body = spectre.get_submodule(block)
    names = {id(module): name for name, module in body.named_modules() if isinstance(module, _BatchNorm)}
    body.register_forward_pre_hook(lambda _, inputs: sizes.append(inputs[0].shape))
    for module in body.modules():
        if id(module) in names:
            module.register_forward_hook(lambda norm, *_: ran.append(names[id(norm)]))
    with countable():
        spectre(*blanks(spectre, shape))
    if not ran:
        return None
    silent = copied(model.get_submodule(block), lambda tensor: tensor.to("cpu", copy=True))
    dtype = next(silent.parameters()).dtype
    x = torch.rand(sizes[0], generator=torch.Generator().manual_seed(0), dtype=dtype)
    with torch.no_grad():
        for parameter in silent.get_submodule(ran[-1]).parameters():
            parameter.zero_()
        passed = silent(x)
    return f"{block}.{ran[-1]}" if isinstance(passed, Tensor) and torch.equal(passed, x) else None


def _new(model: nn.Module, container: str, source: nn.Module | None) -> nn.Module:
    make = getattr(model, "new_block", None)
    if callable(make):
        try:
            made = make(container)
        except Exception as error:
            raise UsageError(f"the model's new_block({container!r}) failed: {one_line(error)}") from None
        if not isinstance(made, nn.Module):
            raise UsageError(f"the model's new_block({container!r}) returned {type(made).__name__}, not a module")
        return made
    if source is None:
        raise UsageError(f"{container} has no block to copy; give the model a method new_block(stage)")
    return copy.deepcopy(source)


def _shapes(model: nn.Module, shape: Shape) -> tuple[dict[str, bool], dict[str, int]]:
    """Of every module that ran with one tensor in and one out: whether the shapes are equal, and its place in order."""
    kept: dict[str, bool] = {}
    order: dict[str, int] = {}
    spectre = ghost(model)
    names = {id(module): name for name, module in spectre.named_modules()}

    def before(module: nn.Module, _: Any) -> None:
        order.setdefault(names[id(module)], len(order))

    def after(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        plain = len(inputs) == 1 and isinstance(inputs[0], Tensor) and isinstance(output, Tensor)
        if plain:
            kept[names[id(module)]] = kept.get(names[id(module)], True) and inputs[0].shape == output.shape

    for module in spectre.modules():
        module.register_forward_pre_hook(before)
        module.register_forward_hook(after)
    with countable():
        try:
            spectre(*blanks(spectre, shape))
        except Exception as error:
            raise UsageError(f"the model does not run on one input of shape {list(shape)}: {one_line(error)}") from None
    return kept, order


def _runs(path: str, container: nn.Sequential, kept: Mapping[str, bool]) -> list[Stage]:
    """Runs of children of one class, with modules inside, of which all but the first keep the shape."""
    runs: list[list[str]] = []
    children = list(container.named_children())
    for (_, before), (name, child) in zip([("", None), *children], children, strict=False):
        ran = f"{path}.{name}" if path else name
        if ran not in kept or next(child.children(), None) is None:
            runs.append([])
        elif kept[ran] and runs and runs[-1] and type(child) is type(before):
            runs[-1].append(name)
        else:
            runs.append([name])
    whole = [name for name, _ in children]
    return [
        Stage(path if run == whole else f"{path}.{run[0]}".removeprefix("."), path, tuple(run), run == whole)
        for run in runs
        if run
    ]


def _innermost_of_wrappers(model: nn.Module, stages: list[Stage]) -> list[Stage]:
    """Stages that repeat what people call a block: neither what only wraps a stage, nor what is inside such a block."""

    def block(stage: Stage) -> nn.Module:
        return model.get_submodule(f"{stage.container}.{stage.blocks[0]}".removeprefix("."))

    def within(path: str, stage: Stage) -> bool:
        return any(f"{path}.".startswith(f"{stage.container}.{name}.".removeprefix(".")) for name in stage.blocks)

    wraps = [s for s in stages if type(block(s)) is nn.Sequential and any(within(o.container, s) for o in stages)]
    rest = [stage for stage in stages if stage not in wraps]
    kinds = {type(block(stage)) for stage in rest} - {nn.Sequential}
    modules = dict(model.named_modules())

    def inside(stage: Stage) -> bool:
        parts = stage.container.split(".")
        above = [".".join(parts[:depth]) for depth in range(1, len(parts) + 1)]
        return any(type(modules[path]) in kinds for path in above) or any(within(stage.container, o) for o in rest)

    return [stage for stage in rest if not inside(stage)]


def _offered(model: nn.Module, container: str) -> bool:
    """Whether the model makes new blocks for this container."""
    make = getattr(ghost(model), "new_block", None)
    if not callable(make):
        return False
    try:
        return isinstance(make(container), nn.Module)
    except Exception:
        return False
