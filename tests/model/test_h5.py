from __future__ import annotations

import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from fmnist_tasks.errors import ModelError
from fmnist_tasks.model import h5


def test_a_saved_model_loads_and_predicts_the_same_bits(saved_model: bytes) -> None:
    images = np.random.default_rng(1).integers(0, 256, (700, 28, 28), dtype=np.uint8)
    first, second = (h5.predict(h5.load(saved_model, "m"), images) for _ in range(2))
    for a, b in zip(first, second, strict=True):
        assert a.tobytes() == b.tobytes()


@pytest.mark.integration
def test_plain_keras_loads_it_without_this_project(saved_model: bytes, tmp_path: Path) -> None:
    (tmp_path / "model.h5").write_bytes(saved_model)
    program = (
        "import keras, numpy, sys\n"
        "model = keras.models.load_model('model.h5', compile=False)\n"
        "probabilities, familiarity = model.predict(numpy.zeros((3, 28, 28, 1), 'uint8'), verbose=0)\n"
        "assert probabilities.shape == (3, 10) and familiarity.shape == (3, 1)\n"
        "assert not any(name.startswith('fmnist') for name in sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, check=True, env=os.environ | {"PYTHONPATH": ""})


@pytest.mark.parametrize("data", [b"", b"\0" * 4096, pickle.dumps({"a": 1})])
def test_what_is_no_model_is_refused(data: bytes) -> None:
    with pytest.raises(ModelError, match=r"m: is no Keras .h5 model"):
        h5.load(data, "m")


def test_a_model_cut_short_is_refused(saved_model: bytes) -> None:
    for length in (100, 5000, len(saved_model) // 2, len(saved_model) - 1):
        with pytest.raises(ModelError, match=r"^m: "):
            h5.load(saved_model[:length], "m")


def test_the_old_keras_is_refused(saved_model: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TF_USE_LEGACY_KERAS", "1")
    with pytest.raises(ModelError, match=r"TF_USE_LEGACY_KERAS is set"):
        h5.load(saved_model, "m")
