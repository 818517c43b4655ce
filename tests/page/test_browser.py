"""As a person would: Chromium against a standalone Airflow, from the login to the champion log.

With FMNIST_SCREENSHOTS=folder (`make screenshots`) the same journey goes over the real images, and its pictures are
kept there.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit
from uuid import uuid4

import pytest
from playwright.sync_api import Browser, FrameLocator, Locator, Page, expect

from fmnist_tasks import service
from fmnist_tasks.alerts.events import find_event
from fmnist_tasks.registry import champion, releases
from fmnist_tasks.registry.s3 import S3Store
from fmnist_tasks.settings import DAG_ID, Settings
from tests.support import synthetic
from tests.support.airflow_home import QUICK, AirflowInstallation, copy_migrated_home, wait_until
from tests.support.chromium import launch_chromium
from tests.support.listeners import MailServer, WebhookServer
from tests.support.minio_server import MinioServer
from tests.support.pipeline import Pipeline
from tests.support.registry_page import make_noise, use_page, watch_faults
from tests.support.requirements import CHROMIUM, require
from tests.support.tls_proxy import run_tls_proxy

pytestmark = pytest.mark.integration

PICTURES = os.environ.get("FMNIST_SCREENSHOTS", "")
PROFILE = "standard" if PICTURES else "quick"
SIZE = {"width": 1280, "height": 860}
PATIENCE = 60_000  # milliseconds for what a page shows


@pytest.fixture(scope="session", autouse=True)
def has_chromium() -> None:
    """Before anything is started for a test that is skipped then."""
    require(CHROMIUM)


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    expect.set_options(timeout=PATIENCE)
    with launch_chromium() as browser:
        yield browser


@pytest.fixture(autouse=True)
def windows(chromium: Browser) -> Iterator[None]:
    """No window is left open behind a test: it would go on to ask and draw."""
    yield
    for context in chromium.contexts:
        context.close()


@dataclass(frozen=True)
class House:
    """A running Airflow with its store in MinIO and connections for everything in its own database."""

    airflow: AirflowInstallation
    told_at_start: str
    store: S3Store
    mail_server: MailServer
    webhook_server: WebhookServer
    secrets: list[str]

    @property
    def url(self) -> str:
        return re.search(r"http://127.0.0.1:[0-9]+", self.told_at_start)[0]

    def password(self, user: str) -> str:
        if user == "admin":
            return re.search(r"user admin, password (\S+)", self.told_at_start)[1]
        return self.airflow.read_password(user)

    def told(self, event: str) -> int:
        """How often each channel delivered an alert of this event; both the same."""
        title = find_event(event).title
        mails = [mail for mail in self.mail_server.mails if mail["Subject"].startswith(title)]
        posts = [post for post in self.webhook_server.posts if post["title"].startswith(title)]
        assert len(mails) == len(posts)
        return len(mails)

    def enter(self, browser: Browser, user: str = "admin", **options: object) -> Page:
        """A window of somebody who has signed in."""
        page = browser.new_context(**{"base_url": self.url, "viewport": SIZE} | options).new_page()
        page.set_default_timeout(PATIENCE)
        page.goto("/")
        page.fill("input[name=username]", user)
        page.fill("input[type=password]", self.password(user))
        page.click("button[type=submit]")
        page.wait_for_url(f"{self.url}/")
        return page

    def outcome(self, page: Page, run_id: str) -> str | None:
        """How the run ends, waited for away from Airflow, whose pages draw and ask all the time that a run goes on."""
        page.goto("about:blank")
        wait_until(lambda: self.airflow.read_run_state(run_id) in {"success", "failed"}, seconds=1800)
        return self.airflow.read_run_state(run_id)

    def triggered(self, page: Page) -> str:
        """Press the button of the open form; the id of the run that this makes, and its DAG is switched on."""
        known = set(self.airflow.query_database("select run_id from dag_run"))
        form(page).get_by_role("button", name="Trigger").click()
        runs = "select run_id from dag_run where run_type = 'manual'"
        ((run_id,),) = wait_until(lambda: set(self.airflow.query_database(runs)) - known)
        off = f"select dag_id from dag join dag_run using (dag_id) where is_paused and run_id = '{run_id}'"  # noqa: S608
        wait_until(lambda: not self.airflow.query_database(off))  # the form does it after it has made the run
        return str(run_id)


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory, minio_server: MinioServer, finished_home: Path) -> Iterator[House]:
    pipeline = Pipeline(tmp_path_factory.mktemp("house"))
    labels = synthetic.make_images(600, 2)[1]
    labels[:3] = (labels[:3] + 1) % synthetic.CLASSES  # no model can be right on these
    synthetic.write_dataset(pipeline.data, test_labels=labels)
    with pytest.MonkeyPatch.context() as patch:  # Airflow has the connection alone
        for name, value in minio_server.credentials.items():
            patch.setenv(name, value)
        store = minio_server.open_store(f"test-{uuid4().hex}")
    changed = {
        "FMNIST_STORE": f"s3://{store.bucket}?connection=fmnist_store",
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_USERS": "admin:admin,viewer:viewer",
    }
    if PICTURES:
        real = str(Settings.from_environment().cache / "fashion-mnist")
        changed |= {"FMNIST_DATASET": "", "FMNIST_DATA_DIR": real}
    airflow = AirflowInstallation(copy_migrated_home(pipeline.home / "airflow"), pipeline, changed)
    with (
        MailServer(password=uuid4().hex).serve() as mail_server,
        WebhookServer(password=uuid4().hex).serve() as webhook_server,
    ):
        login, secret = minio_server.credentials.values()
        endpoint = {"endpoint_url": minio_server.endpoint}
        bucket = {"conn_type": "generic", "login": login, "password": secret, "extra": endpoint}
        connections = {
            "fmnist_mail": json.loads(mail_server.connection),
            "fmnist_apprise": json.loads(webhook_server.connection),
        }
        (pipeline.home / "connections.json").write_text(json.dumps(connections | {"fmnist_store": bucket}))
        code, output = airflow("airflow", "connections", "import", str(pipeline.home / "connections.json"))
        assert code == 0, output
        if PICTURES:
            code, output = airflow.run_dag()
            assert code == 0, output
        else:
            finished = Pipeline(finished_home).store
            for stat in finished.list(""):
                store.put(stat.key, finished.get(stat.key))
        with airflow.run_ui() as told:
            wait_until(lambda: len(airflow.query_database("select distinct dag_id from serialized_dag")) == 5)
            yield House(
                airflow,
                told,
                store,
                mail_server,
                webhook_server,
                [secret, mail_server.password, webhook_server.password],
            )


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(PICTURES).resolve() if PICTURES else tmp_path_factory.mktemp("pictures")


def form(page: Page) -> Locator:
    """The form of the DAG whose page is shown, opened if it is not."""
    return page.get_by_role("dialog").filter(has_text="Trigger Dag")


def opened(page: Page, dag_id: str, section: str) -> Locator:
    """The trigger form of a DAG, with one of its sections open."""
    page.goto(f"/dags/{dag_id}")
    page.get_by_role("button", name="Trigger").first.click()
    return unfolded(page, section)


def unfolded(page: Page, section: str) -> Locator:
    """The open form with another of its sections, which closes the one before."""
    form(page).get_by_role("button", name=section, exact=True).click()
    return form(page)


def approve(page: Page, reason: str) -> None:
    """Give a reason and press the button of the question that is shown; what waits has the answer then."""
    page.locator("[name=element_approval_reason]").fill(reason)
    with page.expect_response(lambda answer: answer.request.method == "PATCH") as answered:
        page.get_by_role("button", name="Approve").click()
    assert answered.value.ok


def registry(page: Page) -> FrameLocator:
    """The registry page, by Airflow's navigation."""
    page.goto("/")
    page.get_by_role("link", name="Releases").click()
    return page.frame_locator("iframe")


