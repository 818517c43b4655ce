"""Two real datasets in forms in which users have them: handwritten digits, and patches of colour photographs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

PHOTOGRAPHS = ("astronaut", "chelsea", "coffee", "hubble_deep_field", "ihc", "motorcycle_left", "retina", "rocket")
_SIDE = 32  # of a patch, pixels
_CELL = 48  # side of the areas that belong to training or to test as a whole


def write_digits(folder: Path) -> Path:
    """Write scikit-learn's digits as `.npz`: 1,797 images of 8 x 8 pixels, a third of them for tests."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    images = np.round(digits.images * (255 / 16)).astype(np.uint8)
    x_train, x_test, y_train, y_test = train_test_split(
        images, digits.target, test_size=1 / 3, random_state=0, stratify=digits.target
    )
    path = folder / "digits.npz"
    np.savez_compressed(path, x_train=x_train, y_train=y_train, x_test=x_test, y_test=y_test)
    return path


def write_photo_patches(folder: Path, train: int = 400, test: int = 80) -> Path:
    """Write patches of scikit-image's photographs, one class each, as PNG files in `train/CLASS/` and `test/CLASS/`.

    A photograph is divided into cells, of which a third is for tests: no pixel is in both splits.
    """
    from skimage import data

    random = np.random.default_rng(0)
    root = folder / "patches"
    for name in PHOTOGRAPHS:
        photograph = np.asarray(Image.open(Path(data.__file__).parent / _find_file(name)).convert("RGB"))
        rows, columns = (size // _CELL for size in photograph.shape[:2])
        cells = random.permutation(rows * columns)
        for split, own, count in (("test", cells[: len(cells) // 3], test), ("train", cells[len(cells) // 3 :], train)):
            (root / split / name).mkdir(parents=True)
            for number in range(count):
                cell = int(random.choice(own))
                top, left = (_CELL * part + random.integers(_CELL - _SIDE) for part in divmod(cell, columns))
                patch = photograph[top : top + _SIDE, left : left + _SIDE]
                Image.fromarray(patch).save(root / split / name / f"{number}.png")
    return root


def _find_file(name: str) -> str:
    return f"{name}.jpg" if name in {"hubble_deep_field", "retina", "rocket"} else f"{name}.png"
