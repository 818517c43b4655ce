"""The output of `make run`."""

from __future__ import annotations

import io

import pytest

from fmnist_tasks.run_view import RunView, follow_log, show_texts

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
    lines = [f"epoch {number}/23 x validation accuracy 0.9" for number in range(1, 24)]
    texts = [text for line in lines if (text := view.select(line))]
    assert [text.split()[1] for text in texts] == ["3", "8", "13", "18", "23"]
