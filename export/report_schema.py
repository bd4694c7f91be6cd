"""The public JSON Schema of report.json: `compress schema report` prints it. No torch."""

from collections.abc import Mapping
from typing import Any

from compress.budget.units import UNITS

SCHEMA_VERSION = 1
PACKAGES = ("numpy", "onnx", "onnxruntime", "safetensors", "thop", "torch", "torchvision")  # whose versions are told


def _object(properties: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "additionalProperties": False,
        "required": sorted(properties),
        "properties": dict(properties),
    } | more


def _list(items: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    return {"type": "array", "items": items} | more


_TEXT = {"type": "string"}
_COUNT = {"type": "integer", "minimum": 0}
_NUMBER = {"type": "number", "minimum": 0}
_SHARE = {"type": "number", "minimum": 0, "maximum": 1}
_MAYBE_SHARE = {"type": ["number", "null"], "minimum": 0, "maximum": 1}
_SCORE, _MAYBE_SCORE = {"type": "number"}, {"type": ["number", "null"]}  # by a metric of the recipe's own
_MAYBE_TEXT = {"type": ["string", "null"]}
_DIGEST = {"type": "string", "pattern": "^[0-9a-f]{64}$"}
_UNIT = {"enum": list(UNITS)}
_ROW = {
    "unit": _UNIT,
    "limit": {"type": "integer", "minimum": 1},
    "value": _COUNT,
    "utilisation": _NUMBER,
    "pass": {"type": "boolean"},
    "level": {"enum": ["error", "warn"]},
    "text": _TEXT,
}
_LATENCY_ROW = _ROW | {  # in nanoseconds; spread: the runs from the 10th to the 90th percentile
    "unit": {"type": "string", "pattern": "^ns@onnxruntime-cpu/[1-9][0-9]{0,2}$"},
    "spread": {"type": "array", "items": _COUNT, "minItems": 2, "maxItems": 2},
    "runs": {"type": "integer", "minimum": 1},
    "processor": _TEXT,
}
_COST = _object({"params": _COUNT, "macs": _COUNT, "thop": _COUNT, "bytes": _COUNT, "memory": _COUNT})
_CELL = {"type": ["number", "string", "boolean", "null", "object"], "additionalProperties": {"type": "number"}}
_CONNECTIONS = _list(  # of a block: which sources each of its layers reads, a row a layer, a column a source
    _object(
        {
            "block": _TEXT,
            "layers": _list(_TEXT),
            "sources": _list(_TEXT),
            "rows": _list(_list({"enum": [0, 1]})),
        }
    )
)
_STEP = _object(
    {
        "method": _TEXT,
        "share": {"type": ["number", "null"], "minimum": 0},  # of the budget, what it aims at; null: nothing special
        "steps": _COUNT,  # of the optimizer
        "macs_images": _COUNT,  # what they cost, as in train_cost
        "cost": _object({"params": _COUNT, "macs": _COUNT, "thop": _COUNT}),  # of the network after it
        "val": _MAYBE_SCORE,  # of the network after it
    }
)
_TRAIN_COST = _object(
    {
        "macs_images": _COUNT,
        "images": _COUNT,
        "share": _NUMBER,
        "baseline": _object({"name": _MAYBE_TEXT, "epochs": _NUMBER, "train_images": _COUNT, "macs_images": _COUNT}),
    }
)
_PREPROCESSING = {
    "layout": {"const": "NCHW"},
    "shape": _list(_COUNT, minItems=3, maxItems=3),
    "range": _list({"type": "number"}, minItems=2, maxItems=2),
    "mean": _list({"type": "number"}),
    "std": _list({"type": "number"}),
    "baked": {"type": "boolean"},
    "classes": _list(_TEXT),
}
_OTHERS = {"others": _list(_object({"name": _TEXT, "shape": _list(_COUNT, minItems=1)}), minItems=1)}  # inputs
SCHEMA: dict[str, Any] = _object(
    {
        "schema_version": {"const": SCHEMA_VERSION},
        "verdict": _object({"code": {"enum": [0, 1]}, "text": _TEXT}),
        "budget": _list({"anyOf": [_object(_ROW), _object(_LATENCY_ROW)]}, minItems=1),
        "landing": _object({"unit": _UNIT, "utilisation": _NUMBER, "left": {"type": "integer"}}),
        "cost": _COST,
        "base": _COST,
        "accuracy": {
            "anyOf": [
                _object({"metric": {"const": "top-1"}, "val": _SHARE, "test": _MAYBE_SHARE, "required": _MAYBE_SHARE}),
                _object(
                    {
                        "metric": {"type": "string", "not": {"const": "top-1"}},
                        "val": _SCORE,
                        "test": _MAYBE_SCORE,
                        "required": _MAYBE_SCORE,
                    }
                ),
            ]
        },
        "train_cost": {"anyOf": [_TRAIN_COST, {"type": "null"}]},  # null: trained elsewhere
        "drift": _NUMBER,
        "parity": {
            "type": "object",
            "additionalProperties": _object(
                {
                    "bytes": _COUNT,
                    "sha256": _DIGEST,
                    "images": _COUNT,
                    "max_abs": _NUMBER,
                    "max_rel": _NUMBER,
                    "top1_equal": {"type": ["boolean", "null"]},
                }
            ),
        },
        "preprocessing": _object(_PREPROCESSING | _OTHERS, required=sorted(_PREPROCESSING)),
        "spaces": _list(_object({"name": _TEXT, "width": _COUNT, "full": _COUNT, "frozen": _MAYBE_TEXT})),
        "steps": _list(_STEP),
        "history": _list(
            {"type": "object", "properties": {"connections": _CONNECTIONS}, "additionalProperties": _CELL}
        ),
        "seeds": {"type": "object", "additionalProperties": {"type": "integer"}},
        "data": _object({"name": _TEXT, "counts": {"type": "object", "additionalProperties": _COUNT}, "digest": _TEXT}),
        "environment": _object(
            {"python": _TEXT, "cpu": _TEXT, "device": _TEXT, "threads": _COUNT} | dict.fromkeys(PACKAGES, _MAYBE_TEXT)
        ),
        "command": _TEXT,
        "resumed_from": {"type": ["integer", "null"], "minimum": 0},
        "seconds": _NUMBER,
        "notes": _list(_TEXT),
    },
    **{"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "compress report"},
)
