"""A secret comes from a variable, a file or a command, and no error shows it."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path

import pytest
from minio.credentials.providers import EnvAWSProvider, StaticProvider

from fmnist_tasks.alerts.watch import read_heartbeat_url
from fmnist_tasks.broker import Password
from fmnist_tasks.credentials import find_secret, read_secret
from fmnist_tasks.errors import SettingsError
from fmnist_tasks.registry.s3_address import open_bucket

PEM = "-----BEGIN PRIVATE KEY-----\nMC4CAQ\n-----END PRIVATE KEY-----"


def write_secret(folder: Path, content: bytes) -> str:
    file = folder / "a secret"
    file.write_bytes(content)
    return str(file)


def format_print_command(text: str) -> str:
    return shlex.join([sys.executable, "-c", f"print({text!r})"])


@pytest.mark.parametrize("value", ["s3cret", "with spaces, = and $HOME ", PEM])
def test_a_secret_is_read_from_a_variable_a_file_or_a_command(tmp_path: Path, value: str) -> None:
    for environment in (
        {"KEY": value},
        {"KEY": "", "KEY_FILE": write_secret(tmp_path, f"{value}\n".encode()), "KEY_CMD": ""},
        {"KEY_CMD": format_print_command(value)},
    ):
        assert read_secret("KEY", environment) == value


@pytest.mark.parametrize("environment", [{}, {"KEY": "", "KEY_FILE": "", "KEY_CMD": ""}])
def test_an_unset_secret_is_none_and_an_error_where_it_is_required(environment: dict[str, str]) -> None:
    assert find_secret("KEY", environment) is None
    with pytest.raises(SettingsError, match="KEY is not set; set it, KEY_FILE or KEY_CMD"):
        read_secret("KEY", environment)


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"KEY": "s3cret", "KEY_FILE": "/file"}, "set only one of KEY, KEY_FILE"),
        ({"KEY_CMD": "s3cret", "KEY_FILE": "/file"}, "set only one of KEY_FILE, KEY_CMD"),
        ({"KEY_FILE": "/no/such/file"}, "KEY_FILE: the file that it names cannot be read: No such file or directory"),
        ({"KEY_FILE": "/"}, "KEY_FILE: the file that it names cannot be read: Is a directory"),
        ({"KEY_CMD": "true"}, "KEY_CMD: the command printed nothing"),
        ({"KEY_CMD": "sh -c 'echo s3cret; exit 7'"}, "KEY_CMD: the command failed with exit code 7"),
        ({"KEY_CMD": "/no/such/program s3cret"}, "KEY_CMD: the command cannot be started: No such file or directory"),
        ({"KEY_CMD": "echo 's3cret"}, "KEY_CMD: the command has an unclosed quote, or its output is not text"),
    ],
)
def test_an_error_names_the_fault_and_not_the_value(environment: dict[str, str], message: str) -> None:
    with pytest.raises(SettingsError, match=re.escape(message)) as raised:
        find_secret("KEY", environment)
    assert "s3cret" not in f"{raised.value!r} {raised.value.__cause__!r}"


@pytest.mark.parametrize(("content", "message"), [(b"\n", "the file is empty"), (b"s3cret\xff", "is not a text file")])
def test_a_file_without_a_secret_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    with pytest.raises(SettingsError, match=f"KEY_FILE: .*{message}") as raised:
        find_secret("KEY", {"KEY_FILE": write_secret(tmp_path, content)})
    assert "s3cret" not in f"{raised.value!r} {raised.value.__cause__!r}"


@pytest.mark.parametrize("kind", ["", "_FILE", "_CMD"])
def test_the_pipeline_reads_its_secrets_from_each_source(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    values = {
        "": "http://s3cret",
        "_FILE": write_secret(tmp_path, b"http://s3cret\n"),
        "_CMD": format_print_command("http://s3cret"),
    }
    for name in ("REDIS_PASSWORD", "FMNIST_HEARTBEAT_URL", "MINIO_SECRET_KEY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv(f"{name}{kind}", values[kind])
    monkeypatch.setenv("MINIO_ACCESS_KEY", "publisher")
    assert Password().get_credentials() == ("airflow", "http://s3cret")
    assert read_heartbeat_url() == "http://s3cret"
    provider = open_bucket("s3://fmnist?endpoint=http://127.0.0.1:1").client._provider
    assert isinstance(provider, StaticProvider)
    assert (provider.retrieve().access_key, provider.retrieve().secret_key) == ("publisher", "http://s3cret")


def test_the_variables_of_aws_are_used_if_those_of_minio_are_unset(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MINIO_ACCESS_KEY", "MINIO_SECRET_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "theirs")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "s3cret")
    provider = open_bucket("s3://fmnist?endpoint=http://127.0.0.1:1").client._provider
    assert isinstance(provider, EnvAWSProvider)
    assert provider.retrieve().access_key == "theirs"


def test_a_heartbeat_url_without_http_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FMNIST_HEARTBEAT_URL", "s3cret")
    with pytest.raises(SettingsError, match="FMNIST_HEARTBEAT_URL: must begin with http"):
        read_heartbeat_url()
