"""Secrets, from the variable `NAME`, the file that `NAME_FILE` names, or the output of the command `NAME_CMD`.

Docker and Kubernetes provide secrets as files, password managers as commands; Airflow's own settings have `_CMD` too.
An error repeats neither a value nor a path, since someone may have put the secret in place of the path.
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
    """Return the secret; raises :class:`SettingsError` if it is not set."""
    if (value := find_secret(name, environment)) is None:
        raise SettingsError(f"{name} is not set; set it, {name}_FILE or {name}_CMD")
    return value


def find_secret(name: str, environment: Mapping[str, str] = os.environ) -> str | None:
    """Return the secret without its final line break; None if all of its three variables are unset or empty.

    Raises :class:`SettingsError` if more than one variable is set, or if the file or the command yields nothing.
    """
    variables = [variable for variable in (name, f"{name}_FILE", f"{name}_CMD") if environment.get(variable)]
    if len(variables) > 1:
        raise SettingsError(f"set only one of {', '.join(variables)}")
    if not variables:
        return None
    (variable,) = variables
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
    except ValueError:  # its message quotes bytes of the file
        raise SettingsError(f"{variable}: the file that it names is not a text file") from None


def _read_output(variable: str, command: str) -> str:
    """Return what the command prints; like Airflow's `_CMD` settings, it runs without a shell."""
    try:
        words = shlex.split(command)
        process = subprocess.run(words, stdout=subprocess.PIPE, text=True, timeout=_COMMAND_SECONDS, check=True)
    except subprocess.CalledProcessError as error:
        raise SettingsError(f"{variable}: the command failed with exit code {error.returncode}") from None
    except subprocess.TimeoutExpired:
        raise SettingsError(f"{variable}: the command did not finish within {_COMMAND_SECONDS} seconds") from None
    except OSError as error:
        raise SettingsError(f"{variable}: the command cannot be started: {error.strerror}") from None
    except ValueError:  # an unclosed quote, or output that is not text
        raise SettingsError(f"{variable}: the command has an unclosed quote, or its output is not text") from None
    return process.stdout
