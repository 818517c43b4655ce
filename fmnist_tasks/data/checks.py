"""Great Expectations on one row an image, a class, a feature and a pair of classes.

The suites are `include/expectations/*.json`; the statistics that they ask about are made in `copies`, `drift` and
`suspicion`. The training part is held against the test part, and everything else against the training part.
"""

from __future__ import annotations

import json
import logging
import math
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import great_expectations as gx
import numpy as np
import pandas as pd
from great_expectations.core import ExpectationSuite, ExpectationSuiteValidationResult

from fmnist_tasks.data.copies import digests, repeated
from fmnist_tasks.data.declaration import SIDE
from fmnist_tasks.data.drift import Feature, compare, drift, features
from fmnist_tasks.data.suspicion import Judge, Pair
from fmnist_tasks.settings import INCLUDE
from fmnist_tasks.verdict import Check

log = logging.getLogger(__name__)

_PAGES = {".html", ".css", ".svg"}  # of the Data Docs; the rest is 4 MB of fonts and tutorial films
_SHOWN = 20  # images of a pair of classes whose labels look swapped
_FEWEST = 20  # images of each class in a reference


@dataclass(frozen=True, eq=False)
class Sample:
    """Labelled images to be checked: a split of the base dataset, or a batch."""

    name: str
    images: np.ndarray  # any dtype and shape: that is what is checked
    labels: np.ndarray
    count: int | None  # images that the dataset declares; None for a batch, which may have any number

    def sound(self, classes: int) -> bool:
        """Whether statistics can be made of it: bytes of the right size, and labels of the declared classes."""
        images, labels = self.images, self.labels
        return (
            images.dtype == np.uint8
            and images.shape[1:] == (SIDE, SIDE)
            and len(images) > 0
            and labels.dtype.kind in "ui"
            and bool(((labels >= 0) & (labels < classes)).all())
        )


@dataclass(frozen=True)
class Findings:
    """What was found in one sample."""

    checks: list[Check]
    drift: float | None  # from its reference, 0 to 1; None if it could not be told
    pairs: list[Pair] = field(default_factory=list)  # of classes whose labels look swapped
    shown: list[np.ndarray] = field(default_factory=list)  # of each pair, its most suspicious images


def check_samples(
    training: Sample, test: Sample, batches: Iterable[Sample], classes: int
) -> tuple[dict[str, Findings], dict[str, bytes]]:
    """What was found in each sample, by its name, and the Data Docs of all as files by relative path.

    A base split (with a declared count) is asked for class balance too; a batch may hold few classes. Batches
    are taken one after the other, so that an iterator need not hold all of them; none is if the base fails a check,
    since they are compared with it. An error in checking a batch is a check that the batch fails.
    """
    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = {"globally": False}  # type: ignore[assignment]
    suites = _Suites(context, context.data_sources.add_pandas("memory"))
    in_training, in_test = (set(digests(sample.images)) for sample in (training, test))
    references = {sample.name: _Reference.of(sample, classes) for sample in (training, test)}

    def check(sample: Sample) -> Findings:
        count, copies = sample.count, digests(sample.images)
        frame = image_frame(sample)
        frame["copy"] = repeated(copies, in_training if count is None else set())
        frame["in_test"] = False if sample is test else [digest in in_test for digest in copies]
        asked = {"fewest": count or 1, "most": count or 2**40, "labels": list(range(classes))}
        rows = suites.ask(f"{sample.name} images", "images", frame, asked)
        if count is not None:
            shares = {"smallest": 0.5 / classes, "largest": 2 / classes}
            rows += suites.ask(f"{sample.name} classes", "classes", class_frame(sample.labels, classes), shares)
        name = (test if sample is training else training).name
        return _compared(suites, sample, references[name], classes, name, rows)

    found = {sample.name: check(sample) for sample in (training, test)}
    is_sound = all(row.passed for findings in found.values() for row in findings.checks)
    for sample in batches if is_sound else ():
        try:
            found[sample.name] = check(sample)
        except Exception as error:
            log.warning("%s could not be checked", sample.name, exc_info=True)
            asks = "every check can be made"
            reason = f"{asks}: the check itself failed: {type(error).__name__}: {error}"
            found[sample.name] = Findings([Check("check", None, asks, False, reason)], None)
    return found, _data_docs(context)


@dataclass(frozen=True)
class _Reference:
    """What samples are compared with."""

    labels: np.ndarray
    features: dict[str, np.ndarray]
    judge: Judge

    @classmethod
    def of(cls, sample: Sample, classes: int) -> _Reference | None:
        """None if the sample is not sound, or has too few images of a class that show anything."""
        if not sample.sound(classes):
            return None
        found = features(sample.images)
        if np.bincount(sample.labels[found["contrast"] > 0], minlength=classes).min() < _FEWEST:
            return None
        return cls(sample.labels, found, Judge(sample.images, sample.labels))


