"""The state of a training, to and from bytes that anybody with the right to write the store may have made."""

from __future__ import annotations

import io
import zipfile

import keras
import numpy as np
import pytest

from fmnist_tasks.errors import TrainingError
from fmnist_tasks.model.state import Progress, pack, unpack


def build() -> tuple[keras.Model, keras.Optimizer]:
    image = keras.Input((4,), name="image")
    model = keras.Model(image, keras.layers.Dense(2, name="dense")(image))
    optimizer = keras.optimizers.Adam()
    optimizer.build(model.trainable_variables)
    return model, optimizer


def test_a_state_comes_back_as_it_was() -> None:
    model, optimizer = build()
    progress = Progress({"val_loss": [0.5], "loss": [0.25]}, model.get_weights())
    state = pack(model, optimizer, progress)
    other, other_optimizer = build()
    found = unpack(state, other, other_optimizer)
    assert pack(other, other_optimizer, found) == state
    assert found.curves == progress.curves


def test_a_state_that_unpacks_to_more_than_its_own_size_takes_no_memory() -> None:
    """400 kB of zeros would become 400 MB."""
    model, optimizer = build()
    state = pack(model, optimizer, Progress({"val_loss": [0.5]}, model.get_weights()))
    bomb = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(state)) as honest, zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in set(honest.namelist()) - {"model/0.npy"}:
            archive.writestr(name, honest.read(name))
        with archive.open("model/0.npy", "w") as member:
            header = {"descr": "<f4", "fortran_order": False, "shape": (100 << 20,)}
            np.lib.format.write_array_header_1_0(member, header)
            for _ in range(400):
                member.write(bytes(1 << 20))
    with pytest.raises(TrainingError, match=r"unpacks to more than its own size.*Delete the checkpoints of this run"):
        unpack(bomb.getvalue(), model, optimizer)


@pytest.mark.parametrize("state", [b"", b"PK", b"no state"])
def test_what_is_no_state_is_refused(state: bytes) -> None:
    with pytest.raises(TrainingError, match=r"a checkpoint: is no \.npz"):
        unpack(state, *build())
