from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any, cast

import pytest
from pydantic import ValidationError

from fmnist_tasks.errors import SettingsError
from fmnist_tasks.evaluation import policy
from fmnist_tasks.evaluation.policy import read_policy
from fmnist_tasks.settings import Parameters


def test_the_policy_of_the_project_asks_for_92_percent() -> None:
    asked = read_policy({})
    assert (asked.accuracy.at_least, asked.accuracy.otherwise) == (0.92, "reject")
    assert asked.novelty.families


def test_the_policy_of_the_project_asks_for_an_fpr_by_family() -> None:
    close = {"digits": 0.01, "upside down": 0.02, "rotated by 90°": 0.02}
    families = read_policy({}).novelty.families
    assert {name: family.fpr99_at_most for name, family in families.items()} == dict.fromkeys(families, 0.005) | close


def test_a_run_may_ask_otherwise_in_one_place_only() -> None:
    asked = read_policy({"classes": {"recall_at_least": 0.8}})
    assert asked.classes.recall_at_least == 0.8
    assert asked.model_copy(update={"classes": read_policy({}).classes}) == read_policy({})


def test_the_threshold_of_the_form_goes_before_the_policy() -> None:
    parameters = Parameters(accuracy_threshold=0.5, policy={"accuracy": {"at_least": 0.6, "otherwise": "hold"}})
    asked = read_policy(parameters.policy_changes)
    assert (asked.accuracy.at_least, asked.accuracy.otherwise) == (0.5, "hold")
    assert read_policy(Parameters().policy_changes) == read_policy({})


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"accuracy": {"at_least": 92}}, r"accuracy.at_least: Input should be less than or equal to 1"),
        ({"accuracy": {"at_least": math.nan}}, r"accuracy.at_least"),
        ({"accuracy": {"at_least": "0.9"}}, r"accuracy.at_least: Input should be a valid number"),
        ({"accuracy": {"at_least": True}}, r"accuracy.at_least"),
        ({"accuracy": {"otherwise": "promote"}}, r"accuracy.otherwise: Input should be 'reject' or 'hold'"),
        ({"accuracy": None}, r"accuracy"),
        ({"acuracy": {"at_least": 0.9}}, r"acuracy: Extra inputs are not permitted"),
        ({"classes": {"recall": 0.9}}, r"classes.recall: Extra inputs are not permitted"),
        ({"champion": {"significance": 0}}, r"champion.significance"),
        ({"novelty": {"families": {}}}, None),  # the families of the file stay
        ({"novelty": {"families": None}}, r"novelty.families"),
        ({"novelty": {"families": {"faces": {"auroc_at_least": 0.9}}}}, r"fpr99_at_most: Field required"),
        ({"speed": {"bytes_at_most": -1}}, r"speed.bytes_at_most"),
    ],
)
def test_what_has_no_meaning_is_refused_by_name(changes: dict, fault: str | None) -> None:
    if fault is None:
        assert read_policy(changes) == read_policy({})
        return
    with pytest.raises(SettingsError, match=fault):
        read_policy(changes)


SHARES = [
    ("accuracy", "at_least"),
    ("classes", "recall_at_least"),
    ("calibration", "error_at_most"),
    ("novelty", "families", "digits", "auroc_at_least"),
    ("novelty", "families", "digits", "fpr99_at_most"),
]
SIGNIFICANCES = [("champion", "significance"), ("classes", "significance")]
LIMITS = [("speed", "single_ms_at_most"), ("speed", "load_seconds_at_most")]
SIZES = [("speed", "bytes_at_most")]
CHOICES = [
    ("accuracy", "otherwise"),
    ("champion", "worse"),
    ("champion", "undecided"),
    ("classes", "otherwise"),
    ("calibration", "otherwise"),
    ("novelty", "otherwise"),
    ("speed", "otherwise"),
]
NO_NUMBERS = [math.nan, math.inf, -math.inf, "0.5", True, None]


def change(place: tuple[str, ...], value: object) -> dict[str, Any]:
    """A run's change of one value of the policy."""
    for name in reversed(place):
        value = {name: value}
    return cast("dict[str, Any]", value)


def asked_at(place: tuple[str, ...], asked: policy.Policy) -> object:
    found: Any = asked.model_dump()
    for name in place:
        found = found[name]
    return found


@pytest.mark.parametrize(
    ("places", "values"),
    [
        (SHARES, [0.0, 0.5, 1.0]),
        (SIGNIFICANCES, [1e-9, 0.5, 0.999]),
        (LIMITS, [1e-9, 1e9]),
        (SIZES, [1, 10**12]),
        (CHOICES, ["reject", "hold"]),
    ],
    ids=["share", "significance", "limit", "size", "choice"],
)
def test_a_run_may_ask_for_every_value_that_has_a_meaning(places: list[tuple[str, ...]], values: list[object]) -> None:
    for place in places:
        for value in values:
            assert asked_at(place, read_policy(change(place, value))) == value


@pytest.mark.parametrize(
    ("places", "values"),
    [
        (SHARES, [-1e-9, 1 + 1e-9, 92, *NO_NUMBERS]),
        (SIGNIFICANCES, [0, 1, -0.05, *NO_NUMBERS]),
        (LIMITS, [0, -1, *NO_NUMBERS]),
        (SIZES, [0, -1, 1.5, *NO_NUMBERS]),
        (CHOICES, ["promote", "", None, True]),
    ],
    ids=["share", "significance", "limit", "size", "choice"],
)
def test_a_run_may_not_ask_for_a_value_without_meaning(places: list[tuple[str, ...]], values: list[object]) -> None:
    for place in places:
        for value in values:
            with pytest.raises(SettingsError, match=re.escape(".".join(place))):
                read_policy(change(place, value))


@pytest.mark.parametrize("place", [*SHARES, *SIGNIFICANCES, *LIMITS, *SIZES, *CHOICES], ids=".".join)
def test_no_value_of_the_file_may_be_left_out(place: tuple[str, ...]) -> None:
    complete = read_policy({}).model_dump()
    section = complete
    for name in place[:-1]:
        section = section[name]
    del section[place[-1]]
    with pytest.raises(ValidationError, match=re.escape(".".join(place)) + r"\n  Field required"):
        policy.Policy.model_validate(complete)


def test_a_policy_that_asks_nothing_of_any_family_is_refused() -> None:
    complete = read_policy({}).model_dump()
    complete["novelty"]["families"] = {}
    with pytest.raises(ValidationError, match=r"novelty.families\n  Dictionary should have at least 1 item"):
        policy.Policy.model_validate(complete)


@pytest.mark.parametrize("place", [(), ("speed",), ("novelty", "families", "digits")], ids=".".join)
def test_a_value_that_the_policy_does_not_know_is_refused(place: tuple[str, ...]) -> None:
    with pytest.raises(SettingsError, match=re.escape(".".join((*place, "unknown"))) + ": Extra inputs"):
        read_policy(change((*place, "unknown"), 0.5))


def test_a_policy_does_not_change_once_it_is_read() -> None:
    asked = read_policy({})
    with pytest.raises(ValidationError, match="frozen"):
        asked.accuracy.at_least = 0.0


def test_a_file_that_lacks_a_section_or_is_no_toml_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(policy, "INCLUDE", tmp_path)
    (tmp_path / "gates.toml").write_text("")
    with pytest.raises(SettingsError, match=r"accuracy: Field required; champion: Field required"):
        read_policy({})
    (tmp_path / "gates.toml").write_text("accuracy = [")
    with pytest.raises(SettingsError, match=r"include/gates.toml: "):
        read_policy({})
