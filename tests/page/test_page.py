"""The Releases page: content, permissions, and hostile requests."""

from __future__ import annotations

import contextlib
import html
import importlib
import io
import json
import re
import shutil
from collections.abc import Callable
from html.parser import HTMLParser
from threading import Event
from typing import Any
from urllib.parse import urljoin, urlsplit

import numpy as np
import pytest
from airflow.api_fastapi.app import init_auth_manager
from fastapi import FastAPI, HTTPException
from fastapi.routing import APIRoute
from fastapi.testclient import TestClient
from PIL import Image

from fmnist_tasks.data.image_files import read_image_file
from fmnist_tasks.errors import DataError
from fmnist_tasks.page.activity import Schedule
from fmnist_tasks.page.app import Access, create_app
from fmnist_tasks.page.release_cache import ReleaseCache
from fmnist_tasks.registry import champion, releases
from fmnist_tasks.registry.documents import seal
from fmnist_tasks.registry.runs import read_record
from fmnist_tasks.registry.signing import Keys
from fmnist_tasks.registry.signing_keys import make_keys
from fmnist_tasks.registry.stores import open_store
from fmnist_tasks.serving import withdrawal
from fmnist_tasks.serving.release import open_release, require_champion
from tests.support import synthetic
from tests.support.documents import copy_facts, save_record
from tests.support.hostile_images import HOSTILE_IMAGES, encode_image, make_png
from tests.support.pipeline import Pipeline
from tests.support.synthetic import RUN

SAME_ORIGIN = {"sec-fetch-site": "same-origin"}


def get_editor() -> str:
    return "ann"


def refuse_with(status: int) -> Callable[[], None]:
    def raise_error() -> None:
        raise HTTPException(status)

    return raise_error


def make_app(may_edit: Callable[[], object] = get_editor) -> FastAPI:
    return create_app(Access(lambda: None, may_edit, lambda _: Schedule()))


def make_client(app: FastAPI, **options: object) -> TestClient:
    return TestClient(app, headers={"accept": "text/html"}, follow_redirects=False, **options)


def load_plugin() -> dict[str, Any]:
    return vars(importlib.import_module("fmnist_tasks.plugin"))


def make_plugin_app() -> FastAPI:
    """The app as the plugin mounts it, with Airflow's own authentication and authorization."""
    init_auth_manager()
    (mounted,) = load_plugin()["Registry"]().fastapi_apps
    app: FastAPI = mounted["app"]
    return app


@pytest.fixture
def page(finished_pipeline: Pipeline) -> TestClient:
    return make_client(make_app())


@pytest.fixture
def version(finished_pipeline: Pipeline) -> str:
    return require_champion(finished_pipeline.store).version


class Links(HTMLParser):
    """All addresses on a page: links to other pages and files, and the targets of forms and of the script."""

    def __init__(self, content: str) -> None:
        super().__init__()
        self.links: set[str] = set()
        self.targets: set[str] = set()
        self.airflow: set[str] = set()  # pages of Airflow
        self.feed(content)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        addresses = {value for name, value in attributes if name in {"href", "src"} and value}
        self.airflow |= {value for value in addresses if value.startswith("../dags/")}
        self.links |= addresses - self.airflow
        self.targets |= {
            value for name, value in attributes if name in {"action", "data-image", "data-examples"} and value
        }


def test_an_empty_registry_says_what_to_do(pipeline: Pipeline) -> None:
    page = make_client(make_app())
    text = page.get("/").text
    assert "The first run that passes every gate creates a champion." in text
    assert "fmnist_retrain" in text
    assert "No champion yet." in page.get("/try").text
    assert page.get("/releases/v1").status_code == 404


@pytest.mark.integration
def test_the_overview_shows_the_champion_and_every_release(
    page: TestClient, finished_pipeline: Pipeline, version: str
) -> None:
    manifest = releases.read_manifest(finished_pipeline.store, version)
    text = page.get("/").text
    assert f"{manifest.metrics.test.accuracy:.2%}" in text
    charts = [json.loads(html.unescape(chart)) for chart in re.findall(r"data-chart='([^']+)'", text)]
    assert [chart["labels"] for chart in charts] == [[version]] * 2
    assert charts[0]["values"] == [100 * manifest.metrics.test.accuracy]
    assert text.count(f"/releases/{version}") >= 3  # card, table, log
    assert f"run {RUN.id} passed every gate" in text


