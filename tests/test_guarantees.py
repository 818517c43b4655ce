"""Each row of docs/testing.md names an existing heading, existing tests, and the lanes that run them."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

from fmnist_tasks.settings import PROJECT

LANES = ("unit", "integration", "exhaustive")
HEADER = ["guarantee", "where", "test", "lane"]
MIN_ROWS = 300  # a truncated table must not pass


class Row(NamedTuple):
    """A guarantee: where it is documented, the tests that prove it, and their lanes."""

    guarantee: str
    where: str
    tests: str
    lanes: str


def read_rows() -> list[Row]:
    """All rows of the tables of guarantees."""
    rows, in_table = [], False
    for line in (PROJECT / "docs" / "testing.md").read_text().splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")] if line.startswith("|") else []
        if cells == HEADER:
            in_table = True
        elif not cells:
            in_table = False
        elif in_table and not set(line) <= set("|-: "):
            assert len(cells) == len(HEADER), line
            rows.append(Row(*cells))
    return rows


@cache
def read_lanes(path: str) -> dict[str, str]:
    """The first lane that runs each test of a file, by the test's name."""
    module = ast.parse((PROJECT / path).read_text())
    marks = [node.value for node in module.body if isinstance(node, ast.Assign) and "pytestmark" in ast.unparse(node)]
    functions = (node for node in module.body if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"))
    return {test.name: LANES[max(map(find_lane, [*marks, *test.decorator_list]), default=0)] for test in functions}


def find_lane(mark: ast.expr) -> int:
    """Index of the lane that a mark assigns; for `parametrize`, of the first lane that runs any case."""
    if isinstance(mark, ast.List | ast.Tuple):
        return max(map(find_lane, mark.elts), default=0)
    if isinstance(mark, ast.Call) and ast.unparse(mark.func) == "pytest.mark.parametrize":
        cases = mark.args[1].elts if isinstance(mark.args[1], ast.List | ast.Tuple) else []
        return min(map(find_lane_of_case, cases), default=0)
    lane = ast.unparse(mark).removeprefix("pytest.mark.").partition("(")[0]
    return LANES.index(lane) if lane in LANES else 0


def find_lane_of_case(case: ast.expr) -> int:
    """Index of the lane of one case of a parametrized test."""
    keywords = case.keywords if isinstance(case, ast.Call) and ast.unparse(case.func) == "pytest.param" else []
    return max((find_lane(keyword.value) for keyword in keywords if keyword.arg == "marks"), default=0)


def find_errors(row: Row) -> Iterator[str]:
    """The errors in a row."""
    tests = re.findall(r"`(tests/[\w/]+\.py)::(test_\w+)`", row.tests)
    if not tests or re.sub(r"`tests/[\w/]+\.py::test_\w+`(, )?", "", row.tests):
        yield f"the cell must have test names and nothing else: {row.tests!r}"
    lanes = []
    for path, name in tests:
        if not (PROJECT / path).exists() or name not in read_lanes(path):
            yield f"{path}::{name} does not exist"
        else:
            lanes.append(read_lanes(path)[name])
    if lanes and row.lanes != (expected := ", ".join(dict.fromkeys(lanes))):
        yield f"the lane is {expected}, not {row.lanes}"
    file, _, heading = row.where.partition(', "')
    documents: list[Path] = [path for path in (PROJECT / file, PROJECT / "docs" / file) if path.is_file()]
    if not documents:
        yield f"{file} does not exist"
    elif heading and not re.search(rf"^#+ {re.escape(heading[:-1])}$", documents[0].read_text(), re.MULTILINE):
        yield f"{file} has no heading {heading[:-1]}"


def test_every_guarantee_has_a_heading_and_tests_in_its_lanes() -> None:
    table = read_rows()
    assert len(table) >= MIN_ROWS
    assert {row.guarantee: errors for row in table if (errors := list(find_errors(row)))} == {}


def test_a_lane_follows_from_the_markers(tmp_path: Path) -> None:
    source = tmp_path / "test_lanes.py"
    source.write_text(
        """
import pytest
def test_plain(): ...
@pytest.mark.parametrize("a", [1, pytest.param(2, marks=pytest.mark.integration)])
def test_first_case(): ...
@pytest.mark.parametrize("a", [pytest.param(1, marks=[pytest.mark.exhaustive])])
@pytest.mark.integration
def test_every_case(): ...
@pytest.mark.usefixtures("exhaustive")
def test_no_marker(): ...
"""
    )
    expected = {"test_plain": 0, "test_first_case": 0, "test_every_case": 2, "test_no_marker": 0}
    assert read_lanes(str(source)) == {name: LANES[lane] for name, lane in expected.items()}
    source = source.rename(tmp_path / "test_all.py")
    source.write_text(source.read_text() + "pytestmark = [pytest.mark.integration, pytest.mark.slow]\n")
    assert read_lanes(str(source)) == {name: LANES[max(lane, 1)] for name, lane in expected.items()}
