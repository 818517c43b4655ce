"""Pictures for the report, each as the bytes of a PNG file."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

_SAMPLES = 8  # images of each class
_COLUMNS = 10  # images in a row of predictions
_HEAD = 0.3  # of an image's height, for two lines of text above it
_BLUE, _ORANGE, _GREY = "#3465a4", "#ce5c00", "#888a85"


def class_samples(images: np.ndarray, labels: np.ndarray, classes: list[str]) -> bytes:
    """The first images of every class, one row a class."""
    rows = [images[np.flatnonzero(labels == label)[:_SAMPLES]] for label in range(len(classes))]
    figure = Figure(figsize=(5.8, 0.6 * len(classes)), layout="constrained")
    axes = figure.subplots()
    _sheet(axes, rows, _SAMPLES)
    axes.set_yticks(np.arange(len(classes)) + 0.5, classes, fontsize=9)
    return _png(figure)


def learning_curves(curves: dict[str, list[float]], title: str) -> bytes:
    """Loss and accuracy of training and validation over epochs."""
    figure = Figure(figsize=(8, 3), layout="constrained")
    for axes, name in zip(figure.subplots(1, 2), ("loss", "accuracy"), strict=True):
        epochs = range(1, len(curves[name]) + 1)
        axes.plot(epochs, curves[name], "o-", color=_BLUE, markersize=3, label="training")
        axes.plot(epochs, curves[f"val_{name}"], "o-", color=_ORANGE, markersize=3, label="validation")
        axes.set_xlabel("epoch")
        axes.set_ylabel(name)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
        axes.legend(frameon=False)
    figure.suptitle(title)
    return _png(figure)


def confusion(matrix: list[list[int]], classes: list[str]) -> bytes:
    """The confusion matrix with a count in every cell; colour is the share of the true class."""
    counts = np.array(matrix)
    shares = counts / np.maximum(1, counts.sum(axis=1, keepdims=True))
    figure = Figure(figsize=(6.4, 5.6), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    ticks = range(len(classes))
    axes.set_xticks(ticks, classes, rotation=45, ha="right", fontsize=8)
    axes.set_yticks(ticks, classes, fontsize=8)
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class")
    for (row, column), count in np.ndenumerate(counts):
        shade = "white" if shares[row, column] > 0.5 else "black"
        axes.text(column, row, str(count), ha="center", va="center", fontsize=7, color=shade)
    figure.colorbar(image, ax=axes, label="share of the true class", shrink=0.8)
    return _png(figure)


def reliability(found: dict[str, Any], abstaining: dict[str, Any]) -> bytes:
    """Accuracy against stated confidence, and accuracy against the share of images that are answered."""
    figure = Figure(figsize=(8, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    confidence = [row["confidence"] for row in found["bins"]]
    sizes = [4 + 30 * (row["images"] / max(row["images"] for row in found["bins"])) ** 0.5 for row in found["bins"]]
    left.plot([0, 1], [0, 1], color=_GREY, linewidth=0.8)
    left.plot(confidence, [row["accuracy"] for row in found["bins"]], color=_BLUE, linewidth=1)
    left.scatter(confidence, [row["accuracy"] for row in found["bins"]], s=sizes, color=_BLUE)
    left.set_xlabel("stated probability")
    left.set_ylabel("share that is right")
    left.set_title(f"expected calibration error {found['error']:.4f}", fontsize=10)
    right.plot(*zip(*abstaining["curve"], strict=True), color=_BLUE)
    right.axhline(abstaining["accuracy"], color=_GREY, linewidth=0.8)
    right.axvline(abstaining["coverage"], color=_GREY, linewidth=0.8)
    right.set_xlabel("share of the images answered, surest first")
    right.set_ylabel("accuracy")
    right.set_title(f"{abstaining['coverage']:.1%} answered with {abstaining['accuracy']:.0%} right", fontsize=10)
    for axes in (left, right):
        axes.grid(alpha=0.3)
    return _png(figure)


def predictions(rows: list[dict[str, Any]], images: Sequence[np.ndarray] | np.ndarray) -> bytes:
    """Images with what each is said to be, `truth`, and what is made of it, `answer`; one row an image."""
    lines = [images[first : first + _COLUMNS] for first in range(0, len(rows), _COLUMNS)]
    figure = Figure(figsize=(10, 1.35 * len(lines)), layout="constrained")
    axes = figure.subplots()
    head = _sheet(axes, lines, _COLUMNS, _HEAD)
    axes.set_yticks([])
    for number, row in enumerate(rows):
        line, column = divmod(number, _COLUMNS)
        colour = _GREY if row["answer"] == "not clothing" else _BLUE if row["answer"] == row["truth"] else _ORANGE
        text = f"{row['truth']}\n→ {row['answer']}"
        axes.text(column + 0.5, line + head, text, ha="center", va="bottom", fontsize=6, color=colour)
    return _png(figure)


def _sheet(axes: Axes, rows: Sequence[Sequence[np.ndarray] | np.ndarray], columns: int, head: float = 0.0) -> float:
    """Draw rows of images as one picture, in which each has a field of 1 x 1; axes for each would take seconds.

    `head` is the height to leave free above an image as a share of its own; returned as a share of the field.
    """
    side = next(len(image) for images in rows for image in images)
    above, gap = round(head * side), 2
    sheet = np.full((len(rows), above + side + gap, columns, side + gap), 255, np.uint8)
    for line, images in enumerate(rows):
        for column, image in enumerate(images):
            sheet[line, above : above + side, column, :side] = image
    height, width = sheet.shape[1], sheet.shape[3]
    extent = (0, columns, len(rows), 0)
    pixels = sheet.reshape(len(rows) * height, columns * width)
    axes.imshow(pixels, cmap="gray", vmin=0, vmax=255, extent=extent, aspect=height / width)
    axes.set_xticks([])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    return above / height


def _png(figure: Figure) -> bytes:
    FigureCanvasAgg(figure)
    buffer = io.BytesIO()
    # Without the metadata the same figure gives the same bytes.
    figure.savefig(buffer, format="png", dpi=110, metadata={"Software": None})
    return buffer.getvalue()
