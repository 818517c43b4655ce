"""Settings of the caller's own Airflow or store do not reach the tests, and CI skips no test."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import absl.logging
import pytest

from fmnist_tasks.settings import PROJECT

FOREIGN_SETTINGS = {
    "AIRFLOW_CONN_FMNIST_APPRISE": "json://receiver.invalid",
    "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": "sqlite:////production.db",
    "AIRFLOW__CORE__DAGS_FOLDER": "/another/dags",
    "FMNIST_STORE": "s3://production",
    "MINIO_VOLUMES": "/data",
    "MINIO_SECRET_KEY": "secret",
    "AWS_PROFILE": "production",
    "PYTHONPATH": "/another",
}


def read_test_environment(**caller: str) -> dict[str, str]:
    """The environment of the tests if their caller has set these variables."""
    program = "import json, os, tests.conftest; print(json.dumps(dict(os.environ)))"
    minimal = {"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/")}
    command = [sys.executable, "-c", program]
    result = subprocess.run(command, cwd=PROJECT, env=minimal | caller, capture_output=True, text=True, check=True)
    return dict(json.loads(result.stdout.splitlines()[-1]))


def test_settings_of_another_airflow_or_store_do_not_reach_the_tests() -> None:
    environment = read_test_environment(**FOREIGN_SETTINGS, MINIO="/usr/bin/minio", http_proxy="http://proxy.invalid")
    assert set(FOREIGN_SETTINGS) & set(environment) == {"AIRFLOW__CORE__DAGS_FOLDER"}
    assert environment["AIRFLOW__CORE__DAGS_FOLDER"] == str(PROJECT / "dags")
    assert (environment["MINIO"], environment["no_proxy"]) == ("/usr/bin/minio", "127.0.0.1,localhost")


def test_credentials_reach_the_tests_if_the_caller_names_a_server() -> None:
    environment = read_test_environment(**FOREIGN_SETTINGS, FMNIST_TEST_ENDPOINT="http://127.0.0.1:9000")
    assert environment["MINIO_SECRET_KEY"] == "secret"  # noqa: S105
    assert environment["FMNIST_TEST_ENDPOINT"] == "http://127.0.0.1:9000"


def test_the_log_handler_of_tensorflow_does_not_close_streams_of_pytest(capsys: pytest.CaptureFixture[str]) -> None:
    handler = absl.logging.get_absl_handler()
    handler.close()  # as Airflow does with all handlers when it configures logging
    assert not handler.python_handler.stream.closed


def test_homes_of_another_clone_are_ignored() -> None:
    def read_homes(**caller: str) -> list[str]:
        command = ["bash", "-c", f'source "{PROJECT}/include/activate"; printf "%s\\n" "$FMNIST_HOME" "$AIRFLOW_HOME"']
        minimal = {"PATH": os.environ["PATH"]}
        result = subprocess.run(command, env=minimal | caller, capture_output=True, text=True, check=True)
        return result.stdout.splitlines()

    homes = [f"{PROJECT}/var", f"{PROJECT}/var/airflow"]
    other_clone = {"FMNIST_ACTIVATED": "/b", "FMNIST_HOME": "/b/var", "AIRFLOW_HOME": "/b/var/airflow"}
    assert read_homes() == read_homes(**other_clone) == homes
    assert read_homes(FMNIST_HOME="/chosen") == ["/chosen", "/chosen/airflow"]
    assert read_homes(**other_clone | {"FMNIST_HOME": "/chosen"}) == ["/chosen", "/chosen/airflow"]


@pytest.mark.parametrize("home", ["/a/q?x", "/a/5%0", "/a/d$HOME"])
def test_a_home_that_airflow_cannot_use_is_refused(home: str) -> None:
    command = ["bash", "-c", f'source "{PROJECT}/include/activate"']
    minimal = {"PATH": os.environ["PATH"], "FMNIST_HOME": home}
    result = subprocess.run(command, env=minimal, capture_output=True, text=True)
    assert (result.returncode, "cannot contain a path with % ? or $; choose another" in result.stderr) == (1, True)


@pytest.mark.parametrize(
    "omitted",
    [
        "@pytest.mark.skip\ndef test_it(): pass",
        "def test_it(): pytest.skip('because')",
        "pytest.importorskip('no_such_module')",
        "@pytest.mark.xfail\ndef test_it(): raise ValueError",
    ],
)
@pytest.mark.parametrize(("ci", "code"), [("false", 0), ("1", 1)])
def test_in_ci_no_test_is_omitted(tmp_path: Path, omitted: str, ci: str, code: int) -> None:
    (tmp_path / "test_omitted.py").write_text(f"import pytest\n{omitted}\n")
    (tmp_path / "test_other.py").write_text("def test_other(): pass\n")
    (tmp_path / "pytest.ini").touch()
    plugin = ["-p", "tests.support.skip_summary", "-p", "no:cacheprovider"]
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", *plugin, "--rootdir", tmp_path, "-c", tmp_path / "pytest.ini", tmp_path],
        cwd=PROJECT,
        env=os.environ | {"CI": ci},
        capture_output=True,
        text=True,
    )
    assert result.returncode == code, result.stdout + result.stderr
    assert ("omitted in CI" in result.stdout) == bool(code)


@pytest.mark.parametrize(("thread", "code"), [("Thread()._bootstrap", 0), ("fail", 1)])
def test_only_threads_that_could_not_begin_are_ignored_while_coverage_is_measured(
    tmp_path: Path, thread: str, code: int
) -> None:
    """Such a thread fails in `Thread._bootstrap`, before its own function."""
    (tmp_path / "test_thread.py").write_text(
        "import _thread, time\n"
        "begun = []\n"
        "def fail(*_): begun.append(1); raise RuntimeError('a trace function is being installed')\n"
        "class Thread: _bootstrap = fail\n"
        "Thread._bootstrap.__qualname__ = 'Thread._bootstrap'\n"
        "def test_it():\n"
        f"    _thread.start_new_thread({thread}, ())\n"
        "    while not begun or _thread._count(): time.sleep(0.01)\n"
    )
    (tmp_path / "pytest.ini").write_text("[pytest]\nfilterwarnings = error\n")
    options = ["-q", "-p", "tests.support.traced_threads", "-p", "no:cacheprovider"]
    command = [sys.executable, "-m", "pytest", *options, "-c", tmp_path / "pytest.ini", tmp_path]
    result = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True)
    assert result.returncode == code, result.stdout


@pytest.mark.parametrize(
    ("target", "ci", "measured"),
    [
        ("test-all", "", False),
        ("test-all", "false", False),
        ("test-all", "true", True),
        ("test-all", "1", True),
        ("coverage", "", True),
        ("test", "1", False),
    ],
)
def test_coverage_is_measured_and_enforced_by_some_targets(target: str, ci: str, measured: bool) -> None:
    minimal = {"PATH": os.environ["PATH"], "CI": ci, "ENFORCED": "; true"}
    command = ["make", "--dry-run", target]
    output = subprocess.run(command, cwd=PROJECT, env=minimal, capture_output=True, text=True, check=True).stdout
    (tests,) = (line for line in output.splitlines() if "tests.support.contain" in line)
    assert ("coverage run" in tests, "&& coverage report" in tests, "; true" in tests) == (measured, measured, False)


def test_the_minimum_of_coverage_is_the_documented_one() -> None:
    settings = tomllib.loads((PROJECT / "pyproject.toml").read_text())
    minimum = settings["tool"]["coverage"]["report"]["fail_under"]
    assert minimum == 97.5
    assert f"below {minimum}%" in (PROJECT / "CONTRIBUTING.md").read_text()
