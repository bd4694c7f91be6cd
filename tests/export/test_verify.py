"""The guard believes what it counts, says what is only claimed, and is never milder than its count."""

import json
import math
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto
from onnx.helper import make_graph, make_model, make_node, make_opsetid, make_tensor, make_tensor_value_info
from reports import CHECK, build
from safetensors.numpy import save_file

from compress.budget.limits import Budget, Cost
from compress.errors import UsageError
from compress.export import latency
from compress.export.onnx import file as onnx_file
from compress.export.page import write_report
from compress.export.report import Report, rows_of
from compress.export.seal import facts
from compress.export.verify import digest, verify

MACS = 4 * 36 * 27 + 144 * 10  # a 3x3 convolution of 3 to 4 channels on 8x8 images, then 144 to 10
PARAMS = 4 * 27 + 144 * 10  # in the file: its batch norm is folded away
PEAK = 4 * (3 * 64 + 4 * 36)  # bytes of the image and of what is made of it
BASE = Cost(params=10 * PARAMS, macs=10 * MACS, thop=11 * MACS, bytes=100_000, memory=10 * PEAK)
CLAIMS = {"macs": MACS, "memory": PEAK + 40, "params": PARAMS + 8, "thop": MACS + 4 * 4 * 36}
FLOPS = CLAIMS["thop"]


def network(kind: str = "Conv") -> onnx.ModelProto:
    """The network of which all files here are made; `kind` replaces its first operator."""
    domain = {"Magic": "mine"}.get(kind, "")
    nodes = [
        make_node(kind, ["x", "w"], ["c"], domain=domain),
        make_node("Flatten", ["c"], ["f"]),
        make_node("MatMul", ["f", "v"], ["y"]),
    ]
    shapes = {"w": (4, 3, 3, 3), "v": (144, 10)}
    weights = [make_tensor(k, TensorProto.FLOAT, s, np.ones(math.prod(s)).tolist()) for k, s in shapes.items()]
    x, y = (make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in (("x", ("N", 3, 8, 8)), ("y", ("N", 10))))
    opsets = [make_opsetid("", 20), *([make_opsetid(domain, 1)] if domain else [])]
    return make_model(make_graph(nodes, "net", [x], [y], initializer=weights), ir_version=10, opset_imports=opsets)


def write(path: Path, kind: str = "Conv", **metadata: Any) -> Path:
    """A file as `compress` writes it; keywords replace topics of its metadata, None leaves one out."""
    base = {"params": BASE.params, "macs": BASE.macs, "thop": BASE.thop, "bytes": BASE.bytes, "memory": BASE.memory}
    topics = {"claims": CLAIMS, "base": base} | metadata
    stamped = onnx_file.stamp(onnx_file.clean(network(kind)), {k: v for k, v in topics.items() if v is not None})
    onnx_file.write_sealed(stamped, path)
    return path


@pytest.fixture
def file(tmp_path):
    return write(tmp_path / "model.onnx")


KEPT = {
    "exactly its MACs": f"{MACS}MACs",
    "exactly its FLOPs, thop's batch norms included": f"{FLOPS}FLOPs",
    "twice its MACs": f"{2 * MACS}FLOPs@2",
    "exactly its params before folding": f"{PARAMS + 8}params",
    "exactly the peak of its activations": f"{PEAK + 40}B@activations",
    "a tenth of the base's peak and more": "11%@activations",
    "several": f"{MACS}MACs, {PARAMS + 8}params, 20kB",
    "a tenth of the base's MACs": "10%MACs",
}
BROKEN = {
    "one MAC too many": f"{MACS - 1}MACs",
    "thop's batch norms too many, though its MACs fit": f"{FLOPS - 1}FLOPs",
    "one of twice its MACs too many": f"{2 * MACS - 1}FLOPs@2",
    "one param before folding too many": f"{PARAMS + 7}params",
    "one byte of activations too many, though fewer are counted in it": f"{PEAK + 39}B@activations",
    "one of several": f"{MACS - 1}MACs, {PARAMS + 8}params",
    "less than a tenth of the base": "9.999%MACs",
    "bytes": "6kB",
}


