"""The registry page: what a person reads there, who may do what, and what it does with hostile requests."""

from __future__ import annotations

import contextlib
import io
import re
import runpy
from collections.abc import Callable
from html.parser import HTMLParser
from threading import Event
from typing import Any
from urllib.parse import urljoin, urlsplit

import numpy as np
import pytest
from airflow.api_fastapi.app import init_auth_manager
from fastapi import FastAPI, HTTPException
from fastapi.testclient import TestClient
from PIL import Image

from fmnist_tasks import service, withdrawal
from fmnist_tasks.data.pictures import read_picture
from fmnist_tasks.errors import DataError
from fmnist_tasks.page.app import create_app
from fmnist_tasks.page.shelf import Shelf
from fmnist_tasks.registry import champion, releases
from fmnist_tasks.registry.documents import unseal
from fmnist_tasks.registry.keys import make_keys
from fmnist_tasks.registry.runs import read_record
from fmnist_tasks.registry.signing import Keys
from fmnist_tasks.registry.store import open_store
from fmnist_tasks.settings import PROJECT
from tests.support import synthetic
from tests.support.hostile_images import HOSTILE_IMAGES, encode_image, make_png
from tests.support.pipeline import Pipeline
from tests.support.synthetic import RUN

HERE = {"sec-fetch-site": "same-origin"}


def editor() -> str:
    return "ann"


def refuse(status: int) -> Callable[[], None]:
    def answer() -> None:
        raise HTTPException(status)

    return answer


def app(may_edit: Callable[[], object] = editor) -> FastAPI:
    return create_app(signed_in=lambda: None, may_edit=may_edit)


def browser(made_app: FastAPI, **options: object) -> TestClient:
    return TestClient(made_app, headers={"accept": "text/html"}, follow_redirects=False, **options)


def plugin() -> dict[str, Any]:
    return runpy.run_path(str(PROJECT / "plugins" / "fmnist_registry.py"))


def plugin_app() -> FastAPI:
    """The app as the plugin mounts it, with Airflow's own checks of who is signed in and who may edit."""
    init_auth_manager()
    (mounted,) = plugin()["Registry"]().fastapi_apps
    made_app: FastAPI = mounted["app"]
    return made_app


@pytest.fixture
def page(finished_pipeline: Pipeline) -> TestClient:
    return browser(app())


@pytest.fixture
def version(finished_pipeline: Pipeline) -> str:
    return service.in_service(finished_pipeline.store).version


class Links(HTMLParser):
    """All addresses that a page names: those that lead somewhere, and those that forms and the script send to."""

    def __init__(self, content: str) -> None:
        super().__init__()
        self.found: set[str] = set()
        self.targets: set[str] = set()
        self.feed(content)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.found |= {value for name, value in attributes if name in {"href", "src"} and value}
        self.targets |= {
            value for name, value in attributes if name in {"action", "data-image", "data-samples"} and value
        }


def test_an_empty_registry_says_what_to_do(pipeline: Pipeline) -> None:
    page = browser(app())
    text = page.get("/").text
    assert "No champion yet" in text
    assert "fmnist_retrain" in text
    assert "no champion yet that could be asked" in page.get("/try").text
    assert page.get("/releases/v1").status_code == 404


@pytest.mark.integration
def test_the_overview_tells_of_the_champion_and_every_release(
    page: TestClient, finished_pipeline: Pipeline, version: str
) -> None:
    manifest = releases.read_manifest(finished_pipeline.store, version)
    text = page.get("/").text
    assert f"{manifest['figures']['test']['accuracy']:.2%}" in text
    assert text.count("<svg") == 2
    assert text.count(f"/releases/{version}") >= 3  # heading, table, log
    assert f"run {RUN.id} passed every gate" in text


@pytest.mark.integration
def test_a_release_shows_its_checks_classes_families_data_and_pictures(
    page: TestClient, finished_pipeline: Pipeline, version: str
) -> None:
    manifest = releases.read_manifest(finished_pipeline.store, version)
    text = page.get(f"/releases/{version}").text
    for row in manifest["verdict"]["checks"]:
        assert f">{row['name']}</th>" in text
    for name in (*manifest["classes"], *manifest["figures"]["novelty"]["families"]):
        assert f">{name}</th>" in text
    assert manifest["data"]["fingerprint"] in text
    pictures = re.findall(r'<img src="([^"]+)" alt="[^"]+" loading="lazy">', text)
    assert len(pictures) >= 4
    for address in pictures:
        answer = page.get(address)
        assert answer.headers["content-type"] == "image/png"
        again = page.get(address, headers={"if-none-match": answer.headers["etag"]})
        assert (again.status_code, again.content) == (304, b"")


