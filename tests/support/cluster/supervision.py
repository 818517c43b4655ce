"""Programs held up by supervisord: started in the order of their needs, started again when they die."""

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

# Paths are relative to supervisord's working folder: that one's own may have spaces, or percent signs to be expanded.
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
stopwaitsecs={patience}
killasgroup=true
redirect_stderr=true
stdout_logfile=logs/{name}.log
stdout_logfile_maxbytes=10MB
stdout_logfile_backups=4
"""
STOP_SECONDS = 20  # seconds to stop in, before a program is killed
READY_SECONDS = 180  # seconds in which a program has to become healthy


class ClusterError(Exception):
    """The cluster cannot be used as asked; the message says why."""


class Supervisor:
    """The supervisord of a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def _call(self, what: str, *words: str | bool) -> Any:
        transport = SupervisorTransport(None, None, f"unix://{self._find_socket()}")
        with ServerProxy("http://unix", transport=transport) as server:
            return getattr(server.supervisor, what)(*words)

    def _find_socket(self) -> Path:
        return (self.folder / "socket").readlink() / "supervisor.sock"

    def _make_socket_folder(self) -> None:
        """Let `socket` lead to a private folder: the path of a socket has at most 107 bytes, or 103 on macOS."""
        self._remove_socket_folder()
        made = tempfile.mkdtemp(prefix="fmnist-", dir="/tmp")  # $TMPDIR may be long itself
        (Path(made) / "owner").write_text(str(self.folder.resolve()))
        (self.folder / "socket").symlink_to(made)

    def _remove_socket_folder(self) -> None:
        link = self.folder / "socket"
        if link.is_symlink():
            owner = link / "owner"  # another cluster if this folder is a copy of that one's
            if owner.exists() and owner.read_text() == str(self.folder.resolve()):
                shutil.rmtree(link.readlink(), ignore_errors=True)
            link.unlink()

    def find_daemon(self) -> psutil.Process | None:
        """The running supervisord of this folder; not the one of a folder that this is a copy of."""
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
        """Start supervisord with these programs, none of which it starts yet."""
        (self.folder / "logs").mkdir(exist_ok=True)
        self._make_socket_folder()
        sections = [
            _PROGRAM.format(
                name=program.name,
                script=program.script.relative_to(self.folder),
                signal=program.stop_signal,
                patience=STOP_SECONDS,
            )
            for program in programs
            if program.health
        ]
        configuration = self.folder / "supervisord.conf"
        configuration.write_text("".join([_CONFIGURATION.format(socket=self._find_socket()), *sections]))
        command = ["supervisord", "--configuration", str(configuration.absolute())]
        subprocess.run(command, cwd=self.folder, env=select_environment(), check=True)

    def start_all(self, programs: Sequence[Program]) -> None:
        """Start each program once what it needs is healthy or done, and wait until all are."""
        known = {program.name: program for program in programs}
        well: set[str] = set()
        for program in programs:
            for name in program.needs:
                if name not in well:
                    self.wait_until_healthy(known[name])
                    well.add(name)
            if program.health:
                self._call("startProcess", program.name, False)
            else:
                self._run_job(program)
                well.add(program.name)
        for program in programs:
            if program.name not in well:
                self.wait_until_healthy(program)

    def wait_until_healthy(self, program: Program) -> None:
        """Wait until a program is healthy; raises :class:`ClusterError`."""
        end = time.monotonic() + READY_SECONDS
        while subprocess.run([str(program.health)], env=select_environment(), capture_output=True).returncode:
            if time.monotonic() > end:
                raise self._make_error(program, f"is not healthy after {READY_SECONDS} seconds")
            time.sleep(0.5)

    def stop_program(self, name: str) -> None:
        """Stop a program, which stays so until it is started."""
        self._call("stopProcess", name)

    def start_program(self, name: str) -> None:
        """Start a program that was stopped."""
        self._call("startProcess", name, False)

    def find_pid(self, name: str) -> int:
        """The process that a program is at present; 0 if it is none."""
        return int(self._call("getProcessInfo", name)["pid"])

    def shut_down(self) -> bool:
        """Stop everything; False if nothing ran."""
        if (process := self.find_daemon()) is None:
            return False
        everything = {process}
        process.terminate()
        end = time.monotonic() + 2 * STOP_SECONDS
        # A worker that stops may still begin a task, in a process that outlives it.
        while process.is_running() and time.monotonic() < end:
            with suppress(psutil.NoSuchProcess):  # it may end as it is asked
                everything.update(process.children(recursive=True))
            psutil.wait_procs([process], timeout=0.2)
        for survivor in psutil.wait_procs(everything, timeout=0)[1]:
            with suppress(psutil.NoSuchProcess):
                survivor.kill()
        psutil.wait_procs(everything)
        self._remove_socket_folder()
        return True

    def _run_job(self, job: Program) -> None:
        log = self.folder / "logs" / f"{job.name}.log"
        with log.open("wb") as output:
            ended = subprocess.run([job.script], env=select_environment(), stdout=output, stderr=output).returncode
        if ended:
            raise self._make_error(job, f"ended with {ended}")

    def _make_error(self, program: Program, what: str) -> ClusterError:
        log = self.folder / "logs" / f"{program.name}.log"
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-20:]) if log.exists() else ""
        return ClusterError(f"{program.name} {what}; the end of {log}:\n{tail}")
