from __future__ import annotations

import gzip
import http.server
import os
import re
import shutil
import ssl
import subprocess
import sys
import tempfile
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
from fmnist_tasks.settings import PROJECT, Settings
from tests.support import synthetic
from tests.support.certificate import make_certificate
from tests.support.pipeline import Pipeline
from tests.support.requirements import APT, NETWORK, require


def declared(pipeline: Pipeline, **changes: object) -> tuple[Declaration, Settings]:
    settings = Settings.from_environment()
    return replace(read_declaration(settings.dataset), **changes), settings  # type: ignore[arg-type]


def test_the_folder_named_by_the_user_serves(pipeline: Pipeline) -> None:
    arrays, source = load_base(*declared(pipeline))
    assert source == str(pipeline.data)
    assert arrays["train_images"].shape == (1600, 28, 28)
    assert arrays["test_labels"].dtype == np.uint8


def test_the_cache_comes_first_unless_a_file_in_it_is_damaged(pipeline: Pipeline) -> None:
    cache = pipeline.home / "cache" / "made"
    shutil.copytree(pipeline.data, cache)
    assert load_base(*declared(pipeline))[1] == str(cache)
    (cache / "train_labels.gz").write_bytes(b"\x1f\x8bdamaged")
    assert load_base(*declared(pipeline))[1] == str(pipeline.data)


def test_a_pipe_or_a_huge_file_in_the_cache_is_passed_over(pipeline: Pipeline) -> None:
    cache = pipeline.home / "cache" / "made"
    shutil.copytree(pipeline.data, cache)
    labels = cache / "train_labels.gz"
    os.truncate(labels, 1 << 40)
    assert load_base(*declared(pipeline))[1] == str(pipeline.data)
    labels.unlink()
    os.mkfifo(labels)
    assert load_base(*declared(pipeline))[1] == str(pipeline.data)


def test_the_system_folder_serves_when_no_other_does(
    pipeline: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.move(pipeline.data, tmp_path / "datasets" / "made")
    shutil.copy(tmp_path / "datasets" / "made" / "made.toml", pipeline.home)
    monkeypatch.setenv("FMNIST_DATASET", str(pipeline.home / "made.toml"))
    monkeypatch.setattr(sources, "SYSTEM_FOLDER", tmp_path / "datasets")
    assert load_base(*declared(pipeline))[1] == str(tmp_path / "datasets" / "made")


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
def test_a_file_that_is_not_intact_is_named_with_what_to_do(pipeline: Pipeline, how: str, message: str) -> None:
    damaged(pipeline.data / "train_images.gz", how)
    with pytest.raises(DataError, match=rf"(?s)no source has its four files intact.*{message}.*FMNIST_DATA_DIR"):
        load_base(*declared(pipeline))


@pytest.fixture
def web(pipeline: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The made files behind HTTPS, with a certificate that only this test trusts, and nowhere else."""
    certificate, key = make_certificate(tmp_path)
    shutil.move(pipeline.data, tmp_path / "served")
    shutil.copytree(tmp_path / "served", pipeline.data, ignore=shutil.ignore_patterns("*.gz"))

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


@pytest.mark.integration
def test_files_from_the_web_enter_the_cache_and_serve_from_there(pipeline: Pipeline, web: str) -> None:
    assert load_base(*declared(pipeline, url=web))[1] == web
    assert load_base(*declared(pipeline, url=web))[1] == str(pipeline.home / "cache" / "made")


@pytest.mark.integration
def test_a_file_altered_on_the_web_does_not_enter_the_cache(pipeline: Pipeline, web: str, tmp_path: Path) -> None:
    damaged(tmp_path / "served" / "train_images.gz", "altered")
    with pytest.raises(DataError, match="SHA-256 is"):
        load_base(*declared(pipeline, url=web))
    assert not (pipeline.home / "cache" / "made" / "train_images.gz").exists()


@pytest.mark.integration
def test_a_web_server_that_is_not_there_is_one_reason_among_others(pipeline: Pipeline) -> None:
    damaged(pipeline.data / "test_labels.gz", "missing")
    with pytest.raises(DataError, match=r"https://127.0.0.1:9/train_images.gz: .*refused"):
        load_base(*declared(pipeline, url="https://127.0.0.1:9/"))


@pytest.fixture
def programs(pipeline: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only folder on the PATH; a dataset that only a Debian package has."""
    shutil.move(pipeline.data, tmp_path / "packaged")
    shutil.copytree(tmp_path / "packaged", pipeline.data, ignore=shutil.ignore_patterns("*.gz"))
    declaration = pipeline.data / "made.toml"
    declaration.write_text('debian_package = "dataset-made"\n' + declaration.read_text())
    monkeypatch.setattr(sources, "SYSTEM_FOLDER", tmp_path / "system")
    (tmp_path / "programs").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "programs"))
    return tmp_path / "programs"


def stand_in(path: Path, *lines: str) -> None:
    """A program in the place of apt-get or dpkg-deb, which a test must not let use the network."""
    path.write_text("\n".join(["#!/bin/sh", "PATH=/usr/bin:/bin", *lines]))
    path.chmod(0o755)


@pytest.fixture
def debian(programs: Path, tmp_path: Path) -> Path:
    """An apt-get and a dpkg-deb that bring the files in `packaged`; what apt-get was called with, and its settings."""
    called = tmp_path / "called"
    stand_in(
        programs / "apt-get",
        f'{{ echo "$@"; cat "$2"; }} >>{called}',
        "[ $3 = download ] && touch dataset-made_1_all.deb || exit 0",
    )
    stand_in(
        programs / "dpkg-deb",
        '[ "$1 $2" = "--extract dataset-made_1_all.deb" ] || exit 1',
        'mkdir -p "$3/usr/share/datasets"',
        f'cp -r {tmp_path}/packaged "$3/usr/share/datasets/made"',
    )
    return called


