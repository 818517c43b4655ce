"""The steps of the task group `data`: find the dataset and new batches, check them, and detect changes."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from datetime import timedelta
from time import monotonic
from typing import TYPE_CHECKING

from fmnist_tasks.alerts import Alert, send_alert
from fmnist_tasks.errors import AccessError, MissingError, StoreError
from fmnist_tasks.provenance import describe_code, describe_machine
from fmnist_tasks.registry import champion, releases
from fmnist_tasks.registry.blobs import put_blob
from fmnist_tasks.registry.runs import make_run_key
from fmnist_tasks.registry.store import Store, read_clock, require_response
from fmnist_tasks.schemas.base import Reference
from fmnist_tasks.schemas.data import (
    DatasetProperties,
    NewBatch,
    QuarantinedBatch,
    Split,
    UnreadableBatch,
    WaitingFile,
    WithdrawnBatch,
)
from fmnist_tasks.schemas.runs import AddedBatch, ChangeResult, IngestResult, ValidationResult
from fmnist_tasks.settings import Settings, name_command
from fmnist_tasks.steps.examination import Examination, Examiner
from fmnist_tasks.steps.gates import read_run_policy
from fmnist_tasks.steps.step import Run, step

if TYPE_CHECKING:
    from fmnist_tasks.data.checks import SampleResult
    from fmnist_tasks.data.incoming import IncomingBatch

log = logging.getLogger(__name__)

_MAX_ALERTS = 10  # of one kind in a run; more are combined into one
_MAX_NEW_BATCHES = 200  # in one run: Great Expectations takes a quarter of a second and six pages for each
_MAX_READING = timedelta(hours=1)  # by one run; a batch may take ten minutes, and the task may take six hours
_SAMPLE_PREFIX = "batch "
_MAX_NEW_BYTES = 4 << 30  # of pixels and labels that one run adds; compressed files of a few MB can contain as much


@step()
def ingest(store: Store, run: Run) -> IngestResult:
    """Find the dataset and new batches, and save both as blobs."""
    from fmnist_tasks.data.accepted_batches import list_accepted
    from fmnist_tasks.data.dataset import make_dataset, save_images
    from fmnist_tasks.data.declaration import load_declaration
    from fmnist_tasks.data.review import list_review_images, save_reviewed_images
    from fmnist_tasks.data.sources import load_base

    settings = Settings.from_environment()
    read_run_policy(run)  # first, so an invalid policy is found before any training
    declaration = load_declaration(settings, run.dataset)
    arrays, source = load_base(declaration, settings)
    splits: tuple[Split, Split] = ("train", "test")
    base = [save_images(store, split, source, arrays[f"{split}_images"], arrays[f"{split}_labels"]) for split in splits]
    known = list_accepted(store)
    earlier = [batch.image_set for batch in known if not batch.withdrawal]
    earlier += save_reviewed_images(store, list_review_images(store, known))
    new, unreadable, waiting = _read_batches(
        store, declaration, settings.settle_time, {batch.sha256 for batch in known}
    )
    _alert_waiting(run, waiting)
    return IngestResult(
        title=declaration.title,
        source=source,
        declared={split: declaration.count_images(split) for split in splits},
        dataset=make_dataset(declaration, base, earlier),
        batches=new,
        unreadable=unreadable,
        waiting=waiting,
        withdrawn=[
            WithdrawnBatch(name=batch.name, withdrawn=batch.describe_withdrawal())
            for batch in known
            if batch.withdrawal
        ],
        code=describe_code(),
        machine=describe_machine(),
        summary=(
            f"{base[0].images:,} training and {base[1].images:,} test images from {source}; "
            f"{len(earlier)} earlier and {len(new)} new batches, {len(unreadable)} unreadable"
            f"{_summarise_waiting(waiting)}"
        ),
    )


@step("ingest")
def validate_data(store: Store, run: Run, ingestion: IngestResult) -> ValidationResult:
    """Check the dataset and each new batch; accept good batches, quarantine bad ones, reject a bad dataset.

    If the dataset is bad, batches stay where they are, since they are compared with it.
    """
    from fmnist_tasks.data.accepted_batches import list_accepted
    from fmnist_tasks.data.checks import Sample, check_samples
    from fmnist_tasks.data.dataset import load_images, make_dataset
    from fmnist_tasks.data.review import list_review_images
    from fmnist_tasks.evaluation import figures

    dataset, declared, policy = ingestion.dataset, ingestion.declared, read_run_policy(run)
    training, test = (load_images(store, image_set) for image_set in (dataset.base, dataset.test))
    base = Sample("training", *training, declared["train"]), Sample("test", *test, declared["test"])
    examiner = Examiner(store, dataset, policy, training, test)
    examinations: dict[str, Examination] = {}
    first_batches = _find_first_batches(ingestion.batches)

    def examine_batches() -> Iterator[Sample]:
        accepted = {batch.sha256: batch for batch in list_accepted(store)}
        known = {image_set.blob.sha256 for image_set in dataset.batches}
        for digest, batch in first_batches.items():
            if earlier := accepted.get(digest):  # after an interruption, or submitted again
                if earlier.image_set.blob.sha256 not in known and not earlier.withdrawal:
                    examiner.add_batch(batch.name, earlier.image_set)
                continue
            images, labels = load_images(store, batch.image_set)
            examinations[batch.name], continues = examiner.examine(batch, images, labels)
            if continues.any():
                yield Sample(_name_sample(batch.name), images[continues], labels[continues], None)

    def add_passed_batch(sample: Sample) -> None:
        name = sample.name.removeprefix(_SAMPLE_PREFIX)
        examiner.add_batch(name, examinations[name].image_set)

    results, pages = check_samples(*base, examine_batches(), dataset, policy.data, on_passed=add_passed_batch)
    for path, page in pages.items():
        store.put(make_run_key(run.id, f"data_docs/{path}"), page)

    failures = {
        name: [check.message for check in result.checks if not check.has_passed] for name, result in results.items()
    }
    rejected = [f"{name}: {message}" for name in ("training", "test") for message in failures[name]]
    rechecked = {} if rejected else examiner.recheck()
    suspicious = [
        f"{name}: {check.message}" for name, checks in rechecked.items() for check in checks if not check.has_passed
    ]
    accepted, quarantined, waiting = (
        ([], [], []) if rejected else _accept_or_quarantine(store, run, ingestion, failures, examinations)
    )
    pictures = _draw_label_errors(store, results.values(), dataset.classes)
    if not rejected:
        examples = put_blob(store, figures.draw_class_examples(*training, dataset.classes))
        pictures = {"samples": examples, **pictures}
    known_batches = list_accepted(store)
    continuing = {batch.sha256: batch.image_set.images for batch in known_batches}
    new_digests = {batch.image_set.blob.sha256 for batch in accepted}
    new = [batch.image_set for batch in known_batches if batch.sha256 in new_digests and not batch.withdrawal]
    in_review = [image for image in list_review_images(store, known_batches) if image.decision is None]
    return ValidationResult(
        dataset=make_dataset(dataset, [dataset.base, dataset.test], [*dataset.batches, *new]),
        checks={name: result.checks for name, result in results.items()} | rechecked,
        drift={name: result.drift for name, result in results.items()},
        pictures=pictures,
        accepted=[AddedBatch(name=batch.name, files=batch.files) for batch in accepted],
        quarantined=quarantined,
        waiting=waiting,
        set_aside={
            batch.name: count
            for batch in accepted
            if first_batches[batch.image_set.blob.sha256] is batch
            and (count := batch.image_set.images - continuing[batch.image_set.blob.sha256])
        },
        in_review=len(in_review),
        oldest_in_review=min((image.batch.accepted.isoformat() for image in in_review), default=None),
        test_near_duplicates=[] if rejected else examiner.find_test_images_in_training(),
        data_docs=store.location(make_run_key(run.id, "data_docs/index.html")),
        summary=(
            f"{sum(len(result.checks) for result in results.values())} checks of {len(results)} samples; "
            f"{len(accepted)} batches accepted, {len(quarantined)} quarantined{_summarise_waiting(waiting)}; "
            f"{len(in_review):,} in review"
        ),
        rejection=_explain_rejection(run.dataset, rejected, suspicious),
    )


@step("ingest", "validate_data")
def detect_change(store: Store, run: Run, ingestion: IngestResult, validation: ValidationResult) -> ChangeResult:
    """Compare data, code and parameters with the champion's; if any differs, return the seeds to train with."""
    champion_log = champion.read_log(store)
    champion.require_signing(store.keys, champion_log)  # now, not after hours of training
    current = champion_log.champion
    reasons = ["there is no champion yet"]
    if current:
        manifest = releases.read_manifest(store, current.version, champion_log)
        releases.require_same_dataset(manifest, validation.dataset)
        earlier = releases.read_parameters(manifest)
        parameters = run.parameters.to_json()
        champion_inputs = releases.describe_inputs(
            manifest.dataset.fingerprint, manifest.code.digest, earlier or parameters
        )
        inputs = releases.describe_inputs(validation.dataset.fingerprint, ingestion.code.digest, parameters)
        reasons = [f"{name} differs from the champion's" for name in inputs if inputs[name] != champion_inputs[name]]
        if earlier is None:
            reasons.append("the champion's parameters are those of another version of this project")
        if not reasons and run.parameters.force:
            reasons = ["training is forced"]
    version = current.version if current else None
    unchanged = f"nothing changed: data, code and parameters are those of the champion {version}; it stays"
    return ChangeResult(
        changed=bool(reasons),
        seeds=run.parameters.seeds if reasons else [],
        reasons=reasons,
        champion=version,
        summary=f"training, since {', '.join(reasons)}" if reasons else unchanged,
    )