def test_a_person_trains_looks_tries_and_goes_back(house: House, chromium: Browser, pictures: Path) -> None:
    page = house.enter(chromium)
    expect(registry(page).get_by_role("heading", level=1)).to_contain_text("Champion")

    training = opened(page, DAG_ID, "Training")
    training.get_by_role("combobox").first.click()
    page.get_by_role("option", name=PROFILE).click()
    page.screenshot(path=pictures / "form.png")
    run_id = house.triggered(page)
    assert house.outcome(page, run_id) == "success"
    page.goto(f"/dags/{DAG_ID}/runs/{run_id}")
    expect(page.get_by_text("Success").first).to_be_visible()
    wide = house.enter(chromium, viewport={"width": 1500, "height": 560}, device_scale_factor=2)
    older, newer = (entry.version for entry in champion.history(house.store))
    assert releases.read_manifest(house.store, newer)["run_id"] == run_id
    wide.goto(f"/dags/{DAG_ID}/runs/{run_id}")
    for button in ("Show Graph", "Expand all task groups", "Collapse Details Panel"):
        wide.get_by_role("button", name=button).click()
    wide.mouse.move(700, 30)  # away from the button and its hint
    expect(wide.locator(".react-flow__node")).to_have_count(15 + 4)  # tasks, and their groups
    expect(wide.get_by_text("verify_release")).to_be_visible()
    wide.screenshot(path=pictures / "graph.png", clip={"x": 110, "y": 240, "width": 1350, "height": 170})

    assert service.in_service(house.store).version == newer
    assert releases.read_manifest(house.store, newer)["parameters"]["profile"] == PROFILE
    shelf = registry(page)
    expect(shelf.get_by_role("heading", level=1)).to_contain_text(newer)
    page.screenshot(path=pictures / "releases.png")

    shelf.locator("tbody").get_by_role("link", name=older).first.click()
    expect(shelf.get_by_role("heading", level=1)).to_contain_text(older)
    expect(shelf.get_by_role("row", name=re.compile("accuracy.*pass")).first).to_be_visible()
    page.screenshot(path=pictures / "release.png")

    shelf.get_by_role("link", name="Try it").click()
    upload = {"name": "noise.png", "mimeType": "image/png", "buffer": make_noise()}
    expect(shelf.locator("#upload")).to_be_enabled()
    shelf.locator("#upload").set_input_files(upload)
    expect(shelf.get_by_role("heading", name="not clothing")).to_be_visible()
    shelf.get_by_role("button", name="Draw a sample of each class").click()
    expect(shelf.locator(".answer")).to_have_count(synthetic.CLASSES)
    page.screenshot(path=pictures / "try.png")

    shelf.get_by_role("link", name="Releases").click()
    shelf.locator("tbody").get_by_role("link", name=older).first.click()
    shelf.get_by_label("Reason for rolling back").fill("shirts of week 47 have wrong labels")
    shelf.get_by_role("button", name="Make it the champion").click()
    expect(shelf.get_by_role("heading", level=1)).to_contain_text(older)
    entry = shelf.get_by_role("row", name=re.compile("rollback"))
    for shown in ("shirts of week 47 have wrong labels", "admin", newer):
        expect(entry).to_contain_text(shown)
    entry.scroll_into_view_if_needed()
    page.screenshot(path=pictures / "log.png")
    assert service.in_service(house.store).version == older
    ((event,),) = house.airflow.query_database("select extra from asset_event order by id desc limit 1")
    assert json.loads(event)["version"] == older

    assert house.told("champion changed") == (3 if PICTURES else 2)  # by each run, and back


