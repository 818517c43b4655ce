"""The policy: the shipped file, overrides by a run, and values that are refused."""

from __future__ import annotations

import math
import os
import re
from pathlib import Path
from typing import Any, cast

import pytest
from pydantic import ValidationError

from fmnist_tasks.errors import SettingsError
from fmnist_tasks.evaluation.policy import read_policy
from fmnist_tasks.schemas.policy import Policy
from fmnist_tasks.settings import INCLUDE, Parameters


def test_the_policy_of_the_project_requires_92_percent() -> None:
    policy = read_policy({})
    assert (policy.accuracy.min, policy.accuracy.on_failure) == (0.92, "reject")
    assert policy.ood.families


def test_the_policy_of_the_project_limits_the_fpr_by_family() -> None:
    exceptions = {"digits": 0.01, "upside down": 0.02, "rotated by 90°": 0.02}
    families = read_policy({}).ood.families
    assert {name: family.max_fpr99 for name, family in families.items()} == dict.fromkeys(families, 0.005) | exceptions


def test_a_run_may_override_a_single_value() -> None:
    policy = read_policy({"classes": {"min_recall": 0.8}})
    assert policy.classes.min_recall == 0.8
    assert policy.model_copy(update={"classes": read_policy({}).classes}) == read_policy({})


def test_the_threshold_of_the_form_overrides_the_policy() -> None:
    parameters = Parameters(accuracy_threshold=0.5, policy={"accuracy": {"min": 0.6, "on_failure": "hold"}})
    policy = read_policy(parameters.policy_overrides)
    assert (policy.accuracy.min, policy.accuracy.on_failure) == (0.5, "hold")
    assert read_policy(Parameters().policy_overrides) == read_policy({})


@pytest.mark.parametrize(
    ("overrides", "fault"),
    [
        ({"accuracy": {"min": 92}}, r"accuracy.min: Input should be less than or equal to 1"),
        ({"accuracy": {"min": math.nan}}, r"accuracy.min"),
        ({"accuracy": {"min": "0.9"}}, r"accuracy.min: Input should be a valid number"),
        ({"accuracy": {"min": True}}, r"accuracy.min"),
        ({"accuracy": {"on_failure": "promote"}}, r"accuracy.on_failure: Input should be 'reject' or 'hold'"),
        ({"accuracy": None}, r"accuracy"),
        ({"acuracy": {"min": 0.9}}, r"acuracy: unknown"),
        ({"classes": {"recall": 0.9}}, r"classes.recall: unknown"),
        ({"champion": {"significance": 0}}, r"champion.significance"),
        ({"ood": {"families": {}}}, None),  # this does not remove the families of the file
        ({"ood": {"families": None}}, r"ood.families"),
        ({"ood": {"families": {"faces": {"min_auroc": 0.9}}}}, r"max_fpr99: missing"),
        ({"serving": {"max_bytes": -1}}, r"serving.max_bytes"),
    ],
)
def test_an_invalid_override_is_refused_by_name(overrides: dict[str, Any], fault: str | None) -> None:
    if fault is None:
        assert read_policy(overrides) == read_policy({})
        return
    with pytest.raises(SettingsError, match=fault):
        read_policy(overrides)


SHARES = [
    ("accuracy", "min"),
    ("classes", "min_recall"),
    ("calibration", "max_error"),
    ("ood", "families", "digits", "min_auroc"),
    ("ood", "families", "digits", "max_fpr99"),
]
SIGNIFICANCES = [("champion", "significance"), ("classes", "significance")]
LIMITS = [("serving", "max_single_image_ms"), ("serving", "max_load_seconds")]
SIZES = [("serving", "max_bytes")]
CHOICES = [
    ("accuracy", "on_failure"),
    ("champion", "on_significantly_worse"),
    ("champion", "on_inconclusive"),
    ("classes", "on_failure"),
    ("calibration", "on_failure"),
    ("ood", "on_failure"),
    ("serving", "on_failure"),
]
NOT_NUMBERS = [math.nan, math.inf, -math.inf, "0.5", True, None]


def make_override(path: tuple[str, ...], value: object) -> dict[str, Any]:
    """An override of one value of the policy."""
    for name in reversed(path):
        value = {name: value}
    return cast("dict[str, Any]", value)


