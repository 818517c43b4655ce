"""`fmnist` as people and scripts use it: what it prints, and its exit codes."""

from __future__ import annotations

import getpass
import json
import logging
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import airflow  # noqa: F401 - its first import closes what log handlers write to, which inside a command is the output of pytest
import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from fmnist_tasks import service
from fmnist_tasks.cli import app
from fmnist_tasks.data import batches
from fmnist_tasks.data.dataset import make_part
from fmnist_tasks.registry import champion, releases
from fmnist_tasks.registry.documents import seal
from fmnist_tasks.registry.runs import write_record
from fmnist_tasks.settings import PROFILES
from tests.support import synthetic
from tests.support.pipeline import Pipeline
from tests.support.synthetic import RUN

BAD_POLICY = ["ingest", "--policy", "strict"]
COMMANDS = {command.callback.__name__.replace("_", "-") for command in app.registered_commands if command.callback}


@pytest.fixture(autouse=True)
def quiet_afterwards() -> Iterator[None]:
    """Commands that run steps set up logging; take that back."""
    logger = logging.getLogger("fmnist_tasks")
    yield
    logger.handlers = []
    logger.setLevel(logging.NOTSET)


def fmnist(*arguments: object, expect: int = 0) -> Result:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == expect, result.output
    return result


def document(*arguments: object, expect: int = 0) -> object:
    return json.loads(fmnist(*arguments, "--json", expect=expect).stdout)


def test_the_installed_program_lists_its_commands() -> None:
    ended = subprocess.run(["fmnist", "--help"], capture_output=True, text=True, check=True)
    assert {name for name in COMMANDS if f" {name} " in ended.stdout} == COMMANDS
    named_in_the_readme = {"ingest", "validate", "train", "evaluate", "releases", "champion", "history", "rollback"}
    assert named_in_the_readme | {"predict", "verify", "prune"} <= COMMANDS


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_command_explains_itself(name: str) -> None:
    help_text = fmnist(name, "--help").stdout
    assert "Usage:" in help_text
    if name != "download":
        assert "--json" in help_text


def test_an_empty_registry(pipeline: Pipeline) -> None:
    assert document("releases") == document("history") == []
    assert "`make run` makes one" in fmnist("releases").stdout
    for command in (["champion"], ["predict", "x.png"], ["rollback", "v1", "--reason", "r"]):
        assert "there is no champion yet" in fmnist(*command, expect=1).stderr
    for command in ("validate", "train", "evaluate", "tune", "publish", "summary"):
        assert "there is no run yet" in fmnist(command, expect=1).stderr
    assert "there is no release v1" in fmnist("verify", "v1", expect=1).stderr
    assert "run gone left no results" in fmnist("validate", "--run", "gone", expect=1).stderr


@pytest.mark.parametrize(
    "arguments", [["rollback", "v1"], ["verify"], ["predict"], ["champion", "--colour"], ["fly"], BAD_POLICY]
)
def test_wrong_usage_is_exit_code_2(pipeline: Pipeline, arguments: list[str]) -> None:
    assert fmnist(*arguments, expect=2).stdout == ""


def test_a_policy_without_meaning_ends_the_run_at_its_beginning(pipeline: Pipeline) -> None:
    too_much = fmnist("ingest", "--policy", '{"accuracy": {"at_least": 92}}', "--run", "r", expect=1).stderr
    assert "accuracy.at_least: Input should be less than or equal to 1" in too_much
    assert [stat.key for stat in pipeline.store.list("")] == ["runs/r/ingest.json", "runs/r/report.html"]
    family = '{"novelty": {"families": {"digit": {"auroc_at_least": 0.9, "fpr99_at_most": 0.1}}}}'
    unknown = fmnist("ingest", "--policy", family, "--run", "r", expect=1).stderr
    assert "policy: novelty: there are no images of digit; use " in unknown


@pytest.mark.integration
def test_what_is_damaged_is_named_and_hides_nothing_else(finished_pipeline: Pipeline) -> None:
    finished_pipeline.store.put("releases/damaged/manifest.json", b"x")
    finished_pipeline.store.put("runs/damaged/ingest.json", b"x")
    listed = fmnist("releases", "--json", expect=1)
    assert len(json.loads(listed.stdout)) == 1
    assert "error: releases/damaged/manifest.json" in listed.stderr
    summary = fmnist("summary", "--json")
    assert json.loads(summary.stdout)["promoted"]
    assert "left out: runs/damaged/ingest.json" in summary.stderr


