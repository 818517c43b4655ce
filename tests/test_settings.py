from __future__ import annotations

import json
import math
import os
import re
import subprocess
from datetime import timedelta
from pathlib import Path

import pytest

from fmnist_tasks import settings
from fmnist_tasks.errors import SettingsError
from fmnist_tasks.settings import PROFILES, PROJECT, DagSettings, Parameters, Settings


def test_defaults_are_below_the_project() -> None:
    loaded = Settings.from_environment({})
    assert loaded.home == PROJECT / "var"
    assert loaded.store == (PROJECT / "var" / "store").as_uri()
    assert loaded.data_dir is None
    assert loaded.dataset.is_file()
    assert loaded.gates.is_file()


def test_the_environment_overrides_the_defaults(tmp_path: Path) -> None:
    loaded = Settings.from_environment({"FMNIST_HOME": str(tmp_path), "FMNIST_STORE": "", "FMNIST_DATA_DIR": "~/x"})
    assert loaded.store == (tmp_path / "store").as_uri()
    assert loaded.data_dir == Path.home() / "x"
    environment = {"FMNIST_DATASET": str(tmp_path), "FMNIST_OVERDUE_DAYS": "3"}
    loaded = Settings.from_environment(environment)
    assert (loaded.dataset, loaded.overdue_after) == (tmp_path, timedelta(days=3))


def test_without_a_checkout_everything_is_below_airflow_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(settings, "_IS_CHECKOUT", False)
    assert Settings.from_environment({"AIRFLOW_HOME": str(tmp_path)}).home == tmp_path / "fmnist"
    assert Settings.from_environment({}).home == Path.home() / "airflow" / "fmnist"
    assert Settings.from_environment({"FMNIST_HOME": "/h", "AIRFLOW_HOME": str(tmp_path)}).home == Path("/h")


@pytest.mark.parametrize("days", ["0", "-1", "1.5", "a week", "9999999999"])
def test_invalid_days_are_refused(days: str) -> None:
    with pytest.raises(SettingsError, match=f"FMNIST_OVERDUE_DAYS: '{days}' is not a whole number of days"):
        Settings.from_environment({"FMNIST_OVERDUE_DAYS": days})


@pytest.mark.parametrize(("value", "approval"), [("", False), ("false", False), ("true", True)])
def test_scheduled_runs_wait_for_an_approval_if_it_is_set(value: str, approval: bool) -> None:
    assert DagSettings.from_environment({"FMNIST_APPROVAL": value}).defaults.approval is approval


@pytest.mark.parametrize("value", ["True", "yes", "1", "on", " true", "0"])
def test_an_invalid_approval_setting_is_refused(value: str) -> None:
    with pytest.raises(SettingsError, match=f"FMNIST_APPROVAL: '{value}' is neither 'true' nor 'false'"):
        DagSettings.from_environment({"FMNIST_APPROVAL": value})


@pytest.mark.parametrize("seconds", ["-1", "1.5", "a minute", "9" * 20])
def test_invalid_seconds_are_refused(seconds: str) -> None:
    with pytest.raises(SettingsError, match=f"FMNIST_SETTLE_SECONDS: '{seconds}' is not a whole number of seconds"):
        Settings.from_environment({"FMNIST_SETTLE_SECONDS": seconds})


@pytest.mark.parametrize(
    ("name", "value", "fault"),
    [
        ("FMNIST_TIMEZONE", "Mars/Olympus", "'Mars/Olympus' is not a time zone; use a name like Europe/Berlin"),
        ("FMNIST_TIMEZONE", "../etc/passwd", "is not a time zone"),
        ("FMNIST_TIMEZONE", "localtime", "is not a time zone"),
        ("FMNIST_TIMEZONE", "right/UTC", "is not a time zone"),
        ("FMNIST_PROFILE", "fast", "'fast' is unknown; choose one of quick, standard, thorough"),
        ("FMNIST_CANDIDATES", "two", "'two' is not a whole number from 1 to 16"),
        ("FMNIST_CANDIDATES", "17", "17 is not between 1 and 16"),
        ("FMNIST_CANDIDATES", "9" * 5_000, "is not a whole number from 1 to 16"),
        ("FMNIST_TAGS", f"a,{'b' * 101}", "is longer than 100 characters"),
        ("FMNIST_OWNER", "o" * 101, "is longer than 100 characters"),
        ("FMNIST_SCHEDULE", f"0 2 * * 1{',1' * 100}", "is longer than 200 characters"),
    ],
)
def test_an_invalid_setting_of_the_dags_is_refused(name: str, value: str, fault: str) -> None:
    with pytest.raises(SettingsError, match=f"^{name}: .*{re.escape(fault)}") as refused:
        DagSettings.from_environment({name: value})
    assert len(str(refused.value)) < 200


def test_schedule_defaults_owner_and_tags_are_settings() -> None:
    environment = {
        "FMNIST_SCHEDULE": "none",
        "FMNIST_TIMEZONE": "Europe/Berlin",
        "FMNIST_PROFILE": "quick",
        "FMNIST_CANDIDATES": "3",
        "FMNIST_APPROVAL": "true",
        "FMNIST_OWNER": "vision team",
        "FMNIST_TAGS": "vision, weekly,,",
    }
    loaded = DagSettings.from_environment(environment)
    assert (loaded.schedule, loaded.timezone) == (None, "Europe/Berlin")
    assert loaded.defaults == Parameters("quick", candidates=3, approval=True)
    assert (loaded.owner, loaded.tags) == ("vision team", ("vision", "weekly"))
    blank = DagSettings.from_environment({"FMNIST_OWNER": " ", "FMNIST_TAGS": " , "})
    assert (blank.owner, blank.tags) == ("fmnist", ("fmnist",))


