from __future__ import annotations

import gzip
import http.server
import os
import shutil
import ssl
import threading
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from fmnist_tasks.cli import app
from fmnist_tasks.data import sources
from fmnist_tasks.data.declaration import Declaration, read_declaration
from fmnist_tasks.data.sources import load_base
from fmnist_tasks.errors import DataError, SettingsError
from fmnist_tasks.settings import Settings
from tests.support import synthetic
from tests.support.certificate import make_certificate
from tests.support.pipeline import Line


def declared(line: Line, **changes: object) -> tuple[Declaration, Settings]:
    settings = Settings.from_environment()
    return replace(read_declaration(settings.dataset), **changes), settings  # type: ignore[arg-type]


def test_the_folder_named_by_the_user_serves(line: Line) -> None:
    arrays, source = load_base(*declared(line))
    assert source == str(line.data)
    assert arrays["train_images"].shape == (1600, 28, 28)
    assert arrays["test_labels"].dtype == np.uint8


def test_the_cache_comes_first_unless_a_file_in_it_is_damaged(line: Line) -> None:
    cache = line.home / "cache" / "made"
    shutil.copytree(line.data, cache)
    assert load_base(*declared(line))[1] == str(cache)
    (cache / "train_labels.gz").write_bytes(b"\x1f\x8bdamaged")
    assert load_base(*declared(line))[1] == str(line.data)


def test_the_system_folder_serves_when_no_other_does(
    line: Line, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.move(line.data, tmp_path / "datasets" / "made")
    shutil.copy(tmp_path / "datasets" / "made" / "made.toml", line.home)
    monkeypatch.setenv("FMNIST_DATASET", str(line.home / "made.toml"))
    monkeypatch.setattr(sources, "SYSTEM_FOLDER", tmp_path / "datasets")
    assert load_base(*declared(line))[1] == str(tmp_path / "datasets" / "made")


def damaged(path: Path, how: str) -> None:
    content = gzip.decompress(path.read_bytes())
    if how == "missing":
        path.unlink()
    elif how == "truncated":
        path.write_bytes(path.read_bytes()[:-50])
    elif how == "shorter":
        path.write_bytes(gzip.compress(content[:-1]))
    elif how == "longer":
        path.write_bytes(gzip.compress(content + b"x"))
    else:
        path.write_bytes(gzip.compress(content[:-1] + bytes([content[-1] ^ 1])))


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("missing", "No such file.*train_images.gz"),
        ("truncated", "train_images.gz: the gzip file is damaged or cut short"),
        ("shorter", r"train_images.gz: holds 1,254,415 bytes, expected 1,254,416; delete the file"),
        ("longer", "train_images.gz: holds more than the expected 1,254,416 bytes"),
        ("altered", "train_images.gz: SHA-256 is [0-9a-f]{64}, expected [0-9a-f]{64}; delete the file"),
    ],
)
def test_a_file_that_is_not_intact_is_named_with_what_to_do(line: Line, how: str, message: str) -> None:
    damaged(line.data / "train_images.gz", how)
    with pytest.raises(DataError, match=rf"(?s)no source has its four files intact.*{message}.*FMNIST_DATA_DIR"):
        load_base(*declared(line))