@pytest.mark.integration
def test_a_release_shows_its_checks_classes_families_data_and_figures(
    page: TestClient, finished_pipeline: Pipeline, version: str
) -> None:
    manifest = releases.read_manifest(finished_pipeline.store, version)
    text = html.unescape(page.get(f"/releases/{version}").text)
    for check in manifest.verdict.checks:
        assert f">{check.name}</th>" in text
        assert f"<td>{check.threshold}</td><td>{check.message}</td>" in text
    for name in (*manifest.classes, *manifest.metrics.ood.families):
        assert f">{name}</th>" in text
    assert manifest.dataset.fingerprint in text
    pictures = re.findall(r'<img src="([^"]+)" alt="[^"]+" loading="lazy">', text)
    assert len(pictures) >= 4
    for address in pictures:
        response = page.get(address)
        assert response.headers["content-type"] == "image/png"
        again = page.get(address, headers={"if-none-match": response.headers["etag"]})
        assert (again.status_code, again.content) == (304, b"")


@pytest.mark.integration
@pytest.mark.parametrize(("threshold", "is_in_distribution"), [(1_000.0, True), (-1_000.0, False)])
def test_the_champion_predicts_with_its_own_threshold(
    page: TestClient, finished_pipeline: Pipeline, threshold: float, is_in_distribution: bool
) -> None:
    assert threshold not in {row["threshold"] for row in page.get("/try/examples").json()}
    finished_pipeline.promote_second_release(ood_threshold=threshold)
    rows = page.get("/try/examples").json()
    assert {row["threshold"] for row in rows} == {threshold}
    assert {row["answer"] == row["class"] for row in rows} == {is_in_distribution}


@pytest.mark.integration
def test_a_release_of_version_0_1_is_reported_and_does_not_hide_others(
    page: TestClient, finished_pipeline: Pipeline, version: str
) -> None:
    key = "releases/earlier/manifest.json"
    manifest = releases.read_manifest(finished_pipeline.store, version)
    finished_pipeline.store.put(key, seal(manifest.to_json() | {"version": "earlier", "schema_version": 1}))
    message = f"{key} has schema version 1, not 3: version 0.1 of this project wrote it"
    overview = page.get("/")
    assert overview.status_code == 200
    assert message in overview.text
    assert f"/releases/{version}" in overview.text
    for address in ("/releases/earlier", "/releases/earlier/model.h5", f"/compare?a={version}&b=earlier"):
        response = page.get(address)
        assert (response.status_code, message in response.text) == (500, True)


@pytest.mark.integration
@pytest.mark.parametrize("root", ["", "/airflow/fmnist"])
def test_every_link_works_below_the_root_path(finished_pipeline: Pipeline, root: str) -> None:
    page = make_client(make_app(), root_path=root)
    finished_pipeline.promote_second_release()
    seen, waiting, targets, airflow = set(), {f"{root}/"}, set(), set()
    while waiting:
        address = waiting.pop()
        seen.add(address)
        assert address.startswith(root)
        response = page.get(address.removeprefix(root))
        assert response.status_code == 200, address
        if (
            "text/html" in response.headers["content-type"]
            and "/report.html" not in address
            and "/runs/" not in address
        ):
            content = Links(response.text)
            # No external addresses, and neither scheme nor host, which a server behind a proxy does not know.
            assert not [
                link for link in content.links | content.targets if urlsplit(link).scheme or urlsplit(link).netloc
            ]
            waiting |= {urlsplit(urljoin(address, link)).path for link in content.links} - seen
            targets |= content.targets
            airflow |= {urlsplit(urljoin(f"https://localhost{address}", link)).path for link in content.airflow}
    assert len(seen) > 10
    assert {target.removeprefix(root) for target in targets} >= {"/rollback", "/withdrawals/withdraw", "/try/image"}
    assert all(target.startswith(root) for target in targets)
    assert airflow == {"/airflow/dags/fmnist_retrain" if root else "/dags/fmnist_retrain"}


