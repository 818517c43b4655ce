"""The model card names what its model confuses, whatever the dataset."""

from __future__ import annotations

import pytest

from fmnist_tasks.evaluation.report import render_card
from tests.support.documents import make_dataset, make_facts, make_metrics

CLASSES = ("shirt", "bag", "boot")


@pytest.mark.parametrize(
    ("name", "present", "absent"),
    [
        ("fashion-mnist", "It confuses shirts, T-shirts, pullovers and coats most", "bag and boot"),
        ("shapes", "It confuses\nbag and boot most", "light on black"),
    ],
)
def test_the_most_confused_classes_are_those_of_the_dataset(name: str, present: str, absent: str) -> None:
    metrics, dataset = make_metrics(CLASSES), make_dataset(classes=CLASSES)
    confusion = [[5, 1, 0], [1, 3, 2], [0, 1, 5]]
    metrics = metrics.model_copy(update={"test": metrics.test.model_copy(update={"confusion": confusion})})
    facts = make_facts(metrics=metrics, classes=list(CLASSES), dataset=dataset.model_copy(update={"name": name}))
    card = render_card("v1", facts).decode()
    assert present in card
    assert absent not in card
