"""Backups of a store, made and restored with the commands of docs/operate.md, pass the audit."""

from __future__ import annotations

import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from fmnist_tasks.errors import IntegrityError
from fmnist_tasks.registry.audit import audit_store
from fmnist_tasks.registry.champion import append_entry, list_entries
from fmnist_tasks.registry.folder import FolderStore
from fmnist_tasks.serving.release import open_release, require_champion
from fmnist_tasks.serving.rollback import roll_back
from tests.support.minio_server import MinioServer, VersityServer
from tests.support.pipeline import Pipeline
from tests.support.ports import reserve_port

pytestmark = pytest.mark.integration


def back_up(folder: Path, archive: Path, *options: str) -> None:
    subprocess.run(["tar", *options, "-czf", archive, "-C", folder, "."], check=True)


def restore(archive: Path, folder: Path, *options: str) -> None:
    folder.mkdir()
    subprocess.run(["tar", *options, "-xzf", archive, "-C", folder], check=True)


def test_a_restored_folder_passes_the_audit_and_loses_only_what_came_later(
    finished_pipeline: Pipeline, tmp_path: Path
) -> None:
    store = finished_pipeline.store
    finished_pipeline.promote_second_release()
    before, entries = audit_store(store), list_entries(store)
    back_up(store.root, tmp_path / "store.tar.gz")
    earlier = entries[0].version
    append_entry(store, version=earlier, action="rollback", reason="r", write_id="w2", after=len(entries))
    later = audit_store(store)

    restore(tmp_path / "store.tar.gz", tmp_path / "restored")
    restored = FolderStore(tmp_path / "restored")
    assert audit_store(restored, before["head"]) == before
    assert list_entries(restored) == entries
    with pytest.raises(IntegrityError, match="entry 3 is missing"):
        audit_store(restored, later["head"])
    release = roll_back(restored, earlier, "r", actor="admin", after=len(entries))
    assert require_champion(restored) == release


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    ("server_type", "options"), [(MinioServer, ()), (VersityServer, ("--xattrs", "--xattrs-include=*"))]
)
def test_a_restored_volume_of_a_server_passes_the_audit(
    finished_pipeline: Pipeline,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    server_type: type[MinioServer],
    options: tuple[str, ...],
) -> None:
    (tmp_path / "volume").mkdir()
    server = server_type(tmp_path / "volume")
    for name, value in server.credentials.items():
        monkeypatch.setenv(name, value)
    server.start()
    try:
        store = server.open_store("fmnist")
        for stat in finished_pipeline.store.list(""):
            store.put_if_absent(stat.key, finished_pipeline.store.get(stat.key))
        before = audit_store(store)
    finally:
        server.stop()
    back_up(tmp_path / "volume", tmp_path / "store.tar.gz", *options)
    restore(tmp_path / "store.tar.gz", tmp_path / "restored", *options)
    restored_server = replace(server, folder=tmp_path / "restored", port=reserve_port())
    restored_server.start()
    try:
        restored = restored_server.open_store("fmnist")
        assert audit_store(restored, before["head"]) == before
        assert open_release(restored, require_champion(restored).version).model.name == "classifier"
    finally:
        restored_server.stop()
