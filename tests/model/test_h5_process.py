"""The child process that reads a file: whenever it fails, the reason is reported and nothing is loaded."""

from __future__ import annotations

import ctypes
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fmnist_tasks.errors import ModelError
from fmnist_tasks.model import h5, h5_process, h5_structure

Replace = Callable[[str], None]
SECRET = ctypes.create_string_buffer(b"a secret")
ADDRESS = ctypes.addressof(SECRET)


def has_landlock() -> bool:
    return sys.platform == "linux" and ctypes.CDLL(None).syscall(444, None, 0, 1) >= 6


@pytest.fixture
def replace(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Replace:
    """Replace the program of the child; in the new one, `real` is the original module."""
    folder = str(Path(h5_structure.__file__).parent)

    def replace(program: str) -> None:
        h5_process.read_model.cache_clear()
        path = tmp_path / "program.py"
        path.write_text(f"import sys\nsys.path.append({folder!r})\nimport h5_structure as real\n{program}\n")
        monkeypatch.setattr(h5_structure, "__file__", str(path))

    return replace


def encode_output(header: dict[str, Any], rest: bytes = b"") -> bytes:
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + rest


def test_the_signal_of_a_killed_child_is_reported(replace: Replace, saved_model: bytes) -> None:
    replace("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)")
    with pytest.raises(
        ModelError,
        match=r"^m: could not be read: the reading process ended with SIGKILL \(limits: 192 MiB, 5 s of CPU\); it",
    ):
        h5.load_model(saved_model, "m")


def test_the_crash_of_a_child_is_reported(replace: Replace, saved_model: bytes) -> None:
    replace("import ctypes\nctypes.string_at(0)")
    with pytest.raises(ModelError, match=r"^m: .* ended with SIGSEGV \(.*\); it is not opened"):
        h5.load_model(saved_model, "m")


def test_a_hanging_child_is_ended(replace: Replace, saved_model: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(h5_process, "_TIMEOUT", 0.5)
    replace("import signal\nsignal.pause()")
    with pytest.raises(ModelError, match=r"^m: could not be read within 0.5 seconds; it is not opened"):
        h5.load_model(saved_model, "m")


def test_the_error_of_a_child_is_reported(replace: Replace, saved_model: bytes) -> None:
    replace("raise SystemExit('no\\n\\x1bway')")
    with pytest.raises(ModelError, match=r"^m: .* ended with code 1: no way \(.*\); it is not opened"):
        h5.load_model(saved_model, "m")


def test_a_missing_python_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.executable", "/nowhere/python")
    with pytest.raises(ModelError, match=r"^m: could not be read: Python \(/nowhere/python\) does not start"):
        h5.load_model(b"file", "m")


def test_a_file_that_needs_too_much_memory_is_refused(replace: Replace, saved_model: bytes) -> None:
    replace("real.h5py.File = lambda *_: bytearray(300 << 20)\nreal.main()")
    with pytest.raises(ModelError, match=r"^m: cannot be read within 192 MiB of memory; it is not opened"):
        h5.load_model(saved_model, "m")


@pytest.mark.exhaustive
def test_a_file_that_needs_too_much_cpu_is_refused(replace: Replace, saved_model: bytes) -> None:
    replace("import itertools\nreal.h5py.File = lambda *_: sum(itertools.count())\nreal.main()")
    with pytest.raises(ModelError, match=r"^m: could not be read: .* ended with SIG(XCPU|KILL) .*; it is not opened"):
        h5.load_model(saved_model, "m")


@pytest.mark.parametrize(
    "attempt", ["open('/etc/passwd')", "socket.socket()", "os.pipe()", "subprocess.run(['true'])", "os.listdir('/')"]
)
def test_code_in_the_child_cannot_open_anything(attempt: str, replace: Replace) -> None:
    replace(f"import os, socket, subprocess\nreal.h5py.File = lambda *_: {attempt}\nreal.main()")
    with pytest.raises(ModelError, match="Too many open files"):
        h5_process.read_model(b"file")


@pytest.mark.skipif(not has_landlock(), reason="this kernel has no Landlock, or one without scopes (before Linux 6.12)")
@pytest.mark.parametrize(
    "attempt",
    [
        "os.kill(os.getppid(), 0)",
        "read_memory(os.getppid())",
        "libc.ptrace(0x4206, os.getppid(), 0, 0) and fail()",  # PTRACE_SEIZE, which does not stop the process
        "open(f'/proc/{os.getppid()}/environ')",
        "open('/etc/passwd')",
        "open('/dev/full', 'w')",
        "os.unlink('{file}')",
        "os.truncate('{file}', 0)",
        "os.rename('{file}', '{file}.new')",
        "os.symlink('/etc/passwd', '{file}.link')",
        "socket.create_connection(('127.0.0.1', 1))",
    ],
)
def test_code_in_the_child_cannot_access_files_or_processes(attempt: str, replace: Replace, tmp_path: Path) -> None:
    """Landlock holds even without the limit on open files, which root can lift."""
    file = tmp_path / "file"
    file.write_text("content")
    attempt = attempt.replace("{file}", str(file))
    replace(f"""
import ctypes, os, socket
libc = ctypes.CDLL(None, use_errno=True)

class Span(ctypes.Structure):
    _fields_ = [("base", ctypes.c_void_p), ("length", ctypes.c_size_t)]

def fail():
    raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))

def read_memory(pid):
    local, remote = ctypes.create_string_buffer(8), Span({ADDRESS}, 8)
    if libc.process_vm_readv(pid, ctypes.byref(Span(ctypes.addressof(local), 8)), 1, ctypes.byref(remote), 1, 0) < 0:
        fail()

import resource
resource.setrlimit = lambda *_: None
real.h5py.File = lambda *_: {attempt}
real.main()""")
    with pytest.raises(ModelError, match=r"Operation not permitted|Permission denied"):
        h5_process.read_model(b"file")
    assert {path.name: path.read_text() for path in tmp_path.glob("file*")} == {"file": "content"}


def test_the_child_inherits_no_secrets_and_no_files(
    replace: Replace, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hush")
    with (tmp_path / "secret").open("w") as secret:
        os.set_inheritable(secret.fileno(), True)
        facts = "[*os.environ], [f for f in range(3, 999) if os.path.exists(f'/proc/self/fd/{f}')], sys.flags.isolated"
        replace(f"import os\nraise SystemExit(repr(({facts})))")
        with pytest.raises(ModelError, match=r"code 1: \(\[.*\], \[\], 1\) \(limits") as refusal:
            h5_process.read_model(b"file")
    assert "OPENBLAS_NUM_THREADS" in str(refusal.value)
    assert "AWS" not in str(refusal.value)


def test_the_output_is_decoded_to_arrays_by_layer() -> None:
    _, weights = h5_process.decode_output(encode_output({"weights": [["a", [[2, 1], [1]]]]}, bytes(8) + b"\0\0\x80?"))
    assert not any(array.flags.writeable for arrays in weights.values() for array in arrays)  # since they are cached
    assert {layer: [array.tolist() for array in arrays] for layer, arrays in weights.items()} == {
        "a": [[[0.0], [0.0]], [1.0]]
    }


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        ({"weights": [["a", [[1]]], ["a", [[1]]]]}, "has the weights of a twice"),
        ({"weights": [["a", [[3]]]]}, "fewer bytes than it declared"),
        ({"weights": [["a", [[2**62, 2**62]]]]}, "fewer bytes than it declared"),
        ({"weights": [["a", [[1]]]]}, "more bytes than it declared"),
        ({"weights": [["a", [[0]]]]}, "invalid output"),
        ({"weights": [["a", [[-1]]]]}, "invalid output"),
        ({"weights": [["a", [[1, 1, 1, 1, 1]]]]}, "invalid output"),
        ({"weights": [["a", 1]]}, "invalid output"),
        ({"configuration": None}, "invalid output"),
        ({"more": 1}, "invalid output"),
        ({"fault": "a\n\x1bb" + 999 * "c"}, "^a b" + 296 * "c" + "$"),
    ],
)
def test_an_invalid_header_is_refused(header: dict[str, Any], reason: str) -> None:
    with pytest.raises(ModelError, match=reason):
        h5_process.decode_output(encode_output(header, bytes(8)))


@pytest.mark.parametrize("output", [b"", b"hello, world", b"\xff" * 99, bytes(64), b"\xff" * 8 + b"[" * 99_999])
def test_invalid_output_is_refused(output: bytes) -> None:
    with pytest.raises(ModelError, match="invalid output"):
        h5_process.decode_output(output)


def test_the_output_of_a_child_is_limited(replace: Replace, saved_model: bytes) -> None:
    replace("real.json.dumps = lambda _: 'x' * (40 << 20)\nreal.main()")
    with pytest.raises(ModelError, match=r"^m: .* ended with code 1: .* File too large \(.*\); it is not opened"):
        h5.load_model(saved_model, "m")


def test_a_file_that_is_too_large_starts_no_child() -> None:
    with pytest.raises(ModelError, match="has 33,554,433 bytes, more than 33,554,432"):
        h5_process.read_model(bytes((32 << 20) + 1))
