"""Sources of the base dataset: their order, the cache, damaged files, and the dataset declaration."""

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
from tests.support.certificate import make_certificate
from tests.support.pipeline import Pipeline
from tests.support.requirements import APT, NETWORK, require


def read_inputs(pipeline: Pipeline, **changes: object) -> tuple[Declaration, Settings]:
    """Return the declaration, with changed fields, and the settings: the arguments of `load_base`."""
    settings = Settings.from_environment()
    return read_declaration(settings.dataset).model_copy(update=changes), settings


def test_the_folder_in_fmnist_data_dir_is_a_source(pipeline: Pipeline) -> None:
    arrays, source = load_base(*read_inputs(pipeline))
    assert source == str(pipeline.data)
    assert arrays["train_images"].shape == (1600, 28, 28)
    assert arrays["test_labels"].dtype == np.uint8


def test_the_cache_comes_first_unless_a_file_in_it_is_damaged(pipeline: Pipeline) -> None:
    cache = pipeline.home / "cache" / "synthetic"
    shutil.copytree(pipeline.data, cache)
    assert load_base(*read_inputs(pipeline))[1] == str(cache)
    (cache / "train_labels.gz").write_bytes(b"\x1f\x8bdamaged")
    assert load_base(*read_inputs(pipeline))[1] == str(pipeline.data)


def test_a_pipe_or_a_huge_file_in_the_cache_is_skipped(pipeline: Pipeline) -> None:
    cache = pipeline.home / "cache" / "synthetic"
    shutil.copytree(pipeline.data, cache)
    labels = cache / "train_labels.gz"
    os.truncate(labels, 1 << 40)
    assert load_base(*read_inputs(pipeline))[1] == str(pipeline.data)
    labels.unlink()
    os.mkfifo(labels)
    assert load_base(*read_inputs(pipeline))[1] == str(pipeline.data)


def test_the_system_folder_is_used_if_no_earlier_source_is_intact(
    pipeline: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.move(pipeline.data, tmp_path / "datasets" / "synthetic")
    shutil.copy(tmp_path / "datasets" / "synthetic" / "dataset.toml", pipeline.home)
    monkeypatch.setenv("FMNIST_DATASET", str(pipeline.home / "dataset.toml"))
    monkeypatch.setattr(sources, "SYSTEM_FOLDER", tmp_path / "datasets")
    assert load_base(*read_inputs(pipeline))[1] == str(tmp_path / "datasets" / "synthetic")


def damage_file(path: Path, kind: str) -> None:
    content = gzip.decompress(path.read_bytes())
    if kind == "missing":
        path.unlink()
    elif kind == "truncated":
        path.write_bytes(path.read_bytes()[:-50])
    elif kind == "shorter":
        path.write_bytes(gzip.compress(content[:-1]))
    elif kind == "longer":
        path.write_bytes(gzip.compress(content + b"x"))
    else:
        path.write_bytes(gzip.compress(content[:-1] + bytes([content[-1] ^ 1])))


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("missing", "No such file.*train_images.gz"),
        ("truncated", "train_images.gz: the gzip file is damaged or truncated"),
        ("shorter", r"train_images.gz has 1,254,415 bytes, expected 1,254,416; delete the file"),
        ("longer", "train_images.gz has more than the expected 1,254,416 bytes"),
        ("altered", "train_images.gz: SHA-256 is [0-9a-f]{64}, expected [0-9a-f]{64}; delete the file"),
    ],
)
def test_the_error_names_the_damaged_file_and_the_remedy(pipeline: Pipeline, kind: str, message: str) -> None:
    damage_file(pipeline.data / "train_images.gz", kind)
    with pytest.raises(DataError, match=rf"(?s)no source has all four files intact.*{message}.*FMNIST_DATA_DIR"):
        load_base(*read_inputs(pipeline))


