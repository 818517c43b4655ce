"""Names print as they are typed, whatever rich takes for markup or an emoji."""

from __future__ import annotations

import io
import json
import logging
import sys

import pytest
from rich.console import Console
from typer.testing import CliRunner

from fmnist_tasks import cli, tables
from fmnist_tasks.cli import app
from fmnist_tasks.registry import progress
from fmnist_tasks.registry.runs import write_record
from tests.support.pipeline import Pipeline

NAMES = ("img[bold].png", "x[/y]", "shirt[/red].png", "[/]", "[link=a]b", ":bug:.png", "a\\[b].png")


@pytest.mark.parametrize("name", NAMES)
def test_in_a_table_as_a_cell_a_heading_and_a_field(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    tables.show([{name: "heading", "image": name}], as_json=False)
    tables.show({name: "field", "image": name}, as_json=False)
    tables.show_summary(f"/store/{name}", {name: {"status": "running", "seconds": 0.0, "outcome": f"read {name}"}})
    printed = capsys.readouterr().out
    assert printed.count(name) == 7
    tables.show([{"image": name}], as_json=True)
    assert json.loads(capsys.readouterr().out) == [{"image": name}]


@pytest.mark.parametrize("name", NAMES)
def test_in_an_error_message(name: str, pipeline: Pipeline) -> None:
    for arguments in (["verify", name], ["predict", "--release", "v", name], ["summary", "--run", name]):
        ended = CliRunner().invoke(app, arguments)
        assert isinstance(ended.exception, SystemExit), ended.exception
        assert ended.exit_code == 1
        assert repr(name)[1:-1] in ended.stderr or name in ended.stderr


def test_in_what_summary_and_prune_say_on_standard_error(pipeline: Pipeline) -> None:
    write_record(
        pipeline.store,
        "run-1",
        "ingest",
        {"status": "failed", "seconds": 0.0, "started": "", "outcome": "", "created": "", "parameters": {}},
    )
    for name in NAMES:
        if "/" not in name and "\\" not in name:
            pipeline.store.put(f"runs/{name}", b"by hand")
            ended = CliRunner().invoke(app, ["prune", "--keep", "1", "--older-than", "1", "--dry-run"])
            assert f"left alone: runs/{name} was not written by this project" in ended.stderr
    assert "run run-1: no champion was promoted" in CliRunner().invoke(app, ["summary"]).stderr


@pytest.mark.parametrize("name", NAMES)
def test_in_a_log_line(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.StringIO()
    monkeypatch.setattr(cli, "complaints", Console(file=written, width=200))
    logger = logging.getLogger("fmnist_tasks")
    handlers, level = logger.handlers, logger.level
    try:
        cli._logging()
        logger.info("reading %s", name)
    finally:
        logger.handlers, logger.level = handlers, level
    assert f"reading {name}" in written.getvalue()


@pytest.mark.parametrize("name", NAMES)
def test_beside_a_progress_bar(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = io.StringIO()
    terminal.isatty = lambda: True  # type: ignore[method-assign]
    monkeypatch.setattr(sys, "stderr", terminal)
    with progress.Progress(name, progress.LARGE + 1) as bar:
        bar.update(progress.LARGE)
    assert name in terminal.getvalue()
