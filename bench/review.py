"""What the checks of single images find: `python -m bench.review`, a quarter of an hour on two cores.

A champion is trained with the profile `standard` on the first 50,000 training images of Fashion-MNIST; batches are
drawn from the other 10,000. Each row of the table is the mean of several draws.
"""

from __future__ import annotations

import os
import statistics
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from bench.encodings import ENCODINGS, LARGE_ENCODINGS
from bench.processes import run_command
from fmnist_tasks.data.checks import Sample, check_samples
from fmnist_tasks.data.dataset import load_images, save_images
from fmnist_tasks.data.image_files import decode_image_file
from fmnist_tasks.registry.store import Store
from fmnist_tasks.registry.stores import open_default_store
from fmnist_tasks.run_report import read_run
from fmnist_tasks.schemas.data import NewBatch
from fmnist_tasks.schemas.runs import IngestResult
from fmnist_tasks.serving.release import classify_images, open_release, require_champion
from fmnist_tasks.steps.examination import Examination, Examiner, KnownImages
from fmnist_tasks.steps.gates import read_valid_policy
from tests.support.screenshots.history import Images, read_images, write_first_dataset

TRAINING_IMAGES = 50_000
RUN_ID = "bench"

Arrays = tuple[np.ndarray, np.ndarray]  # images uint8 (N, 28, 28), labels (N,)


@dataclass(frozen=True)
class Bench:
    """A store with a champion, and images that it has not seen."""

    store: Store
    images: Images

    @cached_property
    def ingestion(self) -> IngestResult:
        """The dataset of the run that trained the champion."""
        result = read_run(self.store, RUN_ID).results["ingest"]
        assert isinstance(result, IngestResult)
        return result

    @cached_property
    def splits(self) -> tuple[Arrays, Arrays]:
        """Training and test images of the dataset."""
        dataset = self.ingestion.dataset
        return load_images(self.store, dataset.base), load_images(self.store, dataset.test)

    @cached_property
    def examiner(self) -> Examiner:
        """Examines the batches, with the default policy."""
        return Examiner(self.store, self.ingestion.dataset, read_valid_policy("", {}), *self.splits)

    @cached_property
    def known(self) -> KnownImages:
        """The images that a batch must not repeat."""
        training, test = self.splits
        return KnownImages(test[0], training[0])

    @property
    def unseen(self) -> Arrays:
        """The images that batches are drawn from."""
        images, labels = self.images.train
        return images[TRAINING_IMAGES:], labels[TRAINING_IMAGES:]

    def draw(self, random: np.random.Generator, count: int, label: int | None = None) -> Arrays:
        """Draw images without repetition, of one class or of all."""
        images, labels = self.unseen
        rows = np.arange(len(labels)) if label is None else np.flatnonzero(labels == label)
        chosen = random.choice(rows, min(count, len(rows)), replace=False)
        return images[chosen], labels[chosen].copy()

    def examine(self, images: np.ndarray, labels: np.ndarray) -> tuple[Examination, np.ndarray]:
        """Return the examination of a batch, and which images are set aside, bool (N,).

        Nobody knows that of a batch that is rejected as a whole: then all are counted.
        """
        image_set = save_images(self.store, "train", "batch", images, labels)
        examination, continues = self.examiner.examine(
            NewBatch(name="batch", files=[], image_set=image_set), images, labels
        )
        return examination, np.ones(len(labels), bool) if examination.quarantine_reason else ~continues


def train_champion(home: Path, images: Images) -> Bench:
    """Run all steps in a temporary home; return its store and the images."""
    write_first_dataset(home / "data", images, TRAINING_IMAGES)
    os.environ |= {
        "FMNIST_HOME": str(home),
        "FMNIST_STORE": "",
        "FMNIST_DATASET": str(home / "data" / "dataset.toml"),
        "FMNIST_DATA_DIR": str(home / "data"),
    }
    run_command("fmnist", "ingest", "--run", RUN_ID)
    for step in ("validate", "train", "evaluate", "fine-tune", "evaluate", "publish"):
        run_command("fmnist", step)
    return Bench(open_default_store(), images)