@pytest.fixture
def web(line: Line, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The made files behind HTTPS, with a certificate that only this test trusts, and nowhere else."""
    certificate, key = make_certificate(tmp_path)
    shutil.move(line.data, tmp_path / "served")
    shutil.copytree(tmp_path / "served", line.data, ignore=shutil.ignore_patterns("*.gz"))

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(tmp_path / "served")))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    monkeypatch.delenv("SSL_CERT_DIR", raising=False)
    yield f"https://localhost:{server.server_port}/"
    server.shutdown()
    thread.join()
    server.server_close()


def test_files_from_the_web_enter_the_cache_and_serve_from_there(line: Line, web: str) -> None:
    assert load_base(*declared(line, url=web))[1] == web
    assert load_base(*declared(line, url=web))[1] == str(line.home / "cache" / "made")


def test_a_file_altered_on_the_web_does_not_enter_the_cache(line: Line, web: str, tmp_path: Path) -> None:
    damaged(tmp_path / "served" / "train_images.gz", "altered")
    with pytest.raises(DataError, match="SHA-256 is"):
        load_base(*declared(line, url=web))
    assert not (line.home / "cache" / "made" / "train_images.gz").exists()


def test_a_web_server_that_is_not_there_is_one_reason_among_others(line: Line) -> None:
    damaged(line.data / "test_labels.gz", "missing")
    with pytest.raises(DataError, match=r"https://127.0.0.1:9/train_images.gz: .*refused"):
        load_base(*declared(line, url="https://127.0.0.1:9/"))


@pytest.fixture
def programs(line: Line, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only folder on the PATH; a system folder and a dataset that only apt-get can bring there."""
    shutil.move(line.data, tmp_path / "packaged")
    shutil.copytree(tmp_path / "packaged", line.data, ignore=shutil.ignore_patterns("*.gz"))
    declaration = line.data / "made.toml"
    declaration.write_text('debian_package = "dataset-made"\n' + declaration.read_text())
    monkeypatch.setattr(sources, "SYSTEM_FOLDER", tmp_path / "system")
    (tmp_path / "system").mkdir()
    (tmp_path / "programs").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "programs"))
    return tmp_path / "programs"


def stand_in(path: Path, *lines: str) -> None:
    """A program in the place of apt-get or sudo, which a test must not let change the machine."""
    path.write_text("\n".join(["#!/bin/sh", "PATH=/usr/bin:/bin", *lines]))
    path.chmod(0o755)


def test_a_dataset_that_nothing_serves_is_installed_as_a_debian_package(programs: Path, tmp_path: Path) -> None:
    stand_in(
        programs / "apt-get",
        f'echo "$@" >> {tmp_path}/called',
        f"[ $1 = update ] || cp -r {tmp_path}/packaged {tmp_path}/system/made",
    )
    result = CliRunner().invoke(app, ["download"])
    assert result.exit_code == 0, result.output
    assert f"from {tmp_path}/system/made" in result.stdout
    update, install = (tmp_path / "called").read_text().splitlines()
    assert update.startswith("update")
    assert install.startswith("install --yes")
    assert install.endswith(" dataset-made")


def test_sudo_is_asked_by_one_who_is_not_root(programs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    stand_in(programs / "apt-get")
    stand_in(programs / "sudo", f'echo "$@" >> {tmp_path}/called')
    sources.install_debian_package("dataset-made")
    assert [call.split()[:3] for call in (tmp_path / "called").read_text().splitlines()] == [
        ["--non-interactive", "apt-get", "update"],
        ["--non-interactive", "apt-get", "install"],
    ]


def test_who_cannot_install_is_told_the_one_command_to_type(programs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = r"type: sudo apt-get update && sudo apt-get install dataset-made"
    with pytest.raises(DataError, match="no apt-get to install the dataset with"):
        sources.install_debian_package("dataset-made")
    stand_in(programs / "apt-get", "exit 100")
    with pytest.raises(DataError, match=f"failed with exit code 100; {command}"):
        sources.install_debian_package("dataset-made")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(DataError, match=f"only root can install the dataset here; {command}"):
        sources.install_debian_package("dataset-made")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name = ", "made.toml"),
        ('name = "x"\ntitle = "x"\nclasses = ["a", "b"]\n[files]', "needs the files train_images"),
        ('name = "x"\ntitle = "x"\n[files]', "classes"),
        ('name = "x"\ntitle = "x"\nclasses = ["a"]\nfiles = {}', "needs the files"),
    ],
)
def test_a_declaration_that_lacks_something(line: Line, text: str, message: str) -> None:
    path = line.data / "made.toml"
    path.write_text(text)
    with pytest.raises(SettingsError, match=message):
        read_declaration(path)


def test_a_declaration_without_encryption_or_with_one_class(line: Line) -> None:
    path = line.data / "made.toml"
    original = path.read_text()
    path.write_text('url = "http://example.org/"\n' + original)
    with pytest.raises(SettingsError, match="must begin with https"):
        read_declaration(path)
    path.write_text(original.replace(str([f"pattern {i}" for i in range(synthetic.CLASSES)]), '["one"]'))
    with pytest.raises(SettingsError, match="1 classes; labels hold 2 to 256"):
        read_declaration(path)
