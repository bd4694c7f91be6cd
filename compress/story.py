"""What a finished run has to tell: what it cost, how it went, and what became of the network's size."""

from __future__ import annotations

from compress._plan import Plan, methods_of
from compress.budget.remarks import outgrown, unfilled
from compress.delivery import Story
from compress.export.report import Lessons, train_cost
from compress.surgery.connections import cuts_in
from compress.training.bench import Bench


def tell_story(bench: Bench, planned: Plan, resumed: int | None, command: str) -> Story:
    """What the report of this run tells beside what `deliver` finds out."""
    recipe, data = bench.recipe, bench.data
    return Story(
        full=planned.graph,
        base=planned.base,
        widths={name: space.width for name, space in bench.graph.spaces.items()},
        command=command,
        planned=bench.cost(),
        train_cost=train_cost(
            bench.spent,
            bench.step * data.batch,
            base=planned.base,
            train_images=data.counts["train"],
            epochs=recipe.baseline.epochs,
            name=recipe.baseline.name or f"{recipe.model.factory} for {recipe.baseline.epochs:g} epochs",
            teacher=_lessons(bench),
        ),
        history=[note.row for note in bench.history],
        steps=bench.steps,
        depths=bench.depths,
        resumed=resumed,
        notes=_remarks(bench, planned),
        uncut=_uncut(bench),
    )


def _uncut(bench: Bench) -> float | None:
    """The validation score of the network that was narrowed: as it came, or as the training before that left it."""
    methods = methods_of(bench.recipe)
    lead = next((at for at, method in enumerate(methods) if not method.only_trains), 0)
    if lead:
        left: float | None = bench.steps[lead - 1]["val"]
        return left
    return next((note.numbers["val"] for note in bench.history if note.event == "start"), None)


def _remarks(bench: Bench, planned: Plan) -> list[str]:
    """Which layers outgrew the full net's, and why a budget is not filled."""
    full, methods = planned.graph.widths, methods_of(bench.recipe)
    bounds = {} if any(method.widens for method in methods) else full
    deepens = any(method.deepens(bench.model, bench.shape) for method in methods)
    why = (
        None
        if cuts_in(bench.model)
        else unfilled(bench.graph.price, bench.widths, bench.whole, bench.recipe.align, bounds, deepens)
    )
    return [*filter(None, [outgrown(bench.widths, full, bench.cost(), planned.base), why])]


def _lessons(bench: Bench) -> Lessons | None:
    """What the teacher cost, if there was one."""
    teacher, spent = bench.teacher, bench.taught
    if teacher is None:
        return None
    share = spent / max(bench.spent, 1)
    return Lessons(name=teacher.name, macs=teacher.macs, macs_images=spent, share=share, digest=teacher.digest)
