"""Run the steps of the pipeline, and inspect and change the registry.

Every command prints a table, or one JSON document with --json. Exit codes: 0 success, 1 failed or refused (the reason
is on standard error), 2 usage error.
"""

from __future__ import annotations

import getpass
import json
import logging
import os
import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from contextvars import ContextVar
from dataclasses import asdict
from datetime import UTC, date, datetime, timedelta
from functools import partial, wraps
from inspect import cleandoc
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console
from rich.logging import RichHandler
from rich.text import Text

from fmnist_tasks.announcement import announce_champion
from fmnist_tasks.data.declaration import Declaration, load_declaration
from fmnist_tasks.errors import READ_ERRORS, DataError, FmnistError, MissingError, RejectedError, SettingsError
from fmnist_tasks.registry import pruning
from fmnist_tasks.registry import releases as release_store
from fmnist_tasks.registry.champion import Log, find_champion_at, list_entries, read_log
from fmnist_tasks.registry.runs import make_run_key, read_record
from fmnist_tasks.registry.signing import Keys
from fmnist_tasks.registry.store import DATASETS, Store, read_clock
from fmnist_tasks.registry.stores import open_default_store
from fmnist_tasks.run_report import read_run
from fmnist_tasks.schemas.data import MAX_SIDE, MIN_SIDE
from fmnist_tasks.schemas.releases import Entry
from fmnist_tasks.serving import withdrawal
from fmnist_tasks.serving.release import classify_images, fetch_release, open_release, require_champion, verify_release
from fmnist_tasks.serving.rollback import roll_back
from fmnist_tasks.settings import SHELL_SUFFIX, Parameters, Settings, name_command, name_run_command, read_store_uri
from fmnist_tasks.tables import has_succeeded, print_json, show_metrics, show_rows, show_steps
from fmnist_tasks.text import make_printable


def join_lines(doc: str | None) -> str:
    """A docstring with each paragraph on one line, since Typer does not join the lines of all paragraphs."""
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in cleandoc(doc or "").split("\n\n"))


app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=join_lines(__doc__))
keys_app = typer.Typer(no_args_is_help=True)
_KEYS_HELP = "Manage the keys that sign releases and the champion log."
app.add_typer(keys_app, name="keys", help=_KEYS_HELP, short_help=_KEYS_HELP)
review_app = typer.Typer(no_args_is_help=True)
_REVIEW_HELP = "List images that the data checks set aside, and decide about them."
app.add_typer(review_app, name="review", help=_REVIEW_HELP, short_help=_REVIEW_HELP)
dataset_app = typer.Typer(no_args_is_help=True)
_DATASET_HELP = "Create a dataset from your own images."
app.add_typer(dataset_app, name="dataset", help=_DATASET_HELP, short_help=_DATASET_HELP)
standard_error = Console(stderr=True)

_MAX_SHOWN = 10  # items of a list in a table
_HISTORY_COLUMNS = ("sequence", "time", "action", "version", "replaces", "actor", "reason", "signature")

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of a table.")]
Reason = Annotated[str, typer.Option(help="The reason; it is stored with your name.")]
RunId = Annotated[str | None, typer.Option("--run", help="ID of the run; by default the latest run.")]


_dataset = ContextVar("dataset", default="")  # Typer has no public way to read a context's options elsewhere


@app.callback()
def choose_dataset(
    dataset: Annotated[
        str, typer.Option(metavar="NAME", help="A dataset in FMNIST_DATASETS, instead of the default one.")
    ] = "",
) -> None:
    """The option of all commands."""
    _dataset.set(dataset)


def _open_store() -> Store:
    """The store of the dataset that the command line names."""
    Settings.from_environment().find_declaration(_dataset.get())
    return open_default_store(_dataset.get())


def _load_declaration() -> Declaration:
    """The declaration of the dataset that the command line names."""
    return load_declaration(Settings.from_environment(), _dataset.get())


def report_errors(function: Callable[..., None]) -> Callable[..., None]:
    """Wrap a command: report this project's errors in one line, and exit with 1."""

    @wraps(function)
    def run_and_report_errors(*args: Any, **kwargs: Any) -> None:
        try:
            function(*args, **kwargs)
        except FmnistError as error:
            _print_error("error:", str(error))
            raise typer.Exit(1) from error

    return run_and_report_errors