def _explain_rejection(dataset: str, base: list[str], sources: list[str]) -> str | None:
    """Return why training does not start: faults of the base dataset, or of the accepted batches of a source."""
    if base:
        return f"the data checks failed, so training does not start: {'; '.join(base)}"
    if sources:
        return (
            "the recheck of all accepted batches, by source, failed, so training does not start: "
            f"{'; '.join(sources)}. {name_command(dataset, 'batches')} lists the batches, with the folder of the "
            f"source in their names; withdraw the bad ones. {name_command(dataset, 'review list --decided')} lists the "
            "images that reviewers added; drop the bad ones. [recheck] in the policy has the thresholds"
        )
    return None


def _name_sample(batch: str) -> str:
    """The name of a batch among samples; the prefix keeps it apart from the names of splits."""
    return f"{_SAMPLE_PREFIX}{batch}"


def _find_first_batches(batches: Iterable[NewBatch]) -> dict[str, NewBatch]:
    """The first batch with each content, by digest: what is decided about it holds for the others."""
    first: dict[str, NewBatch] = {}
    for batch in batches:
        first.setdefault(batch.image_set.blob.sha256, batch)
    return first


def _draw_label_errors(store: Store, results: Iterable[SampleResult], classes: list[str]) -> dict[str, Reference]:
    """A figure of likely label errors, if there are any: each image with its label and the class it looks like."""
    from fmnist_tasks.evaluation import figures

    labels: list[str] = []
    looks: list[str] = []
    images = []
    for result in results:
        for pair, examples in zip(result.label_errors, result.examples, strict=True):
            labels += [classes[pair.label]] * len(examples)
            looks += [classes[pair.looks_like]] * len(examples)
            images += list(examples)
    return {"label_errors": put_blob(store, figures.draw_predictions(labels, looks, images, classes))} if images else {}


