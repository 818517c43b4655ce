"""Releases: publication, and the refusal of changed or foreign manifests and files."""

from __future__ import annotations

import re

import pytest

from fmnist_tasks.errors import ConflictError, IntegrityError, MissingError
from fmnist_tasks.registry import champion, releases
from fmnist_tasks.registry.blobs import compute_reference
from fmnist_tasks.registry.documents import seal
from fmnist_tasks.registry.folder import FolderStore
from fmnist_tasks.schemas.releases import Manifest
from tests.support.documents import make_facts

FACTS = make_facts("model")
METRICS = FACTS.metrics.to_json()
OOD = METRICS["ood"] | {"families": {}}
TEST = METRICS["test"] | {"interval": [0.9]}


def test_a_release_exists_once_its_manifest_does(store: FolderStore) -> None:
    store.put("releases/v1/model.h5", b"half a release")
    assert releases.list_versions(store) == []
    manifest = releases.publish_release(store, "v1", {"model.h5": b"model"}, FACTS)
    assert releases.read_manifest(store, "v1") == manifest
    assert releases.list_versions(store) == ["v1"]
    assert releases.read_files(store, releases.read_manifest(store, "v1")) == {"model.h5": b"model"}


def test_a_manifest_names_version_facts_and_each_file_with_its_digest(store: FolderStore) -> None:
    files = {"model.h5": b"model", "card.md": b"# Card"}
    manifest = releases.publish_release(store, "v1", files, FACTS)
    references = {name: compute_reference(f"releases/v1/{name}", data) for name, data in files.items()}
    assert manifest == Manifest(**dict(FACTS), version="v1", files=references)
    assert (manifest.version, manifest.files, manifest.schema_version) == ("v1", references, 3)
    stored = {name: getattr(releases.read_manifest(store, "v1"), name) for name in type(FACTS).model_fields}
    assert stored == dict(FACTS)
    assert releases.open_manifest(store, "v1").data == store.get("releases/v1/manifest.json")


def test_versions_are_sorted_and_need_a_manifest(store: FolderStore) -> None:
    for version in ("v2", "v1", "v3"):
        releases.publish_release(store, version, {"model.h5": b"model"}, FACTS)
    store.put("releases/v4/model.h5", b"half a release")
    store.put("releases/v5/old-manifest.json", b"another file")
    store.put("releases/v6/manifest.json.reason.txt", b"another file")
    assert releases.list_versions(store) == ["v1", "v2", "v3"]


def test_publishing_the_same_again_changes_nothing(store: FolderStore) -> None:
    first = releases.publish_release(store, "v1", {"model.h5": b"model", "report.html": b"at noon"}, FACTS)
    again = releases.publish_release(store, "v1", {"model.h5": b"model", "report.html": b"at one"}, FACTS)
    assert again == first
    assert store.get("releases/v1/report.html") == b"at noon"


def test_a_slower_copy_of_publish_never_replaces_a_manifest(store: FolderStore) -> None:
    class SlowStore(FolderStore):
        def stat(self, key: str) -> None:
            return None  # the slower copy checked before the faster one wrote its manifest

    first = releases.publish_release(store, "v1", {"model.h5": b"model"}, make_facts("model", title="first"))
    second = make_facts("model", title="second")
    assert first.title == "first"
    assert releases.publish_release(SlowStore(store.root), "v1", {"model.h5": b"model"}, second) == first


def test_a_release_never_gets_another_model(store: FolderStore) -> None:
    releases.publish_release(store, "v1", {"model.h5": b"model"}, FACTS)
    with pytest.raises(ConflictError, match="v1 exists with another model"):
        releases.publish_release(store, "v1", {"model.h5": b"other"}, make_facts("other"))


def test_a_changed_file_is_refused_by_key(store: FolderStore) -> None:
    manifest = releases.publish_release(store, "v1", {"model.h5": b"model", "card.md": b"card"}, FACTS)
    store.put("releases/v1/model.h5", b"mOdel")
    with pytest.raises(IntegrityError, match=r"releases/v1/model\.h5: found 5 bytes"):
        releases.read_files(store, manifest)