@pytest.fixture
def web_address(pipeline: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Serve the synthetic files only over HTTPS, with a certificate that only this test trusts."""
    certificate, key = make_certificate(tmp_path)
    shutil.move(pipeline.data, tmp_path / "served")
    shutil.copytree(tmp_path / "served", pipeline.data, ignore=shutil.ignore_patterns("*.gz"))

    class QuietHandler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), partial(QuietHandler, directory=str(tmp_path / "served"))
    )
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
def test_files_from_the_web_are_cached(pipeline: Pipeline, web_address: str) -> None:
    assert load_base(*read_inputs(pipeline, url=web_address))[1] == web_address
    assert load_base(*read_inputs(pipeline, url=web_address))[1] == str(pipeline.home / "cache" / "synthetic")


@pytest.mark.integration
def test_an_altered_file_from_the_web_is_not_cached(pipeline: Pipeline, web_address: str, tmp_path: Path) -> None:
    damage_file(tmp_path / "served" / "train_images.gz", "altered")
    with pytest.raises(DataError, match="SHA-256 is"):
        load_base(*read_inputs(pipeline, url=web_address))
    assert not (pipeline.home / "cache" / "synthetic" / "train_images.gz").exists()


@pytest.mark.integration
def test_an_unreachable_web_server_is_one_of_the_reasons(pipeline: Pipeline) -> None:
    damage_file(pipeline.data / "test_labels.gz", "missing")
    with pytest.raises(DataError, match=r"https://127.0.0.1:9/train_images.gz: .*refused"):
        load_base(*read_inputs(pipeline, url="https://127.0.0.1:9/"))


@pytest.fixture
def programs(pipeline: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the only folder on the PATH. The dataset exists only in a Debian package."""
    shutil.move(pipeline.data, tmp_path / "packaged")
    shutil.copytree(tmp_path / "packaged", pipeline.data, ignore=shutil.ignore_patterns("*.gz"))
    declaration = pipeline.data / "dataset.toml"
    declaration.write_text('debian_package = "dataset-synthetic"\n' + declaration.read_text())
    monkeypatch.setattr(sources, "SYSTEM_FOLDER", tmp_path / "system")
    (tmp_path / "programs").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "programs"))
    return tmp_path / "programs"


def write_program(path: Path, *lines: str) -> None:
    """Write a script that replaces apt-get or dpkg-deb, since tests must not use the network."""
    path.write_text("\n".join(["#!/bin/sh", "PATH=/usr/bin:/bin", *lines]))
    path.chmod(0o755)


@pytest.fixture
def debian(programs: Path, tmp_path: Path) -> Path:
    """Replace apt-get and dpkg-deb by scripts that provide `packaged`; return the log of apt-get's calls."""
    log = tmp_path / "log"
    write_program(
        programs / "apt-get",
        f'{{ echo "$@"; cat "$2"; }} >>{log}',
        "[ $3 = download ] && touch dataset-synthetic_1_all.deb || exit 0",
    )
    write_program(
        programs / "dpkg-deb",
        '[ "$1 $2" = "--extract dataset-synthetic_1_all.deb" ] || exit 1',
        'mkdir -p "$3/usr/share/datasets"',
        f'cp -r {tmp_path}/packaged "$3/usr/share/datasets/synthetic"',
    )
    return log


def test_the_debian_package_is_the_last_source(pipeline: Pipeline, debian: Path) -> None:
    result = CliRunner().invoke(app, ["download"])
    assert result.exit_code == 0, result.output
    assert "source: Debian package dataset-synthetic" in result.stdout
    assert load_base(*read_inputs(pipeline))[1] == str(pipeline.home / "cache" / "synthetic")
    assert [path.name for path in (pipeline.home / "cache").iterdir()] == ["synthetic"]


def test_apt_changes_nothing_on_the_system(pipeline: Pipeline, debian: Path) -> None:
    load_base(*read_inputs(pipeline))
    text = debian.read_text()
    calls = [line for line in text.splitlines() if line.startswith("-c apt.conf ")]
    assert calls == ["-c apt.conf update", "-c apt.conf download dataset-synthetic"]
    folders = re.findall(r'Dir::(?:State|Cache) "(.*)";', text)
    assert len(folders) == 4
    assert all(Path(folder).is_relative_to(pipeline.home / "cache") for folder in folders)
    assert text.count("#clear APT::Update;") == 2


def test_an_altered_file_from_a_debian_package_is_not_cached(pipeline: Pipeline, debian: Path, tmp_path: Path) -> None:
    damage_file(tmp_path / "packaged" / "test_labels.gz", "altered")
    with pytest.raises(DataError, match=r"Debian package dataset-synthetic: test_labels.gz: SHA-256 is"):
        load_base(*read_inputs(pipeline))
    assert list((pipeline.home / "cache").rglob("*.gz")) == []


