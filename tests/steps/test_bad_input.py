"""Bad input gives a clear error, loses nothing and leaves the champion."""

from __future__ import annotations

import gzip
import os
import shlex
import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from fmnist_tasks import service, steps
from fmnist_tasks.errors import ConflictError, DataError, IntegrityError, ModelError, RejectedError, StoreError
from fmnist_tasks.registry import champion, releases
from fmnist_tasks.registry.documents import seal, unseal
from fmnist_tasks.registry.runs import read_record, write_record
from fmnist_tasks.registry.store import Store
from fmnist_tasks.settings import PROJECT, Parameters
from fmnist_tasks.steps import Run, run_again
from tests.support import synthetic
from tests.support.pipeline import Pipeline
from tests.support.requirements import NAMESPACES, require
from tests.support.synthetic import RUN

NEXT = Run("run-2", "2026-11-30T02:00:00+00:00", Parameters(profile="quick", seed=1))


def record(pipeline: Pipeline, step: str, run: Run = RUN) -> dict:
    return read_record(pipeline.store, run.id, step)


def changed(pipeline: Pipeline, step: str, run: Run = RUN, **values: object) -> dict:
    """The recorded result of a step, with other values in it."""
    return record(pipeline, step, run)["result"] | values


@pytest.mark.parametrize(
    ("role", "array", "reason"),
    [
        ("train_labels", np.full(1600, 10, np.uint8), "training: every label is one of the declared classes"),
        ("train_images", np.zeros((1600, 28, 28), np.uint8), "training: at most one image in 1,000 is a single shade"),
        (
            "test_images",
            synthetic.make_images(600, 2)[0][:, :20],
            "test: 28 rows of pixels: not so for 600 of 600 rows",
        ),
        ("train_labels", np.zeros(1600, np.uint8), "training: each class has between half and twice its even share"),
    ],
)
def test_a_bad_dataset_stops_the_run_before_training(
    pipeline: Pipeline, role: str, array: np.ndarray, reason: str
) -> None:
    synthetic.write_dataset(pipeline.data, **{role: array})
    ingested = steps.ingest(RUN)
    with pytest.raises(RejectedError, match=rf"data rejected, training does not start: .*{reason}"):
        steps.validate_data(RUN, ingested)
    assert record(pipeline, "validate_data")["status"] == "rejected"
    assert reason in pipeline.store.get(f"runs/{RUN.id}/report.html").decode()
    assert pipeline.store.stat(f"runs/{RUN.id}/data_docs/index.html") is not None
    with pytest.raises(RejectedError, match=r"validate_data of run run-1 was rejected: what follows it cannot run"):
        run_again("train", RUN)


def test_another_count_than_declared_stops_the_run(pipeline: Pipeline) -> None:
    declaration = pipeline.data / "made.toml"
    declaration.write_text(f"images = {{ train = 1601 }}\n{declaration.read_text()}")
    ingested = steps.ingest(RUN)
    assert ingested["declared"] == {"train": 1601, "test": 600}
    with pytest.raises(RejectedError, match=r"training: as many images as declared.*: found 1600"):
        steps.validate_data(RUN, ingested)


def test_images_and_labels_of_different_length(pipeline: Pipeline) -> None:
    synthetic.write_dataset(pipeline.data, train_labels=synthetic.make_images(1599, 1)[1])
    with pytest.raises(DataError, match=r"1,600 images but 1,599 labels"):
        steps.ingest(RUN)


@pytest.mark.integration
def test_an_altered_dataset_file(finished_pipeline: Pipeline) -> None:
    before = service.in_service(finished_pipeline.store)
    path = finished_pipeline.data / "train_images.gz"
    content = bytearray(gzip.decompress(path.read_bytes()))
    content[5000] ^= 1
    path.write_bytes(gzip.compress(bytes(content)))
    with pytest.raises(DataError, match=r"train_images.gz: SHA-256 is .*, expected"):
        steps.ingest(NEXT)
    assert record(finished_pipeline, "ingest", NEXT)["status"] == "failed"
    assert service.in_service(finished_pipeline.store) == before


