"""The finished run that tests copy is created once per cache key, complete, and cached as long as it is used."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fmnist_tasks.settings import PROJECT
from tests.support import finished_run
from tests.support.finished_run import ChangedSourcesError, provide_home

DAY = 24 * 3600  # seconds


def create_home(home: Path) -> None:
    (home / "store").mkdir(parents=True)
    (home / "store" / "champion").write_text("first")


def refuse_to_create(home: Path) -> None:
    raise AssertionError("created again")


def provide(cache: Path, key: str = "a", make: finished_run.Maker = create_home, key_afterwards: str = "") -> Path:
    return provide_home(cache, "finished", key, lambda: key_afterwards or key, make)


def set_age(entry: Path, seconds: float) -> None:
    os.utime(entry, (time.time() - seconds,) * 2)


def test_a_home_is_created_once_per_key(tmp_path: Path) -> None:
    home = provide(tmp_path)
    assert provide(tmp_path, make=refuse_to_create) == home
    assert (home / "store" / "champion").read_text() == "first"
    assert provide(tmp_path, key="b") != home


def test_a_home_is_not_cached_if_the_sources_changed_meanwhile(tmp_path: Path) -> None:
    with pytest.raises(ChangedSourcesError, match="run the tests again"):
        provide(tmp_path, key="a", key_afterwards="b")
    assert list(tmp_path.glob("finished-*")) == []
    with pytest.raises(AssertionError, match="created again"):
        provide(tmp_path, key="b", make=refuse_to_create)


def test_the_key_is_that_of_the_imported_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key = finished_run.FINISHED_KEY
    home = provide_home(tmp_path, "finished", key, lambda: key, create_home)
    monkeypatch.setattr(finished_run, "CACHE", tmp_path)
    monkeypatch.setattr(finished_run, "read_finished_key", lambda: "of edited code")
    assert finished_run.provide_finished_run() == home


def test_the_key_depends_on_settings_that_change_the_results_of_tensorflow(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = set()
    for value in ("0", "1"):
        monkeypatch.setenv("TF_ENABLE_ONEDNN_OPTS", value)
        keys.add(finished_run.read_finished_key())
    assert len(keys) == 2


def test_a_home_that_was_not_used_for_a_day_is_removed(tmp_path: Path) -> None:
    used, unused = provide(tmp_path, key="used").parent, provide(tmp_path, key="unused").parent
    for entry in (used, unused):
        set_age(entry, DAY + 60)
    provide(tmp_path, key="used")
    provide(tmp_path, key="new")
    assert used.exists()
    assert not unused.exists()


@pytest.mark.parametrize("damage", ["removed", "altered", "truncated", "without digests"])
def test_a_damaged_home_is_created_again(tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture) -> None:
    home = provide(tmp_path)
    file = home / "store" / "champion"
    if damage == "without digests":
        (digests,) = home.parent.glob("*.json")
        digests.unlink()
    elif damage == "removed":
        file.unlink()
    else:
        file.write_text({"altered": "other", "truncated": "fir"}[damage])
    assert provide(tmp_path) == home
    assert file.read_text() == "first"
    assert "is damaged, creating it again" in caplog.text


def test_leftovers_of_a_killed_process_are_removed_at_the_next_use(tmp_path: Path) -> None:
    provide(tmp_path)
    entries = set(tmp_path.iterdir())
    program = """
import pathlib, sys, time
from tests.support.finished_run import provide_home
def create(home):
    home.mkdir()
    print("creating", flush=True)
    time.sleep(60)
provide_home(pathlib.Path(sys.argv[1]), "finished", "b", lambda: "b", create)
"""
    command = [sys.executable, "-c", program, tmp_path]
    with subprocess.Popen(command, cwd=PROJECT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert process.stdout.readline() == "creating\n"
        process.send_signal(signal.SIGKILL)
    assert set(tmp_path.iterdir()) > entries
    provide(tmp_path)
    assert set(tmp_path.iterdir()) == entries