@pytest.mark.integration
def test_a_release_of_an_earlier_version_is_shown_compared_and_asked_with_its_own_threshold(
    page: TestClient, finished_pipeline: Pipeline, version: str
) -> None:
    earlier = finished_pipeline.promote_earlier_release()
    assert page.get("/").status_code == 200
    assert ">FPR at 99 % TPR</th>" in page.get(f"/releases/{version}").text
    text = page.get(f"/releases/{earlier}").text
    assert ">FPR at 95 % TPR</th>" in text
    assert ">digits, FPR95</th>" in text
    for pair in ({"a": version, "b": earlier}, {"a": earlier, "b": version}):
        assert page.get("/compare", params=pair).status_code == 200
    assert {row["threshold"] for row in page.get("/try/samples").json()} == {1_000.0}


@pytest.mark.integration
@pytest.mark.parametrize("root", ["", "/airflow/fmnist"])
def test_every_link_leads_somewhere_below_the_root(finished_pipeline: Pipeline, root: str) -> None:
    page = browser(app(), root_path=root)
    finished_pipeline.promote_second_release()
    seen, waiting, targets = set(), {f"{root}/"}, set()
    while waiting:
        address = waiting.pop()
        seen.add(address)
        assert address.startswith(root)
        answer = page.get(address.removeprefix(root))
        assert answer.status_code == 200, address
        if "text/html" in answer.headers["content-type"] and "/report.html" not in address and "/runs/" not in address:
            named = Links(answer.text)
            # Nothing from elsewhere, and no scheme or host, which a server behind a proxy does not know.
            assert not [link for link in named.found | named.targets if urlsplit(link).scheme or urlsplit(link).netloc]
            waiting |= {urlsplit(urljoin(address, link)).path for link in named.found} - seen
            targets |= named.targets
    assert len(seen) > 10
    assert {target.removeprefix(root) for target in targets} >= {"/rollback", "/withdrawals/withdraw", "/try/image"}
    assert all(target.startswith(root) for target in targets)


@pytest.mark.integration
def test_two_releases_are_compared(page: TestClient, version: str) -> None:
    text = page.get("/compare", params={"a": version, "b": version}).text
    assert text.count(version) >= 2
    assert "+0.00" in text
    assert page.get("/compare", params={"a": version, "b": "gone"}).status_code == 404


@pytest.mark.integration
def test_a_run_shows_its_report_and_nothing_else_of_the_store(page: TestClient) -> None:
    answer = page.get(f"/runs/{RUN.id}")
    assert "Promotion gate: promote" in answer.text
    assert "sandbox" in answer.headers["content-security-policy"]
    (tab,) = (view["href"] for view in plugin()["VIEWS"] if view["destination"] == "dag_run")
    assert tab == "fmnist/runs/{RUN_ID}"  # below which the page is mounted, relative to Airflow's own address
    for foreign in ("gone", "%2e%2e", "%2e%2e%2fchampion"):
        assert page.get(f"/runs/{foreign}").status_code == 404


@pytest.mark.integration
def test_only_files_of_the_manifest_are_served(page: TestClient, version: str, finished_pipeline: Pipeline) -> None:
    finished_pipeline.store.put(f"releases/{version}/secret.txt", b"not of this release")
    for name in ("secret.txt", "../../champion/00000001.json", "manifest.json"):
        assert page.get(f"/releases/{version}/{name}").status_code == 404
    assert page.get(f"/releases/{version}/model.h5").content[:4] == b"\x89HDF"


@pytest.mark.integration
@pytest.mark.parametrize(
    "name", ["n" * 300, "%0Aa%1B%5B31m", "%2e%2e", "%00", "%ED%A0%80", "a%2F%2e%2e%2Fb", "%C2%85", "%25%32%65", "%5C"]
)
def test_a_name_that_nothing_can_have_is_not_found(page: TestClient, version: str, name: str) -> None:
    for address in (
        f"/releases/{name}",
        f"/releases/{version}/{name}",
        f"/releases/{name}/model.h5",
        f"/runs/{name}",
        f"/compare?a={version}&b={name}",
        f"/static/{name}",
        f"/{name}",
    ):
        answer = page.get(address)
        # The client itself resolves "..", as browsers do: that leads to another page.
        assert answer.status_code == 404, (address, answer.text)
        assert answer.text.replace("\n", "").isprintable()
    for address in ("/rollback", "/withdrawals/withdraw", "/withdrawals/restore"):
        form = f"version={name}&reason=r"
        answer = page.post(address, content=form, headers=HERE | {"content-type": "application/x-www-form-urlencoded"})
        assert answer.status_code == 404, (address, answer.text)
    assert page.post(f"/withdrawals/{name}", data={"version": version, "reason": "r"}, headers=HERE).status_code in {
        404,
        405,
    }


