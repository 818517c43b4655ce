"""Parsing a DAG file uses neither store nor network, so a store that hangs cannot remove the DAGs."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from fmnist_tasks.settings import PROJECT

pytestmark = pytest.mark.integration

DAGS = {"fmnist_predict", "fmnist_retrain", "fmnist_rollback", "fmnist_watch", "fmnist_withdraw"}
# Parses all files of the folders as the dag-processor does, for each store, and prints the DAGs and the accesses.
PROGRAM = """
import json, os, sys
from airflow.dag_processing.dagbag import DagBag

stores, folders = json.loads(sys.argv[1]), sys.argv[2:]
accesses, listening = [], False

def watch(event, arguments):
    if not listening:
        return
    first = arguments[0] if arguments else None
    if event in {"socket.connect", "socket.getaddrinfo", "socket.sendto"}:
        accesses.append(event)
    elif event in {"open", "os.listdir", "os.scandir", "os.mkdir"} and isinstance(first, (str, bytes)):
        path = os.fsdecode(first)
        if not path.startswith(FOLDER):
            return
        accesses.append(event)
    else:
        return
    raise RuntimeError(f"{event} while a DAG file is parsed")

sys.addaudithook(watch)
results = []
for store in stores:
    FOLDER = store.removeprefix("file://")
    os.environ["FMNIST_STORE"] = store
    for folder in folders:
        sys.path.append(folder)
        listening = True
        bag = DagBag(folder, safe_mode=False)
        listening = False
        sys.path.remove(folder)
        sys.modules.pop("fmnist_defaults", None)
        results.append({"dags": sorted(bag.dags), "accesses": accesses[:], "errors": len(bag.import_errors)})
        accesses.clear()
print(json.dumps(results))
"""
LISTING = """
from fmnist_tasks.registry.stores import open_store
from fmnist_tasks.settings import Settings

RELEASES = list(open_store(Settings.from_environment().store).list("releases/"))
"""


def test_no_dag_file_uses_a_store_or_a_network(tmp_path: Path) -> None:
    store = tmp_path / "store"
    (store / "releases").mkdir(parents=True)
    listing = Path(shutil.copytree(PROJECT / "dags", tmp_path / "dags", ignore=shutil.ignore_patterns("__pycache__")))
    for file in (listing / "fmnist_rollback.py", listing / "fmnist_predict.py"):
        file.write_text(file.read_text().replace("\nfrom fmnist_defaults", f"\n{LISTING}\nfrom fmnist_defaults", 1))
    with socket.create_server(("127.0.0.1", 0), backlog=10) as server:  # accepts connections and never responds
        port = server.getsockname()[1]
        stores = [f"s3://bucket?endpoint=http://127.0.0.1:{port}", store.as_uri()]
        command = [sys.executable, "-c", PROGRAM, json.dumps(stores), str(PROJECT / "dags"), str(listing)]
        credentials = {"MINIO_ACCESS_KEY": "a", "MINIO_SECRET_KEY": "b"}
        result = subprocess.run(command, env=os.environ | credentials, capture_output=True, text=True)
        server.setblocking(False)
        with pytest.raises(BlockingIOError):
            server.accept()
    assert result.returncode == 0, result.stderr
    results = json.loads(result.stdout.splitlines()[-1])
    for original, changed in (results[:2], results[2:]):
        assert original == {"dags": sorted(DAGS), "accesses": [], "errors": 0}
        # Changed files use the store, which shows that this test can fail.
        assert changed["dags"] == sorted(DAGS - {"fmnist_predict", "fmnist_rollback"})
        assert len(changed["accesses"]) >= 2
        assert changed["errors"] == 2