@pytest.mark.parametrize("case", KEPT)
def test_a_kept_budget_is_0(case, file):
    verdict = verify(file, KEPT[case])
    assert (verdict.code, verdict.lines[0]) == (0, f"{file}: keeps {KEPT[case]}.")
    assert all(row["pass"] for row in verdict.rows)


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_budget_is_1(case, file):
    verdict = verify(file, BROKEN[case])
    assert verdict.code == 1
    assert "does not keep" in verdict.lines[0]
    assert [row["pass"] for row in verdict.rows].count(False) == 1


def test_a_limit_in_bytes_is_held_by_the_size_on_the_disk(file):
    size = file.stat().st_size
    assert (verify(file, f"{size}B").code, verify(file, f"{size - 1}B").code) == (0, 1)


def test_a_broken_warning_is_told_and_not_held_against_the_file(file):
    verdict = verify(file, [f"{MACS}MACs", {"limit": f"{MACS}FLOPs", "level": "warn"}])
    assert verdict.code == 0
    assert any("over (a warning)" in line for line in verdict.lines)


def test_the_peak_of_activations_is_counted_in_a_file_that_claims_nothing(tmp_path):
    bare = write(tmp_path / "bare.onnx", claims=None)
    assert (verify(bare, f"{PEAK}B@activations").code, verify(bare, f"{PEAK - 1}B@activations").code) == (0, 1)
    silent = write(tmp_path / "silent.onnx", claims={k: v for k, v in CLAIMS.items() if k != "memory"})
    assert (verify(silent, f"{PEAK}B@activations").code, verify(silent, f"{PEAK - 1}B@activations").code) == (0, 1)
    unknown = verify(write(tmp_path / "unknown.onnx", kind="Magic"), "1MB@activations")
    assert unknown.code == 4
    assert "the memory of its activations: these operators are not known: mine::Magic" in unknown.lines[0]


def test_what_is_claimed_is_said_to_be_claimed(file):
    lines = verify(file, "1MFLOPs, 50%MACs").lines
    assert f"claimed by its metadata: {FLOPS:,} FLOPs by thop, {MACS:,} MACs, {PARAMS + 8:,} params" in lines
    assert f"counted in the file: {MACS:,} MACs, {PARAMS:,} params after folding, {file.stat().st_size:,} B" in lines
    assert "50%MACs: of the base model as the metadata claims it" in lines


def test_a_budget_object_serves_as_well_as_a_text(file):
    budget = Budget.parse(f"{MACS}MACs")
    assert verify(file, budget) == verify(file, f"{MACS}MACs")


def test_a_latency_is_measured_on_the_file_and_told_with_its_spread(file):
    verdict = verify(file, f"{MACS}MACs, 10s@onnxruntime-cpu/1, 1ns@onnxruntime-cpu/2")
    assert verdict.code == 0
    assert [row["pass"] for row in verdict.rows] == [True, True, False]
    _, row, _ = verdict.rows
    assert row["spread"][0] <= row["value"] <= row["spread"][1]
    assert row["runs"] >= latency.RUNS
    assert row["processor"]
    assert sum("over (a warning)" in line for line in verdict.lines) == 1
    assert sum("80 % of them within" in line for line in verdict.lines) == 2


def test_a_latency_that_is_all_that_is_asked_decides(file):
    assert verify(file, "1ns@onnxruntime-cpu/1").code == 1


def test_a_file_that_onnxruntime_cannot_run_is_4(tmp_path):
    verdict = verify(write(tmp_path / "magic.onnx", kind="Magic"), "5ms@onnxruntime-cpu/1")
    assert verdict.code == 4
    assert "its latency cannot be measured" in verdict.lines[0]


