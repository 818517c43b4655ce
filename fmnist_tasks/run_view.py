"""The output of `make run`: python -m fmnist_tasks.run_view FILE [DATASET].

Reads the log of `airflow dags test` from standard input and writes it to the file. Shows a line when a step begins and
ends, some epochs of training, and alerts; with VERBOSE=1, the whole log. At the end it shows the metrics of the
run. Exit code 0 if the run promoted a champion or nothing had changed.
"""

from __future__ import annotations

import os
import re
import signal
import sys
from collections import deque
from collections.abc import Iterable, Iterator
from datetime import datetime
from pathlib import Path
from typing import TextIO

from fmnist_tasks.errors import FmnistError
from fmnist_tasks.registry.stores import open_default_store
from fmnist_tasks.run_report import read_run
from fmnist_tasks.tables import has_succeeded, show_metrics
from fmnist_tasks.text import make_printable

_WIDTH = 150  # characters per line
_MAX_EPOCHS_SHOWN = 5  # per training, if the output is not a terminal
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_MAX_LINE = 10_000  # characters of a log line that are searched
# The parts of a log line of Airflow's task logger: time, level, message, logger.
_LINE = re.compile(r"\S+ \[\w+ *\] (?P<message>.*?)( \[fmnist_tasks[\w.]*\]( loc=\S+)?)? *")
_BEGIN = re.compile(r"(?P<step>[a-z_]+(-\d+)?) begins: run (?P<run>\S+) with .*")
_END = re.compile(
    r"(?P<step>[a-z_]+(-\d+)?) (?P<status>done|failed|rejected) after (?P<seconds>\d+\.\d) s: (?P<outcome>.*)"
)
_EPOCH = re.compile(r"epoch (?P<epoch>\d+)/(?P<epochs>[1-9]\d*) .* validation accuracy (?P<accuracy>\d\.\d+).*")
_ALERT = re.compile(r"ALERT .*")


class RunView:
    """Selects the lines of a run's log to show."""

    def __init__(self, *, replaces_lines: bool) -> None:
        self.run_id: str | None = None
        self._replaces_lines = replaces_lines  # whether an epoch may replace the line of the one before

    def select(self, line: str) -> str | None:
        """The text to show for a log line, or None. It begins with a carriage return if the next may replace it."""
        match = _LINE.fullmatch(make_printable(_COLOUR.sub("", line[:_MAX_LINE])))
        if not match:
            return None
        text = match["message"]
        if match := _BEGIN.fullmatch(text):
            self.run_id = self.run_id or match["run"]
            return self._mark_replaceable(f"{match['step']:15} begins")
        if match := _END.fullmatch(text):
            return f"{match['step']:15} {match['status']:8} {float(match['seconds']):7.1f} s  {match['outcome']}"
        if match := _EPOCH.fullmatch(text):
            if not self._replaces_lines and not _is_shown(int(match["epoch"]), int(match["epochs"])):
                return None
            accuracy = float(match["accuracy"])
            return self._mark_replaceable(
                f"{'':15} epoch {match['epoch']} of {match['epochs']}, validation accuracy {accuracy:.2%}"
            )
        if match := _ALERT.fullmatch(text):
            return match[0]
        return None

    def _mark_replaceable(self, text: str) -> str:
        return f"\r{text}" if self._replaces_lines else text


def _is_shown(epoch: int, epochs: int) -> bool:
    """Whether to show an epoch: the last one, and others at equal distances before it."""
    return (epochs - epoch) % -(-epochs // _MAX_EPOCHS_SHOWN) == 0


def follow_log(lines: Iterable[str], log: TextIO, view: RunView) -> Iterator[str]:
    """Write all lines to the log, and yield the texts to show."""
    for line in lines:
        log.write(line)
        log.flush()
        if text := view.select(line):
            yield text


def show_texts(texts: Iterable[str]) -> None:
    """Print the texts with the local time; the next text replaces one that begins with a carriage return."""
    is_replaceable = False
    for text in texts:
        end = "" if text.startswith("\r") else "\n"
        text = text.removeprefix("\r")
        line = f"{datetime.now():%H:%M:%S}  {text}"  # noqa: DTZ005 - local time
        line = line if len(line) <= _WIDTH else f"{line[: _WIDTH - 1]}…"
        print("\r\x1b[K" if is_replaceable else "", line, sep="", end=end, flush=True)
        is_replaceable = not end


def main(file: Path, dataset: str = "") -> int:
    """Follow a run of a dataset, then show its metrics; return the exit code."""
    try:
        return follow_run(file, dataset)
    except (FmnistError, OSError) as error:
        print(f"error: {make_printable(str(error))}", file=sys.stderr)
        return 1


def follow_run(file: Path, dataset: str = "") -> int:
    """Follow a run of a dataset, then show its metrics; return the exit code. Raises what store and file raise."""
    for stream in (sys.stdin, sys.stdout):
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C ends Airflow, whose last lines are still logged
    view = RunView(replaces_lines=sys.stdout.isatty())
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w", encoding="utf-8", errors="backslashreplace") as log:
        try:
            print(f"Log: {file}", flush=True)
            show_run(sys.stdin, log, view)
        except BrokenPipeError:  # nobody reads the output, for example after `make run | head`; the run continues
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            deque(follow_log(sys.stdin, log, view), maxlen=0)
    if view.run_id is None:
        lines = map(make_printable, file.read_text(encoding="utf-8").splitlines()[-20:])
        print("no step began; end of the log:", *lines, sep="\n", file=sys.stderr)
        return 1
    store = open_default_store(dataset)
    recorded = read_run(store, view.run_id)
    show_metrics(store, view.run_id, recorded)
    for fault in recorded.faults:
        print(f"error: {make_printable(fault)}", file=sys.stderr)
    return 0 if has_succeeded(recorded.records) and not recorded.faults else 1


def show_run(lines: Iterable[str], log: TextIO, view: RunView) -> None:
    """Show the selected lines of a run or, with VERBOSE=1, all."""
    if os.environ.get("VERBOSE") != "1":
        show_texts(follow_log(lines, log, view))
        return
    for line in lines:
        deque(follow_log([line], log, view), maxlen=0)
        print(line, end="", flush=True)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), *sys.argv[2:]))
