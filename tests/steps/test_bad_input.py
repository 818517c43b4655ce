"""Bad input gives a clear error, loses no data, and does not change the champion."""

from __future__ import annotations

import gzip
import os
import shlex
import shutil
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from fmnist_tasks.alerts import alert_task_failure
from fmnist_tasks.alerts.watch import check_pipeline
from fmnist_tasks.errors import (
    ConflictError,
    DataError,
    IntegrityError,
    ModelError,
    RejectedError,
    SettingsError,
    StoreError,
)
from fmnist_tasks.registry import champion, releases
from fmnist_tasks.registry.documents import seal, unseal
from fmnist_tasks.registry.runs import read_record, write_record
from fmnist_tasks.schemas.runs import StepRecord
from fmnist_tasks.serving.release import open_release, require_champion
from fmnist_tasks.settings import DAG_ID, PROJECT, Parameters
from fmnist_tasks.steps import Run, run_step
from tests.support import synthetic
from tests.support.documents import copy_facts
from tests.support.outbox import read_alerts
from tests.support.pipeline import Pipeline
from tests.support.requirements import NAMESPACES, require
from tests.support.synthetic import RUN

NEXT = Run("run-2", "2026-11-30T02:00:00+00:00", Parameters(profile="quick", seed=1))


def read_step_record(pipeline: Pipeline, step: str, run: Run = RUN) -> StepRecord:
    return read_record(pipeline.store, run.id, step)


