"""What the graph makes of a hundred networks that people bring: classifiers, segmenters, video, backbones of detectors.

    python benchmarks/architectures.py            runs what has no row yet, and writes the page
    python benchmarks/architectures.py resnet50 timm:ghostnet_100 smp:Unet
    python benchmarks/architectures.py --again    reads every network anew: its seconds, and what is free

Of every network: seconds of reading (processor time), the share of parameters and MACs that is free, how far outputs
move in float64 when every free space is widened and when a random half of each, silenced first, is cut out (`coverage`
does more, of fewer), how much of 50 % of its MACs the widths take that are landed on, counted on the narrow network by
three counters, and whether Torch-Pruning prunes it by half (layer by layer, the last one kept). Rows are in
architectures.jsonl, each written as it ends. timm, segmentation-models-pytorch and Torch-Pruning are no dependencies.
"""

from __future__ import annotations

import argparse
import copy
import json
import signal
import statistics
import time
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from coverage import Out, gap, kept, outputs, woken
from evidence import machine
from torch import nn

from compress.budget.landing import land
from compress.budget.limits import Budget
from compress.errors import one_line
from compress.reading.graph import Graph
from compress.reading.measure import measure
from compress.surgery.proof import silence
from compress.surgery.surgeon import Surgeon
from compress.surgery.survey import survey

RESULTS = Path(__file__).parent / "results"
PATIENCE = 60  # seconds for Torch-Pruning
EXACT = 1e-9  # of the largest output; where rounding alone moves more, that
FAMILIES = {
    "torchvision": """
        alexnet vgg16_bn resnet18 resnet50 resnext50_32x4d wide_resnet50_2 mobilenet_v2 mobilenet_v3_large densenet121
        efficientnet_b0 efficientnet_v2_s mnasnet1_0 regnet_y_400mf regnet_x_400mf shufflenet_v2_x1_0 squeezenet1_0
        googlenet inception_v3 convnext_tiny vit_b_16 swin_t swin_v2_t maxvit_t""",
    "segmentation": "fcn_resnet50 deeplabv3_resnet50 deeplabv3_mobilenet_v3_large lraspp_mobilenet_v3_large",
    "video": "r3d_18 mc3_18 r2plus1d_18 s3d",
    "detection": "fpn:resnet50 fpn:mobilenet_v3_large ssd:mobilenet_v3_large",
    "timm": """
        ghostnet_100 ghostnetv2_100 repvgg_a0 convnextv2_atto resnest14d mixer_s32_224 levit_128s hrnet_w18_small
        res2net50_26w_4s rexnet_100 cspresnet50 cspdarknet53 focalnet_tiny_srf efficientnetv2_rw_t
        tf_efficientnet_lite0 mobilenetv4_conv_small mobilenetv3_small_100 mobileone_s0 fastvit_t8 efficientformer_l1
        efficientformerv2_s0 edgenext_small poolformer_s12 caformer_s18 convformer_s18 pit_ti_224 deit_tiny_patch16_224
        cait_xxs24_224 xcit_nano_12_p16_224 crossvit_tiny_240 mobilevit_s mobilevitv2_050 pvt_v2_b0 twins_svt_small
        nest_tiny swin_tiny_patch4_window7_224 visformer_tiny convit_tiny inception_next_tiny dla34 dpn68 skresnet18
        seresnet18 ecaresnet26t resnetv2_50 nfnet_l0 regnetz_b16 gernet_s selecsls42b vovnet39a ese_vovnet19b_dw
        xception41 inception_v4 tresnet_m hardcorenas_a tinynet_e lcnet_050 semnasnet_075 fbnetc_100 repvit_m0_9
        starnet_s1 shvit_s1 hgnet_tiny hgnetv2_b0 gmlp_s16_224 resmlp_12_224 davit_tiny tiny_vit_5m_224
        mambaout_femto""",
    "smp": "Unet UnetPlusPlus FPN PSPNet DeepLabV3Plus Linknet MAnet PAN UPerNet Segformer",
}


def names() -> list[str]:
    """All of them, by the family as a prefix where it needs one."""
    prefixed = {"timm": "timm:", "smp": "smp:"}
    return [prefixed.get(family, "") + name for family, listed in FAMILIES.items() for name in listed.split()]


