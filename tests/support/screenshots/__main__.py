"""Retake the pictures: python -m tests.support.screenshots FOLDER, half an hour on two cores."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from playwright.sync_api import Browser, FloatRect, Locator, Page, StorageState, expect

from fmnist_tasks.registry.champion import list_entries
from fmnist_tasks.serving.release import require_champion
from fmnist_tasks.settings import DAG_ID
from tests.support.airflow_home import AirflowInstallation, copy_migrated_home, wait_until
from tests.support.chromium import launch_chromium
from tests.support.listeners import MailServer
from tests.support.pipeline import Pipeline
from tests.support.requirements import CHROMIUM, FAKETIME, require
from tests.support.screenshots.history import read_images, write_history, write_own_dataset

# No candidate has a recall of 90% in each class.
HELD = {"profile": "standard", "seed": 99, "approval": True, "force": True, "policy": {"classes": {"min_recall": 0.9}}}
WAIT = 60_000  # ms
NOTHING_MOVES = """document.getAnimations().every(
    animation => animation.playState !== "running" || animation.effect.getComputedTiming().iterations === Infinity)"""
MARGIN = 16  # pixels above the first element of a picture; half as many below the last


def main(pictures: Path) -> None:
    """Make the history in a temporary folder, then take all pictures of it."""
    require(CHROMIUM)
    require(FAKETIME)
    images = read_images()
    with TemporaryDirectory() as folder, MailServer().serve() as mail_server:
        home = Path(folder)
        connection = {
            "conn_type": "smtp",
            "host": "127.0.0.1",
            "port": mail_server.port,
            "extra": {
                "from_email": "pipeline@example.com",
                "to": mail_server.to,
                "disable_ssl": True,
                "disable_tls": True,
            },
        }
        overrides = {
            "AIRFLOW_CONN_FMNIST_MAIL": json.dumps(connection),
            "AIRFLOW__API__BASE_URL": "https://airflow.example.com",
            "FMNIST_INSTANCE": "prod",
        }
        airflow = AirflowInstallation(copy_migrated_home(home / "airflow"), Pipeline(home / "pipeline"), overrides)
        write_history(airflow, images)
        write_own_dataset(airflow)
        alerts = [mail_body.get_content() for mail in mail_server.mails if (mail_body := mail.get_body(("html",)))]
        rejection = [alert for alert in alerts if "Run rejected" in alert][-1]
        with launch_chromium() as browser, airflow.run_standalone() as url:
            expect.set_options(timeout=WAIT)
            airflow.unpause_dag(DAG_ID)
            Photographer(airflow, browser, url, pictures).take_all(rejection)


class Photographer:
    """Takes pictures of a running Airflow."""

    def __init__(self, airflow: AirflowInstallation, browser: Browser, url: str, pictures: Path) -> None:
        self._airflow, self._browser, self._url, self._pictures = airflow, browser, url, pictures
        self._store = airflow.pipeline.store

    def take_all(self, rejection: str) -> None:
        """All pictures; the Releases page before anything is triggered."""
        for scheme, suffix in (("light", ""), ("dark", "-dark")):
            with self._open("/fmnist/", color_scheme=scheme, viewport={"width": 1080, "height": 1400}) as page:
                self._take(page, f"releases{suffix}", end=page.locator("tbody tr").nth(3))
        current = require_champion(self._store).version
        with self._open(f"/fmnist/releases/{current}") as page:
            self._take(page, "release", end=page.get_by_role("row", name="calibration").first)
        with self._open("/fmnist/#log") as page:
            heading = page.get_by_role("heading", name="Champion log")
            self._take(page, "log", start=heading, end=page.get_by_role("row").last)
        with self._open("/fmnist/try") as page:
            expect(page.locator("#draw")).to_be_enabled()
            page.locator("#draw").click()
            expect(page.locator(".prediction")).to_have_count(10)
            self._take(page, "try", end=page.locator(".prediction").last)
        with self._open("/fmnist/review") as page:
            self._take(page, "review", end=page.locator("tbody tr").nth(5))
        with self._open("/fmnist/submit") as page:
            self._take(page, "submit", end=page.locator("main p").last)
        with self._open("/fmnist/datasets/digits/") as page:
            self._take(page, "own-dataset", end=page.locator("tbody tr").first)
        for address, name, last in (
            ("", "phone", ".panel >> nth=0"),
            (f"releases/{current}", "phone-release", ".cards"),
        ):
            with self._open(f"/fmnist/{address}", color_scheme="dark", viewport={"width": 390, "height": 844}) as page:
                self._take(page, name, end=page.locator(last))
        run_id = next(
            entry.reason.split()[1] for entry in reversed(list_entries(self._store)) if entry.action == "promote"
        )
        with self._open(f"/fmnist/runs/{run_id}") as page:
            heading = page.get_by_role("heading", name="Evaluate the candidate")
            heading.evaluate("(heading, margin) => scrollTo(0, heading.offsetTop - margin)", MARGIN)
            self._take(
                page, "report", start=heading, end=page.locator("h2:text('Evaluate the candidate') ~ p img").first
            )
        with self._open("about:blank", viewport={"width": 720, "height": 420}) as page:
            page.set_content(rejection)
            self._take(page, "alert", full_page=True)
        self._take_graph(run_id)
        self._take_form()
        self._take_approval()

    def _take_graph(self, run_id: str) -> None:
        with self._open(f"/dags/{DAG_ID}/runs/{run_id}", viewport={"width": 1300, "height": 640}) as page:
            for button in ("Show Graph", "Collapse Details Panel"):
                page.get_by_role("button", name=button).click()
            page.locator(".react-flow__node", has_text="tuned_model").get_by_role("button").first.click()
            page.get_by_role("button", name="fit view").click()
            page.mouse.move(700, 30)  # away from the button and its hint
            expect(page.get_by_text("evaluate_tuned")).to_be_visible()
            self._take(page, "graph")

    def _take_form(self) -> None:
        with self._open(f"/dags/{DAG_ID}", viewport={"width": 1100, "height": 1260}) as page:
            page.get_by_role("button", name="Trigger").first.click()
            form = page.get_by_role("dialog")
            form.get_by_role("button", name="Gates", exact=True).click()
            expect(form.get_by_text("Wait for approval")).to_be_visible()
            page.wait_for_function(NOTHING_MOVES)
            self._take(page, "form")

    def _take_approval(self) -> None:
        self._airflow.open_api(self._url).trigger_run(DAG_ID, HELD, "manual__trial")
        wait_until(lambda: self._airflow.is_waiting_for_approval("manual__trial"), seconds=1800)
        address = f"/dags/{DAG_ID}/runs/manual__trial/tasks/tuned_model.approval/required_actions"
        with self._open(address, viewport={"width": 1340, "height": 620}) as page:
            expect(page.get_by_text("Promote the candidate").first).to_be_visible()
            page.locator("[data-panel-resize-handle-id]").drag_to(
                page.locator("body"), target_position={"x": 440, "y": 560}, source_position={"x": 1, "y": 500}
            )  # so that the grid shows several runs
            self._take(page, "approval")

    @contextmanager
    def _open(self, address: str, **options: Any) -> Iterator[Page]:
        viewport = {"width": 1080, "height": 1400}
        own: dict[str, Any] = {"base_url": self._url, "device_scale_factor": 2, "viewport": viewport}
        context = self._browser.new_context(**own | options, storage_state=self._sign_in())
        page = context.new_page()
        page.set_default_timeout(WAIT)
        page.goto(address)
        page.wait_for_load_state("networkidle")
        yield page
        context.close()

    @cache  # noqa: B019 - there is one
    def _sign_in(self) -> StorageState:
        """Cookies of a signed-in administrator."""
        context = self._browser.new_context(base_url=self._url)
        page = context.new_page()
        page.set_default_timeout(WAIT)
        page.goto("/")
        page.fill("input[name=username]", "admin")
        page.fill("input[type=password]", self._airflow.read_password("admin"))
        page.click("button[type=submit]")
        expect(page.get_by_role("link", name="Releases")).to_be_visible()
        state = context.storage_state()
        context.close()
        return state

    def _take(
        self,
        page: Page,
        name: str,
        *,
        full_page: bool = False,
        start: Locator | None = None,
        end: Locator | None = None,
    ) -> None:
        """Take a picture of the window, or of its part between two elements, so that nothing is cut off."""
        clip: FloatRect | None = None
        if end and (last := end.bounding_box()) and page.viewport_size:
            first = start.bounding_box() if start else None
            top = first["y"] - MARGIN if first else 0
            clip = {
                "x": 0,
                "y": top,
                "width": page.viewport_size["width"],
                "height": last["y"] + last["height"] + MARGIN / 2 - top,
            }
        page.screenshot(path=self._pictures / f"{name}.png", full_page=full_page, clip=clip)
        print(name, flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
