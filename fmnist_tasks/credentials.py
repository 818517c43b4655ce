"""Secrets, wherever the operator keeps them: `NAME` itself, or the file in `NAME_FILE`, or what `NAME_CMD` prints.

Secrets of Docker and Kubernetes are files, a password manager is a command; Airflow's own settings know `_CMD` too. No
error repeats a value, nor a path: someone may have put the secret in its place.
"""

from __future__ import annotations

import os
import shlex
import subprocess
from collections.abc import Mapping
from pathlib import Path

from fmnist_tasks.errors import SettingsError

_COMMAND_SECONDS = 30


def read_secret(name: str, environment: Mapping[str, str] = os.environ) -> str:
    """The secret of that name; raises :class:`SettingsError` if there is none."""
    if (value := find_secret(name, environment)) is None:
        raise SettingsError(f"{name} is not set; set it, {name}_FILE or {name}_CMD")
    return value


def find_secret(name: str, environment: Mapping[str, str] = os.environ) -> str | None:
    """The secret of that name, without the line break at its end; None if no variable names it, or all are empty.

    Raises :class:`SettingsError` if two variables name it, or the one that does leads to nothing.
    """
    given = [variable for variable in (name, f"{name}_FILE", f"{name}_CMD") if environment.get(variable)]
    if len(given) > 1:
        raise SettingsError(f"set only one of {', '.join(given)}")
    if not given:
        return None
    (variable,) = given
    if variable == name:
        return environment[name]
    is_file = variable.endswith("_FILE")
    value = (_read_file if is_file else _read_output)(variable, environment[variable]).rstrip("\r\n")
    if not value:
        raise SettingsError(f"{variable}: {'the file is empty' if is_file else 'the command printed nothing'}")
    return value


def _read_file(variable: str, path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError as error:
        raise SettingsError(f"{variable}: the file that it names cannot be read: {error.strerror}") from None
    except ValueError:  # which quotes bytes of it
        raise SettingsError(f"{variable}: the file that it names is not a text file") from None


def _read_output(variable: str, command: str) -> str:
    """What the command prints; it is run without a shell, as Airflow runs those of its own settings."""
    try:
        words = shlex.split(command)
        done = subprocess.run(words, stdout=subprocess.PIPE, text=True, timeout=_COMMAND_SECONDS, check=True)
    except subprocess.CalledProcessError as error:
        raise SettingsError(f"{variable}: the command failed with exit code {error.returncode}") from None
    except subprocess.TimeoutExpired:
        raise SettingsError(f"{variable}: the command did not finish within {_COMMAND_SECONDS} seconds") from None
    except OSError as error:
        raise SettingsError(f"{variable}: the command cannot be started: {error.strerror}") from None
    except ValueError:  # an open quote, or output that is no text
        raise SettingsError(f"{variable}: the command has an unclosed quote, or its output is not text") from None
    return done.stdout
