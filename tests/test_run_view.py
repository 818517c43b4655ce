"""The output of `make run`."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from fmnist_tasks.run_view import RunView, follow_log, show_run, show_texts
from fmnist_tasks.settings import PROJECT

LOG = """\
[2026-11-30T09:00:00.1Z] {dagbag.py:1} INFO - Filling up the DagBag
\x1b[2m2026-11-30T09:00:01Z\x1b[0m [info     ] ingest begins: run manual__1 with {'profile': 'quick'} [fmnist_tasks.steps.step] loc=step.py:88
2026-11-30T09:00:02Z [info     ] ingest done after 0.7 s: 60,000 training images [fmnist_tasks.steps.step] loc=step.py:120
2026-11-30T09:00:03Z [info     ] train-0 begins: run manual__1 with {'profile': 'quick'} [fmnist_tasks.steps.step]
2026-11-30T09:00:04Z [info     ] epoch 1/8  loss 0.5  accuracy 0.8  validation loss 0.4  validation accuracy 0.9012  7.1 s
2026-11-30T09:00:05Z [info     ] epoch 8/8  loss 0.5  accuracy 0.8  validation loss 0.4  validation accuracy 0.9312  7.1 s
2026-11-30T09:00:06Z [error    ] train-0 failed after 9.0 s: loss is nan\x1b[31m [fmnist_tasks.steps.step] loc=step.py:120
2026-11-30T09:00:07Z [warning  ] ALERT run failed in fmnist_retrain, run manual__1: Task base_model.train: loss is nan
"""  # noqa: E501 - lines of a real log


def select(*, replaces_lines: bool) -> list[str]:
    return list(follow_log(io.StringIO(LOG), io.StringIO(), RunView(replaces_lines=replaces_lines)))


def test_steps_some_epochs_and_alerts_are_shown() -> None:
    assert select(replaces_lines=False) == [
        "ingest          begins",
        "ingest          done         0.7 s  60,000 training images",
        "train-0         begins",
        "                epoch 8 of 8, validation accuracy 93.12%",
        "train-0         failed       9.0 s  loss is nan",
        "ALERT run failed in fmnist_retrain, run manual__1: Task base_model.train: loss is nan",
    ]


def test_on_a_terminal_each_epoch_replaces_the_one_before(capsys: pytest.CaptureFixture[str]) -> None:
    texts = select(replaces_lines=True)
    assert [text for text in texts if "epoch" in text] == [
        "\r                epoch 1 of 8, validation accuracy 90.12%",
        "\r                epoch 8 of 8, validation accuracy 93.12%",
    ]
    show_texts(texts)
    output = capsys.readouterr().out
    assert output.count("\n") == 3  # two steps that ended, and an alert
    assert output.count("\r\x1b[K") == 4


def test_the_log_contains_every_line_and_the_run_id_is_found() -> None:
    log, view = io.StringIO(), RunView(replaces_lines=False)
    assert len(list(follow_log(io.StringIO(LOG), log, view))) == 6
    assert (log.getvalue(), view.run_id) == (LOG, "manual__1")


def test_long_trainings_show_five_epochs() -> None:
    view = RunView(replaces_lines=False)
    lines = [f"2026-11-30T09:00:00Z [info] epoch {number}/23 x validation accuracy 0.9" for number in range(1, 24)]
    texts = [text for line in lines if (text := view.select(line))]
    assert [text.split()[1] for text in texts] == ["3", "8", "13", "18", "23"]


@pytest.mark.parametrize(
    "message",
    [
        "waiting: incoming/x done after . s: y.npz",
        "ingest done after . s: y",
        "epoch 1/0 x validation accuracy 0.9",
        "epoch 1/8 x validation accuracy ...",
        "see: x begins: run nope with {}",
        "x" * 50_000_000,
    ],
)
def test_other_lines_are_not_shown(message: str) -> None:
    view = RunView(replaces_lines=False)
    for line in (message, f"2026-11-30T09:00:00Z [info     ] {message} [fmnist_tasks.steps.data] loc=data.py:1"):
        assert view.select(line) is None
    assert view.run_id is None


def test_verbose_shows_every_line_as_it_is(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("VERBOSE", "1")
    log, view = io.StringIO(), RunView(replaces_lines=False)
    show_run(LOG.splitlines(keepends=True), log, view)
    assert capsys.readouterr().out == log.getvalue() == LOG
    assert view.run_id == "manual__1"


@pytest.fixture
def follow(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """The program that shows a run; its log is `run.log`. It needs no store if no step begins."""
    command = [sys.executable, "-m", "fmnist_tasks.run_view", str(tmp_path / "run.log")]
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    with subprocess.Popen(command, cwd=PROJECT, env={**os.environ, "LC_ALL": "C"}, **pipes) as process:
        yield process


def test_bytes_that_are_not_utf_8_are_logged_and_shown(follow: subprocess.Popen[bytes], tmp_path: Path) -> None:
    output, errors = follow.communicate(b"file-\xe9-1: \xc3\xa9 \x1b[31m\n")
    assert follow.returncode == 1
    assert b"no step began; end of the log:\nfile-\\xe9-1" in errors
    assert b"\x1b" not in errors + output
    assert "file-\\xe9-1: " in (tmp_path / "run.log").read_text()


def test_a_run_continues_if_nobody_reads_its_output(follow: subprocess.Popen[bytes], tmp_path: Path) -> None:
    assert follow.stdin
    assert follow.stdout
    follow.stdout.readline()
    follow.stdout.close()
    alert = b"2026-11-30T09:00:07Z [warning  ] ALERT x\n"
    follow.stdin.write(alert * 10_000)
    follow.stdin.close()
    assert follow.wait() == 1
    assert (tmp_path / "run.log").read_bytes() == alert * 10_000


def test_the_log_is_complete_after_an_interruption(follow: subprocess.Popen[bytes], tmp_path: Path) -> None:
    assert follow.stdout
    follow.stdout.readline()
    follow.send_signal(signal.SIGINT)
    _, errors = follow.communicate(b"the last line\n")
    assert (follow.returncode, errors) == (1, b"no step began; end of the log:\nthe last line\n")
    assert (tmp_path / "run.log").read_text() == "the last line\n"


BEGIN = b"2026-11-30T09:00:01Z [info     ] ingest begins: run r with {} [fmnist_tasks.steps.step] loc=step.py:88\n"


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"FMNIST_STORE": "bogus"}, b"error: FMNIST_STORE does not name a store"),
        ({"FMNIST_STORE": "file://{folder}"}, b"error: runs/r/ingest.json: its bytes were changed"),
    ],
)
def test_a_store_that_cannot_be_read_is_one_line(tmp_path: Path, environment: dict[str, str], message: bytes) -> None:
    (tmp_path / "runs/r").mkdir(parents=True)
    (tmp_path / "runs/r/ingest.json").write_text("{")
    values = {name: value.format(folder=tmp_path) for name, value in environment.items()}
    command = [sys.executable, "-m", "fmnist_tasks.run_view", str(tmp_path / "run.log")]
    result = subprocess.run(command, cwd=PROJECT, env={**os.environ, **values}, input=BEGIN, capture_output=True)
    assert result.returncode == 1
    assert result.stderr.startswith(message)
    assert result.stderr.count(b"\n") == 1


def test_a_log_that_cannot_be_written_is_one_line() -> None:
    command = [sys.executable, "-m", "fmnist_tasks.run_view", "/proc/no/run.log"]
    result = subprocess.run(command, cwd=PROJECT, input=BEGIN, capture_output=True)
    assert (result.returncode, result.stderr.count(b"\n")) == (1, 1)
    assert result.stderr.startswith(b"error: [Errno 2] No such file or directory")
