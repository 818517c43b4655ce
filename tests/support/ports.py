"""Loopback ports for the services that tests start."""

from __future__ import annotations

import fcntl
import os
import random
import socket
import stat
import tempfile
from contextlib import suppress
from pathlib import Path

# Below the range from which Linux takes the ports of outgoing connections, which could occupy one of these.
_RANGE = range(20_000, 32_000)
_RESERVED: list[int] = []  # descriptors of the lock files, which stay open and locked while this process lives


def reserve_port() -> int:
    """Reserve a free loopback port for as long as this process lives, and return it.

    A lock file for each port prevents conflicts between the test processes of a user, in other clones too. Two
    processes that only probed could both choose the same port.

    Raises RuntimeError if no port is free or the folder of the lock files is not private.
    """
    folder = _provide_folder()
    for port in random.SystemRandom().sample(_RANGE, len(_RANGE)):
        descriptor = os.open(folder / str(port), os.O_CREAT | os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", port))
        except OSError:
            os.close(descriptor)
        else:
            _RESERVED.append(descriptor)
            return port
    raise RuntimeError(f"no free port from {_RANGE.start} to {_RANGE.stop - 1}; stop other tests or services there")


def accepts_connections(port: int) -> bool:
    """Whether something listens on this loopback port."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _provide_folder() -> Path:
    """The folder of the lock files. Its name is predictable, so another user may have created it with links in it."""
    folder = Path(tempfile.gettempdir()) / f"fmnist-ports-{os.getuid()}"
    with suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or status.st_mode & 0o022:
        raise RuntimeError(
            f"{folder} is not a folder that only you can write to; remove it, or set TMPDIR to another folder"
        )
    return folder
