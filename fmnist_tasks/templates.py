"""Jinja's environment for everything that people read: a name that is missing is an error, HTML is escaped."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape


@cache  # to compile a template takes longer than to fill it in
def environment(folder: Path) -> Environment:
    """The templates of a folder; `percent` writes a share as such."""
    found = Environment(
        loader=FileSystemLoader(folder),
        autoescape=select_autoescape(["html"]),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.filters["percent"] = lambda share: f"{share:.2%}"
    return found
