"""A report as a run makes it, for tests of what reads reports."""

from typing import Any

from compress.budget.limits import Budget, Cost
from compress.export.parts import Costs, Environment, Preprocessing
from compress.export.report import UNWRITTEN, Accuracy, Report, judged, rows_of, train_cost

COUNTED = {"method": "adenel", "macs": 42_000_000, "params": 580_000, "used": 0.9}
STEPS = [
    {
        "method": name,
        "share": share,
        "steps": 1_170 * count,
        "macs_images": 10**13 * count,
        "cost": {"params": 580_000 * count, "macs": 42_000_000, "thop": 42_900_000},
        "val": val,
    }
    for name, share, count, val in (("autogrow", 1.5, 2, 0.9512), ("lwp", None, 1, None))
]
CHECK = {"bytes": 2_400_000, "images": 256, "max_abs": 1e-6, "max_rel": 1e-7, "top1_equal": True}


def build(budget: Any = "43MFLOPs", measured: Any = None, **changes: Any) -> Report:
    """`build(budget, latencies by unit, **changes)`; keywords replace what goes into it."""
    cost = changes.pop("cost", Cost(params=580_000, macs=42_000_000, thop=42_900_000, bytes=2_400_000))
    base = changes.pop("base", Cost(params=14_990_000, macs=313_000_000, thop=314_000_000, bytes=60_000_000))
    rgb = {"mean": (0.5, 0.5, 0.5), "std": (0.2, 0.2, 0.2), "classes": ["cat", "dog"], "baked": False}
    rows = rows_of(Budget.parse(budget), cost, measured or {})
    scores = {key: changes.pop(key, value) for key, value in (("val", 0.934), ("test", 0.931), ("required", None))}
    accuracy = Accuracy.of({"metric": "top-1", **scores})
    outcome, landing = judged(rows, accuracy)
    parts: dict[str, Any] = {
        "schema_version": 2,
        "verdict": outcome,
        "budget": rows,
        "landing": landing,
        "cost": Costs.of_cost(cost),
        "base": Costs.of_cost(base),
        "accuracy": accuracy,
        "train_cost": train_cost(10**14, 9_000_000, base=base, train_images=45_000, epochs=300, name="VGG16"),
        "drift": 3e-7,
        "parity": {name: CHECK for name in ("model.onnx", "model.pt2", "model.safetensors")},
        "preprocessing": Preprocessing.of_inputs([(3, 32, 32)], **rgb),
        "spaces": [{"name": f"conv{i}", "width": 8, "full": 64, "frozen": None} for i in range(13)],
        "steps": [],
        "history": [
            {"event": "seed", "step": 0, **COUNTED, "widths": {"conv0": 8}},
            {"event": "round", "step": 351, **COUNTED, "loss": 0.123456, "val": None},
        ],
        "seeds": {"seed": 0},
        "data": {"name": "cifar10", "counts": {"train": 45_000, "val": 5_000, "test": 10_000}, "digest": "ab"},
        "environment": Environment.here(device="cpu", threads=2),
        "command": "compress run recipes/vgg.yaml",
        "resumed_from": None,
        "seconds": 812.5,
        "notes": ["attention: thop counts 0"],
        "uncounted": (),
        **UNWRITTEN,
    }
    return Report.of(parts | changes)
