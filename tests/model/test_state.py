"""The state of training, to and from bytes, which anyone with write access to the store can forge."""

from __future__ import annotations

import io
import zipfile

import keras
import numpy as np
import pytest

from fmnist_tasks.errors import TrainingError
from fmnist_tasks.model.state import Progress, pack, unpack


def build_model() -> tuple[keras.Model, keras.Optimizer]:
    image = keras.Input((4,), name="image")
    model = keras.Model(image, keras.layers.Dense(2, name="dense")(image))
    optimizer = keras.optimizers.Adam()
    optimizer.build(model.trainable_variables)
    return model, optimizer


def test_a_state_is_restored_unchanged() -> None:
    model, optimizer = build_model()
    progress = Progress({"val_loss": [0.5], "loss": [0.25]}, model.get_weights())
    state = pack(model, optimizer, progress)
    other, other_optimizer = build_model()
    restored = unpack(state, other, other_optimizer)
    assert pack(other, other_optimizer, restored) == state
    assert restored.curves == progress.curves


def test_a_state_that_unpacks_to_more_than_its_own_size_takes_no_memory() -> None:
    """400 kB would unpack to 400 MB of zeros."""
    model, optimizer = build_model()
    state = pack(model, optimizer, Progress({"val_loss": [0.5]}, model.get_weights()))
    bomb = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(state)) as original, zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in set(original.namelist()) - {"model/0.npy"}:
            archive.writestr(name, original.read(name))
        with archive.open("model/0.npy", "w") as member:
            header = {"descr": "<f4", "fortran_order": False, "shape": (100 << 20,)}
            np.lib.format.write_array_header_1_0(member, header)
            for _ in range(400):
                member.write(bytes(1 << 20))
    with pytest.raises(
        TrainingError,
        match=r"a checkpoint is compressed, but this project compresses none\. Delete the checkpoints of this run",
    ):
        unpack(bomb.getvalue(), model, optimizer)


@pytest.mark.parametrize("state", [b"", b"PK", b"not a state"])
def test_bytes_that_are_not_a_state_are_refused(state: bytes) -> None:
    with pytest.raises(TrainingError, match=r"a checkpoint is not an \.npz file"):
        unpack(state, *build_model())
