"""What the caller of the tests has set for something else does not reach them, and no test is left out in CI."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import absl.logging
import pytest

from fmnist_tasks.settings import PROJECT

FOREIGN = {
    "AIRFLOW_CONN_FMNIST_APPRISE": "json://receiver.invalid",
    "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": "sqlite:////production.db",
    "AIRFLOW__CORE__DAGS_FOLDER": "/another/dags",
    "FMNIST_STORE": "s3://production",
    "MINIO_VOLUMES": "/data",
    "MINIO_SECRET_KEY": "secret",
    "AWS_PROFILE": "production",
    "PYTHONPATH": "/another",
}


def environment_of_tests(**given: str) -> dict[str, str]:
    """What the tests see where the caller has set these variables."""
    program = "import json, os, tests.conftest; print(json.dumps(dict(os.environ)))"
    bare = {"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/")}
    command = [sys.executable, "-c", program]
    ended = subprocess.run(command, cwd=PROJECT, env=bare | given, capture_output=True, text=True, check=True)
    return dict(json.loads(ended.stdout.splitlines()[-1]))


def test_what_is_set_for_another_airflow_or_store_does_not_reach_the_tests() -> None:
    seen = environment_of_tests(**FOREIGN, MINIO="/usr/bin/minio", http_proxy="http://proxy.invalid")
    assert set(FOREIGN) & set(seen) == {"AIRFLOW__CORE__DAGS_FOLDER"}
    assert seen["AIRFLOW__CORE__DAGS_FOLDER"] == str(PROJECT / "dags")
    assert (seen["MINIO"], seen["no_proxy"]) == ("/usr/bin/minio", "127.0.0.1,localhost")


def test_a_server_that_is_named_for_the_tests_keeps_its_credentials() -> None:
    seen = environment_of_tests(**FOREIGN, FMNIST_TEST_ENDPOINT="http://127.0.0.1:9000")
    assert (seen["MINIO_SECRET_KEY"], seen["FMNIST_TEST_ENDPOINT"]) == ("secret", "http://127.0.0.1:9000")


def test_the_log_handler_of_tensorflow_closes_no_stream_of_pytest(capsys: pytest.CaptureFixture[str]) -> None:
    handler = absl.logging.get_absl_handler()
    handler.close()  # as Airflow does with all handlers when it configures its own
    assert not handler.python_handler.stream.closed


def test_a_shell_of_another_clone_lends_no_homes() -> None:
    def read_homes(**given: str) -> list[str]:
        command = ["bash", "-c", f'source "{PROJECT}/include/activate"; printf "%s\\n" "$FMNIST_HOME" "$AIRFLOW_HOME"']
        bare = {"PATH": os.environ["PATH"]}
        ended = subprocess.run(command, env=bare | given, capture_output=True, text=True, check=True)
        return ended.stdout.splitlines()

    own = [f"{PROJECT}/var", f"{PROJECT}/var/airflow"]
    other = {"FMNIST_ACTIVATED": "/b", "FMNIST_HOME": "/b/var", "AIRFLOW_HOME": "/b/var/airflow"}
    assert read_homes() == read_homes(**other) == own
    assert read_homes(FMNIST_HOME="/chosen") == ["/chosen", "/chosen/airflow"]
    assert read_homes(**other | {"FMNIST_HOME": "/chosen"}) == ["/chosen", "/chosen/airflow"]


@pytest.mark.parametrize("home", ["/a/q?x", "/a/5%0", "/a/d$HOME"])
def test_a_home_that_airflow_cannot_hold_is_refused(home: str) -> None:
    command = ["bash", "-c", f'source "{PROJECT}/include/activate"']
    bare = {"PATH": os.environ["PATH"], "FMNIST_HOME": home}
    ended = subprocess.run(command, env=bare, capture_output=True, text=True)
    assert (ended.returncode, "cannot hold a path with % ? or $; choose another" in ended.stderr) == (1, True)


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
    ended = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", *plugin, "--rootdir", tmp_path, "-c", tmp_path / "pytest.ini", tmp_path],
        cwd=PROJECT,
        env=os.environ | {"CI": ci},
        capture_output=True,
        text=True,
    )
    assert ended.returncode == code, ended.stdout + ended.stderr
    assert ("omitted in CI" in ended.stdout) == bool(code)


@pytest.mark.parametrize(("ci", "measured"), [("", False), ("false", False), ("true", True), ("1", True)])
def test_in_ci_coverage_is_measured_and_enforced(ci: str, measured: bool) -> None:
    bare = {"PATH": os.environ["PATH"], "CI": ci, "ENFORCED": "; true"}
    command = ["make", "--dry-run", "test"]
    printed = subprocess.run(command, cwd=PROJECT, env=bare, capture_output=True, text=True, check=True).stdout
    (tests,) = (line for line in printed.splitlines() if "not exhaustive" in line)
    assert ("coverage run" in tests, "&& coverage report" in tests, "; true" in tests) == (measured, measured, False)
