"""One of many processes that promote at the same time; in a module of its own, so that a process can import it."""

from __future__ import annotations

import os
from typing import Any

from fmnist_tasks.errors import ConflictError
from fmnist_tasks.registry import champion
from fmnist_tasks.registry.store import open_store
from fmnist_tasks.settings import Settings


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
