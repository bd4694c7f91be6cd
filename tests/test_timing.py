"""How long a run will take follows from a few steps, and says where that is not all of it."""

import pytest

from compress.budget.units import duration
from compress.recipe.settings import Recipe
from compress.timing import Time, how_long

NET = {"widths": [8, 12], "pools": [1, 2], "last_pool": "global", "in_channels": 1, "size": 8}


def recipe(**said: object) -> Recipe:
    model = {"factory": "compress.models:vgg", "args": NET}
    return Recipe.model_validate({"model": model, "train": {"batch": 100}, "budget": "50%", **said})


def test_the_time_is_all_images_of_the_known_stages_at_the_speed_that_was_measured() -> None:
    time = how_long(recipe(method={"name": "l1", "tune": {"epochs": 7}}))
    assert not time.least
    assert time.seconds * time.images_per_second == pytest.approx(7 * 1000)
    assert time.words.startswith("about ")


def test_growing_is_not_known_ahead_unless_the_train_cost_is_stated() -> None:
    time = how_long(recipe(method={"name": "adenel", "tune": {"epochs": 7}}))
    assert time.least
    assert "at least" in time.words
    stated = how_long(recipe(method={"name": "adenel"}, train={"batch": 100, "cost": 1e9}))
    assert not stated.least
    assert stated.seconds * stated.images_per_second * stated.macs == pytest.approx(1e9)


def test_the_full_network_trains_longer_before_it_is_cut() -> None:
    steps = [{"name": "scratch", "epochs": 3}, {"name": "l1", "tune": {"epochs": 7}}]
    time = how_long(recipe(method=None, steps=steps))
    images = time.seconds * time.images_per_second
    assert images > (7 + 2 * 3) * 950  # half of the MACs after, all of them before


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0.2, "1 s"),
        (59, "59 s"),
        (90, "2 min"),
        (5399, "90 min"),
        (5400, "1.5 h"),
        (129600, "1.5 days"),
        (864000, "10.0 days"),
    ],
)
def test_times_are_told_in_the_unit_of_who_waits(seconds: float, said: str) -> None:
    assert duration(seconds) == said


def test_the_line_says_what_was_measured() -> None:
    line = Time(images_per_second=1234.5, macs=42_900_000, batch=128, seconds=720, least=False).words
    assert line == "about 12 min of training: 1,234 images/s on 42.9 MMACs (3 steps of 128 images were measured)"
