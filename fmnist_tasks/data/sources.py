"""Where the dataset's files come from, in order: cache, a folder of the user's, the system's folder, the web, Debian.

Every file is checked by size and SHA-256 before use, whoever served it. What comes over the network enters the cache
once all four files are intact. Nothing needs root or changes the system.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import subprocess
import tempfile
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.progress import wrap_file

from fmnist_tasks.data.bounded import read_at_most
from fmnist_tasks.data.declaration import ROLES, Declaration, File
from fmnist_tasks.data.idx import gunzip, parse_idx
from fmnist_tasks.errors import DataError
from fmnist_tasks.settings import Settings

log = logging.getLogger(__name__)

_PACKAGE_FOLDER = Path("usr/share/datasets")  # of the files in a Debian package
SYSTEM_FOLDER = Path("/") / _PACKAGE_FOLDER
_NETWORK_TIMEOUT = 20  # seconds without a byte
_COMMAND_TIMEOUT = 900  # seconds for one command of apt's


def load_base(declaration: Declaration, settings: Settings) -> tuple[dict[str, np.ndarray], str]:
    """Arrays by role (see ROLES) and the source that served them.

    Images are uint8 (N, 28, 28), labels uint8 (N,), though only size and digest are checked here. Raises
    :class:`DataError` with the reason of every source if none serves all four files intact.
    """
    refusals = []
    for source, read in _sources(declaration, settings):
        try:
            contents = read(declaration.files)
        except (DataError, OSError) as error:
            log.info("dataset source %s does not serve: %s", source, error)
            refusals.append(f"  {source}: {error}")
        else:
            return {role: parse_idx(contents[role], declaration.files[role].name) for role in ROLES}, source
    raise DataError(
        f"{declaration.title}: no source has its four files intact:\n" + "\n".join(refusals) + "\n"
        "put intact files into a folder and name it in FMNIST_DATA_DIR, or run `make setup` again with a network"
    )


def _sources(
    declaration: Declaration, settings: Settings
) -> Iterator[tuple[str, Callable[[Mapping[str, File]], dict[str, bytes]]]]:
    """Name of each source, and what reads the verified contents by role from it."""
    cache = settings.cache / declaration.name
    for folder in (cache, settings.data_dir, SYSTEM_FOLDER / declaration.name):
        if folder:
            yield str(folder), partial(_read, folder)
    if declaration.url:
        yield declaration.url, partial(_fetch, partial(_download, declaration.url, declaration.files), cache)
    if package := declaration.debian_package:
        yield f"Debian package {package}", partial(_fetch, partial(_unpack, package, declaration.name), cache)


def _read(folder: Path, files: Mapping[str, File]) -> dict[str, bytes]:
    def read(file: File) -> bytes:
        return _verified(read_at_most(folder / file.name, file.name, 2 * file.bytes), file)

    return {role: read(files[role]) for role in ROLES}


def _fetch(bring: Callable[[Path], Path], cache: Path, files: Mapping[str, File]) -> dict[str, bytes]:
    """Let `bring` fill a temporary folder; its files move into the cache, atomically, once all are intact."""
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache.parent, prefix=f".{cache.name}-") as temporary:
        folder = bring(Path(temporary))
        contents = _read(folder, files)
        for file in files.values():
            (folder / file.name).replace(cache / file.name)
    return contents


def _verified(data: bytes, file: File) -> bytes:
    """Content of the file after gunzip; raises :class:`DataError` unless size and SHA-256 are as declared."""
    content = gunzip(data, file.name, file.bytes)
    if len(content) != file.bytes:
        raise DataError(f"{file.name}: holds {len(content):,} bytes, expected {file.bytes:,}; delete the file")
    sha256 = hashlib.sha256(content).hexdigest()
    if sha256 != file.sha256:
        raise DataError(f"{file.name}: SHA-256 is {sha256}, expected {file.sha256}; delete the file")
    return content


def _download(url: str, files: Mapping[str, File], folder: Path) -> Path:
    """Fetch the files over HTTPS into the folder, each with a progress bar."""
    for file in files.values():
        address = url + file.name
        try:
            with urllib.request.urlopen(address, timeout=_NETWORK_TIMEOUT) as answer:  # noqa: S310 - https only, see declaration
                size = int(answer.headers.get("Content-Length") or 0) or None
                if size and size > 2 * file.bytes:
                    raise DataError(f"{address}: offers {size:,} bytes, more than the file can have")
                with wrap_file(answer, total=size or file.bytes, description=escape(file.name)) as body:
                    (folder / file.name).write_bytes(body.read(2 * file.bytes))
        except urllib.error.URLError as error:
            raise DataError(f"{address}: {error.reason}") from error
    return folder


def _unpack(package: str, name: str, folder: Path) -> Path:
    """Fetch a Debian package with apt and unpack it, all below the folder; the folder of its files.

    apt's lists and caches lie there too: those of the system may be missing or old, and are not ours to renew.
    """
    settings = {
        "Dir::State": folder / "state",
        "Dir::Cache": folder / "cache",
        "APT::Sandbox::User": "root",  # if we are root: another user could not write below the folder
        "Acquire::Retries": 0,
        "Acquire::http::Timeout": _NETWORK_TIMEOUT,
        "Acquire::https::Timeout": _NETWORK_TIMEOUT,
    }
    for made in ("state/lists/partial", "cache/archives/partial"):
        (folder / made).mkdir(parents=True)
    lines = [f'{option} "{value}";' for option, value in settings.items()]
    # The first line drops what the system has apt do after an update, such as emptying the system's cache.
    (folder / "apt.conf").write_text("\n".join(["#clear APT::Update;", *lines, ""]))
    with Console(stderr=True).status(f"fetching the Debian package {escape(package)}"):
        warnings = _run(folder, "apt-get", "-c", "apt.conf", "update")  # a server that does not answer is only one
        _run(folder, "apt-get", "-c", "apt.conf", "download", package, said=warnings)
        archive = next(folder.glob("*.deb"))
        _run(folder, "dpkg-deb", "--extract", archive.name, "unpacked")
    return folder / "unpacked" / _PACKAGE_FOLDER / name


def _run(folder: Path, *command: str, said: str = "") -> str:
    """What the command prints on standard error; raises :class:`DataError` with it, and what was said before."""
    if not shutil.which(command[0]):
        raise DataError(f"there is no {command[0]} on this machine")
    try:
        ended = subprocess.run(
            command,
            cwd=folder,
            env={**os.environ, "LC_ALL": "C"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_COMMAND_TIMEOUT,
        )
    except subprocess.TimeoutExpired as error:
        raise DataError(f"`{' '.join(command)}` did not end within {_COMMAND_TIMEOUT} seconds") from error
    said += ended.stderr
    if ended.returncode:
        reason = "; ".join(line.strip() for line in said.splitlines()[-3:])
        raise DataError(f"`{' '.join(command)}` ended with exit code {ended.returncode}: {reason}")
    return said
