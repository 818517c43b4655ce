"""`fmnist alert-test` sends an alert through each channel and reports the outcome."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from fmnist_tasks.cli import app
from tests.support.listeners import MailServer, WebhookServer
from tests.support.pipeline import Pipeline

pytestmark = pytest.mark.integration


def test_each_channel_is_tested_and_reported(
    pipeline: Pipeline, mail_server: MailServer, webhook_server: WebhookServer
) -> None:
    result = CliRunner().invoke(app, ["alert-test"])
    assert result.exit_code == 0, result.output
    assert (len(mail_server.mails), len(webhook_server.posts)) == (1, 1)
    webhook_server.status = 500
    result = CliRunner().invoke(app, ["alert-test", "--json"])
    assert result.exit_code == 1
    mail, post = json.loads(result.stdout)
    assert (mail["channel"], mail["outcome"]) == ("fmnist_mail to team@example.com", "accepted")
    assert (post["outcome"], post["reason"]) == ("refused", "the service responded with status 500")
    assert list(pipeline.store.list("alerts/pending/")) == []


def test_without_a_channel_it_fails_and_says_what_to_do(pipeline: Pipeline) -> None:
    result = CliRunner().invoke(app, ["alert-test"])
    assert result.exit_code == 1
    assert "add the connection fmnist_mail or fmnist_apprise" in result.output


def test_a_faulty_connection_fails_the_command(
    pipeline: Pipeline, mail_server: MailServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_FMNIST_APPRISE", json.dumps({"conn_type": "apprise", "extra": {}}))
    result = CliRunner().invoke(app, ["alert-test", "--json"])
    assert result.exit_code == 1
    assert "its extra must have config" in result.stdout
    assert len(mail_server.mails) == 1
