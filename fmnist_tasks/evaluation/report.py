"""The report of a run (HTML) and the model card of a release (Markdown): one self-contained file each."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from itertools import combinations
from typing import Any

from fmnist_tasks.schemas.evaluation import Classification
from fmnist_tasks.schemas.releases import ReleaseFacts
from fmnist_tasks.schemas.runs import Result, StepRecord
from fmnist_tasks.settings import INCLUDE
from fmnist_tasks.templates import make_environment


def render_report(
    title: str,
    records: dict[str, StepRecord],
    results: dict[str, Result],
    pictures: dict[str, bytes],
    faults: Sequence[str] = (),
) -> bytes:
    """The report of a run as UTF-8 HTML; records and results are by step name, figures (PNG) by their name.

    `faults` are the reasons why other records or figures cannot be shown.
    """
    embedded = {name: f"data:image/png;base64,{base64.b64encode(png).decode()}" for name, png in pictures.items()}
    return _render("report.html", title=title, records=records, results=results, pictures=embedded, faults=faults)


def render_card(version: str, facts: ReleaseFacts) -> bytes:
    """The model card of a release as UTF-8 Markdown."""
    most_confused = _find_most_confused_classes(facts.metrics.test)
    return _render("model_card.md", version=version, most_confused=most_confused, **dict(facts))


def _find_most_confused_classes(test: Classification) -> tuple[str, str]:
    """The two classes of which the most images are classified as the other one."""
    counts = test.confusion
    pair = max(
        combinations(range(len(counts)), 2), key=lambda pair: counts[pair[0]][pair[1]] + counts[pair[1]][pair[0]]
    )
    first, second = (test.classes[index].name for index in pair)
    return first, second


def _render(template: str, **context: Any) -> bytes:
    return make_environment(INCLUDE / "templates").get_template(template).render(**context).encode(errors="replace")
