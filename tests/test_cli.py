"""The command line `fmnist`: its output and exit codes."""

from __future__ import annotations

import getpass
import json
import logging
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import airflow  # noqa: F401 - its first import closes the streams of log handlers; inside a command, those are pytest's
import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from fmnist_tasks import cli
from fmnist_tasks.cli import app
from fmnist_tasks.data import accepted_batches
from fmnist_tasks.data.dataset import save_images
from fmnist_tasks.registry import champion, releases
from fmnist_tasks.registry.documents import seal
from fmnist_tasks.schemas.releases import Entry
from fmnist_tasks.schemas.runs import ChangeResult
from fmnist_tasks.serving.release import open_release, require_champion
from fmnist_tasks.settings import PROFILES, PROJECT
from tests.support import synthetic
from tests.support.documents import copy_facts, save_record
from tests.support.pipeline import Pipeline
from tests.support.synthetic import RUN

BAD_POLICY = ["ingest", "--policy", "strict"]
COMMANDS = {command.callback.__name__.replace("_", "-") for command in app.registered_commands if command.callback}


@pytest.fixture(autouse=True)
def reset_logging() -> Iterator[None]:
    """Undo the logging setup of commands that run steps."""
    logger = logging.getLogger("fmnist_tasks")
    yield
    logger.handlers = []
    logger.setLevel(logging.NOTSET)


def run_fmnist(*arguments: object, expect: int = 0) -> Result:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == expect, result.output
    return result


def run_json(*arguments: object, expect: int = 0) -> Any:
    return json.loads(run_fmnist(*arguments, "--json", expect=expect).stdout)


def test_the_installed_program_lists_all_commands() -> None:
    result = subprocess.run(["fmnist", "--help"], capture_output=True, text=True, check=True)
    assert {name for name in COMMANDS if f" {name} " in result.stdout} == COMMANDS
    documented = {"ingest", "validate", "train", "evaluate", "fine-tune", "releases", "champion", "history", "rollback"}
    assert documented | {"predict", "verify", "prune"} <= COMMANDS


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_command_has_help(name: str) -> None:
    help_text = run_fmnist(name, "--help").stdout
    assert "Usage:" in help_text
    if name != "download":
        assert "--json" in help_text


def test_commands_on_an_empty_registry_name_the_remedy(pipeline: Pipeline) -> None:
    assert run_json("releases") == run_json("history") == []
    assert "create one with `make run`" in run_fmnist("releases").stdout
    for command in (["champion"], ["predict", "x.png"], ["rollback", "v1", "--reason", "r"]):
        assert "there is no champion yet" in run_fmnist(*command, expect=1).stderr
    for command in ("validate", "train", "evaluate", "fine-tune", "publish", "summary"):
        assert "no runs yet" in run_fmnist(command, expect=1).stderr
    assert "there is no release v1" in run_fmnist("verify", "v1", expect=1).stderr
    assert "the store has no results of run gone" in run_fmnist("validate", "--run", "gone", expect=1).stderr


@pytest.mark.parametrize(
    "arguments", [["rollback", "v1"], ["verify"], ["predict"], ["champion", "--colour"], ["fly"], BAD_POLICY]
)
def test_wrong_usage_gives_exit_code_2(pipeline: Pipeline, arguments: list[str]) -> None:
    assert run_fmnist(*arguments, expect=2).stdout == ""


def test_an_invalid_policy_fails_the_run_at_ingest(pipeline: Pipeline) -> None:
    too_high = run_fmnist("ingest", "--policy", '{"accuracy": {"min": 92}}', "--run", "r", expect=1).stderr
    assert "accuracy.min: Input should be less than or equal to 1" in too_high
    assert [stat.key for stat in pipeline.store.list("")] == ["runs/r/ingest.json", "runs/r/report.html"]
    family = '{"ood": {"families": {"digit": {"min_auroc": 0.9, "max_fpr99": 0.1}}}}'
    unknown = run_fmnist("ingest", "--policy", family, "--run", "r", expect=1).stderr
    assert (
        "policy: ood: families that do not exist for Synthetic patterns: digit; remove them from the policy" in unknown
    )


@pytest.mark.integration
def test_a_damaged_record_does_not_hide_the_others(finished_pipeline: Pipeline) -> None:
    finished_pipeline.store.put(f"runs/{RUN.id}/fine_tune.json", b"{")
    result = run_fmnist("summary", expect=1)
    assert f"error: runs/{RUN.id}/fine_tune.json: its bytes were changed" in result.stderr
    assert "promotion gate" in result.stdout
    assert "no champion was promoted" not in result.stderr