def test_a_disk_that_is_full(pipeline: Pipeline) -> None:
    """The store is on a file system of its own, in a mount namespace; room is made after the first try."""
    require(NAMESPACES)
    entry = champion.append(pipeline.store, version="v1", action="promote", reason="r", write_id="w", after=0)
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
    ended = subprocess.run(
        ["unshare", "--map-root-user", "--mount", "sh", "-c", program],
        env=os.environ | pipeline.environment | {"FMNIST_STORE": (disk / "store").as_uri(), "PYTHONPATH": str(PROJECT)},
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, ended.stderr
    assert f"error: cannot write {disk}/store/working/" in ended.stderr
    assert "No space left on device; free space, or give this user the right to write below" in ended.stderr
    found, _, champions = ended.stdout.partition("--\n")
    whole = ["./champion-receipts/00000001.txt", "./champion/00000001.json", "./clock.txt"]
    assert sorted(found.split()) == whole  # no half-written file
    assert unseal(champions.encode(), "champion/00000001.json") == entry.as_document()


def test_a_store_that_cannot_be_written(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    (pipeline.home / "file").write_text("no folder")
    monkeypatch.setenv("FMNIST_STORE", (pipeline.home / "file" / "store").as_uri())
    with pytest.raises(StoreError, match=r"cannot write .*Not a directory"):
        steps.ingest(RUN)


@pytest.mark.integration
@pytest.mark.parametrize(
    ("step", "name"), [("evaluate_base", "choose_base"), ("fine_tune", "choose_base"), ("evaluate_tuned", "fine_tune")]
)
def test_a_damaged_model_is_refused_before_it_is_opened(finished_pipeline: Pipeline, step: str, name: str) -> None:
    reference = record(finished_pipeline, name)["result"]["model"]
    if name == "fine_tune":
        reference = record(finished_pipeline, name)["result"]["candidate"]["model"]
    data = bytearray(finished_pipeline.store.get(reference["uri"]))
    data[len(data) // 2] ^= 1
    finished_pipeline.store.put(reference["uri"], bytes(data))
    with pytest.raises(IntegrityError, match=rf"{reference['uri']}: found .* delete it and clear the task"):
        run_again(step, RUN)


@pytest.mark.integration
def test_a_foreign_file_in_the_place_of_a_record(finished_pipeline: Pipeline) -> None:
    finished_pipeline.store.put(f"runs/{RUN.id}/choose_base.json", b'{"status": "done"}')
    with pytest.raises(IntegrityError, match=rf"runs/{RUN.id}/choose_base.json: its bytes were changed"):
        run_again("evaluate_base", RUN)


def record_publication(store: Store, version: str) -> None:
    """Let the record of `publish` name the manifest that is there."""
    written = read_record(store, RUN.id, "publish")
    written["result"]["manifest_sha256"] = releases.open_manifest(store, version).sha256
    write_record(store, RUN.id, "publish", written)


@pytest.mark.integration
@pytest.mark.parametrize("how", ["byte", "weights"])
def test_a_published_model_that_is_not_the_judged_one_is_not_promoted(finished_pipeline: Pipeline, how: str) -> None:
    version = service.in_service(finished_pipeline.store).version
    finished_pipeline.forget_champions()
    key = f"releases/{version}/model.h5"
    if how == "byte":
        data = bytearray(finished_pipeline.store.get(key))
        data[len(data) // 2] ^= 1
        finished_pipeline.store.put(key, bytes(data))
        with pytest.raises(IntegrityError, match=key):
            run_again("verify_release", RUN)
    else:  # another intact release, as if two runs had been mixed up
        from fmnist_tasks.model import h5

        release = service.open_release(finished_pipeline.store, version)
        kernel = release.model.get_layer("logits").kernel
        kernel.assign(kernel + 1e-3 * np.sign(kernel))
        facts = {name: value for name, value in release.manifest.items() if name not in {"files", "version"}}
        shutil.rmtree(finished_pipeline.store.root / "releases")
        releases.publish(finished_pipeline.store, version, {**release.files, "model.h5": h5.save(release.model)}, facts)
        record_publication(finished_pipeline.store, version)
        with pytest.raises(ModelError, match=r"predictions of the published model differ from those that were judged"):
            run_again("verify_release", RUN)
    with pytest.raises(RejectedError, match=r"verify_release of run run-1 was failed"):
        run_again("promote", RUN)
    assert champion.champion(finished_pipeline.store) is None


@pytest.mark.integration
def test_a_weak_model_is_rejected_with_figure_and_bound_and_the_champion_stays(finished_pipeline: Pipeline) -> None:
    before = service.in_service(finished_pipeline.store)
    evaluated = changed(finished_pipeline, "evaluate_base")
    evaluated["test"] = evaluated["test"] | {"accuracy": 0.9199}
    with pytest.raises(RejectedError, match=r"base model rejected: test accuracy is 91.99%, below the bound of 92.00%"):
        steps.accuracy_gate(
            RUN, changed(finished_pipeline, "validate_data"), changed(finished_pipeline, "choose_base"), evaluated
        )
    assert record(finished_pipeline, "accuracy_gate")["result"]["decision"] == "reject"
    assert service.in_service(finished_pipeline.store) == before


@pytest.mark.integration
@pytest.mark.parametrize(
    ("missing", "reason"),
    [("test", "test accuracy is missing or no number"), ("novelty", "AUROC of uniform noise is missing")],
)
def test_missing_figures_reject(finished_pipeline: Pipeline, missing: str, reason: str) -> None:
    evaluated = changed(finished_pipeline, "evaluate_tuned")
    del evaluated[missing]
    with pytest.raises(RejectedError, match=reason):
        steps.promotion_gate(
            RUN, changed(finished_pipeline, "validate_data"), changed(finished_pipeline, "fine_tune"), evaluated
        )


@pytest.mark.integration
def test_a_base_model_that_the_gate_has_not_seen_is_not_tuned(finished_pipeline: Pipeline) -> None:
    accepted = changed(finished_pipeline, "accuracy_gate", model_sha256="0" * 64)
    with pytest.raises(ConflictError, match=r"accepted another base model than this one"):
        steps.fine_tune(
            RUN, changed(finished_pipeline, "validate_data"), changed(finished_pipeline, "choose_base"), accepted
        )


@pytest.mark.integration
def test_last_weeks_figures_and_verdict_pass_nothing_this_week(finished_pipeline: Pipeline) -> None:
    old = {name: changed(finished_pipeline, name) for name in steps.INPUTS["publish"]}
    with pytest.raises(RejectedError, match=r"run_id is 'run-1', expected 'run-2'"):
        steps.promotion_gate(NEXT, old["validate_data"], old["fine_tune"], old["evaluate_tuned"])
    with pytest.raises(ConflictError, match=r"nothing is published"):
        steps.publish(NEXT, *old.values())
    assert len(releases.versions(finished_pipeline.store)) == 1


@pytest.mark.integration
def test_a_champion_that_changed_during_the_run_stays(finished_pipeline: Pipeline) -> None:
    verdict = changed(finished_pipeline, "promotion_gate")
    assert verdict["champion"] is None  # there was none when the candidate was judged
    finished_pipeline.forget_champions()
    champion.append(finished_pipeline.store, version="v0", action="promote", reason="r", write_id="w", after=0)
    with pytest.raises(ConflictError, match=r"the champion has changed since: it was none"):
        steps.promote(RUN, verdict, changed(finished_pipeline, "publish"), changed(finished_pipeline, "verify_release"))
    assert [entry.version for entry in champion.history(finished_pipeline.store)] == ["v0"]


@pytest.mark.integration
def test_a_run_promotes_no_release_of_another_run(finished_pipeline: Pipeline) -> None:
    """Whoever may write the results of tasks could name any release otherwise."""
    before = champion.history(finished_pipeline.store)
    results = (changed(finished_pipeline, name) for name in ("promotion_gate", "publish", "verify_release"))
    with pytest.raises(ConflictError, match=r"was published by run run-1; this run does not promote it"):
        steps.promote(NEXT, *results)
    assert champion.history(finished_pipeline.store) == before


@pytest.mark.integration
def test_a_release_that_was_not_verified_is_not_promoted(finished_pipeline: Pipeline) -> None:
    verified = changed(finished_pipeline, "verify_release", version="another")
    with pytest.raises(ConflictError, match=r"was not verified"):
        steps.promote(
            NEXT, changed(finished_pipeline, "promotion_gate"), changed(finished_pipeline, "publish"), verified
        )


@pytest.mark.integration
def test_what_decides_whether_to_train_again(finished_pipeline: Pipeline) -> None:
    def reasons(run: Run) -> list[str]:
        return steps.detect_change(run, *(changed(finished_pipeline, name) for name in ("ingest", "validate_data")))[
            "reasons"
        ]

    same = Run("run-2", NEXT.created, RUN.parameters)
    assert reasons(same) == []
    assert "nothing changed" in record(finished_pipeline, "detect_change", same)["outcome"]
    assert reasons(NEXT) == ["seed differs from the champion's"]
    assert reasons(replace(same, parameters=replace(RUN.parameters, force=True))) == ["training is forced"]
    other = changed(finished_pipeline, "ingest", code={"digest": "other", "versions": {}})
    assert steps.detect_change(same, other, changed(finished_pipeline, "validate_data"))["reasons"] == [
        "code differs from the champion's"
    ]
    finished_pipeline.promote_second_release(parameters={"colour": "red"})
    assert reasons(same) == ["the champion's parameters are those of another version of this project"]
    finished_pipeline.forget_champions()
    assert reasons(same) == ["there is no champion yet"]


@pytest.mark.integration
def test_a_damaged_manifest_of_the_champion_stops_the_run(finished_pipeline: Pipeline) -> None:
    key = f"releases/{service.in_service(finished_pipeline.store).version}/manifest.json"
    manifest = unseal(finished_pipeline.store.get(key), key)
    finished_pipeline.store.put(key, seal(manifest).replace(b"quick", b"quiet", 1))
    with pytest.raises(IntegrityError, match=key):
        run_again("detect_change", RUN)
