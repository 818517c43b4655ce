"""A cache of releases and champion log. Releases and log entries never change, so each is read once per process."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from threading import Lock

from fmnist_tasks.registry import champion, releases
from fmnist_tasks.registry.champion import Log
from fmnist_tasks.registry.store import Store, map_readable
from fmnist_tasks.schemas.evaluation import Decision


@dataclass(frozen=True)
class ReleaseRow:
    """A release in the table of the overview."""

    version: str
    created: str  # when its run was requested, ISO 8601, UTC
    profile: str
    seed: int
    decision: Decision
    accuracy: float
    min_accuracy: float  # required by its policy
    f1: float
    calibration_error: float
    ood_auroc: float  # the lowest of the OOD families in its policy
    drift: float | None  # the largest of its data, 0 to 1; None if not measured


class ReleaseCache:
    """The releases and the champion log of a store."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self._rows: dict[str, ReleaseRow] = {}
        self._log = Log()
        self._lock = Lock()

    def read_releases(self) -> tuple[list[ReleaseRow], list[str]]:
        """The rows of all intact releases, oldest first, and the faults of the others."""
        champion_log = self.read_log()
        with self._lock:
            versions = releases.list_versions(self.store)
            new = [version for version in versions if version not in self._rows]
            rows, faults = map_readable(partial(self._read_row, champion_log), new)
            self._rows |= {row.version: row for row in rows}
            return [self._rows[version] for version in versions if version in self._rows], [*map(str, faults)]

    def read_log(self) -> Log:
        """The champion log."""
        with self._lock:
            self._log = champion.read_log(self.store, self._log)
            return self._log

    def _read_row(self, champion_log: Log, version: str) -> ReleaseRow:
        manifest = releases.read_manifest(self.store, version, champion_log)
        metrics, families = manifest.metrics, manifest.policy.ood.families
        return ReleaseRow(
            version=version,
            created=manifest.created,
            profile=manifest.parameters["profile"],
            seed=manifest.parameters["seed"],
            decision=manifest.verdict.decision,
            accuracy=metrics.test.accuracy,
            min_accuracy=manifest.policy.accuracy.min,
            f1=metrics.test.means.f1,
            calibration_error=metrics.calibration.error,
            ood_auroc=min(metrics.ood.families[family].auroc for family in families),
            drift=max((value for value in manifest.drift.values() if value is not None), default=None),
        )