def _read_batches(
    store: Store, dataset: DatasetProperties, settle_time: timedelta, known: set[str]
) -> tuple[list[NewBatch], list[UnreadableBatch], list[WaitingFile]]:
    """Batches below `incoming/` that were read and saved as blobs, those that cannot be read, and files that wait.

    `known` has the digests of accepted batches. Such a batch could not be removed earlier, and does not count towards
    the limits.
    """
    from fmnist_tasks.data import incoming
    from fmnist_tasks.data.dataset import save_images

    now = read_clock(store)
    try:
        batches, waiting = incoming.find_batches(store.list(incoming.PREFIX), now, settle_time)
    except AccessError as error:
        return [], [], [incoming.make_waiting_file(incoming.PREFIX, str(error), needs_attention=True)]
    if store.stat(incoming.PREFIX.rstrip("/")):
        reason = "is a file, not a folder; if it is a batch, move it into a folder of that name"
        waiting.append(incoming.make_waiting_file(incoming.PREFIX.rstrip("/"), reason, needs_attention=True))
    new: list[NewBatch] = []
    unreadable: list[UnreadableBatch] = []
    count = size = number_of_files = 0
    started = monotonic()
    for batch in batches:
        if len(batch.files) > incoming.MAX_FILES:
            reason = f"has {len(batch.files):,} files; the limit is {incoming.MAX_FILES:,}: submit it as a zip file"
            waiting += incoming.make_waiting_files(batch, reason, needs_attention=True)
            continue
        number_of_files += len(batch.files)
        is_late = monotonic() - started > _MAX_READING.total_seconds()
        if count >= _MAX_NEW_BATCHES or size > _MAX_NEW_BYTES or number_of_files > incoming.MAX_FILES or is_late:
            reason = (
                f"this run has reached its limit of {_MAX_NEW_BATCHES} new batches, {incoming.MAX_FILES:,} files, "
                f"{_MAX_NEW_BYTES >> 30} GiB or an hour of reading; the next run takes it. Trigger a run, or submit "
                "fewer and larger files, such as zip files"
            )
            waiting += incoming.make_waiting_files(batch, reason, needs_attention=True)
            continue
        try:
            content, files = incoming.read_batch(store, batch, dataset)
            if incoming.has_changed(store, files):
                waiting += incoming.make_waiting_files(batch, "it changed while it was read")
                continue
        except MissingError as error:
            log.info("batch %s was removed in the meantime: %s", batch.name, error)
            continue
        except (AccessError, StoreError) as error:
            require_response(store)
            waiting += incoming.make_waiting_files(batch, f"it cannot be read: {error}", needs_attention=True)
            continue
        if isinstance(content, str):
            unreadable.append(UnreadableBatch(name=batch.name, files=files, reasons=[content]))
            count += 1
        else:
            source = f"{incoming.PREFIX}{batch.name}"
            image_set = save_images(store, "train", source, content.images, content.labels, keys=batch.keys)
            new.append(
                NewBatch(
                    name=batch.name,
                    files=files,
                    image_set=image_set,
                    converted=content.converted,
                    unreadable=content.unreadable,
                    reasons=content.reasons,
                )
            )
            if image_set.blob.sha256 not in known:
                count, size = count + 1, size + image_set.blob.bytes
    return new, unreadable, waiting


