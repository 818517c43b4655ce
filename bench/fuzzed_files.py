"""Run 2,000 good and damaged files through `incoming/`: `python -m bench.fuzzed_files`.

It takes about six minutes on one core, and prints a row for each kind of file. The exit code is 1 if a file was lost or
ended up in the wrong place. If a run fails, the program ends with its error.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import tempfile
import time
from collections import Counter, defaultdict
from pathlib import Path

from fmnist_tasks.tables import show_rows
from tests.support import synthetic
from tests.support.fuzzed_files import Outcome, make_cases, run_cases
from tests.support.pipeline import Pipeline


def count_outcomes(outcomes: list[Outcome]) -> list[dict[str, object]]:
    """Return one row for each kind of file, and one for all."""
    rows = defaultdict[str, Counter[str]](Counter)
    for outcome in outcomes:
        for name in (outcome.case.kind, "all"):
            rows[name].update(["files", outcome.destination])
            rows[name]["wrong"] += outcome.is_wrong
    columns = ("files", "accepted", "quarantined", "waiting", "lost", "wrong")
    ordered = sorted(rows.items(), key=lambda row: (row[0] == "all", row[0]))
    return [{"kind": name} | {column: counts[column] for column in columns} for name, counts in ordered]


def main() -> None:
    """Create the files, run the steps on them, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        pipeline = Pipeline(Path(folder))
        synthetic.write_dataset(pipeline.data)
        os.environ.update(pipeline.environment)
        outcomes = list(run_cases(pipeline, list(make_cases(arguments.files, arguments.seed))))
    show_rows(count_outcomes(outcomes), as_json=False)
    print(f"0 failed runs; {time.monotonic() - started:.0f} s")
    wrong = [outcome for outcome in outcomes if outcome.is_wrong]
    for outcome in wrong:
        print(f"{outcome.case.kind}: {[*outcome.case.files]} {outcome.destination}: {outcome.reason}", file=sys.stderr)
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