def made(name: str) -> tuple[nn.Module, tuple[int, ...]]:
    """A network with new weights, and the shape of its input."""
    import torchvision.models as zoo

    kind, _, rest = name.rpartition(":")
    options: dict[str, Any] = {"weights": None}
    if kind == "timm":
        import timm  # type: ignore[import-not-found]

        return timm.create_model(rest, pretrained=False), tuple(timm.get_pretrained_cfg(rest).input_size)
    if kind == "smp":
        import segmentation_models_pytorch as smp  # type: ignore[import-not-found]

        return getattr(smp, rest)(encoder_name="resnet18", encoder_weights=None, classes=3), (3, 128, 128)
    if kind == "ssd":
        return zoo.detection.ssdlite320_mobilenet_v3_large(**options, weights_backbone=None).backbone, (3, 320, 320)
    if kind == "fpn":
        from torchvision.models.detection import backbone_utils

        norm = nn.BatchNorm2d
        if rest == "resnet50":
            built = backbone_utils.resnet_fpn_backbone(
                backbone_name=rest, norm_layer=norm, trainable_layers=5, **options
            )
        else:
            built = backbone_utils.mobilenet_backbone(rest, fpn=True, norm_layer=norm, trainable_layers=6, **options)
        return built, (3, 224, 224)
    if name in FAMILIES["segmentation"].split():
        return Out(getattr(zoo.segmentation, name)(**options, weights_backbone=None)), (3, 224, 224)
    if name in FAMILIES["video"].split():
        return getattr(zoo.video, name)(**options), (3, 16, 224, 224) if name == "s3d" else (3, 8, 112, 112)
    if name in ("googlenet", "inception_v3"):
        options["init_weights"] = False  # all numbers are redrawn, and these take a minute
    return getattr(zoo, name)(**options), (3, 299, 299) if name == "inception_v3" else (3, 224, 224)


def looked(name: str) -> tuple[nn.Module, tuple[int, ...], Graph, dict[str, Any]]:
    """One network, its graph, and what reading it says."""
    torch.manual_seed(0)
    model, shape = made(name)
    start = time.process_time()
    graph = survey(model.eval(), shape)
    found: dict[str, Any] = {"name": name, "seconds": round(time.process_time() - start, 1)}
    base, least = graph.price.cost(graph.widths), graph.price.cost(dict.fromkeys(graph.free, 0))
    found |= {"params": base.params, "macs": base.macs, "free": len(graph.free), "spaces": len(graph.spaces)}
    found |= {"free_params": 1 - least.params / base.params, "free_macs": 1 - least.macs / max(base.macs, 1)}
    reasons = Counter((space.frozen or "")[:90] for space in graph.spaces.values() if space.frozen)
    return model, shape, graph, found | {"frozen": reasons.most_common(4)}


def row(name: str) -> dict[str, Any]:
    """What is found out about one network."""
    model, shape, graph, found = looked(name)
    found["torch_pruning"] = rival(copy.deepcopy(model), shape)
    try:
        found["landed"] = landed(copy.deepcopy(model), shape, graph)
    except Exception as error:
        found["landed"] = one_line(error)[:120]
    found |= exactness(model, shape, graph)
    return found


def landed(model: nn.Module, shape: tuple[int, ...], graph: Graph) -> float:
    """The share of half of its MACs that is landed on, counted anew; negative where that was not foretold."""
    budget = Budget.parse(f"{measure(model, shape).macs // 2}MACs")
    start = dict.fromkeys(graph.free, 1)
    if not graph.free or not budget.holds(graph.price.cost(start)):
        raise ValueError("what is frozen takes more than half")
    widths = land(graph.price, start, graph.widths, budget, ceiling=graph.widths)
    surgeon = Surgeon(model, graph)
    surgeon.resize(widths)
    cost = measure(model, shape)
    return budget.utilisation(cost) * (1 if cost == graph.price.cost(widths) else -1)


def exactness(model: nn.Module, shape: tuple[int, ...], graph: Graph) -> dict[str, float]:
    """How far outputs move in float64, all numbers redrawn: by rounding, when it is widened, when it is narrowed."""
    images = woken(model, shape)
    before = outputs(model, images)
    noise = gap(outputs(model, images * (1 + 1e-15)), before)
    wide, narrow = Surgeon(copy.deepcopy(model), graph), Surgeon(copy.deepcopy(model), graph)
    for number, space in enumerate(graph.free, 1):
        wide.widen(space, number)
    widened = gap(outputs(wide.model, images), before)
    del wide
    for space, positions in kept(graph, 0).items():
        gone = sorted(set(range(graph.widths[space])) - set(positions))
        for each in (model, narrow.model):
            silence(each, graph, space, gone)
    masked = outputs(model, images)
    for space, positions in kept(graph, 0).items():
        narrow.narrow(space, positions)
    return {"noise": noise, "wide": widened, "narrow": gap(outputs(narrow.model, images), masked)}


