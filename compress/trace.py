"""One forward pass, written down: every operator that ran, on tensors that hold no numbers.

The model is copied with all its tensors on device `meta` (shapes without storage), so tracing DenseNet-121 takes a
tenth of a second and no memory, and the user's own module is never touched. Nothing is symbolic: whatever Python runs,
runs. A forward pass that depends on the *values* of its input cannot be read, nor exported, and is refused here.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.utils._python_dispatch import TorchDispatchMode

from compress.errors import UsageError

Shape = Sequence[int] | Sequence[Sequence[int]]  # of one input without its batch, or of several, one after the other
Batch = Tensor | tuple[Tensor, ...]  # what a model is called with: its one input, or one tensor for each of several


@dataclass(frozen=True, slots=True)
class Call:
    """One operator as it ran; tensors are compared by identity."""

    op: str  # "aten.convolution"
    func: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    out: Any
    module: str  # dotted name of the innermost module that was running; "" is the model itself

    @property
    def tensors(self) -> list[Tensor]:
        """The tensor arguments in order, those in lists included."""
        return list(flat([*self.args, *self.kwargs.values()]))


@dataclass(frozen=True, slots=True)
class Visit:
    """One call of a module that has no children."""

    name: str
    module: nn.Module
    inputs: tuple[Any, ...]
    output: Any


@dataclass(frozen=True, slots=True)
class Trace:
    """A forward pass: operators and leaf modules in the order of their calls."""

    model: nn.Module  # the copy on device meta
    calls: tuple[Call, ...]
    visits: tuple[Visit, ...]
    names: dict[int, str]  # id of a parameter or buffer -> its name
    outputs: tuple[Tensor, ...]
    lessons: tuple[Call, ...] = ()  # of a pass in training mode, where that reads other weights; they cost nothing
    notes: tuple[str, ...] = ()  # what no pass shows


def flat(value: Any) -> Iterator[Tensor]:
    """Every tensor in nested lists, tuples and dicts, in order."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from flat(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from flat(item)


def copied(model: nn.Module, change: Callable[[Tensor], Tensor]) -> nn.Module:
    """A deep copy in eval mode with every tensor that a module holds replaced by `change` of it.

    Also what copy.deepcopy refuses: a weight that was computed from another, as masks and weight norms leave it.
    """
    memo: dict[int, Any] = {}
    for module in model.modules():
        for tensor in flat(list(vars(module).values())):
            if id(tensor) not in memo:
                new = change(tensor.detach())
                is_parameter = isinstance(tensor, nn.Parameter)
                memo[id(tensor)] = nn.Parameter(new, requires_grad=tensor.requires_grad) if is_parameter else new
    return copy.deepcopy(model, memo).eval()


def ghost(model: nn.Module) -> nn.Module:
    """A copy of the model in eval mode whose tensors have shapes and no numbers."""
    return copied(model, lambda tensor: torch.empty_like(tensor, device="meta"))


def each(shape: Shape) -> tuple[tuple[int, ...], ...]:
    """The shape of every input, one for each argument of forward(): [3, 8, 8] says one, [[3, 8, 8], [10]] says two."""
    if all(isinstance(size, int) for size in shape):
        return (tuple(cast(Sequence[int], shape)),)
    return tuple(tuple(one) for one in cast(Sequence[Sequence[int]], shape))


def plainly(shape: Shape) -> tuple[int, ...] | tuple[tuple[int, ...], ...]:
    """The same as tuples."""
    shapes = each(shape)
    return shapes[0] if all(isinstance(size, int) for size in shape) else shapes


def arguments(batch: Batch) -> tuple[Tensor, ...]:
    """The arguments of forward() for a batch."""
    return (batch,) if isinstance(batch, Tensor) else batch


def blanks(model: nn.Module, shape: Shape, batch: int = 1) -> tuple[Tensor, ...]:
    """Inputs [batch, *shape] without numbers, of the model's own floating type."""
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
    return tuple(torch.empty(batch, *one, device="meta", dtype=dtype) for one in each(shape))


