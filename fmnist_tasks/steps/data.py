"""The steps of the task group `data`: find the images, check them, and see whether anything is new."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import asdict, replace
from datetime import timedelta
from typing import TYPE_CHECKING

from fmnist_tasks.alerts import Alert, send
from fmnist_tasks.errors import AccessError, MissingError, SettingsError, StoreError
from fmnist_tasks.evaluation.policy import read_policy
from fmnist_tasks.provenance import code_facts, machine_facts
from fmnist_tasks.registry import champion, releases
from fmnist_tasks.registry.blobs import Reference, put_blob
from fmnist_tasks.registry.runs import run_key
from fmnist_tasks.registry.store import Store, read_clock, require_answer
from fmnist_tasks.settings import Settings
from fmnist_tasks.steps.step import Result, Run, step

if TYPE_CHECKING:
    from fmnist_tasks.data.checks import Findings
    from fmnist_tasks.data.incoming import Batch, Waiting

log = logging.getLogger(__name__)

_SEPARATE_ALERTS = 10  # of one kind in a run; what is more goes into one
_MOST_NEW_BATCHES = 200  # in one run: Great Expectations takes a quarter of a second and six pages for each
_MOST_NEW_BYTES = 4 << 30  # of pixels and labels that one run adds; compressed files of a few MB may hold as much


@step()
def ingest(store: Store, run: Run) -> Result:
    """Find the dataset and new batches, and keep both as blobs."""
    from fmnist_tasks.data.batches import list_accepted
    from fmnist_tasks.data.dataset import make_dataset, make_part
    from fmnist_tasks.data.declaration import read_declaration
    from fmnist_tasks.data.sources import load_base
    from fmnist_tasks.model.fakes import FAMILIES

    policy = read_policy(run.parameters.policy_changes)  # a fault in it is reported before anything is trained
    if unknown := sorted(policy.novelty.families.keys() - FAMILIES.keys()):
        raise SettingsError(f"policy: novelty: there are no images of {', '.join(unknown)}; use {', '.join(FAMILIES)}")
    settings = Settings.from_environment()
    declaration = read_declaration(settings.dataset)
    arrays, source = load_base(declaration, settings)
    parts = [
        make_part(store, split, source, arrays[f"{split}_images"], arrays[f"{split}_labels"])
        for split in ("train", "test")
    ]
    known = list_accepted(store)
    earlier = [batch.part for batch in known if not batch.withdrawn]
    new, unreadable, waiting = _read_batches(store, settings.settle, {batch.sha256 for batch in known})
    _alert_waiting(run, waiting)
    return {
        "title": declaration.title,
        "source": source,
        "declared": {split: declaration.count(split) for split in ("train", "test")},
        "dataset": make_dataset(declaration.name, declaration.classes, parts, earlier),
        "batches": new,
        "unreadable": unreadable,
        "waiting": [asdict(file) for file in waiting],
        "withdrawn": [batch.as_json() for batch in known if batch.withdrawn],
        "code": code_facts(),
        "machine": machine_facts(),
        "summary": (
            f"{parts[0]['images']:,} training and {parts[1]['images']:,} test images from {source}; "
            f"{len(earlier)} earlier and {len(new)} new batches, {len(unreadable)} unreadable"
            f"{_waiting_summary(waiting)}"
        ),
    }


@step("ingest")
def validate_data(store: Store, run: Run, ingested: Result) -> Result:
    """Check the dataset and each new batch; accept good batches, quarantine bad ones, reject a bad dataset.

    A bad dataset leaves all batches where they are: they are compared with it.
    """
    from fmnist_tasks.data.checks import Sample, check_samples
    from fmnist_tasks.data.dataset import load_part, make_dataset
    from fmnist_tasks.evaluation import figures

    dataset, declared = ingested["dataset"], ingested["declared"]
    train, test = (load_part(store, part) for part in dataset["parts"][:2])
    base = Sample("training", *train, declared["train"]), Sample("test", *test, declared["test"])
    batches = (Sample(_named(batch), *load_part(store, batch["part"]), None) for batch in ingested["batches"])
    found, pages = check_samples(*base, batches, len(dataset["classes"]))
    for path, page in pages.items():
        store.put(run_key(run.id, f"data_docs/{path}"), page)

    failures = {name: [check.reason for check in part.checks if not check.passed] for name, part in found.items()}
    rejected = [f"{name}: {reason}" for name in ("training", "test") for reason in failures[name]]
    accepted, quarantined, waiting = ([], [], []) if rejected else _sort_batches(store, run, ingested, failures)
    parts = [*dataset["parts"], *(batch["part"] for batch in accepted)]
    pictures = _suspicious_images(store, found.values(), dataset["classes"])
    result = {
        "dataset": make_dataset(dataset["name"], dataset["classes"], parts[:2], parts[2:]),
        "checks": {name: [check.as_json() for check in part.checks] for name, part in found.items()},
        "drift": {name: part.drift for name, part in found.items()},
        "pictures": pictures,
        "accepted": [{"name": batch["name"], "files": batch["files"]} for batch in accepted],
        "quarantined": quarantined,
        "waiting": [asdict(file) for file in waiting],
        "data_docs": store.location(run_key(run.id, "data_docs/index.html")),
        "summary": (
            f"{sum(len(part.checks) for part in found.values())} checks of {len(found)} parts; "
            f"{len(accepted)} batches accepted, {len(quarantined)} quarantined{_waiting_summary(waiting)}"
        ),
    }
    if rejected:
        return {**result, "rejection": "data rejected, training does not start: " + "; ".join(rejected)}
    samples = put_blob(store, figures.class_samples(*train, dataset["classes"]))
    return {**result, "pictures": {"samples": samples, **pictures}}


@step("ingest", "validate_data")
def detect_change(store: Store, run: Run, ingested: Result, validated: Result) -> Result:
    """Say whether data, code or parameters differ from those of the champion, and which seeds to train with then."""
    log = champion.read_log(store)
    champion.require_signing(store.keys, log)  # rather now than after hours of training
    current = log.champion
    reasons = ["there is no champion yet"]
    if current:
        manifest = releases.read_manifest(store, current.version, log)
        earlier = releases.read_parameters(manifest)
        data, code = manifest["data"]["fingerprint"], manifest["code"]["digest"]
        made_from = releases.describe_inputs(data, code, earlier or run.parameters.as_json())
        data, code = validated["dataset"]["fingerprint"], ingested["code"]["digest"]
        wanted = releases.describe_inputs(data, code, run.parameters.as_json())
        reasons = [f"{name} differs from the champion's" for name in wanted if wanted[name] != made_from[name]]
        if earlier is None:
            reasons.append("the champion's parameters are those of another version of this project")
        if not reasons and run.parameters.force:
            reasons = ["training is forced"]
    version = current.version if current else None
    unchanged = f"nothing changed: data, code and parameters are those of the champion {version}; it stays"
    return {
        "changed": bool(reasons),
        "seeds": run.parameters.seeds if reasons else [],
        "reasons": reasons,
        "champion": version,
        "summary": f"training, since {', '.join(reasons)}" if reasons else unchanged,
    }


def _named(batch: Result) -> str:
    """What a batch is called among samples, so that none can take the name of a split."""
    return f"batch {batch['name']}"


def _suspicious_images(store: Store, found: Iterable[Findings], classes: list[str]) -> dict[str, Reference]:
    """A picture, if there are any, of images whose labels look swapped: the label, and what they look like."""
    from fmnist_tasks.evaluation import figures

    rows, images = [], []
    for findings in found:
        for pair, shown in zip(findings.pairs, findings.shown, strict=True):
            rows += [{"truth": classes[pair.label], "answer": classes[pair.looks_like]}] * len(shown)
            images += list(shown)
    return {"suspicious": put_blob(store, figures.predictions(rows, images))} if rows else {}


def _read_batches(store: Store, settle: timedelta, known: set[str]) -> tuple[list[Result], list[Result], list[Waiting]]:
    """Batches under `incoming/` that were read and kept as blobs, those that cannot be read, and files that wait.

    What is known by its digest was accepted before and could not be removed; it does not count towards the limits.
    """
    from fmnist_tasks.data import incoming
    from fmnist_tasks.data.dataset import make_part

    now = read_clock(store)
    try:
        batches, waiting = incoming.find_batches(store.list(incoming.PREFIX), now, settle)
    except AccessError as error:
        return [], [], [incoming.Waiting(incoming.PREFIX, str(error), alert=True)]
    if store.stat(incoming.PREFIX.rstrip("/")):
        reason = "is a file, not a folder; if it is a batch, move it into a folder of that name"
        waiting.append(incoming.Waiting(incoming.PREFIX.rstrip("/"), reason, alert=True))
    new: list[Result] = []
    unreadable: list[Result] = []
    count = size = 0
    for batch in batches:
        if count >= _MOST_NEW_BATCHES or size > _MOST_NEW_BYTES:
            reason = (
                "the batches before it are as much as one run takes; the next one takes it. Trigger it, or make fewer"
            )
            waiting += [incoming.Waiting(file.key, f"{reason} and larger batches", alert=True) for file in batch.files]
            continue
        try:
            content, files = incoming.read_batch(store, batch)
            if incoming.has_changed(store, files):
                waiting += [incoming.Waiting(file.key, "it changed while it was read") for file in files]
                continue
        except MissingError as error:
            log.info("batch %s was taken away meanwhile: %s", batch.name, error)
            continue
        except (AccessError, StoreError) as error:
            require_answer(store)
            waiting += [incoming.Waiting(file.key, f"it cannot be read: {error}", alert=True) for file in batch.files]
            continue
        found: Result = {"name": batch.name, "files": [file.as_json() for file in files]}
        if isinstance(content, str):
            unreadable.append({**found, "reasons": [content]})
        else:
            part = make_part(store, "train", f"{incoming.PREFIX}{batch.name}", *content)
            new.append({**found, "part": {**part, "keys": [file.key for file in files]}})
            if part["blob"]["sha256"] not in known:
                count, size = count + 1, size + part["blob"]["bytes"]
    return new, unreadable, waiting


def _sort_batches(
    store: Store, run: Run, ingested: Result, failures: dict[str, list[str]]
) -> tuple[list[Result], list[Result], list[Waiting]]:
    """Batches that were accepted, what was put into quarantine, and files that wait; alerts are sent for the latter."""
    from fmnist_tasks.data import incoming
    from fmnist_tasks.data.batches import accept, list_accepted

    withdrawn = {batch.sha256: batch.withdrawn for batch in list_accepted(store) if batch.withdrawn}
    accepted: list[Result] = []
    quarantined: list[Result] = []
    waiting: list[Waiting] = []
    try:
        for batch in [*ingested["unreadable"], *ingested["batches"]]:
            found = incoming.Batch(batch["name"], [incoming.File(**file) for file in batch["files"]])
            reasons = batch.get("reasons") or failures[_named(batch)]
            if not reasons and (decision := withdrawn.get(batch["part"]["blob"]["sha256"])):
                why = f"on {decision.time[:10]} by {decision.by}: {decision.reason}"
                reasons = [f"the same content was withdrawn {why}; restore it if it is to be used"]
            if reasons:
                moved, left = incoming.quarantine(store, run.id, found, reasons)
                quarantined += [moved] if moved else []
                waiting += left
            else:
                accept(store, batch["part"])
                accepted.append(batch)
                waiting += _remove_accepted(store, found)
    finally:  # what was moved before the store failed is not moved again
        _alert_quarantined(run, quarantined)
        _alert_waiting(run, waiting)
    return accepted, quarantined, waiting


def _remove_accepted(store: Store, batch: Batch) -> list[Waiting]:
    """Remove the files of a batch that is in the dataset now; those that cannot be removed."""
    from fmnist_tasks.data import incoming

    left = filter(None, (incoming.take(store, file) for file in batch.files))
    return [replace(one, reason=f"what was read of it is in the dataset, but {one.reason}") for one in left]


def _alert_quarantined(run: Run, batches: list[Result]) -> None:
    """One alert for each batch; where there are many, one for all, with the reasons of the first."""
    texts = [
        f"Batch {batch['batch']} is not used: {'; '.join(batch['reasons'])}. Its files were moved; the reason lies "
        f"beside them, at {batch['location']}"
        for batch in batches
    ]
    if len(texts) > _SEPARATE_ALERTS:
        first, rest = ". ".join(texts[:_SEPARATE_ALERTS]), len(texts) - _SEPARATE_ALERTS
        texts = [
            f"{len(texts)} batches are not used. {first}. {rest} more are in the report of the run, and beside these"
        ]
    for text in texts:
        send(Alert("batch quarantined", run.id, text))


def _alert_waiting(run: Run, waiting: list[Waiting]) -> None:
    """One alert for all files that will not get better by themselves."""
    texts = [f"{file.key}: {file.reason}" for file in waiting if file.alert]
    if texts:
        more = f"; and {len(texts) - _SEPARATE_ALERTS} more" if len(texts) > _SEPARATE_ALERTS else ""
        send(Alert("batch waiting", run.id, f"These files need someone: {'; '.join(texts[:_SEPARATE_ALERTS])}{more}"))


def _waiting_summary(waiting: list[Waiting]) -> str:
    return f", {len(waiting)} waiting" if waiting else ""
