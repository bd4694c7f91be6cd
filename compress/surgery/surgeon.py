"""Applying edits: the one place where tensors of a live model change their shape.

One primitive, `take`: along one dimension, every new index names its old one or is fresh (-1). Weights, biases,
running statistics and optimizer state (momentum, Adam's moments, DI-ISS's Z and Gamma) all go through it, so that a
parameter and its state never part. A parameter's `.data` is never resized, since an autograd graph still alive keeps
the old shape: a new Parameter takes the old one's place in the module and in the optimizer.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from compress.budget.price import Ints
from compress.errors import UsageError, one_line
from compress.reading.ghost import ghost
from compress.reading.graph import Edit, Graph, read
from compress.reading.inputs import Shape
from compress.surgery.stages import Depths, arrange

Columns = Literal["zero", "kaiming"]
Hold = Callable[[Graph], Mapping[str, str]]  # spaces that stay as they are, each with its reason


def take(tensor: Tensor, dim: int, source: Ints) -> Tensor:
    """`tensor` with index `source[j]` at position j of `dim`; zeros where source[j] is -1."""
    taken = tensor.index_select(dim, torch.from_numpy(np.maximum(source, 0)).to(tensor.device))
    fresh = np.flatnonzero(source < 0)
    if fresh.size:
        taken.index_fill_(dim, torch.from_numpy(fresh).to(tensor.device), 0)
    return taken


class Surgeon:
    """Changes widths of one live model and keeps its graph and its optimizer in step.

    The model is the truth; `graph` says what it looks like now. Where an optimizer is given, its parameter groups and
    its state follow every edit: each live parameter stays in exactly one group.
    """

    def __init__(
        self,
        model: nn.Module,
        graph: Graph,
        optimizer: torch.optim.Optimizer | None = None,
        hold: Hold | None = None,
    ) -> None:
        self.model = model
        self.graph = graph
        self.optimizer = optimizer
        self.hold = hold  # of a graph that was read anew: which spaces stay as they are

    def sketch(self) -> Surgeon:
        """The same on a copy of the model without numbers: what an edit would come to, before it is done."""
        return Surgeon(ghost(self.model), self.graph, hold=self.hold)

    def widen(self, space: str, by: int, *, columns: Columns = "zero", seed: int = 0) -> None:
        """Add `by` channels to a space.

        New filters get Kaiming-normal weights (fan-in, ReLU); what reads them gets zeros, so that the function does not
        change (columns="zero"), or Kaiming weights as AdeNeL publishes it. Batch norm starts at weight 1, bias 0; where
        other tensors hold one value for each channel, a new one gets the mean of the present ones.
        """
        if by < 1:
            raise ValueError(f"{space} cannot be widened by {by}")
        self.apply(self.graph.widen(space, by), columns=columns, seed=seed)

    def narrow(self, space: str, keep: Sequence[int]) -> None:
        """Keep these channels of a space and remove the others; exact where what reads the others is zero."""
        self.apply(self.graph.narrow(space, keep))

    def resize(
        self, widths: Mapping[str, int], *, columns: Columns = "zero", seed: Callable[[str], int] = lambda _: 0
    ) -> None:
        """Give spaces these widths: the first channels stay as they are, new ones come behind them."""
        for name, width in widths.items():
            now = self.graph.widths[name]
            if width > now:
                self.widen(name, width - now, columns=columns, seed=seed(name))
            elif width < now:
                self.narrow(name, range(width))

    def arrange(
        self, depths: Depths, templates: Mapping[str, nn.Module] | None = None, *, tried: bool = True
    ) -> list[str]:
        """Give containers these children, as `stages.arrange` does, and look at the model again; the new blocks' paths.

        The optimizer holds a new block's parameters where it holds their like in the block before it. Where it is only
        to be priced, what is free need not be `tried`.
        """
        groups = self._groups()
        new = arrange(self.model, depths, templates)
        self._regroup(groups, depths)
        shape = self.graph.shape
        self.graph = survey(self.model, shape, self.hold) if tried else read(self.model, shape, lessons=False)
        return new

    def apply(self, edit: Edit, *, columns: Columns = "zero", seed: int = 0) -> None:
        """Carry out an edit that `graph` planned."""
        takes: dict[str, dict[int, Ints]] = defaultdict(dict)
        for (name, dim), source in sorted(edit.takes.items()):
            takes[name][dim] = source
        generator = torch.Generator().manual_seed(seed)
        olds: dict[str, Tensor] = {}
        swaps: dict[int, Tensor] = {}
        for name, sources in takes.items():
            path, _, leaf = name.rpartition(".")
            owner = self.model.get_submodule(path)
            old = olds[name] = getattr(owner, leaf)
            new = old.detach()
            for dim, source in sources.items():
                new = take(new, dim, source)
            for role in ("out", "channel", "in"):  # columns last: where both are fresh, zero columns win
                for dim, source in sources.items():
                    fresh = np.flatnonzero(source < 0)
                    if edit.before.slots[name, dim].role == role and fresh.size:
                        _fill(new, dim, fresh, role, columns, generator, _start(owner, leaf))
            swaps[id(old)] = _in_place_of(old, new)
        readers = edit.before.slots.keys()  # a depthwise weight has no axis that reads channels
        depthwise = [olds[name] for name in takes if name in edit.before.kernels and (name, 1) not in readers]
        swap(self.model, swaps, {id(swaps[id(weight)]) for weight in depthwise})
        if self.optimizer is not None:
            for group in self.optimizer.param_groups:
                group["params"] = [swaps.get(id(held), held) for held in group["params"]]
            for name, old in olds.items():
                if old in self.optimizer.state:
                    state = self.optimizer.state.pop(old)
                    moved = {key: _resized(value, old, takes[name]) for key, value in state.items()}
                    self.optimizer.state[swaps[id(old)]] = moved
        self.graph = edit.after

    def _groups(self) -> dict[str, int]:
        """The number of the optimizer's group that holds each parameter."""
        groups = self.optimizer.param_groups if self.optimizer else []
        homes = {id(parameter): number for number, group in enumerate(groups) for parameter in group["params"]}
        return {name: homes[id(p)] for name, p in self.model.named_parameters() if id(p) in homes}

    def _regroup(self, homes: Mapping[str, int], depths: Depths) -> None:
        """Put every live parameter into the group of its like, or of another weight or vector where it has none.

        Those that are gone leave with their state.
        """
        if self.optimizer is None:
            return
        live = dict(self.model.named_parameters())
        members: list[list[nn.Parameter]] = [[] for _ in self.optimizer.param_groups]
        known = dict(homes)
        for name, parameter in live.items():
            if name not in known:
                alike = [other for other in homes if other in live and (live[other].dim() > 1) == (parameter.dim() > 1)]
                known[name] = known[_like(name, depths, known) or next(iter(alike), name)]
            members[known[name]].append(parameter)
        for group, mine in zip(self.optimizer.param_groups, members, strict=True):
            group["params"] = mine
        kept = {id(parameter) for parameter in live.values()}
        for gone in [held for held in self.optimizer.state if id(held) not in kept]:
            del self.optimizer.state[gone]