@pytest.mark.integration
@pytest.mark.parametrize("field", ["version", "reason", "after"])
def test_text_that_utf_8_cannot_hold_is_refused(page: TestClient, version: str, field: str) -> None:
    """A form may name the encoding of its fields, and there are some that lead to halves of characters."""
    fields = {"version": version, "reason": "r", "after": "1"} | {field: "\\ud800" * 600}
    parts = "".join(f'--b\r\nContent-Disposition: form-data; name="{n}"\r\n\r\n{v}\r\n' for n, v in fields.items())
    kind = "multipart/form-data; boundary=b; charset=raw_unicode_escape"
    answer = page.post("/rollback", content=f"{parts}--b--\r\n", headers=HERE | {"content-type": kind})
    assert answer.status_code == (404 if field == "version" else 422), answer.text


@pytest.mark.integration
def test_a_person_rolls_back_with_a_reason(page: TestClient, finished_pipeline: Pipeline, version: str) -> None:
    finished_pipeline.promote_second_release()
    form = {"version": version, "reason": "<script>alert('worse')</script>", "after": 2}
    assert 'name="after" value="2"' in page.get(f"/releases/{version}").text
    answer = page.post("/rollback", data=form, headers=HERE)
    assert (answer.status_code, answer.headers["location"]) == (303, "/")
    entry = service.in_service(finished_pipeline.store)
    assert (entry.version, entry.action) == (version, "rollback")
    assert (entry.reason, entry.actor, entry.replaces) == ("<script>alert('worse')</script>", "ann", "second")
    text = page.get("/").text
    assert "&lt;script&gt;alert(&#39;worse&#39;)&lt;/script&gt;" in text
    assert "<script>alert" not in text
    again = page.post("/rollback", data=form, headers=HERE)
    assert again.status_code == 400
    assert "is the champion already" in again.text


@pytest.mark.integration
def test_a_champion_that_changed_since_the_page_was_loaded_is_not_replaced(
    page: TestClient, finished_pipeline: Pipeline, version: str
) -> None:
    finished_pipeline.promote_second_release()
    form = {"version": version, "reason": "the first was bad", "after": 1}
    answer = page.post("/rollback", data=form, headers=HERE)
    assert answer.status_code == 409
    assert "and is second by entry 2 of the log; nothing was rolled back" in answer.text
    assert service.in_service(finished_pipeline.store).version == "second"


@pytest.mark.integration
def test_a_release_is_withdrawn_and_restored(page: TestClient, finished_pipeline: Pipeline, version: str) -> None:
    finished_pipeline.promote_second_release()
    assert "Withdraw it" in page.get(f"/releases/{version}").text
    form = {"version": version, "reason": "its labels were wrong"}
    answer = page.post("/withdrawals/withdraw", data=form, headers=HERE)
    assert (answer.status_code, answer.headers["location"]) == (303, f"/releases/{version}")
    text = page.get(f"/releases/{version}").text
    assert re.search(r"Withdrawn on .* by ann: .*its labels were wrong", text)
    assert "Restore it" in text
    assert text.count("its labels were wrong") == 2  # there, and in the log
    assert "withdrawn" in page.get("/").text
    assert page.post("/withdrawals/withdraw", data=form, headers=HERE).status_code == 409
    assert page.post("/withdrawals/withdraw", data=form | {"version": "second"}, headers=HERE).status_code == 409
    assert page.post("/withdrawals/restore", data=form, headers=HERE).status_code == 303
    assert "Withdraw it" in page.get(f"/releases/{version}").text
    for address in ("/withdrawals/withdraw", "/withdrawals/restore"):
        assert browser(app(may_edit=refuse(403))).post(address, data=form, headers=HERE).status_code == 403
        assert page.post(address, data=form, headers={"sec-fetch-site": "cross-site"}).status_code == 403
        assert page.post(address, data=form | {"version": "gone"}, headers=HERE).status_code in {404, 409}


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
        (HERE, 303),
    ],
)
def test_another_site_changes_nothing(
    finished_pipeline: Pipeline, version: str, headers: dict[str, str], status: int
) -> None:
    finished_pipeline.promote_second_release()
    answer = browser(app()).post("/rollback", data={"version": version, "reason": "r"}, headers=headers)
    assert answer.status_code == status
    assert (service.in_service(finished_pipeline.store).version == version) == (status == 303)


