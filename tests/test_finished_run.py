"""What tests start from is made once, is what its key says, is whole, and stays as long as it is used."""

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


def make_home(home: Path) -> None:
    (home / "store").mkdir(parents=True)
    (home / "store" / "champion").write_text("first")


def refuse_to_make(home: Path) -> None:
    raise AssertionError("made again")


def provide(cache: Path, key: str = "a", make: finished_run.Maker = make_home, key_afterwards: str = "") -> Path:
    return provide_home(cache, "finished", key, lambda: key_afterwards or key, make)


def age(entry: Path, seconds: float) -> None:
    os.utime(entry, (time.time() - seconds,) * 2)


def test_it_is_made_once(tmp_path: Path) -> None:
    home = provide(tmp_path)
    assert provide(tmp_path, make=refuse_to_make) == home
    assert (home / "store" / "champion").read_text() == "first"
    assert provide(tmp_path, key="b") != home


def test_what_was_made_while_the_sources_changed_is_not_kept(tmp_path: Path) -> None:
    with pytest.raises(ChangedSourcesError, match="run the tests again"):
        provide(tmp_path, key="a", key_afterwards="b")
    assert list(tmp_path.glob("finished-*")) == []
    with pytest.raises(AssertionError, match="made again"):
        provide(tmp_path, key="b", make=refuse_to_make)


def test_the_key_is_that_of_the_code_as_it_was_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = provide_home(tmp_path, "finished", finished_run.FINISHED_KEY, lambda: finished_run.FINISHED_KEY, make_home)
    monkeypatch.setattr(finished_run, "CACHE", tmp_path)
    monkeypatch.setattr(finished_run, "read_finished_key", lambda: "of edited code")
    assert finished_run.provide_finished_run() == entry


def test_the_key_has_what_changes_the_numbers_of_tensorflow(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = set()
    for value in ("0", "1"):
        monkeypatch.setenv("TF_ENABLE_ONEDNN_OPTS", value)
        keys.add(finished_run.read_finished_key())
    assert len(keys) == 2


def test_one_that_is_used_stays_and_one_unused_for_a_day_goes(tmp_path: Path) -> None:
    used, unused = provide(tmp_path, key="used").parent, provide(tmp_path, key="unused").parent
    for entry in (used, unused):
        age(entry, DAY + 60)
    provide(tmp_path, key="used")
    provide(tmp_path, key="edited")
    assert used.exists()
    assert not unused.exists()


@pytest.mark.parametrize("damage", ["removed", "altered", "cut short", "unlisted"])
def test_a_damaged_one_is_made_anew(tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture) -> None:
    home = provide(tmp_path)
    file = home / "store" / "champion"
    if damage == "unlisted":
        (listed,) = home.parent.glob("*.json")
        listed.unlink()
    elif damage == "removed":
        file.unlink()
    else:
        file.write_text({"altered": "other", "cut short": "fir"}[damage])
    assert provide(tmp_path) == home
    assert file.read_text() == "first"
    assert "is damaged and made anew" in caplog.text


def test_what_a_killed_process_left_is_removed_at_the_next_use(tmp_path: Path) -> None:
    provide(tmp_path)
    kept = set(tmp_path.iterdir())
    program = """
import pathlib, sys, time
from tests.support.finished_run import provide_home
def make(home):
    home.mkdir()
    print("making", flush=True)
    time.sleep(60)
provide_home(pathlib.Path(sys.argv[1]), "finished", "b", lambda: "b", make)
"""
    command = [sys.executable, "-c", program, tmp_path]
    with subprocess.Popen(command, cwd=PROJECT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert process.stdout.readline() == "making\n"
        process.send_signal(signal.SIGKILL)
    assert set(tmp_path.iterdir()) > kept
    provide(tmp_path)
    assert set(tmp_path.iterdir()) == kept
