"""What is chosen for images and a budget follows from their size, their number and the budget, and says why."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import compress.models as models
from compress.budget.limits import Budget
from compress.choice import COST, FEWEST, MOST, Choice, Facts, choose, side_of
from compress.errors import UsageError
from compress.reading.measure import measure


def facts(side: int = 32, channels: int = 3, train: int = 45_000, source: str = "npz") -> Facts:
    image = (channels, side, side)
    return Facts(source, image, image, classes=10, train=train, has_val=False)


def said(choice: Choice) -> dict[str, str]:
    """The keys that it sets for data, training and method, as they are written."""
    lines = [line.strip() for line, _ in (*choice.data, *choice.train, *choice.method)]
    return dict(line.split(": ") for line in lines if not line.endswith(":"))


@pytest.mark.parametrize(("side", "blocks"), [(4, 1), (8, 2), (16, 2), (28, 3), (32, 3), (64, 4)])
def test_the_short_net_has_as_many_blocks_as_leave_three_pixels_and_two_where_there_is_room(
    side: int, blocks: int
) -> None:
    choice = choose(facts(side, channels=1), "200kMACs")
    assert choice.factory == "compress.models:short"
    assert len(choice.args["widths"]) == blocks
    models.short(**choice.args)


@pytest.mark.parametrize("budget", ["43MFLOPs, 0.58Mparams", "10MFLOPs, 0.3Mparams", "300kparams", "5MMACs"])
def test_the_full_net_is_the_widest_of_its_proportions_that_keeps_the_budget_and_two_growths_lead_from_half_to_it(
    budget: str,
) -> None:
    choice, limits = choose(facts(), budget), Budget.parse(budget)
    first = choice.args["widths"][0]

    def used(width: int) -> float:
        widths = [width, round(3.4 * width), round(3.4 * width)]
        return limits.utilisation(measure(models.short(widths), (3, 32, 32)))

    assert choice.args["widths"] == [first, round(3.4 * first), round(3.4 * first)]
    assert used(first) <= 1 < used(first + 1)
    assert said(choice)["seed_width"] == "0.5"
    assert int(said(choice)["filters"]) == pytest.approx(sum(choice.args["widths"]) / 3 / 4, abs=0.5)


def test_within_the_published_budget_it_is_the_net_that_was_measured() -> None:
    assert choose(facts(), "43MFLOPs, 0.58Mparams").args["widths"] == [40, 136, 136]


def test_a_budget_with_room_for_more_than_the_widest_net_is_not_said_to_be_filled(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("compress.choice.WIDEST", 8)
    full, seed = choose(facts(8), "1TFLOPs").reasons[1:3]
    assert full == "full net of 7-24: as wide as one is chosen; the budget has room for more"
    assert "fill the budget" not in seed


def test_one_block_is_told_as_one_and_a_shift_by_nothing_as_none() -> None:
    why, *_, variation = choose(facts(4, channels=1), "200kMACs").reasons
    assert why.startswith("short: 1 block leaves 1 px of 4;")
    assert variation.startswith("variation: not shifted, ")


def test_larger_images_get_the_residual_net_with_a_stem_that_narrows_them() -> None:
    choice = choose(facts(96), "20MMACs")
    assert (choice.factory, choice.args["stem"]) == ("compress.models:preact", "imagenet")
    assert "96 px" in choice.reasons[0]


@pytest.mark.parametrize(
    ("train", "budget", "epochs"),
    [
        (45_000, "43MFLOPs, 0.58Mparams", 48),  # 2.2 million images
        (1_000, "1MMACs", MOST),
        (1_000_000, "200MMACs", FEWEST),
        (45_000, "100MMACs", 22),  # an hour
        (3, "1MMACs", 200),  # three steps an epoch
    ],
)
def test_the_cost_is_that_of_epochs_of_the_full_net_which_follow_from_the_number_of_images_and_from_an_hour(
    train: int, budget: str, epochs: int
) -> None:
    choice = choose(facts(train=train), budget)
    macs = measure(models.short(choice.args["widths"]), (3, 32, 32)).macs
    assert float(said(choice)["cost"]) == pytest.approx(epochs * macs * train, rel=0.005)
    assert f"train-cost of {epochs} epochs" in choice.reasons[3]
    if epochs == 22:
        assert 22 * macs * train <= COST < 23 * macs * train


@pytest.mark.parametrize(
    ("train", "batch", "lr", "muon_lr", "decay", "round_", "warmup"),
    [
        (45_000, "128", "0.25", None, "7.0e-4", "3 epochs", "2 epochs"),
        (400, "32", "0.0625", "0.05", "7.0e-4", "7 epochs", "5 epochs"),
        (1_000_000, "128", "0.25", None, "1.0e-3", "1 epoch", "1 epoch"),
    ],
)
def test_rates_follow_from_the_batch_and_rounds_and_the_optimizer_from_the_length_of_the_training(
    train: int, batch: str, lr: str, muon_lr: str | None, decay: str, round_: str, warmup: str
) -> None:
    keys = said(choose(facts(train=train), "43MFLOPs, 0.58Mparams"))
    assert keys["optimizer"] == ("muon" if muon_lr else "sgd")
    assert [keys.get(key) for key in ("batch", "lr", "muon_lr", "weight_decay")] == [batch, lr, muon_lr, decay]
    assert [keys[key] for key in ("round", "warmup")] == [round_, warmup]


@pytest.mark.parametrize(
    ("images", "flip", "cutout"),
    [
        (facts(), "alternate", "8"),
        (facts(source="svhn"), "false", None),
        (facts(28, channels=1), "false", None),
        (facts(16), "false", None),
        (facts(train=1_000_000), "alternate", None),  # a short training
    ],
)
def test_only_colour_photographs_are_mirrored_and_only_long_trainings_blank_squares(
    images: Facts, flip: str, cutout: str | None
) -> None:
    keys = said(choose(images, "5MMACs"))
    assert (keys["flip"], keys.get("cutout")) == (flip, cutout)
    assert keys["crop"] == str(images.image[1] // 8)


@pytest.mark.parametrize(
    ("change", "budget", "says"),
    [
        ({}, None, "without a model, say what it may cost"),
        ({}, "50%", "a share of the base model, unknown here"),
        ({"classes": 0}, "1MMACs", "chosen for images of classes alone; name one of yours"),
        ({"classes": 1}, "1MMACs", "all images are of one class; a network is chosen to tell two or more apart"),
        ({"shape": ((3, 32, 32), (4,))}, "1MMACs", "chosen for images of classes alone"),
        ({"image": (3, 3, 9), "shape": (3, 3, 9)}, "1MMACs", "images of 3 px are too small"),
    ],
)
def test_what_nothing_can_be_chosen_for_is_refused(change: dict[str, Any], budget: str | None, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        choose(replace(facts(), **change), budget)


@pytest.mark.parametrize(
    ("sizes", "side"),
    [
        ([(9, 9), (9, 9)], None),
        ([(64, 48)], None),
        ([(100, 80)], 64),
        ([(9, 9), (30, 20)], 9),
        ([(90, 70), (80, 99)], 64),
    ],
)
def test_images_of_a_folder_are_resized_where_they_are_large_or_of_several_sizes(
    sizes: list[tuple[int, int]], side: int | None, tmp_path: Path
) -> None:
    from PIL import Image

    (tmp_path / "train/kind").mkdir(parents=True)
    for number, size in enumerate(sizes):
        Image.new("L", size).save(tmp_path / f"train/kind/{number}.png")
    (tmp_path / "train/kind/broken.png").write_text("no image")
    assert side_of(tmp_path) == side
