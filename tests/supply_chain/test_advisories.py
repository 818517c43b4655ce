"""Which versions an advisory of OSV affects, and how its database is fetched and kept."""

from __future__ import annotations

from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from supply_chain.advisories import Finding, is_affected, read_database, refresh
from supply_chain.lock import Package
from tests.support.advisories import MODIFIED, Entry, describe, write_database


def find(path: Path, *entries: Entry, version: str = "1.3") -> list[Finding]:
    return read_database(write_database(path, *entries), ["shop"]).find([Package("shop", version, frozenset())])


RANGES = [
    ([{"introduced": "0"}], "0.dev1", True),
    ([{"introduced": "1.0"}, {"fixed": "1.4"}], "0.9", False),
    ([{"introduced": "1.0"}, {"fixed": "1.4"}], "1.0", True),
    ([{"introduced": "1.0"}, {"fixed": "1.4"}], "1.4rc1", True),
    ([{"introduced": "1.0"}, {"fixed": "1.4"}], "1.4", False),
    ([{"introduced": "1.0"}, {"fixed": "1.4"}], "1.10", False),
    ([{"introduced": "1.0"}, {"last_affected": "1.4"}], "1.4", True),
    ([{"introduced": "1.0"}, {"last_affected": "1.4"}], "1.4.1", False),
    ([{"fixed": "1.4"}, {"introduced": "2.0"}, {"fixed": "2.2"}, {"introduced": "1.0"}], "2.1", True),
    ([{"fixed": "1.4"}, {"introduced": "2.0"}, {"fixed": "2.2"}, {"introduced": "1.0"}], "1.9", False),
    ([{"introduced": "1.0"}, {"fixed": "not-a-version"}], "9.9", True),
]


@pytest.mark.parametrize(("events", "version", "expected"), RANGES)
def test_a_version_in_a_range_is_affected(events: list[dict[str, str]], version: str, expected: bool) -> None:
    assert is_affected(version, {"ranges": [{"type": "ECOSYSTEM", "events": events}]}) is expected
    assert not is_affected(version, {"ranges": [{"type": "GIT", "events": events}]})


def test_a_version_that_is_listed_is_affected_however_it_is_written() -> None:
    assert is_affected("1.0.0", {"versions": ["0.9", "1.0"]})
    assert not is_affected("1.0.1", {"versions": ["0.9", "1.0", "0.x-old"]})


def test_a_finding_names_the_advisory_and_what_is_fixed(tmp_path: Path) -> None:
    expected = Finding("shop", "1.3", ("CVE-2026-1", "PYSEC-2026-1"), ("1.4",), "opens the door")
    assert find(tmp_path / "all.zip", describe(aliases=["CVE-2026-1"])) == [expected]
    assert find(tmp_path / "all.zip", describe("SHOP")) != []
    assert find(tmp_path / "all.zip", describe(), version="1.4") == []
    assert find(tmp_path / "all.zip", describe("other")) == []
    assert find(tmp_path / "all.zip", describe(withdrawn=MODIFIED)) == []


def test_an_advisory_of_another_ecosystem_is_about_another_package(tmp_path: Path) -> None:
    entry = describe()
    entry["affected"][0]["package"]["ecosystem"] = "npm"
    assert find(tmp_path / "all.zip", entry) == []


def test_advisories_with_a_common_name_are_one_finding(tmp_path: Path) -> None:
    entries = [
        describe(identifier="GHSA-1"),
        describe(identifier="PYSEC-2026-1", aliases=["CVE-2026-1"]),
        describe(identifier="GHSA-2", aliases=["CVE-2026-1", "GHSA-1"]),
    ]
    (finding,) = find(tmp_path / "all.zip", *entries)
    assert finding.ids == ("CVE-2026-1", "GHSA-1", "GHSA-2", "PYSEC-2026-1")


def test_the_database_is_dated_by_its_newest_entry(tmp_path: Path) -> None:
    path = write_database(
        tmp_path / "all.zip", describe(), describe("other", "PYSEC-2026-2", modified="2026-11-21T00:00:00Z")
    )
    database = read_database(path, ["shop"])
    assert (f"{database.date:%Y-%m-%d}", database.size) == ("2026-11-21", 2)


@pytest.mark.parametrize("content", [b"", b"<html>", b"PK\x05\x06" + bytes(18)])
def test_what_is_no_database_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "all.zip").write_bytes(content)
    with pytest.raises(ValueError, match=r"all\.zip .*delete it"):
        read_database(tmp_path / "all.zip", ["shop"])


class Export(BaseHTTPRequestHandler):
    """Serves one file, unless the client has it already."""

    content = b""
    changed = "Fri, 20 Nov 2026 10:00:00 GMT"

    def do_GET(self) -> None:
        is_known = self.headers["If-Modified-Since"] == self.changed
        self.send_response(304 if is_known else 200)
        self.send_header("Last-Modified", self.changed)
        self.send_header("Content-Length", str(len(self.content)))
        self.end_headers()
        if not is_known:
            self.wfile.write(self.content)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def export(tmp_path: Path) -> Iterator[tuple[type[Export], str]]:
    """A server of the export, whose answer can be set, and its address."""
    answer = type("Answer", (Export,), {"content": write_database(tmp_path / "source.zip", describe()).read_bytes()})
    with ThreadingHTTPServer(("127.0.0.1", 0), answer) as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield answer, f"http://127.0.0.1:{server.server_port}/PyPI/all.zip"
        server.shutdown()
        thread.join()


@pytest.mark.integration
def test_the_database_is_fetched_when_it_has_changed(export: tuple[type[Export], str], tmp_path: Path) -> None:
    answer, address = export
    stored = tmp_path / "cache" / "advisories.zip"
    assert refresh(stored, address) == ""
    assert read_database(stored, ["shop"]).size == 1
    original, answer.content = answer.content, b"unchanged, so this is not sent"
    assert refresh(stored, address) == ""
    assert stored.read_bytes() == original
    answer.changed = "Sat, 21 Nov 2026 10:00:00 GMT"
    assert "no zip" in refresh(stored, address)
    assert stored.read_bytes() == original
    assert list(stored.parent.iterdir()) == [stored]
    answer.content = write_database(
        tmp_path / "source.zip", describe(), describe(identifier="PYSEC-2026-2")
    ).read_bytes()
    assert refresh(stored, address) == ""
    assert read_database(stored, ["shop"]).size == 2


@pytest.mark.integration
def test_without_a_network_the_stored_database_stays(tmp_path: Path) -> None:
    stored = write_database(tmp_path / "advisories.zip", describe())
    before = stored.read_bytes()
    assert "Connection refused" in refresh(stored, "http://127.0.0.1:9/PyPI/all.zip")
    assert stored.read_bytes() == before
