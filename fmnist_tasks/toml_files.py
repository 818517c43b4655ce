"""Settings in TOML files: the policy of the gates, and declarations of datasets."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

from fmnist_tasks.errors import SettingsError

_MAX_BYTES = 1 << 20


def read_toml(path: Path, setting: str) -> dict[str, Any]:
    """The content of a file that a setting names; raises :class:`SettingsError` with setting, path and fault."""
    try:
        if path.exists() and not path.is_file():  # reading a pipe would not end
            raise SettingsError(f"{setting}: {path} is not a file")
        with path.open("rb") as file:
            content = file.read(_MAX_BYTES + 1)
        if len(content) > _MAX_BYTES:
            raise SettingsError(f"{setting}: {path} has more than {_MAX_BYTES:,} bytes, so it is not such a file")
        return tomllib.loads(content.decode("utf-8-sig"))  # editors on Windows write a byte-order mark
    except OSError as error:
        raise SettingsError(f"{setting}: {path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise SettingsError(f"{setting}: {path} cannot be read: it is not a text file") from error
    except (ValueError, RecursionError) as error:
        raise SettingsError(f"{setting}: {path} is not valid TOML: {error}") from error
