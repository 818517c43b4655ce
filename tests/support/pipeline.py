"""A retraining pipeline in a temporary folder."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fmnist_tasks.registry import champion, releases
from fmnist_tasks.registry.folder import FolderStore
from fmnist_tasks.registry.runs import read_record, read_records, write_record
from fmnist_tasks.schemas.runs import RESULTS, parse_result
from fmnist_tasks.serving.release import open_release, require_champion
from fmnist_tasks.steps import STEPS, Run, run_step
from tests.support.documents import copy_facts
from tests.support.synthetic import RUN


@dataclass(frozen=True)
class Pipeline:
    """A retraining pipeline in a temporary folder, on synthetic images."""

    home: Path

    @property
    def data(self) -> Path:
        return self.home / "data"

    @property
    def store(self) -> FolderStore:
        return FolderStore(self.home / "store")

    @property
    def environment(self) -> dict[str, str]:
        return {
            "FMNIST_HOME": str(self.home),
            "FMNIST_STORE": (self.home / "store").as_uri(),
            "FMNIST_DATASET": str(self.data / "dataset.toml"),
            "FMNIST_DATA_DIR": str(self.data),
            "FMNIST_SETTLE_SECONDS": "0",
        }

    def read_result(self, step: str, run: Run = RUN) -> Any:
        """The recorded result of a step."""
        record = read_record(self.store, run.id, step)
        return parse_result(RESULTS[step.partition("-")[0]], record, step)

    def change_result(self, step: str, run: Run = RUN, **values: object) -> None:
        """Change fields of the recorded result of a step."""
        record = read_record(self.store, run.id, step)
        assert record.result
        write_record(self.store, record.model_copy(update={"result": record.result | values}))

    def copy_records(self, source: Run, target: Run) -> None:
        """Copy the records of a run to another run, as if it had the same results."""
        changes = {"run_id": target.id, "parameters": target.parameters.to_json()}
        for record in read_records(self.store, source.id).values():
            write_record(self.store, record.model_copy(update=changes))

    def run_until(self, last: str, run: Run = RUN) -> None:
        """Run the steps in order, up to and including `last`."""
        for name in STEPS:
            run_step(name, run)
            if name == last:
                return

    def clear_champion_log(self) -> None:
        """Delete the champion log and its receipts."""
        for folder in ("champion", "champion-receipts"):
            shutil.rmtree(self.store.root / folder)

    def promote_second_release(self, **changes: Any) -> str:
        """Publish and promote another release with the champion's files, and return its version."""
        release = open_release(self.store, require_champion(self.store).version)
        releases.publish_release(self.store, "second", release.files, copy_facts(release.manifest, **changes))
        current = require_champion(self.store).sequence
        champion.append_entry(self.store, version="second", action="promote", reason="r", write_id="w", after=current)
        return "second"
