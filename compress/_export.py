"""Finalize, check and export a network that was compressed elsewhere.

    export_model("./net.py:make", "pruned.safetensors", (3, 32, 32), "43MFLOPs", "out", data="images.npz")

The factory makes the full network; the weights may be narrower, or masked by torch.nn.utils.prune. What is masked is
cut out, the result is held against real images, and the files and the report are those of a run.
"""

from __future__ import annotations

import json
import shlex
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from compress._plan import refuse_uncounted
from compress._run import Result
from compress.budget.limits import Amounts
from compress.delivery import Finished, Story, check_output, deliver, signer
from compress.errors import UsageError
from compress.methods import control
from compress.reading.graph import read
from compress.reading.measure import measure
from compress.reading.trace import trace
from compress.recipe.arguments import beside, source_of, stated
from compress.recipe.settings import Recipe
from compress.surgery.structure import construct
from compress.surgery.survey import survey
from compress.surgery.weights import fill, read_weights
from compress.training.data import Data, load
from compress.training.events import Doing, Listener, silent
from compress.workplace import RESULT, claim, default_out, publish


def export_model(
    factory: str,
    weights: Path | str,
    shape: Sequence[int] | None,
    budget: Amounts,
    out: Path | str | None = None,
    *,
    data: str = "digits",
    args: Mapping[str, Any] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    listen: Listener = silent,
    sign: Path | str | None = None,
    weights_key: str | None = None,
) -> Result:
    """Turn a factory and a weights file into an output folder as a run leaves it; `Result.code` is 1 over the budget.

    `weights` is a .safetensors file or a state_dict saved by torch, of compact or of masked tensors; `weights_key` says
    which of a file that holds several. `shape` is [C, H, W] of one input (None: the data's). `data` names real images,
    see `recipe.arguments.source_of`; `mean` and `std` [C], of pixels in [0, 1], are those that the network was trained
    with (None: the data's). `sign` is a file with a private ed25519 key, by which model.onnx and report.json are
    signed.

    Raises UsageError for what cannot be used, ArtifactError for a broken weights file or a network that does not
    compute the same once it is finished; then nothing is left behind.
    """
    started = time.monotonic()
    sign_folder = signer(sign)
    tensors = read_weights(Path(weights), weights_key)
    factory, folder = beside(factory)
    target = Path(out) if out is not None else default_out(factory.rpartition(":")[2])
    recipe = stated(
        model={"factory": factory, "args": dict(args or {}), "input": None if shape is None else list(shape)},
        data=source_of(data, size=shape[-1] if shape is not None else None)
        | {key: list(numbers) for key, numbers in (("mean", mean), ("std", std)) if numbers is not None},
        method=control("model.safetensors"),
        budget=budget,
    ).placed(folder)
    pictures = load(recipe.data, batch=1, seed=0, device=torch.device("cpu"))
    if recipe.model.input not in (None, pictures.shape):
        raise UsageError(f"The input is {shape}, but the images of {pictures.name} are {pictures.shape}.")
    with claim(target, resume=False) as work:
        result = work / RESULT
        try:
            result.mkdir()
            report = deliver(
                _filled(recipe, tensors, pictures, listen), result, lambda: time.monotonic() - started, listen
            )
            sign_folder(result)
            publish(work, result, target)
        finally:
            shutil.rmtree(result, ignore_errors=True)
    return Result(target, report)


def _filled(recipe: Recipe, tensors: Mapping[str, Tensor], data: Data, listen: Listener) -> Finished:
    """Build the recipe's model and put the weights into it."""
    factory, args, shape = recipe.model.factory, recipe.model.args, data.shape
    model = construct(factory, args, recipe.folder)
    listen(Doing(f"reading {factory} with an input of {json.dumps(shape)}"))
    full, base = survey(model, shape), measure(model, shape, lenient=True)
    budget = recipe.limits(base)
    refuse_uncounted(recipe, full, budget)
    (wanted, *_) = trace(model, shape).outputs
    fill(model, tensors)
    (made, *_) = trace(model, shape).outputs
    if made.shape != wanted.shape:
        raise UsageError(
            f"The weights make an output of {list(made.shape)}, and {factory} one of {list(wanted.shape)}: another "
            "head; say its size with --args, as in '{\"classes\": 10}'."
        )
    check_output(model, data)
    story = Story(
        full=full,
        base=base,
        widths={name: space.width for name, space in read(model, shape).spaces.items()},
        command=shlex.join(["compress", *sys.argv[1:]]),
        notes=["it was compressed elsewhere; its training may have seen images that are called validation here"],
    )
    return Finished(model, recipe, data, budget, story)
