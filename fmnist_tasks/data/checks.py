"""Great Expectations on one row an image and one row a class; the suites are `include/expectations/*.json`."""

from __future__ import annotations

import json
import math
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import great_expectations as gx
import numpy as np
import pandas as pd
from great_expectations.core import ExpectationSuite, ExpectationSuiteValidationResult

from fmnist_tasks.settings import INCLUDE
from fmnist_tasks.verdict import Check

_PAGES = {".html", ".css", ".svg"}  # of the Data Docs; the rest is 4 MB of fonts and tutorial films


@dataclass(frozen=True)
class Sample:
    """Labelled images to be checked: a split of the base dataset, or a batch."""

    name: str
    images: np.ndarray  # any dtype and shape: that is what is checked
    labels: np.ndarray
    count: int | None  # images that the dataset declares; None for a batch, which may have any number


def check_samples(samples: list[Sample], classes: int) -> tuple[dict[str, list[Check]], dict[str, bytes]]:
    """Rows of each sample by its name, and the Data Docs of all as files by relative path.

    A base split (with a declared count) is asked for class balance too; a batch may hold few classes.
    """
    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = {"globally": False}  # type: ignore[assignment]
    source = context.data_sources.add_pandas("memory")
    rows: dict[str, list[Check]] = {}
    for sample in samples:
        count = sample.count
        asked = {"fewest": count or 1, "most": count or 2**40, "labels": list(range(classes))}
        results = _validate(context, source, f"{sample.name} images", "images", image_frame(sample), asked)
        if count is not None:
            shares = {"smallest": 0.5 / classes, "largest": 2 / classes}
            frame = class_frame(sample.labels, classes)
            results += _validate(context, source, f"{sample.name} classes", "classes", frame, shares)
        rows[sample.name] = results
    return rows, _data_docs(context)


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


def _validate(
    context: Any, source: Any, name: str, suite_name: str, frame: pd.DataFrame, parameters: dict[str, Any]
) -> list[Check]:
    expectations = json.loads((INCLUDE / "expectations" / f"{suite_name}.json").read_text())
    suite = context.suites.add(ExpectationSuite(name=name, expectations=expectations))
    batch = source.add_dataframe_asset(name).add_batch_definition_whole_dataframe("all")
    definition = context.validation_definitions.add(gx.ValidationDefinition(name=name, data=batch, suite=suite))
    result: ExpectationSuiteValidationResult = definition.run(
        batch_parameters={"dataframe": frame}, expectation_parameters=parameters, result_format="SUMMARY"
    )
    return [_row(outcome) for outcome in result.results]


def _row(outcome: Any) -> Check:
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