def test_a_missing_release_is_reported(store: FolderStore) -> None:
    with pytest.raises(MissingError, match="no release v9; `fmnist releases` lists all"):
        releases.read_manifest(store, "v9")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schema_version": None}, r"has schema version 1, not 3: version 0\.1 of this project wrote it"),
        ({"schema_version": 4}, r"has schema version 4, not 3: install the version of this project that wrote it"),
        ({"schema_version": "3"}, r"has schema version '3', not 3: it was probably edited by hand, and is not used"),
        ({"schema_version": True}, r"has schema version True, not 3: it was probably edited by hand"),
        ({"schema_version": 3.0}, r"has schema version 3\.0, not 3: it was probably edited by hand"),
        ({"schema_version": -1}, r"has schema version -1, not 3: it was probably edited by hand"),
        ({"files": None}, r"files: missing; it was probably edited by hand, and is not used"),
        ({"temperature": "1"}, r"temperature: Input should be a valid number; it was probably edited by hand"),
        ({"parameters": {"profile": "quick"}}, r"parameters\.seed: missing"),
        ({"colour": "red"}, r"colour: unknown; it was probably edited by hand"),
        ({"model_sha256": "A" * 64}, r"model_sha256: String should match pattern"),
        ({"files": {}}, r"files lacks model\.h5"),
        ({"metrics": METRICS | {"ood": OOD}}, r"metrics\.ood\.families lacks .*, digits, .*, for which the policy has"),
        ({"metrics": METRICS | {"test": TEST}}, r"metrics\.test\.interval: List should have at least 2 items"),
    ],
)
def test_a_manifest_of_another_form_is_refused_with_a_remedy(
    store: FolderStore, changes: dict[str, object], message: str
) -> None:
    """Each has a valid seal; None removes the field."""
    manifest = releases.publish_release(store, "v1", {"model.h5": b"model"}, FACTS)
    content = {name: value for name, value in {**manifest.to_json(), **changes}.items() if value is not None}
    store.put("releases/v1/manifest.json", seal(content))
    with pytest.raises(IntegrityError, match=rf"^releases/v1/manifest\.json:? {message}"):
        releases.read_manifest(store, "v1")


def test_a_release_is_published_under_the_first_version_that_is_free_or_its_own(store: FolderStore) -> None:
    log = champion.Log()
    assert releases.choose_version(store, "v1", FACTS, log) == "v1"
    releases.publish_release(store, "v1", {"model.h5": b"model"}, FACTS)
    assert releases.choose_version(store, "v1", FACTS, log) == "v1"
    other, third = make_facts("model", ood_threshold=2.0), make_facts("model", ood_threshold=3.0)
    assert releases.choose_version(store, "v1", other, log) == "v1.2"
    releases.publish_release(store, "v1.2", {"model.h5": b"model"}, other)
    assert releases.choose_version(store, "v1", other, log) == "v1.2"
    assert releases.choose_version(store, "v1", third, log) == "v1.3"


def test_a_release_that_was_the_champion_keeps_its_version(store: FolderStore) -> None:
    """Its promotion may be repeated, whatever was evaluated since. The log is not read again."""
    releases.publish_release(store, "v1", {"model.h5": b"model"}, FACTS)
    champion.append_entry(store, version="v1", action="promote", reason="why", write_id="w", after=0)
    other = make_facts("model", ood_threshold=2.0)
    log = champion.read_log(store)
    store.put("champion/00000001.json", b"damaged since")
    assert releases.choose_version(store, "v1", other, log) == "v1"
    assert releases.choose_version(store, "v1", FACTS, champion.Log()) == "v1"


def test_a_manifest_is_compared_with_the_log_that_was_read(store: FolderStore) -> None:
    releases.publish_release(store, "v1", {"model.h5": b"model"}, FACTS)
    entry = champion.append_entry(store, version="v1", action="promote", reason="why", write_id="w", after=0)
    other = champion.Log((entry.model_copy(update={"manifest_sha256": "0" * 64}),), ("0" * 64,))
    message = (
        "releases/v1/manifest.json is not the manifest that entry 1 of the champion log names, so it was replaced; "
        "restore the original from a backup or an earlier version of the object"
    )
    for read in (releases.read_manifest, releases.open_manifest):
        with pytest.raises(IntegrityError, match=rf"^{message}$"):
            read(store, "v1", other)
    store.put("champion/00000001.json", b"damaged since")
    assert releases.read_manifest(store, "v1", champion.Log()).version == "v1"


def test_a_copied_manifest_is_refused(store: FolderStore) -> None:
    releases.publish_release(store, "v1", {"model.h5": b"model"}, FACTS)
    store.put("releases/v2/manifest.json", store.get("releases/v1/manifest.json"))
    message = (
        "releases/v2/manifest.json is the manifest of release v1, so it was copied or renamed; it is not used. "
        "Restore the original from a backup, or delete it"
    )
    with pytest.raises(IntegrityError, match=rf"^{message}$"):
        releases.read_manifest(store, "v2")


def test_a_champion_without_its_manifest_is_reported_with_a_remedy(store: FolderStore) -> None:
    releases.publish_release(store, "v1", {"model.h5": b"model"}, FACTS)
    champion.append_entry(store, version="v1", action="promote", reason="why", write_id="w", after=0)
    assert releases.find_missing_champion(store, champion.read_log(store)) is None
    store.delete("releases/v1/manifest.json")
    message = (
        "releases/v1/manifest.json is missing, although log entry 1 made this release the champion; restore it from a "
        "backup or an earlier version of the object. If that is impossible, roll back to another release "
        "(fmnist rollback VERSION --force), or start again with an empty store"
    )
    assert releases.find_missing_champion(store, champion.read_log(store)) == message
    for log in (None, champion.read_log(store)):
        with pytest.raises(IntegrityError, match=f"^{re.escape(message)}$"):
            releases.read_manifest(store, "v1", log)
