"""Hostile file names on pages and in mails: every browser shows them as text."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from fastapi.testclient import TestClient
from playwright.sync_api import BrowserContext, Page

from fmnist_tasks.page.activity import Schedule
from fmnist_tasks.page.app import Access, create_app
from fmnist_tasks.registry.store import encode_name
from fmnist_tasks.settings import DAG_ID
from tests.support.chromium import launch_chromium
from tests.support.listeners import MailServer
from tests.support.pipeline import Pipeline
from tests.support.requirements import CHROMIUM, require
from tests.support.synthetic import RUN, encode_npz, make_images

pytestmark = pytest.mark.exhaustive

MARKUP = ("<img src=x onerror=alert(1)>", '"><svg onload=alert(2)>', "';alert(3)", "[a](javascript:alert(4)) **b**")
TERMINAL = ("\x1b[31mred\x1b[0m", "gpj.\u202eexe", "a\nb")
NAMES = (*MARKUP, *TERMINAL)


@pytest.fixture
def browser() -> Iterator[BrowserContext]:
    require(CHROMIUM)
    with launch_chromium() as chromium:
        yield chromium.new_context(offline=True)  # Data Docs link to external style sheets


def find_injected(page: Page) -> list[str]:
    """Return the elements that can only come from a file name."""
    selector = "[onerror], [onload]:not(body), img[src=x], a[href^='javascript:alert']"
    return [element.evaluate("element => element.outerHTML") for element in page.locator(selector).all()]


def test_no_browser_interprets_the_name_of_a_batch_as_markup(
    pipeline: Pipeline, browser: BrowserContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    incoming = pipeline.store.root / "incoming"
    incoming.mkdir(parents=True)
    images, labels = make_images(200, 3)
    for name in NAMES:
        (incoming / f"{name}.npz").write_bytes(encode_npz(images=images, labels=labels + 1))
        (incoming / f"{name}-images-idx3-ubyte").write_bytes(b"half of a pair, which waits for the other")
    with MailServer().serve() as mail_server:
        monkeypatch.setenv("AIRFLOW_CONN_FMNIST_MAIL", mail_server.connection)
        pipeline.run_until("validate_data")
    assert len(mail_server.mails) >= 2
    mails = [mail.get_body(("html",)).get_content() for mail in mail_server.mails]

    page = browser.new_page()
    dialogs: list[str] = []
    page.on("dialog", lambda dialog: (dialogs.append(dialog.message), dialog.dismiss()))
    docs = sorted((pipeline.store.root / "runs" / RUN.id / "data_docs").rglob("*.html"))
    assert len(docs) > 2 * len(NAMES)
    text = ""
    for path in docs:
        page.goto(path.as_uri())
        assert find_injected(page) == []
        text += page.content()
    client = TestClient(create_app(Access(lambda: None, lambda: "ann", lambda _: Schedule())))
    pages = [client.get(address).text for address in (f"/runs/{RUN.id}", "/")]
    for content in (*pages, *mails):
        page.set_content(content)
        assert find_injected(page) == []
        text += page.locator("body").inner_text()
    assert dialogs == []
    assert encode_name(NAMES[0].encode()) in text  # the name of the waiting file, as text
    for mail in mail_server.mails:
        texts = [mail["Subject"], mail.get_body(("plain",)).get_content(), mail.get_body(("html",)).get_content()]
        assert all(re.fullmatch(r"[^\x00-\x08\x0b\x0c\x0e-\x1f\x7f\u202a-\u202e]*", text) for text in texts)
        assert DAG_ID in texts[1]
