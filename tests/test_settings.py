from __future__ import annotations

import json
import math
import os
import re
import subprocess
from datetime import timedelta
from pathlib import Path

import pytest

from fmnist_tasks.errors import SettingsError
from fmnist_tasks.settings import PROFILES, PROJECT, Parameters, Settings


def test_defaults_lie_below_the_project() -> None:
    settings = Settings.from_environment({})
    assert settings.home == PROJECT / "var"
    assert settings.store == (PROJECT / "var" / "store").as_uri()
    assert settings.data_dir is None
    assert settings.dataset.is_file()


def test_the_environment_wins(tmp_path: Path) -> None:
    settings = Settings.from_environment({"FMNIST_HOME": str(tmp_path), "FMNIST_STORE": "", "FMNIST_DATA_DIR": "~/x"})
    assert settings.store == (tmp_path / "store").as_uri()
    assert settings.data_dir == Path.home() / "x"
    named = {"FMNIST_DATASET": str(tmp_path), "FMNIST_OVERDUE_DAYS": "3", "FMNIST_PREDICT_PREFIX": "inbox/"}
    settings = Settings.from_environment(named)
    assert (settings.dataset, settings.overdue, settings.predict_prefix) == (tmp_path, timedelta(days=3), "inbox/")


@pytest.mark.parametrize("days", ["0", "-1", "1.5", "a week", "9999999999"])
def test_days_without_meaning_are_refused(days: str) -> None:
    with pytest.raises(SettingsError, match=f"FMNIST_OVERDUE_DAYS: '{days}' is no number of days"):
        Settings.from_environment({"FMNIST_OVERDUE_DAYS": days})


@pytest.mark.parametrize(("value", "approval"), [("", False), ("false", False), ("true", True)])
def test_scheduled_runs_wait_for_an_approval_if_it_is_set(value: str, approval: bool) -> None:
    assert Settings.from_environment({"FMNIST_APPROVAL": value}).approval is approval


@pytest.mark.parametrize("value", ["True", "yes", "1", "on", " true", "0"])
def test_an_approval_that_is_neither_true_nor_false_is_refused(value: str) -> None:
    with pytest.raises(SettingsError, match=f"FMNIST_APPROVAL: '{value}' is neither true nor false"):
        Settings.from_environment({"FMNIST_APPROVAL": value})


@pytest.mark.parametrize("seconds", ["-1", "1.5", "a minute", "9" * 20])
def test_seconds_without_meaning_are_refused(seconds: str) -> None:
    with pytest.raises(SettingsError, match=f"FMNIST_SETTLE_SECONDS: '{seconds}' is no number of seconds"):
        Settings.from_environment({"FMNIST_SETTLE_SECONDS": seconds})


@pytest.mark.parametrize("name", ["FMNIST_HOME", "FMNIST_DATASET", "FMNIST_DATA_DIR"])
@pytest.mark.parametrize("given", ["~nobody-of-that-name/x", "a\0b"])
def test_what_is_no_path_is_refused(name: str, given: str) -> None:
    with pytest.raises(SettingsError, match=f"{name}: .* is no path"):
        Settings.from_environment({name: given})


def test_every_setting_is_in_the_readme_and_reaches_the_containers() -> None:
    asked = {"FMNIST_HEARTBEAT_URL", "FMNIST_TRUSTED_KEYS_FILE"}  # which only their users read

    class Environment(dict[str, str]):
        def get(self, name: str, default: str | None = None) -> str | None:
            asked.add(name)
            return default

    Settings.from_environment(Environment())
    table = re.findall(r"^\| `(FMNIST_\w+)` \|", (PROJECT / "README.md").read_text(), re.MULTILINE)
    assert set(table) == asked
    compose = (PROJECT / "docker-compose.yaml").read_text()
    example = (PROJECT / ".env.example").read_text()
    for name in asked - {"FMNIST_HOME", "FMNIST_STORE"}:  # which are those of the containers
        assert f"  {name}: ${{{name}:-}}\n" in compose
        assert f"\n{name}=\n" in example


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"profile": "fast"}, "profile: 'fast' is unknown; choose one of quick, standard, thorough"),
        ({"accuracy_threshold": 92}, "92 lies outside 0..1"),
        ({"accuracy_threshold": -0.1}, "outside 0..1"),
        ({"accuracy_threshold": math.nan}, "outside 0..1"),
        ({"accuracy_threshold": "0.9"}, "is not a number"),
        ({"seed": -1}, "whole number"),
        ({"seed": 1.5}, "whole number"),
        ({"seed": True}, "whole number"),
        ({"candidates": 0}, "0 lies outside 1..16"),
        ({"candidates": 17}, "17 lies outside 1..16"),
        ({"candidates": 2.0}, "whole number"),
        ({"force": 1}, "neither true nor false"),
        ({"policy": "strict"}, "no mapping"),
        ({"policy": {"accuracy": 3}, "accuracy_threshold": 0.9}, "policy: accuracy: 3 is no mapping"),
        ({"approval": "yes"}, "neither true nor false"),
        ({"epochs": 3}, "unknown parameter epochs; known are profile, seed, candidates, accuracy_threshold, policy, "),
    ],
)
def test_a_parameter_without_meaning_is_refused(values: dict[str, object], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        Parameters.from_mapping(values)


def test_parameters_survive_json() -> None:
    parameters = Parameters(profile="quick", seed=3, candidates=4, accuracy_threshold=0.5, policy={"a": {}}, force=True)
    assert Parameters.from_mapping(parameters.as_json()) == parameters
    assert parameters.seeds == [3, 4, 5, 6]


def test_a_shell_with_the_project_knows_its_programs_and_where_airflow_is(tmp_path: Path) -> None:
    program = "source include/activate && command -v airflow fmnist pytest && echo $AIRFLOW_HOME"
    environment = {"PATH": "/usr/bin:/bin", "FMNIST_HOME": str(tmp_path)}
    ended = subprocess.run(["bash", "-c", program], cwd=PROJECT, env=environment, capture_output=True, text=True)
    programs = [str(PROJECT / ".venv" / "bin" / name) for name in ("airflow", "fmnist", "pytest")]
    assert ended.stdout.splitlines() == [*programs, str(tmp_path / "airflow")]


def test_make_run_hands_its_variables_to_the_run() -> None:
    given = ["PROFILE=quick", "SEED=1", "CANDIDATES=3", "THRESHOLD=0.93", "FORCE=true", 'POLICY={"speed": {}}']
    for variables, asked in (
        ([], Parameters()),
        (given, Parameters("quick", 1, 3, accuracy_threshold=0.93, policy={"speed": {}}, force=True)),
    ):
        command = ["make", "--dry-run", "--no-print-directory", "run", *variables]
        bare = {"PATH": os.environ["PATH"]}
        printed = subprocess.run(command, cwd=PROJECT, env=bare, capture_output=True, text=True, check=True).stdout
        (conf,) = re.findall(r"include/run '(.*)'", printed)
        assert Parameters.from_mapping(json.loads(conf)) == asked


def test_early_stopping_waits_for_half_of_the_fine_tuning() -> None:
    assert min(profile.base.patience for profile in PROFILES.values()) == 5
    assert all(profile.tuning.patience >= profile.tuning.epochs // 2 for profile in PROFILES.values())
