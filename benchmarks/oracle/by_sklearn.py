"""skl2onnx and onnxmltools: linear models, nets, kernels and trees; the batch is written as 0."""

from __future__ import annotations

import warnings
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from lightgbm import LGBMRegressor
from onnxmltools import convert_lightgbm
from onnxmltools.convert.common.data_types import FloatTensorType as LightGBMTensor
from skl2onnx import to_onnx
from skl2onnx.common.data_types import FloatTensorType
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC, LinearSVC
from table import Make, Truth

PACKAGES = ("skl2onnx", "scikit_learn", "onnxmltools", "lightgbm")

RANDOM = np.random.default_rng(14)
X, CLASSES, VALUES = RANDOM.random((60, 12)).astype(np.float32), np.arange(60) % 4, RANDOM.random((60, 3))
LABELS = 4  # of the classes: whether a table that a result is looked up in is a parameter is open


def fit(path: Path, *, model: Any, targets: Any, truth: Truth, lists: bool = False) -> Truth:
    """Train on 60 rows of 12 numbers, and write it; `lists` where a classifier must not return a list of dicts."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.fit(X, targets)
        options = {id(model): {"zipmap": False}} if lists else None
        inputs = [("x", FloatTensorType([None, 12]))]
        onnx.save(to_onnx(model, initial_types=inputs, options=options, target_opset=17), path)
    return truth


def named(macs: int, params: int, how: str, *operators: str, labels: bool = False) -> Truth:
    """Counted, or refused by the name of an operator of ai.onnx.ml."""
    word = "|".join([*operators, r"ai\.onnx\.ml"])
    also = {"params": [params + LABELS]} if labels else {}
    return Truth(macs, params, how, either={"MACs": word, "params": word}, also=also)


def vectors(path: Path) -> Truth:
    """A kernel machine: every row is compared with every support vector."""
    model = SVC()
    fit(path, model=model, targets=CLASSES, truth=Truth(None, None, ""), lists=True)
    least = int(model.support_vectors_.size) - 1
    how = "support vectors x 12 at least, whatever a kernel costs"
    return Truth(None, None, how, never={"MACs": least, "params": least})


def neighbours(path: Path) -> Truth:
    never = {"params": X.size - 1}
    truth = Truth(None, None, "all rows are stored; their distances are no products", never=never)
    return fit(path, model=KNeighborsClassifier(3), targets=CLASSES, truth=truth, lists=True)


def forest(path: Path) -> Truth:
    model = RandomForestClassifier(3, max_depth=3, random_state=0)
    fit(path, model=model, targets=CLASSES, truth=Truth(None, None, ""), lists=True)
    nodes = sum(tree.tree_.node_count for tree in model.estimators_)
    never = {"MACs": 1, "params": nodes - 1}
    return Truth(
        None, None, "a number for each inner node and leaf at least; nobody can vouch for no MACs", never=never
    )


def boosted(path: Path) -> Truth:
    """Three trees of LightGBM, 5 leaves and 4 thresholds each."""
    model = LGBMRegressor(n_estimators=3, num_leaves=5, min_child_samples=5, verbose=-1).fit(X, VALUES[:, 0])
    onnx.save(convert_lightgbm(model, initial_types=[("x", LightGBMTensor([None, 12]))]), path)
    return Truth(None, None, "3 x (5 + 4) numbers at least", never={"MACs": 1, "params": 3 * (5 + 4) - 1})


MLP = 12 * 16 + 16 * 8 + 8 * 4
LINEAR = "LinearClassifier"
FILES: dict[str, Make] = {
    "mlp": partial(
        fit, model=MLPClassifier(hidden_layer_sizes=(16, 8), max_iter=5, random_state=0), targets=CLASSES, lists=True,
        truth=named(MLP, MLP + 28, "12 x 16, 16 x 8, 8 x 4; 28 biases", "ArrayFeatureExtractor", labels=True),
    ),
    "logistic": partial(
        fit, model=LogisticRegression(max_iter=20), targets=CLASSES, lists=True,
        truth=named(48, 52, "12 x 4; 4 biases", LINEAR, "Normalizer", labels=True),
    ),
    "scaled_logistic": partial(
        fit, model=make_pipeline(StandardScaler(), LogisticRegression(max_iter=20)), targets=CLASSES, lists=True,
        truth=named(48, 52 + 24, "12 x 4; 4 biases, 12 means, 12 scales", LINEAR, "Scaler", "Normalizer", labels=True),
    ),
    "linear": partial(
        fit, model=LinearRegression(), targets=VALUES, truth=named(36, 39, "12 x 3; 3 biases", "LinearRegressor"),
    ),
    "pca": partial(
        fit, model=make_pipeline(PCA(5), LinearRegression()), targets=VALUES,
        truth=named(60 + 15, 60 + 12 + 15 + 3, "12 x 5 and 5 x 3; 12 means, 3 biases", "LinearRegressor"),
    ),
    "means": partial(
        fit, model=KMeans(3, n_init=1, random_state=0), targets=CLASSES,
        truth=Truth(36, 39, "12 x 3 products with the centres; their squares are stored too"),
    ),
    "linear_vectors": partial(
        fit, model=LinearSVC(), targets=CLASSES, truth=named(48, 52, "12 x 4; 4 biases", LINEAR, labels=True),
    ),
    "vectors": vectors,
    "neighbours": neighbours,
    "forest": forest,
    "boosted": boosted,
}  # fmt: skip
