"""How a child process gives up rights before it reads an untrusted file. Imports only the standard library."""

from __future__ import annotations

import ctypes
import os
import resource
import struct
import sys
from dataclasses import dataclass

# The numbers of Landlock's system calls, the same on every architecture, and how many file rights each version knows
# (linux/landlock.h). The process gives up all of them; since version 6 also TCP, and signals and sockets to processes
# outside.
_CREATE_RULESET, _RESTRICT_SELF, _GET_VERSION = 444, 446, 1
_FILE_RIGHTS = {1: 13, 2: 14, 3: 15, 4: 15}
_LATEST_FILE_RIGHTS = 16
_NO_NEW_PRIVILEGES = 38  # linux/prctl.h


@dataclass(frozen=True)
class Limits:
    """What a child process may use."""

    memory: int  # bytes of address space
    cpu: int  # seconds
    output: int  # bytes
    has_threads: bool = False  # whether its libraries start threads, which count as processes

    def __str__(self) -> str:
        return f"limits: {self.memory >> 20} MiB, {self.cpu} s of CPU"


def confine(limits: Limits) -> None:  # pragma: no cover - after it, a process may open no file, so none with coverage
    """Permanently give up opening files and sockets, starting processes, and more memory and time than the limits.

    Where the kernel has Landlock, also give up access to other processes: then not even root can trace them or read
    their memory.
    """
    _restrict_access()
    values = {
        resource.RLIMIT_AS: limits.memory,
        resource.RLIMIT_CPU: limits.cpu,
        resource.RLIMIT_FSIZE: limits.output,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_NOFILE: 0,  # open files stay open
        **({} if limits.has_threads else {resource.RLIMIT_NPROC: 0}),
    }
    for limit, value in values.items():
        hard = resource.getrlimit(limit)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(limit, (value, value))


def _restrict_access() -> None:  # pragma: no cover - as above
    if sys.platform != "linux":
        return
    libc = ctypes.CDLL(None)
    version = libc.syscall(_CREATE_RULESET, None, 0, _GET_VERSION)
    if version < 1:
        return
    files = (1 << _FILE_RIGHTS.get(version, _LATEST_FILE_RIGHTS)) - 1
    rules = struct.pack("=QQQ", files, 0b11, 0b11) if version >= 6 else struct.pack("=Q", files)
    ruleset = libc.syscall(_CREATE_RULESET, rules, len(rules), 0)
    libc.prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0)
    if libc.syscall(_RESTRICT_SELF, ruleset, 0):
        raise OSError("the kernel has Landlock, but refuses to restrict this process")
    os.close(ruleset)
