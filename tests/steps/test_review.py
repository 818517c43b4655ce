"""Images of a batch that are set aside, and what users decide about them."""

from __future__ import annotations

import io
import json
import shutil
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image
from typer.testing import CliRunner

from fmnist_tasks.cli import app
from fmnist_tasks.data.accepted_batches import accept_batch
from fmnist_tasks.data.dataset import save_images
from fmnist_tasks.data.review import list_review_images, read_pixels, record_decisions
from fmnist_tasks.errors import IntegrityError, MissingError, RejectedError, SettingsError
from fmnist_tasks.page.activity import Schedule
from fmnist_tasks.page.app import Access, create_app
from fmnist_tasks.registry.folder import FolderStore
from fmnist_tasks.run_report import read_run, render_run
from fmnist_tasks.schemas.runs import ValidationResult
from fmnist_tasks.serving import withdrawal
from fmnist_tasks.steps import run_step
from fmnist_tasks.steps.examination import Examiner, KnownImages
from fmnist_tasks.steps.gates import read_valid_policy
from tests.support import synthetic
from tests.support.pipeline import Pipeline
from tests.support.synthetic import RUN, encode_npz

IMAGES, LABELS = synthetic.make_images(400, 77)
TRAINING = synthetic.make_images(1600, 1)[0]
CLASSES = synthetic.PROPERTIES.classes
SAME_ORIGIN = {"sec-fetch-site": "same-origin"}


def submit(pipeline: Pipeline, images: np.ndarray, labels: np.ndarray, run_id: str = "run-2") -> ValidationResult:
    pipeline.store.put(f"incoming/{run_id}.npz", encode_npz(images=images, labels=labels))
    return validate(run_id)


def validate(run_id: str, policy: Mapping[str, object] | None = None) -> ValidationResult:
    run = replace(RUN, id=run_id, parameters=replace(RUN.parameters, policy=policy or {}))
    run_step("ingest", run)
    result: ValidationResult = run_step("validate_data", run)
    return result


def count_training_images(result: ValidationResult) -> int:
    return sum(image_set.images for image_set in result.dataset.image_sets if image_set.split == "train")


def list_rows(store: FolderStore) -> list[int]:
    return [image.entry.row for image in list_review_images(store) if image.decision is None]


def test_near_duplicates_are_set_aside_and_the_rest_continues(pipeline: Pipeline) -> None:
    images = IMAGES.copy()
    images[3] = TRAINING[12]
    images[5] = np.roll(TRAINING[100], 1, axis=1)
    result = submit(pipeline, images, LABELS)
    assert (result.quarantined, result.set_aside, result.in_review) == ([], {"run-2.npz": 2}, 2)
    assert count_training_images(result) == 1600 + 398
    assert result.summary.endswith("; 2 in review")
    waiting = list_review_images(pipeline.store)
    assert [image.entry.reasons for image in waiting] == [
        ["near-duplicate of training image 13"],
        ["near-duplicate of training image 101"],
    ]
    pixels, near_duplicates = read_pixels(pipeline.store, waiting[1].arrays)
    np.testing.assert_array_equal(pixels, images[[3, 5]])
    np.testing.assert_array_equal(near_duplicates, TRAINING[[12, 100]])


def test_the_report_counts_images_that_are_converted_unreadable_set_aside_and_in_review(pipeline: Pipeline) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for number, (pixels, label) in enumerate(zip(IMAGES, LABELS, strict=True)):
            image = Image.fromarray(TRAINING[4] if number == 7 else pixels)
            file = io.BytesIO()
            (image.convert("RGB") if number < 30 else image).save(file, "png")
            archive.writestr(f"pattern {label}/{number}.png", file.getvalue())
        archive.writestr("pattern 0/broken.png", b"not a picture")
    pipeline.store.put("incoming/pictures.zip", buffer.getvalue())
    result = validate("run-2")
    assert (result.set_aside, result.in_review) == ({"pictures.zip": 1}, 1)
    report = " ".join(render_run(pipeline.store, "run-2", read_run(pipeline.store, "run-2")).decode().split())
    for text in (
        "Batch pictures.zip: images converted (size or colour mode): 30; unreadable: 1",
        "pattern 0/broken.png is not a readable image",
        "Batch pictures.zip: images set aside for review: 1.",
        "Images of all batches that wait for review: 1, the oldest since",
    ):
        assert text in report


