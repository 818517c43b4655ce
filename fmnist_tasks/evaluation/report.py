"""The HTML report of a run and the model card of a release: one self-contained file each."""

from __future__ import annotations

import base64
from typing import Any

from fmnist_tasks.settings import INCLUDE
from fmnist_tasks.templates import environment


def render_report(title: str, records: dict[str, dict[str, Any]], pictures: dict[str, bytes]) -> bytes:
    """A page with every stage of the run so far; records by step name, PNG pictures by name."""
    embedded = {name: f"data:image/png;base64,{base64.b64encode(png).decode()}" for name, png in pictures.items()}
    results = {step: record["result"] for step, record in records.items() if "result" in record}
    return _render("report.html", title=title, records=records, results=results, pictures=embedded)


def render_card(facts: dict[str, Any]) -> bytes:
    """The model card: what the model is for, what it was made from and how well it does; facts as in the manifest."""
    return _render("model_card.md", **facts)


def _render(template: str, **context: Any) -> bytes:
    return environment(INCLUDE / "templates").get_template(template).render(**context).encode(errors="replace")
