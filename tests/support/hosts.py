"""Hosts of their own on one machine: network namespaces on a bridge, each with its own home, tmp, name and processes.

Nothing of it is seen from outside: the bridge lies in a namespace as well, which this process enters. Needs root.
"""

from __future__ import annotations

import ctypes
import os
import shlex
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from fmnist_tasks.settings import PROJECT

HUB_ADDRESS = "10.77.0.1"
_CLONE_NEWNET = 0x40000000


def run_ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


def can_make_hosts() -> bool:
    """Whether this process may make namespaces."""
    return (
        os.getuid() == 0
        and subprocess.run(["unshare", "--net", "--mount", "true"], capture_output=True).returncode == 0
    )


@contextmanager
def create_hub(name: str) -> Iterator[str]:
    """A network of its own, which this thread and all that it starts from now on are in; its bridge's address."""
    run_ip("netns", "add", name)
    try:
        run_ip("-n", name, "link", "set", "lo", "up")
        run_ip("-n", name, "link", "add", "bridge", "type", "bridge")
        run_ip("-n", name, "address", "add", f"{HUB_ADDRESS}/24", "dev", "bridge")
        run_ip("-n", name, "link", "set", "bridge", "up")
        with Path("/proc/thread-self/ns/net").open() as before:
            with Path(f"/run/netns/{name}").open() as inside:
                _enter_namespace(inside.fileno())
            try:
                yield HUB_ADDRESS
            finally:
                _enter_namespace(before.fileno())
    finally:
        run_ip("netns", "delete", name)


def _enter_namespace(namespace: int) -> None:
    """`os.setns`, which Python has from 3.12 on."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(namespace, _CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "setns")


@dataclass
class Host:
    """A host on the hub's bridge that runs one program."""

    hub: str  # name of the hub's namespace
    number: int
    folder: Path  # outside; becomes /tmp inside
    disk: str = ""  # size of a file system of its own for /tmp: "64m"
    wrapper: str = ""  # a command before the program's: "faketime +10m"
    process: subprocess.Popen[bytes] | None = field(default=None, init=False)

    @property
    def name(self) -> str:
        return f"{self.hub}-{self.number}"

    @property
    def address(self) -> str:
        return HUB_ADDRESS.rpartition(".")[0] + f".{10 + self.number}"

    def plug_in(self) -> None:
        """Make the namespace and its cable to the bridge."""
        self.folder.mkdir(parents=True, exist_ok=True)
        run_ip("netns", "add", self.name)
        run_ip("-n", self.name, "link", "set", "lo", "up")
        run_ip("link", "add", self._cable, "type", "veth", "peer", "name", "eth0", "netns", self.name)
        run_ip("link", "set", self._cable, "master", "bridge", "up")
        run_ip("-n", self.name, "address", "add", f"{self.address}/24", "dev", "eth0")
        run_ip("-n", self.name, "link", "set", "eth0", "up")

    @property
    def _cable(self) -> str:
        return f"host{self.number}"

    def set_connected(self, connected: bool) -> None:
        """Cut the cable, or mend it."""
        run_ip("link", "set", self._cable, "up" if connected else "down")

    def start_program(self, script: str, log: Path) -> None:
        """Run a script of /tmp, which is this host's folder there. Its home is below, its name is the host's."""
        inside = [
            f"hostname {self.name}",
            # The project may lie below the /tmp that is hidden next; this folder still leads there then.
            f"cd {shlex.quote(str(PROJECT))}",
            f"mount --bind {shlex.quote(str(self.folder))} /mnt",
            f"mount -t tmpfs -o size={self.disk} tmpfs /tmp && cp -r /mnt/. /tmp"
            if self.disk
            else "mount --bind /mnt /tmp",
            f"mkdir -p {shlex.quote(str(PROJECT))}",
            f"mount --no-canonicalize --bind . {shlex.quote(str(PROJECT))}",
            "mount -t tmpfs tmpfs /dev/shm",  # names of shared memory are its own, like process numbers
            "mkdir -p /tmp/home",
            f"exec {self.wrapper} {script}",
        ]
        command = ["ip", "netns", "exec", self.name, "unshare", "--mount", "--uts", "--pid", "--fork", "--kill-child"]
        with log.open("ab") as output:
            self.process = subprocess.Popen(
                [*command, "--mount-proc", "bash", "-ec", "\n".join(inside)],
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    def is_alive(self) -> bool:
        """Whether its program runs."""
        return self.process is not None and self.process.poll() is None

    def _list_processes(self) -> list[psutil.Process]:
        assert self.process is not None
        with suppress(psutil.NoSuchProcess):
            family: list[psutil.Process] = psutil.Process(self.process.pid).children(recursive=True)
            return family
        return []

    def list_tasks(self) -> list[psutil.Process]:
        """The tasks of Airflow that run here."""
        found = []
        for process in self._list_processes():
            with suppress(psutil.NoSuchProcess):
                if process.cmdline()[:1] and process.cmdline()[0].startswith("airflow worker"):
                    found.append(process)
        return found

    def fill_disk(self) -> None:
        """Leave no room on its disk."""
        pid = str(self._list_processes()[0].pid)
        command = ["nsenter", "--target", pid, "--mount", "dd", "if=/dev/zero", "of=/tmp/filled", "bs=1M"]
        ended = subprocess.run(command, capture_output=True, text=True)
        assert "No space left" in ended.stderr

    def kill(self) -> None:
        """Pull the plug: every process of the host dies by SIGKILL."""
        assert self.process is not None
        for process in self._list_processes():
            with suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGKILL)
        self.process.kill()
        self.process.wait()

    def unplug(self) -> None:
        """Kill what runs, and take the host away."""
        if self.is_alive():
            self.kill()
        run_ip("netns", "delete", self.name)
