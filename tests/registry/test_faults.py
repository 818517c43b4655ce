"""The guarantees of publish and promote on a real server, over a connection with every kind of fault."""

from __future__ import annotations

import random
import socket
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path

import pytest
import urllib3

from fmnist_tasks.errors import StoreError
from fmnist_tasks.registry import champion, releases, retries
from fmnist_tasks.registry.s3 import S3Store
from fmnist_tasks.registry.store import Store
from fmnist_tasks.registry.stores import open_store
from fmnist_tasks.schemas.releases import Entry, Manifest
from fmnist_tasks.settings import Settings
from tests.support.documents import make_facts
from tests.support.ports import reserve_port
from tests.support.processes import PROCESS_CONTEXT, promote_releases, start_process, wait_for_exit
from tests.support.proxy import Fault, Proxy, Request

pytestmark = pytest.mark.integration


def open_proxied_store() -> Store:
    return open_store(Settings.from_environment().store)


def promote(store: Store, version: str, after: int) -> Entry:
    return champion.append_entry(store, version=version, action="promote", reason="why", write_id=version, after=after)


def publish(store: Store, version: str) -> Manifest:
    files = {"model.h5": version.encode() * 100, "model_card.md": b"card", "report.html": b"report"}
    files |= {f"figures/{name}.png": bytes(3000) for name in "abcd"}
    return releases.publish_release(store, version, files, make_facts(version))


def is_append(request: Request) -> bool:
    return request.method == "PUT" and "/champion/" in request.path


def test_a_lost_response_is_not_a_conflict(minio_store: S3Store, proxy: Proxy) -> None:
    dropped: set[str] = set()

    def drop_first_response(request: Request) -> Fault | None:
        if is_append(request) and request.path not in dropped:
            dropped.add(request.path)
            return Fault(drop_response=True)
        return None

    proxy.reset(drop_first_response)
    store = open_proxied_store()
    for number in range(1, 41):
        entry = promote(store, f"v{number}", number - 1)
        assert (entry.sequence, entry.version) == (number, f"v{number}")
    assert len(dropped) == 40
    statuses = Counter(request.status for request in proxy.requests if is_append(request))
    assert statuses == {200: 40, 412: 40}  # each was written once, and the server refused the second attempt
    assert [entry.version for entry in champion.list_entries(minio_store)] == [f"v{number}" for number in range(1, 41)]


@pytest.mark.parametrize(("writers", "promotions"), [(4, 10), pytest.param(8, 25, marks=pytest.mark.exhaustive)])
def test_one_of_many_simultaneous_promotions_wins_and_each_writer_learns_the_outcome(
    minio_store: S3Store, tmp_path: Path, writers: int, promotions: int
) -> None:
    output, queue = tmp_path / "output.txt", PROCESS_CONTEXT.Queue()
    processes = [start_process(output, promote_releases, writer, promotions, queue) for writer in range(writers)]
    outcomes = [outcome for _ in processes for outcome in queue.get(timeout=600)]
    for process in processes:
        assert wait_for_exit(process, output)
    history = champion.list_entries(minio_store)
    assert [entry.sequence for entry in history] == list(range(1, writers * promotions + 1))
    assert Counter((entry.sequence, entry.version) for entry in history) == Counter(
        (sequence, version) for sequence, version in outcomes if sequence
    )
    assert len({entry.version for entry in history}) == writers * promotions
    assert len(outcomes) > len(history)  # some writers lost a conflict, and retried


@pytest.mark.parametrize("count", [10, pytest.param(50, marks=pytest.mark.exhaustive)])
def test_transient_errors_do_not_stop_publications(minio_store: S3Store, proxy: Proxy, count: int) -> None:
    generator = random.Random(0)  # noqa: S311
    statuses = [429, 500, 502, 503, 504]
    proxy.reset(lambda _: Fault(status=generator.choice(statuses)) if generator.random() < 0.2 else None)
    store = open_proxied_store()
    for number in range(count):
        publish(store, f"v{number:02d}")
    failed = sum(request.status == 0 for request in proxy.requests)
    assert failed > len(proxy.requests) / 10
    assert releases.list_versions(minio_store) == [f"v{number:02d}" for number in range(count)]
    for version in releases.list_versions(minio_store):
        assert len(releases.read_files(minio_store, releases.read_manifest(minio_store, version))) == 7


@pytest.mark.parametrize(
    "fault", [Fault(close_connection=True), Fault(drop_response=True), Fault(truncate_body=True), Fault(status=503)]
)
def test_operations_survive_a_fault_at_every_third_request(minio_store: S3Store, proxy: Proxy, fault: Fault) -> None:
    proxy.reset(lambda request: fault if request.number % 3 == 1 else None)
    store = open_proxied_store()
    content = bytes(range(256)) * 40_000
    store.put("large", content)
    assert store.get("large") == content
    assert store.put_if_absent("small", b"x") or fault.drop_response
    assert [stat.key for stat in store.list("")] == ["conditional-create.txt", "large", "small"]
    assert store.stat("small").bytes == 1
    store.delete("small")
    assert minio_store.stat("small") is None


def test_a_conflict_of_two_creates_is_retried(proxy: Proxy) -> None:
    proxy.reset(
        lambda request: Fault(status=409) if request.number % 2 and "if-none-match" in request.headers else None
    )
    store = open_proxied_store()
    assert store.put_if_absent("k", b"x")
    assert not store.put_if_absent("k", b"y")
    assert store.get("k") == b"x"


def test_a_slow_server_does_not_fail_a_publication(minio_store: S3Store, proxy: Proxy) -> None:
    proxy.reset(lambda _: Fault(delay=0.5))
    publish(open_proxied_store(), "v1")
    assert releases.list_versions(minio_store) == ["v1"]


# Unreachable servers, with shorter time limits; test_retries.py tests the real ones.


@contextmanager
def refuse_connections() -> Iterator[str]:
    yield f"http://127.0.0.1:{reserve_port()}"


@contextmanager
def send_nothing() -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


@contextmanager
def close_connections() -> Iterator[str]:
    def serve() -> None:
        with suppress(OSError):  # the listener was shut down
            while True:
                listener.accept()[0].close()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield f"https://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


@pytest.mark.parametrize(
    ("serve", "reason"),
    [
        (refuse_connections, "does not accept connections"),
        (send_nothing, "does not respond in time"),
        (close_connections, "fails: .*"),
    ],
)
def test_an_unreachable_server_is_reported(
    minio_store: S3Store, monkeypatch: pytest.MonkeyPatch, serve: Callable[[], AbstractContextManager[str]], reason: str
) -> None:
    monkeypatch.setattr(retries, "MAX_RETRY_SECONDS", 0.5)
    monkeypatch.setattr("fmnist_tasks.registry.s3_address._TIMEOUT", urllib3.Timeout(connect=0.2, read=0.2))
    with serve() as endpoint:
        store = open_store(f"s3://bucket?endpoint={endpoint}")
        for send in (
            lambda: store.get("k"),
            lambda: store.put("k", b"x"),
            lambda: list(store.list("")),
            lambda: store.stat("k"),
        ):
            with pytest.raises(StoreError, match=rf"cannot \w+ {endpoint}/bucket/.*: {endpoint} {reason}; check that"):
                send()
