"""The data checks: Great Expectations on tables with one row per image, class, feature and pair of classes.

The suites are `include/expectations/*.json`. `duplicates`, `drift` and `label_errors` compute the statistics that they
check. The training split is compared with the test split, the test split and batches with the training split.
"""

from __future__ import annotations

import json
import logging
import math
import tempfile
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import great_expectations as gx
import numpy as np
import pandas as pd
from great_expectations.core import ExpectationSuite, ExpectationSuiteValidationResult

from fmnist_tasks.data.drift import Feature, compare_features, compute_features, measure_drift
from fmnist_tasks.data.duplicates import compute_digests, find_duplicates
from fmnist_tasks.data.label_errors import ConfusedClasses, LabelErrorDetector
from fmnist_tasks.schemas.data import DatasetProperties
from fmnist_tasks.schemas.evaluation import Check, make_check
from fmnist_tasks.schemas.policy import DataPolicy
from fmnist_tasks.settings import INCLUDE

log = logging.getLogger(__name__)

_PAGES = {".html", ".css", ".svg"}  # of the Data Docs; the rest is 4 MB of fonts and tutorial films
_MAX_EXAMPLES = 20  # of likely label errors, for each pair of classes
_MIN_REFERENCE_IMAGES = 20  # of each class
_UNLIMITED = 2**40  # images in a batch


@dataclass(frozen=True, eq=False)
class Sample:
    """Labelled images to check: a split of the base dataset, or a batch."""

    name: str
    images: np.ndarray  # any dtype and shape, which the checks verify
    labels: np.ndarray
    count: int | None  # images that the dataset declares; None for a batch, which may have any number

    def is_well_formed(self, dataset: DatasetProperties) -> bool:
        """Whether statistics can be computed: uint8 images of the right shape, and labels of the declared classes."""
        images, labels, classes = self.images, self.labels, len(dataset.classes)
        return (
            images.dtype == np.uint8
            and images.shape[1:] == dataset.image_format.shape
            and len(images) > 0
            and labels.dtype.kind in "ui"
            and bool(((labels >= 0) & (labels < classes)).all())
        )


@dataclass(frozen=True)
class SampleResult:
    """The results of checking one sample."""

    checks: list[Check]
    drift: float | None  # from its reference, 0 to 1; None if it could not be computed
    label_errors: list[ConfusedClasses] = field(default_factory=list)  # pairs with more than expected
    examples: list[np.ndarray] = field(default_factory=list)  # for each pair, its most suspicious images


def check_samples(
    training: Sample,
    test: Sample,
    batches: Iterable[Sample],
    dataset: DatasetProperties,
    policy: DataPolicy,
    on_passed: Callable[[Sample], None] = lambda _: None,
) -> tuple[dict[str, SampleResult], dict[str, bytes]]:
    """Return the results by name of the sample, and the Data Docs as files by relative path.

    A base split, which has a declared count, must also have balanced classes. Batches are checked one after the other,
    so an iterator need not hold all of them; `on_passed` is called after each that passes. If the base fails a
    check, batches are not checked, since they are compared with it. An error in checking a batch is a failed check of
    that batch.
    """
    classes, image_format = len(dataset.classes), dataset.image_format
    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = {"globally": False}  # type: ignore[assignment]
    suites = _Suites(context, context.data_sources.add_pandas("memory"))
    in_training, in_test = (set(compute_digests(sample.images)) for sample in (training, test))
    references = {sample.name: _Reference.of(sample, dataset) for sample in (training, test)}

    def check(sample: Sample) -> SampleResult:
        count, digests = sample.count, compute_digests(sample.images)
        frame = build_image_frame(sample)
        frame["duplicate"] = find_duplicates(digests, in_training if count is None else set())
        frame["in_test"] = False if sample is test else [digest in in_test for digest in digests]
        parameters = {
            **image_format.model_dump(include={"height", "width", "channels"}),
            "min_count": count or 1,
            "max_count": count or _UNLIMITED,
            "labels": list(range(classes)),
        }
        checks = suites.check(f"{sample.name} images", "images", frame, parameters)
        if count is not None:
            imbalance = policy.max_imbalance
            shares = {"min_share": 1 / (imbalance * classes), "max_share": imbalance / classes}
            frame = build_class_frame(sample.labels, classes)
            checks += suites.check(f"{sample.name} classes", "classes", frame, shares)
        name = (test if sample is training else training).name
        compared = _compare_with_reference(suites, sample, references[name], dataset, name, policy)
        return replace(compared, checks=[*checks, *compared.checks])

    results = {sample.name: check(sample) for sample in (training, test)}
    base_has_passed = all(check.has_passed for split in results.values() for check in split.checks)
    for sample in batches if base_has_passed else ():
        try:
            results[sample.name] = check(sample)
        except Exception as error:
            log.warning("%s could not be checked", sample.name, exc_info=True)
            requirement = "the checks run without an error"
            message = f"{requirement}: {type(error).__name__}: {error}"
            results[sample.name] = SampleResult([make_check("error", None, requirement, False, message)], None)
        if all(check.has_passed for check in results[sample.name].checks):
            on_passed(sample)
    return results, _build_data_docs(context)


