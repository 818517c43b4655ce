"""Sources of the base dataset, in order of preference.

They are the cache, the folder beside the declaration, the user's folder, the system's folder, the web, and a Debian
package. Size and SHA-256 of every file are verified before use, whatever its source. Files from the network enter the
cache once all four are intact. Nothing needs root or changes the system.
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

from fmnist_tasks.data.declaration import ROLES, Declaration, File, Role
from fmnist_tasks.data.files import read_file
from fmnist_tasks.data.idx import gunzip, parse_idx
from fmnist_tasks.errors import DataError
from fmnist_tasks.settings import Settings

log = logging.getLogger(__name__)

_PACKAGE_FOLDER = Path("usr/share/datasets")  # of the files in a Debian package
SYSTEM_FOLDER = Path("/") / _PACKAGE_FOLDER
_NETWORK_TIMEOUT = 20  # seconds without a byte
_COMMAND_TIMEOUT = 900  # seconds for one apt command


def load_base(declaration: Declaration, settings: Settings) -> tuple[dict[str, np.ndarray], str]:
    """Return the arrays by role (see ROLES) and their source.

    Images are uint8, labels uint8 (N,), though only size and digest are verified here. Raises
    :class:`DataError` with the fault of every source if none has all four files intact.
    """
    faults = []
    for source, read in _list_sources(declaration, settings):
        try:
            contents = read(declaration.files)
        except (DataError, OSError) as error:
            log.info("dataset source %s cannot be used: %s", source, error)
            faults.append(f"  {source}: {error}")
        else:
            return {role: parse_idx(contents[role], declaration.files[role].name) for role in ROLES}, source
    raise DataError(
        f"{declaration.title}: no source has all four files intact:\n" + "\n".join(faults) + "\n"
        "put intact files into a folder and set FMNIST_DATA_DIR to it, or connect to a network and run `make setup`"
    )


def _list_sources(
    declaration: Declaration, settings: Settings
) -> Iterator[tuple[str, Callable[[Mapping[Role, File]], dict[str, bytes]]]]:
    """Yield the name of each source, and a function that returns its verified contents by role."""
    cache = settings.cache / declaration.name
    for folder in (cache, declaration.data_folder, settings.data_dir, SYSTEM_FOLDER / declaration.name):
        if folder:
            yield str(folder), partial(_read, folder)
    if declaration.url:
        yield declaration.url, partial(_fetch, partial(_download, declaration.url, declaration.files), cache)
    if package := declaration.debian_package:
        yield f"Debian package {package}", partial(_fetch, partial(_unpack, package, declaration.name), cache)


def _read(folder: Path, files: Mapping[Role, File]) -> dict[str, bytes]:
    def read(file: File) -> bytes:
        return _verify_content(read_file(folder / file.name, file.name, 2 * file.bytes), file)

    return {role: read(files[role]) for role in ROLES}


def _fetch(download: Callable[[Path], Path], cache: Path, files: Mapping[Role, File]) -> dict[str, bytes]:
    """Download into a temporary folder; move the files into the cache, atomically, once all are intact."""
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache.parent, prefix=f".{cache.name}-") as temporary:
        folder = download(Path(temporary))
        contents = _read(folder, files)
        for file in files.values():
            (folder / file.name).replace(cache / file.name)
    return contents


def _verify_content(data: bytes, file: File) -> bytes:
    """Return the content after gunzip; raises :class:`DataError` unless size and SHA-256 are as declared."""
    content = gunzip(data, file.name, file.bytes)
    if len(content) != file.bytes:
        raise DataError(f"{file.name} has {len(content):,} bytes, expected {file.bytes:,}; delete the file")
    sha256 = hashlib.sha256(content).hexdigest()
    if sha256 != file.sha256:
        raise DataError(f"{file.name}: SHA-256 is {sha256}, expected {file.sha256}; delete the file")
    return content


def _download(url: str, files: Mapping[Role, File], folder: Path) -> Path:
    """Download the files over HTTPS into the folder, each with a progress bar; return the folder."""
    for file in files.values():
        address = url + file.name
        try:
            with urllib.request.urlopen(address, timeout=_NETWORK_TIMEOUT) as response:  # noqa: S310 - https only, see declaration
                size = int(response.headers.get("Content-Length") or 0) or None
                if size and size > 2 * file.bytes:
                    raise DataError(f"{address} has {size:,} bytes, expected at most {2 * file.bytes:,}")
                with wrap_file(response, total=size or file.bytes, description=escape(file.name)) as body:
                    (folder / file.name).write_bytes(body.read(2 * file.bytes))
        except urllib.error.URLError as error:
            raise DataError(f"{address}: {error.reason}") from error
    return folder


def _unpack(package: str, name: str, folder: Path) -> Path:
    """Download a Debian package with apt and unpack it below the folder; return the folder of its files.

    apt's lists and caches are below the folder too: the system's own may be missing or outdated, and stay unchanged.
    """
    options = {
        "Dir::State": folder / "state",
        "Dir::Cache": folder / "cache",
        "APT::Sandbox::User": "root",  # for root: another user could not write below the folder
        "Acquire::Retries": 0,
        "Acquire::http::Timeout": _NETWORK_TIMEOUT,
        "Acquire::https::Timeout": _NETWORK_TIMEOUT,
    }
    for subfolder in ("state/lists/partial", "cache/archives/partial"):
        (folder / subfolder).mkdir(parents=True)
    lines = [f'{option} "{value}";' for option, value in options.items()]
    # The first line removes the system's hooks after an update, such as one that empties the system's cache.
    (folder / "apt.conf").write_text("\n".join(["#clear APT::Update;", *lines, ""]))
    with Console(stderr=True).status(f"fetching the Debian package {escape(package)}"):
        # An update whose servers do not respond succeeds with warnings; they explain why the download then fails.
        warnings = _run(folder, "apt-get", "-c", "apt.conf", "update")
        _run(folder, "apt-get", "-c", "apt.conf", "download", package, warnings=warnings)
        archive = next(folder.glob("*.deb"))
        _run(folder, "dpkg-deb", "--extract", archive.name, "unpacked")
    return folder / "unpacked" / _PACKAGE_FOLDER / name


def _run(folder: Path, *command: str, warnings: str = "") -> str:
    """Return `warnings` and the standard error of the command; raises :class:`DataError` with both if it fails."""
    if not shutil.which(command[0]):
        raise DataError(f"{command[0]} is not installed on this machine")
    try:
        process = subprocess.run(
            command,
            cwd=folder,
            env={**os.environ, "LC_ALL": "C"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_COMMAND_TIMEOUT,
        )
    except subprocess.TimeoutExpired as error:
        raise DataError(f"`{' '.join(command)}` did not finish within {_COMMAND_TIMEOUT} seconds") from error
    output = warnings + process.stderr
    if process.returncode:
        reason = "; ".join(line.strip() for line in output.splitlines()[-3:])
        raise DataError(f"`{' '.join(command)}` failed with exit code {process.returncode}: {reason}")
    return output
