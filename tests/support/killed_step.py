"""Run a step that is killed (SIGKILL) at a given moment: at a write to the store, or at a change of a file."""

from __future__ import annotations

import itertools
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar
from unittest.mock import patch

from fmnist_tasks.registry.folder import FolderStore
from fmnist_tasks.steps import run_step
from tests.support.synthetic import RUN

R = TypeVar("R")


def run_until_killed(step: str, moment: int) -> None:
    """Run a step until the moment, counted from 1: each write has one before its bytes are in place, and one after."""
    moments = itertools.count(1)

    def kill_at_moment(write: Callable[[FolderStore, str, bytes], R]) -> Callable[[FolderStore, str, bytes], R]:
        def write_or_die(self: FolderStore, key: str, data: bytes) -> R:
            if next(moments) == moment:
                (self.root / ".scratch").mkdir(parents=True, exist_ok=True)
                (self.root / ".scratch" / "half").write_bytes(data[: len(data) // 2])
                os.kill(os.getpid(), signal.SIGKILL)
            result = write(self, key, data)
            if next(moments) == moment:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        return write_or_die

    with (
        patch.object(FolderStore, "put", kill_at_moment(FolderStore.put)),
        patch.object(FolderStore, "put_if_absent", kill_at_moment(FolderStore.put_if_absent)),
    ):
        run_step(step, RUN)


def run_until_killed_at_a_file(step: str, moment: int, folders: tuple[str, ...]) -> None:
    """Run a step until the moment, counted from 1.

    Each rename, link or removal of a file below these folders has one moment before it and one after.
    """
    moments = itertools.count(1)

    def kill_at_moment(change: Callable[..., R]) -> Callable[..., R]:
        def change_or_die(*arguments: Any, **options: Any) -> R:
            is_watched = any(f"/{folder}/" in str(argument) for folder in folders for argument in arguments)
            if is_watched and next(moments) == moment:
                os.kill(os.getpid(), signal.SIGKILL)
            result = change(*arguments, **options)
            if is_watched and next(moments) == moment:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        return change_or_die

    with (
        patch.object(Path, "rename", kill_at_moment(Path.rename)),
        patch.object(Path, "replace", kill_at_moment(Path.replace)),
        patch.object(Path, "unlink", kill_at_moment(Path.unlink)),
        patch.object(os, "link", kill_at_moment(os.link)),
    ):
        run_step(step, RUN)
