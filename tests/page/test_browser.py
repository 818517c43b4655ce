"""The UI in a browser: Chromium against a standalone Airflow, from the login to the champion log."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from email.message import EmailMessage
from pathlib import Path
from urllib.parse import urlsplit
from uuid import uuid4

import pytest
from playwright.sync_api import Browser, FrameLocator, Locator, Page, expect

from fmnist_tasks.alerts.events import find_event
from fmnist_tasks.registry import champion, releases
from fmnist_tasks.registry.s3 import S3Store
from fmnist_tasks.serving.release import require_champion
from fmnist_tasks.settings import DAG_ID
from fmnist_tasks.templates import shorten_version
from tests.support import synthetic
from tests.support.airflow_home import QUICK, AirflowInstallation, copy_migrated_home, wait_until
from tests.support.chromium import launch_chromium
from tests.support.listeners import MailServer, WebhookServer
from tests.support.minio_server import MinioServer
from tests.support.pipeline import Pipeline
from tests.support.releases_page import collect_errors, find_champion_card, make_noise, use_page
from tests.support.requirements import CHROMIUM, require
from tests.support.tls_proxy import run_tls_proxy

pytestmark = pytest.mark.integration

SIZE = {"width": 1280, "height": 860}
TIMEOUT = 60_000  # milliseconds, for everything that a page shows


@pytest.fixture(scope="session", autouse=True)
def require_chromium() -> None:
    """Skip the tests before anything starts."""
    require(CHROMIUM)


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    expect.set_options(timeout=TIMEOUT)
    with launch_chromium() as browser:
        yield browser


@pytest.fixture(autouse=True)
def close_windows(chromium: Browser) -> Iterator[None]:
    """Close all windows after a test: an open one would continue to send requests."""
    yield
    for context in chromium.contexts:
        context.close()


@dataclass(frozen=True)
class Deployment:
    """A running Airflow with its store in MinIO, and all connections in its database."""

    airflow: AirflowInstallation
    startup_output: str
    store: S3Store
    mail_server: MailServer
    webhook_server: WebhookServer
    secrets: list[str]

    @property
    def url(self) -> str:
        return re.search(r"http://127.0.0.1:[0-9]+", self.startup_output)[0]

    def read_password(self, user: str) -> str:
        if user == "admin":
            return re.search(r"user admin, password (\S+)", self.startup_output)[1]
        return self.airflow.read_password(user)

    def find_mails(self, title: str) -> list[EmailMessage]:
        """The mails whose subject starts with the title. A long subject may be folded at its beginning."""
        return [mail for mail in self.mail_server.mails if mail["Subject"].lstrip().startswith(title)]

    def count_alerts(self, event: str) -> int:
        """Count the alerts of this event, of which both channels must have delivered the same number."""
        title = find_event(event).title
        mails = self.find_mails(title)
        posts = [post for post in self.webhook_server.posts if post["title"].startswith(title)]
        assert len(mails) == len(posts)
        return len(mails)

    def sign_in(self, browser: Browser, user: str = "admin", **options: object) -> Page:
        """Open a window and sign in."""
        page = browser.new_context(**{"base_url": self.url, "viewport": SIZE} | options).new_page()
        page.set_default_timeout(TIMEOUT)
        page.goto("/")
        page.fill("input[name=username]", user)
        page.fill("input[type=password]", self.read_password(user))
        page.click("button[type=submit]")
        page.wait_for_url(f"{self.url}/")
        return page

    def wait_for_run(self, page: Page, run_id: str) -> str | None:
        """Wait for the end of a run, and return its state. Leave Airflow's page, which polls during a run."""
        page.goto("about:blank")
        wait_until(lambda: self.airflow.read_run_state(run_id) in {"success", "failed"}, seconds=1800)
        return self.airflow.read_run_state(run_id)

    def trigger(self, page: Page) -> str:
        """Submit the open form. Wait until the run exists and its DAG is unpaused, and return the run ID."""
        known = set(self.airflow.query_database("select run_id from dag_run"))
        find_form(page).get_by_role("button", name="Trigger").click()
        runs = "select run_id from dag_run where run_type = 'manual'"
        ((run_id,),) = wait_until(lambda: set(self.airflow.query_database(runs)) - known)
        paused = f"select dag_id from dag join dag_run using (dag_id) where is_paused and run_id = '{run_id}'"  # noqa: S608
        wait_until(lambda: not self.airflow.query_database(paused))  # the form unpauses after it has created the run
        return str(run_id)


