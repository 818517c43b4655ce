"""A training that is killed goes on from its last checkpoint and ends with the weights of one that never was."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.support.killed_training import EPOCHS, MOMENTS, train_until_killed
from tests.support.processes import start_process, wait_for_exit

pytestmark = pytest.mark.integration


def live(store: Path, moment: int, epochs: int = EPOCHS) -> list[str]:
    """What the training prints in one life, which a kill at `moment` ends unless that is 0."""
    said = store.with_suffix(".txt")
    said.unlink(missing_ok=True)
    assert wait_for_exit(start_process(said, train_until_killed, store, moment, epochs), said) == (moment == 0)
    return said.read_text().splitlines()


def figures(name: str, lines: list[str]) -> list[int]:
    return [int(line.split()[-1]) for line in lines if line.startswith(name)]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    store = tmp_path_factory.mktemp("undisturbed")
    return store, live(store, 0)


@pytest.mark.parametrize("kills", [4, pytest.param(20, marks=pytest.mark.exhaustive)])
def test_killed_at_random_moments_the_weights_are_those_of_an_undisturbed_training(
    undisturbed: tuple[Path, list[str]], tmp_path: Path, kills: int
) -> None:
    # The three moments of the writing of a checkpoint are among them.
    moments = [5, 6, 7, *np.random.default_rng(4).integers(1, 2 * MOMENTS, kills - 3, endpoint=True).tolist()]
    done = 0  # epochs whose checkpoint was written
    store = tmp_path / "worker-0"
    store.mkdir()
    for number, moment in enumerate(moments, start=1):
        assert figures("begins", live(store, moment)) == [done]
        done += moment // MOMENTS
        # The next worker shares nothing with this one but the content of the store.
        store = Path(shutil.move(store, tmp_path / f"worker-{number}"))
    assert 0 < done < EPOCHS
    lines = live(store, 0)
    assert figures("begins", lines) == [done]
    assert lines[-1] == undisturbed[1][-1]


def test_a_training_that_had_ended_ends_again_alike_without_an_epoch(undisturbed: tuple[Path, list[str]]) -> None:
    store, first = undisturbed
    second = live(store, 0)
    assert figures("begins", second) == []
    assert second[-1] == first[-1]


@pytest.mark.exhaustive
def test_memory_does_not_grow_over_epochs(tmp_path: Path) -> None:
    held = figures("holds", live(tmp_path / "store", 0, epochs=120))
    assert len(held) == 120
    # The allocator's own arenas fill over the first fifty epochs, by some 25 MiB, and then stay.
    assert np.median(held[-10:]) < np.median(held[60:70]) + 10  # MiB; one state has 3
