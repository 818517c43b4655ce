"""What large and hostile requests cost the registry page, in the memory of a real server process."""

from __future__ import annotations

import io
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path

import psutil
import pytest
from PIL import Image

from fmnist_tasks.settings import PROJECT
from tests.support.airflow_home import wait_until
from tests.support.pipeline import Pipeline
from tests.support.ports import accepts_connections, reserve_port

pytestmark = pytest.mark.integration
FORM = "application/x-www-form-urlencoded"
MULTIPART = "multipart/form-data; boundary=b"
BEGINNING = {
    FORM: b"version=v&reason=",
    MULTIPART: b'--b\r\nContent-Disposition: form-data; name="f"; filename="f"\r\n\r\n',
}


UPLOAD_SECONDS = 2


@dataclass(frozen=True)
class Server:
    """The page in a process of its own, on an empty store."""

    port: int
    process: psutil.Process
    temporary: Path

    def read_peak_memory(self) -> int:
        """Bytes of memory that the process has had at most since the last reset."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.partition("VmHWM:")[2].split()[0]) << 10

    def reset_peak_memory(self) -> None:
        Path(f"/proc/{self.process.pid}/clear_refs").write_text("5")

    def count_temporary_bytes(self) -> int:
        """Bytes of the process's temporary files, which have no name any more."""
        found = 0
        for descriptor in Path(f"/proc/{self.process.pid}/fd").iterdir():
            with suppress(FileNotFoundError):  # one that has just been closed
                found += descriptor.stat().st_size if descriptor.readlink().is_relative_to(self.temporary) else 0
        return found

    def send_endlessly(self, path: str, headers: dict[str, str], beginning: bytes, most: int) -> tuple[bytes, int, int]:
        """Send up to that many bytes of a body; the answer, the bytes that were taken, and those in temporary files."""
        lines = [f"POST {path} HTTP/1.1", "Host: page", *(f"{name}: {value}" for name, value in headers.items())]
        chunked = "Transfer-Encoding" in headers
        sent = kept = 0
        answer = b""
        with socket.create_connection(("127.0.0.1", self.port), timeout=60) as connection:
            connection.sendall("\r\n".join([*lines, "", ""]).encode())
            piece = beginning
            with suppress(ConnectionError):
                while sent < most:
                    connection.sendall(b"%x\r\n%s\r\n" % (len(piece), piece) if chunked else piece)
                    sent += len(piece)
                    kept = max(kept, self.count_temporary_bytes())
                    piece = b"a" * 65536
            with suppress(ConnectionError):
                while part := connection.recv(65536):
                    answer += part
                    if b"\r\n\r\n" in answer:
                        break
        return answer, sent, kept


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    if sys.platform != "linux":
        pytest.skip("the memory of a process is read from Linux's /proc")
    pipeline, port = Pipeline(tmp_path_factory.mktemp("page")), reserve_port()
    temporary = pipeline.home / "temporary"
    temporary.mkdir()
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.support.page_server", str(port), str(UPLOAD_SECONDS)],
        cwd=PROJECT,
        env=os.environ | pipeline.environment | {"TMPDIR": str(temporary)},
    )
    wait_until(lambda: process.poll() is not None or accepts_connections(port), every=0.05)
    yield Server(port, psutil.Process(process.pid), temporary)
    process.terminate()
    assert process.wait() in {0, -15}


@pytest.mark.parametrize("kind", [FORM, MULTIPART])
@pytest.mark.parametrize(
    "length",
    [{"Content-Length": str(200 << 20)}, {"Transfer-Encoding": "chunked"}],
    ids=["with its length", "in chunks"],
)
@pytest.mark.parametrize("path", ["/rollback", "/withdrawals/withdraw", "/try/image", "/", "/gone"])
def test_a_large_body_of_a_stranger_is_refused_without_being_read(
    server: Server, path: str, length: dict[str, str], kind: str
) -> None:
    server.reset_peak_memory()
    before = server.read_peak_memory()
    headers = {"Content-Type": kind, "Sec-Fetch-Site": "same-origin"} | length
    answer, sent, kept = server.send_endlessly(path, headers, BEGINNING[kind], 200 << 20)
    # Routes that read no body refuse the stranger, the method or the address first.
    assert answer.split()[1] in {b"413", b"401", b"404", b"405"}, answer
    assert b"connection: close" in answer.lower()
    assert sent < 20 << 20  # what the system's buffers hold
    assert server.read_peak_memory() - before < 20 << 20
    assert kept == 0


def test_an_upload_is_cut_off_at_its_bound(server: Server) -> None:
    headers = {"Transfer-Encoding": "chunked", "X-User": "ann", "Sec-Fetch-Site": "same-origin"}
    answer, sent, _ = server.send_endlessly("/try/image", headers, b"a", 200 << 20)
    assert answer.split()[1] == b"413"
    assert sent < 25 << 20


def test_uploads_that_stand_still_make_room_for_others(server: Server) -> None:
    lines = ["POST /try/image HTTP/1.1", "Host: page", "X-User: ann", "Sec-Fetch-Site: same-origin"]
    head = "\r\n".join([*lines, "Content-Length: 1000", "", ""]).encode()
    with ExitStack() as connections:
        waiting = [
            connections.enter_context(socket.create_connection(("127.0.0.1", server.port), timeout=60))
            for _ in range(8)
        ]
        for connection in waiting:
            connection.sendall(head + b"a")
        answers = [connection.recv(65536) for connection in waiting]
    assert {answer.split()[1] for answer in answers} == {b"408"}
    assert all(b"connection: close" in answer.lower() and b"not received within 2" in answer for answer in answers)
    answer, *_ = server.send_endlessly("/try/image", {"X-User": "ann", "Content-Length": "1"}, b"a", 1)
    assert answer.split()[1] in {b"404", b"422"}  # there is no champion


def test_hostile_images_at_once_take_bounded_memory(server: Server) -> None:
    """A small file of 4096 x 4096 pixels takes 82 MiB; there is no champion, so that decoding is all that it costs."""
    packed = io.BytesIO()
    Image.new("RGBA", (4096, 4096)).save(packed, "png")
    assert len(packed.getvalue()) < 100_000
    server.reset_peak_memory()
    before = server.read_peak_memory()

    def upload(_: int) -> tuple[int, str | None]:
        connection = HTTPConnection("127.0.0.1", server.port, timeout=120)
        headers = {"X-User": "ann", "Sec-Fetch-Site": "same-origin"}
        connection.request("POST", "/try/image", packed.getvalue(), headers)
        with connection.getresponse() as answer:
            answer.read()
            found = answer.status, answer.headers["Retry-After"]
        connection.close()
        return found

    with ThreadPoolExecutor(24) as senders:
        answers = set(senders.map(upload, range(24)))
    assert answers == {(404, None), (503, "5")}
    assert server.read_peak_memory() - before < 250 << 20