@pytest.fixture(scope="module")
def deployment(
    tmp_path_factory: pytest.TempPathFactory, minio_server: MinioServer, finished_home: Path
) -> Iterator[Deployment]:
    pipeline = Pipeline(tmp_path_factory.mktemp("deployment"))
    labels = synthetic.make_images(600, 2)[1]
    labels[:3] = (labels[:3] + 1) % synthetic.CLASSES  # no model predicts these correctly
    synthetic.write_dataset(pipeline.data, test_labels=labels)
    with pytest.MonkeyPatch.context() as patch:  # Airflow must use the connection
        for name, value in minio_server.credentials.items():
            patch.setenv(name, value)
        store = minio_server.open_store(f"test-{uuid4().hex}")
    settings = {
        "FMNIST_STORE": f"s3://{store.bucket}?connection=fmnist_store",
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_USERS": "admin:admin,viewer:viewer",
    }
    airflow = AirflowInstallation(copy_migrated_home(pipeline.home / "airflow"), pipeline, settings)
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
        finished = Pipeline(finished_home).store
        for stat in finished.list(""):
            store.put(stat.key, finished.get(stat.key))
        with airflow.run_ui() as startup_output:
            wait_until(lambda: len(airflow.query_database("select distinct dag_id from serialized_dag")) == 5)
            yield Deployment(
                airflow,
                startup_output,
                store,
                mail_server,
                webhook_server,
                [secret, mail_server.password, webhook_server.password],
            )


def find_form(page: Page) -> Locator:
    """The open trigger form."""
    return page.get_by_role("dialog").filter(has_text="Trigger Dag")


def open_form(page: Page, dag_id: str, section: str) -> Locator:
    """Open the trigger form of a DAG at a section."""
    page.goto(f"/dags/{dag_id}")
    page.get_by_role("button", name="Trigger").first.click()
    return open_section(page, section)


def open_section(page: Page, section: str) -> Locator:
    """Open a section of the form, which closes the one before."""
    find_form(page).get_by_role("button", name=section, exact=True).click()
    return find_form(page)


def approve(page: Page, reason: str) -> None:
    """Enter a reason, approve, and wait for the server's response."""
    page.locator("[name=element_approval_reason]").fill(reason)
    with page.expect_response(lambda response: response.request.method == "PATCH") as response:
        page.get_by_role("button", name="Approve").click()
    assert response.value.ok


def open_releases_page(page: Page) -> FrameLocator:
    """Open the Releases page from Airflow's navigation."""
    page.goto("/")
    page.get_by_role("link", name="Releases").click()
    return page.frame_locator("iframe")


def test_a_user_trains_inspects_predicts_and_rolls_back(deployment: Deployment, chromium: Browser) -> None:
    page = deployment.sign_in(chromium)
    expect(find_champion_card(open_releases_page(page))).to_contain_text("test accuracy")

    training = open_form(page, DAG_ID, "Training")
    training.get_by_role("combobox").first.click()
    page.get_by_role("option", name="quick").click()
    run_id = deployment.trigger(page)
    assert deployment.wait_for_run(page, run_id) == "success"
    page.goto(f"/dags/{DAG_ID}/runs/{run_id}")
    expect(page.get_by_text("Success").first).to_be_visible()
    wide_page = deployment.sign_in(chromium, viewport={"width": 1500, "height": 560})
    older, newer = (entry.version for entry in champion.list_entries(deployment.store))
    assert releases.read_manifest(deployment.store, newer).run_id == run_id
    wide_page.goto(f"/dags/{DAG_ID}/runs/{run_id}")
    for button in ("Show Graph", "Expand all task groups", "Collapse Details Panel"):
        wide_page.get_by_role("button", name=button).click()
    expect(wide_page.locator(".react-flow__node")).to_have_count(14 + 4)  # tasks and groups
    expect(wide_page.get_by_text("verify_release")).to_be_visible()

    assert require_champion(deployment.store).version == newer
    assert releases.read_manifest(deployment.store, newer).parameters["profile"] == "quick"
    releases_page = open_releases_page(page)
    expect(find_champion_card(releases_page)).to_contain_text(newer)
    expect(releases_page.get_by_role("region", name="Last run")).to_contain_text("promoted")
    expect(releases_page.get_by_role("region", name="Next run")).to_contain_text("UTC")
    expect(releases_page.locator("figure canvas")).to_have_count(2)

    releases_page.locator("tbody").locator(f"a[href$='/releases/{older}']").first.click()
    expect(releases_page.locator(".id").first).to_have_text(older)
    expect(releases_page.get_by_role("row", name=re.compile("accuracy.*pass")).first).to_be_visible()

    releases_page.get_by_role("link", name="Try it").click()
    upload = {"name": "noise.png", "mimeType": "image/png", "buffer": make_noise()}
    expect(releases_page.locator("#upload")).to_be_enabled()
    releases_page.locator("#upload").set_input_files(upload)
    expect(releases_page.get_by_role("heading", name="not a pattern")).to_be_visible()
    releases_page.get_by_role("button", name="Random test images").click()
    expect(releases_page.locator(".prediction")).to_have_count(synthetic.CLASSES)

    releases_page.get_by_role("link", name="Releases").click()
    releases_page.locator(f"tbody a[href$='/releases/{older}']").first.click()
    releases_page.get_by_label("Reason for the rollback").fill("shirts of week 47 have wrong labels")
    releases_page.get_by_role("button", name="Roll back to this release").click()
    expect(find_champion_card(releases_page)).to_contain_text(older)
    entry = releases_page.get_by_role("row", name=re.compile("rollback"))
    for text in ("shirts of week 47 have wrong labels", "admin", shorten_version(newer)):
        expect(entry).to_contain_text(text)
    entry.scroll_into_view_if_needed()
    assert require_champion(deployment.store).version == older
    ((event,),) = deployment.airflow.query_database("select extra from asset_event order by id desc limit 1")
    assert json.loads(event)["version"] == older

    assert deployment.count_alerts("champion changed") == 2  # the run, and the rollback