def _accept_or_quarantine(
    store: Store,
    run: Run,
    ingestion: IngestResult,
    failures: dict[str, list[str]],
    examinations: dict[str, Examination],
) -> tuple[list[NewBatch], list[QuarantinedBatch], list[WaitingFile]]:
    """Accept good batches and quarantine the others; send alerts about quarantined batches and files that wait."""
    from fmnist_tasks.data import incoming
    from fmnist_tasks.data.accepted_batches import accept_batch, list_accepted

    first_batches = _find_first_batches(ingestion.batches)
    withdrawals = {batch.sha256: batch.withdrawal for batch in list_accepted(store) if batch.withdrawal}
    accepted: list[NewBatch] = []
    quarantined: list[QuarantinedBatch] = []
    waiting: list[WaitingFile] = []
    try:
        batches: list[UnreadableBatch | NewBatch] = [*ingestion.unreadable, *ingestion.batches]
        for batch in batches:
            submitted = incoming.IncomingBatch(batch.name, batch.files)
            if isinstance(batch, UnreadableBatch):
                reasons = batch.reasons
            else:
                first = first_batches[batch.image_set.blob.sha256].name
                reasons = failures.get(_name_sample(first), [])
                examination = examinations.get(first, Examination(batch.image_set))
                if examination.quarantine_reason:
                    reasons = [examination.quarantine_reason, *reasons]
                if not reasons and (withdrawal := withdrawals.get(batch.image_set.blob.sha256)):
                    why = f"on {withdrawal.time[:10]} by {withdrawal.by}: {withdrawal.reason}"
                    reasons = [f"the same content was withdrawn {why}; to use it, restore that batch"]
                if not reasons:
                    accept_batch(store, examination.image_set, batch.image_set.blob.sha256, examination.review)
                    accepted.append(batch)
                    waiting += _remove_accepted(store, run.id, submitted, batch)
                    continue
            moved, left = incoming.move_to_quarantine(store, run.id, submitted, reasons)
            quarantined += [moved] if moved else []
            waiting += left
    finally:  # a retry after a failure of the store does not move these files again
        _alert_quarantined(run, quarantined)
        _alert_waiting(run, waiting)
    return accepted, quarantined, waiting


