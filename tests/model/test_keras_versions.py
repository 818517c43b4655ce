"""The published model in other versions of Keras, each alone in an environment of its own: the same answers there, and
the same model here when they save it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from fmnist_tasks import service
from fmnist_tasks.data.dataset import load_test
from fmnist_tasks.model import h5
from fmnist_tasks.model.fakes import fake_images
from fmnist_tasks.settings import PROJECT
from tests.support.pipeline import Pipeline
from tests.support.requirements import NETWORK, PYTHONS, find_python, require

pytestmark = pytest.mark.exhaustive

UV = PROJECT / ".venv" / "bin" / "uv"
# Seen at most, here and on 3,600 real images and fakes with a model of `standard`: 3.2e-6 and 6.2e-6.
PROBABILITY_TOLERANCE, FAMILIARITY_TOLERANCE = 1e-5, 1e-4

KERAS_PROGRAM = """
import keras, numpy
images = numpy.load("images.npy")
model = keras.models.load_model("model.h5", compile=False)
probabilities, familiarity = model.predict(images, batch_size=500, verbose=0)
numpy.savez("answers.npz", probabilities=probabilities, familiarity=familiarity)
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
model = tensorflow.saved_model.load("saved_model")  # to be kept: it holds the weights
probabilities, familiarity = model.serve(images)
numpy.savez("answers.npz", probabilities=probabilities, familiarity=familiarity)
print(tensorflow.__version__)
"""


@pytest.fixture
def consumer(finished_pipeline: Pipeline, tmp_path: Path) -> Path:
    """A folder with a published model, images of the test split and of other things, and this project's answers."""
    release = service.open_release(finished_pipeline.store, service.in_service(finished_pipeline.store).version)
    real, _ = load_test(finished_pipeline.store, release.manifest["data"])
    fakes = [fake_images(family, real, 100, seed=0) for family in ("uniform noise", "photo textures", "digits")]
    images = np.concatenate([real, *fakes])
    folder = tmp_path / "consumer"
    folder.mkdir()
    (folder / "model.h5").write_bytes(release.files["model.h5"])
    np.save(folder / "images.npy", images[..., None])
    probabilities, familiarity = h5.predict(release.model, images)
    np.savez(folder / "expected.npz", probabilities=probabilities, familiarity=familiarity[:, None])
    return folder


def run_with_packages(folder: Path, python: str, packages: tuple[str, ...], program: str) -> str:
    """What a program prints that has these packages alone."""
    given = [argument for package in packages for argument in ("--with", package)]
    command = [UV, "run", "--no-project", "--isolated", "--quiet", "--python", python, *given, "python", "-c", program]
    environment = {name: value for name, value in os.environ.items() if name != "VIRTUAL_ENV"}
    environment |= {"KERAS_BACKEND": "jax", "UV_SYSTEM_CERTS": "1"}
    ended = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout.split()[-1]


def check_answers(folder: Path) -> None:
    """The answers are those of this project, up to rounding."""
    answers, expected = np.load(folder / "answers.npz"), np.load(folder / "expected.npz")
    for name, tolerance in (("probabilities", PROBABILITY_TOLERANCE), ("familiarity", FAMILIARITY_TOLERANCE)):
        difference = float(np.abs(answers[name] - expected[name]).max())
        print(f"greatest difference in {name}: {difference:.1e}")
        assert answers[name].shape == expected[name].shape
        assert difference <= tolerance  # and no NaN


@pytest.mark.parametrize(
    "packages", [("keras==3.8.0", "jax==0.10.2"), ("keras==3.11.3", "jax==0.10.2"), ("keras", "jax")]
)
def test_keras_3_8_and_newer_give_the_same_answers(packages: tuple[str, ...], consumer: Path) -> None:
    require(NETWORK)
    version = run_with_packages(consumer, sys.executable, (*packages, "h5py"), KERAS_PROGRAM)
    assert version == packages[0].partition("==")[2] or "==" not in packages[0]
    print(f"Keras {version}")
    check_answers(consumer)
    published, rewritten = (h5.load((consumer / name).read_bytes(), name) for name in ("model.h5", "rewritten.h5"))
    images = np.load(consumer / "images.npy")[..., 0]
    for a, b in zip(h5.predict(published, images), h5.predict(rewritten, images), strict=True):
        assert a.tobytes() == b.tobytes()


def test_tensorflow_2_15_reads_an_export(consumer: Path) -> None:
    require(NETWORK, PYTHONS["3.11"])
    subprocess.run([sys.executable, "-c", EXPORT_PROGRAM], cwd=consumer, check=True, capture_output=True)
    python = find_python("3.11")
    assert python is not None
    assert run_with_packages(consumer, python, ("tensorflow-cpu==2.15.1",), TENSORFLOW_PROGRAM) == "2.15.1"
    check_answers(consumer)
