"""What the graph reads: the networks of torchvision, and some of timm's, with random weights, by exact counts.

    python benchmarks/coverage.py --out benchmarks/results/coverage.md
    python benchmarks/coverage.py resnet50 timm:ghostnet_100

Of every network: the share of parameters and MACs that is free, what is frozen and why; then, in float64 and with all
numbers redrawn so that outputs say something, how far the outputs move when every free space is widened by a number of
its own, and when a random half of it, silenced first, is cut out. The narrow network must cost what the price says, be
built again from its shapes alone, train for a step, and compute the same as ONNX (onnxruntime, float32).
"""

from __future__ import annotations

import argparse
import copy
import time
import warnings
from collections import Counter
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from evidence import command, machine
from torch import Tensor, nn

from compress.export.onnx import file as onnx_file
from compress.export.translate import to_onnx, to_program
from compress.reading.ghost import flat
from compress.reading.graph import Graph
from compress.reading.measure import measure
from compress.surgery.proof import silence
from compress.surgery.surgeon import Surgeon
from compress.surgery.survey import survey
from compress.surgery.tensors import fit

LIMITS = (1e-10, 1e-10, 1e-4)  # of widening and narrowing in float64, and of ONNX in float32, times the largest output
CLASSIFIERS = [
    "vgg16_bn", "resnet18", "resnet50", "resnext50_32x4d", "wide_resnet50_2", "mobilenet_v2",
    "mobilenet_v3_large", "densenet121", "efficientnet_b0", "mnasnet1_0", "regnet_y_400mf",
    "shufflenet_v2_x1_0", "squeezenet1_0", "googlenet", "inception_v3", "convnext_tiny", "vit_b_16", "swin_t",
]  # fmt: skip
SEGMENTERS = ["fcn_resnet50", "deeplabv3_resnet50"]
TIMM = ["timm:efficientnetv2_rw_t", "timm:ghostnet_100", "timm:repvgg_a0", "timm:convnextv2_atto", "timm:resnest14d",
        "timm:mixer_s32_224", "timm:levit_128s", "timm:hrnet_w18_small"]  # fmt: skip