def test_the_error_says_why_the_debian_package_cannot_be_used(pipeline: Pipeline, programs: Path) -> None:
    """The reason names the program and quotes its output; the remedy follows."""
    with pytest.raises(
        DataError, match=r"(?s)Debian package dataset-synthetic: apt-get is not installed .*FMNIST_DATA"
    ):
        load_base(*read_inputs(pipeline))
    write_program(programs / "apt-get", "[ $3 = update ] && { echo 'W: no response' >&2; exit; }", "exit 100")
    with pytest.raises(
        DataError, match=r"`apt-get -c apt.conf download dataset-synthetic` .* code 100: W: no response"
    ):
        load_base(*read_inputs(pipeline))
    write_program(programs / "apt-get", "touch dataset-synthetic_1_all.deb")
    with pytest.raises(DataError, match="dpkg-deb is not installed on this machine"):
        load_base(*read_inputs(pipeline))
    write_program(programs / "dpkg-deb", "echo 'error: not an archive' >&2; exit 2")
    with pytest.raises(DataError, match=r"`dpkg-deb .*` failed with exit code 2: error: not an archive"):
        load_base(*read_inputs(pipeline))


LOAD_AS_NOBODY = """\
import os, sys
from pathlib import Path

from fmnist_tasks.data import sources
from fmnist_tasks.data.declaration import read_declaration
from fmnist_tasks.settings import PROJECT, Settings

settings = Settings.from_environment()
declaration = read_declaration(settings.dataset).model_copy(update={"url": None})
sources.SYSTEM_FOLDER = Path("/nowhere")
if os.getuid() == 0:
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
print(sources.load_base(declaration, settings)[1], os.getuid())
"""


@pytest.mark.exhaustive
def test_the_real_package_is_fetched_without_root() -> None:
    require(APT, NETWORK)
    folder = Path(tempfile.mkdtemp(prefix="fmnist-home-"))  # other users cannot read pytest's folders
    if os.getuid() == 0:
        os.chown(folder, 65534, 65534)
    try:
        process = subprocess.run(
            [sys.executable, "-c", LOAD_AS_NOBODY],
            env=os.environ | {"FMNIST_HOME": str(folder), "FMNIST_DATA_DIR": "", "PYTHONPATH": str(PROJECT)},
            capture_output=True,
            text=True,
        )
        assert process.returncode == 0, process.stderr
        source, user = process.stdout.rsplit(maxsplit=1)
        assert source == "Debian package dataset-fashion-mnist"
        assert user != "0"
        assert len(list((folder / "cache" / "fashion-mnist").iterdir())) == 4
    finally:
        shutil.rmtree(folder)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name = ", "dataset.toml"),
        ('name = "x"\ntitle = "x"\nclasses = ["a", "b"]\n[files]', "image_format: missing; ood_label: missing"),
        ('name = "x"\ntitle = "x"\n[files]', "classes: missing"),
        (
            'name = "x/y"\ntitle = "x"\nclasses = ["a"]\nfiles = {}',
            "name: String should match .*; classes: List should",
        ),
    ],
)
def test_an_incomplete_declaration_is_refused(pipeline: Pipeline, text: str, message: str) -> None:
    path = pipeline.data / "dataset.toml"
    path.write_text(text)
    with pytest.raises(SettingsError, match=message):
        read_declaration(path)


@pytest.mark.parametrize(
    ("original", "replacement", "message"),
    [
        ('name = "synthetic"', 'name = "synthetic"\nurl = "http://example.org/"', "url: String should match pattern"),
        ('name = "synthetic"', 'name = "synthetic"\ncolour = "red"', "colour: unknown"),
        (
            'name = "synthetic"',
            'name = "synthetic"\nimages = { training = 1600 }',
            "images.training.* 'train' or 'test'",
        ),
        ("height = 28", "height = 97", "image_format.height: Input should be less than or equal to 96"),
        ("channels = 1", "channels = 4", "image_format.channels: Input should be 1 or 3"),
        ("upright = true", 'upright = "yes"', "image_format.upright: Input should be a valid boolean"),
        ("[files.test_labels]", "[files.validation_labels]", "files.validation_labels"),
    ],
)
def test_an_invalid_value_in_a_declaration_is_refused_by_name(
    pipeline: Pipeline, original: str, replacement: str, message: str
) -> None:
    path = pipeline.data / "dataset.toml"
    text = path.read_text()
    assert original in text
    path.write_text(text.replace(original, replacement, 1))
    with pytest.raises(SettingsError, match=rf"^dataset declaration {path}: {message}"):
        read_declaration(path)
