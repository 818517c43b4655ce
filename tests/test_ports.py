"""Ports are reserved by lock files in a folder that no other user can write to."""

from __future__ import annotations

import os
import re
import tempfile
from pathlib import Path

import pytest

from tests.support import ports
from tests.support.ports import reserve_port


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the lock files, which does not exist yet."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path / f"fmnist-ports-{os.getuid()}"


def check_refusal(folder: Path) -> None:
    message = f"{folder} is not a folder that only you can write to; remove it, or set TMPDIR to another folder"
    with pytest.raises(RuntimeError, match=re.escape(message)):
        reserve_port()


def test_ports_are_reserved_in_a_private_folder(folder: Path) -> None:
    first, second = reserve_port(), reserve_port()
    names = {file.name for file in folder.iterdir()}  # also those of ports that something else occupies
    assert first != second
    assert {str(first), str(second)} <= names
    assert folder.stat().st_mode & 0o777 == 0o700


def test_a_folder_that_others_can_write_to_is_refused(folder: Path) -> None:
    folder.mkdir()
    folder.chmod(0o777)
    check_refusal(folder)


def test_a_link_in_place_of_the_folder_is_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    folder.symlink_to(tmp_path / "elsewhere")
    check_refusal(folder)
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_a_folder_of_another_user_is_refused(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = os.getuid() + 1
    planted = tmp_path / f"fmnist-ports-{other}"
    planted.mkdir(mode=0o700)
    monkeypatch.setattr(os, "getuid", lambda: other)
    check_refusal(planted)


def test_a_link_in_place_of_a_lock_file_is_not_followed(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ports, "_RANGE", range(20_000, 20_001))
    folder.mkdir(mode=0o700)
    (folder / "20000").symlink_to(tmp_path / "victim")
    with pytest.raises(OSError, match="20000"):
        reserve_port()
    assert not (tmp_path / "victim").exists()
