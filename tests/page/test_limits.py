"""Large and hostile requests to the Releases page, and the memory that they take in a real server process."""

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

from fmnist_tasks.registry import champion, releases
from fmnist_tasks.registry.folder import FolderStore
from fmnist_tasks.settings import PROJECT
from tests.support.airflow_home import wait_until
from tests.support.documents import make_facts
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
    """The Releases page in a separate process, with a store that is empty at first."""

    port: int
    process: psutil.Process
    temporary: Path
    store: FolderStore

    def read_peak_memory(self) -> int:
        """The peak memory of the process since the last reset, in bytes."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.partition("VmHWM:")[2].split()[0]) << 10

    def reset_peak_memory(self) -> None:
        Path(f"/proc/{self.process.pid}/clear_refs").write_text("5")

    def count_temporary_bytes(self) -> int:
        """Count the bytes in the temporary files of the process, which no longer have a name."""
        count = 0
        for descriptor in Path(f"/proc/{self.process.pid}/fd").iterdir():
            with suppress(FileNotFoundError):  # it has just been closed
                count += descriptor.stat().st_size if descriptor.readlink().is_relative_to(self.temporary) else 0
        return count

    def send_body(self, path: str, headers: dict[str, str], beginning: bytes, max_bytes: int) -> tuple[bytes, int, int]:
        """Send a body of up to `max_bytes`; return the response, the bytes sent, and those in temporary files."""
        lines = [f"POST {path} HTTP/1.1", "Host: page", *(f"{name}: {value}" for name, value in headers.items())]
        chunked = "Transfer-Encoding" in headers
        sent = stored = 0
        response = b""
        with socket.create_connection(("127.0.0.1", self.port), timeout=60) as connection:
            connection.sendall("\r\n".join([*lines, "", ""]).encode())
            chunk = beginning
            with suppress(ConnectionError):
                while sent < max_bytes:
                    connection.sendall(b"%x\r\n%s\r\n" % (len(chunk), chunk) if chunked else chunk)
                    sent += len(chunk)
                    stored = max(stored, self.count_temporary_bytes())
                    chunk = b"a" * 65536
            with suppress(ConnectionError):
                while received := connection.recv(65536):
                    response += received
                    if b"\r\n\r\n" in response:
                        break
        return response, sent, stored


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    pipeline, port = Pipeline(tmp_path_factory.mktemp("page")), reserve_port()
    temporary = pipeline.home / "temporary"
    temporary.mkdir()
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.support.page_server", str(port), str(UPLOAD_SECONDS)],
        cwd=PROJECT,
        env=os.environ | pipeline.environment | {"TMPDIR": str(temporary)},
    )
    wait_until(lambda: process.poll() is not None or accepts_connections(port), every=0.05)
    yield Server(port, psutil.Process(process.pid), temporary, pipeline.store)
    process.terminate()
    assert process.wait() in {0, -15}


@pytest.mark.parametrize("kind", [FORM, MULTIPART])
@pytest.mark.parametrize(
    "length", [{"Content-Length": str(200 << 20)}, {"Transfer-Encoding": "chunked"}], ids=["with length", "chunked"]
)
@pytest.mark.parametrize(
    "path", ["/rollback", "/withdrawals/withdraw", "/withdrawals/submit", "/try/image", "/datasets/a/b/submit", "/gone"]
)
def test_a_large_unauthenticated_body_is_refused_unread(
    server: Server, path: str, length: dict[str, str], kind: str
) -> None:
    server.reset_peak_memory()
    before = server.read_peak_memory()
    headers = {"Content-Type": kind, "Sec-Fetch-Site": "same-origin"} | length
    response, sent, stored = server.send_body(path, headers, BEGINNING[kind], 200 << 20)
    # Routes that do not read the body respond earlier, with 401, 404 or 405.
    assert response.split()[1] in {b"413", b"401", b"404", b"405"}, response
    assert b"connection: close" in response.lower()
    assert sent < 20 << 20  # the size of the system's buffers
    assert server.read_peak_memory() - before < 20 << 20
    assert stored == 0


def test_an_upload_is_cut_off_at_its_limit(server: Server) -> None:
    headers = {"Transfer-Encoding": "chunked", "X-User": "ann", "Sec-Fetch-Site": "same-origin"}
    response, sent, _ = server.send_body("/try/image", headers, b"a", 200 << 20)
    assert response.split()[1] == b"413"
    assert sent < 25 << 20


def test_stalled_uploads_time_out_and_let_others_in(server: Server) -> None:
    lines = ["POST /try/image HTTP/1.1", "Host: page", "X-User: ann", "Sec-Fetch-Site: same-origin"]
    head = "\r\n".join([*lines, "Content-Length: 1000", "", ""]).encode()
    with ExitStack() as connections:
        uploads = [
            connections.enter_context(socket.create_connection(("127.0.0.1", server.port), timeout=60))
            for _ in range(8)
        ]
        for connection in uploads:
            connection.sendall(head + b"a")
        responses = [connection.makefile("rb").read() for connection in uploads]  # the server closes the connection
    assert {response.split()[1] for response in responses} == {b"408"}
    assert all(b"connection: close" in text.lower() and b"not received within 2" in text for text in responses)
    response, *_ = server.send_body("/try/image", {"X-User": "ann", "Content-Length": "1"}, b"a", 1)
    assert response.split()[1] in {b"404", b"422"}  # there is no champion


def test_many_hostile_images_at_once_take_limited_memory(server: Server) -> None:
    """A small file of 4096 x 4096 pixels takes 190 MiB to decode. The champion's model is missing: no other cost."""
    packed = io.BytesIO()
    Image.new("RGBA", (4096, 4096)).save(packed, "png")
    assert len(packed.getvalue()) < 100_000
    releases.publish_release(server.store, "v1", {"model.h5": b"not a model"}, make_facts())
    champion.append_entry(server.store, version="v1", action="promote", reason="first", write_id="run-0", after=0)
    server.store.delete("releases/v1/model.h5")
    server.reset_peak_memory()
    before = server.read_peak_memory()

    def upload(_: int) -> tuple[int, str | None]:
        connection = HTTPConnection("127.0.0.1", server.port, timeout=120)
        headers = {"X-User": "ann", "Sec-Fetch-Site": "same-origin"}
        connection.request("POST", "/try/image", packed.getvalue(), headers)
        with connection.getresponse() as response:
            response.read()
            outcome = response.status, response.headers["Retry-After"]
        connection.close()
        return outcome

    with ThreadPoolExecutor(24) as senders:
        outcomes = set(senders.map(upload, range(24)))
    assert server.read_peak_memory() - before > 100 << 20  # they are decoded
    assert outcomes == {(404, None), (503, "5")}
    assert server.read_peak_memory() - before < 250 << 20