@pytest.mark.exhaustive
def test_a_gate_that_says_no_ends_red_tells_a_person_and_changes_nothing(
    house: House, chromium: Browser, pictures: Path
) -> None:
    before = champion.history(house.store)
    page = house.enter(chromium)
    gates = opened(page, DAG_ID, "Gates")
    threshold = gates.locator("input[name=element_accuracy_threshold]")
    threshold.fill("1.5")
    threshold.blur()
    expect(threshold).to_have_value("1")
    wrong = {"logical_date": None, "conf": {"accuracy_threshold": 1.5}}
    refused = page.request.post(f"/api/v2/dags/{DAG_ID}/dagRuns", data=wrong)
    assert (refused.status, "greater than the maximum of 1" in refused.text()) == (400, True)
    threshold.fill("0.999")
    run_id = house.triggered(page)
    assert house.outcome(page, run_id) == "failed"
    page.goto(f"/dags/{DAG_ID}/runs/{run_id}")
    expect(page.get_by_text("Failed").first).to_be_visible()
    assert champion.history(house.store) == before

    assert house.told("rejected") == 1
    (mail,) = (mail for mail in house.mail_server.mails if mail["Subject"].startswith("Retraining rejected"))
    told = mail.get_body(("html",)).get_content()
    assert re.search(r"test accuracy is [0-9.]+%, below the bound of 99.90%", told)
    assert before[-1].version in told
    letter = page.context.new_page()
    letter.set_viewport_size({"width": 720, "height": 420})
    letter.set_content(told)
    letter.screenshot(path=pictures / "alert.png")
    letter.get_by_role("link", name="Run in Airflow").click()  # to the run, for one who has signed in
    expect(letter.get_by_text("Failed").first).to_be_visible()

    page.goto(f"/dags/{DAG_ID}/runs/{run_id}/tasks/base_model.accuracy_gate/details")
    page.get_by_role("link", name="Verdict").click()
    expect(page.get_by_role("row", name=re.compile("^accuracy reject .*below the bound of 99.90%"))).to_be_visible()


