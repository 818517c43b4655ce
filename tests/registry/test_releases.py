from __future__ import annotations

import pytest

from fmnist_tasks.errors import ConflictError, IntegrityError, MissingError
from fmnist_tasks.registry import releases
from fmnist_tasks.registry.blobs import describe
from fmnist_tasks.registry.local import FolderStore

FACTS = {"model_sha256": "a" * 64}


def test_a_release_exists_once_its_manifest_does(store: FolderStore) -> None:
    store.put("releases/v1/model.h5", b"half a release")
    assert releases.versions(store) == []
    manifest = releases.publish(store, "v1", {"model.h5": b"model"}, FACTS)
    assert releases.read_manifest(store, "v1") == manifest
    assert releases.versions(store) == ["v1"]
    assert releases.read_files(store, releases.read_manifest(store, "v1")) == {"model.h5": b"model"}


def test_a_manifest_names_version_facts_and_each_file_with_its_digest(store: FolderStore) -> None:
    files = {"model.h5": b"model", "card.md": b"# Card"}
    assert releases.publish(store, "v1", files, {**FACTS, "accuracy": 0.93}) == {
        **FACTS,
        "accuracy": 0.93,
        "version": "v1",
        "files": {name: describe(f"releases/v1/{name}", data) for name, data in files.items()},
    }


def test_versions_are_in_their_order_and_only_a_manifest_makes_one(store: FolderStore) -> None:
    for version in ("v2", "v1", "v3"):
        releases.publish(store, version, {"model.h5": b"model"}, FACTS)
    store.put("releases/v4/model.h5", b"half a release")
    store.put("releases/v5/old-manifest.json", b"another file")
    store.put("releases/v6/manifest.json.reason.txt", b"another file")
    assert releases.versions(store) == ["v1", "v2", "v3"]


def test_publishing_the_same_again_changes_nothing(store: FolderStore) -> None:
    first = releases.publish(store, "v1", {"model.h5": b"model", "report.html": b"at noon"}, FACTS)
    again = releases.publish(store, "v1", {"model.h5": b"model", "report.html": b"at one"}, FACTS)
    assert again == first
    assert store.get("releases/v1/report.html") == b"at noon"


def test_a_manifest_is_never_replaced_by_a_copy_of_the_publisher_that_is_slower(store: FolderStore) -> None:
    class Slow(FolderStore):
        def stat(self, key: str) -> None:
            return None  # what the slower copy saw before the faster one wrote its manifest

    first = releases.publish(store, "v1", {"model.h5": b"model"}, {**FACTS, "made": "first"})
    assert releases.publish(Slow(store.root), "v1", {"model.h5": b"model"}, {**FACTS, "made": "second"}) == first


def test_a_release_never_gets_another_model(store: FolderStore) -> None:
    releases.publish(store, "v1", {"model.h5": b"model"}, FACTS)
    with pytest.raises(ConflictError, match="v1 exists with another model"):
        releases.publish(store, "v1", {"model.h5": b"other"}, {"model_sha256": "b" * 64})


def test_a_changed_file_is_refused_by_name(store: FolderStore) -> None:
    manifest = releases.publish(store, "v1", {"model.h5": b"model", "card.md": b"card"}, FACTS)
    store.put("releases/v1/model.h5", b"mOdel")
    with pytest.raises(IntegrityError, match=r"releases/v1/model\.h5: found 5 bytes"):
        releases.read_files(store, manifest)


def test_a_release_that_is_not_there(store: FolderStore) -> None:
    with pytest.raises(MissingError, match="no release v9; `fmnist releases`"):
        releases.read_manifest(store, "v9")