def test_a_run_that_found_nothing_new_is_exit_code_0(pipeline: Pipeline) -> None:
    begun = {"created": RUN.created, "started": RUN.created, "parameters": RUN.parameters.as_json(), "seconds": 1.0}
    for name, result in (("ingest", {}), ("detect_change", {"changed": False})):
        write_record(pipeline.store, RUN.id, name, {**begun, "status": "done", "outcome": "", "result": result})
    summary = document("summary")
    assert (summary["run_id"], summary["promoted"], summary["unchanged"]) == (RUN.id, False, True)
    assert "detect_change" in fmnist("summary").stdout


def test_download_names_the_source(pipeline: Pipeline) -> None:
    assert f"four files, sizes and digests as declared, from {pipeline.data}" in fmnist("download").stdout
    assert document("download") == {"dataset": "made", "source": str(pipeline.data)}


def run_step_by_step(data: Path) -> str:
    """Every command of a run, in order; what the training reports while it goes on."""
    policy = {"speed": {"single_ms_at_most": 1000}}
    begun = document("ingest", "--profile", "quick", "--policy", json.dumps(policy), "--run", "by-hand")
    assert begun["ingest"]["source"] == str(data)
    assert "38 checks of 2 parts" in fmnist("validate").stdout
    trained = fmnist("train")
    assert "base model: " in trained.stdout
    assert set(document("evaluate")) == {"evaluate_base", "accuracy_gate"}
    fmnist("tune")
    judged = document("evaluate")
    assert set(judged) == {"evaluate_tuned", "promotion_gate"}
    assert judged["promotion_gate"]["policy"]["speed"]["single_ms_at_most"] == 1000
    fmnist("publish", "--run", "by-hand")
    assert document("summary")["promoted"] is True
    assert "number 1" in fmnist("summary").stdout
    assert document("champion")["version"] == document("releases")[0]["version"]
    return trained.stderr


@pytest.mark.integration
def test_a_whole_run_step_by_step(replaying_pipeline: Pipeline) -> None:
    run_step_by_step(replaying_pipeline.data)


@pytest.mark.exhaustive
def test_a_whole_run_step_by_step_reports_every_epoch_of_a_training(pipeline: Pipeline) -> None:
    assert run_step_by_step(pipeline.data).count("validation loss") == PROFILES["quick"].base.epochs


@pytest.mark.integration
def test_a_rejected_model_is_exit_code_1(pipeline: Pipeline) -> None:
    labels = synthetic.make_images(600, 2)[1]
    labels[:3] = (
        labels[:3] + 1
    ) % synthetic.CLASSES  # no model can be right on these; the checks would see more of them
    synthetic.write_dataset(pipeline.data, test_labels=labels)
    for command in (["ingest", "--profile", "quick", "--accuracy-threshold", "0.999"], ["validate"], ["train"]):
        fmnist(*command)
    assert "base model rejected: test accuracy is" in fmnist("evaluate", expect=1).stderr
    assert "accuracy_gate of run" in fmnist("tune", expect=1).stderr
    assert "no champion was promoted" in fmnist("summary", expect=1).stderr
    assert document("summary", expect=1)["steps"]["accuracy_gate"]["status"] == "rejected"


@pytest.mark.integration
def test_the_registry_of_a_finished_run(finished_pipeline: Pipeline) -> None:
    entry = service.in_service(finished_pipeline.store)
    (row,) = document("releases")
    assert (row["version"], row["champion"], row["run_id"]) == (entry.version, True, RUN.id)
    assert document("champion") == document("history")[0] == {**entry.as_json(), "signature": "unsigned"}
    verified = document("verify", entry.version)
    assert verified["intact"] is True
    assert verified["test_accuracy"] == row["test_accuracy"]
    for command in ("releases", "champion", "history"):
        assert entry.version in fmnist(command).stdout


@pytest.mark.integration
def test_a_release_that_scores_otherwise_than_it_says_is_not_verified(finished_pipeline: Pipeline) -> None:
    release = service.open_release(finished_pipeline.store, service.in_service(finished_pipeline.store).version)
    facts = {name: value for name, value in release.manifest.items() if name not in {"files", "version"}}
    facts["figures"]["test"]["accuracy"] -= 0.01
    releases.publish(finished_pipeline.store, "another", release.files, facts)
    assert "release another: test accuracy is" in fmnist("verify", "another", expect=1).stderr