def find_confusions(bench: Bench) -> dict[int, int]:
    """For each class, the class that the champion confuses it with most, on the test images."""
    manifest = open_release(bench.store, require_champion(bench.store).version).manifest
    confusion = np.array(manifest.metrics.test.confusion)
    np.fill_diagonal(confusion, -1)
    return dict(enumerate(confusion.argmax(axis=1).tolist()))


def measure_random_labels(bench: Bench, random: np.random.Generator) -> dict[str, float]:
    """Change 2% of the labels of 5,000 images; return shares of changed and of other images that are set aside."""
    images, labels = bench.draw(random, 5_000)
    changed = random.choice(len(labels), 100, replace=False)
    labels[changed] = (labels[changed] + random.integers(1, 10, 100)) % 10
    _, set_aside = bench.examine(images, labels)
    return {
        "random labels (2% of 5,000)": float(set_aside[changed].mean()),
        "good images beside them": float(np.delete(set_aside, changed).mean()),
    }


def measure_confused_labels(bench: Bench, random: np.random.Generator) -> dict[str, float]:
    """Relabel a tenth of a class as the likeliest confusion, in 5,000 images; one batch for each class."""
    shares = {}
    for label, other in find_confusions(bench).items():
        images, labels = bench.draw(random, 5_000)
        own = np.flatnonzero(labels == label)
        changed = random.choice(own, len(own) // 10, replace=False)
        labels[changed] = other
        _, set_aside = bench.examine(images, labels)
        names = bench.ingestion.dataset.classes
        shares[f"a tenth of {names[label]} as {names[other]}"] = float(set_aside[changed].mean())
    return {"a tenth of a class as its likeliest confusion, mean": statistics.mean(shares.values()), **shares}


def measure_noise(bench: Bench, random: np.random.Generator) -> dict[str, float]:
    """Put 10 noise images among 2,000."""
    images, labels = bench.draw(random, 2_000)
    images[:10] = random.integers(0, 256, (10, 28, 28))
    _, set_aside = bench.examine(images, labels)
    return {"noise (10 of 2,000)": float(set_aside[:10].mean())}


def measure_near_duplicates(bench: Bench, random: np.random.Generator) -> dict[str, float]:
    """Change 1,000 test images a little; the share with a near-duplicate among the known images."""
    images = bench.splits[1][0][random.choice(len(bench.splits[1][0]), 1_000, replace=False)]
    changes: dict[str, Callable[[np.ndarray], np.ndarray]] = {
        "one bit": lambda image: _flip_bit(image, random),
        "a shift by one pixel": lambda image: _shift(image, random),
        "a horizontal flip": lambda image: image[:, ::-1],
        "brightness, 3%": lambda image: np.round(image * 0.97).astype(np.uint8),
    }
    shares = {}
    for name, change in changes.items():
        changed = np.stack([change(image) for image in images])
        near_duplicates = bench.known.find_near_duplicates(changed)
        is_found = [known is not None and known.is_test for known in near_duplicates]
        shares[f"changed test images: {name}"] = statistics.mean(is_found)
    return shares


def measure_encodings(bench: Bench, random: np.random.Generator) -> dict[str, float]:
    """Encode 1,000 test images in each way (100 in large ones); the share whose answer is that of the plain image."""
    release = open_release(bench.store, require_champion(bench.store).version)
    image_format = release.manifest.dataset.image_format
    images = bench.splits[1][0][random.choice(len(bench.splits[1][0]), 1_000, replace=False)]
    expected = [row["answer"] for row in classify_images(release, images)]
    shares = {}
    for name, encode in {**ENCODINGS, **LARGE_ENCODINGS}.items():
        count = 100 if name in LARGE_ENCODINGS else len(images)
        decoded = [decode_image_file(encode(image), name, image_format).pixels for image in images[:count]]
        answers = [row["answer"] for row in classify_images(release, np.stack(decoded))]
        same = [answer == other for answer, other in zip(answers, expected, strict=False)]
        shares[f"same answer: {name}"] = statistics.mean(same)
    return shares


def measure_backdoor(bench: Bench, random: np.random.Generator) -> dict[str, float]:
    """Put a white square into a corner of 20 of 2,000 images, and give them all the label 0."""
    images, labels = bench.draw(random, 2_000)
    chosen = np.flatnonzero(labels != 0)[:20]
    images[chosen, 23:27, 23:27] = 255
    labels[chosen] = 0
    _, set_aside = bench.examine(images, labels)
    return {"backdoor (20 of 2,000)": float(set_aside[chosen].mean())}


def reject_clean_batches(bench: Bench, random: np.random.Generator, batches: int) -> tuple[dict[str, str], float]:
    """Check clean batches of 1 to 5,000 images, a quarter of them of one class.

    Returns the reason for each that is rejected, by the checks of single images or by those of the batch, and the share
    of images that are set aside.
    """
    dataset, policy = bench.ingestion.dataset, read_valid_policy("", {})
    declared, ((training, training_labels), (test, test_labels)) = bench.ingestion.declared, bench.splits
    rejected, sizes, counts = dict[str, str](), list[int](), list[int]()

    def examine_batches() -> Iterator[Sample]:
        for number in range(batches):
            size = int(np.exp(random.uniform(0, np.log(5_000))))
            images, labels = bench.draw(random, size, int(random.integers(10)) if number % 4 == 0 else None)
            examination, set_aside = bench.examine(images, labels)
            sizes.append(len(labels))
            counts.append(int(set_aside.sum()))
            if examination.quarantine_reason:
                rejected[f"batch {number}"] = examination.quarantine_reason
            elif not set_aside.all():
                yield Sample(f"batch {number}", images[~set_aside], labels[~set_aside], None)

    results, _ = check_samples(
        Sample("training", training, training_labels, declared["train"]),
        Sample("test", test, test_labels, declared["test"]),
        examine_batches(),
        dataset,
        policy.data,
    )
    for name, result in results.items():
        if failed := [f"{check.name}: {check.message}" for check in result.checks if not check.has_passed]:
            rejected[name] = "; ".join(failed)
    return rejected, sum(counts) / sum(sizes)


def main(
    draws: Annotated[int, typer.Option(min=1, help="Draws of each measurement.")] = 5,
    batches: Annotated[int, typer.Option(min=1, help="Clean batches.")] = 400,
) -> None:
    """Train the champion, and print the table."""
    console = Console(width=110)
    images = read_images()
    table = Table("set aside", "mean", "lowest", "highest", "draws", box=None, pad_edge=False)
    with tempfile.TemporaryDirectory() as folder:
        bench = train_champion(Path(folder), images)
        shares: dict[str, list[float]] = {}
        for draw in range(draws):
            random = np.random.default_rng(draw)
            measurements = (
                measure_random_labels,
                measure_confused_labels,
                measure_noise,
                measure_near_duplicates,
                measure_backdoor,
            )
            for measure in measurements:
                for name, share in measure(bench, random).items():
                    shares.setdefault(name, []).append(share)
                    console.print(f"draw {draw}, {name}: {share:.1%}")
        for name, share in measure_encodings(bench, np.random.default_rng(0)).items():
            shares[name] = [share]
            console.print(f"{name}: {share:.1%}")
        rejected, share = reject_clean_batches(bench, np.random.default_rng(0), batches)
    for name, values in shares.items():
        cells = (f"{value:.1%}" for value in (statistics.mean(values), min(values), max(values)))
        table.add_row(name, *cells, str(len(values)))
    console.print(table)
    console.print(f"{len(rejected)} of {batches} clean batches rejected; {share:.2%} of their images set aside")
    for name, reason in rejected.items():
        console.print(f"{name}: {reason}")


def _flip_bit(image: np.ndarray, random: np.random.Generator) -> np.ndarray:
    changed = image.copy()
    changed[tuple(random.integers(28, size=2))] ^= np.uint8(1 << random.integers(8))
    return changed


def _shift(image: np.ndarray, random: np.random.Generator) -> np.ndarray:
    step, axis = random.choice([-1, 1]), random.integers(2)
    shifted = np.roll(image, step, axis)
    edge = 0 if step == 1 else -1
    shifted[(edge, slice(None)) if axis == 0 else (slice(None), edge)] = 0
    return shifted


if __name__ == "__main__":
    typer.run(main)
