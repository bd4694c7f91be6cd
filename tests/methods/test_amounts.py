"""What a growth adds to a layer is a formula of widths and prices."""

import operator
from typing import cast

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compress._plan import methods_of
from compress._run import prepare
from compress.budget.landing import beyond
from compress.budget.limits import Budget
from compress.budget.price import Price, Term
from compress.methods.adenel.amounts import proposal
from compress.methods.adenel.method import AdeNeL
from compress.methods.adenel.settings import Adenel
from compress.recipe.settings import Recipe
from compress.training.bench import Bench


def family(spaces: int, draw: np.random.Generator) -> Price:
    """A chain of layers: each costs inputs x outputs x something, as convolutions do."""
    names = [f"s{i}" for i in range(spaces)]
    terms = []
    for i in range(spaces + 1):
        p, m, t = (int(n) for n in draw.integers(1, 500, 3))
        left = ({names[i - 1]: 1}, 0) if i else ({}, 3)
        right = ({names[i]: 1}, 0) if i < spaces else ({}, 10)
        terms.append(Term((p, m, m + t, 4 * p), *left, *right))
    return Price.from_terms(names, terms)


@settings(max_examples=60)
@given(
    st.lists(st.integers(1, 80), min_size=1, max_size=5), st.data(), st.booleans(),
    st.sampled_from(["fixed", "even", "ratio", "equal_cost"]),
    st.integers(1, 12), st.sampled_from([1.01, 1.1, 1.5, 2.0]), st.integers(0, 15), st.integers(0, 9),
)  # fmt: skip
def test_amounts_are_the_naive_formulas(
    wide: list[int], data: st.DataObject, scored: bool, amount: str, filters: int, ratio: float, held: int, seed: int
) -> None:
    price = family(len(wide), np.random.default_rng(seed))
    widths = dict(zip(price.spaces, wide, strict=True))
    ready = data.draw(st.lists(st.sampled_from(price.spaces), min_size=1, unique=True))
    budget = Budget.parse([{"limit": "9GMACs"}, "3MB", "2Mparams", {"limit": "7kFLOPs", "level": "warn"}])
    method = Adenel(amount=amount, filters=filters, ratio=ratio, grow="score" if scored else "all", sharpness=3)  # type: ignore[arg-type]
    due, full = {name: held for name in price.spaces[::2]}, {name: 100 + 7 * n for n, name in enumerate(price.spaces)}
    scores = {name: 0.5 + n / 10 for n, name in enumerate(price.spaces)}
    goal = proposal(price, widths, ready, budget, method, due=due, full=full, scores=scores)

    now = price.cost(widths)
    left = (9 * 10**9 - now.macs, 3 * 10**6 - now.bytes, 2 * 10**6 - now.params)
    strain = {}
    for name in ready:
        more = price.cost({**widths, name: widths[name] + 1}) - now
        strain[name] = [m / max(1, rest) for m, rest in zip((more.macs, more.bytes, more.params), left, strict=True)]
    least = max(max(of) for of in strain.values()) / 10_000
    strain = {name: [max(s, least) for s in of] for name, of in strain.items()}
    weights = [1 / 3, 1 / 3, 1 / 3]
    for _ in range(50):  # a limit that equal shares would strain more than the others weighs more
        shares = {name: sum(map(operator.mul, weights, of)) for name, of in strain.items()}
        weights = [w * sum(of[k] / shares[name] for name, of in strain.items()) for k, w in enumerate(weights)]
        weights = [w / sum(weights) for w in weights]
    shares = {name: sum(map(operator.mul, weights, of)) for name, of in strain.items()}

    for name, width in widths.items():
        if name not in ready:
            assert goal[name] == width
            continue
        mean = filters * sum(shares.values()) / len(ready)
        added = {
            "fixed": filters,
            "even": filters * full[name] / (sum(full.values()) / len(full)),
            "ratio": max(filters, int(ratio * width) - width),
            "equal_cost": max(1, round(mean / shares[name])),
        }[amount]
        if scored:
            added *= scores[name] ** 3 / (sum(scores[n] ** 3 for n in ready) / len(ready))
        assert abs(goal[name] - width - due.get(name, 0) - max(1, added)) <= 0.5 + 1e-9
    wider = beyond(price, goal, budget, ready)
    assert budget.utilisation(price.cost(wider)) > 1
    assert all(wider[name] >= goal[name] if name in ready else wider[name] == goal[name] for name in widths)


def test_two_limits_run_out_together_when_every_layer_grows() -> None:
    """Early layers cost MACs and late ones parameters: spent one by one, the first full limit would end the growing."""
    sizes = [4096, 4096, 1024, 1024, 256, 256, 64, 64, 16, 16]  # pixels
    names = [f"s{i}" for i in range(len(sizes))]
    inputs: list[tuple[dict[str, int], int]] = [({}, 3), *(({name: 1}, 0) for name in names)]
    terms = [
        Term((9, 9 * pixels, 9 * pixels, 36), *inputs[i], {name: 1}, 0)
        for i, (name, pixels) in enumerate(zip(names, sizes, strict=True))
    ]
    price, widths = Price.from_terms(names, terms), dict.fromkeys(names, 4)
    balanced = Budget.parse("100MMACs, 0.2Mparams")
    while balanced.holds(price.cost(widths)):
        before = price.cost(widths)
        widths = proposal(price, widths, names, balanced, Adenel(), due={}, full={}, scores={})
    used = [row["utilisation"] for row in balanced.rows(before)]
    assert min(used) > 0.75 * max(used)  # type: ignore[type-var, operator]
    assert widths["s0"] < widths["s9"]


def grown(**said: object) -> tuple[Bench, list[list[int]], str | None]:
    """Twelve and sixteen filters grown on the digits: the widths after every step, and why it ended."""
    args = {"widths": [12, 16], "pools": [1, 2], "last_pool": "global", "in_channels": 1, "size": 8}
    recipe = Recipe.model_validate(
        {
            "model": {"factory": "compress.models:vgg", "args": args},
            "data": {"source": "digits"},
            "budget": said.pop("budget"),
            "method": {"name": "adenel", "seed_width": 4, "tune": {"epochs": 0.1}, **said},
        }
    )
    lab, _ = prepare(recipe, "cpu")
    method = cast(AdeNeL, methods_of(recipe)[0])
    state, seen = method.init(lab), [list(lab.widths.values())]
    while (why := method.done(lab, state)) is None:
        state = method.step(lab, state)
        seen.append(list(lab.widths.values()))
    return lab, seen, why


@pytest.mark.parametrize("grow", ["support", "all", "random"])
def test_no_layer_passes_max_width_and_the_rest_of_the_budget_goes_to_others(grow: str) -> None:
    lab, seen, _ = grown(grow=grow, tau=0.01, max_width=0.75, round="2 steps", budget="60kMACs", empty_rounds=1)
    assert all(one <= 9 and other <= 12 for one, other in seen)
    assert lab.budget.utilisation(lab.cost()) > 0.98 or seen[-1] == [9, 12]


def test_a_net_whose_layers_are_all_as_wide_as_they_may_be_is_tuned_and_says_why() -> None:
    _, seen, why = grown(grow="all", max_width=0.5, round="1 steps", budget="1MMACs")
    assert why == "every layer that can grow is as wide as method.max_width allows"
    assert seen[-1] == [6, 8]
