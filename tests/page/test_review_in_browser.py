"""Review and “Submit images” in a browser, with keyboard and mouse."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from fmnist_tasks.data.review import list_review_images
from fmnist_tasks.settings import PROJECT
from fmnist_tasks.steps import run_step
from tests.support import synthetic
from tests.support.airflow_home import wait_until
from tests.support.chromium import launch_chromium
from tests.support.pipeline import Pipeline
from tests.support.ports import accepts_connections, reserve_port
from tests.support.releases_page import collect_errors
from tests.support.requirements import CHROMIUM, require

pytestmark = pytest.mark.integration

COUNT = 6  # images in review


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    """A pipeline with images in review; they are copies of training images."""
    require(CHROMIUM)
    pipeline = Pipeline(tmp_path_factory.mktemp("review"))
    synthetic.write_dataset(pipeline.data)
    images, labels = synthetic.make_images(400, 77)
    images[:COUNT] = synthetic.make_images(1600, 1)[0][:COUNT]
    pipeline.store.put("incoming/week.npz", synthetic.encode_npz(images=images, labels=labels))
    with pytest.MonkeyPatch.context() as patch:
        for name, value in pipeline.environment.items():
            patch.setenv(name, value)
        for step in ("ingest", "validate_data"):
            run_step(step, synthetic.RUN)
    return pipeline


@pytest.fixture(scope="module")
def page(pipeline: Pipeline) -> Iterator[Page]:
    """A page of a server with this pipeline's store."""
    port = reserve_port()
    command = [sys.executable, "-m", "tests.support.page_server", str(port), "60"]
    with subprocess.Popen(command, cwd=PROJECT, env=os.environ | pipeline.environment) as server:
        wait_until(lambda: server.poll() is not None or accepts_connections(port), every=0.05)
        with launch_chromium() as chromium:
            context = chromium.new_context(base_url=f"http://127.0.0.1:{port}", extra_http_headers={"x-user": "ann"})
            expect.set_options(timeout=60_000)
            yield context.new_page()
        server.terminate()


def press_keys(page: Page, *keys: str) -> None:
    expect(page.locator("input[name=ids]").first).to_be_focused()  # by the page's script
    for key in keys:
        page.keyboard.press(key)


def test_images_are_decided_with_the_keyboard(pipeline: Pipeline, page: Page) -> None:
    errors = collect_errors(page, "/static/")
    page.goto("/review")
    expect(page.get_by_text("6 images waiting")).to_be_visible()
    press_keys(page, "ArrowDown", "k")  # the second
    expect(page.get_by_text("5 images waiting")).to_be_visible()
    press_keys(page, "ArrowUp", "Space", "ArrowDown", "ArrowDown", "Space")  # the first and the third of the others
    expect(page.locator("input[name=ids]:checked")).to_have_count(2)
    page.keyboard.press("d")
    expect(page.get_by_text("3 images waiting")).to_be_visible()
    press_keys(page, "r")  # no label is suggested, so the user chooses one
    expect(page.locator("select[name=label]")).to_be_focused()
    page.locator("select[name=label]").select_option(label="pattern 7")
    page.get_by_role("button", name="Relabel").click()
    expect(page.get_by_text("2 images waiting")).to_be_visible()
    page.get_by_label("all on this page").check()
    page.get_by_role("button", name="Keep").click()
    expect(page.get_by_text("0 images waiting")).to_be_visible()

    decisions = {image.entry.row: image.decision for image in list_review_images(pipeline.store)}
    actions = {row: (decision.action, decision.label, decision.by) for row, decision in decisions.items()}
    keep, drop = ("keep", None, "ann"), ("drop", None, "ann")
    assert actions == {0: drop, 1: keep, 2: ("relabel", 7, "ann"), 3: drop, 4: keep, 5: keep}
    assert errors == []


def test_files_are_added(pipeline: Pipeline, page: Page, tmp_path: Path) -> None:
    errors = collect_errors(page, "/static/")
    images, labels = synthetic.make_images(50, 78)
    content = synthetic.encode_npz(images=images, labels=labels)
    paths = [tmp_path / name for name in ("shop.npz", "notes.txt")]
    for path in paths:
        path.write_bytes(content)
    page.goto("/submit")
    expect(page.locator("#batches")).to_be_enabled()  # by the page's script
    page.locator("#batches").set_input_files(paths)
    expect(page.get_by_text("shop.npz: submitted as incoming/shop.npz; the next run checks it")).to_be_visible()
    expect(page.get_by_text("notes.txt: 'notes.txt' is not a valid name for a batch")).to_be_visible()
    assert pipeline.store.get("incoming/shop.npz") == content
    assert errors == []