@pytest.mark.integration
def test_a_viewer_reads_but_changes_nothing(finished_pipeline: Pipeline, version: str) -> None:
    finished_pipeline.promote_second_release()
    page = browser(app(may_edit=refuse(403)))
    assert page.get("/").status_code == 200
    assert page.post("/rollback", data={"version": version, "reason": "r"}, headers=HERE).status_code == 403
    assert service.in_service(finished_pipeline.store).version == "second"
    for reason in ("", "   "):
        answer = browser(app()).post("/rollback", data={"version": version, "reason": reason}, headers=HERE)
        assert answer.status_code in {400, 422}


def test_every_route_refuses_a_stranger(pipeline: Pipeline) -> None:
    mounted = plugin_app()
    page = TestClient(mounted, follow_redirects=False)
    routes = list(mounted.routes)
    assert len(routes) >= 10
    for route in routes:
        address = re.sub(r"\{[^}]+\}", "x", route.path)
        for method in route.methods - {"HEAD"}:
            for headers in ({}, HERE, {"cookie": "_token=forged"}, {"authorization": "Bearer forged"}):
                answer = page.request(method, address, headers=headers)
                assert answer.status_code in {401, 403}, (method, address, headers)


@pytest.mark.integration
def test_every_answer_bounds_what_a_browser_does(page: TestClient, version: str) -> None:
    for address in ("/", f"/releases/{version}", "/try", "/static/style.css", "/static/gone", "/releases/gone"):
        headers = page.get(address).headers
        policy = headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert headers["x-content-type-options"] == "nosniff"


def image(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "png")
    return buffer.getvalue()


@pytest.mark.integration
def test_an_upload_is_answered_and_kept_nowhere(page: TestClient, finished_pipeline: Pipeline) -> None:
    before = list(finished_pipeline.store.list(""))
    images, labels = synthetic.make_images(50, 2)
    answer = page.post("/try/image", content=image(images[0]), headers=HERE).json()
    assert answer["class"] == f"pattern {labels[0]}"
    assert sum(answer["probabilities"].values()) == pytest.approx(1, abs=0.01)
    assert answer["picture"].startswith("data:image/png;base64,")
    noise = np.random.default_rng(0).integers(0, 256, (28, 28), dtype=np.uint8)
    answer = page.post("/try/image", content=image(noise), headers=HERE).json()
    assert answer["answer"] == "not clothing"
    assert answer["familiarity"] < answer["threshold"]
    assert page.post("/try/image", content=image(noise), headers={"sec-fetch-site": "cross-site"}).status_code == 403
    assert list(finished_pipeline.store.list("")) == before


@pytest.mark.integration
def test_a_sample_of_each_class_is_drawn(page: TestClient) -> None:
    found = page.get("/try/samples").json()
    assert [row["truth"] for row in found] == [f"pattern {number}" for number in range(10)]
    assert sum(row["class"] == row["truth"] for row in found) >= 9


@pytest.mark.integration
@pytest.mark.parametrize("name", HOSTILE_IMAGES)
def test_hostile_uploads_are_refused_with_a_reason(page: TestClient, name: str) -> None:
    answer = page.post("/try/image", content=HOSTILE_IMAGES[name], headers={**HERE, "accept": "application/json"})
    assert answer.status_code == 422, answer.text
    assert "the upload" in answer.json()["detail"]


@pytest.mark.parametrize(
    ("kind", "is_read"),
    [("PNG", True), ("JPEG", True), ("GIF", True), ("BMP", True), ("WEBP", True), ("TIFF", False), ("PPM", False)],
)
def test_only_formats_that_people_have_are_decoded(kind: str, is_read: bool) -> None:
    expected = contextlib.nullcontext() if is_read else pytest.raises(DataError, match="no picture that can be read")
    with expected:
        assert read_picture(io.BytesIO(encode_image(kind)), "the upload").shape == (28, 28)


@pytest.mark.integration
def test_an_image_that_is_a_page_as_well_is_only_an_image(page: TestClient) -> None:
    import zlib

    both = make_png(64, 64, zlib.compress(b"\x00" * (64 * 65))) + b"<script>alert(1)</script>"
    answer = page.post("/try/image", content=both, headers=HERE)
    assert answer.status_code == 200
    assert "script" not in answer.text


