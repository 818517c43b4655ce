"""The report of a run (HTML) and the model card of a release (Markdown): one self-contained file each."""

from __future__ import annotations

import base64
from typing import Any

from fmnist_tasks.schemas.releases import ReleaseFacts
from fmnist_tasks.schemas.runs import Result, StepRecord
from fmnist_tasks.settings import INCLUDE
from fmnist_tasks.templates import make_environment


def render_report(
    title: str, records: dict[str, StepRecord], results: dict[str, Result], pictures: dict[str, bytes]
) -> bytes:
    """The report of a run as UTF-8 HTML; records and results are by step name, figures (PNG) by their name."""
    embedded = {name: f"data:image/png;base64,{base64.b64encode(png).decode()}" for name, png in pictures.items()}
    return _render("report.html", title=title, records=records, results=results, pictures=embedded)


def render_card(version: str, facts: ReleaseFacts) -> bytes:
    """The model card of a release as UTF-8 Markdown."""
    return _render("model_card.md", version=version, **dict(facts))


def _render(template: str, **context: Any) -> bytes:
    return make_environment(INCLUDE / "templates").get_template(template).render(**context).encode(errors="replace")