def test_a_long_instance_name_is_refused_and_shortened_in_the_alert_about_it() -> None:
    with pytest.raises(SettingsError, match=r"^FMNIST_INSTANCE: 'p{40}'… is longer than 100 characters"):
        Settings.from_environment({"FMNIST_INSTANCE": "p" * 5000})
    assert settings.read_instance({"FMNIST_INSTANCE": "p" * 5000}) == "p" * 100


@pytest.mark.parametrize("name", ["FMNIST_HOME", "FMNIST_DATASET", "FMNIST_DATA_DIR", "FMNIST_GATES"])
@pytest.mark.parametrize("value", ["~nobody-of-that-name/x", "a\0b"])
def test_an_invalid_path_is_refused(name: str, value: str) -> None:
    with pytest.raises(SettingsError, match=f"{name}: .* is not a path"):
        Settings.from_environment({name: value})


def test_every_setting_is_documented_and_reaches_the_containers() -> None:
    names = {"FMNIST_HEARTBEAT_URL", "FMNIST_TRUSTED_KEYS_FILE"}  # other modules read these

    class Environment(dict[str, str]):
        def get(self, name: str, default: str | None = None) -> str | None:
            if name != "AIRFLOW_HOME":  # Airflow's own; without a checkout, results are below it
                names.add(name)
            return default

    Settings.from_environment(Environment())
    DagSettings.from_environment(Environment())
    settings.read_predict_prefix(Environment())
    table = re.findall(r"^\| `(FMNIST_\w+)` \|", (PROJECT / "docs" / "configuration.md").read_text(), re.MULTILINE)
    assert set(table) == names
    compose = (PROJECT / "docker-compose.yaml").read_text()
    example = (PROJECT / ".env.example").read_text()
    for name in names - {"FMNIST_HOME", "FMNIST_STORE", "FMNIST_DATASETS"}:  # the containers set these themselves
        assert f"  {name}: ${{{name}:-}}\n" in compose
        assert f"\n{name}=\n" in example


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"profile": "fast"}, "profile: 'fast' is unknown; choose one of quick, standard, thorough"),
        ({"accuracy_threshold": 92}, "92 is not between 0 and 1"),
        ({"accuracy_threshold": -0.1}, "not between 0 and 1"),
        ({"accuracy_threshold": math.nan}, "not between 0 and 1"),
        ({"accuracy_threshold": "0.9"}, "is not a number"),
        ({"seed": -1}, "whole number"),
        ({"seed": 1.5}, "whole number"),
        ({"seed": True}, "whole number"),
        ({"candidates": 0}, "0 is not between 1 and 16"),
        ({"candidates": 17}, "17 is not between 1 and 16"),
        ({"candidates": 2.0}, "whole number"),
        ({"force": 1}, "neither true nor false"),
        ({"policy": "strict"}, "policy: 'strict' is not an object of sections"),
        ({"policy": {"accuracy": 3}, "accuracy_threshold": 0.9}, "policy: accuracy: 3 is not an object of values"),
        ({"approval": "yes"}, "neither true nor false"),
        ({"epochs": 3}, "unknown parameters: epochs; use profile, seed, candidates, accuracy_threshold, policy, "),
    ],
)
def test_an_invalid_parameter_is_refused(values: dict[str, object], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        Parameters.from_mapping(values)


def test_parameters_survive_json() -> None:
    parameters = Parameters(profile="quick", seed=3, candidates=4, accuracy_threshold=0.5, policy={"a": {}}, force=True)
    assert Parameters.from_mapping(parameters.to_json()) == parameters
    assert parameters.seeds == [3, 4, 5, 6]


def test_an_activated_shell_finds_the_programs_and_the_airflow_home(tmp_path: Path) -> None:
    program = "source include/activate && command -v airflow fmnist pytest && echo $AIRFLOW_HOME"
    environment = {"PATH": "/usr/bin:/bin", "FMNIST_HOME": str(tmp_path)}
    result = subprocess.run(["bash", "-c", program], cwd=PROJECT, env=environment, capture_output=True, text=True)
    programs = [str(PROJECT / ".venv" / "bin" / name) for name in ("airflow", "fmnist", "pytest")]
    assert result.stdout.splitlines() == [*programs, str(tmp_path / "airflow")]


def test_make_run_passes_its_variables_to_the_run() -> None:
    changed = ["PROFILE=quick", "SEED=1", "CANDIDATES=3", "THRESHOLD=0.93", "FORCE=true", 'POLICY={"serving": {}}']
    for variables, expected in (
        ([], Parameters()),
        (changed, Parameters("quick", 1, 3, accuracy_threshold=0.93, policy={"serving": {}}, force=True)),
    ):
        command = ["make", "--dry-run", "--no-print-directory", "run", *variables]
        environment = {"PATH": os.environ["PATH"]}
        result = subprocess.run(command, cwd=PROJECT, env=environment, capture_output=True, text=True, check=True)
        (conf,) = re.findall(r"include/run '(.*)'", result.stdout)
        assert Parameters.from_mapping(json.loads(conf)) == expected


def test_early_stopping_allows_half_of_the_fine_tuning_without_improvement() -> None:
    assert min(profile.base.patience for profile in PROFILES.values()) == 5
    assert all(profile.tuning.patience >= profile.tuning.epochs // 2 for profile in PROFILES.values())