@pytest.mark.integration
def test_rollback_checks_the_target_and_keeps_the_reason(finished_pipeline: Pipeline) -> None:
    store, first = finished_pipeline.store, service.in_service(finished_pipeline.store).version
    release = service.open_release(store, first)
    facts = {name: value for name, value in release.manifest.items() if name not in {"files", "version"}}
    for version in ("another", "damaged"):
        releases.publish(store, version, release.files, facts)
    model = bytearray(store.get("releases/damaged/model.h5"))
    model[99] ^= 1
    store.put("releases/damaged/model.h5", bytes(model))

    assert "is the champion already" in fmnist("rollback", first, "--reason", "x", expect=1).stderr
    assert "a reason is required" in fmnist("rollback", "another", "--reason", " ", expect=1).stderr
    for force in ((), ("--force",)):  # which never waives the checks
        assert "there is no release gone" in fmnist("rollback", "gone", "--reason", "x", *force, expect=1).stderr
    damaged = fmnist("rollback", "damaged", "--reason", "x", "--force", expect=1).stderr
    assert "releases/damaged/model.h5: found" in damaged
    assert "releases/damaged/model.h5: found" in fmnist("verify", "damaged", expect=1).stderr
    never = fmnist("rollback", "another", "--reason", "x", expect=1).stderr
    assert "no rollback to another: it has never been the champion; to roll back all the same, use `fmnist" in never
    moved_on = fmnist("rollback", "another", "--reason", "x", "--force", "--replaces", "v0", expect=1).stderr
    assert f"the champion is {first}, not v0 as you expected; nothing was changed" in moved_on
    assert [entry.version for entry in champion.history(store)] == [first]

    entry = document("rollback", "another", "--reason", "shirts went wrong", "--force", "--replaces", first)
    assert (entry["sequence"], entry["action"], entry["reason"]) == (2, "rollback", "shirts went wrong")
    assert (entry["replaces"], entry["actor"]) == (first, f"{getpass.getuser()} (shell)")
    assert document("champion")["version"] == "another"
    assert "shirts went wrong" in fmnist("history").stdout


@pytest.mark.integration
def test_a_release_is_withdrawn_and_restored(finished_pipeline: Pipeline) -> None:
    first, second = service.in_service(finished_pipeline.store).version, finished_pipeline.promote_second_release()
    assert f"{second} is the champion: roll back" in fmnist("withdraw", second, "--reason", "bad", expect=1).stderr
    for command in ("withdraw", "restore"):
        neither = "there is neither a release nor a batch gone"
        assert neither in fmnist(command, "gone", "--reason", "bad", expect=1).stderr
    entry = document("withdraw", first, "--reason", "its labels were wrong")
    assert (entry["action"], entry["version"], entry["reason"]) == ("withdraw", first, "its labels were wrong")
    assert document("champion")["version"] == second
    listed = {row["version"]: row["withdrawn"] for row in document("releases")}
    assert listed == {first: True, second: False}
    assert document("restore", first, "--reason", "they were right")["action"] == "restore"
    assert "is not withdrawn" in fmnist("restore", first, "--reason", "x", expect=1).stderr


def test_who_was_champion_at_a_date(pipeline: Pipeline) -> None:
    for number, day in enumerate(("2026-11-02", "2026-11-09"), start=1):
        entry = champion.Entry(number, f"v{number}", "promote", "why", f"run-{number}", f"{day}T02:00:00+00:00")
        pipeline.store.put(f"champion/{number:08d}.json", seal(entry.as_document()))
    for date, version in (
        ("2026-11-02", "v1"),
        ("2026-11-09", "v2"),
        ("2026-11-09T01:59", "v1"),
        ("2026-11-09T03:00+01:00", "v2"),
    ):
        assert document("history", "--at", date)["version"] == version
    assert "there was no champion yet at 2026-11-01" in fmnist("history", "--at", "2026-11-01", expect=1).stderr
    assert "Invalid" in fmnist("history", "--at", "last week", expect=2).stderr


@pytest.mark.parametrize(
    ("option", "value", "reason"),
    [
        ("--profile", "fast", "profile: 'fast' is unknown"),
        ("--seed", "-1", "seed: -1 is not a whole number"),
        ("--seed", "1.5", "--seed"),
        ("--candidates", "17", "candidates: 17 lies outside 1..16"),
        ("--accuracy-threshold", "2", "accuracy_threshold: 2.0 lies outside 0..1"),
        ("--accuracy-threshold", "nan", "accuracy_threshold: nan lies outside 0..1"),
        ("--policy", "[]", "policy"),
        ("--policy", "{", "--policy"),
        ("--run", "a/b", "run id 'a/b'"),
        ("--run", ".", "run id '.'"),
    ],
)
def test_a_wrong_value_is_wrong_usage(pipeline: Pipeline, option: str, value: str, reason: str) -> None:
    said = " ".join(re.sub(r"[│\n]", " ", fmnist("ingest", option, value, expect=2).stderr).split())
    assert reason in said
    assert list(pipeline.store.list("")) == []


