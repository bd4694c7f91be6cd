"""What a network costs, by counters that must agree: ours, torch's own, and thop's.

MACs are the multiply-accumulates of convolutions and matrix products for one input (batch 1, eval mode, the stated
input shape). torch's FlopCounterMode counts two for each, thop one, and thop adds terms for batch norm and average
pooling: that is why a budget in FLOPs is held by the larger of thop's total and our MACs.
"""

from __future__ import annotations

import logging
import warnings
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from compress.budget.limits import Cost
from compress.errors import ArtifactError, UsageError, one_line
from compress.reading.count import Tally, macs, paths, refuse_disguised, refuse_unknown, unknown_to
from compress.reading.ghost import countable, ghost
from compress.reading.inputs import Shape, blanks
from compress.reading.trace import Trace, trace

EQUAL = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)  # exactly these, called as modules: thop must count as we do


@dataclass(frozen=True, slots=True)
class _Referees:
    """What the others count for one forward pass."""

    flops: int  # torch's FlopCounterMode
    thop: int  # thop's total
    layers: dict[str, int]  # thop's operations of each module that it has a rule for


def measure(model: nn.Module, shape: Shape, *, lenient: bool = False) -> Cost:
    """The cost of a model for one input of this shape (without the batch; or of several), by all counters.

    `bytes` is the predicted size of model.onnx. `lenient` takes operators that cannot be counted for nothing, else
    UsageError names them; it is raised too where the model cannot be traced, and ArtifactError where two counters
    disagree about a layer that both know.
    """
    traced = trace(model, shape)
    if not lenient:
        refuse_unknown(unknown_to(traced))
    refuse_disguised(traced)
    ours, theirs = Tally(traced).price().cost({}), _ask(model, shape)
    unknown = sum(macs(call) or 0 for call in traced.calls if call.func.overloadpacket not in flop_registry)
    if theirs.flops != 2 * (ours.macs - unknown):
        raise ArtifactError(
            f"torch counts {theirs.flops} floating-point operations and we {ours.macs} MACs, which is not half"
        )
    counts, often = _per_module(traced), paths(traced.model)
    for name, module in traced.model.named_modules():
        once = type(module) in EQUAL and often[id(module)] == 1 and name in counts
        if once and counts[name] != theirs.layers[name]:
            raise ArtifactError(f"thop counts {theirs.layers[name]} for {name} and we {counts[name]} MACs")
    return replace(ours, thop=theirs.thop)


def unseen(model: nn.Module, shape: Shape) -> list[str]:
    """Where thop counts other MACs than we: functional, subclassed, transposed or shared layers, for the report."""
    ours, theirs = _per_module(trace(model, shape)), _ask(model, shape).layers
    rows = [(name, count, theirs.get(name, 0)) for name, count in ours.items()]
    return [f"{name or 'forward()'}: {count} MACs, thop {other}" for name, count, other in rows if count != other]


def _per_module(traced: Trace) -> dict[str, int]:
    totals: dict[str, int] = {}
    for call in traced.calls:
        if (count := macs(call)) is not None:
            totals[call.module] = totals.get(call.module, 0) + count
    return totals


class _Counted(nn.Module):
    """A ghost that can be called by those who know nothing of ghosts."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, *inputs: Tensor) -> Any:
        with countable():
            return self.model(*inputs)


def _ask(model: nn.Module, shape: Shape) -> _Referees:
    """Both other counters in one pass over a ghost: thop leaves hooks and buffers behind."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # thop imports distutils
        import thop
    # without gradients, which torch's counter hooks: a parameter that is expanded into a layer has none here
    still = ghost(model).requires_grad_(False)
    counted = _Counted(still)
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)  # thop tells the root logger of what it has no rule for
    try:
        with warnings.catch_warnings(), FlopCounterMode(display=False) as counter:
            warnings.simplefilter("ignore")
            total, _, nested = thop.profile(counted, inputs=blanks(model, shape), verbose=False, ret_layer_info=True)
    except Exception as error:
        raise UsageError(f"thop cannot count the model ({one_line(error)})") from None
    finally:
        logging.disable(disabled)
    return _Referees(int(counter.get_total_flops()), int(total), dict(_flatten(nested["model"], "")))


def _flatten(entry: tuple[float, float, dict[str, Any]], path: str) -> list[tuple[str, int]]:
    own = [(path, int(entry[0]))] if not entry[2] else []
    return own + [row for name, inner in entry[2].items() for row in _flatten(inner, f"{path}.{name}".strip("."))]


__all__ = ["measure", "unseen"]