class Out(nn.Module):
    """The segmentation map of a network that returns a dict."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        """Images [N, 3, H, W] to class scores [N, classes, H, W]."""
        return self.model(x)["out"]


def maker(name: str) -> tuple[Callable[[], nn.Module], tuple[int, ...]]:
    """How to build a network, and the shape of its input."""
    if name.startswith("timm:"):
        import timm  # type: ignore[import-not-found]

        shape = timm.get_pretrained_cfg(name[5:]).input_size
        return (lambda: timm.create_model(name[5:], pretrained=False)), tuple(shape)
    import torchvision.models as zoo

    size = 299 if name == "inception_v3" else 224
    kinds: Any = zoo.segmentation if name in SEGMENTERS else zoo
    options: dict[str, Any] = {"weights_backbone": None} if name in SEGMENTERS else {}
    if name in ("googlenet", "inception_v3"):
        options = {"init_weights": False}  # all numbers are redrawn, and these take a minute
    return (lambda: getattr(kinds, name)(weights=None, **options)), (3, size, size)


def redraw(model: nn.Module, generator: torch.Generator) -> None:
    """Weights that keep the size of activations, and norms, biases and scales that differ from channel to channel."""
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if not tensor.is_floating_point():
            continue
        normal = torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype)
        fan = tensor[0].numel() if tensor.dim() > 1 else 1
        if fan > 1 and tensor.numel() > max(tensor.shape):
            drawn = normal * (2 / fan) ** 0.5
        elif name.endswith(("bias", "running_mean")) or (tensor.dim() > 1 and tensor.shape[0] == 1):
            drawn = normal / 10
        else:
            drawn = 0.75 + torch.rand(tensor.shape, generator=generator, dtype=tensor.dtype) / 2
        tensor.data.copy_(drawn)


def settle(model: nn.Module, images: Tensor) -> None:
    """Statistics of batch norms that nearly fit, as after training: else a deep network says the same of all images."""
    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 1.0
    model.train()
    outputs(model, images)
    model.eval()
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        assert norm.running_var is not None
        norm.running_var *= 0.75 + torch.rand(norm.running_var.shape, dtype=images.dtype) / 2


def woken(model: nn.Module, shape: tuple[int, ...]) -> Tensor:
    """Two images [2, C, H, W] for a network that is turned into float64 here, all its numbers redrawn for them."""
    generator = torch.Generator().manual_seed(0)
    redraw(model.double(), generator)
    axes = len(shape) - 1
    coarse = torch.randn(2, shape[0], *[7] * axes, generator=generator, dtype=torch.float64)  # finer noise averages out
    images = nn.functional.interpolate(coarse * torch.tensor([1.0, 3.0]).view(2, 1, *[1] * axes), shape[1:])
    settle(model, images)
    return images


def outputs(model: nn.Module, images: Tensor) -> Tensor:
    """All that the network returns, in one row for each image."""
    with torch.no_grad():
        return torch.cat([out.flatten(1) for out in flat(model(images))], 1)


def gap(one: Tensor, other: Tensor) -> float:
    """The largest difference, relative to the largest output above 1."""
    return float((one - other).abs().max() / other.abs().max().clamp(min=1.0))


def exported(model: nn.Module, images: Tensor) -> float:
    """How far the ONNX file, as a run writes it, is from the network in float32."""
    program = to_program(model, torch.zeros(2, *images.shape[1:]))
    file = onnx_file.clean(to_onnx(program, ["images"]))
    session = onnxruntime.InferenceSession(file.SerializeToString(), providers=["CPUExecutionProvider"])
    found = session.run(None, {session.get_inputs()[0].name: images.numpy()})[0]
    with torch.no_grad():
        expected = model(images).numpy()
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def trains(model: nn.Module, images: Tensor) -> None:
    """One step forward and backward in training mode; raises where it breaks."""
    model.train()
    loss = torch.stack([out.square().mean() for out in flat(model(images))]).sum()
    loss.backward()  # type: ignore[no-untyped-call]
    if not all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None):
        raise ValueError("a gradient is not finite")
    model.eval()


def kept(graph: Graph, seed: int) -> dict[str, list[int]]:
    """A random half of every free space."""
    chance = np.random.default_rng(seed)
    half = {name: max(width // 2, 1) for name, width in graph.widths.items()}
    return {name: sorted(chance.choice(graph.widths[name], n, replace=False).tolist()) for name, n in half.items()}


def reasons(graph: Graph) -> str:
    """Why spaces are frozen, the operator alone, with how many."""
    why = Counter(
        (space.frozen or "").split(" in ")[0].split(" (")[0] for space in graph.spaces.values() if space.frozen
    )
    return "; ".join(f"{text} ({count})" for text, count in why.most_common())


def row(name: str) -> str:
    """Everything about one network as a row of the table; a failure says what it is."""
    make, shape = maker(name)
    torch.manual_seed(0)
    model = make().eval()
    start = time.process_time()
    graph = survey(model, shape)
    seconds = time.process_time() - start
    base, least = measure(model, shape), graph.price.cost(dict.fromkeys(graph.free, 0))
    shares = [1 - least.params / base.params, 1 - least.macs / base.macs]
    cells = [name, f"{base.params / 1e6:.2f}", *(f"{100 * share:.1f}" for share in shares)]
    cells += [f"{len(graph.free)} / {len(graph.spaces)}", f"{seconds:.0f}"]
    images = woken(model, shape)
    before = outputs(model, images)
    noise = gap(outputs(model, images * (1 + 1e-15)), before)  # of rounding, which a chaotic network makes large

    wide = Surgeon(copy.deepcopy(model), graph)
    for number, space in enumerate(graph.free, 1):
        wide.widen(space, number)
    errors = [gap(outputs(wide.model, images), before)]
    faults = ["price of the wide"] * (measure(wide.model, shape) != wide.graph.price.cost(wide.graph.widths))
    del wide

    keep = kept(graph, 0)
    for space, positions in keep.items():
        silence(model, graph, space, sorted(set(range(graph.widths[space])) - set(positions)))
    settle(model, images)  # half of what every layer reads is gone
    masked = outputs(model, images)
    surgeon = Surgeon(model, graph)
    for space, positions in keep.items():
        surgeon.narrow(space, positions)
    narrow = outputs(model, images)
    errors.append(gap(narrow, masked))
    said = [float((masked[0] - masked[1]).abs().max() / masked.abs().max()), gap(masked, before)]
    faults += ["price of the narrow"] * (measure(model, shape) != graph.price.cost(surgeon.graph.widths))

    fresh = make().double().eval()
    fit(fresh, {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}, surgeon.graph.numbers)
    fresh.load_state_dict(model.state_dict())
    faults += ["built again"] * (not torch.equal(outputs(fresh, images), narrow))
    del fresh

    model.float()
    try:
        errors.append(exported(Out(model) if name in SEGMENTERS else model, images.float()))
    except Exception as error:
        errors.append(float("nan"))
        faults.append(f"export: {str(error).splitlines()[0][:80]}")
    try:
        trains(model, images.float())
    except Exception as error:
        faults.append(f"training: {str(error).splitlines()[0][:80]}")
    faults += ["outputs say nothing"] * (min(said[: 1 + bool(graph.free)]) < 1e-3)
    limits = [max(LIMITS[0], noise), max(LIMITS[1], noise), LIMITS[2]]
    faults += ["not exact"] * any(not error <= limit for error, limit in zip(errors, limits, strict=True))
    holds = "yes" if noise <= LIMITS[0] else f"yes; 1e-15 of the input moves {noise:.0e}"
    cells += [*(f"{error:.0e}" for error in errors), *(f"{value:.2f}" for value in said)]
    return " | ".join(["", *cells, ", ".join(faults) or holds, reasons(graph), ""]).strip()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", default=[*CLASSIFIERS, *SEGMENTERS, *TIMM])
    parser.add_argument("--out", type=Path, default=None)
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    lines = []
    for name in args.names:
        try:
            lines.append(row(name))
        except Exception as error:  # the table says it, and the others are still run
            lines.append(f"| {name} | failed: {type(error).__name__}: {str(error).splitlines()[0][:150]} |")
        print(lines[-1], flush=True)
    others = ("torchvision", "timm", "onnxruntime")
    text = "\n".join(
        [
            "# What the graph reads",
            "",
            "Random weights, all numbers redrawn. Free: share of parameters and MACs that goes when every free",
            "space goes, in %. Survey: seconds of processor time. Wide, narrow: largest change of an output in",
            "float64, relative to the largest one above 1, when every free space is widened by a number of its",
            "own, and when a random half of each, silenced, is cut out. ONNX: largest difference to onnxruntime",
            "in float32, relative to the largest output, of the narrow network. Differ, moved: how far two images",
            "lie apart, and how far silencing moved the outputs (both would be 0 for outputs that say nothing).",
            "Rest holds: the narrow and the wide network cost what the price says, the narrow one is built again",
            "from its shapes and computes the same bit for bit, and trains for one step with finite gradients.",
            "",
            "| network | Mparams | free params | free MACs | free / all spaces | survey, s | wide | narrow | ONNX "
            "| differ | moved | rest holds | frozen |",
            "|---|---|---|---|---|---|---|---|---|---|---|---|---|",
            *lines,
            "",
            f"Command: `{command()}`; timm is no dependency of ours.",
            f"{machine(*(f'{name} {version(name)}' for name in others))}, busy machine.",
            "",
        ]
    )
    if args.out is not None:
        args.out.write_text(text)


def version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


if __name__ == "__main__":
    main()