@pytest.mark.integration
def test_a_damaged_promotion_is_not_a_missing_one(finished_pipeline: Pipeline) -> None:
    finished_pipeline.store.put(f"runs/{RUN.id}/promote.json", b"{")
    result = run_fmnist("summary", expect=1)
    assert "a damaged record hides whether a champion was promoted" in result.stderr
    assert "no champion was promoted" not in result.stderr
    document = json.loads(run_fmnist("summary", "--json", expect=1).stdout)
    assert (document["promoted"], document["unchanged"]) == (None, None)
    assert f"runs/{RUN.id}/promote.json: its bytes were changed" in document["faults"][0]


def test_a_damaged_record_of_another_step_does_not_hide_the_outcome(pipeline: Pipeline) -> None:
    for step, status in (("ingest", "done"), ("accuracy_gate", "rejected")):
        save_record(pipeline.store, "r", step, status=status)
    pipeline.store.put("runs/r/train-0.json", b"{")
    assert "no champion was promoted" in run_fmnist("summary", "--run", "r", expect=1).stderr
    assert run_json("summary", "--run", "r", expect=1)["promoted"] is False


@pytest.mark.integration
def test_a_missing_champion_is_not_an_empty_store(finished_pipeline: Pipeline) -> None:
    version = require_champion(finished_pipeline.store).version
    shutil.rmtree(finished_pipeline.store.root / "releases" / version)
    result = run_fmnist("releases", expect=1)
    assert f"releases/{version}/manifest.json is missing, although log entry 1" in " ".join(result.stderr.split())
    assert "no releases yet" not in result.stdout