def test_prune_shows_first_and_then_deletes(pipeline: Pipeline) -> None:
    for key in ("blobs/sha256/old", "blobs/sha256/new"):
        pipeline.store.put(key, b"nobody refers to this")
    os.utime(pipeline.store.root / "blobs/sha256/old", (0, 0))
    options = ["prune", "--keep", "3", "--older-than", "30"]
    assert "21 bytes would be deleted" in fmnist(*options, "--dry-run").stdout
    assert len(list(pipeline.store.list("blobs/"))) == 2
    assert document(*options) == [{"kind": "blob", "name": "blobs/sha256/old", "objects": 1, "bytes": 21}]
    assert [stat.key for stat in pipeline.store.list("blobs/")] == ["blobs/sha256/new"]
    assert "nothing to delete" in fmnist(*options).stdout
    pipeline.store.put("runs/[notes].txt", b"by hand")
    assert "left alone: runs/[notes].txt was not written by this project" in fmnist(*options).stderr
    for wrong in (["--keep", "0", "--older-than", "30"], ["--keep", "1", "--older-than", "0"], ["--keep", "1"]):
        fmnist("prune", *wrong, expect=2)


@pytest.mark.integration
def test_predict_names_the_class_or_that_it_is_no_clothing(finished_pipeline: Pipeline, tmp_path: Path) -> None:
    images, labels = synthetic.make_images(20, 5)
    noise = np.random.default_rng(0).integers(0, 256, (28, 28), dtype=np.uint8)
    paths = [tmp_path / f"{index}.png" for index in range(21)]
    for path, pixels in zip(paths, [*images, noise], strict=True):
        Image.fromarray(pixels).resize((280, 280), Image.Resampling.NEAREST).convert("RGB").save(path)
    rows = document("predict", *paths)
    assert rows[-1]["answer"] == "not clothing"
    right = [row["class"] == f"pattern {label}" for row, label in zip(rows, labels, strict=False)]
    assert sum(right) >= 19
    assert "pattern" in fmnist("predict", paths[0]).stdout
    (tmp_path / "notes.png").write_text("no picture")
    for path in (tmp_path / "notes.png", tmp_path / "missing.png"):
        assert f"{path}: is no picture that can be read" in fmnist("predict", path, expect=1).stderr


@pytest.mark.integration
def test_predict_answers_the_images_that_it_can_read_and_names_the_others(
    finished_pipeline: Pipeline, tmp_path: Path
) -> None:
    paths = [tmp_path / name for name in ("a.png", "b[red].png", "c.png")]
    for path, pixels in zip(paths, synthetic.make_images(3, 5)[0], strict=True):
        Image.fromarray(pixels).save(path)
    paths[1].write_bytes(paths[1].read_bytes()[:100])
    rows = document("predict", *paths, expect=1)
    assert [row["image"] for row in rows] == [str(paths[0]), str(paths[2]), str(paths[1])]
    assert "is no picture that can be read" in rows[2]["error"]
    shown = fmnist("predict", *paths, expect=1)
    assert f"error: {paths[1]}: is no picture" in shown.stderr
    assert "a.png" in shown.stdout
    assert "c.png" in shown.stdout


def test_batches_are_listed_with_what_was_withdrawn(pipeline: Pipeline) -> None:
    assert "no batch was accepted yet" in fmnist("batches").stdout
    images, labels = synthetic.make_images(20, 5)
    part = make_part(pipeline.store, "train", "incoming/week 1.npz", images, labels)
    batches.accept(pipeline.store, {**part, "keys": ["incoming/week 1.npz"]})
    batches.withdraw(pipeline.store, "week 1.npz", by="ada", reason="labels are shifted")
    (row,) = document("batches")
    assert (row["batch"], row["images"], row["sha256"]) == ("week 1.npz", 20, part["blob"]["sha256"])
    assert row["withdrawn"].endswith("by ada: labels are shifted")
    assert f"week 1.npz  {part['blob']['sha256'][:12]}" in fmnist("batches").stdout