def _remove_accepted(store: Store, run_id: str, batch: IncomingBatch, content: NewBatch) -> list[WaitingFile]:
    """Remove the files of an accepted batch from `incoming/`; return those that cannot be removed.

    If it had images that cannot be read, its files go to quarantine, since they may be the only copies.
    """
    from fmnist_tasks.data import incoming

    if content.unreadable:
        count = f"{content.unreadable:,}"
        reason = f"the batch was accepted without its unreadable images ({count}); repair and submit only these:"
        _, left = incoming.move_to_quarantine(store, run_id, batch, [reason, *content.reasons])
    else:
        left = list(filter(None, (incoming.remove_file(store, file) for file in batch.files)))
    prefix = "its content is in the dataset, but"
    return [file.model_copy(update={"reason": f"{prefix} {file.reason}"}) for file in left]


def _alert_quarantined(run: Run, batches: list[QuarantinedBatch]) -> None:
    """Send an alert for each batch; if there are many, one for all, with the reasons of the first."""
    texts = [
        f"Batch {batch.name} is quarantined: {'; '.join(batch.reasons)}. The reason is also in {batch.location}, "
        "beside the files"
        for batch in batches
    ]
    if len(texts) > _MAX_ALERTS:
        first, rest = ". ".join(texts[:_MAX_ALERTS]), len(texts) - _MAX_ALERTS
        texts = [f"{len(texts)} batches are quarantined. {first}. The report of the run lists {rest} more"]
    for text in texts:
        send_alert(Alert("batch quarantined", run.id, text, dataset=run.dataset))


def _alert_waiting(run: Run, waiting: list[WaitingFile]) -> None:
    """Send one alert for all files that need attention."""
    texts = [f"{file.key}: {file.reason}" for file in waiting if file.needs_attention]
    if texts:
        more = f"; and {len(texts) - _MAX_ALERTS} more" if len(texts) > _MAX_ALERTS else ""
        send_alert(
            Alert(
                "batch waiting",
                run.id,
                f"These files need attention: {'; '.join(texts[:_MAX_ALERTS])}{more}",
                dataset=run.dataset,
            )
        )


def _summarise_waiting(waiting: list[WaitingFile]) -> str:
    return f", {len(waiting)} waiting" if waiting else ""