def test_a_dataset_that_nothing_else_serves_comes_from_its_debian_package(pipeline: Pipeline, debian: Path) -> None:
    result = CliRunner().invoke(app, ["download"])
    assert result.exit_code == 0, result.output
    assert "from Debian package dataset-made" in result.stdout
    assert load_base(*declared(pipeline))[1] == str(pipeline.home / "cache" / "made")
    assert [path.name for path in (pipeline.home / "cache").iterdir()] == ["made"]


def test_apt_changes_nothing_of_the_system(pipeline: Pipeline, debian: Path) -> None:
    load_base(*declared(pipeline))
    text = debian.read_text()
    calls = [called for called in text.splitlines() if called.startswith("-c apt.conf ")]
    assert calls == ["-c apt.conf update", "-c apt.conf download dataset-made"]
    folders = re.findall(r'Dir::(?:State|Cache) "(.*)";', text)
    assert len(folders) == 4
    assert all(Path(folder).is_relative_to(pipeline.home / "cache") for folder in folders)
    assert text.count("#clear APT::Update;") == 2


def test_an_altered_file_of_a_debian_package_does_not_enter_the_cache(
    pipeline: Pipeline, debian: Path, tmp_path: Path
) -> None:
    damaged(tmp_path / "packaged" / "test_labels.gz", "altered")
    with pytest.raises(DataError, match=r"Debian package dataset-made: test_labels.gz: SHA-256 is"):
        load_base(*declared(pipeline))
    assert list((pipeline.home / "cache").rglob("*.gz")) == []


def test_why_no_debian_package_could_be_fetched(pipeline: Pipeline, programs: Path) -> None:
    """The reason names the program and what it said; what to do follows."""
    with pytest.raises(DataError, match=r"(?s)Debian package dataset-made: there is no apt-get on this .*FMNIST_DATA"):
        load_base(*declared(pipeline))
    stand_in(programs / "apt-get", "[ $3 = update ] && { echo 'W: no server answers' >&2; exit; }", "exit 100")
    with pytest.raises(DataError, match=r"`apt-get -c apt.conf download dataset-made` .* code 100: W: no server ans"):
        load_base(*declared(pipeline))
    stand_in(programs / "apt-get", "touch dataset-made_1_all.deb")
    with pytest.raises(DataError, match="there is no dpkg-deb on this machine"):
        load_base(*declared(pipeline))
    stand_in(programs / "dpkg-deb", "echo 'error: is no archive' >&2; exit 2")
    with pytest.raises(DataError, match=r"`dpkg-deb .*` ended with exit code 2: error: is no archive"):
        load_base(*declared(pipeline))


AS_NOBODY = """\
import os, sys
from dataclasses import replace
from pathlib import Path

from fmnist_tasks.data import sources
from fmnist_tasks.data.declaration import read_declaration
from fmnist_tasks.settings import PROJECT, Settings

settings = Settings.from_environment()
declaration = replace(read_declaration(settings.dataset), url=None)
sources.SYSTEM_FOLDER = Path("/nowhere")
if os.getuid() == 0:
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
print(sources.load_base(declaration, settings)[1], os.getuid())
"""


@pytest.mark.exhaustive
def test_the_real_package_is_fetched_by_one_who_is_not_root() -> None:
    require(APT, NETWORK)
    folder = Path(tempfile.mkdtemp(prefix="fmnist-home-"))  # pytest's own folders shut other users out
    if os.getuid() == 0:
        os.chown(folder, 65534, 65534)
    try:
        ended = subprocess.run(
            [sys.executable, "-c", AS_NOBODY],
            env=os.environ | {"FMNIST_HOME": str(folder), "FMNIST_DATA_DIR": "", "PYTHONPATH": str(PROJECT)},
            capture_output=True,
            text=True,
        )
        assert ended.returncode == 0, ended.stderr
        source, user = ended.stdout.rsplit(maxsplit=1)
        assert source == "Debian package dataset-fashion-mnist"
        assert user != "0"
        assert len(list((folder / "cache" / "fashion-mnist").iterdir())) == 4
    finally:
        shutil.rmtree(folder)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name = ", "made.toml"),
        ('name = "x"\ntitle = "x"\nclasses = ["a", "b"]\n[files]', "needs the files train_images"),
        ('name = "x"\ntitle = "x"\n[files]', "classes"),
        ('name = "x"\ntitle = "x"\nclasses = ["a"]\nfiles = {}', "needs the files"),
    ],
)
def test_a_declaration_that_lacks_something(pipeline: Pipeline, text: str, message: str) -> None:
    path = pipeline.data / "made.toml"
    path.write_text(text)
    with pytest.raises(SettingsError, match=message):
        read_declaration(path)


def test_a_declaration_without_encryption_or_with_one_class(pipeline: Pipeline) -> None:
    path = pipeline.data / "made.toml"
    original = path.read_text()
    path.write_text('url = "http://example.org/"\n' + original)
    with pytest.raises(SettingsError, match="must begin with https"):
        read_declaration(path)
    path.write_text(original.replace(str([f"pattern {i}" for i in range(synthetic.CLASSES)]), '["one"]'))
    with pytest.raises(SettingsError, match="1 classes; labels hold 2 to 256"):
        read_declaration(path)
    path.write_text("images = { training = 1600 }\n" + original)
    with pytest.raises(SettingsError, match="images has training; use train, test"):
        read_declaration(path)
