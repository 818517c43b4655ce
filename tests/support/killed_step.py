"""A step of a run that is killed (SIGKILL) at its n-th write to the store, or at its n-th change of a file."""

from __future__ import annotations

import itertools
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar
from unittest.mock import patch

from fmnist_tasks.registry.local import FolderStore
from fmnist_tasks.steps import run_again
from tests.support.synthetic import RUN

R = TypeVar("R")


def run_until_killed(step: str, fatal: int) -> None:
    """Run the step until that moment: odd ones are before the bytes of a write are in place, even ones after."""
    moments = itertools.count(1)

    def make_mortal(write: Callable[[FolderStore, str, bytes], R]) -> Callable[[FolderStore, str, bytes], R]:
        def write_or_die(self: FolderStore, key: str, data: bytes) -> R:
            if next(moments) == fatal:
                (self.root / ".scratch").mkdir(parents=True, exist_ok=True)
                (self.root / ".scratch" / "half").write_bytes(data[: len(data) // 2])
                os.kill(os.getpid(), signal.SIGKILL)
            result = write(self, key, data)
            if next(moments) == fatal:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        return write_or_die

    with (
        patch.object(FolderStore, "put", make_mortal(FolderStore.put)),
        patch.object(FolderStore, "put_if_absent", make_mortal(FolderStore.put_if_absent)),
    ):
        run_again(step, RUN)


def run_until_killed_at_a_file(step: str, fatal: int, folders: tuple[str, ...]) -> None:
    """Run the step until it renames, links or removes a file below these folders: before it does (odd), or after."""
    moments = itertools.count(1)

    def make_mortal(change: Callable[..., R]) -> Callable[..., R]:
        def change_or_die(*arguments: Any, **options: Any) -> R:
            is_watched = any(f"/{folder}/" in str(argument) for folder in folders for argument in arguments)
            if is_watched and next(moments) == fatal:
                os.kill(os.getpid(), signal.SIGKILL)
            result = change(*arguments, **options)
            if is_watched and next(moments) == fatal:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        return change_or_die

    with (
        patch.object(Path, "rename", make_mortal(Path.rename)),
        patch.object(Path, "replace", make_mortal(Path.replace)),
        patch.object(Path, "unlink", make_mortal(Path.unlink)),
        patch.object(os, "link", make_mortal(os.link)),
    ):
        run_again(step, RUN)