def test_an_error_with_text_that_is_not_unicode_is_recorded_and_alerted_once(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Python represents a file name that is not valid UTF-8 with lone surrogates."""
    monkeypatch.setenv("FMNIST_DATASET", os.fsdecode(b"/no/such/\x80.toml"))
    with pytest.raises(SettingsError) as error:
        run_step("ingest", RUN)
    record = read_step_record(pipeline, "ingest")
    assert (record.status, "/no/such/?.toml" in record.outcome) == ("failed", True)
    task = SimpleNamespace(task_id="data.ingest", map_index=-1, try_number=1)
    context = {"run_id": RUN.id, "dag": SimpleNamespace(dag_id=DAG_ID), "task_instance": task, "exception": error.value}
    alert_task_failure(context)
    check_pipeline()
    assert [alert["event"] for alert in read_alerts(pipeline.store)] == ["run failed"]


@pytest.mark.parametrize(
    ("role", "array", "reason"),
    [
        ("train_labels", np.full(1600, 10, np.uint8), "training: every label is one of the declared classes"),
        ("train_images", np.zeros((1600, 28, 28), np.uint8), "training: at most one image in 1,000 has a single shade"),
        (
            "test_images",
            synthetic.make_images(600, 2)[0][:, :20],
            "test: every image has the declared height: failed for 600 of 600 rows",
        ),
        (
            "train_labels",
            np.zeros(1600, np.uint8),
            "training: no class has many more or many fewer images than the others",
        ),
    ],
)
def test_a_bad_dataset_stops_the_run_before_training(
    pipeline: Pipeline, role: str, array: np.ndarray, reason: str
) -> None:
    synthetic.write_dataset(pipeline.data, **{role: array})
    run_step("ingest", RUN)
    with pytest.raises(RejectedError, match=rf"the data checks failed, so training does not start: .*{reason}"):
        run_step("validate_data", RUN)
    assert read_step_record(pipeline, "validate_data").status == "rejected"
    assert reason in pipeline.store.get(f"runs/{RUN.id}/report.html").decode()
    assert pipeline.store.stat(f"runs/{RUN.id}/data_docs/index.html") is not None
    with pytest.raises(
        RejectedError, match=r"validate_data of run run-1 has the status rejected, so later steps cannot run"
    ):
        run_step("train", RUN)


def test_a_count_that_differs_from_the_declaration_stops_the_run(pipeline: Pipeline) -> None:
    declaration = pipeline.data / "dataset.toml"
    declaration.write_text(f"images = {{ train = 1601 }}\n{declaration.read_text()}")
    assert run_step("ingest", RUN).declared == {"train": 1601, "test": 600}
    with pytest.raises(RejectedError, match=r"training: the number of images is as declared.*: observed 1600"):
        run_step("validate_data", RUN)


def test_images_and_labels_of_different_length_stop_the_run(pipeline: Pipeline) -> None:
    synthetic.write_dataset(pipeline.data, train_labels=synthetic.make_images(1599, 1)[1])
    with pytest.raises(DataError, match=r"1,600 images but 1,599 labels"):
        run_step("ingest", RUN)


@pytest.mark.integration
def test_an_altered_dataset_file_stops_the_run(finished_pipeline: Pipeline) -> None:
    before = require_champion(finished_pipeline.store)
    path = finished_pipeline.data / "train_images.gz"
    content = bytearray(gzip.decompress(path.read_bytes()))
    content[5000] ^= 1
    path.write_bytes(gzip.compress(bytes(content)))
    with pytest.raises(DataError, match=r"train_images.gz: SHA-256 is .*, expected"):
        run_step("ingest", NEXT)
    assert read_step_record(finished_pipeline, "ingest", NEXT).status == "failed"
    assert require_champion(finished_pipeline.store) == before


def test_a_full_disk_is_reported_and_a_retry_succeeds(pipeline: Pipeline) -> None:
    """The store is on a small file system in a mount namespace; space is freed after the first attempt."""
    require(NAMESPACES)
    entry = champion.append_entry(pipeline.store, version="v1", action="promote", reason="r", write_id="w", after=0)
    disk, ingest = pipeline.home / "disk", f"{shlex.quote(sys.executable)} -m fmnist_tasks.cli ingest --run r"
    disk.mkdir()
    program = f"""
        mount -t tmpfs -o size=64m none {disk}
        cp -r {pipeline.store.root} {disk}
        dd if=/dev/zero of={disk}/filler bs=1M 2>/dev/null
        {ingest} && exit 9
        cd {disk}/store && find . -type f && echo -- && cat champion/*.json
        rm {disk}/filler
        {ingest} >&2
    """
    result = subprocess.run(
        ["unshare", "--map-root-user", "--mount", "sh", "-c", program],
        env=os.environ | pipeline.environment | {"FMNIST_STORE": (disk / "store").as_uri(), "PYTHONPATH": str(PROJECT)},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    assert f"error: cannot write {disk}/store/working/" in result.stderr
    assert "No space left on device; free space, or give this user the right to write below" in result.stderr
    files, _, log_entries = result.stdout.partition("--\n")
    expected = ["./champion-receipts/00000001.txt", "./champion/00000001.json", "./clock.txt"]
    assert sorted(files.split()) == expected  # no half-written file
    assert unseal(log_entries.encode(), "champion/00000001.json") == entry.to_json()


def test_a_store_that_cannot_be_written_is_reported(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    (pipeline.home / "file").write_text("not a folder")
    monkeypatch.setenv("FMNIST_STORE", (pipeline.home / "file" / "store").as_uri())
    with pytest.raises(StoreError, match=r"cannot write .*Not a directory"):
        run_step("ingest", RUN)


@pytest.mark.integration
@pytest.mark.parametrize(
    ("step", "name"), [("evaluate_base", "choose_base"), ("fine_tune", "choose_base"), ("evaluate_tuned", "fine_tune")]
)
def test_a_damaged_model_is_refused_before_it_is_opened(finished_pipeline: Pipeline, step: str, name: str) -> None:
    result = finished_pipeline.read_result(name)
    uri = result.candidate.model.uri if name == "fine_tune" else result.model.uri
    data = bytearray(finished_pipeline.store.get(uri))
    data[len(data) // 2] ^= 1
    finished_pipeline.store.put(uri, bytes(data))
    with pytest.raises(IntegrityError, match=rf"{uri}: found .* delete it and clear the task"):
        run_step(step, RUN)


@pytest.mark.integration
def test_a_foreign_file_in_place_of_a_record_is_refused(finished_pipeline: Pipeline) -> None:
    finished_pipeline.store.put(f"runs/{RUN.id}/choose_base.json", b'{"status": "done"}')
    with pytest.raises(IntegrityError, match=rf"runs/{RUN.id}/choose_base.json: its bytes were changed"):
        run_step("evaluate_base", RUN)


@pytest.mark.integration
@pytest.mark.parametrize("change", ["byte", "weights"])
def test_a_published_model_that_is_not_the_evaluated_one_is_not_promoted(
    finished_pipeline: Pipeline, change: str
) -> None:
    version = require_champion(finished_pipeline.store).version
    finished_pipeline.clear_champion_log()
    key = f"releases/{version}/model.h5"
    if change == "byte":
        data = bytearray(finished_pipeline.store.get(key))
        data[len(data) // 2] ^= 1
        finished_pipeline.store.put(key, bytes(data))
        with pytest.raises(IntegrityError, match=key):
            run_step("verify_release", RUN)
    else:  # another intact model, as if two runs were mixed up
        from fmnist_tasks.model import h5

        release = open_release(finished_pipeline.store, version)
        kernel = release.model.get_layer("logits").kernel
        kernel.assign(kernel + 1e-3 * np.sign(kernel))
        facts = copy_facts(release.manifest)
        shutil.rmtree(finished_pipeline.store.root / "releases")
        releases.publish_release(
            finished_pipeline.store, version, {**release.files, "model.h5": h5.encode_model(release.model)}, facts
        )
        published = releases.open_manifest(finished_pipeline.store, version)
        finished_pipeline.change_result("publish", manifest_sha256=published.sha256)
        with pytest.raises(
            ModelError, match=r"predictions of the published model differ from those that were evaluated"
        ):
            run_step("verify_release", RUN)
    with pytest.raises(RejectedError, match=r"verify_release of run run-1 has the status failed"):
        run_step("promote", RUN)
    assert champion.find_champion(finished_pipeline.store) is None


@pytest.mark.integration
def test_a_weak_model_is_rejected_with_metric_and_threshold_and_the_champion_stays(finished_pipeline: Pipeline) -> None:
    before = require_champion(finished_pipeline.store)
    test = finished_pipeline.read_result("evaluate_base").test.to_json()
    finished_pipeline.change_result("evaluate_base", test=test | {"accuracy": 0.9199})
    message = r"base model rejected, since test accuracy is 91.99%, below the threshold of 92.00%"
    with pytest.raises(RejectedError, match=message):
        run_step("accuracy_gate", RUN)
    assert finished_pipeline.read_result("accuracy_gate").decision == "reject"
    assert require_champion(finished_pipeline.store) == before


@pytest.mark.integration
@pytest.mark.parametrize(
    ("step", "name", "missing"),
    [
        ("accuracy_gate", "evaluate_base", "test"),
        ("promotion_gate", "evaluate_tuned", "test"),
        ("promotion_gate", "evaluate_tuned", "ood"),
        ("promotion_gate", "evaluate_tuned", "champion"),
        ("promotion_gate", "evaluate_tuned", "model_sha256"),
    ],
)
def test_missing_metrics_stop_the_run(finished_pipeline: Pipeline, step: str, name: str, missing: str) -> None:
    record = read_step_record(finished_pipeline, name)
    assert record.result
    result = {field: value for field, value in record.result.items() if field != missing}
    write_record(finished_pipeline.store, record.model_copy(update={"result": result}))
    with pytest.raises(IntegrityError, match=rf"runs/{RUN.id}/{name}.json: result: {missing}: missing"):
        run_step(step, RUN)


@pytest.mark.integration
def test_a_family_that_was_not_measured_rejects(finished_pipeline: Pipeline) -> None:
    ood = finished_pipeline.read_result("evaluate_tuned").ood.to_json()
    del ood["families"]["uniform noise"]
    finished_pipeline.change_result("evaluate_tuned", ood=ood)
    with pytest.raises(RejectedError, match="AUROC of uniform noise is missing"):
        run_step("promotion_gate", RUN)
    assert finished_pipeline.read_result("promotion_gate").decision == "reject"


@pytest.mark.integration
def test_a_base_model_that_did_not_pass_the_gate_is_not_fine_tuned(finished_pipeline: Pipeline) -> None:
    finished_pipeline.change_result("accuracy_gate", model_sha256="0" * 64)
    with pytest.raises(ConflictError, match=r"accepted a different base model"):
        run_step("fine_tune", RUN)


@pytest.mark.integration
def test_metrics_and_verdict_of_an_earlier_run_do_not_pass(finished_pipeline: Pipeline) -> None:
    finished_pipeline.copy_records(RUN, NEXT)
    with pytest.raises(ConflictError, match=r"nothing is published"):
        run_step("publish", NEXT)
    with pytest.raises(RejectedError, match=r"run_id is 'run-1', expected 'run-2'"):
        run_step("promotion_gate", NEXT)
    assert len(releases.list_versions(finished_pipeline.store)) == 1


@pytest.mark.integration
def test_a_champion_that_changed_during_the_run_stays(finished_pipeline: Pipeline) -> None:
    assert finished_pipeline.read_result("promotion_gate").champion is None  # when the candidate was evaluated
    finished_pipeline.clear_champion_log()
    champion.append_entry(finished_pipeline.store, version="v0", action="promote", reason="r", write_id="w", after=0)
    with pytest.raises(ConflictError, match=r"the champion has changed in the meantime: it was none"):
        run_step("promote", RUN)
    assert [entry.version for entry in champion.list_entries(finished_pipeline.store)] == ["v0"]


@pytest.mark.integration
def test_a_run_does_not_promote_the_release_of_another_run(finished_pipeline: Pipeline) -> None:
    """Otherwise, anyone who may write the results of tasks could promote any release."""
    before = champion.list_entries(finished_pipeline.store)
    finished_pipeline.copy_records(RUN, NEXT)
    with pytest.raises(ConflictError, match=r"was published by run run-1; this run does not promote it"):
        run_step("promote", NEXT)
    assert champion.list_entries(finished_pipeline.store) == before


@pytest.mark.integration
def test_a_release_that_was_not_verified_is_not_promoted(finished_pipeline: Pipeline) -> None:
    finished_pipeline.change_result("verify_release", version="another")
    with pytest.raises(ConflictError, match=r"was not verified"):
        run_step("promote", RUN)


@pytest.mark.integration
def test_a_change_of_data_code_or_parameters_starts_a_training(finished_pipeline: Pipeline) -> None:
    def find_reasons(run: Run) -> list[str]:
        finished_pipeline.copy_records(RUN, run)
        reasons: list[str] = run_step("detect_change", run).reasons
        return reasons

    same = Run("run-2", NEXT.created, RUN.parameters)
    assert find_reasons(same) == []
    assert "nothing changed" in read_step_record(finished_pipeline, "detect_change", same).outcome
    assert find_reasons(NEXT) == ["seed differs from the champion's"]
    assert find_reasons(replace(same, parameters=replace(RUN.parameters, force=True))) == ["training is forced"]
    finished_pipeline.change_result("ingest", same, code={"digest": "0" * 64, "versions": {}})
    assert run_step("detect_change", same).reasons == ["code differs from the champion's"]
    finished_pipeline.promote_second_release(parameters=RUN.parameters.to_json() | {"colour": "red"})
    assert find_reasons(same) == ["the champion's parameters are those of another version of this project"]
    finished_pipeline.clear_champion_log()
    assert find_reasons(same) == ["there is no champion yet"]


@pytest.mark.integration
def test_a_damaged_manifest_of_the_champion_stops_the_run(finished_pipeline: Pipeline) -> None:
    key = f"releases/{require_champion(finished_pipeline.store).version}/manifest.json"
    manifest = unseal(finished_pipeline.store.get(key), key)
    finished_pipeline.store.put(key, seal(manifest).replace(b"quick", b"quiet", 1))
    with pytest.raises(IntegrityError, match=key):
        run_step("detect_change", RUN)
