"""`include/setup` on a copy of the project: interrupted, completed, called again, and with a lock that changed."""

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


def setup(copy: Path, *through: str) -> str:
    """Everything that set-up says, started through another command or by itself."""
    command = [*through, copy / "include" / "setup"]
    ended = subprocess.run(
        command, env=make_clean_environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert ended.returncode == 0, ended.stdout
    return ended.stdout


@pytest.mark.exhaustive
def test_setup_is_repaired_then_silent_and_notices_a_changed_lock(copy: Path) -> None:
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
        assert any("Installing the locked requirements" in text for text in process.stderr)
        wait_until(lambda: len(list((copy / ".venv").glob("lib/python*/site-packages/*.dist-info"))) > 10, every=0.01)
        os.killpg(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert list((copy / ".venv").glob(".made-from-*")) == []

    said = setup(copy)
    for stage in ("Creating .venv", "Installing the locked requirements", "sizes and digests as declared", "Migrating"):
        assert stage in said
    assert (copy / "var" / "airflow" / "airflow.db").is_file()
    subprocess.run([copy / ".venv" / "bin" / "fmnist", "--help"], check=True, stdout=subprocess.DEVNULL)
    made = copy / ".venv"
    to_be_exact = subprocess.run(
        [made / "bin" / "uv", "pip", "sync", "--system-certs", "--dry-run", "--python", made, "requirements.txt"],
        cwd=copy,
        capture_output=True,
        text=True,
        check=True,
    )
    changes = [text for text in to_be_exact.stderr.splitlines() if text.startswith((" + ", " - ", " ~ "))]
    assert [text.split("=")[0] for text in changes] == [" - fmnist-tasks"]  # the project itself is in no lock

    assert setup(copy) == ""
    with (copy / "requirements.txt").open("a") as lock:
        lock.write("# changed\n")
    said = setup(copy)
    assert "Installing the locked requirements" in said
    assert "Creating .venv" not in said

    require(NAMESPACES)
    shutil.rmtree(copy / ".venv")
    without_network = ("unshare", "--map-current-user", "--net")
    assert "Creating .venv" in setup(copy, *without_network)
    subprocess.run([copy / ".venv" / "bin" / "fmnist", "--help"], check=True, stdout=subprocess.DEVNULL)


def read_refusal(copy: Path, **changes: str) -> str:
    """What set-up says when it cannot work."""
    ended = subprocess.run(
        [copy / "include" / "setup"], env=make_clean_environment() | changes, capture_output=True, text=True
    )
    assert ended.returncode == 1
    return ended.stderr


@pytest.mark.integration
def test_a_machine_without_network_and_caches_is_told_what_to_do(copy: Path, tmp_path: Path) -> None:
    nothing = {"XDG_CACHE_HOME": str(tmp_path), "PIP_CACHE_DIR": str(tmp_path), "PIP_FIND_LINKS": ""}
    refusal = read_refusal(copy, **nothing, PIP_INDEX_URL="https://127.0.0.1:9/simple")
    assert "cannot get the packages in requirements.txt" in refusal
    assert "Connect this machine to a network, or set\nPIP_INDEX_URL and UV_DEFAULT_INDEX" in refusal


@pytest.mark.integration
def test_a_machine_without_a_python_that_serves_is_told_what_to_install(copy: Path) -> None:
    refusal = read_refusal(copy, PYTHON="/bin/false")
    assert "no Python 3.11, 3.12 or 3.13 with venv found; tried: /bin/false" in refusal
    assert "make setup PYTHON=/path/to/python" in refusal


@pytest.mark.integration
def test_a_folder_that_airflow_cannot_use_is_refused(copy: Path) -> None:
    assert "the path of this folder has a %" in read_refusal(copy.rename(copy.parent / "100 %"))


@pytest.mark.integration
def test_the_ui_says_that_its_port_is_taken(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        environment = os.environ | {"AIRFLOW_HOME": str(tmp_path), "PORT": port}
        ended = subprocess.run([PROJECT / "include" / "ui"], env=environment, capture_output=True, text=True)
    assert (ended.returncode, ended.stderr) == (1, f"ui: port {port} is taken; choose another: make ui PORT=8081\n")


@pytest.fixture
def programs(tmp_path: Path) -> Path:
    """A folder that is the whole PATH, with what a machine of someone who is not root has."""
    folder = tmp_path / "programs"
    folder.mkdir()
    stand_in(folder, "apt-get")
    stand_in(folder, "id", "echo 1000")
    return folder


def stand_in(folder: Path, program: str, text: str = "exit 1") -> None:
    (folder / program).write_text(f"#!/bin/sh\n{text}\n")
    (folder / program).chmod(0o755)


def install_test_dependencies(programs: Path) -> subprocess.CompletedProcess[str]:
    script = PROJECT / "include" / "test-deps"
    return subprocess.run(["/bin/bash", script], env={"PATH": str(programs)}, capture_output=True, text=True)


def test_one_who_is_not_root_is_told_what_tests_lack_and_what_to_type(programs: Path) -> None:
    ended = install_test_dependencies(programs)
    assert ended.returncode == 1
    assert re.fullmatch(
        r"test-deps: installing .*redis-server chromium faketime iproute2 util-linux openssl nginx needs root; "
        r"run: sudo make test-deps\n",
        ended.stderr,
    )
    (programs / "apt-get").unlink()
    said = install_test_dependencies(programs).stderr
    assert "no apt-get on this machine; install with its own package manager: " in said


def test_nothing_is_installed_or_said_where_tests_lack_nothing(programs: Path) -> None:
    names = ("initdb", "redis-server", "google-chrome", "faketime", "ip", "unshare", "nsenter", "openssl", "nginx")
    for name in names:
        stand_in(programs, name)
    ended = install_test_dependencies(programs)
    assert (ended.returncode, ended.stdout + ended.stderr) == (0, "")


@pytest.fixture
def system(tmp_path: Path, programs: Path) -> Path:
    """A folder in place of / for test-deps, which root calls where only openssl is missing and apt-get installs it."""
    folder = tmp_path / "system"
    for name in ("run/lock", "usr/sbin"):
        (folder / name).mkdir(parents=True)
    text = (PROJECT / "include" / "test-deps").read_text()
    (folder / "test-deps").write_text(re.sub(r"(?m)^(\w+=)/(?=run/|etc/|usr/)", rf"\1{folder}/", text))
    for name in ("initdb", "redis-server", "google-chrome", "faketime", "ip", "unshare", "nsenter", "nginx"):
        stand_in(programs, name)
    for name in ("chmod", "flock", "mkdir", "rm", "true"):
        found = shutil.which(name)
        assert found
        (programs / name).symlink_to(found)
    stand_in(programs, "id", "echo 0")
    let_apt_get_install(programs, f"'{folder}/usr/sbin/policy-rc.d'; echo $? >'{folder}/answer'")
    return folder


def let_apt_get_install(programs: Path, text: str) -> None:
    """Let it do something, a service's start for example, and install openssl."""
    made = programs / "openssl"
    stand_in(programs, "apt-get", f"case $* in *install*) {text}; : >'{made}'; chmod +x '{made}' ;; esac")


def call_test_dependencies(system: Path, programs: Path) -> subprocess.Popen[str]:
    command = ["/bin/bash", system / "test-deps"]
    return subprocess.Popen(command, env={"PATH": str(programs)}, stderr=subprocess.PIPE, text=True)


def list_test_dependency_files(system: Path) -> list[Path]:
    return sorted(file for name in ("usr", "etc") for file in (system / name).rglob("*") if file.is_file())


def kill_while_apt_get_runs(system: Path, programs: Path) -> subprocess.Popen[str]:
    """A call that apt-get kills, with what it has left; a zombie, so that its process number is taken."""
    apt_get = (programs / "apt-get").read_text()
    let_apt_get_install(programs, "kill -9 $PPID; exit")
    process = call_test_dependencies(system, programs)
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert process.stderr is not None
    with process.stderr:
        process.stderr.read()  # apt-get has ended too
    (programs / "apt-get").write_text(apt_get)
    assert len(list_test_dependency_files(system)) == 2
    return process


def test_no_service_starts_while_packages_are_installed_not_even_after_a_killed_call(
    system: Path, programs: Path
) -> None:
    kill_while_apt_get_runs(system, programs).wait()
    process = call_test_dependencies(system, programs)
    assert (process.communicate()[1], process.returncode) == ("\x1b[1m==> Installing openssl\x1b[0m\n", 0)
    assert (system / "answer").read_text() == "101\n"
    assert list_test_dependency_files(system) == []


def test_what_a_killed_call_left_hinders_no_service_and_goes_with_the_next_call(system: Path, programs: Path) -> None:
    killed = kill_while_apt_get_runs(system, programs)
    policy = system / "usr" / "sbin" / "policy-rc.d"
    assert subprocess.run([policy], env={"PATH": str(programs)}).returncode == 0
    killed.wait()
    stand_in(programs, "openssl")
    process = call_test_dependencies(system, programs)
    assert (process.communicate()[1], process.returncode) == ("", 0)
    assert list_test_dependency_files(system) == []


def test_a_container_keeps_its_own_policy(system: Path, programs: Path) -> None:
    policy = system / "usr" / "sbin" / "policy-rc.d"
    stand_in(policy.parent, policy.name, "exit 101")
    process = call_test_dependencies(system, programs)
    process.communicate()
    assert (process.returncode, (system / "answer").read_text()) == (0, "101\n")
    assert list_test_dependency_files(system) == [policy]


def test_a_link_that_anyone_can_plant_is_not_written_through(system: Path, programs: Path, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    for name in ("fmnist-test-deps", "fmnist-test-deps.lock"):
        (system / "run" / "lock" / name).symlink_to(victim)
    process = call_test_dependencies(system, programs)
    process.communicate()
    assert (process.returncode, victim.read_text()) == (0, "precious")


def test_a_call_that_is_told_to_end_does_so_after_apt_get(system: Path, programs: Path) -> None:
    let_apt_get_install(programs, f"kill $PPID; '{system}/usr/sbin/policy-rc.d'; echo $? >'{system}/answer'")
    process = call_test_dependencies(system, programs)
    process.communicate()
    assert (process.returncode, (system / "answer").read_text()) == (1, "101\n")
    assert list_test_dependency_files(system) == []