@dataclass(frozen=True)
class _Reference:
    """The images that samples are compared with."""

    labels: np.ndarray
    features: dict[str, np.ndarray]
    detector: LabelErrorDetector

    @classmethod
    def of(cls, sample: Sample, dataset: DatasetProperties) -> _Reference | None:
        """None if the sample is not well formed, or has too few non-blank images of a class."""
        if not sample.is_well_formed(dataset):
            return None
        classes = len(dataset.classes)
        features = compute_features(sample.images)
        if np.bincount(sample.labels[features["contrast"] > 0], minlength=classes).min() < _MIN_REFERENCE_IMAGES:
            return None
        return cls(sample.labels, features, LabelErrorDetector(sample.images, sample.labels))


def _compare_with_reference(
    suites: _Suites,
    sample: Sample,
    reference: _Reference | None,
    dataset: DatasetProperties,
    name: str,
    policy: DataPolicy,
) -> SampleResult:
    """Return the checks against the named reference, which need both to be well formed."""
    if not sample.is_well_formed(dataset):
        return SampleResult([], None)
    if reference is None:
        requirement = f"the {name} split has at least {_MIN_REFERENCE_IMAGES} valid, non-blank images of each class"
        message = f"{requirement}: it does not, so {sample.name} cannot be compared with it"
        return SampleResult([make_check("reference", None, requirement, False, message)], None)
    features, negatives = (
        compare_features(
            compute_features(sample.images, negative=negative), sample.labels, reference.features, reference.labels
        )
        for negative in (False, True)
    )
    pairs = reference.detector.find_confused_classes(sample.images, sample.labels)
    on_failure = "reject" if sample.count is None else policy.on_split_difference
    frames = {"features": build_feature_frame(features, negatives, policy), "labels": build_pair_frame(pairs, policy)}
    checks = [
        check
        for suite, frame in frames.items()
        for check in suites.check(f"{sample.name} {suite}", suite, frame, {}, on_failure)
    ]
    errors = [pair for pair in pairs if pair.has_errors(policy)]
    examples = [sample.images[pair.images[:_MAX_EXAMPLES]] for pair in errors]
    return SampleResult(checks, measure_drift(features), errors, examples)


def build_image_frame(sample: Sample) -> pd.DataFrame:
    """Return one row per image: size, dtype, minimum, maximum, mean and contrast of its pixels, and its label."""
    images = sample.images
    count, pixels = len(images), images.reshape(len(images), math.prod(images.shape[1:]))
    if pixels.shape[1] == 0 or images.dtype.kind not in "buif":
        pixels = np.full((count, 1), np.nan)
    minimum, maximum = pixels.min(axis=1).astype(float), pixels.max(axis=1).astype(float)
    return pd.DataFrame(
        {
            "height": np.full(count, images.shape[1] if images.ndim in {3, 4} else 0),
            "width": np.full(count, images.shape[2] if images.ndim in {3, 4} else 0),
            "channels": np.full(count, {3: 1, 4: images.shape[-1] if images.shape[-1] > 1 else 0}.get(images.ndim, 0)),
            "dtype": str(images.dtype),
            "minimum": minimum,
            "maximum": maximum,
            "mean": pixels.mean(axis=1),
            "contrast": maximum - minimum,
            "label": sample.labels,
            "label_kind": sample.labels.dtype.kind,
        }
    )


def build_class_frame(labels: np.ndarray, classes: int) -> pd.DataFrame:
    """Return one row per class: the number of its images and their share of all."""
    counts = np.bincount(labels.astype(np.int64), minlength=classes)
    return pd.DataFrame({"class": np.arange(len(counts)), "images": counts, "share": counts / max(1, counts.sum())})


