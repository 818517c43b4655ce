"""The steps of the task group `data`: find the images, check them, and see whether anything is new."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from fmnist_tasks.alerts import Alert, send
from fmnist_tasks.errors import DataError
from fmnist_tasks.evaluation.policy import read_policy
from fmnist_tasks.provenance import code_facts, machine_facts
from fmnist_tasks.registry import champion, releases
from fmnist_tasks.registry.blobs import Reference, put_blob
from fmnist_tasks.registry.runs import run_key
from fmnist_tasks.registry.store import Store
from fmnist_tasks.settings import Parameters, Settings
from fmnist_tasks.steps.step import Result, Run, step

if TYPE_CHECKING:
    from fmnist_tasks.data.checks import Findings


@step()
def ingest(store: Store, run: Run) -> Result:
    """Find the dataset and new batches, and keep both as blobs."""
    from fmnist_tasks.data import incoming
    from fmnist_tasks.data.dataset import make_dataset, make_part
    from fmnist_tasks.data.declaration import read_declaration
    from fmnist_tasks.data.sources import load_base

    read_policy(run.parameters.policy_changes)  # a fault in it is told before anything is trained
    settings = Settings.from_environment()
    declaration = read_declaration(settings.dataset)
    arrays, source = load_base(declaration, settings)
    parts = [
        make_part(store, split, source, arrays[f"{split}_images"], arrays[f"{split}_labels"])
        for split in ("train", "test")
    ]
    earlier = list(incoming.accepted(store))
    batches, waiting = incoming.find_batches(store)
    new, unreadable = [], []
    for name, keys in batches.items():
        try:
            images, labels, files = incoming.read_batch(store, name, keys)
            part = make_part(store, "train", f"incoming/{name}", images, labels)
        except DataError as error:
            unreadable.append({"name": name, "keys": keys, "reasons": [str(error)]})
        else:
            new.append({"name": name, "keys": keys, "files": files, "part": part})
    return {
        "title": declaration.title,
        "source": source,
        "dataset": make_dataset(declaration.name, declaration.classes, parts, earlier),
        "batches": new,
        "unreadable": unreadable,
        "waiting": waiting,
        "code": code_facts(),
        "machine": machine_facts(),
        "summary": (
            f"{parts[0]['images']:,} training and {parts[1]['images']:,} test images from {source}; "
            f"{len(earlier)} earlier and {len(new)} new batches, {len(unreadable)} unreadable"
        ),
    }


@step("ingest")
def validate_data(store: Store, run: Run, ingested: Result) -> Result:
    """Check the dataset and each new batch; accept good batches, quarantine bad ones, reject a bad dataset."""
    from fmnist_tasks.data.checks import Sample, check_samples
    from fmnist_tasks.data.dataset import load_part, make_dataset
    from fmnist_tasks.evaluation import figures

    dataset = ingested["dataset"]
    train, test = (load_part(store, part) for part in dataset["parts"][:2])
    training = Sample("training", *train, len(train[0]))
    batches = (Sample(_named(batch), *load_part(store, batch["part"]), None) for batch in ingested["batches"])
    found, pages = check_samples(training, Sample("test", *test, len(test[0])), batches, len(dataset["classes"]))
    for path, page in pages.items():
        store.put(run_key(run.id, f"data_docs/{path}"), page)

    failures = {name: [check.reason for check in part.checks if not check.passed] for name, part in found.items()}
    accepted, quarantined = _sorted_batches(store, run, ingested, failures)
    base, earlier = dataset["parts"][:2], dataset["parts"][2:]
    pictures = _suspicious_images(store, found.values(), dataset["classes"])
    result = {
        "dataset": make_dataset(dataset["name"], dataset["classes"], base, [*earlier, *accepted]),
        "checks": {name: [check.as_json() for check in part.checks] for name, part in found.items()},
        "drift": {name: part.drift for name, part in found.items()},
        "pictures": pictures,
        "quarantined": quarantined,
        "data_docs": store.location(run_key(run.id, "data_docs/index.html")),
        "summary": (
            f"{sum(len(part.checks) for part in found.values())} checks of {len(found)} parts; "
            f"{len(accepted)} batches accepted, {len(quarantined)} quarantined"
        ),
    }
    rejected = [f"{name}: {reason}" for name in ("training", "test") for reason in failures[name]]
    if rejected:
        return {**result, "rejection": "data rejected, training does not start: " + "; ".join(rejected)}
    samples = put_blob(store, figures.class_samples(*train, dataset["classes"]))
    return {**result, "pictures": {"samples": samples, **pictures}}


@step("ingest", "validate_data")
def detect_change(store: Store, run: Run, ingested: Result, validated: Result) -> Result:
    """Say whether data, code or parameters differ from those of the champion, and which seeds to train with then."""
    current = champion.champion(store)
    reasons = ["there is no champion yet"]
    if current:
        manifest = releases.read_manifest(store, current.version)
        earlier = Parameters.from_mapping(manifest["parameters"])
        data, code = manifest["data"]["fingerprint"], manifest["code"]["digest"]
        made_from = releases.describe_inputs(data, code, earlier.as_json())
        data, code = validated["dataset"]["fingerprint"], ingested["code"]["digest"]
        wanted = releases.describe_inputs(data, code, run.parameters.as_json())
        reasons = [f"{name} differs from the champion's" for name in wanted if wanted[name] != made_from[name]]
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


def _sorted_batches(
    store: Store, run: Run, ingested: Result, failures: dict[str, list[str]]
) -> tuple[list[Result], list[Result]]:
    """Parts of the batches that were accepted, and what was put into quarantine; a person is told of the latter."""
    from fmnist_tasks.data import incoming

    accepted = []
    refused = list(ingested["unreadable"])
    for batch in ingested["batches"]:
        if reasons := failures[_named(batch)]:
            refused.append({**batch, "reasons": reasons})
        else:
            accepted.append(incoming.accept(store, batch["part"], batch["files"]))
    quarantined = [
        incoming.quarantine(store, run.id, batch["name"], batch["keys"], batch["reasons"]) for batch in refused
    ]
    for batch in quarantined:
        text = f"batch {batch['batch']} is not used: {'; '.join(batch['reasons'])}. It lies at {batch['location']}"
        send(Alert("batch quarantined", run.id, text))
    return accepted, quarantined