def test_without_a_latency_nothing_is_run(file):
    code = f"""
import sys
from compress.export.verify import verify
assert verify({str(file)!r}, "{MACS}MACs").code == 0
assert not {{"torch", "onnxruntime"}} & set(sys.modules)
assert verify({str(file)!r}, "10s@onnxruntime-cpu/1").code == 0
assert "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_a_verdict_is_plain_json(file):
    plain = json.loads(json.dumps(verify(file, "1MMACs").to_json(), allow_nan=False))
    assert (plain["code"], plain["kept"], plain["budget"][0]["value"]) == (0, True, MACS)
    assert plain["schema_version"] == 1
    assert plain["counted"] == {"macs": MACS, "params": PARAMS, "bytes": file.stat().st_size, "memory": PEAK}
    assert plain["claimed"] == {"macs": MACS, "params": PARAMS + 8, "thop": FLOPS, "memory": PEAK + 40}
    assert plain["shapes"] == {"x": [1, 3, 8, 8]}


# ---- files that belie themselves ------------------------------------------------------------------------------------

LIES = {
    "fewer MACs": {"claims": CLAIMS | {"macs": MACS - 1}},
    "a lower peak": {"claims": CLAIMS | {"memory": PEAK - 1}},
    "fewer FLOPs by thop": {"claims": CLAIMS | {"thop": MACS - 1}},
    "no numbers": {"claims": CLAIMS | {"macs": "few"}},
    "negative numbers": {"claims": CLAIMS | {"params": -1}},
    "half a claim": {"claims": {"macs": MACS}},
    "a list for a claim": {"claims": [1, 2, 3]},
    "half a base": {"base": {"macs": 5}},
    "true for a number": {"claims": CLAIMS | {"params": True}},
}


@pytest.mark.parametrize("case", LIES)
def test_metadata_that_contradicts_the_file_is_4(case, tmp_path):
    verdict = verify(write(tmp_path / "model.onnx", **LIES[case]), "1GMACs")
    assert verdict.code == 4
    assert "metadata" in verdict.lines[0]


def test_claims_above_the_file_hold_against_it(tmp_path):
    file = write(tmp_path / "model.onnx", claims=CLAIMS | {"params": PARAMS + 1000})
    assert verify(file, f"{PARAMS + 999}params").code == 1


def test_claims_below_the_file_do_not_help_it(tmp_path):
    file = write(tmp_path / "model.onnx", claims=CLAIMS | {"params": 1})
    assert verify(file, f"{PARAMS - 1}params").code == 1


def test_without_a_figure_by_thop_the_macs_decide_and_it_is_said(tmp_path):
    blind = write(tmp_path / "blind.onnx", claims=CLAIMS | {"thop": None})
    bare = tmp_path / "bare.onnx"
    onnx.save(network(), bare)
    for file in (blind, bare):
        assert (verify(file, f"{MACS}FLOPs").code, verify(file, f"{MACS - 1}FLOPs").code) == (0, 1)
        assert "without a figure by thop" in verify(file, f"{MACS}FLOPs").lines[-1]


def test_an_operator_of_unknown_cost_is_4_by_name_where_macs_are_limited(tmp_path):
    file = write(tmp_path / "model.onnx", kind="Magic", claims=None)
    for budget in ("1GMACs", "1GFLOPs", "1GFLOPs@2", "50%"):
        verdict = verify(file, budget)
        assert verdict.code == 4
        assert "mine::Magic" in verdict.lines[0]
    assert verify(file, f"{PARAMS}params").code == 0


def test_an_operator_of_unknown_cost_counts_as_nothing_where_that_is_asked_for(tmp_path):
    model = network()
    model.graph.node[-1].output[:] = ["m"]
    for kind, reads, out in (("Det", "x", "d"), ("ReduceMax", "d last", "s"), ("Add", "m s", "y")):
        model.graph.node.append(make_node(kind, reads.split(), [out]))
    model.graph.initializer.append(make_tensor("last", TensorProto.INT64, [1], [1]))
    onnx.save(model, tmp_path / "model.onnx")
    said = "--uncounted Det counts it as nothing"
    assert said in verify(tmp_path / "model.onnx", f"{MACS}MACs").lines[0]
    for names in (["Det"], ["Det", "Magic"], None):
        verdict = verify(tmp_path / "model.onnx", f"{MACS}MACs", uncounted=names)
        assert (verdict.code, verdict.uncounted) == (0, ("Det",))
        assert verdict.lines[-1] == "counted as nothing, because it was asked for: Det"
        assert verify(tmp_path / "model.onnx", f"{MACS - 1}MACs", uncounted=names).code == 1
    assert verify(tmp_path / "model.onnx", f"{MACS}MACs", uncounted=["Magic"]).code == 4


def corruptions(data: bytes) -> dict[str, bytes]:
    claimed = f'"macs":{MACS},"memory"'.encode()
    assert data.count(claimed) == 1
    cuts = {f"cut at {n}": data[:n] for n in range(1, len(data), len(data) // 40)}
    return cuts | {
        "empty": b"",
        "a picture": b"\x89PNG\r\n\x1a\n" + bytes(100),
        "one weight changed": data.replace(np.float32(1).tobytes(), np.float32(2).tobytes(), 1),
        "claims edited to fewer MACs": data.replace(claimed, f'"macs":{MACS - 1},"memory"'.encode()),
        "something behind the end": data + b"\0",
    }


def test_every_corruption_is_4(tmp_path, file):
    whole = file.read_bytes()
    for case, data in corruptions(whole).items():
        assert data != whole, case
        broken = tmp_path / "broken.onnx"
        broken.write_bytes(data)
        verdict = verify(broken, "1GMACs")
        assert verdict.code == 4, case
        assert verdict.rows == ()


# ---- questions without an answer ------------------------------------------------------------------------------------


def test_without_a_budget_nothing_is_vouched_for(file):
    with pytest.raises(UsageError, match="never vouches for itself"):
        verify(file)


@pytest.mark.parametrize("name", ["missing.onnx", "missing.safetensors", "missing", "x" * 5_000, "x\0.onnx"])
def test_what_is_not_there_is_2(name, tmp_path):
    with pytest.raises(UsageError, match="no such file or folder"):
        verify(tmp_path / name, "1MMACs")


def test_another_kind_of_file_is_2(tmp_path):
    (tmp_path / "model.pt2").write_bytes(b"anything")
    with pytest.raises(UsageError, match=r"give an \.onnx file"):
        verify(tmp_path / "model.pt2", "1MMACs")


def test_a_share_of_an_unknown_base_is_2(tmp_path):
    with pytest.raises(UsageError, match="'50%' is a share of a base model"):
        verify(write(tmp_path / "model.onnx", base=None), "50%")


def test_a_budget_that_is_none_is_2(file):
    with pytest.raises(UsageError):
        verify(file, "43MFLOPS")


LIMIT = {"unit": "FLOPs", "limit": FLOPS, "text": "about 5 kFLOPs", "level": "error"}


def test_a_files_own_limits_are_asked_for_by_name_and_it_is_said_whose_they_are(tmp_path):
    size = {"unit": "B", "limit": 1, "text": "1B", "level": "warn"}
    for limits, code in (([LIMIT, size], 0), ([LIMIT | {"limit": FLOPS - 1}], 1)):
        verdict = verify(write(tmp_path / "model.onnx", budget=limits), "sealed")
        assert verdict.code == code
        assert [(row["text"], row["limit"]) for row in verdict.rows] == [(row["text"], row["limit"]) for row in limits]
        assert "the limits are the file's own (--budget sealed): whoever made the file chose them" in verdict.lines


@pytest.mark.parametrize(
    "limits",
    [[], {}, "1MMACs", [LIMIT | {"level": "warn"}], [LIMIT | {"unit": "GB"}], [LIMIT | {"unit": [1]}],
     [LIMIT | {"limit": 0}], [LIMIT | {"limit": True}], [LIMIT | {"limit": 2**63}], [LIMIT | {"text": 5}],
     [LIMIT | {"level": "fatal"}], [LIMIT | {"level": []}], [1], [[1]], [{"unit": "FLOPs"}], [LIMIT | {"more": 1}],
     [LIMIT | {"unit": "ns@onnxruntime-cpu/" + "9" * 5_000}], None],
)  # fmt: skip
def test_limits_that_are_none_are_4_and_no_limits_are_2(limits, tmp_path):
    file = write(tmp_path / "model.onnx", budget=limits)
    if limits is None:
        with pytest.raises(UsageError, match="names no limits of its own"):
            verify(file, "sealed")
    else:
        verdict = verify(file, "sealed")
        assert verdict.code == 4
        assert "its metadata holds no limits, but" in verdict.lines[0]


def test_weights_name_no_limits(weights):
    with pytest.raises(UsageError, match=r"verify the model\.onnx beside it, or its folder"):
        verify(weights, "sealed")


# ---- weights alone --------------------------------------------------------------------------------------------------


@pytest.fixture
def weights(tmp_path):
    tensors = {
        "conv.weight": np.zeros((4, 3, 3, 3), np.float32),
        "norm.weight": np.zeros(4, np.float16),
        "norm.running_mean": np.zeros(4, np.float32),
        "norm.running_var": np.zeros(4, np.float32),
        "norm.num_batches_tracked": np.zeros((), np.int64),
        "position_ids": np.zeros((1, 7), np.int64),
    }
    save_file(tensors, tmp_path / "model.safetensors")
    return tmp_path / "model.safetensors"


def test_params_are_counted_in_the_header_of_weights(weights):
    assert verify(weights, f"{4 * 27 + 4}params").code == 0
    assert verify(weights, f"{4 * 27 + 3}params").code == 1


@pytest.mark.parametrize("budget", ["1GMACs", "1GFLOPs", "1kB", "1kparams, 1GMACs", "50%params"])
def test_weights_are_no_evidence_on_anything_else(budget, weights):
    with pytest.raises(UsageError):
        verify(weights, budget)


def test_broken_weights_are_4(weights):
    data = weights.read_bytes()
    for broken in (b"", b"\x89PNG", data[:4], data[:60], data[:-1], data + b"\0"):
        weights.write_bytes(broken)
        assert verify(weights, "1Mparams").code == 4


# ---- folders --------------------------------------------------------------------------------------------------------


def whole(folder: Path, **changes: Any) -> Report:
    """The report on the files of a folder, model.onnx made to seal it; keywords go to `build`."""
    model, names = folder / "model.onnx", ("model.onnx", "model.safetensors")

    def told() -> Report:
        size = model.stat().st_size if model.is_file() else 1
        cost = Cost(CLAIMS["params"], MACS, FLOPS, size, CLAIMS["memory"])
        sizes = {name: (folder / name).stat().st_size if (folder / name).is_file() else 1 for name in names}
        parity = {name: CHECK | {"bytes": bytes} for name, bytes in sizes.items()}
        return build(f"{FLOPS}FLOPs", cost=cost, base=BASE, val=0.9, parity=parity, **changes)

    first = told()
    limits = [{"unit": row.unit, "limit": row.limit, "text": row.text, "level": row.level} for row in first.budget]
    files = {"model.safetensors": digest(folder / "model.safetensors")}
    sealed = facts(first.plain()) | {"files": files}
    write(model, budget=limits, preprocessing=first.preprocessing.plain(), sealed=sealed)
    return told()


@pytest.fixture
def folder(tmp_path, weights):
    write_report(whole(tmp_path), tmp_path)
    return tmp_path


def test_a_folder_whose_report_tells_the_truth_is_judged_by_its_file(folder):
    assert verify(folder, f"{FLOPS}FLOPs").code == 0
    assert verify(folder, f"{FLOPS - 1}FLOPs").code == 1


def test_a_folder_of_a_run_that_missed_its_accuracy_is_1(folder):
    write_report(whole(folder, required=0.95), folder)
    verdict = verify(folder, "1GFLOPs")
    assert (verdict.code, verdict.lines[0]) == (
        1, "not kept: validation accuracy 90.00 % is below the required 95.00 %, by the recipe.",
    )  # fmt: skip


STORIES = {
    "fewer MACs": (("cost", "macs"), MACS - 1, "macs"),
    "fewer bytes": (("cost", "bytes"), 1, "bytes"),
    "a lower peak": (("cost", "memory"), PEAK, "memory"),
    "less by thop": (("cost", "thop"), MACS, "thop"),
    "another base": (("base", "macs"), 5, "base"),
    "a better row": (("budget", 0, "value"), 5, "row"),
    "a kept row": (("budget", 0, "pass"), False, "row"),
    "other files": (("files", "model.onnx"), "0" * 64, r"model\.onnx is not the file"),
    "no cost": (("cost",), None, "not a report"),
    "no rows": (("budget",), None, "not a report"),
    "text for a number": (
        ("cost", "macs"),
        "few",
        r"not a report, or a damaged one \(report\.cost\.macs is 'few': input",
    ),
    "a key too many": (("surprise",), 1, "not a report"),
    "half of a file": (("parity", "model.onnx"), {"bytes": 1}, r"not a report.*report\.parity\.model\.onnx\.images"),
    "a digest that is none": (("files", "model.onnx"), "", "not a report"),
}


@pytest.mark.parametrize("case", STORIES)
def test_a_report_that_does_not_agree_with_the_files_is_4(case, folder):
    place, value, why = STORIES[case]
    story = json.loads((folder / "report.json").read_text())
    inner = story
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    (folder / "report.json").write_text(json.dumps(story))
    verdict = verify(folder, "1GFLOPs")
    assert verdict.code == 4
    assert re.search(why, verdict.lines[0])


def test_a_report_that_keeps_a_budget_which_its_own_rows_break_is_4(folder):
    kept = whole(folder)
    over = rows_of(Budget.parse(f"{FLOPS - 1}FLOPs"), Cost(0, 0, FLOPS, 0), {})
    limit = {"unit": "FLOPs", "limit": FLOPS - 1, "text": f"{FLOPS - 1}FLOPs", "level": "error"}
    topics = onnx_file.metadata(onnx_file.read(folder / "model.onnx"))
    write(folder / "model.onnx", **(topics | {"budget": [limit]}))
    write_report(kept.model_copy(update={"budget": over}), folder)
    verdict = verify(folder, "1GFLOPs")
    assert verdict.code == 4
    assert "its verdict is 'kept:" in verdict.lines[0]


def test_files_swapped_for_others_are_4(folder):
    save_file({"conv.weight": np.ones((4, 3, 3, 3), np.float32)}, folder / "model.safetensors")
    verdict = verify(folder, "1GFLOPs")
    assert verdict.code == 4
    assert "model.safetensors is not the file" in verdict.lines[0]


def test_a_report_that_is_cut_short_is_4(folder):
    text = (folder / "report.json").read_text()
    for length in (0, 1, len(text) // 2, len(text) - 2):
        (folder / "report.json").write_text(text[:length])
        assert verify(folder, "1GFLOPs").code == 4


@pytest.mark.parametrize("name", ["model.onnx", "report.json"])
def test_a_folder_without_its_evidence_is_2(name, folder):
    (folder / name).unlink()
    with pytest.raises(UsageError, match=f"holds no {name}"):
        verify(folder, "1GFLOPs")


def test_a_missing_file_of_the_report_is_4(folder):
    (folder / "model.safetensors").unlink()
    assert verify(folder, "1GFLOPs").code == 4


def test_a_moved_folder_is_judged_the_same(folder, tmp_path_factory):
    other = tmp_path_factory.mktemp("elsewhere") / "out"
    shutil.copytree(folder, other)
    assert verify(other, "1GFLOPs").code == 0


def test_the_guard_needs_onnx_and_numpy_and_nothing_heavier(file):
    heavy = {"torch", "onnxruntime", "pydantic", "matplotlib", "rich", "safetensors"}
    code = (
        "import sys; from compress.export.verify import verify; print(verify(sys.argv[1], '1MMACs').code);"
        f"assert not {heavy} & set(sys.modules), {heavy} & set(sys.modules)"
    )
    command = [sys.executable, "-c", code, str(file)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2])
    assert (done.stdout, done.stderr) == ("0\n", "")