def add_command(group: typer.Typer, name: str | None, function: Callable[..., None]) -> None:
    """Add a function to a group of commands. Without `short_help`, Typer would truncate the summary in docs/cli.md."""
    text = join_lines(function.__doc__)
    group.command(name, help=text, short_help=text.partition("\n\n")[0])(report_errors(function))


def command(function: Callable[..., None]) -> Callable[..., None]:
    """Decorate a function to register it as a command of its name."""
    add_command(app, None, function)
    return function


@command
def download(as_json: AsJson = False) -> None:
    """Find the dataset, or download it into the cache."""
    from fmnist_tasks.data.sources import load_base

    declaration = _load_declaration()
    _, source = load_base(declaration, Settings.from_environment())
    if as_json:
        print_json({"dataset": declaration.name, "source": source})
    else:
        print(f"{declaration.title}: sizes and digests of all four files match; source: {source}")


def _parse_json(text: str) -> Any:
    """Parse JSON; typer reports a ValueError as a usage error."""
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("the JSON is nested too deeply") from error


@command
def ingest(
    profile: Annotated[str, typer.Option(help="Training budget: quick, standard or thorough.")] = Parameters().profile,
    seed: Annotated[int, typer.Option(help="Random seed of the training.")] = Parameters().seed,
    candidates: Annotated[int, typer.Option(help="Number of base models to train, with consecutive seeds.")] = 1,
    accuracy_threshold: Annotated[
        float | None, typer.Option(help="Minimum test accuracy, 0 to 1; by default the value of the policy.")
    ] = None,
    policy: Annotated[
        dict[str, Any] | None,
        typer.Option(parser=_parse_json, metavar="JSON", help="Values that replace those of include/gates.toml."),
    ] = None,
    run: Annotated[str | None, typer.Option(help="ID of the new run; by default created from the time.")] = None,
    as_json: AsJson = False,
) -> None:
    """Start a run: read the dataset and new batches, and save them in the store."""
    from fmnist_tasks.steps import Run, run_step

    now = datetime.now(UTC).isoformat(timespec="seconds")
    run_id = run or f"shell__{now}"
    try:
        make_run_key(run_id, "")
        parameters = Parameters(profile, seed, candidates, accuracy_threshold, {} if policy is None else policy)
    except SettingsError as error:
        raise typer.BadParameter(str(error)) from error
    _set_up_logging()
    _show_steps(
        [("ingest", run_step("ingest", Run(run_id, now, parameters, _find_actor(), dataset=_dataset.get())))], as_json
    )


@command
def validate(run: RunId = None, as_json: AsJson = False) -> None:
    """Check every image of a run with Great Expectations."""
    _run_steps(run, as_json, "validate_data")


@command
def train(run: RunId = None, as_json: AsJson = False) -> None:
    """Train the base models of a run, and select the one with the lowest validation loss."""
    _run_steps(run, as_json, "train", "choose_base")


@command
def evaluate(run: RunId = None, as_json: AsJson = False) -> None:
    """Evaluate the newest model of a run on the test images; exit code 1 if the gate rejects it."""
    from fmnist_tasks.steps import read_result

    store = _open_store()
    try:
        read_result(store, _find_run(store, run), "fine_tune")
    except (MissingError, RejectedError):
        _run_steps(run, as_json, "evaluate_base", "accuracy_gate")
    else:
        _run_steps(run, as_json, "evaluate_tuned", "promotion_gate")


@command
def fine_tune(run: RunId = None, as_json: AsJson = False) -> None:
    """Fine-tune the base model of a run; the model with the lower validation loss becomes the candidate."""
    _run_steps(run, as_json, "fine_tune")


@command
def publish(run: RunId = None, as_json: AsJson = False) -> None:
    """Publish the candidate of a run, verify the release, and promote it."""
    _run_steps(run, as_json, "publish", "verify_release", "promote")