def read_value(path: tuple[str, ...], policy: Policy) -> object:
    """Return the value of the policy at this path."""
    value: Any = policy.to_json()
    for name in path:
        value = value[name]
    return value


@pytest.mark.parametrize(
    ("paths", "values"),
    [
        (SHARES, [0.0, 0.5, 1.0]),
        (SIGNIFICANCES, [1e-9, 0.5, 0.999]),
        (LIMITS, [1e-9, 1e9]),
        (SIZES, [1, 10**12]),
        (CHOICES, ["reject", "hold"]),
    ],
    ids=["share", "significance", "limit", "size", "choice"],
)
def test_a_run_may_override_with_every_valid_value(paths: list[tuple[str, ...]], values: list[object]) -> None:
    for path in paths:
        for value in values:
            assert read_value(path, read_policy(make_override(path, value))) == value


@pytest.mark.parametrize(
    ("paths", "values"),
    [
        (SHARES, [-1e-9, 1 + 1e-9, 92, *NOT_NUMBERS]),
        (SIGNIFICANCES, [0, 1, -0.05, *NOT_NUMBERS]),
        (LIMITS, [0, -1, *NOT_NUMBERS]),
        (SIZES, [0, -1, 1.5, *NOT_NUMBERS]),
        (CHOICES, ["promote", "", None, True]),
    ],
    ids=["share", "significance", "limit", "size", "choice"],
)
def test_a_run_may_not_override_with_an_invalid_value(paths: list[tuple[str, ...]], values: list[object]) -> None:
    for path in paths:
        for value in values:
            with pytest.raises(SettingsError, match=re.escape(".".join(path))):
                read_policy(make_override(path, value))


@pytest.mark.parametrize("path", [*SHARES, *SIGNIFICANCES, *LIMITS, *SIZES, *CHOICES], ids=".".join)
def test_every_value_of_the_file_is_required(path: tuple[str, ...]) -> None:
    complete = read_policy({}).to_json()
    section = complete
    for name in path[:-1]:
        section = section[name]
    del section[path[-1]]
    with pytest.raises(ValidationError, match=re.escape(".".join(path)) + r"\n  Field required"):
        Policy.model_validate(complete)


def test_a_policy_without_any_family_is_refused() -> None:
    complete = read_policy({}).to_json()
    complete["ood"]["families"] = {}
    with pytest.raises(ValidationError, match=r"ood.families\n  Dictionary should have at least 1 item"):
        Policy.model_validate(complete)


@pytest.mark.parametrize("path", [(), ("serving",), ("ood", "families", "digits")], ids=".".join)
def test_an_unknown_key_is_refused(path: tuple[str, ...]) -> None:
    with pytest.raises(SettingsError, match=re.escape(".".join((*path, "unknown"))) + ": unknown"):
        read_policy(make_override((*path, "unknown"), 0.5))


def test_a_policy_is_immutable() -> None:
    policy = read_policy({})
    with pytest.raises(ValidationError, match="frozen"):
        policy.accuracy.min = 0.0


def test_a_pipe_is_not_a_policy(tmp_path: Path) -> None:
    """Reading it would not end."""
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(SettingsError, match=rf"^FMNIST_GATES: {tmp_path}/pipe is not a file"):
        read_policy({}, tmp_path / "pipe")


def test_a_file_that_cannot_be_read_lacks_a_section_or_is_not_toml_is_refused(tmp_path: Path) -> None:
    policy_file, text = tmp_path / "gates.toml", (INCLUDE / "gates.toml").read_text()
    with pytest.raises(SettingsError, match=rf"^FMNIST_GATES: {policy_file} cannot be read: No such file"):
        read_policy({}, policy_file)
    policy_file.write_text(text.replace("min = 0.92", "min = 0.9", 1))
    assert read_policy({}, policy_file).accuracy.min == 0.9
    for content, fault in (
        (b"\xff", "is not a text file"),
        (
            text.replace("[serving]", "[velocity]", 1).encode(),
            r"serving: missing; velocity: unknown; docs/gates.md lists all keys",
        ),
        (b"accuracy =", "Invalid value"),
        (b"a = " + b"[" * 100_000, "is not valid TOML"),
        (b"#" * (1 << 20) + b"\n", r"has more than 1,048,576 bytes, so it is not such a file"),
    ):
        policy_file.write_bytes(content)
        with pytest.raises(SettingsError, match=fault):
            read_policy({}, policy_file)
