"""`fmnist`: the steps of a run and the registry from a shell; tables for people, `--json` for programs.

Exit codes: 0 done, 1 refused or failed with the reason on standard error, 2 wrong usage.
"""

from __future__ import annotations

import getpass
import json
import logging
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import partial, wraps
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.logging import RichHandler
from rich.text import Text

from fmnist_tasks import service, withdrawal
from fmnist_tasks.announcement import announce_champion
from fmnist_tasks.errors import DataError, FmnistError, IntegrityError, MissingError, RejectedError, SettingsError
from fmnist_tasks.registry import champion as champions
from fmnist_tasks.registry import pruning
from fmnist_tasks.registry import releases as published
from fmnist_tasks.registry.runs import read_record, read_records, run_key
from fmnist_tasks.registry.signing import Keys
from fmnist_tasks.registry.store import Store, open_store, read_clock
from fmnist_tasks.settings import SHELL, Parameters, Settings, read_store_uri
from fmnist_tasks.tables import print_json, show, show_summary
from fmnist_tasks.text import make_printable

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__)
keys_app = typer.Typer(no_args_is_help=True, help="Manage the keys that sign releases and the champion log.")
app.add_typer(keys_app, name="keys")
complaints = Console(stderr=True)

_HISTORY = (
    "sequence",
    "time",
    "action",
    "version",
    "replaces",
    "actor",
    "reason",
    "signature",
)  # what a table has of an entry

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of a table.")]
Reason = Annotated[str, typer.Option(help="Why; kept with your name.")]
RunId = Annotated[str | None, typer.Option("--run", help="The run to work on; by default the latest one.")]


def reporting_errors(function: Callable[..., None]) -> Callable[..., None]:
    """Let a command report the project's own errors in one line and exit with 1."""

    @wraps(function)
    def reporting(*args: Any, **kwargs: Any) -> None:
        try:
            function(*args, **kwargs)
        except FmnistError as error:
            _complain("error:", str(error))
            raise typer.Exit(1) from error

    return reporting


def command(function: Callable[..., None]) -> Callable[..., None]:
    """Register a command under the function's name."""
    app.command()(reporting_errors(function))
    return function


@command
def download(as_json: AsJson = False) -> None:
    """Make the dataset available: find it, or fetch it over HTTPS or from its Debian package into the cache."""
    from fmnist_tasks.data.declaration import read_declaration
    from fmnist_tasks.data.sources import load_base

    settings = Settings.from_environment()
    declaration = read_declaration(settings.dataset)
    _, source = load_base(declaration, settings)
    if as_json:
        print_json({"dataset": declaration.name, "source": source})
    else:
        print(f"{declaration.title}: four files, sizes and digests as declared, from {source}")


@command
def ingest(
    profile: Annotated[str, typer.Option(help="quick, standard or thorough.")] = Parameters().profile,
    seed: Annotated[int, typer.Option(help="Seed of the training.")] = Parameters().seed,
    candidates: Annotated[int, typer.Option(help="Base models to train, with seeds from SEED on.")] = 1,
    accuracy_threshold: Annotated[
        float | None, typer.Option(help="Share of test images to get right, 0 to 1; by default as include/gates.toml.")
    ] = None,
    policy: Annotated[
        dict[str, Any] | None,
        typer.Option(parser=json.loads, metavar="JSON", help="Sections of include/gates.toml to be asked otherwise."),
    ] = None,
    run: Annotated[str | None, typer.Option(help="Name of the new run; by default made from the time.")] = None,
    as_json: AsJson = False,
) -> None:
    """Begin a run: find the images and new batches, and keep them in the store."""
    from fmnist_tasks.steps import STEPS, Run

    now = datetime.now(UTC).isoformat(timespec="seconds")
    run_id = run or f"shell__{now}"
    try:
        run_key(run_id, "")
        parameters = Parameters(profile, seed, candidates, accuracy_threshold, {} if policy is None else policy)
    except SettingsError as error:
        raise typer.BadParameter(str(error)) from error
    _logging()
    _show_steps([("ingest", STEPS["ingest"](Run(run_id, now, parameters, _actor())))], as_json)


@command
def validate(run: RunId = None, as_json: AsJson = False) -> None:
    """Check every image of the run with Great Expectations."""
    _steps(run, as_json, "validate_data")


@command
def train(run: RunId = None, as_json: AsJson = False) -> None:
    """Train the run's candidates for the base model, and choose the best of them on validation."""
    _steps(run, as_json, "train", "choose_base")