@pytest.mark.integration
def test_two_releases_are_compared(page: TestClient, version: str) -> None:
    text = page.get("/compare", params={"a": version, "b": version}).text
    assert text.count(version) >= 2
    assert "+0.00" in text
    assert page.get("/compare", params={"a": version, "b": "gone"}).status_code == 404


@pytest.mark.integration
def test_a_run_shows_its_report_and_nothing_else_of_the_store(page: TestClient, finished_pipeline: Pipeline) -> None:
    finished_pipeline.store.delete(f"runs/{RUN.id}/report.html")  # it is written only when the run ends
    response = page.get(f"/runs/{RUN.id}")
    assert "Promotion gate: promote" in response.text
    assert "sandbox" in response.headers["content-security-policy"]
    (tab,) = (view["href"] for view in load_plugin()["Registry"].external_views if view["destination"] == "dag_run")
    assert tab == "fmnist/dags/{DAG_ID}/runs/{RUN_ID}"  # relative to Airflow's address, below which the page is mounted
    for foreign in ("gone", "%2e%2e", "%2e%2e%2fchampion"):
        assert page.get(f"/runs/{foreign}").status_code == 404


@pytest.mark.integration
def test_a_record_of_an_unknown_step_is_reported(page: TestClient, finished_pipeline: Pipeline) -> None:
    save_record(finished_pipeline.store, RUN.id, "distil", result={"summary": "smaller"})
    response = page.get(f"/runs/{RUN.id}")
    assert "Cannot be shown: runs/run-1/distil.json: no step has this name, so it is not used" in response.text
    assert "Promotion gate: promote" in response.text


@pytest.mark.integration
@pytest.mark.parametrize("step", ["choose_base", "fine_tune", "ingest"])
@pytest.mark.parametrize("content", [None, b"{"], ids=["missing", "damaged"])
def test_a_report_shows_every_record_that_can_be_read(
    page: TestClient, finished_pipeline: Pipeline, step: str, content: bytes | None
) -> None:
    key = f"runs/{RUN.id}/{step}.json"
    finished_pipeline.store.delete(key) if content is None else finished_pipeline.store.put(key, content)
    response = page.get(f"/runs/{RUN.id}")
    assert response.status_code == 200
    assert "Promotion gate: promote" in response.text
    assert (f"Cannot be shown: {key}: its bytes were changed" in response.text) == (content is not None)


@pytest.mark.integration
def test_a_report_takes_limited_memory(page: TestClient, finished_pipeline: Pipeline) -> None:
    pictures = finished_pipeline.read_result("fine_tune").to_json()["pictures"]
    pictures["tuned_learning_curves"]["bytes"] = 1 << 30
    finished_pipeline.change_result("fine_tune", pictures=pictures)
    assert "has 1,073,741,824 bytes, expected at most" in page.get(f"/runs/{RUN.id}").text
    for number in range(4):
        finished_pipeline.store.put(f"runs/{RUN.id}/{number}.json", bytes(4 << 20))
    response = page.get(f"/runs/{RUN.id}")
    assert response.status_code == 500
    assert re.search(r"runs/run-1/\*\.json has 16,8\d\d,\d{3} bytes, expected at most 16,777,216", response.text)


@pytest.mark.integration
def test_only_files_of_the_manifest_are_served(page: TestClient, version: str, finished_pipeline: Pipeline) -> None:
    finished_pipeline.store.put(f"releases/{version}/secret.txt", b"not of this release")
    for name in ("secret.txt", "../../champion/00000001.json"):
        assert page.get(f"/releases/{version}/{name}").status_code == 404
    assert page.get(f"/releases/{version}/model.h5").content[:4] == b"\x89HDF"


