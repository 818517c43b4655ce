"""Simulated hosts on one machine: network namespaces on a bridge, each with its own home, /tmp, name and processes.

The bridge is in a namespace too, which this process enters, so the machine's network does not change. Needs root.
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
    """Whether this process can create hosts: it is root and may create namespaces."""
    return (
        os.getuid() == 0
        and subprocess.run(["unshare", "--net", "--mount", "true"], capture_output=True).returncode == 0
    )


@contextmanager
def create_hub(name: str) -> Iterator[str]:
    """Create a network and enter it with this thread and all that it starts; yields the address of the bridge."""
    run_ip("netns", "add", name)
    try:
        run_ip("-n", name, "link", "set", "lo", "up")
        run_ip("-n", name, "link", "add", "bridge", "type", "bridge")
        run_ip("-n", name, "address", "add", f"{HUB_ADDRESS}/24", "dev", "bridge")
        run_ip("-n", name, "link", "set", "bridge", "up")
        with Path("/proc/thread-self/ns/net").open() as original:
            with Path(f"/run/netns/{name}").open() as hub:
                _enter_namespace(hub.fileno())
            try:
                yield HUB_ADDRESS
            finally:
                _enter_namespace(original.fileno())
    finally:
        run_ip("netns", "delete", name)


def _enter_namespace(namespace: int) -> None:
    """Enter a namespace like `os.setns`, which Python has since 3.12."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(namespace, _CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "setns")


@dataclass
class Host:
    """A simulated host on the hub's bridge that runs one program."""

    hub: str  # name of the hub's namespace
    number: int
    folder: Path  # path on this machine; mounted as /tmp on the host
    disk: str = ""  # size of a separate file system for /tmp, such as "64m"
    wrapper: str = ""  # a command that runs the program, such as "faketime +10m"
    process: subprocess.Popen[bytes] | None = field(default=None, init=False)

    @property
    def name(self) -> str:
        return f"{self.hub}-{self.number}"

    @property
    def address(self) -> str:
        return HUB_ADDRESS.rpartition(".")[0] + f".{10 + self.number}"

    def plug_in(self) -> None:
        """Create the namespace and connect it to the bridge."""
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
        """Connect or disconnect the network."""
        run_ip("link", "set", self._cable, "up" if connected else "down")

    def start_program(self, script: str, log: Path) -> None:
        """Run a script, whose path is below the host's /tmp, and append its output to the log."""
        commands = [
            f"hostname {self.name}",
            # The project may be below /tmp, which the next mount hides. The working folder still refers to it.
            f"cd {shlex.quote(str(PROJECT))}",
            f"mount --bind {shlex.quote(str(self.folder))} /mnt",
            f"mount -t tmpfs -o size={self.disk} tmpfs /tmp && cp -r /mnt/. /tmp"
            if self.disk
            else "mount --bind /mnt /tmp",
            f"mkdir -p {shlex.quote(str(PROJECT))}",
            f"mount --no-canonicalize --bind . {shlex.quote(str(PROJECT))}",
            "mount -t tmpfs tmpfs /dev/shm",  # or hosts would share names of shared memory
            "mkdir -p /tmp/home",
            f"exec {self.wrapper} {script}",
        ]
        command = ["ip", "netns", "exec", self.name, "unshare", "--mount", "--uts", "--pid", "--fork", "--kill-child"]
        with log.open("ab") as output:
            self.process = subprocess.Popen(
                [*command, "--mount-proc", "bash", "-ec", "\n".join(commands)],
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    def is_alive(self) -> bool:
        """Whether the program is running."""
        return self.process is not None and self.process.poll() is None

    def _list_processes(self) -> list[psutil.Process]:
        assert self.process is not None
        with suppress(psutil.NoSuchProcess):
            processes: list[psutil.Process] = psutil.Process(self.process.pid).children(recursive=True)
            return processes
        return []

    def list_tasks(self) -> list[psutil.Process]:
        """The processes of Airflow's tasks on this host."""
        tasks = []
        for process in self._list_processes():
            with suppress(psutil.NoSuchProcess):
                if process.cmdline()[:1] and process.cmdline()[0].startswith("airflow worker"):
                    tasks.append(process)
        return tasks

    def fill_disk(self) -> None:
        """Fill the disk of the host completely."""
        pid = str(self._list_processes()[0].pid)
        command = ["nsenter", "--target", pid, "--mount", "dd", "if=/dev/zero", "of=/tmp/filled", "bs=1M"]
        result = subprocess.run(command, capture_output=True, text=True)
        assert "No space left" in result.stderr

    def kill(self) -> None:
        """Kill every process of the host with SIGKILL."""
        assert self.process is not None
        for process in self._list_processes():
            with suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGKILL)
        self.process.kill()
        self.process.wait()

    def unplug(self) -> None:
        """Kill all processes of the host and remove its namespace."""
        if self.is_alive():
            self.kill()
        run_ip("netns", "delete", self.name)