@command
def evaluate(run: RunId = None, as_json: AsJson = False) -> None:
    """Measure the run's latest model on the test images and judge it; exit code 1 if its gate rejects it."""
    from fmnist_tasks.steps.step import result_of

    store = _store()
    try:
        result_of(store, _run(store, run), "fine_tune")
    except (MissingError, RejectedError):
        _steps(run, as_json, "evaluate_base", "accuracy_gate")
    else:
        _steps(run, as_json, "evaluate_tuned", "promotion_gate")


@command
def tune(run: RunId = None, as_json: AsJson = False) -> None:
    """Fine-tune the run's base model and choose the better of both as the candidate."""
    _steps(run, as_json, "fine_tune")


@command
def publish(run: RunId = None, as_json: AsJson = False) -> None:
    """Publish the run's candidate, prove what was published, and make it the champion."""
    _steps(run, as_json, "publish", "verify_release", "promote")


@command
def summary(run: RunId = None, as_json: AsJson = False) -> None:
    """Tell how a run went or goes; exit code 1 unless it promoted a champion or found that nothing changed."""
    store = _store()
    run_id = _run(store, run).id
    records = read_records(store, run_id)
    promoted = records.get("promote", {}).get("status") == "done"
    unchanged = records.get("detect_change", {}).get("result", {}).get("changed") is False
    if as_json:
        print_json({"run_id": run_id, "promoted": promoted, "unchanged": unchanged, "steps": records})
    else:
        show_summary(store.location(run_key(run_id, "report.html")), records)
    if not (promoted or unchanged):
        running = [name for name, record in records.items() if record["status"] == "running"]
        state = f"{', '.join(running)} has not ended" if running else "no champion was promoted"
        _complain(f"run {run_id}:", state)
        raise typer.Exit(1)


@command
def releases(as_json: AsJson = False) -> None:
    """List the published releases, oldest first; exit code 1 if the manifest of one is damaged."""
    store = _store()
    log = champions.read_log(store)
    rows = []
    damaged = []
    for version in published.versions(store):
        try:
            manifest = published.read_manifest(store, version, log)
        except IntegrityError as error:
            damaged.append(str(error))
            continue
        rows.append(
            {
                "version": version,
                "test_accuracy": manifest["figures"]["test"]["accuracy"],
                "profile": manifest["parameters"]["profile"],
                "seed": manifest["parameters"]["seed"],
                "run_id": manifest["run_id"],
                "champion": log.champion is not None and log.champion.version == version,
                "withdrawn": version in log.withdrawn,
            }
        )
    show(rows, as_json, "no release yet; `make run` makes one")
    for reason in damaged:
        _complain("error:", reason)
    if damaged:
        raise typer.Exit(1)


@command
def champion(as_json: AsJson = False) -> None:
    """Show the champion; exit code 1 if there is none."""
    store = _store()
    show(_describe(store, service.in_service(store)), as_json)


def _moment(text: str) -> datetime:
    """A day stands for its end, a time without a zone for UTC; a ValueError becomes wrong usage."""
    moment = datetime.fromisoformat(text)
    if len(text) == len("2026-11-23"):
        moment += timedelta(days=1, microseconds=-1)
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