def build_feature_frame(features: list[Feature], negatives: list[Feature], policy: DataPolicy) -> pd.DataFrame:
    """Return one row per feature; `inverted` is whether the negatives are closer to the reference than the images."""
    rows = [
        {**vars(feature), "has_shifted": feature.has_shifted(policy), "has_outliers": feature.has_outliers(policy)}
        for feature in features
    ]
    return pd.DataFrame(rows).assign(inverted=measure_drift(negatives) < measure_drift(features))


def build_pair_frame(pairs: list[ConfusedClasses], policy: DataPolicy) -> pd.DataFrame:
    """Return one row per pair of classes."""
    return pd.DataFrame([{**vars(pair), "has_errors": pair.has_errors(policy)} for pair in pairs]).drop(
        columns="images"
    )


@dataclass(frozen=True)
class _Suites:
    """Great Expectations with the suites of `include/expectations/`."""

    context: Any
    source: Any

    def check(
        self,
        name: str,
        suite_name: str,
        frame: pd.DataFrame,
        parameters: dict[str, Any],
        on_failure: Literal["reject", "warning"] = "reject",
    ) -> list[Check]:
        """Validate a table against a suite; one check per expectation. `name` is shown in the Data Docs."""
        expectations = json.loads((INCLUDE / "expectations" / f"{suite_name}.json").read_text())
        suite = self.context.suites.add(ExpectationSuite(name=name, expectations=expectations))
        batch = self.source.add_dataframe_asset(name).add_batch_definition_whole_dataframe("all")
        definition = self.context.validation_definitions.add(
            gx.ValidationDefinition(name=name, data=batch, suite=suite)
        )
        result: ExpectationSuiteValidationResult = definition.run(
            batch_parameters={"dataframe": frame}, expectation_parameters=parameters, result_format="SUMMARY"
        )
        return [_make_check(outcome, frame, on_failure) for outcome in result.results]


def _make_check(outcome: Any, frame: pd.DataFrame, on_failure: Literal["reject", "warning"]) -> Check:
    config, result = outcome.expectation_config, outcome.result
    requirement = config.meta["requirement"]
    if outcome.exception_info.get("exception_message"):
        observation = f"the check raised an error: {outcome.exception_info['exception_message']}"
    elif "observed_value" in result:
        observation = f"observed {result['observed_value']}"
    elif outcome.success:
        observation = f"passed for {result['element_count']:,} rows"
    else:
        failures = result["unexpected_count"] + result.get("missing_count", 0)
        examples = ", ".join(str(value) for value in result["partial_unexpected_list"][:3]) or "missing values"
        if columns := config.meta.get("example_columns"):  # which explain a row better than the checked value does
            rows = frame.loc[frame[config.kwargs["column"]].astype(bool), columns].head(3).to_dict("records")
            examples = "; ".join(map(_describe_row, rows))
        observation = f"failed for {failures:,} of {result['element_count']:,} rows, for example {examples}"
    value = result.get("observed_value", result.get("unexpected_count"))
    return make_check(
        config.meta["name"],
        None if value is None else float(value),
        requirement,
        bool(outcome.success),
        f"{requirement}: {observation}",
        on_failure,
    )


def _describe_row(row: dict[Hashable, Any]) -> str:
    """A row of a table as text, such as "label 4, looks like 6, share 0.38"."""
    cells = {name: f"{value:.2g}" if isinstance(value, float) else str(value) for name, value in row.items()}
    return ", ".join(f"{str(name).replace('_', ' ')} {value}" for name, value in cells.items())


def _build_data_docs(context: Any) -> dict[str, bytes]:
    with tempfile.TemporaryDirectory() as folder:
        context.add_data_docs_site(
            "run",
            {
                "class_name": "SiteBuilder",
                "store_backend": {"class_name": "TupleFilesystemStoreBackend", "base_directory": folder},
                "site_index_builder": {"class_name": "DefaultSiteIndexBuilder"},
            },
        )
        context.build_data_docs(site_names=["run"])  # without names, it would also leave a site in /tmp
        pages = [path for path in Path(folder).rglob("*") if path.suffix in _PAGES]
        return {path.relative_to(folder).as_posix(): path.read_bytes() for path in pages}
