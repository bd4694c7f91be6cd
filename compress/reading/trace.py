"""One forward pass, written down: every operator that ran, on tensors that hold no numbers.

The model is copied with all its tensors on device `meta` (shapes without storage), so tracing DenseNet-121 takes a
tenth of a second and no memory, and the user's own module is never touched. Nothing is symbolic: whatever Python runs,
runs. A forward pass that depends on the *values* of its input cannot be read, nor exported, and is refused here.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.utils._python_dispatch import TorchDispatchMode

from compress.errors import UsageError, one_line
from compress.reading import operators
from compress.reading.ghost import countable, flat, ghost
from compress.reading.inputs import Shape, blanks, each
from compress.reading.operators import Operator

ELEMENTWISE = Operator("pointwise")


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
    def row(self) -> Operator | None:
        """What is known of it: its row, or that it goes element by element, as torch itself tags it; else None."""
        tagged = torch.Tag.pointwise in getattr(self.func, "tags", ())
        return operators.row(self.op) or (ELEMENTWISE if tagged else None)

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


class Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Writes down every operator that runs; `where` ends with the name of the module that is running."""

    def __init__(self, where: list[str]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.where = where
        self.calls: list[Call] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        given = tuple(args)
        if torch.Tag.inplace_view in func.tags:  # the same tensor has other axes from here on
            before = args[0].view_as(args[0])
            self.calls = [_with(call, args[0], before) for call in self.calls]
            given = (before, *args[1:])
        if func is torch.ops.aten.convolution.default and args[1].shape[0] % args[8]:  # no numbers, no complaint
            raise RuntimeError(
                f"a convolution of {args[8]} groups has {args[1].shape[0]} filters, not equally many each"
            )
        out = _normed(*args) if func is NORM and not kwargs else func(*args, **kwargs)
        self.calls.append(Call(str(func.overloadpacket), func, given, dict(kwargs), out, self.where[-1]))
        return out


NORM = torch.ops.aten.native_batch_norm.default


def _normed(x: Tensor, *given: Any) -> tuple[Tensor, Tensor, Tensor]:
    """A batch norm without numbers: torch has no such kernel, and takes a fifth of a look to do it in Python."""
    if any(tensor is not None and tensor.shape != x.shape[1:2] for tensor in given[:4]):
        return NORM(x, *given)  # type: ignore[no-any-return]  # says what is wrong
    kept = x.shape[1:2] if given[4] else (0,)
    return torch.empty_like(x), x.new_empty(kept), x.new_empty(kept)


_BACKBONE = (
    "how many numbers it returns depends on what it sees, as of a detector with its boxes; name a factory that returns "
    "what comes before them, as in `def make(): return detector().backbone`"
)
CURES = {  # by what torch says
    "torch.nonzero()": _BACKBONE,
    "list of 3d tensors": _BACKBONE,
    "expected device meta": "forward() reads a tensor or a layer that is not among the model's own, as a lambda or a "
    "function in the place of a method does, which holds on to the model that it was made for; make it a method",
    "scalar types: Long, Int": "token ids come as floats, which hold them exactly: write x.long() in forward()",
}


def _cure(why: str) -> str:
    known = (cure for said, cure in CURES.items() if said in why)
    return next(known, "check the input shape, and that forward() does not depend on the values of its input")


def _with(value: Any, old: Tensor, new: Tensor) -> Any:
    """A call, or what is in one, with one tensor in place of another."""
    if isinstance(value, Call):
        args, kwargs, out = (_with(part, old, new) for part in (value.args, value.kwargs, value.out))
        return replace(value, args=args, kwargs=kwargs, out=out)
    if isinstance(value, dict):
        return {key: _with(part, old, new) for key, part in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_with(part, old, new) for part in value)
    return new if value is old else value


def trace(model: nn.Module, shape: Shape) -> Trace:
    """Run a copy of the model once, in eval mode, on inputs of shape [1, *shape] and write down what ran.

    Raises UsageError where the model cannot be copied, or does not run on that shape, or looks at values.
    """
    try:
        ghostly = ghost(model)
    except Exception as error:
        raise UsageError(
            f"the model cannot be copied ({one_line(error)}); a model must survive copy.deepcopy"
        ) from None
    names: dict[int, str] = {}
    for name, tensor in [*ghostly.named_parameters(), *ghostly.named_buffers()]:
        names.setdefault(id(tensor), name)
    try:
        calls, visits, output = record(ghostly, blanks(ghostly, shape))
    except Exception as error:
        why = one_line(error)
        raise UsageError(f"the model cannot be traced with {_asked(shape)} ({why}); {_cure(why)}") from error
    if stray := [call for call in calls if any(not tensor.is_meta and tensor.dim() for tensor in call.tensors)]:
        raise UsageError(
            f"the model cannot be traced ({stray[0].op} in {stray[0].module or 'forward()'} reads a tensor of "
            f"another's); {CURES['expected device meta']}"
        )
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
        lessons, _, output = record(traced.model, blanks(traced.model, shape, batch=2))
    except Exception as error:
        why = f"in eval mode, and training mode cannot be tried ({one_line(error)})"
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


def record(model: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[tuple[Call, ...], tuple[Visit, ...], Any]:
    """What runs when the model is called: operators, leaf modules, and what it returns."""
    recorder, visits = Recorder([""]), list[Visit]()
    output = _listened(model, inputs, recorder, visits)
    return tuple(recorder.calls), tuple(visits), output


def attempted(model: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[tuple[Call, ...], str | None]:
    """The operators that run until the model stops, and what it says then; None where it runs to its end."""
    recorder = Recorder([""])
    try:
        _listened(model, inputs, recorder, [])
    except Exception as error:
        return tuple(recorder.calls), one_line(error)
    return tuple(recorder.calls), None


def _listened(model: nn.Module, inputs: tuple[Tensor, ...], recorder: Recorder, visits: list[Visit]) -> Any:
    """Call the model, and write down what runs."""
    paths, where = {id(module): name for name, module in model.named_modules()}, recorder.where

    def enter(module: nn.Module, inputs: Any) -> None:
        where.append(paths.get(id(module), where[-1]))

    def leave(module: nn.Module, inputs: Any, output: Any) -> None:
        name = where.pop()
        if next(module.children(), None) is None and id(module) in paths:
            visits.append(Visit(name, module, tuple(inputs), output))

    with ExitStack() as stack:
        stack.enter_context(countable())
        for hook in (register_module_forward_pre_hook(enter), register_module_forward_hook(leave)):
            stack.callback(hook.remove)
        stack.enter_context(recorder)
        return model(*inputs)
