"""The Review view: images that were set aside, newest batch first, with what users decided about them."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from fmnist_tasks.data.review import describe_decision, list_review_images, read_pixels
from fmnist_tasks.page.inference import encode_picture
from fmnist_tasks.registry.store import Store

PAGE_SIZE = 60  # images


@dataclass(frozen=True)
class ReviewRow:
    """An image of the view."""

    id: str
    batch: str
    accepted: datetime
    label: str
    suggested: str | None
    reasons: list[str]
    picture: str  # a data URI
    near_duplicate: str | None  # also a data URI; None if there is none
    decision: str  # a sentence; empty if nobody has decided


@dataclass(frozen=True)
class ReviewPage:
    """Some of the images in the view."""

    rows: list[ReviewRow]
    waiting: int
    decided: int
    number: int  # of the page, from 1
    pages: int


def read_review_page(store: Store, classes: list[str], number: int, *, decided: bool) -> ReviewPage:
    """Read one page of the images that wait, or of those about which somebody has decided."""
    images = list_review_images(store)
    groups = {
        False: [image for image in images if image.decision is None],
        True: [image for image in images if image.decision],
    }
    chosen = groups[decided]
    pages = max(1, -(-len(chosen) // PAGE_SIZE))
    number = min(max(number, 1), pages)
    shown = chosen[(number - 1) * PAGE_SIZE : number * PAGE_SIZE]
    shards = {image.arrays.sha256: read_pixels(store, image.arrays) for image in shown}
    rows = []
    for image in shown:
        pixels, near_duplicates = shards[image.arrays.sha256]
        entry = image.entry
        rows.append(
            ReviewRow(
                id=image.id,
                batch=image.batch.name,
                accepted=image.batch.accepted,
                label=classes[entry.label],
                suggested=None if entry.suggested is None else classes[entry.suggested],
                reasons=entry.reasons,
                picture=encode_picture(pixels[image.position]),
                near_duplicate=encode_picture(near_duplicates[image.position]) if entry.has_near_duplicate else None,
                decision=describe_decision(image, classes),
            )
        )
    return ReviewPage(rows, len(groups[False]), len(groups[True]), number, pages)