@contextmanager
def countable() -> Iterator[None]:
    """How a ghost runs: no gradients, what forward() makes has no numbers either, and attention as matrix products.

    The fused attention paths hide their multiplications from every counter.
    """
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.no_grad(), torch.device("meta"), sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self, where: list[str]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.where = where
        self.calls: list[Call] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        self.calls.append(Call(str(func.overloadpacket), func, tuple(args), dict(kwargs), out, self.where[-1]))
        return out


def trace(model: nn.Module, shape: Shape) -> Trace:
    """Run a copy of the model once, in eval mode, on inputs of shape [1, *shape] and write down what ran.

    Raises UsageError where the model cannot be copied, or does not run on that shape, or looks at values.
    """
    try:
        ghostly = ghost(model)
    except Exception as error:
        raise UsageError(f"the model cannot be copied ({say(error)}); a model must survive copy.deepcopy") from None
    names: dict[int, str] = {}
    for name, tensor in [*ghostly.named_parameters(), *ghostly.named_buffers()]:
        names.setdefault(id(tensor), name)
    try:
        calls, visits, output = _run(ghostly, blanks(ghostly, shape))
    except Exception as error:
        raise UsageError(
            f"the model cannot be traced with {_asked(shape)} ({say(error)}); "
            "check the input shape, and that forward() does not depend on the values of its input"
        ) from error
    outputs = tuple(flat(output))
    if not outputs:
        raise UsageError(f"the model returns no tensor but {type(output).__name__}; forward() must return its logits")
    return Trace(ghostly, calls, visits, names, outputs)


def taught(traced: Trace, shape: Shape) -> Trace:
    """The same, with a pass in training mode where that reads other parameters: auxiliary heads, heads used twice.

    It takes a batch of two, since batch norm refuses one value for each channel. A note says which parameters neither
    pass reads, and why where training cannot be tried: a forward pass that throws dice, or wants labels.
    """
    own = {id(parameter): name for name, parameter in traced.model.named_parameters()}

    def reads(calls: Iterable[Call]) -> list[str]:
        return [own[id(tensor)] for call in calls for tensor in call.tensors if id(tensor) in own]

    known, why = reads(traced.calls), "in either mode"
    lessons: tuple[Call, ...] = ()
    outputs: tuple[Tensor, ...] = ()
    try:
        traced.model.train()
        lessons, _, output = _run(traced.model, blanks(traced.model, shape, batch=2))
    except Exception as error:
        why = f"in eval mode, and training mode cannot be tried ({say(error)})"
    else:
        outputs = tuple(flat(output))
    finally:
        traced.model.eval()
    learned = reads(lessons)
    if learned == known and [t.shape[1:] for t in outputs] == [t.shape[1:] for t in traced.outputs]:
        lessons, outputs = (), ()
    unread = [name for name in own.values() if name not in {*known, *learned}]
    notes = (f"{len(unread)} parameters are not read {why}: {', '.join(unread[:3])}",) if unread else ()
    return replace(traced, outputs=(*traced.outputs, *outputs), lessons=lessons, notes=notes)


def _asked(shape: Shape) -> str:
    shapes = [[1, *one] for one in each(shape)]
    return f"an input of shape {shapes[0]}" if len(shapes) == 1 else f"inputs of shapes {shapes}"


def _run(model: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[tuple[Call, ...], tuple[Visit, ...], Any]:
    """What runs when the model is called: operators, leaf modules, and what it returns."""
    paths = {id(module): name for name, module in model.named_modules()}
    where = [""]
    visits: list[Visit] = []

    def enter(module: nn.Module, inputs: Any) -> None:
        where.append(paths.get(id(module), where[-1]))

    def leave(module: nn.Module, inputs: Any, output: Any) -> None:
        name = where.pop()
        if next(module.children(), None) is None and id(module) in paths:
            visits.append(Visit(name, module, tuple(inputs), output))

    recorder = _Recorder(where)
    with ExitStack() as stack:
        stack.enter_context(countable())
        for hook in (register_module_forward_pre_hook(enter), register_module_forward_hook(leave)):
            stack.callback(hook.remove)
        stack.enter_context(recorder)
        output = model(*inputs)
    return tuple(recorder.calls), tuple(visits), output


def say(error: BaseException) -> str:
    """An exception in one line: its type and the first line of its text."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__
