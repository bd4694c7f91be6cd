"""Which learning rate a cut network is tuned at: a few are tried shortly, and validation images decide."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from compress.errors import UsageError
from compress.methods.protocol import Lab
from compress.recipe.step import Tune
from compress.training.train import lr_at

PART = 0.1  # of the training whose rate is looked for, that each rate is tried for
FEW = 5  # steps, in which nothing is told apart


def found(lab: Lab, tune: Tune, total: int, rates: Sequence[float], ready: Callable[[], None]) -> float:
    """The rate after whose short training the most validation images are right; the network is left as it was.

    Each is tried for a tenth of the `total` steps, from the same weights, along the whole of the course. `ready` makes
    the optimizer anew. Where that would be less than 5 steps, which tell nothing, it is the first of the rates. Raises
    UsageError where no rate keeps the loss finite.
    """
    steps = round(PART * total)
    if steps < FEW:
        return rates[0]
    before = {name: tensor.clone() for name, tensor in lab.model.state_dict().items()}
    seen: dict[float, tuple[float, float]] = {}
    failed = None
    for peak in rates:
        begin = lab.step

        def rate(step: int, peak: float = peak, begin: int = begin) -> float:
            return lr_at(tune.schedule, peak, (step - begin) / steps, tune.warmup)

        try:
            lab.train(steps, rate)
            score = lab.score()
            seen[peak] = (score.worth, -score.loss)
        except UsageError as error:  # the loss was not finite any more
            failed = error
        lab.model.load_state_dict(before)
        ready()
    if not seen and failed:
        raise failed
    best = max(seen, key=lambda peak: seen[peak])
    lab.note("rate", lr=best, **{f"val at {peak:g}": lab.keys.sign * worth for peak, (worth, _) in seen.items()})
    return best
