"""The check that anybody can run on what we ship: does this file keep that budget? Needs onnx, never torch.

Whatever the file itself can prove is counted: MACs, the numbers in its weights, its size, the peak of its activations.
What it cannot prove (thop's figure, whose batch-norm terms vanish when batch norms are folded, and the parameters
before folding) is taken from its metadata, is told as *claimed*, and may never be milder than what was counted. A file
says nothing about its own budget: without one there is no verdict. A latency is measured here and now; only then is
onnxruntime needed.
"""

import hashlib
import os
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compress.budget.limits import Budget, Cost, Latency, amounts
from compress.budget.units import MEMORY, show, span
from compress.errors import ArtifactError, UsageError

if TYPE_CHECKING:
    from compress.export.onnx.count import FileCost

Shapes = Mapping[str, tuple[int, ...]]  # of inputs, by name
Asked = str | Sequence[str | Mapping[str, str]] | Budget  # which budget a file must keep

LONGEST = 2_000  # characters of a sentence
SCHEMA_VERSION = 1  # of what `--json` prints
_BY_MACS = ("MACs", "FLOPs", "FLOPs@2")


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a check came to: 0 the budget is kept, 1 it is not, 4 the file is broken or belies itself.

    `lines` are sentences for people, the verdict first; `rows` are one for each limit, as in report.json.
    """

    code: int
    lines: tuple[str, ...]
    rows: tuple[dict[str, Any], ...] = ()
    counted: Mapping[str, int | None] | None = None  # in the file, by unit; None for what cannot be counted
    claimed: Mapping[str, int | None] | None = None  # by its metadata
    shapes: Mapping[str, tuple[int | None, ...]] | None = None  # of the inputs, for which it was counted
    uncounted: tuple[str, ...] = ()  # operators that counted as nothing because it was asked for

    def to_json(self) -> dict[str, object]:
        """Return the verdict as plain values, for `--json`."""
        return {
            "schema_version": SCHEMA_VERSION,
            "code": self.code,
            "kept": self.code == 0,
            "lines": list(self.lines),
            "budget": list(self.rows),
            "counted": None if self.counted is None else dict(self.counted),
            "claimed": None if self.claimed is None else dict(self.claimed),
            "shapes": None if self.shapes is None else {name: list(shape) for name, shape in self.shapes.items()},
            "uncounted": list(self.uncounted),
        }


def verify(
    path: Path | str,
    budget: Asked | None = None,
    *,
    shape: str | Sequence[str] = (),
    uncounted: Collection[str] | None = (),
    signed_by: Path | str | None = None,
) -> Verdict:
    """Check an .onnx file, the weights of a .safetensors file, or the output folder of a run against a budget.

    A share ("50%") is of the base model that the file's metadata names; "sealed" asks for the limits that the file
    seals as its own. `shape` says for which inputs to count, such as "ids=1,384", where the file leaves more than the
    batch open. Of operators whose cost is not known those named in `uncounted` count as nothing (None: whichever there
    are). `signed_by` is a file with a public ed25519 key, by which model.onnx and, in a folder, report.json must
    be signed. Raises UsageError where the question cannot be answered: no budget, no such file, no such key, a share of
    an unknown base, a shape of no input, or a limit on which the file holds no evidence.
    """
    path = Path(path)
    if budget is None:
        raise UsageError(f"{path}: say which budget it must keep, such as '43MFLOPs'; a file never vouches for itself.")
    if not os.path.exists(path):  # which is never in doubt, whatever the path is
        raise UsageError(f"{path}: there is no such file or folder.")
    shapes = _shapes([shape] if isinstance(shape, str) else shape)
    checks: dict[str, Callable[[Path, Asked, Shapes], Verdict]] = {
        ".onnx": partial(check_onnx, uncounted=uncounted),
        ".safetensors": _check_weights,
    }
    check = partial(_check_folder, uncounted=uncounted) if path.is_dir() else checks.get(path.suffix)
    if check is None:
        raise UsageError(f"{path}: give an .onnx file, a .safetensors file, or the output folder of a run.")
    try:
        signed = _signed(path, signed_by)
        verdict = check(path, budget, shapes)
    except ArtifactError as error:
        return Verdict(error.exit_code, (_clipped(str(error)),))
    return replace(verdict, lines=(*verdict.lines, *signed))


def _signed(path: Path, key: Path | str | None) -> list[str]:
    """Say who signed it, where a key is given; raise ArtifactError where it is not signed by that key."""
    if key is None:
        return []
    from compress.export import sign  # and with it the package cryptography

    return [sign.check(path, sign.public_key(key))]


def digest(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _shapes(texts: Sequence[str]) -> Shapes:
    """Read shapes of inputs: "x=384,1,128", or "384,1,128" for the only input, whose name is then ""."""
    shapes: dict[str, tuple[int, ...]] = {}
    for text in texts:
        name, equals, numbers = text.rpartition("=")
        parts = numbers.split(",")
        if not all(re.fullmatch("[1-9][0-9]{0,17}", part.strip()) for part in parts):
            raise UsageError(f"--shape {text!r} is no shape; write the sizes of all axes: --shape x=384,1,128.")
        if (name if equals else "") in shapes:
            raise UsageError(f"--shape is given twice for {name!r}; an input has one shape.")
        shapes[name if equals else ""] = tuple(int(part) for part in parts)
    return shapes


def check_onnx(path: Path, asked: Asked, shapes: Shapes, uncounted: Collection[str] | None = ()) -> Verdict:
    """Check an .onnx file. Raises what `verify` raises, and ArtifactError where the file is broken or belies itself."""
    from compress.export.onnx import axes, count  # onnx costs a quarter of a second: only when it is needed
    from compress.export.onnx import file as onnx_file

    model = onnx_file.read(path)
    if "" in shapes:
        names = [value.name for value in axes.inputs_of(model)]
        if len(names) != 1:
            raise UsageError(
                f"{path}: say which input has that shape, such as --shape {names[0] if names else 'x'}=..."
            )
        shapes = {names[0]: shapes[""]}
    try:
        file = count.count(model, shapes, uncounted)
    except ArtifactError as error:
        raise ArtifactError(f"{path}: {error}") from None
    file = replace(file, bytes=path.stat().st_size + onnx_file.outside(path, model))
    known = onnx_file.metadata(model)
    base = _cost_from(path, known["base"]) if "base" in known else None
    budget, notes = _limits_for(path, asked, base, known)
    claims, blind = _claims(path, known.get("claims"), file)
    counted = {
        "macs": None if file.why else file.macs,
        "params": None if file.hidden else file.params,
        "bytes": file.bytes,
        "memory": file.memory,
    }
    claimed = None
    if claims is not None:
        thop = None if blind else claims.thop
        claimed = {"macs": claims.macs, "params": claims.params, "thop": thop, "memory": claims.memory}
    if refusal := _refusal(file, budget):
        return Verdict(4, (_clipped(f"{path}: {refusal}"),), counted=counted, claimed=claimed, shapes=file.shapes)
    cost, lines = _believed(path, file, claims, blind)
    if blind and any(limit.unit in _BY_MACS for limit in budget.limits):
        notes.append("without a figure by thop, FLOPs are the MACs: no batch norm, no pooling")
    if file.uncounted:
        notes.append(f"counted as nothing, because it was asked for: {', '.join(file.uncounted)}")
    measured = None
    if budget.latencies:
        from compress.export.latency import measured_latencies

        measured = measured_latencies(path, budget)
    verdict = _judge(path, budget, cost, [*lines, *notes], measured)
    return replace(verdict, counted=counted, claimed=claimed, shapes=file.shapes, uncounted=file.uncounted)


def _refusal(file: "FileCost", budget: Budget) -> str:
    """Say which limit cannot be checked, and why; nothing where all can be."""

    def limits(*units: str) -> str:
        return ", ".join(limit.text for limit in budget.limits if limit.unit in units)

    if file.why and (asked := limits(*_BY_MACS)):
        how = f"; --uncounted {file.unknown[0]} counts it as nothing" if len(file.unknown) == 1 else ""
        return f"nobody can vouch for {asked}: {file.why}{how}. At least {file.macs:,} MACs were counted."
    if file.memory is None and (asked := limits(MEMORY)):
        why = f"these operators are not known: {', '.join(file.unknown)}" if file.unknown else file.why
        return f"nobody can vouch for {asked}, the memory of its activations: {why or 'a shape is not known'}."
    compiled = [name for name in file.hidden if name.endswith("::EPContext")]  # it may lie in a file of its own
    if compiled and (asked := limits("B")):
        return f"nobody can vouch for {asked}: a compiled network may lie in other files ({compiled[0]})."
    if file.hidden and (asked := limits("params")):
        hidden = ", ".join(file.hidden)
        return (
            f"nobody can vouch for {asked}: numbers may lie out of sight in {hidden}. At least {file.params:,} params "
            "were counted."
        )
    return ""


def _believed(path: Path, file: "FileCost", claims: Cost | None, blind: bool) -> tuple[Cost, list[str]]:
    """Return what a file costs, the stricter of what was counted and what is claimed, and say both.

    Raises ArtifactError where a claim is milder than the count.
    """
    memory = file.memory or 0
    shapes = ", ".join(f"{name}={','.join(map(_axis, shape))}" for name, shape in file.shapes.items())
    macs = f"at least {file.macs:,} MACs ({file.why})" if file.why else f"{file.macs:,} MACs"
    params = f"{'at least ' if file.hidden else ''}{file.params:,} params after folding"
    lines = [f"counted in the file: {macs}, {params}, {file.bytes:,} B", f"counted for the inputs {_clipped(shapes)}"]
    cost = Cost(params=file.params, macs=file.macs, thop=file.macs, bytes=file.bytes, memory=memory)
    if claims is None:
        return cost, lines
    for name, claim in (("MACs", claims.macs), ("FLOPs by thop", file.macs if blind else claims.thop)):
        if claim < file.macs:
            raise ArtifactError(
                f"{path}: its metadata claims {claim:,} {name}, but {file.macs:,} MACs were counted in it."
            )
    if claims.memory < memory:
        raise ArtifactError(
            f"{path}: its metadata claims {claims.memory:,} {MEMORY}, but {memory:,} were counted in it."
        )
    thop = "no figure by thop" if blind else f"{claims.thop:,} FLOPs by thop"
    lines.append(f"claimed by its metadata: {thop}, {claims.macs:,} MACs, {claims.params:,} params")
    lines.append(f"activations at their peak: {memory:,} B in the file's order, {claims.memory:,} B claimed")
    params_of = max(claims.params, file.params)
    return replace(cost, params=params_of, thop=claims.of("FLOPs"), memory=claims.memory), lines


def _clipped(text: str) -> str:
    """A sentence that fits a screen, whatever names a file has."""
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 20]} ... {text[-15:]}"


def _axis(size: int | None) -> str:
    return "?" if size is None else str(size)


def _check_weights(path: Path, asked: Asked, shapes: Shapes) -> Verdict:
    from compress.export import tensors

    if shapes:
        raise UsageError(f"{path}: weights have no inputs; --shape is for .onnx files.")
    budget, notes = _limits_for(path, asked)
    if others := [limit.text for limit in budget.limits if limit.unit != "params"]:
        raise UsageError(f"{path}: weights prove nothing about {', '.join(others)}; verify the model.onnx beside them.")
    params, more = tensors.count(path)
    line = f"counted in the header: {params:,} params (everything but the statistics of batch norms, and positions)"
    verdict = _judge(path, budget, Cost(params=params, macs=0, thop=0, bytes=0), [line, *more, *notes])
    return replace(verdict, counted={"params": params})


def _check_folder(path: Path, asked: Asked, shapes: Shapes, uncounted: Collection[str] | None = ()) -> Verdict:
    from compress.export.folder import check_folder  # pydantic costs as much again as all else here

    return check_folder(path, asked, shapes, uncounted)


def _judge(
    path: Path, budget: Budget, cost: Cost, notes: list[str], measured: Mapping[str, Latency] | None = None
) -> Verdict:
    """Hold a cost against every limit; `notes` are said behind the limits."""
    rows = budget.rows(cost, measured)
    kept = all(row["pass"] for row in rows if row["level"] == "error")
    lines = [f"{path}: {'keeps' if kept else 'does not keep'} {', '.join(limit.text for limit in budget.limits)}."]
    for row in rows:
        text, unit, value = row["text"], row["unit"], row["value"]
        word = "kept" if row["pass"] else "OVER" if row["level"] == "error" else "over (a warning)"
        lines.append(f"{text}: {word}, {show(value, unit)} = {value:,} of {row['limit']:,} {unit}")
        if "runs" in row:
            spread = span(row["spread"], unit)
            notes.append(f"{text}: {row['runs']:,} runs on {row['processor']}, 80 % of them within {spread}")
    return Verdict(0 if kept else 1, (*lines, *notes), tuple(rows))


def _limits_for(
    path: Path, asked: Asked, base: Cost | None = None, topics: Mapping[str, Any] | None = None
) -> tuple[Budget, list[str]]:
    """Return the limits that are asked, and what is to be said of them; `topics` is the metadata of an .onnx file."""
    if isinstance(asked, Budget):
        return asked, []
    if asked == "sealed":
        if topics is None:
            raise UsageError(f"{path}: names no limits of its own; verify the model.onnx beside it, or its folder.")
        from compress.export.seal import sealed_limits

        said = "the limits are the file's own (--budget sealed): whoever made the file chose them"
        return sealed_limits(path, topics), [said]
    shares = [amount.text for amount, _ in amounts(asked, finished=True) if amount.share is not None]
    if shares and base is None:
        raise UsageError(
            f"{path}: {shares[0]!r} is a share of a base model that this file does not name; write a count."
        )
    notes = [f"{', '.join(shares)}: of the base model as the metadata claims it"] if shares else []
    return Budget.parse(asked, base, finished=True), notes


def _claims(path: Path, claims: Any, file: "FileCost") -> tuple[Cost | None, bool]:
    """Return what the metadata claims, and whether it lacks thop's figure (null where thop is blind to some layers)."""
    if claims is None:
        return None, True
    blind = False
    if isinstance(claims, dict):
        blind = claims.get("thop", 0) is None
        claims = {"memory": file.memory or 0} | claims | {"bytes": file.bytes} | ({"thop": 0} if blind else {})
    return _cost_from(path, claims), blind


def _cost_from(path: Path, claims: Any) -> Cost:
    """Read a cost from metadata: whole numbers that are not negative, or it is no evidence."""
    names = ("params", "macs", "thop", "bytes", "memory")
    claims = {"memory": 0} | claims if isinstance(claims, dict) else claims  # what the first files did not count
    numbers = list(claims.values()) if isinstance(claims, dict) and set(claims) == set(names) else [None]
    if any(type(n) is not int or n < 0 for n in numbers):
        raise ArtifactError(f"{path}: its metadata holds no cost of {', '.join(names)}, but {repr(claims)[:80]}.")
    return Cost(**claims)
