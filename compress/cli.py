"""The command line: every command reads its options, calls one function, and says what came of it.

Heavy packages are imported inside the commands that need them: `--help` is instant, and `verify` needs no torch. How a
command ends that cannot do its work is in `exits`; results go to stdout, all else to stderr.
"""

import json
import os
import shlex
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from compress import __version__, options
from compress.console import say, table, telling
from compress.errors import ArtifactError, Infeasible, UsageError
from compress.exits import Commands
from compress.packages import demand
from compress.texts import visible

if TYPE_CHECKING:
    from compress.export.report import Report


def _import_from_here() -> None:
    """Let factories be found in the current folder, as they are with `python -m compress`; installed ones go first."""
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.append(os.getcwd())


def _print_json(value: Any) -> None:
    say(json.dumps(value, indent=1, sort_keys=True).replace("\x7f", "\\u007f"))  # all else is in ASCII by now


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]}, invoke_without_command=True)
@click.version_option(__version__, prog_name="compress", message="%(prog)s %(version)s")
@click.pass_context
def main(ctx: click.Context) -> None:
    """From a recipe to a compact, deployable network that keeps a hard budget.

    \b
    Exit codes: 0 the budget is kept; 1 it is not, or the required accuracy is
    missed; 2 something given cannot be used; 3 no network of the family can keep
    the budget, known before training; 4 a file is broken, foreign or wrong;
    70 a fault of compress; 130 interrupted (`run --resume` goes on).
    """
    if ctx.invoked_subcommand is None:
        say(ctx.get_help(), err=True)
        ctx.exit(UsageError.exit_code)


# ---- commands -------------------------------------------------------------------------------------------------------