def test_a_user_without_a_name_is_recorded_by_number(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> str:
        raise KeyError("getpwuid(): uid not found: 54321")

    monkeypatch.setattr("getpass.getuser", fail)
    monkeypatch.setattr("os.getuid", lambda: 54321)
    assert cli._find_actor() == "uid 54321 (shell)"


@pytest.mark.integration
def test_damaged_documents_are_reported_and_do_not_hide_others(finished_pipeline: Pipeline) -> None:
    finished_pipeline.store.put("releases/damaged/manifest.json", b"x")
    finished_pipeline.store.put("runs/damaged/ingest.json", b"x")
    result = run_fmnist("releases", "--json", expect=1)
    assert len(json.loads(result.stdout)) == 1
    assert "error: releases/damaged/manifest.json" in result.stderr
    summary = run_fmnist("summary", "--json")
    assert json.loads(summary.stdout)["promoted"]
    assert "skipped: runs/damaged/ingest.json" in summary.stderr


def test_the_record_of_another_version_is_named(pipeline: Pipeline) -> None:
    parameters = RUN.parameters.to_json() | {"colour": "red"}
    save_record(pipeline.store, "run-9", "ingest", parameters=parameters)
    error = run_fmnist("validate", "--run", "run-9", expect=1).stderr
    assert "runs/run-9/ingest.json: unknown parameters: colour; use profile" in " ".join(error.split())
    assert "start a new run" in error


def test_a_run_in_which_nothing_changed_gives_exit_code_0(pipeline: Pipeline) -> None:
    parameters = RUN.parameters.to_json()
    unchanged = ChangeResult(changed=False, seeds=[], reasons=[], champion="v1", summary="nothing changed")
    save_record(pipeline.store, RUN.id, "ingest", parameters=parameters)
    save_record(pipeline.store, RUN.id, "detect_change", parameters=parameters, result=unchanged.to_json())
    summary = run_json("summary")
    assert (summary["run_id"], summary["promoted"], summary["unchanged"]) == (RUN.id, False, True)
    assert "detect_change" in run_fmnist("summary").stdout


def test_download_names_the_source(pipeline: Pipeline) -> None:
    assert f"sizes and digests of all four files match; source: {pipeline.data}" in run_fmnist("download").stdout
    assert run_json("download") == {"dataset": "synthetic", "source": str(pipeline.data)}


def run_step_by_step(data: Path) -> str:
    """Run every command of a run in order; return the log of the training."""
    policy = {"serving": {"max_single_image_ms": 1000}}
    started = run_json("ingest", "--profile", "quick", "--policy", json.dumps(policy), "--run", "by-hand")
    assert started["ingest"]["source"] == str(data)
    assert "40 checks of 2 samples" in run_fmnist("validate").stdout
    trained = run_fmnist("train")
    assert "base model: " in trained.stdout
    assert set(run_json("evaluate")) == {"evaluate_base", "accuracy_gate"}
    run_fmnist("fine-tune")
    evaluated = run_json("evaluate")
    assert set(evaluated) == {"evaluate_tuned", "promotion_gate"}
    assert evaluated["promotion_gate"]["policy"]["serving"]["max_single_image_ms"] == 1000
    run_fmnist("publish", "--run", "by-hand")
    assert run_json("summary")["promoted"] is True
    assert "log entry 1" in run_fmnist("summary").stdout
    assert run_json("champion")["version"] == run_json("releases")[0]["version"]
    return trained.stderr


@pytest.mark.integration
def test_commands_run_the_pipeline_step_by_step(replaying_pipeline: Pipeline) -> None:
    run_step_by_step(replaying_pipeline.data)


@pytest.mark.exhaustive
def test_commands_run_the_pipeline_and_report_every_epoch(pipeline: Pipeline) -> None:
    assert run_step_by_step(pipeline.data).count("validation loss") == PROFILES["quick"].base.epochs


@pytest.mark.integration
def test_a_rejected_model_gives_exit_code_1(pipeline: Pipeline) -> None:
    labels = synthetic.make_images(600, 2)[1]
    # No model predicts these labels correctly. The data checks would detect more of them.
    labels[:3] = (labels[:3] + 1) % synthetic.CLASSES
    synthetic.write_dataset(pipeline.data, test_labels=labels)
    for command in (["ingest", "--profile", "quick", "--accuracy-threshold", "0.999"], ["validate"], ["train"]):
        run_fmnist(*command)
    assert "base model rejected, since test accuracy is" in run_fmnist("evaluate", expect=1).stderr
    assert "accuracy_gate of run" in run_fmnist("fine-tune", expect=1).stderr
    assert "no champion was promoted" in run_fmnist("summary", expect=1).stderr
    assert run_json("summary", expect=1)["steps"]["accuracy_gate"]["status"] == "rejected"


@pytest.mark.integration
def test_commands_show_and_verify_the_release_of_a_finished_run(finished_pipeline: Pipeline) -> None:
    entry = require_champion(finished_pipeline.store)
    (row,) = run_json("releases")
    assert (row["version"], row["champion"], row["run_id"]) == (entry.version, True, RUN.id)
    assert run_json("champion") == run_json("history")[0] == {**entry.to_json(), "signature": "unsigned"}
    verified = run_json("verify", entry.version)
    assert verified["intact"] is True
    assert verified["test_accuracy"] == row["test_accuracy"]
    for command in ("releases", "champion", "history"):
        assert entry.version in run_fmnist(command).stdout


@pytest.mark.integration
def test_a_release_with_another_accuracy_than_its_manifest_fails_verification(finished_pipeline: Pipeline) -> None:
    release = open_release(finished_pipeline.store, require_champion(finished_pipeline.store).version)
    metrics = release.manifest.metrics
    test = metrics.test.model_copy(update={"accuracy": metrics.test.accuracy - 0.01})
    facts = copy_facts(release.manifest, metrics=metrics.model_copy(update={"test": test}))
    releases.publish_release(finished_pipeline.store, "another", release.files, facts)
    assert "release another: test accuracy is" in run_fmnist("verify", "another", expect=1).stderr


@pytest.mark.integration
def test_rollback_checks_the_target_and_stores_the_reason(finished_pipeline: Pipeline) -> None:
    store, first = finished_pipeline.store, require_champion(finished_pipeline.store).version
    release = open_release(store, first)
    for version in ("another", "damaged"):
        releases.publish_release(store, version, release.files, copy_facts(release.manifest))
    model = bytearray(store.get("releases/damaged/model.h5"))
    model[99] ^= 1
    store.put("releases/damaged/model.h5", bytes(model))

    assert "is already the champion" in run_fmnist("rollback", first, "--reason", "x", expect=1).stderr
    assert "a reason is required" in run_fmnist("rollback", "another", "--reason", " ", expect=1).stderr
    for force in ((), ("--force",)):  # --force does not waive the checks
        assert "there is no release gone" in run_fmnist("rollback", "gone", "--reason", "x", *force, expect=1).stderr
    damaged = run_fmnist("rollback", "damaged", "--reason", "x", "--force", expect=1).stderr
    assert "releases/damaged/model.h5: found" in damaged
    assert "releases/damaged/model.h5: found" in run_fmnist("verify", "damaged", expect=1).stderr
    never = run_fmnist("rollback", "another", "--reason", "x", expect=1).stderr
    assert "cannot roll back to another: it has never been the champion; to roll back anyway, use `fmnist" in never
    conflict = run_fmnist("rollback", "another", "--reason", "x", "--force", "--replaces", "v0", expect=1).stderr
    assert f"the champion is {first}, not v0 as expected; nothing was changed" in conflict
    assert [entry.version for entry in champion.list_entries(store)] == [first]

    entry = run_json("rollback", "another", "--reason", "shirts went wrong", "--force", "--replaces", first)
    assert (entry["sequence"], entry["action"], entry["reason"]) == (2, "rollback", "shirts went wrong")
    assert (entry["replaces"], entry["actor"]) == (first, f"{getpass.getuser()} (shell)")
    assert run_json("champion")["version"] == "another"
    assert "shirts went wrong" in run_fmnist("history").stdout


@pytest.mark.integration
def test_a_release_is_withdrawn_and_restored(finished_pipeline: Pipeline) -> None:
    first, second = (require_champion(finished_pipeline.store).version, finished_pipeline.promote_second_release())
    assert f"{second} is the champion: roll back" in run_fmnist("withdraw", second, "--reason", "bad", expect=1).stderr
    for command in ("withdraw", "restore"):
        neither = "there is neither a release nor a batch 'gone'"
        assert neither in run_fmnist(command, "gone", "--reason", "bad", expect=1).stderr
    entry = run_json("withdraw", first, "--reason", "its labels were wrong")
    assert (entry["action"], entry["version"], entry["reason"]) == ("withdraw", first, "its labels were wrong")
    assert run_json("champion")["version"] == second
    withdrawn = {row["version"]: row["withdrawn"] for row in run_json("releases")}
    assert withdrawn == {first: True, second: False}
    assert run_json("restore", first, "--reason", "they were right")["action"] == "restore"
    assert "is not withdrawn" in run_fmnist("restore", first, "--reason", "x", expect=1).stderr


def test_history_shows_the_champion_at_a_date(pipeline: Pipeline) -> None:
    for number, day in enumerate(("2026-11-02", "2026-11-09"), start=1):
        entry = Entry(
            sequence=number,
            version=f"v{number}",
            action="promote",
            reason="why",
            time=f"{day}T02:00:00+00:00",
            write_id=f"run-{number}",
            actor="schedule",
        )
        pipeline.store.put(f"champion/{number:08d}.json", seal(entry.to_json()))
    for date, version in (
        ("2026-11-02", "v1"),
        ("2026-11-09", "v2"),
        ("20261109", "v2"),
        ("2026-11-09T01:59", "v1"),
        ("2026-11-09T03:00+01:00", "v2"),
    ):
        assert run_json("history", "--at", date)["version"] == version
    assert "there was no champion yet at 2026-11-01" in run_fmnist("history", "--at", "2026-11-01", expect=1).stderr
    assert "Invalid" in run_fmnist("history", "--at", "last week", expect=2).stderr


@pytest.mark.parametrize(
    ("option", "value", "reason"),
    [
        ("--profile", "fast", "profile: 'fast' is unknown"),
        ("--seed", "-1", "seed: -1 is not a whole number"),
        ("--seed", "1.5", "--seed"),
        ("--candidates", "17", "candidates: 17 is not between 1 and 16"),
        ("--accuracy-threshold", "2", "accuracy_threshold: 2.0 is not between 0 and 1"),
        ("--accuracy-threshold", "nan", "accuracy_threshold: nan is not between 0 and 1"),
        ("--policy", "[]", "policy"),
        ("--policy", "{", "--policy"),
        ("--policy", "[" * 100_000, "--policy"),
        ("--run", "a" * 251, "has 251 characters; the limit is 250"),
        ("--run", "a/b", "run ID 'a/b'"),
        ("--run", ".", "run ID '.'"),
    ],
)
def test_an_invalid_value_is_wrong_usage(pipeline: Pipeline, option: str, value: str, reason: str) -> None:
    message = " ".join(re.sub(r"[│\n]", " ", run_fmnist("ingest", option, value, expect=2).stderr).split())
    assert reason in message
    assert list(pipeline.store.list("")) == []


def test_prune_deletes_only_without_dry_run(pipeline: Pipeline) -> None:
    for key in ("blobs/sha256/old", "blobs/sha256/new"):
        pipeline.store.put(key, b"nothing refers to this")
    os.utime(pipeline.store.root / "blobs/sha256/old", (0, 0))
    options = ["prune", "--keep", "3", "--older-than", "30"]
    assert "22 bytes would be deleted" in run_fmnist(*options, "--dry-run").stdout
    assert len(list(pipeline.store.list("blobs/"))) == 2
    assert run_json(*options) == [{"kind": "blob", "name": "blobs/sha256/old", "objects": 1, "bytes": 22}]
    assert [stat.key for stat in pipeline.store.list("blobs/")] == ["blobs/sha256/new"]
    assert "nothing to delete" in run_fmnist(*options).stdout
    pipeline.store.put("runs/[notes].txt", b"by hand")
    assert "skipped: runs/[notes].txt was not written by this project" in run_fmnist(*options).stderr
    for wrong in (["--keep", "0", "--older-than", "30"], ["--keep", "1", "--older-than", "0"], ["--keep", "1"]):
        run_fmnist("prune", *wrong, expect=2)


@pytest.mark.integration
def test_predict_reports_the_class_or_out_of_distribution(finished_pipeline: Pipeline, tmp_path: Path) -> None:
    images, labels = synthetic.make_images(20, 5)
    noise = np.random.default_rng(0).integers(0, 256, (28, 28), dtype=np.uint8)
    paths = [tmp_path / f"{index}.png" for index in range(21)]
    for path, pixels in zip(paths, [*images, noise], strict=True):
        Image.fromarray(pixels).resize((280, 280), Image.Resampling.NEAREST).convert("RGB").save(path)
    rows = run_json("predict", *paths)
    assert rows[-1]["answer"] == "not a pattern"
    correct = [row["class"] == f"pattern {label}" for row, label in zip(rows, labels, strict=False)]
    assert sum(correct) >= 19
    assert "pattern" in run_fmnist("predict", paths[0]).stdout
    (tmp_path / "notes.png").write_text("not an image")
    for path, fault in (("notes.png", " is not a readable image"), ("missing.png", ": there is no such file")):
        assert f"{tmp_path / path}{fault}" in run_fmnist("predict", tmp_path / path, expect=1).stderr


@pytest.mark.integration
def test_predict_classifies_readable_images_and_names_the_others(finished_pipeline: Pipeline, tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("a.png", "b[red].png", "c.png")]
    for path, pixels in zip(paths, synthetic.make_images(3, 5)[0], strict=True):
        Image.fromarray(pixels).save(path)
    paths[1].write_bytes(paths[1].read_bytes()[:100])
    rows = run_json("predict", *paths, expect=1)
    assert [row["image"] for row in rows] == [str(paths[0]), str(paths[2]), str(paths[1])]
    assert "is not a readable image" in rows[2]["error"]
    result = run_fmnist("predict", *paths, expect=1)
    assert f"error: {paths[1]} is not a readable image" in result.stderr
    assert "a.png" in result.stdout
    assert "c.png" in result.stdout


def test_batches_are_listed_with_withdrawals(pipeline: Pipeline) -> None:
    assert "no accepted batches yet" in run_fmnist("batches").stdout
    images, labels = synthetic.make_images(20, 5)
    batch = save_images(pipeline.store, "train", "incoming/week 1.npz", images, labels, keys=["incoming/week 1.npz"])
    accepted_batches.accept_batch(pipeline.store, batch, batch.blob.sha256)
    accepted_batches.withdraw_batch(pipeline.store, "week 1.npz", by="ada", reason="labels are shifted")
    (row,) = run_json("batches")
    assert (row["batch"], row["images"], row["sha256"]) == ("week 1.npz", 20, batch.blob.sha256)
    assert row["withdrawn"].endswith("by ada: labels are shifted")
    assert f"week 1.npz  {batch.blob.sha256[:12]}" in run_fmnist("batches").stdout
    assert run_json("audit")["batches"] == 1
    pipeline.store.put(f"batches/{'d' * 64}.json", b"{")
    result = run_fmnist("batches", expect=1)
    assert "week 1.npz" in result.stdout
    for stderr in (result.stderr, run_fmnist("audit", expect=1).stderr):
        assert f"error: batches/{'d' * 64}.json: its bytes were changed" in stderr


def test_the_command_reference_is_up_to_date(tmp_path: Path) -> None:
    reference = tmp_path / "cli.md"
    program = [sys.executable, "-m", "typer", "fmnist_tasks.cli", "utils", "docs"]
    options = ["--name", "fmnist", "--title", "Command line", "--output", str(reference)]
    subprocess.run([*program, *options], check=True, capture_output=True)
    assert (PROJECT / "docs" / "cli.md").read_text() == reference.read_text(), "run `make docs`"
