"""`fmnist alert-test`: does an alert arrive?"""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from fmnist_tasks.cli import app
from tests.support.listeners import MailServer, WebhookServer
from tests.support.pipeline import Pipeline

pytestmark = pytest.mark.integration


def test_each_channel_is_tried_and_reported(
    pipeline: Pipeline, mail_server: MailServer, webhook_server: WebhookServer
) -> None:
    ended = CliRunner().invoke(app, ["alert-test"])
    assert ended.exit_code == 0, ended.output
    assert (len(mail_server.mails), len(webhook_server.posts)) == (1, 1)
    webhook_server.status = 500
    ended = CliRunner().invoke(app, ["alert-test", "--json"])
    assert ended.exit_code == 1
    mail, post = json.loads(ended.stdout)
    assert (mail["channel"], mail["outcome"]) == ("fmnist_mail to team@example.com", "accepted")
    assert (post["outcome"], post["reason"]) == ("refused", "the service answered 500")
    assert list(pipeline.store.list("alerts/pending/")) == []


def test_without_a_channel_it_fails_and_says_what_to_do(pipeline: Pipeline) -> None:
    ended = CliRunner().invoke(app, ["alert-test"])
    assert ended.exit_code == 1
    assert "add one of the connections fmnist_mail and fmnist_apprise" in ended.output


def test_a_connection_that_is_wrong_fails_it(
    pipeline: Pipeline, mail_server: MailServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_FMNIST_APPRISE", json.dumps({"conn_type": "apprise", "extra": {}}))
    ended = CliRunner().invoke(app, ["alert-test", "--json"])
    assert ended.exit_code == 1
    assert "its extra must have config" in ended.stdout
    assert len(mail_server.mails) == 1