def rival(model: nn.Module, shape: tuple[int, ...]) -> str:
    """What Torch-Pruning makes of it: the share of MACs that it leaves at half of the channels, or what it says."""
    import torch_pruning as tp  # type: ignore[import-not-found]

    example = torch.randn(1, *shape)
    signal.signal(signal.SIGALRM, _too_long)
    signal.alarm(PATIENCE)
    try:
        last = [module for module in model.modules() if isinstance(module, nn.Linear)][-1:]
        importance = tp.importance.MagnitudeImportance(p=2)
        pruner = tp.pruner.MetaPruner(model, example, importance=importance, pruning_ratio=0.5, ignored_layers=last)
        before, _ = tp.utils.count_ops_and_params(model, example)
        pruner.step()
        after, _ = tp.utils.count_ops_and_params(model, example)
        with torch.no_grad():
            model(example)
    except Exception as error:
        return one_line(error)[:120]
    finally:
        signal.alarm(0)
    return f"{after / before:.2f}"


def _too_long(*_: object) -> None:
    raise TimeoutError(f"not done in {PATIENCE} s")


def page(rows: list[dict[str, Any]]) -> str:
    """The table, and what it comes to."""
    read = [one for one in rows if "error" not in one]
    exact = [one for one in read if max(one["wide"], one["narrow"]) <= max(EXACT, one["noise"])]
    seconds = sorted(one["seconds"] for one in read)
    ran = [one for one in rows if one.get("torch_pruning", "")[:1].isdigit()]
    landings = [one["landed"] for one in read if isinstance(one["landed"], float)]
    left = [name for name in names() if name not in {one["name"] for one in rows}]
    text = [
        "# A hundred networks",
        "",
        *(line for line in (__doc__ or "").splitlines()[6:11]),
        "",
        f"{len(rows)} networks: {len(read)} are read, {len(exact)} of them exact ({EXACT:.0e} or rounding), "
        f"{len(landings)} landed on half of their MACs, at the least {100 * min(map(abs, landings)):.2f} % of it; "
        f"{sum(one < 0 for one in landings)} cost something else than foretold. Seconds: median "
        f"{statistics.median(seconds):.1f}, most {seconds[-1]:.0f}. Torch-Pruning prunes {len(ran)}."
        + (f" Not run yet: {', '.join(left)}." if left else ""),
        "",
        "| network | Mparams | GMACs | free params, % | free MACs, % | free / all spaces | s | wide | narrow "
        "| of 50 % MACs, % | Torch-Pruning: MACs left | frozen |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for one in rows:
        if "error" in one:
            text.append(f"| {one['name']} | {one['error']} | | | | | | | | | | |")
            continue
        frozen = "; ".join(f"{why} ({n})" for why, n in one["frozen"] if "model's output" not in why)
        used = f"{100 * abs(one['landed']):.2f}" if isinstance(one["landed"], float) else one["landed"]
        cells = [one["name"], f"{one['params'] / 1e6:.2f}", f"{one['macs'] / 1e9:.2f}"]
        cells += [
            f"{100 * one['free_params']:.1f}",
            f"{100 * one['free_macs']:.1f}",
            f"{one['free']} / {one['spaces']}",
        ]
        cells += [f"{one['seconds']:.1f}", f"{one['wide']:.0e}", f"{one['narrow']:.0e}", used]
        text.append("| " + " | ".join([*cells, one["torch_pruning"], frozen]).replace("\n", " ") + " |")
    text += [
        "",
        f"Command: `python benchmarks/architectures.py`. {machine()}; busy, so seconds are an upper bound.",
        "",
    ]
    return "\n".join(text)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", default=names())
    parser.add_argument("--again", action="store_true", help="read networks anew that have their row")
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    file = RESULTS / "architectures.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []
    for one in rows if args.again else []:
        if one["name"] in args.names and "error" not in one:
            one |= looked(one["name"])[3]
            print(one["name"], one["seconds"], one["free"], flush=True)
    if args.again:
        file.write_text("".join(json.dumps(one) + "\n" for one in rows))
    for name in args.names:
        if name in {one["name"] for one in rows}:
            continue
        try:
            found = row(name)
        except Exception as error:  # the table says it, and the others are still run
            found = {"name": name, "error": one_line(error)[:120]}
        rows.append(found)
        print(json.dumps(found), flush=True)
        with file.open("a") as opened:
            opened.write(json.dumps(found) + "\n")
    order = names()
    rows.sort(key=lambda one: order.index(one["name"]) if one["name"] in order else len(order))
    (RESULTS / "architectures.md").write_text(page(rows))


if __name__ == "__main__":
    main()