def _compared(
    suites: _Suites, sample: Sample, reference: _Reference | None, classes: int, name: str, rows: list[Check]
) -> Findings:
    """What was found so far, and what the comparison with the named reference adds, if both are sound."""
    if not sample.sound(classes):
        return Findings(rows, None)
    if reference is None:
        asks = f"the {name} part has {_FEWEST} sound images of each class to compare with"
        return Findings([*rows, Check("reference", None, asks, False, f"{asks}: it has not")], None)
    found, negative = (
        compare(features(sample.images, negative=side), sample.labels, reference.features, reference.labels)
        for side in (False, True)
    )
    pairs = reference.judge.pairs(sample.images, sample.labels)
    rows = [
        *rows,
        *suites.ask(f"{sample.name} features", "features", feature_frame(found, negative), {}),
        *suites.ask(f"{sample.name} labels", "labels", pair_frame(pairs), {}),
    ]
    swapped = [pair for pair in pairs if pair.swapped]
    return Findings(rows, drift(found), swapped, [sample.images[pair.images[:_SHOWN]] for pair in swapped])


def image_frame(sample: Sample) -> pd.DataFrame:
    """One row an image: size, dtype, extremes, mean and contrast of its pixels, and its label."""
    images = sample.images
    count, pixels = len(images), images.reshape(len(images), math.prod(images.shape[1:]))
    if pixels.shape[1] == 0 or images.dtype.kind not in "buif":
        pixels = np.full((count, 1), np.nan)
    minimum, maximum = pixels.min(axis=1).astype(float), pixels.max(axis=1).astype(float)
    return pd.DataFrame(
        {
            "height": np.full(count, images.shape[1] if images.ndim == 3 else 0),
            "width": np.full(count, images.shape[2] if images.ndim == 3 else 0),
            "dtype": str(images.dtype),
            "minimum": minimum,
            "maximum": maximum,
            "mean": pixels.mean(axis=1),
            "contrast": maximum - minimum,
            "label": sample.labels,
            "label_kind": sample.labels.dtype.kind,
        }
    )


def class_frame(labels: np.ndarray, classes: int) -> pd.DataFrame:
    """One row a class: how many images it has and which share of all."""
    counts = np.bincount(labels.astype(np.int64), minlength=classes)
    return pd.DataFrame({"class": np.arange(len(counts)), "images": counts, "share": counts / max(1, counts.sum())})


def feature_frame(compared: list[Feature], negative: list[Feature]) -> pd.DataFrame:
    """One row a feature; `inverted` says whether the negatives are more like the reference than the images are."""
    rows = [{**vars(feature), "shifted": feature.shifted, "outlying": feature.outlying} for feature in compared]
    return pd.DataFrame(rows).assign(inverted=drift(negative) < drift(compared))


def pair_frame(pairs: list[Pair]) -> pd.DataFrame:
    """One row a pair of classes."""
    return pd.DataFrame([{**vars(pair), "swapped": pair.swapped} for pair in pairs]).drop(columns="images")


@dataclass(frozen=True)
class _Suites:
    """Great Expectations with the project's suites."""

    context: Any
    source: Any

    def ask(self, name: str, suite_name: str, frame: pd.DataFrame, parameters: dict[str, Any]) -> list[Check]:
        """Hold a frame against a suite; one row an expectation."""
        expectations = json.loads((INCLUDE / "expectations" / f"{suite_name}.json").read_text())
        suite = self.context.suites.add(ExpectationSuite(name=name, expectations=expectations))
        batch = self.source.add_dataframe_asset(name).add_batch_definition_whole_dataframe("all")
        definition = self.context.validation_definitions.add(
            gx.ValidationDefinition(name=name, data=batch, suite=suite)
        )
        result: ExpectationSuiteValidationResult = definition.run(
            batch_parameters={"dataframe": frame}, expectation_parameters=parameters, result_format="SUMMARY"
        )
        return [_row(outcome, frame) for outcome in result.results]


def _row(outcome: Any, frame: pd.DataFrame) -> Check:
    config, result = outcome.expectation_config, outcome.result
    asks = config.meta["asks"]
    if outcome.exception_info.get("exception_message"):
        found = f"the check itself failed: {outcome.exception_info['exception_message']}"
    elif "observed_value" in result:
        found = f"found {result['observed_value']}"
    elif outcome.success:
        found = f"holds for {result['element_count']:,} rows"
    else:
        wrong = result["unexpected_count"] + result.get("missing_count", 0)
        examples = ", ".join(str(value) for value in result["partial_unexpected_list"][:3]) or "missing values"
        if told := config.meta.get("shows"):  # columns that say more of a wrong row than its own value
            rows = frame.loc[frame[config.kwargs["column"]].astype(bool), told].head(3)
            examples = "; ".join(rows.to_string(header=False, index=False, float_format="%.3g").splitlines())
        found = f"not so for {wrong:,} of {result['element_count']:,} rows, for instance {examples}"
    value = result.get("observed_value", result.get("unexpected_count"))
    return Check(
        config.meta["name"], None if value is None else float(value), asks, bool(outcome.success), f"{asks}: {found}"
    )


def _data_docs(context: Any) -> dict[str, bytes]:
    with tempfile.TemporaryDirectory() as folder:
        context.add_data_docs_site(
            "run",
            {
                "class_name": "SiteBuilder",
                "store_backend": {"class_name": "TupleFilesystemStoreBackend", "base_directory": folder},
                "site_index_builder": {"class_name": "DefaultSiteIndexBuilder"},
            },
        )
        context.build_data_docs(site_names=["run"])  # another one, by default, would be left in the temporary folder
        pages = [path for path in Path(folder).rglob("*") if path.suffix in _PAGES]
        return {path.relative_to(folder).as_posix(): path.read_bytes() for path in pages}
