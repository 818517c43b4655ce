"""The Jinja environment of all templates: undefined names are errors, HTML is escaped."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from functools import cache
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape


@cache  # compiling a template takes longer than rendering it
def make_environment(folder: Path) -> Environment:
    """The templates of a folder, with the filters `percent`, `day`, `minute` and `release_name`."""
    environment = Environment(
        loader=FileSystemLoader(folder),
        autoescape=select_autoescape(["html"]),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["percent"] = lambda share: f"{share:.2%}"
    environment.filters["day"] = lambda time: f"{_read_time(time):%-d %b %Y}"
    environment.filters["minute"] = lambda time: f"{_read_time(time):%-d %b %Y, %H:%M} UTC"
    environment.filters["release_name"] = shorten_version
    return environment


def shorten_version(version: str) -> str:
    """A version for display: 20261123T020000Z-7f27d7eb becomes "23 Nov 2026 · 7f27d7eb"; other versions stay as is."""
    if not re.fullmatch(r"\d{8}T\d{6}Z-[0-9a-f]{8}", version):
        return version
    moment, _, digest = version.partition("-")
    return f"{datetime.strptime(moment, '%Y%m%dT%H%M%S%z'):%-d %b %Y} · {digest}"


def _read_time(time: str | datetime) -> datetime:
    return (datetime.fromisoformat(time) if isinstance(time, str) else time).astimezone(UTC)
