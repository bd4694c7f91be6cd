"""What a finished network could not be used for is told before it is trained, in a sentence."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from compress.delivery import check_output
from compress.errors import UsageError
from compress.recipe import settings
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
