"""A retraining pipeline in a temporary folder."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fmnist_tasks import service
from fmnist_tasks.registry import champion, releases
from fmnist_tasks.registry.local import FolderStore
from fmnist_tasks.steps import STEPS, Run, run_again
from tests.support.synthetic import RUN


@dataclass(frozen=True)
class Pipeline:
    """A retraining pipeline of its own in a temporary folder, on synthetic images."""

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
            "FMNIST_DATASET": str(self.data / "made.toml"),
            "FMNIST_DATA_DIR": str(self.data),
            "FMNIST_SETTLE_SECONDS": "0",
        }

    def run_until(self, last: str, run: Run = RUN) -> None:
        """Run the steps of a run, in their order, up to one of them."""
        for name in STEPS:
            run_again(name, run)
            if name == last:
                return

    def forget_champions(self) -> None:
        """Empty the champion log, receipts included."""
        for folder in ("champion", "champion-receipts"):
            shutil.rmtree(self.store.root / folder)

    def promote_second_release(self, **changed: Any) -> str:
        """The version of another release, with the champion's files, that has taken the champion's place."""
        release = service.open_release(self.store, service.in_service(self.store).version)
        facts = {name: value for name, value in release.manifest.items() if name not in {"files", "version"}}
        releases.publish(self.store, "second", release.files, facts | changed)
        current = service.in_service(self.store).sequence
        champion.append(self.store, version="second", action="promote", reason="r", write_id="w", after=current)
        return "second"

    def promote_earlier_release(self) -> str:
        """The version of a release from when the FPR was measured at 95 % TPR, which has taken the champion's place."""
        manifest = releases.read_manifest(self.store, service.in_service(self.store).version)
        facts = {name: manifest[name] for name in ("figures", "policy", "verdict")}
        return self.promote_second_release(**write_as_before(facts), novelty_threshold=1_000.0)


def write_as_before(facts: dict[str, Any]) -> dict[str, Any]:
    """Facts of a run as they were written when the FPR was measured at 95 % TPR."""
    text = json.dumps(facts).replace("fpr99", "fpr95").replace("FPR at 99 % TPR", "FPR95")
    earlier: dict[str, Any] = json.loads(text)
    assert "fpr95" in text
    return earlier
