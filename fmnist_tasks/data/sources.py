"""Where the dataset's files come from, in order: cache, a folder of the user's, the system's folder, the web.

Every file is checked by size and SHA-256 before use, whoever served it.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import subprocess
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
from rich.progress import wrap_file

from fmnist_tasks.data.declaration import ROLES, Declaration, File
from fmnist_tasks.data.idx import gunzip, parse_idx
from fmnist_tasks.errors import DataError
from fmnist_tasks.settings import Settings

log = logging.getLogger(__name__)

SYSTEM_FOLDER = Path("/usr/share/datasets")
_WEB_TIMEOUT = 20  # seconds without a byte


def load_base(declaration: Declaration, settings: Settings) -> tuple[dict[str, np.ndarray], str]:
    """Arrays by role (see ROLES) and the source that served them.

    Images are uint8 (N, 28, 28), labels uint8 (N,), though only size and digest are checked here. Raises
    :class:`DataError` with the reason of every source if none serves all four files intact.
    """
    refusals = []
    for source, fetch in _sources(declaration, settings):
        try:
            contents = {role: _verified(fetch(declaration.files[role]), declaration.files[role]) for role in ROLES}
        except (DataError, OSError) as error:
            log.info("dataset source %s does not serve: %s", source, error)
            refusals.append(f"  {source}: {error}")
        else:
            return {role: parse_idx(contents[role], declaration.files[role].name) for role in ROLES}, source
    raise DataError(
        f"{declaration.title}: no source has its four files intact:\n" + "\n".join(refusals) + "\n"
        "put intact files into a folder and name it in FMNIST_DATA_DIR, or run `make setup` again"
    )


def install_debian_package(package: str) -> None:
    """Install the dataset's package with apt; raises :class:`DataError` with the one command to type if it cannot."""
    command = ["apt-get", "install", "--yes", "--quiet", "--no-install-recommends", package]
    if not shutil.which("apt-get"):
        raise DataError("this machine has no apt-get to install the dataset with")
    by_hand = f"type: sudo apt-get update && sudo apt-get install {package}"
    if os.geteuid() != 0:
        if not shutil.which("sudo"):
            raise DataError(f"only root can install the dataset here; {by_hand}")
        command = ["sudo", "--non-interactive", *command]
    update = [*command[: command.index("apt-get")], "apt-get", "update", "--quiet"]
    try:
        subprocess.run(update, check=True)
        subprocess.run(command, check=True)
    except subprocess.CalledProcessError as error:
        raise DataError(f"`{' '.join(error.cmd)}` failed with exit code {error.returncode}; {by_hand}") from error


def _sources(declaration: Declaration, settings: Settings) -> Iterator[tuple[str, Callable[[File], bytes]]]:
    cache = settings.cache / declaration.name
    for folder in (cache, settings.data_dir, SYSTEM_FOLDER / declaration.name):
        if folder:
            yield str(folder), partial(_read, folder)
    if declaration.url:
        yield declaration.url, partial(_download, declaration.url, cache)


def _read(folder: Path, file: File) -> bytes:
    return (folder / file.name).read_bytes()


def _verified(data: bytes, file: File) -> bytes:
    """Content of the file after gunzip; raises :class:`DataError` unless size and SHA-256 are as declared."""
    content = gunzip(data, file.name, file.bytes)
    if len(content) != file.bytes:
        raise DataError(f"{file.name}: holds {len(content):,} bytes, expected {file.bytes:,}; delete the file")
    sha256 = hashlib.sha256(content).hexdigest()
    if sha256 != file.sha256:
        raise DataError(f"{file.name}: SHA-256 is {sha256}, expected {file.sha256}; delete the file")
    return content


def _download(folder: str, cache: Path, file: File) -> bytes:
    """Fetch one file over HTTPS with a progress bar; it enters the cache only when it is intact."""
    url, target = folder + file.name, cache / file.name
    try:
        with urllib.request.urlopen(url, timeout=_WEB_TIMEOUT) as answer:  # noqa: S310 - https only, see declaration
            size = int(answer.headers.get("Content-Length") or 0) or None
            if size and size > 2 * file.bytes:
                raise DataError(f"{url}: offers {size:,} bytes, more than the file can have")
            with wrap_file(answer, total=size or file.bytes, description=file.name) as body:
                data: bytes = body.read(2 * file.bytes)
    except urllib.error.URLError as error:
        raise DataError(f"{url}: {error.reason}") from error
    _verified(data, file)
    target.parent.mkdir(parents=True, exist_ok=True)
    beside = target.with_name(f"{target.name}.{os.getpid()}")
    beside.write_bytes(data)
    beside.replace(target)
    return data