@pytest.mark.integration
def test_the_manifest_is_served_as_it_is_stored(page: TestClient, version: str, finished_pipeline: Pipeline) -> None:
    address = f"/releases/{version}/manifest.json"
    assert address in page.get(f"/releases/{version}").text
    response = page.get(address)
    assert response.content == finished_pipeline.store.get(address.removeprefix("/"))
    assert response.headers["content-type"] == "application/json"
    assert page.get(address, headers={"if-none-match": response.headers["etag"]}).status_code == 304


@pytest.mark.integration
@pytest.mark.parametrize(
    "name", ["n" * 300, "%0Aa%1B%5B31m", "%2e%2e", "%00", "%ED%A0%80", "a%2F%2e%2e%2Fb", "%C2%85", "%25%32%65", "%5C"]
)
def test_an_impossible_name_is_not_found(page: TestClient, version: str, name: str) -> None:
    for address in (
        f"/releases/{name}",
        f"/releases/{version}/{name}",
        f"/releases/{name}/model.h5",
        f"/runs/{name}",
        f"/compare?a={version}&b={name}",
        f"/static/{name}",
        f"/{name}",
    ):
        response = page.get(address)
        # Like a browser, the client resolves "..", which leads to another page.
        assert response.status_code == 404, (address, response.text)
        assert response.text.replace("\n", "").isprintable()
    for address in ("/rollback", "/withdrawals/withdraw", "/withdrawals/restore"):
        form = f"version={name}&reason=r"
        response = page.post(
            address, content=form, headers=SAME_ORIGIN | {"content-type": "application/x-www-form-urlencoded"}
        )
        assert response.status_code == 404, (address, response.text)
    assert page.post(
        f"/withdrawals/{name}", data={"version": version, "reason": "r"}, headers=SAME_ORIGIN
    ).status_code in {404, 405}


@pytest.mark.integration
@pytest.mark.parametrize("field", ["version", "reason", "after"])
def test_text_that_is_not_valid_utf_8_is_refused(page: TestClient, version: str, field: str) -> None:
    """A form may declare the encoding of its fields, and some encodings produce lone surrogates."""
    fields = {"version": version, "reason": "r", "after": "1"} | {field: "\\ud800" * 600}
    parts = "".join(f'--b\r\nContent-Disposition: form-data; name="{n}"\r\n\r\n{v}\r\n' for n, v in fields.items())
    kind = "multipart/form-data; boundary=b; charset=raw_unicode_escape"
    response = page.post("/rollback", content=f"{parts}--b--\r\n", headers=SAME_ORIGIN | {"content-type": kind})
    assert response.status_code == (404 if field == "version" else 422), response.text


@pytest.mark.integration
def test_a_user_rolls_back_with_a_reason(page: TestClient, finished_pipeline: Pipeline, version: str) -> None:
    finished_pipeline.promote_second_release()
    form = {"version": version, "reason": "<script>alert('worse')</script>", "after": 2}
    assert 'name="after" value="2"' in page.get(f"/releases/{version}").text
    response = page.post("/rollback", data=form, headers=SAME_ORIGIN)
    assert (response.status_code, response.headers["location"]) == (303, "/")
    entry = require_champion(finished_pipeline.store)
    assert (entry.version, entry.action) == (version, "rollback")
    assert (entry.reason, entry.actor, entry.replaces) == ("<script>alert('worse')</script>", "ann", "second")
    text = page.get("/").text
    assert "&lt;script&gt;alert(&#39;worse&#39;)&lt;/script&gt;" in text
    assert "<script>alert" not in text
    again = page.post("/rollback", data=form, headers=SAME_ORIGIN)
    assert again.status_code == 400
    assert "is already the champion" in again.text


@pytest.mark.integration
def test_a_champion_that_changed_since_the_page_was_loaded_is_not_replaced(
    page: TestClient, finished_pipeline: Pipeline, version: str
) -> None:
    finished_pipeline.promote_second_release()
    form = {"version": version, "reason": "the first was bad", "after": 1}
    response = page.post("/rollback", data=form, headers=SAME_ORIGIN)
    assert response.status_code == 409
    assert "and is now second (log entry 2); nothing was rolled back" in response.text
    assert require_champion(finished_pipeline.store).version == "second"