@main.command(short_help="Train, finalize and export what a recipe says.")
@click.argument("recipe")
@options.budget
@click.option("--out", help=options.NEW_FOLDER.format("RECIPE"))
@click.option("--seed", type=int, metavar="N", help="Replace the recipe's seed.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@options.overrides
@click.option("--resume", is_flag=True, help="Go on with an interrupted run.")
@options.sign
@options.as_json
def run(
    recipe: str,
    budget: str | None,
    out: str | None,
    seed: int | None,
    device: str,
    overrides: dict[str, str],
    resume: bool,
    sign: str | None,
    as_json: bool,
) -> int:
    """Train and compress as RECIPE says, a file or a name that `compress recipes` lists, and write a network that
    keeps the budget, with its report.
    """
    from compress.recipe.file import read

    if seed is not None:
        overrides["seed"] = str(seed)
    read(recipe, overrides, budget)  # mistakes in it are told at once: importing torch takes seconds
    from compress._run import run as carry_out

    _import_from_here()
    with telling(quiet=as_json) as listen:
        result = carry_out(
            recipe, budget=budget, out=out, device=device, resume=resume, overrides=overrides, listen=listen, sign=sign
        )
    return _say_result(result.folder, result.report, as_json)


@main.command(short_help="Say what a recipe would do; trains nothing.")
@click.argument("recipe")
@options.budget
@options.overrides
@options.time
@options.as_json
def plan(recipe: str, budget: str | None, overrides: dict[str, str], time: bool, as_json: bool) -> int:
    """Say what RECIPE, a file or a name that `compress recipes` lists, would do, in seconds and without training: what
    is free, what is frozen and why, and what the smallest network costs. Ends with 3 where no network can keep the
    budget.
    """
    from compress.recipe.file import read

    said = read(recipe, overrides, budget)
    from compress._plan import plan as look
    from compress.outcomes import plan_json, plan_lines

    _import_from_here()
    took = None
    with telling(quiet=True):
        planned = look(recipe, budget=budget, overrides=overrides)
        if time and planned.feasible:
            from compress.timing import how_long

            took = how_long(said)
    if as_json:
        _print_json(plan_json(planned) | ({"time": asdict(took)} if took else {}))
    else:
        lines = [*plan_lines(planned), *(["", f"time: {took.words}"] if took else [])]
        _say_verdict(0 if planned.feasible else Infeasible.exit_code, lines)
    planned.refuse()
    return 0


@main.command(short_help="Finalize, check and export a network from elsewhere.")
@click.argument("factory", metavar="MODULE:FACTORY")
@click.option("--weights", required=True, help="A .safetensors file, or a state_dict that torch.save wrote.")
@click.option("--weights-key", metavar="KEY", help="Which weights of a file that holds several: state_dict_ema.")
@click.option("--budget", required=True, metavar="LIMITS", help=f"What it must keep: {options.LIMITS}.")
@click.option("--data", required=True, help="Real images to check it on: digits, an .npz file, or a folder.")
@options.shape
@options.args
@options.mean
@options.std
@click.option("--out", help=options.NEW_FOLDER.format("FACTORY"))
@options.sign
@options.as_json
def export(factory: str, weights: str, budget: str, data: str, as_json: bool, **given: Any) -> int:
    """Finalize, check and export a network that was compressed elsewhere; its weights may be masked or narrower than
    the factory's.
    """
    from compress._export import export_model

    _import_from_here()
    with telling(quiet=as_json) as listen:
        result = export_model(factory, weights, budget=budget, data=data, listen=listen, **given)
    return _say_result(result.folder, result.report, as_json)


@main.command(short_help="Fit the network of a finished run to other budgets.")
@click.argument("folder")
@click.option("--to", metavar="LIMITS", help="A net for each of these: 10M,20M,30MMACs, or 20%,40%.")
@click.option("--keep-score", type=float, metavar="S", help="The smallest net with this score in validation: 0.97.")
@click.option(
    "--max-drop", callback=options.drop, metavar="D", help="The smallest net with so much less than the run has: 1%."
)
@options.epochs
@options.start
@click.option("--out", help=options.NEW_FOLDER.format("NAME-cut"))
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@options.overrides
@click.option("--resume", is_flag=True, help="Go on with what was interrupted.")
@options.as_json
def cut(folder: str, as_json: bool, **given: Any) -> int:
    """Fit the network of the finished run in FOLDER to other budgets, in a few epochs each: it is narrowed or widened,
    tuned, and written as a run is; a curve shows accuracy against size. Relative paths of its recipe start in the
    current folder.
    """
    from compress._cut import cut as carry_out
    from compress.outcomes import cut_json, cut_lines

    _import_from_here()
    with telling(quiet=as_json) as listen:
        made = carry_out(folder, listen=listen, **given)
    if as_json:
        _print_json(cut_json(made))
    else:
        _say_verdict(made.code, cut_lines(made))
    return made.code


@main.command(short_help="Compare methods within the same budgets, over seeds.")
@click.argument("recipe")
@click.option(
    "--methods", required=True, metavar="NAMES", help="adenel,group,uniform; recipes' files; 'recipe': its own."
)
@click.option("--budgets", metavar="LIMITS", help="A column for each of these: 10M,20MFLOPs.  [default: the recipe's]")
@click.option("--seeds", type=click.IntRange(1), default=3, show_default=True, metavar="N", help="Runs of each.")
@click.option("--cost", type=float, metavar="C", help="MACs x images that each run may spend.  [default: train.cost]")
@click.option(
    "--pretrain",
    type=float,
    default=0.5,
    show_default=True,
    metavar="PART",
    help="Of that, what a network is trained for that is then narrowed.",
)
@click.option("--out", help=options.NEW_FOLDER.format("RECIPE-compare"))
@click.option("--workers", type=click.IntRange(1), metavar="N", help="Runs at a time.  [default: one a core]")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@options.overrides
@click.option("--resume", is_flag=True, help="Go on with what an earlier call began.")
@options.as_json
def compare(recipe: str, as_json: bool, **given: Any) -> int:
    """Run several methods on the data of RECIPE with the same budgets, train-cost and training, over several seeds, and
    write a table with spreads and paired tests, and a picture of accuracy against cost. Networks that are narrowed are
    trained first, once for each seed, which counts.
    """
    from compress._compare import compare as carry_out
    from compress.outcomes import compared_lines

    _import_from_here()
    with telling(quiet=as_json) as listen:
        made = carry_out(recipe, listen=listen, **given)
    if as_json:
        _print_json(made.plain())
    else:
        for line in compared_lines(made):
            say(line)
    return 1 if made.failed or not all(row.kept for row in made.rows) else 0


@main.command(short_help="Check a file or folder against a budget.")
@click.argument("path")
@click.option(
    "--budget",
    metavar="LIMITS",
    help=f"What it must keep: {options.LIMITS}; or sealed: the limits that it seals as its own.",
)
@click.option(
    "--shape",
    metavar="NAME=D,D,..",
    multiple=True,
    help="Count for this shape of an input, batch included; again for more.  [default: the file's, batch 1]",
)
@click.option(
    "--uncounted",
    metavar="OPERATOR",
    multiple=True,
    help="An operator of unknown cost that counts as nothing; again for more.",
)
@click.option("--signed-by", metavar="KEY", help="A public ed25519 key, by which it must be signed.")
@options.as_json
def verify(path: str, budget: str | None, signed_by: str | None, as_json: bool, **given: tuple[str, ...]) -> int:
    """Check an .onnx file, a .safetensors file or the output folder of a run against a budget; needs no torch."""
    from compress.export.verify import verify as check

    verdict = check(path, budget, signed_by=signed_by, **given)
    if as_json:
        _print_json(verdict.to_json())
    elif verdict.code == ArtifactError.exit_code:
        raise ArtifactError(verdict.lines[0])
    else:
        _say_verdict(verdict.code, verdict.lines)
    return verdict.code


@main.command(short_help="Print the report of a finished run, or draw it.")
@click.argument("folder")
@click.option("--draw", metavar="FILE", help="Draw its history into a new .svg, .png or .pdf file and print nothing.")
@options.as_json
def report(folder: str, draw: str | None, as_json: bool) -> int:
    """Print the report of a finished run in FOLDER, or draw how the network came to be."""
    if draw and as_json:
        raise UsageError("--draw prints no report; leave out --json, or call it twice.")
    path = Path(folder, "report.json" if as_json or draw else "report.md")
    if not path.is_file():
        raise UsageError(f"{folder}: holds no {path.name}; give the output folder of a finished run.")
    if draw:
        _draw(path, Path(draw))
        say(f"{draw} is written")
        return 0
    if as_json:
        from compress.export.canonical import LARGEST, read_json

        try:
            with path.open("rb") as file:
                _print_json(read_json(file.read(LARGEST + 1)))
        except ValueError:
            raise ArtifactError(f"{path}: damaged; it is not JSON.") from None
        return 0
    try:
        say(path.read_text(encoding="utf-8").rstrip("\n"))
    except ValueError:
        raise ArtifactError(f"{path}: damaged; it is not text.") from None
    return 0


def _draw(source: Path, target: Path) -> None:
    """Draw the report that lies in a file."""
    demand("matplotlib")
    from compress.export.picture import draw_history
    from compress.export.report import Report

    if target.exists():
        raise UsageError(f"{target} exists already; name another file with --draw.")
    story = Report.read(source)
    try:
        drawn = draw_history(story, target)
    except OSError as error:
        with suppress(OSError):
            target.unlink()  # half of it, where the disk was full
        raise UsageError(f"{target} cannot be written ({error.strerror or error}).") from None
    if not drawn:
        raise UsageError(f"{source}: holds no history that could be drawn; the network was not trained by that run.")


@main.command(short_help="Print the JSON Schema of recipes or reports.")
@click.argument("what", type=click.Choice(["recipe", "report"]), default="recipe")
def schema(what: str) -> int:
    """Print the JSON Schema of recipes or of report.json, for editors and other people's tools."""
    if what == "report":
        from compress.export.report import report_schema

        _print_json(report_schema())
    else:
        from compress.recipe.file import schema as of_recipes

        _print_json(of_recipes())
    return 0


@main.command(short_help="List the recipes that come with compress, or print one.")
@click.argument("name", required=False)
@options.as_json
def recipes(name: str | None, as_json: bool) -> int:
    """List the recipes that come with compress: `compress run NAME` runs one, wherever it is installed. With NAME,
    print that recipe, to be copied into a file and changed.
    """
    from compress.recipe import file, shipped

    chosen = list(shipped.shipped().values()) if name is None else [shipped.named(name)]
    if name is not None and not as_json:
        say(chosen[0].text.rstrip("\n"))
        return 0
    facts = [{"name": r.name, "budget": file.read(r.path).budget, "summary": r.summary} for r in chosen]
    if as_json:
        _print_json(facts if name is None else facts[0] | {"text": chosen[0].text})
        return 0
    rows = [[str(value) for value in row.values()] for row in facts]
    for line in table(["recipe", "budget", "what it does"], rows):
        say(line)
    return 0


@main.command(short_help="Write a first recipe from data, and from a model if you have one.")
@click.argument("names", metavar="[MODULE:FACTORY] DATA", nargs=-1, required=True)
@click.option(
    "--budget", metavar="LIMITS", help=f"What the network may cost: {options.LIMITS}; of a model of yours, 50%."
)
@options.args
@click.option("--size", type=click.IntRange(1), metavar="N", help="Resize a folder's images to N pixels a side.")
@click.option("--weights", metavar="FILE", help="What the model was trained to; the recipe prunes it.")
@options.mean
@options.std
@click.option("--out", default="recipe.yaml", show_default=True, help="File to write, which must not exist.")
def init(names: tuple[str, ...], out: str, **given: Any) -> int:
    """Write a first recipe, with every key explained, for a model (package.module:callable or ./file.py:callable) and
    DATA: digits or another known set, a .npz file, a folder with train/CLASS/NAME.png, or ./file.py:callable for data
    sets of your own. Without a model, one is chosen for the data and the budget, its widths and its training too, and
    it is said why.
    """
    from compress._init import init as draft

    if len(names) > 2:
        raise UsageError(f"{names[2]!r} is one name too many; write [MODULE:FACTORY] DATA")
    _import_from_here()
    first = draft(names[0] if len(names) == 2 else None, names[-1], out=out, **given)
    say(f"{out} is written; {first.plan.verdict()}")
    for reason in first.reasons:
        say(f"  {reason}")
    say(f"what it would do:  {shlex.join(['compress', 'plan', out])}")
    say(f"do it:             {shlex.join(['compress', 'run', out])}")
    return 0


def _say_result(folder: Path, report: "Report", as_json: bool) -> int:
    if as_json:
        _print_json({"folder": str(folder), **report.plain()})
    else:
        from compress.outcomes import result_lines

        _say_verdict(report.verdict.code, result_lines(folder, report))
    return report.verdict.code


def _say_verdict(code: int, lines: Sequence[str]) -> None:
    first, *others = map(visible, lines)  # each is one line, whatever the names in it hold
    say(first, bold=True, fg="red" if code else "green")
    for line in others:
        say(line)
