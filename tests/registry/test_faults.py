"""The promises of publish and promote on a real server, through a connection that fails in every way."""

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
from fmnist_tasks.registry import champion, releases, tries
from fmnist_tasks.registry.s3 import S3Store
from fmnist_tasks.registry.store import Store, open_store
from fmnist_tasks.settings import Settings
from tests.support.ports import reserve_port
from tests.support.processes import PROCESS_CONTEXT, promote_releases, start_process, wait_for_exit
from tests.support.proxy import Fault, Proxy, Request

pytestmark = pytest.mark.integration


def fresh() -> Store:
    return open_store(Settings.from_environment().store)


def promote(store: Store, version: str, after: int) -> champion.Entry:
    return champion.append(store, version=version, action="promote", reason="why", write_id=version, after=after)


def publish(store: Store, version: str) -> releases.Manifest:
    files = {"model.h5": version.encode() * 100, "model_card.md": b"card", "report.html": b"report"}
    files |= {f"figures/{name}.png": bytes(3000) for name in "abcd"}
    return releases.publish(store, version, files, {"model_sha256": version})


def is_append(request: Request) -> bool:
    return request.method == "PUT" and "/champion/" in request.path


def test_a_lost_answer_is_no_conflict(minio_store: S3Store, proxy: Proxy) -> None:
    lost: set[str] = set()

    def lose_the_first(request: Request) -> Fault | None:
        if is_append(request) and request.path not in lost:
            lost.add(request.path)
            return Fault(drop_response=True)
        return None

    proxy.reset(lose_the_first)
    store = fresh()
    for number in range(1, 41):
        entry = promote(store, f"v{number}", number - 1)
        assert (entry.sequence, entry.version) == (number, f"v{number}")
    assert len(lost) == 40
    statuses = Counter(request.status for request in proxy.requests if is_append(request))
    assert statuses == {200: 40, 412: 40}  # each was written once, and the second try refused by the server
    assert [entry.version for entry in champion.history(minio_store)] == [f"v{number}" for number in range(1, 41)]


@pytest.mark.parametrize(("writers", "promotions"), [(4, 10), pytest.param(8, 25, marks=pytest.mark.exhaustive)])
def test_one_of_many_simultaneous_promotions_wins_and_each_writer_is_told_the_truth(
    minio_store: S3Store, tmp_path: Path, writers: int, promotions: int
) -> None:
    said, told = tmp_path / "said.txt", PROCESS_CONTEXT.Queue()
    processes = [start_process(said, promote_releases, writer, promotions, told) for writer in range(writers)]
    outcomes = [outcome for _ in processes for outcome in told.get(timeout=600)]
    for process in processes:
        assert wait_for_exit(process, said)
    history = champion.history(minio_store)
    assert [entry.sequence for entry in history] == list(range(1, writers * promotions + 1))
    assert Counter((entry.sequence, entry.version) for entry in history) == Counter(
        (sequence, version) for sequence, version in outcomes if sequence
    )
    assert len({entry.version for entry in history}) == writers * promotions
    assert len(outcomes) > len(history)  # some were told that another had won, and tried again


@pytest.mark.parametrize("count", [10, pytest.param(50, marks=pytest.mark.exhaustive)])
def test_errors_that_pass_do_not_stop_publications(minio_store: S3Store, proxy: Proxy, count: int) -> None:
    dice = random.Random(0)  # noqa: S311
    proxy.reset(lambda _: Fault(status=dice.choice([429, 500, 502, 503, 504])) if dice.random() < 0.2 else None)
    store = fresh()
    for number in range(count):
        publish(store, f"v{number:02d}")
    failed = sum(request.status == 0 for request in proxy.requests)
    assert failed > len(proxy.requests) / 10
    assert releases.versions(minio_store) == [f"v{number:02d}" for number in range(count)]
    for version in releases.versions(minio_store):
        assert len(releases.read_files(minio_store, releases.read_manifest(minio_store, version))) == 7


@pytest.mark.parametrize(
    "fault", [Fault(close_connection=True), Fault(drop_response=True), Fault(truncate_body=True), Fault(status=503)]
)
def test_a_connection_that_breaks_now_and_then(minio_store: S3Store, proxy: Proxy, fault: Fault) -> None:
    proxy.reset(lambda request: fault if request.number % 3 == 1 else None)
    store = fresh()
    content = bytes(range(256)) * 40_000
    store.put("large", content)
    assert store.get("large") == content
    assert store.put_if_absent("small", b"x") or fault.drop_response
    assert [stat.key for stat in store.list("")] == ["conditional-create.txt", "large", "small"]
    assert store.stat("small").bytes == 1
    store.delete("small")
    assert minio_store.stat("small") is None


def test_two_creations_that_collide_are_decided_by_another_try(proxy: Proxy) -> None:
    proxy.reset(
        lambda request: Fault(status=409) if request.number % 2 and "if-none-match" in request.headers else None
    )
    store = fresh()
    assert store.put_if_absent("k", b"x")
    assert not store.put_if_absent("k", b"y")
    assert store.get("k") == b"x"


def test_a_slow_server_is_waited_for(minio_store: S3Store, proxy: Proxy) -> None:
    proxy.reset(lambda _: Fault(delay=0.5))
    publish(fresh(), "v1")
    assert releases.versions(minio_store) == ["v1"]


# A server that is gone. The limits are shortened so that no test waits for them; test_tries.py is about their length.


@contextmanager
def refused() -> Iterator[str]:
    yield f"http://127.0.0.1:{reserve_port()}"


@contextmanager
def silent() -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


@contextmanager
def hanging_up() -> Iterator[str]:
    def hang_up() -> None:
        with suppress(OSError):  # the listener was shut down
            while True:
                listener.accept()[0].close()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=hang_up)
        thread.start()
        try:
            yield f"https://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


@pytest.mark.parametrize(
    ("where", "ailment"),
    [(refused, "accepts no connection"), (silent, "does not answer in time"), (hanging_up, "fails: .*")],
)
def test_a_server_that_is_gone(
    minio_store: S3Store,
    monkeypatch: pytest.MonkeyPatch,
    where: Callable[[], AbstractContextManager[str]],
    ailment: str,
) -> None:
    monkeypatch.setattr(tries, "BUDGET", 0.5)
    monkeypatch.setattr("fmnist_tasks.registry.access._TIMEOUT", urllib3.Timeout(connect=0.2, read=0.2))
    with where() as endpoint:
        store = open_store(f"s3://bucket?endpoint={endpoint}")
        for ask in (
            lambda: store.get("k"),
            lambda: store.put("k", b"x"),
            lambda: list(store.list("")),
            lambda: store.stat("k"),
        ):
            with pytest.raises(StoreError, match=rf"cannot \w+ {endpoint}/bucket/.*: {endpoint} {ailment}; see that"):
                ask()
