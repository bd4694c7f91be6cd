"""What a file has less than its price says is seen on the file of the full network, and never too much of it."""

from pathlib import Path

import pytest

from compress._plan import plan
from compress._run import run

NET = """
model: {factory: compress.models:vgg, args: {widths: [16, 16, 32], pools: [2], in_channels: 1, size: 8}}
train: {batch: 200}
budget: 14kB
method: %s
"""


@pytest.mark.parametrize(
    ("method", "budget"),
    [
        ("{name: l1, tune: {epochs: 1}}", "14kB"),
        ("{name: l1, tune: {epochs: 1}}", "22222B"),
        ("{name: adenel, max_rounds: 2, round: 2 steps, tune: {epochs: 1}}", "60kB"),
        ("{name: adenel, max_rounds: 2, round: 2 steps, tune: {epochs: 1}}", "250kB"),
    ],
)
def test_a_budget_in_bytes_is_used_and_kept_by_the_file_itself(tmp_path: Path, method: str, budget: str) -> None:
    (tmp_path / "net.yaml").write_text(NET % method)
    made = run(tmp_path / "net.yaml", budget=budget, out=tmp_path / "out")
    size, (row,) = (tmp_path / "out" / "model.onnx").stat().st_size, made.report.budget
    assert row.value == size <= row.limit
    told = made.report.plain()["history"][-1]["used"]
    assert row.limit * told - 150 < size <= row.limit * told  # accuracies and digests take what they may at most
    assert size > 0.985 * row.limit


def test_a_network_whose_operators_will_be_others_is_told_its_frame_alone(tmp_path: Path) -> None:
    deep = "compress.models:resnet_cifar, args: {depths: [2, 2], widths: [4, 6], in_channels: 1}"
    vgg = NET.split("{factory: ")[1].split("}\n")[0]
    text = NET.replace(vgg, deep)
    bytes_of = {}
    for name in ("autogrow", "l1"):
        (tmp_path / "net.yaml").write_text(text % f"{{name: {name}}}")
        bytes_of[name] = plan(tmp_path / "net.yaml", budget="100kB").base.bytes
    upper = plan(tmp_path / "net.yaml", budget="100kparams").base.bytes
    assert bytes_of["l1"] < bytes_of["autogrow"] < upper - 1000
