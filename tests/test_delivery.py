"""What a finished network could not be used for is told before it is trained, in a sentence."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

from compress._run import run
from compress.delivery import check_output
from compress.errors import UsageError
from compress.recipe import settings
from compress.recipe.file import read
from compress.training.data import load


class Net(nn.Module):
    """A small net for digits, whose output is changed at the end."""

    def __init__(self, end: Callable[[Tensor], Any] = lambda out: out, *, track: bool = True) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(1, 4, 3), nn.Linear(4 * 36, 10)
        self.norm = nn.BatchNorm2d(4, track_running_stats=track)
        self.end = end

    def forward(self, x: Tensor) -> Any:
        return self.end(self.head(functional.relu(self.norm(self.conv(x))).flatten(1)))


DIGITS = load(settings.Data(), batch=8, seed=0, device=torch.device("cpu"))


@pytest.mark.parametrize(
    ("net", "says"),
    [
        (
            Net(lambda out: {"out": out}),
            r"output is a dict for one image, but digits has 10 classes; it must be one tens",
        ),
        (Net(lambda out: (out, out)), "output is a tuple for one image, but digits has 10 classes"),
        (Net(lambda out: out[:, :9]), r"output is \[1, 9\] for one image, but digits has 10 classes"),
        (Net(lambda out: out.view(1, 10)), r"cannot be run on one input, or on two together \(RuntimeError: shape"),
        (Net(functional.dropout), r"output for an image changes with the rest of its batch, or by chance"),
        (Net(lambda out: out.view(len(out), 10)), r"cannot be traced by torch.export: .* as len\(x\) and int\(\) do"),
        (
            Net(track=False),
            r"rest of its batch: norm has no running statistics; build it with track_running_stats=True",
        ),
    ],
)
def test_an_output_that_cannot_be_deployed_is_refused(net: Net, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        check_output(net, DIGITS)
    assert net.training


def test_an_output_that_is_each_images_own_passes() -> None:
    for net in (Net(), Net(lambda out: functional.dropout(out, training=False)), Net(lambda out: out * 0)):
        check_output(net, DIGITS)
        assert net.training


TINY = """
model: {factory: compress.models:vgg, args: {widths: [4, 6], pools: [1], size: 12, classes: 2}}
data: {source: folder, path: images, size: 12, val: 6}
train: {batch: 6, ema: 0}
method: {name: l1, tune: {epochs: 4}}
budget: 60%
"""


def fed(meta: dict[str, Any], path: Path, reader: str) -> np.ndarray[Any, np.dtype[np.float32]]:
    """What a program that knows nothing but the metadata makes of a raw file [1, C, H, W]."""
    picture = Image.open(path)
    channels, height, width = meta["shape"]
    if meta["resize"] is not None:
        assert meta["resize"] == "the shorter side to the size, bilinear with antialiasing, then the middle"
        scale = height / min(picture.size)
        wide, high = round(picture.width * scale), round(picture.height * scale)
        picture = picture.resize((wide, high), Image.Resampling.BILINEAR)
        left, top = (wide - width) // 2, (high - height) // 2
        picture = picture.crop((left, top, left + width, top + height))
    pixels = np.asarray(picture)
    if reader == "opencv":
        pixels = pixels[..., ::-1]  # as cv2.imread returns them
        pixels = pixels[..., ::-1] if meta["colours"] == "RGB" else pixels
    assert meta["layout"] == "NCHW"
    values = pixels.astype(np.float32).transpose(2, 0, 1) / 255 * meta["range"][1]
    mean, std = (np.array(meta[key], np.float32).reshape(channels, 1, 1) for key in ("mean", "std"))
    return (values if meta["baked"] else (values - mean) / std)[None].astype(np.float32)


@pytest.mark.parametrize("baked", [False, True])
def test_the_metadata_of_the_file_says_how_raw_pictures_become_its_input(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, baked: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    draw = np.random.default_rng(0)
    for split, many in (("train", 18), ("val", 6)):
        for at in range(many):
            colour = np.array([200, 60, 20] if at % 2 else [20, 60, 200])
            noise = draw.integers(0, 50, (int(draw.integers(13, 30)), int(draw.integers(13, 30)), 3))
            path = Path("images") / split / ("red" if at % 2 else "blue") / f"{at:02}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray((colour + noise).clip(0, 255).astype(np.uint8)).save(path)
    Path("r.yaml").write_text(TINY + f"export: {{bake_preprocessing: {str(baked).lower()}}}\n")
    made = run("r.yaml", out="out")
    model = onnx.load("out/model.onnx")
    meta = json.loads(next(entry.value for entry in model.metadata_props if entry.key == "compress.preprocessing"))
    assert meta == made.report.plain()["preprocessing"]
    session = onnxruntime.InferenceSession("out/model.onnx", providers=["CPUExecutionProvider"])
    paths = sorted(Path("images/val").glob("*/*.png"))
    data = load(read("r.yaml", {}, None).data, batch=6, seed=0, device=torch.device("cpu"), root=Path())
    images = data.raw("val", 6)
    assert isinstance(images, torch.Tensor)
    mean, std = (torch.tensor(numbers).view(1, 3, 1, 1) for numbers in (data.mean, data.std))
    ours = images.float() if baked else (images.float() / 255 - mean) / std
    expected = session.run(None, {"images": ours.numpy()})[0]
    for reader in ("pil", "opencv"):
        outputs = np.concatenate([session.run(None, {"images": fed(meta, path, reader)})[0] for path in paths])
        np.testing.assert_allclose(outputs, expected, atol=1e-4)
    text = Path("out/report.md").read_text()
    assert "red, green, blue (OpenCV reads them the other way round)" in text
    assert "the shorter side to the size, bilinear with antialiasing, then the middle" in text
