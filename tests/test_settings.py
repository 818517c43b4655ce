from __future__ import annotations

import math
from pathlib import Path

import pytest

from fmnist_tasks.errors import SettingsError
from fmnist_tasks.settings import PROJECT, Parameters, Settings


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
