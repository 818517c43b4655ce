"""A killed training resumes from its last checkpoint, and ends with the weights of an uninterrupted training."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.support.killed_training import EPOCHS, MOMENTS, train_until_killed
from tests.support.processes import start_process, wait_for_exit

pytestmark = pytest.mark.integration


def run_training(store: Path, moment: int, epochs: int = EPOCHS) -> list[str]:
    """Run the training until it is killed at `moment`, or to the end if that is 0; return the lines that it prints."""
    output = store.with_suffix(".txt")
    output.unlink(missing_ok=True)
    assert wait_for_exit(start_process(output, train_until_killed, store, moment, epochs), output) == (moment == 0)
    return output.read_text().splitlines()


def find_values(name: str, lines: list[str]) -> list[int]:
    return [int(line.split()[-1]) for line in lines if line.startswith(name)]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    store = tmp_path_factory.mktemp("uninterrupted")
    return store, run_training(store, 0)


@pytest.mark.parametrize("kills", [4, pytest.param(20, marks=pytest.mark.exhaustive)])
def test_a_training_killed_at_random_moments_ends_with_the_same_weights(
    uninterrupted: tuple[Path, list[str]], tmp_path: Path, kills: int
) -> None:
    # The first three are the moments of writing a checkpoint.
    moments = [5, 6, 7, *np.random.default_rng(4).integers(1, 2 * MOMENTS, kills - 3, endpoint=True).tolist()]
    saved = 0  # epochs with a checkpoint
    store = tmp_path / "worker-0"
    store.mkdir()
    for number, moment in enumerate(moments, start=1):
        assert find_values("begins", run_training(store, moment)) == [saved]
        saved += moment // MOMENTS
        # The next worker shares only the content of the store with this one.
        store = Path(shutil.move(store, tmp_path / f"worker-{number}"))
    assert 0 < saved < EPOCHS
    lines = run_training(store, 0)
    assert find_values("begins", lines) == [saved]
    assert lines[-1] == uninterrupted[1][-1]


def test_a_completed_training_repeats_no_epoch(uninterrupted: tuple[Path, list[str]]) -> None:
    store, first = uninterrupted
    second = run_training(store, 0)
    assert find_values("begins", second) == []
    assert second[-1] == first[-1]


@pytest.mark.exhaustive
def test_memory_does_not_grow_over_epochs(tmp_path: Path) -> None:
    memory = find_values("memory", run_training(tmp_path / "store", 0, epochs=120))
    assert len(memory) == 120
    # The allocator's arenas grow by about 25 MiB over the first fifty epochs, then no more.
    assert np.median(memory[-10:]) < np.median(memory[60:70]) + 10  # MiB; a state has 3