def _like(name: str, depths: Depths, known: Mapping[str, int]) -> str | None:
    """Of a new block's parameter, the one of the same name in the nearest block before it, if one has it."""
    for container, children in depths.items():
        inside = name.removeprefix(f"{container}.") if container else name
        child, _, rest = inside.partition(".")
        if name.startswith(container) and child in children:
            for before in reversed(children[: list(children).index(child)]):
                if (like := f"{container}.{before}.{rest}".removeprefix(".")) in known:
                    return like
    return None


def survey(model: nn.Module, shape: Shape, held: Hold | None = None) -> Graph:
    """Read a module and try its free spaces on a copy without numbers: wider, it must run and read as foretold.

    A space that does not (a forward pass with a baked-in channel count) is frozen, with what Python said as the reason.
    `held` says which spaces of a graph stay as they are, each with its reason. Raises UsageError as `graph.read` does.
    """
    graph = read(model, shape)
    hold = dict(held(graph)) if held else {}
    if hold:
        graph = read(model, shape, hold)
    # Each by another number, two apart for the sake of halves: spaces must not hide that they only change together.
    amounts = {name: 2 * number + 3 for number, name in enumerate(graph.free)}
    if _broken(model, graph, amounts, hold) is None:
        return graph
    reasons = {name: _broken(model, graph, {name: by}, hold) for name, by in amounts.items()}
    hold |= {name: f"the model breaks when it is wider: {why}" for name, why in reasons.items() if why is not None}
    graph = read(model, shape, hold)
    if (why := _broken(model, graph, {name: amounts[name] for name in graph.free}, hold)) is not None:
        graph = read(model, shape, hold | dict.fromkeys(graph.free, f"it does not change without others: {why}"))
    return graph


def _broken(model: nn.Module, graph: Graph, amounts: Mapping[str, int], held: Mapping[str, str]) -> str | None:
    """None where the model, with these spaces widened, runs, reads and costs as foretold; else what went wrong."""
    wider = graph
    for name, by in amounts.items():
        wider = wider.widen(name, by).after
    tried = ghost(model)
    shapes = {name: list(t.shape) for name, t in [*tried.named_parameters(), *tried.named_buffers()]}
    for (name, dim), slot in wider.slots.items():
        shapes[name][dim] = len(slot.units)
    fit(tried, {name: tuple(shape) for name, shape in shapes.items()})
    try:
        again = read(tried, graph.shape, held)
    except UsageError as error:
        return one_line(error.__cause__ or error)
    if not wider.alike(again) or again.price.cost(again.widths) != graph.price.cost(wider.widths):
        return "other tensors change than its operators say"
    return None


