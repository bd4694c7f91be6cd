"""Write compress/digits.npz, the data set that ships with the package. It was run once; only this needs scikit-learn.

    pip install scikit-learn && python benchmarks/make_digits.py

Source: "Optical Recognition of Handwritten Digits", E. Alpaydin and C. Kaynak, UCI Machine Learning Repository, 1998,
https://doi.org/10.24432/C50P49, licence CC BY 4.0; the 1,797 images that scikit-learn ships (UCI's test part).
Changed: values 0..16 scaled to 0..255, order shuffled, split into 1000 training, 400 validation and 397 test images.
The originals are in the order of their writers, so an unshuffled split would hold out some writers altogether.
"""

import io
import zipfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import load_digits  # type: ignore[import-untyped]

SIZES = {"train": 1000, "val": 400, "test": 397}
SEED = 0


def stratified(labels: NDArray[np.int64], sizes: list[int], rng: np.random.RandomState) -> list[NDArray[np.int64]]:
    """Deal the indices of `labels` [N] into piles of `sizes`, every class spread over all of them in proportion."""
    shuffled = rng.permutation(len(labels))
    by_class = [shuffled[labels[shuffled] == k] for k in range(10)]
    # Where an image stands within its class, from 0 to 1: sorted by it, any stretch holds all classes in proportion.
    place = np.concatenate([(np.arange(len(of)) + 0.5) / len(of) for of in by_class])
    dealt = np.concatenate(by_class)[np.argsort(place, kind="stable")]
    return [rng.permutation(pile) for pile in np.split(dealt, np.cumsum(sizes)[:-1])]


def main() -> None:
    digits = load_digits()
    images = np.rint(digits.images * (255 / 16)).astype(np.uint8)  # [1797, 8, 8]
    labels = digits.target.astype(np.int64)
    arrays = {}
    for name, index in zip(SIZES, stratified(labels, list(SIZES.values()), np.random.RandomState(SEED)), strict=True):
        arrays[f"x_{name}"], arrays[f"y_{name}"] = images[index], labels[index].astype(np.uint8)
    with zipfile.ZipFile(Path(__file__).parents[1] / "compress" / "training" / "digits.npz", "w") as file:
        for name, array in arrays.items():
            member = io.BytesIO()
            np.save(member, array, allow_pickle=False)
            # A fixed date, where np.savez would write the time: the same bytes every time.
            info = zipfile.ZipInfo(f"{name}.npy", date_time=(1980, 1, 1, 0, 0, 0))
            file.writestr(info, member.getvalue(), zipfile.ZIP_DEFLATED, compresslevel=9)


if __name__ == "__main__":
    main()
