"""Fault-injection trials of alerts: `python -m bench.alerts` prints the table of docs/alerts.md.

They are the trials of tests/alerts/test_trials.py, on a folder and on a separate MinIO.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time

from tests.support.alert_trials import Tally, run_trials


def main() -> None:
    """Run the trials and print a row for each scenario; exit with 1 if an alert was lost."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=200)
    count = parser.parse_args().trials
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as home:
        os.environ |= {"AIRFLOW_HOME": home, "FMNIST_HOME": home}
        tallies = run_trials(count)
    total = Tally()
    names = ["trials", "kills", "alerts", "deliveries", "lost", "duplicates", "unlabelled", "needless_labels"]
    print(f"| scenario | {' | '.join(name.replace('_', ' ') for name in names)} |")
    print(f"|---|{'---:|' * len(names)}")
    for scenario, tally in tallies.items():
        total.add(tally)
        print(f"| {scenario} | {' | '.join(str(vars(tally)[name]) for name in names)} |")
    print(f"| **all** | {' | '.join(str(vars(total)[name]) for name in names)} |")
    print(f"{time.monotonic() - started:.0f} seconds")
    sys.exit(total.lost > 0)


if __name__ == "__main__":
    main()