@pytest.mark.exhaustive
def test_a_rejected_run_fails_sends_an_alert_and_changes_nothing(deployment: Deployment, chromium: Browser) -> None:
    before = champion.list_entries(deployment.store)
    page = deployment.sign_in(chromium)
    gates = open_form(page, DAG_ID, "Gates")
    threshold = gates.locator("input[name=element_accuracy_threshold]")
    threshold.fill("1.5")
    threshold.blur()
    expect(threshold).to_have_value("1")
    wrong = {"logical_date": None, "conf": {"accuracy_threshold": 1.5}}
    refused = page.request.post(f"/api/v2/dags/{DAG_ID}/dagRuns", data=wrong)
    assert (refused.status, "greater than the maximum of 1" in refused.text()) == (400, True)
    threshold.fill("0.999")
    run_id = deployment.trigger(page)
    assert deployment.wait_for_run(page, run_id) == "failed"
    page.goto(f"/dags/{DAG_ID}/runs/{run_id}")
    expect(page.get_by_text("Failed").first).to_be_visible()
    assert champion.list_entries(deployment.store) == before

    assert deployment.count_alerts("rejected") == 1
    (mail,) = deployment.find_mails("Run rejected")
    content = mail.get_body(("html",)).get_content()
    assert re.search(r"test accuracy is [0-9.]+%, below the threshold of 99.90%", content)
    assert before[-1].version in content
    mail_page = page.context.new_page()
    mail_page.set_content(content)
    mail_page.get_by_role("link", name="Run in Airflow").click()  # a signed-in user gets to the run
    expect(mail_page.get_by_text("Failed").first).to_be_visible()

    page.goto(f"/dags/{DAG_ID}/runs/{run_id}/tasks/base_model.accuracy_gate/details")
    page.get_by_role("link", name="Verdict").click()
    expect(page.get_by_role("row", name=re.compile("^accuracy reject .*below the threshold of 99.90%"))).to_be_visible()


@pytest.mark.exhaustive
def test_a_user_approves_a_candidate_on_hold(deployment: Deployment, chromium: Browser) -> None:
    policy = {"serving": {"max_bytes": 1}, "champion": {"on_significantly_worse": "hold"}}
    conf = QUICK | {"seed": 5, "approval": True, "policy": policy}
    deployment.airflow.open_api(deployment.url).trigger_run(DAG_ID, conf, "held")
    wait_until(lambda: deployment.airflow.is_waiting_for_approval("held"), seconds=1800)
    before = champion.list_entries(deployment.store)
    assert deployment.count_alerts("approval needed") == 1
    page = deployment.sign_in(chromium)
    page.goto(f"/dags/{DAG_ID}/runs/held/tasks/tuned_model.approval/required_actions")
    expect(page.get_by_text("size (bytes) is").first).to_be_visible()
    expect(page.get_by_role("link", name="Verdict and metrics")).to_have_attribute(
        "href", f"{deployment.url}/fmnist/runs/held#promotion_gate"
    )
    assert champion.list_entries(deployment.store) == before
    approve(page, "it is small enough")
    assert deployment.wait_for_run(page, "held") == "success"
    manifest = releases.read_manifest(deployment.store, require_champion(deployment.store).version)
    assert manifest.verdict.approval
    assert (manifest.run_id, manifest.verdict.approval.by) == ("held", "admin")
    *others, last = champion.list_entries(deployment.store)
    assert (others, last.reason, last.actor) == (before, "run held was approved: it is small enough", "admin")