def fit(model: nn.Module, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Give a fresh model's tensors these shapes, their numbers undefined: what a compact network is loaded into.

    Tied tensors may be named once, and buffers that no file holds not at all. Raises KeyError where other names differ
    from the model's own.
    """
    tensors = dict([*model.named_parameters(), *model.named_buffers()])
    known = model.state_dict().keys()
    missing, extra = sorted(tensors.keys() & known - shapes.keys()), sorted(shapes.keys() - known - tensors.keys())
    if missing or extra:
        raise KeyError(f"the model's tensors are not those of the file: missing {missing[:3]}, unexpected {extra[:3]}")
    swaps: dict[int, Tensor] = {}
    for name, old in tensors.items():
        if tuple(old.shape) != tuple(shapes.get(name, old.shape)):
            swaps[id(old)] = _in_place_of(old, old.detach().new_zeros(shapes[name]))
    convolutions = [module for module in model.modules() if isinstance(module, nn.modules.conv._ConvNd)]
    depthwise = [module.weight for module in convolutions if 1 < module.groups == module.in_channels]
    swap(model, swaps, {id(swaps.get(id(weight), weight)) for weight in depthwise})


def swap(model: nn.Module, swaps: Mapping[int, Tensor], depthwise: Collection[int] = ()) -> None:
    """Put new tensors in the places of old ones (by id), wherever modules hold them, and set the modules' sizes.

    `depthwise` holds the ids of new convolution weights that have as many groups as channels: one with a single channel
    cannot tell itself.
    """
    for module in model.modules():
        touched = False
        for held in (module._parameters, module._buffers):
            for key, tensor in held.items():
                if id(tensor) in swaps:
                    held[key] = swaps[id(tensor)]  # type: ignore[assignment]
                    touched = True
        if touched:
            _refresh(module, depthwise=id(getattr(module, "weight", None)) in depthwise)


def _refresh(module: nn.Module, depthwise: bool) -> None:
    """Set a layer's own record of its sizes from its tensors, which are the truth."""
    if isinstance(module, nn.modules.conv._ConvNd):
        first, second = module.weight.shape[:2]
        if module.transposed:
            module.groups = first if depthwise else module.groups
            module.in_channels, module.out_channels = first, second * module.groups
        else:
            module.groups = first // (module.out_channels // module.groups) if depthwise else module.groups
            module.in_channels, module.out_channels = second * module.groups, first
    elif isinstance(module, nn.Linear):
        module.out_features, module.in_features = module.weight.shape
    elif isinstance(module, nn.modules.batchnorm._NormBase):
        module.num_features = len(next(t for t in (module.weight, module.running_mean) if t is not None))
    elif isinstance(module, nn.GroupNorm):
        each = module.num_channels // module.num_groups  # a group comes and goes as a whole
        module.num_channels = len(module.weight)
        module.num_groups = module.num_channels // each
    elif isinstance(module, nn.PReLU):
        module.num_parameters = len(module.weight)


def _in_place_of(old: Tensor, new: Tensor) -> Tensor:
    return nn.Parameter(new, requires_grad=old.requires_grad) if isinstance(old, nn.Parameter) else new


def _start(owner: nn.Module, leaf: str) -> float | None:
    """What a tensor with one value for each channel starts at in a new one; None: at the mean of the present ones."""
    if leaf in ("bias", "running_mean"):
        return 0.0
    norm = isinstance(owner, nn.modules.batchnorm._NormBase | nn.GroupNorm)
    return 1.0 if norm and leaf in ("weight", "running_var") else None


def _fill(new: Tensor, dim: int, fresh: Ints, role: str, columns: Columns, generator: torch.Generator,
          start: float | None) -> None:  # fmt: skip
    """Set the fresh indices along one dimension to what a new channel starts with."""
    index = torch.from_numpy(fresh).to(new.device)
    if role == "channel" and start is not None:
        new.index_fill_(dim, index, start)
    elif role == "channel":
        old = np.setdiff1d(np.arange(new.shape[dim]), fresh)
        mean = new.index_select(dim, torch.from_numpy(old).to(new.device)).float().mean(dim, keepdim=True)
        new.index_copy_(dim, index, mean.to(new.dtype).repeat_interleave(len(fresh), dim))
    elif role == "in" and columns == "zero":
        new.index_fill_(dim, index, 0.0)
    else:
        filters = new.shape[dim if role == "out" else 1 - dim]
        shape = [len(fresh) if d == dim else size for d, size in enumerate(new.shape)]
        drawn = torch.randn(shape, generator=generator, dtype=torch.float32) * (2 * filters / new.numel()) ** 0.5
        new.index_copy_(dim, index, drawn.to(new.device, new.dtype))


def _resized(value: Any, old: Tensor, sources: Mapping[int, Ints]) -> Any:
    """Optimizer state that follows its parameter: zeros where it is fresh, the mean where there is one per filter."""
    if not isinstance(value, Tensor) or value.dim() == 0:
        return value
    if value.shape == old.shape:
        for dim, source in sources.items():
            value = take(value, dim, source)
    elif value.shape == old.shape[:1] and 0 in sources:
        mean, value = value.mean(), take(value, 0, sources[0])
        value[torch.from_numpy(sources[0] < 0)] = mean
    return value