@command
def summary(run: RunId = None, as_json: AsJson = False) -> None:
    """Summarise a run; exit code 1 unless it promoted a champion or nothing had changed, and all records are intact."""
    store = _open_store()
    run_id = _find_run(store, run).id
    recorded = read_run(store, run_id)
    records, faults = recorded.records, recorded.faults
    has_promoted = "promote" in records and records["promote"].status == "done"
    deciding = tuple(make_run_key(run_id, f"{step}.json") for step in ("detect_change", "promote"))
    is_known = has_succeeded(records) or not any(fault.startswith(deciding) for fault in faults)
    if as_json:
        print_json(
            {
                "run_id": run_id,
                "promoted": has_promoted if is_known else None,
                "unchanged": has_succeeded(records) and not has_promoted if is_known else None,
                "steps": {name: record.to_json() for name, record in records.items()},
                "faults": faults,
            }
        )
    else:
        show_steps(records)
        show_metrics(store, run_id, recorded)
    for fault in faults:
        _print_error("error:", fault)
    if not is_known:
        _print_error(f"run {run_id}:", "a damaged record hides whether a champion was promoted; see `fmnist history`")
    elif not has_succeeded(records):
        running = [name for name, record in records.items() if record.status == "running"]
        state = f"{', '.join(running)} is still running" if running else "no champion was promoted"
        _print_error(f"run {run_id}:", state)
    if faults or not has_succeeded(records):
        raise typer.Exit(1)


@command
def releases(as_json: AsJson = False) -> None:
    """List all releases, oldest first; exit code 1 if a manifest cannot be read."""
    store = _open_store()
    champion_log = read_log(store)
    rows = []
    faults = []
    for version in release_store.list_versions(store):
        try:
            manifest = release_store.read_manifest(store, version, champion_log)
        except READ_ERRORS as error:
            faults.append(str(error))
            continue
        rows.append(
            {
                "version": version,
                "test_accuracy": manifest.metrics.test.accuracy,
                "profile": manifest.parameters["profile"],
                "seed": manifest.parameters["seed"],
                "run_id": manifest.run_id,
                "champion": champion_log.champion is not None and champion_log.champion.version == version,
                "withdrawn": version in champion_log.withdrawn,
            }
        )
    if fault := release_store.find_missing_champion(store, champion_log):
        faults.append(fault)
    show_rows(rows, as_json, "" if faults else f"no releases yet; create one with `{name_run_command(store.dataset)}`")
    for fault in faults:
        _print_error("error:", fault)
    if faults:
        raise typer.Exit(1)


@command
def champion(as_json: AsJson = False) -> None:
    """Show the current champion; exit code 1 if there is none."""
    store = _open_store()
    show_rows(_describe(store, require_champion(store)), as_json)


def _parse_moment(text: str) -> datetime:
    """A date means the end of that day, a time without a zone is UTC. Typer reports a ValueError as a usage error."""
    moment = datetime.fromisoformat(text)
    with suppress(ValueError):
        date.fromisoformat(text)
        moment += timedelta(days=1, microseconds=-1)
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


