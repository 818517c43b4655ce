"""`include/setup` and `include/test-deps`: interrupted, repeated, and on unsuitable machines."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
from pathlib import Path

import pytest

from fmnist_tasks.settings import PROJECT
from tests.support.airflow_home import wait_until
from tests.support.fresh_copy import copy_project, make_clean_environment
from tests.support.requirements import NAMESPACES, require


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    return copy_project(tmp_path)


def set_up(copy: Path, *wrapper: str) -> str:
    """Run set-up, optionally under a wrapper command, and return everything that it prints."""
    command = [*wrapper, copy / "include" / "setup"]
    result = subprocess.run(
        command, env=make_clean_environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert result.returncode == 0, result.stdout
    return result.stdout


@pytest.mark.exhaustive
def test_setup_repairs_itself_then_prints_nothing_and_follows_the_lock_file(copy: Path) -> None:
    process = subprocess.Popen(
        [copy / "include" / "setup"],
        env=make_clean_environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stderr is not None
    with process.stderr:
        assert any("Installing the locked requirements" in line for line in process.stderr)
        wait_until(lambda: len(list((copy / ".venv").glob("lib/python*/site-packages/*.dist-info"))) > 10, every=0.01)
        os.killpg(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert list((copy / ".venv").glob(".made-from-*")) == []

    output = set_up(copy)
    for stage in (
        "Creating .venv",
        "Installing the locked requirements",
        "sizes and digests of all four files match",
        "Migrating",
    ):
        assert stage in output
    assert (copy / "var" / "airflow" / "airflow.db").is_file()
    subprocess.run([copy / ".venv" / "bin" / "fmnist", "--help"], check=True, stdout=subprocess.DEVNULL)
    venv = copy / ".venv"
    dry_run = subprocess.run(
        [venv / "bin" / "uv", "pip", "sync", "--system-certs", "--dry-run", "--python", venv, "requirements.txt"],
        cwd=copy,
        capture_output=True,
        text=True,
        check=True,
    )
    changes = [line for line in dry_run.stderr.splitlines() if line.startswith((" + ", " - ", " ~ "))]
    assert [line.split("=")[0] for line in changes] == [" - fmnist-tasks"]  # the lock file excludes the project itself

    assert set_up(copy) == ""
    with (copy / "requirements.txt").open("a") as lock:
        lock.write("# changed\n")
    output = set_up(copy)
    assert "Installing the locked requirements" in output
    assert "Creating .venv" not in output

    require(NAMESPACES)
    shutil.rmtree(copy / ".venv")
    without_network = ("unshare", "--map-current-user", "--net")
    assert "Creating .venv" in set_up(copy, *without_network)
    subprocess.run([copy / ".venv" / "bin" / "fmnist", "--help"], check=True, stdout=subprocess.DEVNULL)


def read_error(copy: Path, **changes: str) -> str:
    """Run set-up, which must fail, and return its standard error."""
    result = subprocess.run(
        [copy / "include" / "setup"], env=make_clean_environment() | changes, capture_output=True, text=True
    )
    assert result.returncode == 1
    return result.stderr


@pytest.mark.integration
def test_setup_without_network_and_caches_names_the_remedy(copy: Path, tmp_path: Path) -> None:
    empty_caches = {"XDG_CACHE_HOME": str(tmp_path), "PIP_CACHE_DIR": str(tmp_path), "PIP_FIND_LINKS": ""}
    error = read_error(copy, **empty_caches, PIP_INDEX_URL="https://127.0.0.1:9/simple")
    assert "cannot get the packages in requirements.txt" in error
    assert "Connect this machine to a network, or set PIP_INDEX_URL and\nUV_DEFAULT_INDEX" in error


@pytest.mark.integration
def test_setup_without_a_suitable_python_names_the_remedy(copy: Path) -> None:
    error = read_error(copy, PYTHON="/bin/false")
    assert "no Python 3.11, 3.12 or 3.13 with venv found; tried: /bin/false" in error
    assert "make setup PYTHON=/path/to/python" in error


@pytest.mark.integration
def test_a_folder_that_airflow_cannot_use_is_refused(copy: Path) -> None:
    assert "the path of this folder contains %" in read_error(copy.rename(copy.parent / "100 %"))


@pytest.mark.integration
def test_make_ui_reports_that_its_port_is_taken(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = str(listener.getsockname()[1])
        environment = os.environ | {"AIRFLOW_HOME": str(tmp_path), "PORT": port}
        result = subprocess.run([PROJECT / "include" / "ui"], env=environment, capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (1, f"ui: port {port} is taken; choose another: make ui PORT=8081\n")


@pytest.fixture
def programs(tmp_path: Path) -> Path:
    """A folder that is the whole PATH of a user who is not root, with an apt-get that fails."""
    folder = tmp_path / "programs"
    folder.mkdir()
    write_program(folder, "apt-get")
    write_program(folder, "id", "echo 1000")
    return folder


def write_program(folder: Path, program: str, text: str = "exit 1") -> None:
    (folder / program).write_text(f"#!/bin/sh\n{text}\n")
    (folder / program).chmod(0o755)


def install_test_dependencies(programs: Path) -> subprocess.CompletedProcess[str]:
    script = PROJECT / "include" / "test-deps"
    return subprocess.run(["/bin/bash", script], env={"PATH": str(programs)}, capture_output=True, text=True)


def test_a_user_who_is_not_root_sees_the_missing_packages_and_the_command(programs: Path) -> None:
    result = install_test_dependencies(programs)
    assert result.returncode == 1
    assert re.fullmatch(
        r"test-deps: installing .*redis-server chromium faketime iproute2 util-linux openssl nginx needs root; "
        r"run: sudo make test-deps\n",
        result.stderr,
    )
    (programs / "apt-get").unlink()
    error = install_test_dependencies(programs).stderr
    assert "this machine has no apt-get; install with its package manager: " in error


def test_nothing_is_installed_or_printed_if_nothing_is_missing(programs: Path) -> None:
    names = ("initdb", "redis-server", "google-chrome", "faketime", "ip", "unshare", "nsenter", "openssl", "nginx")
    for name in names:
        write_program(programs, name)
    result = install_test_dependencies(programs)
    assert (result.returncode, result.stdout + result.stderr) == (0, "")


@pytest.fixture
def system(tmp_path: Path, programs: Path) -> Path:
    """A folder that replaces / for test-deps called by root; only openssl is missing, and apt-get installs it."""
    folder = tmp_path / "system"
    for name in ("run/lock", "usr/sbin"):
        (folder / name).mkdir(parents=True)
    text = (PROJECT / "include" / "test-deps").read_text()
    (folder / "test-deps").write_text(re.sub(r"(?m)^(\w+=)/(?=run/|etc/|usr/)", rf"\1{folder}/", text))
    for name in ("initdb", "redis-server", "google-chrome", "faketime", "ip", "unshare", "nsenter", "nginx"):
        write_program(programs, name)
    for name in ("chmod", "flock", "mkdir", "rm", "true"):
        program = shutil.which(name)
        assert program
        (programs / name).symlink_to(program)
    write_program(programs, "id", "echo 0")
    write_apt_get(programs, f"'{folder}/usr/sbin/policy-rc.d'; echo $? >'{folder}/policy-exit-code'")
    return folder


def write_apt_get(programs: Path, text: str) -> None:
    """Write an apt-get that runs these commands, such as starting a service, and then installs openssl."""
    openssl = programs / "openssl"
    write_program(programs, "apt-get", f"case $* in *install*) {text}; : >'{openssl}'; chmod +x '{openssl}' ;; esac")


def call_test_dependencies(system: Path, programs: Path) -> subprocess.Popen[str]:
    command = ["/bin/bash", system / "test-deps"]
    return subprocess.Popen(command, env={"PATH": str(programs)}, stderr=subprocess.PIPE, text=True)


def list_test_dependency_files(system: Path) -> list[Path]:
    return sorted(file for name in ("usr", "etc") for file in (system / name).rglob("*") if file.is_file())


def kill_while_apt_get_runs(system: Path, programs: Path) -> subprocess.Popen[str]:
    """Call test-deps, let apt-get kill it, and return the process: a zombie, whose process ID stays in use."""
    apt_get = (programs / "apt-get").read_text()
    write_apt_get(programs, "kill -9 $PPID; exit")
    process = call_test_dependencies(system, programs)
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert process.stderr is not None
    with process.stderr:
        process.stderr.read()  # returns once apt-get has ended too
    (programs / "apt-get").write_text(apt_get)
    assert len(list_test_dependency_files(system)) == 2
    return process


def test_no_service_starts_during_installation_even_after_a_killed_call(system: Path, programs: Path) -> None:
    kill_while_apt_get_runs(system, programs).wait()
    process = call_test_dependencies(system, programs)
    assert (process.communicate()[1], process.returncode) == ("\x1b[1m==> Installing openssl\x1b[0m\n", 0)
    assert (system / "policy-exit-code").read_text() == "101\n"
    assert list_test_dependency_files(system) == []


def test_leftovers_of_a_killed_call_block_no_service_and_are_removed(system: Path, programs: Path) -> None:
    killed = kill_while_apt_get_runs(system, programs)
    policy = system / "usr" / "sbin" / "policy-rc.d"
    assert subprocess.run([policy], env={"PATH": str(programs)}).returncode == 0
    killed.wait()
    write_program(programs, "openssl")
    process = call_test_dependencies(system, programs)
    assert (process.communicate()[1], process.returncode) == ("", 0)
    assert list_test_dependency_files(system) == []


def test_a_container_keeps_its_own_policy(system: Path, programs: Path) -> None:
    policy = system / "usr" / "sbin" / "policy-rc.d"
    write_program(policy.parent, policy.name, "exit 101")
    process = call_test_dependencies(system, programs)
    process.communicate()
    assert (process.returncode, (system / "policy-exit-code").read_text()) == (0, "101\n")
    assert list_test_dependency_files(system) == [policy]


def test_a_link_planted_by_another_user_is_not_followed(system: Path, programs: Path, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    for name in ("fmnist-test-deps", "fmnist-test-deps.lock"):
        (system / "run" / "lock" / name).symlink_to(victim)
    process = call_test_dependencies(system, programs)
    process.communicate()
    assert (process.returncode, victim.read_text()) == (0, "precious")


def test_a_terminated_call_ends_after_apt_get(system: Path, programs: Path) -> None:
    write_apt_get(programs, f"kill $PPID; '{system}/usr/sbin/policy-rc.d'; echo $? >'{system}/policy-exit-code'")
    process = call_test_dependencies(system, programs)
    process.communicate()
    assert (process.returncode, (system / "policy-exit-code").read_text()) == (1, "101\n")
    assert list_test_dependency_files(system) == []
