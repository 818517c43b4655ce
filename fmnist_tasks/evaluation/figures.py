"""Figures for the report, each as the bytes of a PNG file."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
from matplotlib import rcParams
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from fmnist_tasks.schemas.evaluation import Calibration, SelectivePrediction
from fmnist_tasks.schemas.runs import Curves

_EXAMPLES = 8  # images of each class
_COLUMNS = 10  # images in a row of predictions
_CAPTION = 0.3  # height of two lines of text above an image, as a share of its height
rcParams["text.parse_math"] = False  # names of classes may contain $
_BLUE, _ORANGE, _GREY = "#3465a4", "#ce5c00", "#888a85"


def draw_class_examples(images: np.ndarray, labels: np.ndarray, classes: list[str]) -> bytes:
    """The first images of each class, from images (N, H, W), uint8, and labels (N,), uint8; one row per class."""
    rows = [images[np.flatnonzero(labels == label)[:_EXAMPLES]] for label in range(len(classes))]
    figure = Figure(figsize=(5.8, 0.6 * len(classes)), layout="constrained")
    axes = figure.subplots()
    _draw_sheet(axes, rows, _EXAMPLES)
    axes.set_yticks(np.arange(len(classes)) + 0.5, classes, fontsize=9)
    return _encode_png(figure)


def draw_learning_curves(curves: Curves, title: str) -> bytes:
    """Training and validation loss and accuracy by epoch."""
    figure = Figure(figsize=(8, 3), layout="constrained")
    for axes, name in zip(figure.subplots(1, 2), ("loss", "accuracy"), strict=True):
        training, validation = getattr(curves, name), getattr(curves, f"val_{name}")
        epochs = range(1, len(training) + 1)
        axes.plot(epochs, training, "o-", color=_BLUE, markersize=3, label="training")
        axes.plot(epochs, validation, "o-", color=_ORANGE, markersize=3, label="validation")
        axes.set_xlabel("epoch")
        axes.set_ylabel(name)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
        axes.legend(frameon=False)
    figure.suptitle(title)
    return _encode_png(figure)


def draw_confusion_matrix(matrix: list[list[int]], classes: list[str]) -> bytes:
    """The confusion matrix with a count in each cell; the colour is the share of the true class."""
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
    return _encode_png(figure)


def draw_reliability(calibration: Calibration, selective: SelectivePrediction) -> bytes:
    """A reliability diagram, and the accuracy by coverage."""
    figure = Figure(figsize=(8, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    confidence, accuracy = ([getattr(row, name) for row in calibration.bins] for name in ("confidence", "accuracy"))
    most = max(row.images for row in calibration.bins)
    left.plot([0, 1], [0, 1], color=_GREY, linewidth=0.8)
    left.plot(confidence, accuracy, color=_BLUE, linewidth=1)
    left.scatter(confidence, accuracy, s=[4 + 30 * (row.images / most) ** 0.5 for row in calibration.bins], color=_BLUE)
    left.set_xlabel("confidence")
    left.set_ylabel("accuracy")
    left.set_title(f"expected calibration error {calibration.error:.4f}", fontsize=10)
    right.plot(*zip(*selective.curve, strict=True), color=_BLUE)
    right.axhline(selective.accuracy, color=_GREY, linewidth=0.8)
    right.axvline(selective.coverage, color=_GREY, linewidth=0.8)
    right.set_xlabel("coverage, most confident first")
    right.set_ylabel("accuracy")
    right.set_title(f"coverage {selective.coverage:.1%} at {selective.accuracy:.0%} accuracy", fontsize=10)
    for axes in (left, right):
        axes.grid(alpha=0.3)
    return _encode_png(figure)


def draw_predictions(
    truths: Sequence[str], predictions: Sequence[str], images: Sequence[np.ndarray] | np.ndarray, classes: Sequence[str]
) -> bytes:
    """Images (N, H, W), uint8, with true and predicted classes; a prediction that is not a class is grey."""
    rows = [images[first : first + _COLUMNS] for first in range(0, len(truths), _COLUMNS)]
    figure = Figure(figsize=(10, 1.35 * len(rows)), layout="constrained")
    axes = figure.subplots()
    top = _draw_sheet(axes, rows, _COLUMNS, _CAPTION)
    axes.set_yticks([])
    for number, (truth, prediction) in enumerate(zip(truths, predictions, strict=True)):
        row, column = divmod(number, _COLUMNS)
        colour = _GREY if prediction not in classes else _BLUE if prediction == truth else _ORANGE
        text = f"{truth}\n→ {prediction}"
        axes.text(column + 0.5, row + top, text, ha="center", va="bottom", fontsize=6, color=colour)
    return _encode_png(figure)


def _draw_sheet(
    axes: Axes, rows: Sequence[Sequence[np.ndarray] | np.ndarray], columns: int, caption: float = 0.0
) -> float:
    """Draw rows of images, uint8 (H, W) or (H, W, 3), as one picture with a cell of 1 x 1 for each.

    An axes for each would take seconds.

    `caption` is the height that stays free above an image, as a share of the image's height. Returns the position of
    the image's top edge, as a share of the cell.
    """
    shape: tuple[int, ...] = next(image.shape for images in rows for image in images)
    (image_height, image_width), colours = shape[:2], shape[2:]
    above, gap = round(caption * image_height), 2
    sheet = np.full((len(rows), above + image_height + gap, columns, image_width + gap, *colours), 255, np.uint8)
    for row, images in enumerate(rows):
        for column, image in enumerate(images):
            sheet[row, above : above + image_height, column, :image_width] = image
    height, width = above + image_height + gap, image_width + gap
    extent = (0, columns, len(rows), 0)
    pixels = sheet.reshape(len(rows) * height, columns * width, *colours)
    axes.imshow(pixels, cmap="gray", vmin=0, vmax=255, extent=extent, aspect=height / width)
    axes.set_xticks([])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    return above / height


def _encode_png(figure: Figure) -> bytes:
    FigureCanvasAgg(figure)
    buffer = io.BytesIO()
    # Without metadata, the same figure gives the same bytes.
    figure.savefig(buffer, format="png", dpi=110, metadata={"Software": None})
    return buffer.getvalue()