@command
def history(
    at: Annotated[
        datetime | None,
        typer.Option(
            parser=_parse_moment,
            metavar="DATE",
            help="Show only the champion at that time: a date such as 2026-11-23 (end of the day, UTC), or a time.",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show the champion log, oldest first: promotions, rollbacks, withdrawals and restorations."""
    store = _open_store()
    if at is None:
        rows = [_describe(store, entry) for entry in list_entries(store)]
        if not as_json:
            rows = [{name: row[name] or "" for name in _HISTORY_COLUMNS} for row in rows]
        show_rows(rows, as_json, "no champion yet")
    elif entry := find_champion_at(store, at):
        show_rows(_describe(store, entry), as_json)
    else:
        raise MissingError(f"there was no champion yet at {at.isoformat()}")


@command
def audit(
    expect: Annotated[
        str | None,
        typer.Option(
            metavar="HEAD", help="The head printed by an earlier audit; fail unless the log still contains it."
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Verify the champion log, every release, and the documents of batches; exit code 1 at the first fault."""
    from fmnist_tasks.data.accepted_batches import list_accepted
    from fmnist_tasks.data.review import list_review_images
    from fmnist_tasks.registry.audit import audit_store

    store = _open_store()
    batches = list_accepted(store)
    rows = {"batches": len(batches), "images_in_review": len(list_review_images(store, batches))}
    show_rows({**audit_store(store, expect), **rows}, as_json)


def _parse_size(text: str) -> tuple[int, int]:
    """Parse a height and width, or the side of a square; raises `typer.BadParameter` for anything else."""
    if not (match := re.fullmatch(r"(\d{1,4})(?:x(\d{1,4}))?", text)):
        raise typer.BadParameter(f"{text!r} is not HEIGHTxWIDTH, such as 32x48, or one number for a square")
    size = int(match[1]), int(match[2] or match[1])
    if not all(MIN_SIDE <= side <= MAX_SIDE for side in size):
        raise typer.BadParameter(f"{text!r} is out of range: height and width are {MIN_SIDE} to {MAX_SIDE} pixels")
    return size


def create_dataset(
    name: Annotated[str, typer.Argument(help="Name of the dataset: letters, digits, - and _.", metavar="NAME")],
    path: Annotated[
        Path,
        typer.Argument(
            help="A folder or zip file with one folder of images for each class, a .csv, .npz or .parquet file, or a "
            "folder of IDX or Parquet files."
        ),
    ],
    title: Annotated[str, typer.Option(help="Title for users; by default the name.")] = "",
    size: Annotated[
        Any | None,
        typer.Option(
            parser=_parse_size,
            metavar="HxW",
            help="Height and width; by default those of most images, or 32x32 if these are larger than 96 or differ.",
        ),
    ] = None,
    colour: Annotated[
        bool | None, typer.Option("--colour/--grey", help="By default colour if at least 1% of the images have some.")
    ] = None,
    flip: Annotated[bool, typer.Option("--flip", help="Horizontally flipped images keep their label.")] = False,
    upright: Annotated[
        bool, typer.Option("--upright", help="Images are upright: rotated ones are out of distribution.")
    ] = False,
    classes: Annotated[
        str, typer.Option(help="Names of the classes, separated by commas, if labels are numbers.")
    ] = "",
    ood_label: Annotated[
        str, typer.Option(help="The answer for an image that is out of distribution.")
    ] = "out of distribution",
    as_json: AsJson = False,
) -> None:
    """Create a dataset: the declaration, four IDX files, and the thresholds of the gates.

    Exact copies are removed. Without a folder for test images, a sixth of each class becomes the test split, chosen so
    that no test image has a near-duplicate in the training split. The command reports what it found, and prints the
    next command.
    """
    from fmnist_tasks import new_dataset
    from fmnist_tasks.data.labelled_sources import read_source

    names = [part.strip() for part in classes.split(",")] if classes else []
    channels = None if colour is None else 3 if colour else 1
    source = read_source(path, size=size, channels=channels, classes=names)
    created = new_dataset.create_dataset(
        source,
        open_default_store(name),
        Settings.from_environment().datasets,
        name,
        title=title or name,
        ood_label=ood_label,
        horizontal_flip=flip,
        upright=upright,
    )
    if as_json:
        print_json(created.report)
        return
    labels = {name: name.replace("_", " ").replace("ood", "OOD") for name in created.report}
    show_rows({labels[name]: _join(value) for name, value in created.report.items()}, as_json)
    gates = created.path.with_suffix("") / "gates.toml"
    print(f"\nNext: check {created.path} and {gates}, then run\n\n    {name_run_command(name)}\n")


def _join(value: object) -> object:
    """A list, shortened, or counts by name, on one line."""
    if isinstance(value, dict):
        return ", ".join(f"{name}: {count:,}" for name, count in value.items())
    if not isinstance(value, list):
        return value
    more = [f"and {len(value) - _MAX_SHOWN:,} more"] if len(value) > _MAX_SHOWN else []
    return "; ".join([*map(str, value[:_MAX_SHOWN]), *more]) or "none"


add_command(dataset_app, "new", create_dataset)


def _parse_folder(text: str) -> Path:
    """Parse a folder's name; typer reports a ValueError as a usage error."""
    if not text:
        raise ValueError("is empty")  # which would mean the current folder
    return Path(text)


def make_keys(
    folder: Annotated[
        Path, typer.Argument(parser=_parse_folder, metavar="FOLDER", help="For the two files; created if missing.")
    ],
    revoke_earlier: Annotated[
        bool,
        typer.Option(
            "--revoke-earlier", help="Stop accepting new signatures of earlier keys, which may be compromised."
        ),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Create a signing key: the first one, or a replacement.

    The command writes signing-key-ID.pem (secret) and trusted-keys.json (public, for every reader), which keeps the
    earlier keys. It reads the champion log of FMNIST_STORE, and starts from FMNIST_TRUSTED_KEYS_FILE, or from
    trusted-keys.json in the folder.
    """
    from fmnist_tasks.registry import signing_keys

    store = open_default_store()
    public = folder / signing_keys.TRUSTED_FILE
    trusted = store.keys.trusted
    if public.exists():
        keys_in_folder = signing_keys.read_trusted_keys({f"{signing_keys.TRUSTED_KEYS}_FILE": str(public)})
        if trusted is not None and trusted != keys_in_folder:
            raise SettingsError(
                f"{public} differs from {signing_keys.TRUSTED_KEYS}; unset that variable, or pass an empty folder"
            )
        trusted = keys_in_folder
    store.keys = Keys(trusted)
    champion_log = read_log(store)
    manifests = {}
    if trusted is None:
        if champion_log.newest_key:
            raise SettingsError(
                f"the champion log is already signed; set {signing_keys.TRUSTED_KEYS}_FILE to its trusted keys"
            )
        manifests = _digest_manifests(store, champion_log)
    elif revoke_earlier and not champion_log.newest_key:
        raise SettingsError(
            f"no entry of the champion log in {read_store_uri()} is signed with these keys: FMNIST_STORE may name "
            "another store. Nothing was changed. If the keys were never used, delete their files and create new ones"
        )
    datasets = {name: _read_history(name, store.keys) for name in _list_stored_datasets(store)}
    pem, trusted = signing_keys.make_keys(
        trusted, champion_log.digests, manifests, datasets, revoke_earlier=revoke_earlier
    )
    signing, public = signing_keys.write_keys(folder, pem, trusted)
    show_rows(
        {
            "store": read_store_uri(),
            "entries": len(champion_log.entries),
            "key": trusted.keys[-1].id,
            "FMNIST_SIGNING_KEY_FILE": str(signing),
            "FMNIST_TRUSTED_KEYS_FILE": str(public),
        },
        as_json,
    )


def _list_stored_datasets(store: Store) -> list[str]:
    """The datasets, besides the default one, that have a champion log in the store."""
    return sorted({stat.key.split("/")[1] for stat in store.list(DATASETS) if "/champion/" in stat.key})


def _read_history(dataset: str, keys: Keys) -> tuple[Sequence[str], dict[str, str]]:
    """The digests of a dataset's log entries and, before signing begins, of its manifests."""
    store = open_default_store(dataset)
    store.keys = keys.restrict(dataset)
    champion_log = read_log(store)
    if keys.trusted:
        return champion_log.digests, {}
    return champion_log.digests, _digest_manifests(store, champion_log)


def _digest_manifests(store: Store, champion_log: Log) -> dict[str, str]:
    return {
        name: release_store.open_manifest(store, name, champion_log).sha256
        for name in release_store.list_versions(store)
    }


add_command(keys_app, "new", make_keys)


@command
def verify(version: Annotated[str, typer.Argument(help="The release to verify.")], as_json: AsJson = False) -> None:
    """Verify every file of a release against its manifest, and evaluate its model again."""
    show_rows(verify_release(_open_store(), version), as_json)


@command
def fetch(
    folder: Annotated[Path, typer.Argument(help="Where to create a folder with the release's name.")] = Path(),
    release: Annotated[str | None, typer.Option(help="The release; by default the champion.")] = None,
    as_json: AsJson = False,
) -> None:
    """Save a release in a folder: model, manifest, model card, report and figures, each verified."""
    store = _open_store()
    version = release or require_champion(store).version
    show_rows({"version": version, "folder": str(fetch_release(store, version, folder))}, as_json)


@command
def rollback(
    version: Annotated[str, typer.Argument(help="The release to roll back to.")],
    reason: Reason,
    replaces: Annotated[
        str | None, typer.Option(help="The expected champion; nothing changes if it is another release.")
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Allow a release that was never the champion or has other classes.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Verify an earlier release and make it the champion again; withdraw the current one."""
    store = _open_store()
    after = require_champion(store, replaces).sequence
    entry = roll_back(store, version, reason, actor=_find_actor(), after=after, force=force)
    announce_champion(entry, store.dataset)
    show_rows(_describe(store, entry), as_json)


@command
def withdraw(
    name: Annotated[str, typer.Argument(help="A release, or a batch by its name or SHA-256.")],
    reason: Reason,
    as_json: AsJson = False,
) -> None:
    """Bar a release, and every candidate that repeats it, from promotion; or remove a batch from the dataset."""
    show_rows(withdrawal.withdraw(_open_store(), name, reason, actor=_find_actor()), as_json)


@command
def restore(
    name: Annotated[str, typer.Argument(help="A withdrawn release or batch.")], reason: Reason, as_json: AsJson = False
) -> None:
    """Lift the withdrawal of a release or batch."""
    show_rows(withdrawal.restore(_open_store(), name, reason, actor=_find_actor()), as_json)


@command
def prune(
    keep: Annotated[int, typer.Option(min=1, metavar="N", help="Keep at least the N newest releases.")],
    older_than: Annotated[
        int, typer.Option(min=1, max=99_999, metavar="N", help="Only delete objects written more than N days ago.")
    ],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what would be deleted.")] = False,
    as_json: AsJson = False,
) -> None:
    """Delete old releases, runs, predictions and unused content; never the champion or its predecessor."""
    store = _open_store()
    age = timedelta(days=older_than)
    if dry_run:
        plan = pruning.plan_pruning(store, keep=keep, older_than=age, now=read_clock(store))
    else:
        plan = pruning.prune(store, keep=keep, older_than=age)
    for key, reason in plan.skipped.items():
        _print_error("skipped:", f"{key} {reason}")
    rows = [
        {"kind": group.kind, "name": group.name, "objects": len(group.objects), "bytes": group.bytes}
        for group in plan.groups
    ]
    show_rows(rows, as_json, "nothing to delete")
    if not as_json and rows:
        total = sum(group.bytes for group in plan.groups)
        print(f"{total:,} bytes {'would be' if dry_run else 'were'} deleted")


@command
def predict(
    images: Annotated[list[Path], typer.Argument(help="Image files; converted to the format of the dataset.")],
    release: Annotated[str | None, typer.Option(help="The release; by default the champion.")] = None,
    invert: Annotated[bool, typer.Option("--invert", help="Invert images that seem to be negatives.")] = False,
    as_json: AsJson = False,
) -> None:
    """Classify images, or report them as out of distribution; exit code 1 if an image cannot be read.

    Images should be like those of the dataset: Fashion-MNIST, for example, shows light garments on a black background.
    """
    import numpy as np

    from fmnist_tasks.data.image_files import looks_inverted, read_image_file

    store = _open_store()
    opened = open_release(store, release or require_champion(store).version)
    pixels, reasons = {}, {}
    for path in images:
        try:
            image_format = opened.manifest.dataset.image_format
            image = read_image_file(path, str(path), image_format)
            pixels[path] = 255 - image if invert and looks_inverted(image, image_format) else image
        except DataError as error:
            reasons[path] = str(error)
    predictions = []
    if pixels:
        predictions = classify_images(opened, np.stack([*pixels.values()]))
    rows = [{"image": str(path), **row} for path, row in zip(pixels, predictions, strict=True)]
    if as_json:
        print_json([*rows, *({"image": str(path), "error": reason} for path, reason in reasons.items())])
    else:
        hidden = {"probabilities", "looks_inverted"}
        show_rows([{name: value for name, value in row.items() if name not in hidden} for row in rows], as_json)
        for row in rows:
            if row["looks_inverted"]:
                _print_error("warning:", f"{row['image']}: may be a negative; to invert it, use --invert")
        for reason in reasons.values():
            _print_error("error:", reason)
    if reasons:
        raise typer.Exit(1)


@command
def submit(
    paths: Annotated[
        list[Path],
        typer.Argument(
            metavar="PATH…",
            help="Files (.npz, .csv, .parquet, .zip, IDX pairs), or folders with one folder of images for each class.",
        ),
    ],
    as_json: AsJson = False,
) -> None:
    """Submit labelled images; the next run checks them, and trains on those without findings.

    Each batch is read first. If one cannot be read, none is submitted.
    """
    from fmnist_tasks.data.submission import submit_paths

    declaration = _load_declaration()
    store, settings = _open_store(), Settings.from_environment()
    submitted = submit_paths(store, declaration, paths)
    stats = [store.stat(key) for batch in submitted for key in batch.keys]
    is_folder = any(stat.changed for stat in stats if stat)  # where files may still be written
    if as_json:
        print_json([asdict(batch) for batch in submitted])
        return
    for batch in submitted:
        rows = {
            "dataset": f"{declaration.title} ({declaration.name})",
            "files": ", ".join(batch.keys),
            "images": _join(batch.images),
            "converted (size or colour mode)": batch.converted,
            "unreadable": batch.unreadable,
            **({"for example": _join(batch.reasons)} if batch.reasons else {}),
        }
        show_rows(rows, as_json)
    seconds = settings.settle_time.total_seconds() if is_folder else 0
    subject = f"A run that starts at least {seconds:g} seconds from now" if seconds else "The next run"
    print(f"{subject} checks these batches: the scheduled one, or {name_run_command(_dataset.get())}.")


@command
def batches(as_json: AsJson = False) -> None:
    """List the accepted batches, and the reasons for withdrawals; exit code 1 if a document cannot be read."""
    from fmnist_tasks.data.accepted_batches import find_accepted

    accepted, faults = find_accepted(_open_store())
    rows = [batch.to_json() for batch in sorted(accepted, key=lambda batch: batch.accepted)]
    command = name_command(_dataset.get(), "submit")
    if not as_json:
        rows = [{**row, "sha256": row["sha256"][:12]} for row in rows]
    show_rows(rows, as_json, "" if faults else f"no accepted batches yet; submit one with {command}")
    for fault in faults:
        _print_error("error:", str(fault))
    if faults:
        raise typer.Exit(1)


def list_review(
    decided: Annotated[bool, typer.Option("--decided", help="List the images that already have a decision.")] = False,
    as_json: AsJson = False,
) -> None:
    """List the images that wait for a decision, newest batch first."""
    from fmnist_tasks.data.review import describe_decision, list_review_images

    classes = _load_declaration().classes
    rows = [
        {
            "id": image.id,
            "batch": image.batch.name,
            "accepted": image.batch.accepted.isoformat(timespec="seconds"),
            "label": classes[image.entry.label],
            "suggested": None if image.entry.suggested is None else classes[image.entry.suggested],
            "reasons": image.entry.reasons if as_json else "; ".join(image.entry.reasons),
            "decision": (image.decision.to_json() if image.decision else None)
            if as_json
            else describe_decision(image, classes),
        }
        for image in list_review_images(_open_store())
        if decided == (image.decision is not None)
    ]
    if not as_json:
        rows = [{name: value or "" for name, value in row.items() if decided or name != "decision"} for row in rows]
    show_rows(rows, as_json, "no decisions yet" if decided else "no images to review")


Ids = Annotated[list[str], typer.Argument(metavar="ID…", help="IDs of images, as `fmnist review list` shows them.")]


def keep_images(ids: Ids, as_json: AsJson = False) -> None:
    """Keep images with their labels; they join the dataset of the next run."""
    _record_decisions(ids, "keep", None, as_json)


def relabel_images(
    ids: Ids, label: Annotated[str, typer.Option(help="The class that the images show.")], as_json: AsJson = False
) -> None:
    """Keep images with another label; they join the dataset of the next run."""
    declaration = _load_declaration()
    if label not in declaration.classes:
        names = ", ".join(declaration.classes)
        raise SettingsError(f"{label[:80]!r} is not a class of {declaration.title}; its classes are {names}")
    _record_decisions(ids, "relabel", declaration.classes.index(label), as_json)


def drop_images(ids: Ids, as_json: AsJson = False) -> None:
    """Drop images: they are not used for training."""
    _record_decisions(ids, "drop", None, as_json)


def _record_decisions(
    ids: list[str], action: Literal["keep", "relabel", "drop"], label: int | None, as_json: bool
) -> None:
    from fmnist_tasks.data.review import record_decisions

    decisions = record_decisions(_open_store(), _load_declaration().classes, ids, action, label, by=_find_actor())
    rows = [{"batch": decision.batch[:12], "action": action, "images": len(decision.images)} for decision in decisions]
    show_rows([decision.to_json() for decision in decisions] if as_json else rows, as_json)


add_command(review_app, "list", list_review)
add_command(review_app, "keep", keep_images)
add_command(review_app, "relabel", relabel_images)
add_command(review_app, "drop", drop_images)


@command
def alert_test(as_json: AsJson = False) -> None:
    """Send a test alert through each channel; exit code 1 unless all channels accept it."""
    from fmnist_tasks.alerts.channels import deliver, find_channels
    from fmnist_tasks.alerts.sending import make_test_message

    channels, faults = find_channels()
    message = make_test_message()
    outcomes = [(channel.name, deliver(channel, message)) for channel in channels]
    rows = [{"channel": name, "outcome": outcome.status, "reason": outcome.reason} for name, outcome in outcomes]
    rows += [{"channel": "(connection)", "outcome": "misconfigured", "reason": fault} for fault in faults]
    show_rows(rows, as_json, "no channels; add the connection fmnist_mail or fmnist_apprise (docs/alerts.md)")
    if not rows or any(row["outcome"] != "accepted" for row in rows):
        raise typer.Exit(1)


def _find_actor() -> str:
    """The name of the user of this shell, or the ID of a user without a name."""
    try:
        name = getpass.getuser()
    except (KeyError, OSError):
        name = f"uid {os.getuid()}"
    return f"{name} {SHELL_SUFFIX}"


def _describe(store: Store, entry: Entry) -> dict[str, Any]:
    """An entry of the champion log, with its signature as text."""
    return {**entry.to_json(), "signature": store.keys.describe(entry.signed_by)}


def _print_error(heading: str, text: str) -> None:
    """Print one line on standard error. A rich `Text`, because rich interprets markup and emoji codes in strings."""
    standard_error.print(Text.assemble((heading, "red"), " ", make_printable(text)), soft_wrap=True)


def _find_run(store: Store, run_id: str | None) -> Any:
    """The run with this ID, or the latest run, with its original parameters."""
    from fmnist_tasks.steps import Run

    if run_id is None:
        run_ids = {stat.key.split("/")[1] for stat in store.list("runs/") if stat.key.endswith("/ingest.json")}
        if not run_ids:
            raise MissingError(f"no runs yet; start one with `fmnist ingest` or `{name_run_command(store.dataset)}`")
        run_id = max(run_ids, key=partial(_find_start, store))
    try:
        record = read_record(store, run_id, "ingest")
    except MissingError as error:
        raise MissingError(f"the store has no results of run {run_id}") from error
    try:
        parameters = Parameters.from_mapping(record.parameters)
    except SettingsError as error:
        raise SettingsError(f"{make_run_key(run_id, 'ingest.json')}: {error}; start a new run") from error
    return Run(run_id, record.created, parameters, _find_actor(), dataset=store.dataset)


def _find_start(store: Store, run_id: str) -> str:
    try:
        return read_record(store, run_id, "ingest").started
    except READ_ERRORS as error:
        _print_error("skipped:", str(error))
        return ""


def _run_steps(run_id: str | None, as_json: bool, *names: str) -> None:
    from fmnist_tasks.steps import run_step

    _set_up_logging()
    run = _find_run(_open_store(), run_id)
    _show_steps([(name, run_step(name, run)) for name in names], as_json)


def _show_steps(results: list[tuple[str, Any]], as_json: bool) -> None:
    """Print the results of steps; a step that runs once per seed has a list of results."""
    if as_json:
        print_json({name: _to_json(result) for name, result in results})
        return
    rows = [
        {"step": name, "outcome": part.summary}
        for name, result in results
        for part in (result if isinstance(result, list) else [result])
    ]
    show_rows(rows, as_json)


def _to_json(result: Any) -> Any:
    return [part.to_json() for part in result] if isinstance(result, list) else result.to_json()


def _set_up_logging() -> None:
    handler = RichHandler(console=standard_error, show_path=False, show_level=False, omit_repeated_times=False)
    logger = logging.getLogger("fmnist_tasks")
    logger.handlers = [handler]
    logger.setLevel(logging.INFO)


if __name__ == "__main__":
    app()
