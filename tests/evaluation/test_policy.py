from __future__ import annotations

import math
from pathlib import Path

import pytest

from fmnist_tasks.errors import SettingsError
from fmnist_tasks.evaluation import policy
from fmnist_tasks.evaluation.policy import read_policy
from fmnist_tasks.settings import Parameters


def test_the_policy_of_the_project_asks_for_92_percent() -> None:
    asked = read_policy({})
    assert (asked.accuracy.at_least, asked.accuracy.otherwise) == (0.92, "reject")
    assert asked.novelty.families


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
        ({"novelty": {"families": {"faces": {"auroc_at_least": 0.9}}}}, r"fpr95_at_most: Field required"),
        ({"speed": {"bytes_at_most": -1}}, r"speed.bytes_at_most"),
    ],
)
def test_what_has_no_meaning_is_refused_by_name(changes: dict, fault: str | None) -> None:
    if fault is None:
        assert read_policy(changes) == read_policy({})
        return
    with pytest.raises(SettingsError, match=fault):
        read_policy(changes)


def test_a_file_that_lacks_a_section_or_is_no_toml_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(policy, "INCLUDE", tmp_path)
    (tmp_path / "gates.toml").write_text("")
    with pytest.raises(SettingsError, match=r"accuracy: Field required; champion: Field required"):
        read_policy({})
    (tmp_path / "gates.toml").write_text("accuracy = [")
    with pytest.raises(SettingsError, match=r"include/gates.toml: "):
        read_policy({})
