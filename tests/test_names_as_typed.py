"""Names print as they were typed, even if rich would interpret them as markup or emoji codes."""

from __future__ import annotations

import io
import json
import logging

import pytest
from rich.console import Console
from typer.testing import CliRunner

from fmnist_tasks import cli, tables
from fmnist_tasks.cli import app
from fmnist_tasks.registry.folder import FolderStore
from fmnist_tasks.run_report import RecordedRun
from fmnist_tasks.schemas.runs import PublishResult
from tests.support.documents import digest, make_record, make_reference, save_record
from tests.support.pipeline import Pipeline

NAMES = ("img[bold].png", "x[/y]", "shirt[/red].png", "[/]", "[link=a]b", ":bug:.png", "a\\[b].png")


@pytest.mark.parametrize("name", NAMES)
def test_a_table_shows_names_as_typed(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    tables.show_rows([{name: "heading", "image": name}], as_json=False)
    tables.show_rows({name: "field", "image": name}, as_json=False)
    assert capsys.readouterr().out.count(name) == 4
    tables.show_rows([{"image": name}], as_json=True)
    assert json.loads(capsys.readouterr().out) == [{"image": name}]


@pytest.mark.parametrize("name", NAMES)
def test_the_steps_and_metrics_of_a_run_show_names_as_typed(
    name: str, store: FolderStore, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FolderStore, "location", lambda _, key: f"/store/{name}")  # short enough for one line
    store.put("runs/run-1/report.html", b"")
    published = PublishResult(
        version="v1",
        manifest_sha256=digest("manifest"),
        model=make_reference("model"),
        location=f"/models/{name}",
        summary="",
    )
    records = {
        name: make_record("run-1", name, status="running", outcome=f"read {name}", ignored=[name]),
        "publish": make_record("run-1", "publish", result=published.to_json()),
    }
    tables.show_steps(records)
    assert capsys.readouterr().out.count(name) == 2  # the step, and its outcome
    tables.show_metrics(store, "run-1", RecordedRun(records, {"publish": published}))
    assert capsys.readouterr().out.count(name) == 3  # the model, the ignored parameter, and the report


@pytest.mark.parametrize("name", NAMES)
def test_an_error_message_shows_names_as_typed(name: str, pipeline: Pipeline) -> None:
    for arguments in (["verify", name], ["dataset", "new", "own", name], ["summary", "--run", name]):
        result = CliRunner().invoke(app, arguments)
        assert isinstance(result.exception, SystemExit), result.exception
        assert result.exit_code == 1
        assert repr(name)[1:-1] in result.stderr or name in result.stderr


def test_messages_of_summary_and_prune_show_names_as_typed(pipeline: Pipeline) -> None:
    save_record(pipeline.store, "run-1", "ingest", status="failed")
    for name in NAMES:
        if "/" not in name and "\\" not in name:
            pipeline.store.put(f"runs/{name}", b"by hand")
            result = CliRunner().invoke(app, ["prune", "--keep", "1", "--older-than", "1", "--dry-run"])
            assert f"skipped: runs/{name} was not written by this project" in result.stderr
    assert "run run-1: no champion was promoted" in CliRunner().invoke(app, ["summary"]).stderr


@pytest.mark.parametrize("name", NAMES)
def test_a_log_line_shows_names_as_typed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.StringIO()
    monkeypatch.setattr(cli, "standard_error", Console(file=written, width=200))
    logger = logging.getLogger("fmnist_tasks")
    handlers, level = logger.handlers, logger.level
    try:
        cli._set_up_logging()
        logger.info("reading %s", name)
    finally:
        logger.handlers, logger.level = handlers, level
    assert f"reading {name}" in written.getvalue()
