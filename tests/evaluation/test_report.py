"""The model card names what its model confuses, whatever the dataset."""

from __future__ import annotations

from fmnist_tasks.evaluation.report import render_card
from tests.support.documents import make_dataset, make_facts, make_metrics

CLASSES = ("shirt", "bag", "boot")


def test_the_most_confused_classes_and_the_description_are_those_of_the_dataset() -> None:
    metrics, dataset = make_metrics(CLASSES), make_dataset(classes=CLASSES)
    confusion = [[5, 1, 0], [1, 3, 2], [0, 1, 5]]
    metrics = metrics.model_copy(update={"test": metrics.test.model_copy(update={"confusion": confusion})})
    dataset = dataset.model_copy(update={"image_description": "one garment, light on black"})
    card = " ".join(
        render_card("v1", make_facts(metrics=metrics, classes=list(CLASSES), dataset=dataset)).decode().split()
    )
    assert "It confuses bag and boot most" in card
    assert "prepared like those of the dataset: one garment, light on black." in card