@command
def history(
    at: Annotated[
        datetime | None,
        typer.Option(
            parser=_moment, metavar="DATE", help="Only who was champion then: 2026-11-23 (its end, UTC), or a time."
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show the champion log, oldest first: promotions, rollbacks, withdrawals and restorations."""
    store = _store()
    if at is None:
        rows = [_describe(store, entry) for entry in champions.history(store)]
        if not as_json:
            rows = [{name: row[name] or "" for name in _HISTORY} for row in rows]
        show(rows, as_json, "no champion so far")
    elif entry := champions.champion_at(store, at):
        show(_describe(store, entry), as_json)
    else:
        raise MissingError(f"there was no champion yet at {at.isoformat()}")


@command
def audit(
    expect: Annotated[
        str | None,
        typer.Option(
            metavar="HEAD", help="A head that an earlier audit printed; fail unless the log still contains it."
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Verify the whole champion log, and every manifest and file; stops at the first fault with exit code 1."""
    from fmnist_tasks.registry.audit import audit as audit_store

    show(audit_store(_store(), expect), as_json)


@keys_app.command("new")
@reporting_errors
def make_keys(
    folder: Annotated[Path, typer.Argument(help="Where the two files go; created if missing.")],
    revoke_earlier: Annotated[
        bool,
        typer.Option("--revoke-earlier", help="Earlier keys may be compromised: accept nothing they sign from now on."),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Create a signing key: the first one, or a replacement.

    Writes signing-key-ID.pem (secret) and trusted-keys.json (public, for every reader; it keeps the earlier keys).
    Reads the champion log of FMNIST_STORE. Continues from FMNIST_TRUSTED_KEYS_FILE, or from trusted-keys.json in the
    folder.
    """
    from fmnist_tasks.registry import keys

    store = _store()
    public = folder / keys.TRUSTED_FILE
    trusted = store.keys.trusted
    if public.exists():
        there = keys.read_trusted_keys({f"{keys.TRUSTED_KEYS}_FILE": str(public)})
        if trusted is not None and trusted != there:
            raise SettingsError(f"{public} differs from {keys.TRUSTED_KEYS}; unset that, or pass an empty folder")
        trusted = there
    store.keys = Keys(trusted)
    log = champions.read_log(store)
    manifests = {}
    if trusted is None:
        if log.newest_key:
            raise SettingsError(f"the champion log is signed already; set {keys.TRUSTED_KEYS}_FILE to its trusted keys")
        manifests = {name: published.open_manifest(store, name, log).sha256 for name in published.versions(store)}
    elif revoke_earlier and not log.newest_key:
        raise SettingsError(
            f"no entry of the champion log in {read_store_uri()} is signed with these keys: FMNIST_STORE may name "
            "another store. Nothing was changed. If the keys were never used, delete their files, and create the first "
            "ones again"
        )
    pem, trusted = keys.make_keys(trusted, log.digests, manifests, revoke_earlier=revoke_earlier)
    signing, public = keys.write_keys(folder, pem, trusted)
    show(
        {
            "store": read_store_uri(),
            "entries": len(log.entries),
            "key": trusted.keys[-1].id,
            "FMNIST_SIGNING_KEY_FILE": str(signing),
            "FMNIST_TRUSTED_KEYS_FILE": str(public),
        },
        as_json,
    )


@command
def verify(version: Annotated[str, typer.Argument(help="The release to check.")], as_json: AsJson = False) -> None:
    """Check every byte of a release against its manifest, load its model and measure it again."""
    show(service.verify(_store(), version), as_json)


@command
def rollback(
    version: Annotated[str, typer.Argument(help="The release to roll back to.")],
    reason: Reason,
    replaces: Annotated[
        str | None, typer.Option(help="The champion to replace; nothing is done if it is another one by now.")
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Also accept a release that was never the champion, or has other classes.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Verify an earlier release and make it the champion again; the release that it replaces is withdrawn."""
    store = _store()
    after = service.require_champion(store, replaces).sequence
    entry = service.rollback(store, version, reason, actor=_actor(), after=after, force=force)
    announce_champion(entry)
    show(_describe(store, entry), as_json)


@command
def withdraw(
    name: Annotated[str, typer.Argument(help="A release, or a batch by its name or SHA-256.")],
    reason: Reason,
    as_json: AsJson = False,
) -> None:
    """Withdraw a release, so that no candidate that repeats it is promoted, or a batch, from the next run on."""
    show(withdrawal.withdraw(_store(), name, reason, actor=_actor()), as_json)


@command
def restore(
    name: Annotated[str, typer.Argument(help="A withdrawn release or batch.")], reason: Reason, as_json: AsJson = False
) -> None:
    """Lift the withdrawal of a release or a batch."""
    show(withdrawal.restore(_store(), name, reason, actor=_actor()), as_json)


@command
def prune(
    keep: Annotated[int, typer.Option(min=1, help="Never delete the newest so many releases.")],
    older_than: Annotated[
        int, typer.Option(min=1, max=99_999, help="Delete only what was last written more than so many days ago.")
    ],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what would be deleted.")] = False,
    as_json: AsJson = False,
) -> None:
    """Delete old releases, runs, predictions and unused content; never the champion nor the one before it."""
    store = _store()
    age = timedelta(days=older_than)
    if dry_run:
        plan = pruning.plan(store, keep=keep, older_than=age, now=read_clock(store))
    else:
        plan = pruning.prune(store, keep=keep, older_than=age)
    for key, reason in plan.left_alone.items():
        _complain("left alone:", f"{key} {reason}")
    rows = [
        {"kind": group.kind, "name": group.name, "objects": len(group.objects), "bytes": group.bytes}
        for group in plan.groups
    ]
    show(rows, as_json, "nothing to delete")
    if not as_json and rows:
        total = sum(group.bytes for group in plan.groups)
        print(f"{total:,} bytes {'would be' if dry_run else 'are'} deleted")


@command
def predict(
    images: Annotated[list[Path], typer.Argument(help="Image files, read as grey and scaled to 28 x 28.")],
    release: Annotated[str | None, typer.Option(help="The release to ask; by default the champion.")] = None,
    as_json: AsJson = False,
) -> None:
    """Say what clothing images show, or that they show none; exit code 1 if one cannot be read.

    Garments are expected light on black.
    """
    import numpy as np

    from fmnist_tasks.data.pictures import read_picture

    store = _store()
    version = release or service.in_service(store).version
    pixels, reasons = {}, {}
    for path in images:
        try:
            pixels[path] = read_picture(path, str(path))
        except DataError as error:
            reasons[path] = str(error)
    found = []
    if pixels:
        found = service.answers(service.open_release(store, version), np.stack([*pixels.values()]))
    rows = [{"image": str(path), **row} for path, row in zip(pixels, found, strict=True)]
    if as_json:
        print_json([*rows, *({"image": str(path), "error": reason} for path, reason in reasons.items())])
    else:
        show([{name: value for name, value in row.items() if name != "probabilities"} for row in rows], as_json)
        for reason in reasons.values():
            complaints.print("error:", reason, style="red", markup=False, emoji=False, highlight=False, soft_wrap=True)
    if reasons:
        raise typer.Exit(1)


@command
def batches(as_json: AsJson = False) -> None:
    """List the batches that were accepted, and which of them were withdrawn and why."""
    from fmnist_tasks.data.batches import list_accepted

    rows = [batch.as_json() for batch in sorted(list_accepted(_store()), key=lambda batch: batch.accepted)]
    if not as_json:
        rows = [{**row, "sha256": row["sha256"][:12]} for row in rows]
    show(rows, as_json, "no batch was accepted yet; put one into incoming/")


@command
def alert_test(as_json: AsJson = False) -> None:
    """Send one alert through each channel; exit code 1 unless there is one and all accepted it."""
    from fmnist_tasks.alerts.channels import deliver, find_channels
    from fmnist_tasks.alerts.sending import make_test_message

    channels, faults = find_channels()
    message = make_test_message()
    outcomes = [(channel.name, deliver(channel, message)) for channel in channels]
    rows = [{"channel": name, "outcome": outcome.status, "reason": outcome.reason} for name, outcome in outcomes]
    rows += [{"channel": "(connection)", "outcome": "misconfigured", "reason": fault} for fault in faults]
    show(
        rows,
        as_json,
        "there is no channel; add one of the connections fmnist_mail and fmnist_apprise, see docs/alerts.md",
    )
    if not rows or any(row["outcome"] != "accepted" for row in rows):
        raise typer.Exit(1)


def _actor() -> str:
    """Who acts: the user of this shell."""
    return f"{getpass.getuser()} {SHELL}"


def _describe(store: Store, entry: champions.Entry) -> dict[str, Any]:
    """An entry of the champion log, and what is known of its signature."""
    return {**entry.as_json(), "signature": store.keys.describe(entry.signed_by)}


def _complain(heading: str, text: str) -> None:
    """Print on standard error, as one line; as a string, rich would take parts of it for markup or an emoji."""
    complaints.print(Text.assemble((heading, "red"), " ", make_printable(text)), soft_wrap=True)


def _store() -> Store:
    return open_store(read_store_uri())


def _run(store: Store, run_id: str | None) -> Any:
    """The run of that name, or the latest one, with the parameters that it was begun with."""
    from fmnist_tasks.steps import Run

    if run_id is None:
        begun = {stat.key.split("/")[1] for stat in store.list("runs/") if stat.key.endswith("/ingest.json")}
        if not begun:
            raise MissingError("there is no run yet; begin one with `fmnist ingest` or `make run`")
        run_id = max(begun, key=partial(_find_beginning, store))
    try:
        record = read_record(store, run_id, "ingest")
    except MissingError as error:
        raise MissingError(f"run {run_id} left no results in the store") from error
    return Run(run_id, record["created"], Parameters.from_mapping(record["parameters"]), _actor())


def _find_beginning(store: Store, run_id: str) -> str:
    try:
        return str(read_record(store, run_id, "ingest")["started"])
    except IntegrityError as error:
        _complain("left out:", str(error))
        return ""


def _steps(run_id: str | None, as_json: bool, *names: str) -> None:
    from fmnist_tasks.steps import run_again

    _logging()
    run = _run(_store(), run_id)
    _show_steps([(name, run_again(name, run)) for name in names], as_json)


def _show_steps(results: list[tuple[str, Any]], as_json: bool) -> None:
    """Print what steps ended with; a step per seed has a list of results."""
    if as_json:
        print_json(dict(results))
        return
    ended = [(name, one) for name, found in results for one in (found if isinstance(found, list) else [found])]
    show([{"step": name, "outcome": one["summary"]} for name, one in ended], as_json)


def _logging() -> None:
    handler = RichHandler(console=complaints, show_path=False, show_level=False, omit_repeated_times=False)
    logger = logging.getLogger("fmnist_tasks")
    logger.handlers = [handler]
    logger.setLevel(logging.INFO)


if __name__ == "__main__":
    app()
