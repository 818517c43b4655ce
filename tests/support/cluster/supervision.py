"""Run programs under supervisord, in the order of their dependencies; it restarts those that exit."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any
from xmlrpc.client import ServerProxy

import psutil
from supervisor.xmlrpc import SupervisorTransport

from tests.support.cluster.programs import Program, select_environment

# Paths are relative to supervisord's working folder, since its path may contain spaces and percent signs.
_CONFIGURATION = """\
[unix_http_server]
file={socket}
chmod=0700
[rpcinterface:supervisor]
supervisor.rpcinterface_factory=supervisor.rpcinterface:make_main_rpcinterface
[supervisorctl]
serverurl=unix://{socket}
[supervisord]
logfile=logs/supervisord.log
pidfile=supervisord.pid
"""
_PROGRAM = """\
[program:{name}]
command=./{script}
autostart=false
autorestart=true
startsecs=10
startretries=1000
stopsignal={signal}
stopwaitsecs={stop_seconds}
killasgroup=true
redirect_stderr=true
stdout_logfile=logs/{name}.log
stdout_logfile_maxbytes=10MB
stdout_logfile_backups=4
"""
STOP_SECONDS = 20  # after which a program that does not stop is killed
READY_SECONDS = 180  # within which a program must become healthy


class ClusterError(Exception):
    """The cluster cannot be started or used; the message gives the reason."""


class Supervisor:
    """The supervisord whose files are in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def _call(self, method: str, *arguments: str | bool) -> Any:
        transport = SupervisorTransport(None, None, f"unix://{self._find_socket()}")
        with ServerProxy("http://unix", transport=transport) as server:
            return getattr(server.supervisor, method)(*arguments)

    def _find_socket(self) -> Path:
        return (self.folder / "socket").readlink() / "supervisor.sock"

    def _make_socket_folder(self) -> None:
        """Link `socket` to a private folder with a short path: that of a socket has at most 107 bytes (macOS: 103)."""
        self._remove_socket_folder()
        target = tempfile.mkdtemp(prefix="fmnist-", dir="/tmp")  # the path of $TMPDIR may be too long
        (Path(target) / "owner").write_text(str(self.folder.resolve()))
        (self.folder / "socket").symlink_to(target)

    def _remove_socket_folder(self) -> None:
        link = self.folder / "socket"
        if link.is_symlink():
            owner = link / "owner"  # if this folder is a copy, the link leads to the socket folder of the original
            if owner.exists() and owner.read_text() == str(self.folder.resolve()):
                shutil.rmtree(link.readlink(), ignore_errors=True)
            link.unlink()

    def find_daemon(self) -> psutil.Process | None:
        """The running supervisord of this folder, or None. If this folder is a copy, ignores that of the original."""
        file = self.folder / "supervisord.pid"
        try:
            process = psutil.Process(int(file.read_text()))
            is_ours = any("supervisord" in word for word in process.cmdline()) and process.cwd() == str(
                self.folder.resolve()
            )
            return process if is_ours else None
        except (FileNotFoundError, ValueError, psutil.NoSuchProcess, psutil.AccessDenied):
            return None

    def start_daemon(self, programs: Sequence[Program]) -> None:
        """Start supervisord with these programs, without starting the programs."""
        (self.folder / "logs").mkdir(exist_ok=True)
        self._make_socket_folder()
        sections = [
            _PROGRAM.format(
                name=program.name,
                script=program.script.relative_to(self.folder),
                signal=program.stop_signal,
                stop_seconds=STOP_SECONDS,
            )
            for program in programs
            if program.health
        ]
        configuration = self.folder / "supervisord.conf"
        configuration.write_text("".join([_CONFIGURATION.format(socket=self._find_socket()), *sections]))
        command = ["supervisord", "--configuration", str(configuration.absolute())]
        subprocess.run(command, cwd=self.folder, env=select_environment(), check=True)

    def start_all(self, programs: Sequence[Program]) -> None:
        """Start each program after those that it needs, and wait until all services are healthy and all jobs done.

        Raises :class:`ClusterError` if a service does not become healthy or a job fails.
        """
        by_name = {program.name: program for program in programs}
        ready: set[str] = set()  # names of healthy services and finished jobs
        for program in programs:
            for name in program.needs:
                if name not in ready:
                    self.wait_until_healthy(by_name[name])
                    ready.add(name)
            if program.health:
                self._call("startProcess", program.name, False)
            else:
                self._run_job(program)
                ready.add(program.name)
        for program in programs:
            if program.name not in ready:
                self.wait_until_healthy(program)

    def wait_until_healthy(self, program: Program) -> None:
        """Wait until a program is healthy; raises :class:`ClusterError` if that takes too long."""
        end = time.monotonic() + READY_SECONDS
        while subprocess.run([str(program.health)], env=select_environment(), capture_output=True).returncode:
            if time.monotonic() > end:
                raise self._make_error(program, f"is not healthy after {READY_SECONDS} seconds")
            time.sleep(0.5)

    def stop_program(self, name: str) -> None:
        """Stop a program. supervisord does not restart it."""
        self._call("stopProcess", name)

    def start_program(self, name: str) -> None:
        """Start a stopped program."""
        self._call("startProcess", name, False)

    def find_pid(self, name: str) -> int:
        """The process ID of a program, or 0 if it is not running."""
        return int(self._call("getProcessInfo", name)["pid"])

    def shut_down(self) -> bool:
        """Stop supervisord and everything that it started; return False if it was not running."""
        if (daemon := self.find_daemon()) is None:
            return False
        processes = {daemon}
        daemon.terminate()
        end = time.monotonic() + 2 * STOP_SECONDS
        # A worker that stops may still start a task, in a process that outlives it.
        while daemon.is_running() and time.monotonic() < end:
            with suppress(psutil.NoSuchProcess):  # it may have just ended
                processes.update(daemon.children(recursive=True))
            psutil.wait_procs([daemon], timeout=0.2)
        for survivor in psutil.wait_procs(processes, timeout=0)[1]:
            with suppress(psutil.NoSuchProcess):
                survivor.kill()
        psutil.wait_procs(processes)
        self._remove_socket_folder()
        return True

    def _run_job(self, job: Program) -> None:
        log = self.folder / "logs" / f"{job.name}.log"
        with log.open("wb") as output:
            code = subprocess.run([job.script], env=select_environment(), stdout=output, stderr=output).returncode
        if code:
            raise self._make_error(job, f"failed with exit code {code}")

    def _make_error(self, program: Program, fault: str) -> ClusterError:
        log = self.folder / "logs" / f"{program.name}.log"
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-20:]) if log.exists() else ""
        return ClusterError(f"{program.name} {fault}; the end of {log}:\n{tail}")