@pytest.mark.exhaustive
def test_a_person_approves_a_candidate_that_is_held(house: House, chromium: Browser, pictures: Path) -> None:
    policy = {"speed": {"bytes_at_most": 1}, "champion": {"worse": "hold"}}
    held = QUICK | {"seed": 5, "approval": True, "policy": policy}
    house.airflow.open_api(house.url).trigger_run(DAG_ID, held, "held")
    wait_until(lambda: house.airflow.is_waiting_for_approval("held"), seconds=1800)
    before = champion.history(house.store)
    assert house.told("approval needed") == 1
    page = house.enter(chromium)
    page.goto(f"/dags/{DAG_ID}/runs/held/tasks/tuned_model.approval/required_actions")
    expect(page.get_by_text("the size in bytes is").first).to_be_visible()
    page.screenshot(path=pictures / "approval.png")
    expect(page.get_by_role("link", name="Verdict and figures")).to_have_attribute(
        "href", f"{house.url}/fmnist/runs/held#promotion_gate"
    )
    assert champion.history(house.store) == before
    approve(page, "it is small enough")
    assert house.outcome(page, "held") == "success"
    manifest = releases.read_manifest(house.store, service.in_service(house.store).version)
    assert (manifest["run_id"], manifest["verdict"]["approval"]["by"]) == ("held", "admin")
    *others, last = champion.history(house.store)
    assert (others, last.reason, last.actor) == (before, "run held was held; it is small enough", "admin")


