"""The options that several commands share: how each is read, and what is wrong with one that cannot be.

A command takes them as decorators: `@budget`, `@overrides`, `@shape`.
"""

import json
import math
from collections.abc import Callable
from typing import Any

import click


def _pairs(ctx: click.Context, option: click.Parameter, texts: tuple[str, ...]) -> dict[str, str]:
    pairs = [text.partition("=") for text in texts]
    if wrong := [text for text, (key, equals, _) in zip(texts, pairs, strict=True) if not (key.strip() and equals)]:
        raise click.BadParameter(f"{wrong[0]!r} is not KEY=VALUE; write --set train.lr=0.05")
    return {key: value for key, _, value in pairs}


def _numbers(kind: type, like: str) -> Callable[..., tuple[Any, ...] | None]:
    def read(ctx: click.Context, option: click.Parameter, text: str | None) -> tuple[Any, ...] | None:
        try:
            return None if text is None else tuple(kind(part) for part in text.split(","))
        except ValueError:
            raise click.BadParameter(f"{text!r} is not numbers with commas between them; write {like}") from None

    return read


def _arguments(ctx: click.Context, option: click.Parameter, text: str) -> dict[str, Any]:
    try:
        arguments = json.loads(text)
    except ValueError:
        arguments = None
    if not isinstance(arguments, dict):
        raise click.BadParameter(f"{text!r} is not a JSON object; write --args '{{\"classes\": 10}}'")
    return arguments


def drop(ctx: click.Context, option: click.Parameter, text: str | None) -> float | None:
    """Read how much less of a score will do: "1%" is one point in a hundred, and so is "0.01"."""
    try:
        number = None if text is None else float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        number = -1
    if number is not None and not 0 <= number < math.inf:
        raise click.BadParameter(f"{text!r} is no amount of a score; write 1% or 0.01")
    return number


LIMITS = (
    "43MFLOPs, 0.58Mparams, 2.4MB, 256KiB@activations, 5ms@onnxruntime-cpu/1, 50%, or several with commas between them"
)
as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON and nothing else.")
budget = click.option("--budget", metavar="LIMITS", help=f"Replace the recipe's whole budget: {LIMITS}.")
overrides = click.option(
    "--set",
    "overrides",
    metavar="KEY=VALUE",
    multiple=True,
    callback=_pairs,
    help="Set one key of the recipe; again for more.",
)
args = click.option(
    "--args",
    metavar="JSON",
    default="{}",
    callback=_arguments,
    help="""Arguments of the factory: '{"classes": 10}'.""",
)
shape = click.option(
    "--shape",
    metavar="C,H,W",
    callback=_numbers(int, "3,32,32"),
    help="Channels, height and width of an image.  [default: the data's]",
)
mean = click.option(
    "--mean",
    metavar="M,..",
    callback=_numbers(float, "0.49,0.48,0.45"),
    help="Means of the channels in training, of pixels from 0 to 1.  [default: the data's]",
)
std = click.option(
    "--std",
    metavar="S,..",
    callback=_numbers(float, "0.25,0.24,0.26"),
    help="Their standard deviations.  [default: the data's]",
)
sign = click.option(
    "--sign", metavar="KEY", help="A private ed25519 key, by which model.onnx and report.json are signed."
)
NEW_FOLDER = "Folder to write, which must not exist.  [default: runs/{}, or with the next free number]"
epochs = click.option(
    "--epochs",
    type=click.FloatRange(0),
    metavar="N",
    help="Tuning of each.  [default: a quarter of the run's last stage]",
)
start = click.option(
    "--start",
    type=click.Choice(["end", "nearest"]),
    default="end",
    show_default=True,
    help="What smaller nets begin with: the run's end, or the nearest of that and the states that it kept.",
)
time = click.option(
    "--time", "time", is_flag=True, help="Train a few steps, and say how long the run will take on this machine."
)
