"""Progress of large transfers: a bar where a person watches a terminal, a log line a quarter elsewhere."""

from __future__ import annotations

import logging
import sys
from types import TracebackType

from rich import progress as bars
from rich.console import Console

log = logging.getLogger(__name__)

LARGE = 8 << 20  # bytes; anything smaller is over before one could look


class Progress:
    """Counts the bytes of one transfer; also what the `minio` client calls while it reads an upload."""

    def __init__(self, name: str, total: int) -> None:
        self.name, self.total, self.done = name, total, 0
        self._bar: bars.Progress | None = None

    def __enter__(self) -> Progress:
        if self.total > LARGE and sys.stderr.isatty():
            columns = (bars.TextColumn("{task.description}", markup=False), bars.BarColumn(), bars.DownloadColumn())
            self._bar = bars.Progress(*columns, bars.TransferSpeedColumn(), console=Console(stderr=True))
            self._bar.add_task(self.name, total=self.total)
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar:
            self._bar.stop()

    def set_meta(self, object_name: str, total_length: int) -> None:
        """Called by the client before an upload, with what is known already."""

    def update(self, count: int) -> None:
        """So many bytes more."""
        quarter = 4 * self.done // self.total if self.total else 0
        self.done += count
        if self._bar:
            self._bar.advance(self._bar.task_ids[0], count)
        elif self.total > LARGE and 4 * self.done // self.total > quarter:
            log.info("%s: %.0f of %.0f MB", self.name, self.done / 1e6, self.total / 1e6)
