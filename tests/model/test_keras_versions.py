"""Other versions of Keras load a released model, give the same predictions, and save it as an equal model.

Each version runs in a separate environment.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from fmnist_tasks.data.dataset import load_test_split
from fmnist_tasks.model import h5
from fmnist_tasks.model.ood.families import make_ood_images
from fmnist_tasks.serving.release import open_release, require_champion
from fmnist_tasks.settings import PROJECT
from tests.support.pipeline import Pipeline
from tests.support.requirements import NETWORK, PYTHONS, find_python, require

pytestmark = pytest.mark.exhaustive

UV = PROJECT / ".venv" / "bin" / "uv"
# Largest differences, also with a model of `standard` on 3,600 images, in distribution and OOD: 3.2e-6 and 6.2e-6.
PROBABILITY_TOLERANCE, OOD_SCORE_TOLERANCE = 1e-5, 1e-4

KERAS_PROGRAM = """
import keras, numpy
images = numpy.load("images.npy")
model = keras.models.load_model("model.h5", compile=False)
probabilities, ood_score = model.predict(images, batch_size=500, verbose=0)
numpy.savez("predictions.npz", probabilities=probabilities, ood_score=ood_score)
model.save("rewritten.h5")
print(keras.__version__)
"""
EXPORT_PROGRAM = """
import keras
model = keras.models.load_model("model.h5", compile=False)
model.export("saved_model")
"""
TENSORFLOW_PROGRAM = """
import numpy, tensorflow
images = numpy.load("images.npy").astype("float32")
model = tensorflow.saved_model.load("saved_model")  # the variable keeps the weights alive
probabilities, ood_score = model.serve(images)
numpy.savez("predictions.npz", probabilities=probabilities, ood_score=ood_score)
print(tensorflow.__version__)
"""


@pytest.fixture
def consumer(finished_pipeline: Pipeline, tmp_path: Path) -> Path:
    """A folder with a released model, test images and OOD images, and this project's predictions."""
    release = open_release(finished_pipeline.store, require_champion(finished_pipeline.store).version)
    test, _ = load_test_split(finished_pipeline.store, release.manifest.dataset)
    ood_images = [
        make_ood_images(family, test, 100, seed=0) for family in ("uniform noise", "photo textures", "digits")
    ]
    images = np.concatenate([test, *ood_images])
    folder = tmp_path / "consumer"
    folder.mkdir()
    (folder / "model.h5").write_bytes(release.files["model.h5"])
    np.save(folder / "images.npy", images[..., None])
    probabilities, ood_scores = h5.predict(release.model, images)
    np.savez(folder / "expected.npz", probabilities=probabilities, ood_score=ood_scores[:, None])
    return folder


def run_with_packages(folder: Path, python: str, packages: tuple[str, ...], program: str) -> str:
    """Run a program with only these packages; return the last word of its output."""
    options = [argument for package in packages for argument in ("--with", package)]
    command = [
        UV,
        "run",
        "--no-project",
        "--isolated",
        "--quiet",
        "--python",
        python,
        *options,
        "python",
        "-c",
        program,
    ]
    environment = {name: value for name, value in os.environ.items() if name != "VIRTUAL_ENV"}
    environment |= {"KERAS_BACKEND": "jax", "UV_SYSTEM_CERTS": "1"}
    result = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout.split()[-1]


def check_predictions(folder: Path) -> None:
    """Assert that the predictions are those of this project, up to rounding."""
    predictions, expected = np.load(folder / "predictions.npz"), np.load(folder / "expected.npz")
    for name, tolerance in (("probabilities", PROBABILITY_TOLERANCE), ("ood_score", OOD_SCORE_TOLERANCE)):
        difference = float(np.abs(predictions[name] - expected[name]).max())
        print(f"largest difference in {name}: {difference:.1e}")
        assert predictions[name].shape == expected[name].shape
        assert difference <= tolerance  # false for NaN too


@pytest.mark.parametrize(
    "packages", [("keras==3.8.0", "jax==0.10.2"), ("keras==3.11.3", "jax==0.10.2"), ("keras", "jax")]
)
def test_keras_3_8_and_newer_give_the_same_predictions(packages: tuple[str, ...], consumer: Path) -> None:
    require(NETWORK)
    version = run_with_packages(consumer, sys.executable, (*packages, "h5py"), KERAS_PROGRAM)
    assert version == packages[0].partition("==")[2] or "==" not in packages[0]
    print(f"Keras {version}")
    check_predictions(consumer)
    released, rewritten = (h5.load_model((consumer / name).read_bytes(), name) for name in ("model.h5", "rewritten.h5"))
    images = np.load(consumer / "images.npy")[..., 0]
    for a, b in zip(h5.predict(released, images), h5.predict(rewritten, images), strict=True):
        assert a.tobytes() == b.tobytes()


def test_tensorflow_2_15_gives_the_same_predictions_from_an_export(consumer: Path) -> None:
    require(NETWORK, PYTHONS["3.11"])
    subprocess.run([sys.executable, "-c", EXPORT_PROGRAM], cwd=consumer, check=True, capture_output=True)
    python = find_python("3.11")
    assert python is not None
    assert run_with_packages(consumer, python, ("tensorflow-cpu==2.15.1",), TENSORFLOW_PROGRAM) == "2.15.1"
    check_predictions(consumer)