@pytest.mark.integration
def test_a_release_is_withdrawn_and_restored(page: TestClient, finished_pipeline: Pipeline, version: str) -> None:
    finished_pipeline.promote_second_release()
    assert "Withdraw this release" in page.get(f"/releases/{version}").text
    form = {"version": version, "reason": "its labels were wrong"}
    response = page.post("/withdrawals/withdraw", data=form, headers=SAME_ORIGIN)
    assert (response.status_code, response.headers["location"]) == (303, f"/releases/{version}")
    text = page.get(f"/releases/{version}").text
    assert re.search(r"Withdrawn on .* by ann: .*its labels were wrong", text)
    assert "Restore this release" in text
    assert text.count("its labels were wrong") == 2  # in the heading and in the log
    assert "withdrawn" in page.get("/").text
    assert page.post("/withdrawals/withdraw", data=form, headers=SAME_ORIGIN).status_code == 409
    assert page.post("/withdrawals/withdraw", data=form | {"version": "second"}, headers=SAME_ORIGIN).status_code == 409
    assert page.post("/withdrawals/restore", data=form, headers=SAME_ORIGIN).status_code == 303
    assert "Withdraw this release" in page.get(f"/releases/{version}").text
    for address in ("/withdrawals/withdraw", "/withdrawals/restore"):
        assert (
            make_client(make_app(may_edit=refuse_with(403))).post(address, data=form, headers=SAME_ORIGIN).status_code
            == 403
        )
        assert page.post(address, data=form, headers={"sec-fetch-site": "cross-site"}).status_code == 403
        assert page.post(address, data=form | {"version": "gone"}, headers=SAME_ORIGIN).status_code in {404, 409}


@pytest.mark.integration
@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"sec-fetch-site": "cross-site"}, 403),
        ({"sec-fetch-site": "same-site"}, 403),
        ({"origin": "https://evil.example"}, 403),
        ({"origin": "null"}, 403),
        ({"cookie": "_token=x"}, 403),
        ({"origin": "http://testserver"}, 303),
        ({}, 303),
        (SAME_ORIGIN, 303),
    ],
)
def test_requests_from_another_site_change_nothing(
    finished_pipeline: Pipeline, version: str, headers: dict[str, str], status: int
) -> None:
    finished_pipeline.promote_second_release()
    response = make_client(make_app()).post("/rollback", data={"version": version, "reason": "r"}, headers=headers)
    assert response.status_code == status
    assert (require_champion(finished_pipeline.store).version == version) == (status == 303)


@pytest.mark.integration
def test_a_viewer_reads_but_changes_nothing(finished_pipeline: Pipeline, version: str) -> None:
    finished_pipeline.promote_second_release()
    page = make_client(make_app(may_edit=refuse_with(403)))
    assert page.get("/").status_code == 200
    assert page.post("/rollback", data={"version": version, "reason": "r"}, headers=SAME_ORIGIN).status_code == 403
    assert require_champion(finished_pipeline.store).version == "second"
    for reason in ("", "   "):
        response = make_client(make_app()).post(
            "/rollback", data={"version": version, "reason": reason}, headers=SAME_ORIGIN
        )
        assert response.status_code in {400, 422}


def test_every_route_refuses_anonymous_users(pipeline: Pipeline) -> None:
    mounted = make_plugin_app()
    page = TestClient(mounted, follow_redirects=False)
    routes = [route for route in mounted.routes if isinstance(route, APIRoute)]
    assert len(routes) >= 10
    for route in routes:
        address = re.sub(r"\{[^}]+\}", "x", route.path)
        for method in route.methods - {"HEAD"}:
            for headers in ({}, SAME_ORIGIN, {"cookie": "_token=forged"}, {"authorization": "Bearer forged"}):
                response = page.request(method, address, headers=headers)
                assert response.status_code in {401, 403}, (method, address, headers)


@pytest.mark.integration
def test_every_response_has_security_headers(page: TestClient, version: str) -> None:
    for address in ("/", f"/releases/{version}", "/try", "/static/style.css", "/static/gone", "/releases/gone"):
        headers = page.get(address).headers
        policy = headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert headers["x-content-type-options"] == "nosniff"


