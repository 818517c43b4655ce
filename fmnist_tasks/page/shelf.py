"""What the page reads of the registry. Releases and log entries never change, so each is read once a process."""

from __future__ import annotations

from functools import partial
from threading import Lock
from typing import Any

from fmnist_tasks.errors import IntegrityError, MissingError
from fmnist_tasks.registry import champion, releases
from fmnist_tasks.registry.champion import Log
from fmnist_tasks.registry.store import Store, side_by_side

Row = dict[str, Any]


class Shelf:
    """The releases and the champion log of a store."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self._rows: dict[str, Row] = {}
        self._log = Log()
        self._reading = Lock()

    def releases(self) -> tuple[list[Row], list[str]]:
        """What the overview tells of every release, oldest first, and what is wrong with those that are damaged."""
        log = self.log()
        with self._reading:
            found = releases.versions(self.store)
            new = [version for version in found if version not in self._rows]
            read = side_by_side(partial(self._read, log), new)
            self._rows |= {row["version"]: row for row in read if not isinstance(row, str)}
            return [self._rows[version] for version in found if version in self._rows], [
                fault for fault in read if isinstance(fault, str)
            ]

    def log(self) -> Log:
        """The champion log."""
        with self._reading:
            self._log = champion.read_log(self.store, self._log)
            return self._log

    def _read(self, log: Log, version: str) -> Row | str:
        """A release's row, or what is wrong with it."""
        try:
            manifest = releases.read_manifest(self.store, version, log)
        except (IntegrityError, MissingError) as error:
            return str(error)
        figures = manifest["figures"]
        families = figures["novelty"]["families"]
        judged = manifest["policy"]["novelty"]["families"]
        drift = manifest["data"].get("drift", {}).values()
        return {
            "version": version,
            "profile": manifest["parameters"]["profile"],
            "seed": manifest["parameters"]["seed"],
            "decision": manifest["verdict"]["decision"],
            "accuracy": figures["test"]["accuracy"],
            "accuracy_asked": manifest["policy"]["accuracy"]["at_least"],
            "f1": figures["test"]["means"]["f1"],
            "calibration": figures["calibration"]["error"],
            "novelty": min(families[family]["auroc"] for family in judged),
            "drift": max((value for value in drift if value is not None), default=None),
        }