@pytest.mark.integration
def test_a_store_that_does_not_answer_is_told(page: TestClient, finished_pipeline: Pipeline) -> None:
    (finished_pipeline.store.root / "champion" / "00000001.json").write_bytes(b"foreign")
    answer = page.get("/")
    assert answer.status_code == 500
    assert "its bytes were changed" in answer.text


@pytest.mark.integration
def test_a_damaged_release_hides_no_other(page: TestClient, finished_pipeline: Pipeline, version: str) -> None:
    finished_pipeline.promote_second_release()
    key = f"releases/{version}/manifest.json"
    finished_pipeline.store.put(key, finished_pipeline.store.get(key).replace(b"quick", b"quiet", 1))
    text = page.get("/").text
    assert f"{key}: its bytes were changed" in text
    assert "Champion <a href" in text
    assert page.get(f"/releases/{version}").status_code == 500
    finished_pipeline.store.put("releases/second/manifest.json", b"foreign")
    answer = browser(app()).get("/")
    assert answer.status_code == 200
    assert answer.text.count("its bytes were changed") == 2


@pytest.mark.integration
def test_two_hundred_releases_stay_small(finished_pipeline: Pipeline, version: str) -> None:
    data = finished_pipeline.store.get(f"releases/{version}/manifest.json")
    manifest = unseal(data, "manifest")
    for number in range(200):
        name = f"20270101T000000Z-{number:08d}"
        files = {"model.h5": b"model"}
        releases.publish(
            finished_pipeline.store, name, files, {k: v for k, v in manifest.items() if k not in {"files", "version"}}
        )
    assert read_record(finished_pipeline.store, RUN.id, "promote")["status"] == "done"
    answer = browser(app()).get("/")
    assert len(answer.content) < 500_000


@pytest.mark.integration
def test_what_was_read_ahead_is_not_read_again(
    finished_pipeline: Pipeline, version: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made_app = app()
    made_app.state.read_ahead()
    monkeypatch.setattr(releases, "read_manifest", refuse(500))
    assert version in browser(made_app).get("/").text


def test_a_store_that_cannot_be_read_ahead_is_told(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("FMNIST_STORE", "ftp://nowhere")
    app().state.read_ahead()
    assert "not ahead" in caplog.text
    assert "FMNIST_STORE" in caplog.text


def test_the_plugin_reads_ahead(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    begun = Event()
    monkeypatch.setattr(Shelf, "log", lambda _: begun.set())
    plugin_app()
    assert begun.wait(30)


@pytest.mark.integration
def test_the_runbook_has_an_anchor_for_each_event(page: TestClient) -> None:
    answer = page.get("/runbook")
    assert answer.status_code == 200
    assert '<h2 id="retraining-rejected">Retraining rejected</h2>' in answer.text
    assert ">Runbook</a>" in answer.text


@pytest.mark.integration
def test_the_page_says_what_is_signed_and_shows_nothing_forged(
    page: TestClient, finished_pipeline: Pipeline, version: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "Manifest: unsigned." in page.get(f"/releases/{version}").text
    pem, trusted = make_keys(None, champion.read_log(finished_pipeline.store).digests, revoke_earlier=False)
    monkeypatch.setenv("FMNIST_TRUSTED_KEYS", trusted.model_dump_json())
    monkeypatch.setenv("FMNIST_SIGNING_KEY", pem)
    store = open_store(finished_pipeline.environment["FMNIST_STORE"])
    release = service.open_release(store, version)
    facts = {name: value for name, value in release.manifest.items() if name not in {"files", "version"}}
    releases.publish(store, "second", release.files, facts)
    withdrawal.withdraw(store, "second", "no good", actor="ann")
    text = browser(app()).get("/releases/second").text
    assert f"Manifest: signed by key {trusted.keys[0].id[:16]}." in text
    assert text.count("signed by key") == 2
    key = "releases/second/manifest.json"
    store.put(key, Keys().encode(key, "manifest", {**facts, "version": "second", "files": {}, "classes": ["a"] * 10}))
    for path in ("/releases/second", "/releases/second/model.h5", f"/compare?a={version}&b=second"):
        answer = browser(app()).get(path)
        assert (answer.status_code, "so it was replaced" in answer.text) == (500, True)
    overview = browser(app()).get("/").text
    assert "releases/second/manifest.json: is not the manifest that entry 2 of the champion log names" in overview