def encode_png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "png")
    return buffer.getvalue()


@pytest.mark.integration
def test_an_upload_is_classified_and_not_stored(page: TestClient, finished_pipeline: Pipeline) -> None:
    before = list(finished_pipeline.store.list(""))
    images, labels = synthetic.make_images(50, 2)
    prediction = page.post("/try/image", content=encode_png(images[0]), headers=SAME_ORIGIN).json()
    assert prediction["class"] == f"pattern {labels[0]}"
    assert sum(prediction["probabilities"].values()) == pytest.approx(1, abs=0.01)
    assert prediction["picture"].startswith("data:image/png;base64,")
    noise = np.random.default_rng(0).integers(0, 256, (28, 28), dtype=np.uint8)
    prediction = page.post("/try/image", content=encode_png(noise), headers=SAME_ORIGIN).json()
    assert prediction["answer"] == "not a pattern"
    assert prediction["ood_score"] > prediction["threshold"]
    assert (
        page.post("/try/image", content=encode_png(noise), headers={"sec-fetch-site": "cross-site"}).status_code == 403
    )
    assert list(finished_pipeline.store.list("")) == before


@pytest.mark.integration
def test_a_random_image_of_each_class_is_classified(page: TestClient) -> None:
    rows = page.get("/try/examples").json()
    assert [row["truth"] for row in rows] == [f"pattern {number}" for number in range(10)]
    assert sum(row["class"] == row["truth"] for row in rows) >= 9


@pytest.mark.integration
@pytest.mark.parametrize("name", HOSTILE_IMAGES)
def test_hostile_uploads_are_refused_with_a_reason(page: TestClient, name: str) -> None:
    response = page.post(
        "/try/image", content=HOSTILE_IMAGES[name], headers={**SAME_ORIGIN, "accept": "application/json"}
    )
    assert response.status_code == 422, response.text
    assert "the upload" in response.json()["detail"]


@pytest.mark.parametrize(
    ("kind", "is_read"),
    [("PNG", True), ("JPEG", True), ("GIF", True), ("BMP", True), ("WEBP", True), ("TIFF", True), ("PPM", False)],
)
def test_only_common_image_formats_are_decoded(kind: str, is_read: bool) -> None:
    expected = contextlib.nullcontext() if is_read else pytest.raises(DataError, match="is not a readable image")
    with expected:
        assert read_image_file(io.BytesIO(encode_image(kind)), "the upload", synthetic.FORMAT).shape == (28, 28)


@pytest.mark.integration
def test_html_in_an_image_file_is_ignored(page: TestClient) -> None:
    import zlib

    image = make_png(64, 64, zlib.compress(b"\x00" * (64 * 65))) + b"<script>alert(1)</script>"
    response = page.post("/try/image", content=image, headers=SAME_ORIGIN)
    assert response.status_code == 200
    assert "script" not in response.text


@pytest.mark.integration
def test_a_damaged_champion_log_is_reported(page: TestClient, finished_pipeline: Pipeline) -> None:
    (finished_pipeline.store.root / "champion" / "00000001.json").write_bytes(b"foreign")
    response = page.get("/")
    assert response.status_code == 500
    assert "its bytes were changed" in response.text


@pytest.mark.integration
def test_a_damaged_release_does_not_hide_others(page: TestClient, finished_pipeline: Pipeline, version: str) -> None:
    finished_pipeline.promote_second_release()
    key = f"releases/{version}/manifest.json"
    finished_pipeline.store.put(key, finished_pipeline.store.get(key).replace(b"quick", b"quiet", 1))
    text = page.get("/").text
    assert f"{key}: its bytes were changed" in text
    assert "/releases/second" in text
    assert page.get(f"/releases/{version}").status_code == 500
    finished_pipeline.store.put("releases/second/manifest.json", b"foreign")
    response = make_client(make_app()).get("/")
    assert response.status_code == 200
    assert response.text.count("its bytes were changed") == 2


