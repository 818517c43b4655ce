"""What processes of their own do in the tests; in a module that they can import."""

from __future__ import annotations

import os
from typing import Any

from made import RUN

from fmnist_tasks.errors import ConflictError
from fmnist_tasks.registry import champion
from fmnist_tasks.registry.store import open_store
from fmnist_tasks.settings import Settings
from fmnist_tasks.steps import run_again


def run_step(environment: dict[str, str], name: str) -> None:
    """Run one step of the run again."""
    os.environ.update(environment)
    run_again(name, RUN)


def promote_many(environment: dict[str, str], writer: int, promotions: int, told: Any) -> None:
    """Promote different releases; report what each call said: its sequence, or 0 for a conflict."""
    os.environ.update(environment)
    store, outcomes = open_store(Settings.from_environment().store), []
    for number in range(promotions):
        version, sequence = f"writer-{writer}-release-{number}", 0
        while not sequence:
            current = champion.champion(store)
            try:
                sequence = champion.append(
                    store,
                    version=version,
                    action="promote",
                    reason="why",
                    write_id=version,
                    after=current.sequence if current else 0,
                ).sequence
            except ConflictError:
                sequence = 0
            outcomes.append((sequence, version))
    told.put(outcomes)
