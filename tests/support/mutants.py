"""Mutation testing of the modules that `[tool.mutmut]` in pyproject.toml names, with their unit tests.

mutmut makes one small change (a mutant) at a time in a copy of the code (`mutants/`), and runs the unit tests that
cover it. A mutant that no test detects survives; each survivor needs a row with a reason in docs/mutants.md.
`mutmut show NAME` prints the change.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

from mutmut.mutation.diff_apply import get_diff_for_mutant
from mutmut.stats import status_by_exit_code

MIN_SCORE = 0.9  # share of all mutants that must be killed
_COPY = Path("mutants")  # of the tree, by mutmut, below the working directory
_REASONS = Path("docs/mutants.md")


@dataclass(frozen=True)
class Mutant:
    """One change of one function, and its outcome."""

    path: str  # of the module
    name: str  # what `mutmut show` takes
    outcome: str  # "killed", "timeout" (the tests do not end), "survived", "no tests", …

    @property
    def is_killed(self) -> bool:
        """Whether the tests detected the change."""
        return self.outcome in {"killed", "timeout"}

    @property
    def row(self) -> str:
        """The start of its row in docs/mutants.md, which does not depend on mutmut's numbering."""
        function = self.name.rpartition(".")[2].partition("__mutmut_")[0]
        function = function.removeprefix("x_").removeprefix("xǁ").replace("ǁ", ".")
        before, after = _find_changed_words(get_diff_for_mutant(self.name, path=self.path))
        return f"| {Path(self.path).stem}.{function} | `{before}` | `{after}` |"


def main() -> None:
    """Run all mutants and print the score; exits with an error if it is too low or a survivor has no reason."""
    parser = argparse.ArgumentParser(description="Mutation testing with the unit tests.")
    parser.add_argument("--processes", type=int, default=1)
    processes: int = parser.parse_args().processes

    start = time.monotonic()
    shutil.rmtree(_COPY, ignore_errors=True)  # mutmut would reuse results of earlier tests
    subprocess.run([sys.executable, "-m", "mutmut", "run", "--max-children", str(processes)], check=True)
    mutants = read_mutants()
    minutes = (time.monotonic() - start) / 60
    print_score(mutants)
    killed = sum(mutant.is_killed for mutant in mutants)
    print(f"{killed} of {len(mutants)} mutants killed, {killed / len(mutants):.1%}, in {minutes:.1f} min")

    reasons = _REASONS.read_text()
    unexplained = [mutant for mutant in mutants if not mutant.is_killed and mutant.row not in reasons]
    for mutant in unexplained:
        print(f"{mutant.outcome}: {mutant.name}\n{mutant.row}")
    if unexplained:
        sys.exit(f"{len(unexplained)} survivors have no row in {_REASONS}: add a test, or the row above with a reason")
    if killed < MIN_SCORE * len(mutants):
        sys.exit(f"fewer than {MIN_SCORE:.0%} of the mutants are killed")


def read_mutants() -> list[Mutant]:
    """All mutants of the last run, by module."""
    mutants = []
    for path in sorted(_COPY.rglob("*.py.meta")):
        results = json.loads(path.read_text())["exit_code_by_key"]
        module = str(path.relative_to(_COPY)).removesuffix(".meta")
        mutants += [Mutant(module, name, status_by_exit_code[code]) for name, code in results.items()]
    return mutants


def print_score(mutants: list[Mutant]) -> None:
    """Print a table with a row for each module."""
    columns = ["mutants", "killed", "timeout", "survived"]
    print("\n" + "module".ljust(40), *(column.rjust(9) for column in columns))
    for path in sorted({mutant.path for mutant in mutants}):
        outcomes = Counter(mutant.outcome for mutant in mutants if mutant.path == path)
        figures = [outcomes.total(), outcomes["killed"], outcomes["timeout"]]
        figures.append(outcomes.total() - outcomes["killed"] - outcomes["timeout"])
        print(path.ljust(40), *(f"{figure:9}" for figure in figures))


def _find_changed_words(diff: str) -> tuple[str, str]:
    """The removed and the added words of a unified diff, with one unchanged word before and after."""
    lines = [line for line in diff.splitlines() if not line.startswith(("---", "+++"))]
    before, after = (" ".join(line[1:] for line in lines if line[0] == sign).split() for sign in "-+")
    first = max(0, _count_common_start(before, after) - 1)
    unchanged = max(0, _count_common_start(before[::-1], after[::-1]) - 1)
    return " ".join(before[first : len(before) - unchanged]), " ".join(after[first : len(after) - unchanged])


def _count_common_start(words: list[str], others: list[str]) -> int:
    """The number of equal words with which both begin."""
    pairs = zip(words, others, strict=False)
    return len(list(takewhile(lambda pair: pair[0] == pair[1], pairs)))


if __name__ == "__main__":
    main()