def test_a_rollback_from_the_form_waits_for_approval(deployment: Deployment, chromium: Browser) -> None:
    before, alerts = champion.list_entries(deployment.store), deployment.count_alerts("approval needed")
    current = before[-1].version
    earlier = next(entry.version for entry in reversed(before) if entry.version != current)
    page = deployment.sign_in(chromium)
    form = open_form(page, "fmnist_rollback", "Rollback")
    form.locator("[name=element_version]").fill(earlier)
    form.locator("[name=element_reason]").fill("this week was odd")
    open_section(page, "Approval").locator("label:has([name=element_approval])").click()  # it covers the checkbox
    run_id = deployment.trigger(page)
    wait_until(lambda: deployment.airflow.is_waiting_for_approval(run_id, "fmnist_rollback", "approval"))
    assert (champion.list_entries(deployment.store), deployment.count_alerts("approval needed")) == (before, alerts + 1)
    page.goto(f"/dags/fmnist_rollback/runs/{run_id}/tasks/approval/required_actions")
    expect(page.get_by_text("this week was odd")).to_be_visible()
    approve(page, "I agree")
    assert deployment.wait_for_run(page, run_id) == "success"
    *others, last = champion.list_entries(deployment.store)
    assert others == before
    assert (last.version, last.action, last.reason) == (earlier, "rollback", "this week was odd")
    assert (last.actor, last.replaces) == ("admin", current)


def test_the_page_works_behind_a_tls_proxy(deployment: Deployment, chromium: Browser, tmp_path: Path) -> None:
    """Airflow runs without `--proxy-headers` and assumes http, so addresses must not contain a scheme."""
    history = champion.list_entries(deployment.store)
    current = history[-1].version
    earlier = next(entry.version for entry in reversed(history) if entry.version != current)
    page = deployment.sign_in(chromium, ignore_https_errors=True)
    errors = collect_errors(page)
    with run_tls_proxy(tmp_path, urlsplit(deployment.url).port) as proxy:
        page.goto(f"{proxy}/fmnist/")
        use_page(page, current, earlier)
        assert page.url == f"{proxy}/fmnist/"
    assert errors == []
    last = require_champion(deployment.store)
    assert (last.version, last.replaces, last.actor) == (earlier, current, "admin")


def test_anonymous_users_see_nothing_and_viewers_change_nothing(deployment: Deployment, chromium: Browser) -> None:
    before = champion.list_entries(deployment.store)
    change = {"form": {"version": before[0].version, "reason": "I want to"}, "headers": {"origin": deployment.url}}
    anonymous = chromium.new_context(base_url=deployment.url).request
    assert anonymous.get("/fmnist/").status == 401
    assert anonymous.post("/fmnist/rollback", **change).status == 401
    viewer = deployment.sign_in(chromium, "viewer")
    expect(find_champion_card(open_releases_page(viewer))).to_contain_text(before[-1].version)
    assert viewer.request.post("/fmnist/rollback", **change).status == 403
    assert champion.list_entries(deployment.store) == before


def test_the_page_is_readable_on_a_phone_in_dark_mode(deployment: Deployment, chromium: Browser) -> None:
    version = require_champion(deployment.store).version
    phone = {"viewport": {"width": 390, "height": 844}, "device_scale_factor": 2, "color_scheme": "dark"}
    page = deployment.sign_in(chromium, **phone)
    for address in ("", f"releases/{version}", "try"):
        page.goto(f"/fmnist/{address}")
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), address
        text_colour, background = (
            page.evaluate(f"getComputedStyle(document.body).{name}.match(/[0-9.]+/g).slice(0, 3).map(Number)")
            for name in ("color", "backgroundColor")
        )
        assert min(text_colour) > max(background) + 100, address
    page.goto("/fmnist/")
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to content")).to_be_focused()


def test_no_secret_is_in_a_log_or_in_the_store(deployment: Deployment) -> None:
    """This must be the last test of the file: it searches everything that the others wrote."""
    logs = [path.read_bytes() for path in deployment.airflow.home.rglob("*.log")]
    assert len(logs) > 20
    content = b"\n".join([*logs, *(deployment.store.get(stat.key) for stat in deployment.store.list(""))])
    assert b"promotion_gate done" in content
    assert b"delivered through fmnist_mail" in content
    values = json.dumps(deployment.airflow.query_database("select value from xcom"), default=str)
    for secret in deployment.secrets:
        assert secret.encode() not in content
        assert secret not in values
