"""Opens the store of this process, or the one that a URI names."""

from __future__ import annotations

import os
import re
from pathlib import Path
from urllib.parse import unquote_to_bytes

from fmnist_tasks.errors import SettingsError
from fmnist_tasks.registry.folder import FolderStore
from fmnist_tasks.registry.scoped import ScopedStore
from fmnist_tasks.registry.signing_keys import read_keys
from fmnist_tasks.registry.store import Store
from fmnist_tasks.settings import read_store_uri


def open_default_store(dataset: str = "") -> Store:
    """Return the store that `FMNIST_STORE` names, or the part of it that belongs to a dataset.

    The default dataset, without a name, has the store's own keys. Raises like :func:`open_store`.
    """
    store = open_store(read_store_uri())
    return ScopedStore(store, dataset) if dataset else store


def open_store(uri: str) -> Store:
    """Return the store that a URI names, with the keys of this process; neither reads nor writes it.

    Raises :class:`SettingsError` for an invalid URI, or unusable credentials or keys.
    """
    store = _make_store(uri)
    store.keys = read_keys()
    return store


def _make_store(uri: str) -> Store:
    if uri[:5].lower() == "s3://":
        from fmnist_tasks.registry.s3 import S3Store
        from fmnist_tasks.registry.s3_address import open_bucket

        return S3Store(open_bucket(uri))
    if match := re.fullmatch(r"(?i)file:(?://|(?!//))(/[^?#]+)", uri):
        path = os.fsdecode(unquote_to_bytes(match[1]))
        if not path.startswith("/~") and "\0" not in path:
            return FolderStore(Path(path))
    raise SettingsError(
        "FMNIST_STORE does not name a store; use file:///folder with the whole path (no ~, and % ? # as %25 %3F %23), "
        "or s3://bucket?endpoint=https://host:port without credentials"
    )