def test_a_rollback_by_the_form_waits_for_its_approval(house: House, chromium: Browser) -> None:
    before, asked = champion.history(house.store), house.told("approval needed")
    current = before[-1].version
    earlier = next(entry.version for entry in reversed(before) if entry.version != current)
    page = house.enter(chromium)
    what = opened(page, "fmnist_rollback", "Rollback")
    what.locator("[name=element_version]").fill(earlier)
    what.locator("[name=element_reason]").fill("this week was odd")
    unfolded(page, "Approval").locator("label:has([name=element_approval])").click()  # which hides the box itself
    run_id = house.triggered(page)
    wait_until(lambda: house.airflow.is_waiting_for_approval(run_id, "fmnist_rollback", "approval"))
    assert (champion.history(house.store), house.told("approval needed")) == (before, asked + 1)
    page.goto(f"/dags/fmnist_rollback/runs/{run_id}/tasks/approval/required_actions")
    expect(page.get_by_text("this week was odd")).to_be_visible()
    approve(page, "I agree")
    assert house.outcome(page, run_id) == "success"
    *others, last = champion.history(house.store)
    assert others == before
    assert (last.version, last.action, last.reason) == (earlier, "rollback", "this week was odd")
    assert (last.actor, last.replaces) == ("admin", current)


def test_the_page_works_behind_a_proxy_that_speaks_tls(house: House, chromium: Browser, tmp_path: Path) -> None:
    """Airflow was not told of it (`--proxy-headers`), and takes all requests for http: no address says which."""
    history = champion.history(house.store)
    current = history[-1].version
    earlier = next(entry.version for entry in reversed(history) if entry.version != current)
    page = house.enter(chromium, ignore_https_errors=True)
    faults = watch_faults(page)
    with run_tls_proxy(tmp_path, urlsplit(house.url).port) as proxy:
        page.goto(f"{proxy}/fmnist/")
        use_page(page, current, earlier)
        assert page.url == f"{proxy}/fmnist/"
    assert faults == []
    last = service.in_service(house.store)
    assert (last.version, last.replaces, last.actor) == (earlier, current, "admin")


def test_strangers_see_nothing_and_viewers_change_nothing(house: House, chromium: Browser) -> None:
    before = champion.history(house.store)
    change = {"form": {"version": before[0].version, "reason": "I should like to"}, "headers": {"origin": house.url}}
    stranger = chromium.new_context(base_url=house.url).request
    assert stranger.get("/fmnist/").status == 401
    assert stranger.post("/fmnist/rollback", **change).status == 401
    viewer = house.enter(chromium, "viewer")
    expect(registry(viewer).get_by_role("heading", level=1)).to_contain_text(before[-1].version)
    assert viewer.request.post("/fmnist/rollback", **change).status == 403
    assert champion.history(house.store) == before


def test_the_page_is_readable_on_a_phone_and_in_the_dark(house: House, chromium: Browser, pictures: Path) -> None:
    version = service.in_service(house.store).version
    phone = {"viewport": {"width": 390, "height": 844}, "device_scale_factor": 2, "color_scheme": "dark"}
    page = house.enter(chromium, **phone)
    for address, picture in (("", "phone.png"), (f"releases/{version}", "phone-release.png"), ("try", None)):
        page.goto(f"/fmnist/{address}")
        if picture:
            page.screenshot(path=pictures / picture)
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), address
        ink, paper = (
            page.evaluate(f"getComputedStyle(document.body).{name}.match(/[0-9.]+/g).slice(0, 3).map(Number)")
            for name in ("color", "backgroundColor")
        )
        assert min(ink) > max(paper) + 100, address
    page.goto("/fmnist/")
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to the content")).to_be_focused()


def test_no_secret_is_in_any_log_nor_in_the_store(house: House) -> None:
    """Runs last in this file, over all that the journey left."""
    logs = [path.read_bytes() for path in house.airflow.home.rglob("*.log")]
    assert len(logs) > 20
    told = b"\n".join([*logs, *(house.store.get(stat.key) for stat in house.store.list(""))])
    assert b"promotion_gate done" in told
    assert b"delivered through fmnist_mail" in told
    values = json.dumps(house.airflow.query_database("select value from xcom"), default=str)
    for secret in house.secrets:
        assert secret.encode() not in told
        assert secret not in values