def test_a_batch_of_near_duplicates_is_rejected(pipeline: Pipeline) -> None:
    images = np.concatenate([IMAGES[:370], TRAINING[:30]])
    result = submit(pipeline, images, LABELS)
    (batch,) = result.quarantined
    assert batch.reasons[0].startswith("30 of 400 images (7.5%) have findings or are unreadable")
    assert count_training_images(result) == 1600
    assert list_rows(pipeline.store) == []


def test_one_image_with_a_finding_does_not_reject_its_batch(pipeline: Pipeline) -> None:
    result = submit(pipeline, TRAINING[:1], synthetic.make_images(1600, 1)[1][:1])
    assert (result.quarantined, list_rows(pipeline.store)) == ([], [0])
    assert count_training_images(result) == 1600


@pytest.fixture(scope="module")
def store_in_review(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The store of a run that set three images aside: rows 3, 5 and 8 of a batch."""
    pipeline = Pipeline(tmp_path_factory.mktemp("review"))
    synthetic.write_dataset(pipeline.data)
    images = IMAGES.copy()
    images[[3, 5, 8]] = TRAINING[[12, 13, 14]]
    with pytest.MonkeyPatch.context() as patch:
        for name, value in pipeline.environment.items():
            patch.setenv(name, value)
        submit(pipeline, images, LABELS)
    return pipeline.store.root


@pytest.fixture
def pipeline_in_review(pipeline: Pipeline, store_in_review: Path) -> Pipeline:
    """A pipeline with a copy of that store."""
    shutil.copytree(store_in_review, pipeline.store.root, dirs_exist_ok=True)
    return pipeline


def decide(store: FolderStore, rows: Sequence[int], action, label: int | None = None) -> None:
    ids = [image.id for image in list_review_images(store) if image.entry.row in rows]
    record_decisions(store, CLASSES, ids, action, label, by="ann")


def test_kept_and_relabelled_images_join_the_next_run(pipeline_in_review: Pipeline) -> None:
    store = pipeline_in_review.store
    decide(store, [3], "keep")
    decide(store, [5], "relabel", 7)
    decide(store, [8], "drop")
    result = validate("run-3")
    assert (result.in_review, count_training_images(result)) == (0, 1600 + 397 + 2)
    (kept,) = (image_set for image_set in result.dataset.batches if image_set.source == "review of run-2.npz")
    with store.open(kept.blob.uri) as file, np.load(file) as arrays:
        np.testing.assert_array_equal(arrays["images"], TRAINING[[12, 13]])
        assert arrays["labels"].tolist() == [LABELS[3], 7]
    assert validate("run-4").dataset.fingerprint == result.dataset.fingerprint


def test_near_duplicates_of_test_images_can_only_be_dropped(pipeline: Pipeline) -> None:
    images = IMAGES.copy()
    images[3], images[5] = synthetic.make_images(600, 2)[0][0], TRAINING[12]
    submit(pipeline, images, LABELS)
    store = pipeline.store
    ids = {image.entry.row: image.id for image in list_review_images(store)}
    for action in ("keep", "relabel"):
        with pytest.raises(SettingsError, match=rf"^{ids[3]}: near-duplicates of test images .* can only be dropped"):
            decide(store, [3, 5], action, 1)
    assert list_rows(store) == [3, 5]
    decide(store, [3], "drop")
    decide(store, [5], "keep")
    assert count_training_images(validate("run-3")) == 1600 + 398 + 1


def test_the_last_decision_counts(pipeline_in_review: Pipeline) -> None:
    store = pipeline_in_review.store
    decide(store, [3, 5], "keep")
    decide(store, [3], "drop")
    decisions = {image.entry.row: image.decision for image in list_review_images(store)}
    assert decisions[8] is None
    assert [(decisions[row].action, decisions[row].by, decisions[row].number) for row in (3, 5)] == [
        ("drop", "ann", 2),
        ("keep", "ann", 1),
    ]


def test_images_of_a_withdrawn_batch_are_neither_shown_nor_used(pipeline_in_review: Pipeline) -> None:
    store = pipeline_in_review.store
    decide(store, [3], "keep")
    withdrawal.withdraw(store, "run-2.npz", "poisoned", actor="ann")
    assert list_review_images(store) == []
    assert count_training_images(validate("run-3")) == 1600


def test_the_same_batch_submitted_again_counts_once(pipeline_in_review: Pipeline) -> None:
    images = IMAGES.copy()
    images[[3, 5, 8]] = TRAINING[[12, 13, 14]]
    result = submit(pipeline_in_review, images, LABELS, "run-3")
    assert (result.quarantined, count_training_images(result)) == ([], 1600 + 397)
    assert list_rows(pipeline_in_review.store) == [3, 5, 8]


def test_unknown_images_and_labels_are_refused(pipeline_in_review: Pipeline) -> None:
    store = pipeline_in_review.store
    with pytest.raises(MissingError, match=r"^no image in review has the ID x-1; `fmnist review list` lists them"):
        record_decisions(store, CLASSES, ["x-1"], "keep", None, by="ann")
    with pytest.raises(SettingsError, match=r"^select at least one image$"):
        record_decisions(store, CLASSES, [], "keep", None, by="ann")
    for label in (None, -1, 10):
        with pytest.raises(SettingsError, match=r"^choose a new label before you relabel"):
            decide(store, [3], "relabel", label)


def test_a_lost_decision_is_noticed(pipeline_in_review: Pipeline) -> None:
    store = pipeline_in_review.store
    for action in ("keep", "drop", "keep"):
        decide(store, [3], action)
    first, second, _ = (stat.key for stat in store.list("reviews/"))
    content = store.get(second)
    store.delete(second)
    with pytest.raises(IntegrityError, match=rf"^{second} is missing, but there are later decisions"):
        validate("run-3")
    audit = CliRunner().invoke(app, ["audit"])
    assert (audit.exit_code, second in audit.stderr) == (1, True)
    store.put(second, content)
    assert CliRunner().invoke(app, ["audit"]).exit_code == 0
    assert first.endswith("00000001.json")


def test_an_id_names_one_image_only(pipeline_in_review: Pipeline) -> None:
    """Nobody can make two batches whose digests begin with the same 128 bits."""
    images = list_review_images(pipeline_in_review.store)
    assert {len(image.id.partition("-")[0]) for image in images} == {32}
    assert [image.id.partition("-")[2] for image in images] == [str(image.entry.row + 1) for image in images]


def test_images_that_another_batch_of_the_run_has_are_set_aside(pipeline: Pipeline) -> None:
    pipeline.store.put("incoming/a.npz", encode_npz(images=IMAGES, labels=LABELS))
    pipeline.store.put("incoming/b.npz", encode_npz(images=IMAGES[::-1].copy(), labels=LABELS[::-1].copy()))
    result = validate("run-2")
    assert [batch.name for batch in result.accepted] == ["a.npz"]
    assert result.quarantined[0].reasons[0].startswith("400 of 400 images (100.0%) have findings")


def test_images_that_a_batch_repeats_are_set_aside_except_the_first(pipeline: Pipeline) -> None:
    images, labels = np.concatenate([IMAGES, np.roll(IMAGES[:5], 1, axis=1)]), np.concatenate([LABELS, LABELS[:5]])
    result = submit(pipeline, images, labels)
    assert result.set_aside == {"run-2.npz": 5}
    waiting = list_review_images(pipeline.store)
    assert [(image.entry.row, image.entry.reasons[0]) for image in waiting[:2]] == [
        (400, "near-duplicate of image 1 of the same batch"),
        (401, "near-duplicate of image 2 of the same batch"),
    ]


def test_withdrawn_images_do_not_return_in_another_order(pipeline: Pipeline) -> None:
    submit(pipeline, IMAGES, LABELS)
    withdrawal.withdraw(pipeline.store, "run-2.npz", "poisoned", actor="ann")
    result = submit(pipeline, IMAGES[::-1].copy(), LABELS[::-1].copy(), "run-3")
    assert (result.accepted, count_training_images(result)) == ([], 1600)
    submit(pipeline, IMAGES[:1], LABELS[:1], "run-4")
    (image,) = list_review_images(pipeline.store)
    assert image.entry.reasons == ["near-duplicate of image 1 of the withdrawn batch run-2.npz"]


def test_a_damaged_or_copied_decision_is_refused(pipeline_in_review: Pipeline) -> None:
    store = pipeline_in_review.store
    decide(store, [3], "keep")
    (stat,) = store.list("reviews/")
    data = store.get(stat.key)
    store.put(stat.key.replace("00000001", "00000002"), data)
    with pytest.raises(IntegrityError, match="so it was copied or renamed"):
        list_review_images(store)
    store.delete(stat.key.replace("00000001", "00000002"))
    store.put(stat.key, data.replace(b"keep", b"drop"))
    with pytest.raises(IntegrityError, match=r"00000001\.json"):
        list_review_images(store)


def test_the_command_lists_and_decides(pipeline_in_review: Pipeline) -> None:
    def run(*arguments: str) -> list[dict[str, object]]:
        result = CliRunner().invoke(app, ["review", *arguments, "--json"], catch_exceptions=False)
        assert result.exit_code == 0, result.output
        rows: list[dict[str, object]] = json.loads(result.stdout)
        return rows

    rows = run("list")
    ids = [str(row["id"]) for row in rows]
    assert CliRunner().invoke(app, ["review", "list", "--decided"]).output == "no decisions yet\n"
    assert [row["label"] for row in rows] == [CLASSES[LABELS[row]] for row in (3, 5, 8)]
    run("keep", ids[0])
    run("relabel", ids[1], "--label", "pattern 7")
    run("drop", ids[2])
    assert run("list") == []
    assert CliRunner().invoke(app, ["review", "list"]).output == "no images to review\n"
    result = CliRunner().invoke(app, ["review", "relabel", ids[0], "--label", "pattern 77"])
    assert result.exit_code == 1
    assert "'pattern 77' is not a class of Synthetic patterns; its classes are pattern 0" in result.output
    decisions = [row["decision"] for row in run("list", "--decided")]
    assert [(row["action"], row["label"]) for row in decisions] == [("keep", None), ("relabel", 7), ("drop", None)]
    assert all(str(row["by"]).endswith("(shell)") for row in decisions)
    table = " ".join(CliRunner().invoke(app, ["review", "list", "--decided"], terminal_width=400).output.split())
    assert "relabelled as pattern 7 by " in table


def test_the_page_shows_images_and_decides_in_bulk(pipeline_in_review: Pipeline) -> None:
    client = TestClient(create_app(Access(lambda: None, lambda: "ann", lambda _: Schedule())))
    view = client.get("/review").text
    assert "3 images waiting for a decision, 0 decided" in view
    assert "near-duplicate of training image 13" in view
    assert view.count("data:image/png;base64,") == 6
    ids = [image.id for image in list_review_images(pipeline_in_review.store)]
    response = client.post(
        "/review", data={"action": "drop", "ids": ids[:2]}, headers=SAME_ORIGIN, follow_redirects=False
    )
    assert response.status_code == 303
    assert "1 image waiting for a decision, 2 decided" in client.get("/review").text
    assert "dropped by ann on" in client.get("/review?decided=true").text
    assert client.post("/review", data={"action": "keep", "ids": ["x-1"]}, headers=SAME_ORIGIN).status_code == 404
    assert client.post("/review", data={"action": "burn", "ids": ids}, headers=SAME_ORIGIN).status_code == 422


@pytest.mark.integration
def test_the_champion_finds_wrong_labels_and_noise(finished_pipeline: Pipeline) -> None:
    random = np.random.default_rng(3)
    declaration = finished_pipeline.data / "dataset.toml"  # a background that is declared later changes no model
    declaration.write_text(declaration.read_text().replace("[image_format]\n", "[image_format]\nbackground = 0\n"))
    images, labels = synthetic.make_images(1000, 78)
    labels[[10, 20, 30]] = (labels[[10, 20, 30]] + 1) % 10
    images[[40, 50]] = random.integers(0, 256, (2, 28, 28))
    result = submit(finished_pipeline, images, labels)
    assert result.quarantined == []
    found = {image.entry.row: image.entry for image in list_review_images(finished_pipeline.store)}
    assert set(found) >= {10, 20, 30, 40, 50}
    assert len(found) <= 5 + 40
    assert [found[row].suggested for row in (10, 20, 30)] == [(labels[row] - 1) % 10 for row in (10, 20, 30)]
    assert all(found[row].reasons[0].startswith("out of distribution: OOD score ") for row in (40, 50))


def test_a_batch_that_was_accepted_before_an_interruption_counts_for_later_ones(pipeline: Pipeline) -> None:
    """The second batch repeats the first, which the interrupted step had accepted."""
    pipeline.store.put("incoming/a.npz", encode_npz(images=IMAGES, labels=LABELS))
    pipeline.store.put("incoming/b.npz", encode_npz(images=IMAGES[::-1], labels=LABELS[::-1]))
    run = replace(RUN, id="run-2")
    ingestion = run_step("ingest", run)
    first = next(batch for batch in ingestion.batches if batch.name == "a.npz")
    accept_batch(pipeline.store, first.image_set, first.image_set.blob.sha256)
    result = run_step("validate_data", run)
    assert ([batch.name for batch in result.accepted], [batch.name for batch in result.quarantined]) == (
        ["a.npz"],
        ["b.npz"],
    )


def test_images_that_cannot_be_read_are_not_deleted(pipeline: Pipeline) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for number, (pixels, label) in enumerate(zip(IMAGES, LABELS, strict=True)):
            file = io.BytesIO()
            Image.fromarray(pixels).save(file, "png")
            archive.writestr(f"pattern {label}/{number}.png", file.getvalue())
        archive.writestr("pattern 0/original.heic", b"the only copy")
    pipeline.store.put("incoming/pictures.zip", buffer.getvalue())
    result = validate("run-2")
    assert [batch.name for batch in result.accepted] == ["pictures.zip"]
    assert pipeline.store.get("quarantine/run-2/pictures.zip") == buffer.getvalue()
    reason = pipeline.store.get("quarantine/run-2/pictures.zip.reason.txt").decode()
    assert reason.startswith(
        "the batch was accepted without its unreadable images (1); repair and submit only these:\npattern 0/or"
    )
    assert list(pipeline.store.list("incoming/")) == []


def test_accepted_batches_of_another_declaration_stop_the_run_with_what_to_do(pipeline: Pipeline) -> None:
    image_set = save_images(pipeline.store, "train", "incoming/old.npz", IMAGES[:, :12, :12].copy(), LABELS)
    accept_batch(pipeline.store, image_set, image_set.blob.sha256)
    with pytest.raises(RejectedError, match=r"batch incoming/old\.npz has images of the shape 12 × 12 .* withdraw"):
        validate("run-2")


def test_an_accepted_batch_with_a_test_image_stops_the_run(pipeline: Pipeline) -> None:
    images = np.concatenate([IMAGES, synthetic.make_images(600, 2)[0][:1]])
    labels = np.concatenate([LABELS, LABELS[:1]])
    image_set = save_images(pipeline.store, "train", "incoming/old.npz", images, labels, keys=["incoming/old.npz"])
    accept_batch(pipeline.store, image_set, image_set.blob.sha256)
    with pytest.raises(RejectedError, match="source incoming: images identical to a test image: 1, expected 0"):
        validate("run-2")


def test_a_batch_that_is_withdrawn_during_a_run_is_not_its_own_near_duplicate(pipeline: Pipeline) -> None:
    submit(pipeline, IMAGES, LABELS)
    run = replace(RUN, id="run-3")
    run_step("ingest", run)
    withdrawal.withdraw(pipeline.store, "run-2.npz", "poisoned", actor="ann")
    assert run_step("validate_data", run).rejection is None


@pytest.mark.parametrize("count", [1, 60])
def test_a_source_with_few_images_does_not_stop_the_next_run(pipeline: Pipeline, count: int) -> None:
    assert submit(pipeline, IMAGES[:count], LABELS[:count]).quarantined == []
    result = validate("run-3")
    (drift,) = (check for check in result.checks["source incoming"] if check.name == "drift")
    assert drift.value > 0.1
    assert (drift.outcome, result.rejection) == ("passed", None)


@pytest.mark.integration
def test_small_amounts_of_wrong_labels_in_accepted_batches_add_up(finished_pipeline: Pipeline) -> None:
    """Each batch was accepted before there was a champion; none has enough wrong labels to be rejected alone."""
    store = finished_pipeline.store
    for number in range(4):
        images, labels = synthetic.make_images(500, 80 + number)
        labels[:15] = (labels[:15] + 1) % 10
        image_set = save_images(
            store, "train", f"incoming/shop/{number}.npz", images, labels, keys=[f"incoming/shop/{number}.npz"]
        )
        accept_batch(store, image_set, image_set.blob.sha256)
    with pytest.raises(
        RejectedError,
        match=r"^the recheck of all accepted batches, by source, failed, .*source shop: doubtful labels: \d+ of 2,000",
    ):
        validate("run-2")
    withdrawal.withdraw(store, "shop/0.npz", "wrong labels", actor="ann")
    assert validate("run-3", policy={"recheck": {"on_failure": "warning"}}).rejection is None


def test_images_set_aside_from_a_withdrawn_batch_do_not_return(pipeline_in_review: Pipeline) -> None:
    store = pipeline_in_review.store
    withdrawal.withdraw(store, "run-2.npz", "poisoned", actor="ann")
    known = KnownImages(IMAGES[:0], TRAINING[:0])
    assert known.find_near_duplicates(TRAINING[12:13]) == [None]
    policy = read_valid_policy("", {})
    ingestion = run_step("ingest", replace(RUN, id="run-3"))
    blank = np.zeros((1, 28, 28), np.uint8), np.zeros(1, np.uint8)
    (known,) = Examiner(store, ingestion.dataset, policy, blank, blank)._known.find_near_duplicates(TRAINING[13:14])
    assert known
    assert known.description == "image 2 of the withdrawn batch run-2.npz"
    np.testing.assert_array_equal(known.pixels, TRAINING[13])


def test_a_withdrawn_batch_of_another_declaration_does_not_stop_the_run(pipeline: Pipeline) -> None:
    image_set = save_images(pipeline.store, "train", "incoming/old.npz", IMAGES[:, :12, :12].copy(), LABELS)
    accept_batch(pipeline.store, image_set, image_set.blob.sha256)
    withdrawal.withdraw(pipeline.store, "old.npz", "of an earlier declaration", actor="ann")
    assert validate("run-2").rejection is None


def test_a_kept_image_that_is_a_test_image_now_stops_the_run(pipeline: Pipeline) -> None:
    batch = IMAGES.copy()
    batch[3] = np.roll(TRAINING[12], 1, axis=1)
    submit(pipeline, batch, LABELS)
    decide(pipeline.store, [3], "keep")
    images, labels = synthetic.make_images(600, 2)
    images[0] = batch[3]
    synthetic.write_dataset(pipeline.data, test_images=images, test_labels=labels)
    with pytest.raises(
        RejectedError, match="images added after review: images identical to a test image: 1, expected 0"
    ):
        validate("run-3")


def test_a_retry_reports_what_an_interrupted_step_set_aside(pipeline: Pipeline) -> None:
    images = IMAGES.copy()
    images[3] = TRAINING[12]
    result = submit(pipeline, images, LABELS)
    again = run_step("validate_data", replace(RUN, id="run-2"))
    assert (result.set_aside, again.set_aside) == ({"run-2.npz": 1}, {"run-2.npz": 1})
