"""A training that is killed goes on from its last checkpoint and ends with the weights of one that never was."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

HERE = Path(__file__).parent
MOMENTS = 4 + 3  # of one epoch, see victim.py
KILLS = 20

pytestmark = pytest.mark.slow


def live(store: Path, moment: int) -> tuple[int | None, str]:
    """One life of the training: the epoch it began with, if it came so far, and its last line if it was not killed."""
    ended = subprocess.run(
        [sys.executable, str(HERE / "victim.py"), str(store), str(moment)],
        env=os.environ | {"PYTHONPATH": str(HERE.parent)},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert ended.returncode == (-signal.SIGKILL if moment else 0), ended.stderr
    lines = ended.stdout.splitlines()
    begun = [int(line.split()[-1]) for line in lines if line.startswith("begins")]
    return (begun[0] if begun else None), ("" if moment else lines[-1])


def test_killed_at_20_random_moments_the_weights_are_those_of_an_undisturbed_training(tmp_path: Path) -> None:
    _, expected = live(tmp_path / "undisturbed", 0)
    # The three moments of the writing of a checkpoint are among them.
    moments = [5, 6, 7, *np.random.default_rng(4).integers(1, 2 * MOMENTS, KILLS - 3, endpoint=True).tolist()]
    done = 0  # epochs whose checkpoint was written
    store = tmp_path / "worker-0"
    store.mkdir()
    for number, moment in enumerate(moments, start=1):
        begun, _ = live(store, moment)
        assert begun == done
        done += moment // MOMENTS
        # The next worker shares nothing with this one but the content of the store.
        store = Path(shutil.move(store, tmp_path / f"worker-{number}"))
    assert 0 < done < 30
    begun, weights = live(store, 0)
    assert begun == done
    assert weights == expected


def test_a_training_that_had_ended_ends_again_alike_without_an_epoch(tmp_path: Path) -> None:
    _, first = live(tmp_path / "store", 0)
    begun, second = live(tmp_path / "store", 0)
    assert begun is None
    assert second == first