@pytest.mark.integration
def test_a_champion_without_its_release_is_reported(
    page: TestClient, finished_pipeline: Pipeline, version: str
) -> None:
    shutil.rmtree(finished_pipeline.store.root / "releases" / version)
    assert f"releases/{version}/manifest.json is missing, although log entry 1 made this" in page.get("/").text


@pytest.mark.integration
@pytest.mark.parametrize("name", ["-x", "+a", "copy of it"])
def test_a_folder_that_is_no_version_cannot_be_withdrawn(
    page: TestClient, finished_pipeline: Pipeline, version: str, name: str
) -> None:
    folder = finished_pipeline.store.root / "releases"
    shutil.copytree(folder / version, folder / name)
    response = page.post("/withdrawals/withdraw", data={"version": name, "reason": "a copy"}, headers=SAME_ORIGIN)
    assert response.status_code == 404


@pytest.mark.integration
def test_the_overview_of_200_releases_is_small(finished_pipeline: Pipeline, version: str) -> None:
    facts = copy_facts(releases.read_manifest(finished_pipeline.store, version))
    for number in range(200):
        name = f"20270101T000000Z-{number:08d}"
        releases.publish_release(finished_pipeline.store, name, {"model.h5": b"model"}, facts)
    assert read_record(finished_pipeline.store, RUN.id, "promote").status == "done"
    response = make_client(make_app()).get("/")
    assert response.text.count('<th scope="row"><a') == 201
    assert len(response.content) < 500_000


@pytest.mark.integration
def test_releases_that_were_read_ahead_are_not_read_again(
    finished_pipeline: Pipeline, version: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = make_app()
    app.state.read_ahead()
    monkeypatch.setattr(releases, "read_manifest", refuse_with(500))
    assert version in make_client(app).get("/").text


def test_a_store_that_cannot_be_read_ahead_is_logged(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("FMNIST_STORE", "ftp://nowhere")
    make_app().state.read_ahead()
    assert "cannot read the store ahead" in caplog.text
    assert "FMNIST_STORE" in caplog.text


def test_the_plugin_reads_ahead(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    started = Event()
    monkeypatch.setattr(ReleaseCache, "read_log", lambda _: started.set())
    make_plugin_app()
    assert started.wait(30)


@pytest.mark.integration
def test_the_runbook_has_an_anchor_for_each_event(page: TestClient) -> None:
    response = page.get("/runbook")
    assert response.status_code == 200
    assert '<h2 id="run-rejected">Run rejected</h2>' in response.text
    assert ">Runbook</a>" in response.text


@pytest.mark.integration
def test_the_page_shows_signatures_and_nothing_forged(
    page: TestClient, finished_pipeline: Pipeline, version: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "Manifest: unsigned." in page.get(f"/releases/{version}").text
    pem, trusted = make_keys(None, champion.read_log(finished_pipeline.store).digests, revoke_earlier=False)
    monkeypatch.setenv("FMNIST_TRUSTED_KEYS", trusted.model_dump_json())
    monkeypatch.setenv("FMNIST_SIGNING_KEY", pem)
    store = open_store(finished_pipeline.environment["FMNIST_STORE"])
    release = open_release(store, version)
    published = releases.publish_release(store, "second", release.files, copy_facts(release.manifest))
    withdrawal.withdraw(store, "second", "wrong labels", actor="ann")
    text = make_client(make_app()).get("/releases/second").text
    assert f"Manifest: signed by key {trusted.keys[0].id[:16]}." in text
    assert text.count("signed by key") == 2
    key = "releases/second/manifest.json"
    store.put(key, Keys().encode(key, "manifest", published.to_json() | {"files": {}, "classes": ["a"] * 10}))
    for path in ("/releases/second", "/releases/second/model.h5", f"/compare?a={version}&b=second"):
        response = make_client(make_app()).get(path)
        assert (response.status_code, "so it was replaced" in response.text) == (500, True)
    overview = make_client(make_app()).get("/").text
    assert "releases/second/manifest.json is not the manifest that entry 2 of the champion log names" in overview
