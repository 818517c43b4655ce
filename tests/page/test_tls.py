"""The Releases page behind nginx with the shipped configuration, with Airflow at / and below a path."""

from __future__ import annotations

import ssl
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

import pytest
from playwright.sync_api import expect

from fmnist_tasks.serving.release import require_champion
from tests.support.airflow_home import AirflowInstallation, copy_migrated_home, wait_until
from tests.support.chromium import launch_chromium
from tests.support.pipeline import Pipeline
from tests.support.ports import accepts_connections, reserve_port
from tests.support.releases_page import collect_errors, use_page
from tests.support.requirements import CHROMIUM, NGINX, require
from tests.support.tls_proxy import run_tls_proxy

UNVERIFIED = ssl._create_unverified_context()  # noqa: S323 - the tests create the certificate


@contextmanager
def run_api_server(airflow: AirflowInstallation, port: int) -> Iterator[None]:
    """Run Airflow's API server as compose.tls.yaml does."""
    command = ["airflow", "api-server", "--proxy-headers", "--host", "127.0.0.1", "--port", str(port)]
    with (airflow.home / "api-server.log").open("wb") as log:
        process = subprocess.Popen(command, env=airflow.environment, stdout=log, stderr=log)
    try:
        wait_until(lambda: process.poll() is not None or accepts_connections(port))
        assert process.poll() is None, (airflow.home / "api-server.log").read_text()
        yield
    finally:
        process.terminate()
        process.wait()


@pytest.mark.exhaustive
@pytest.mark.parametrize("path", ["", "/airflow"])
def test_the_page_works_wherever_airflow_is_mounted(finished_pipeline: Pipeline, tmp_path: Path, path: str) -> None:
    require(CHROMIUM, NGINX)
    earlier = require_champion(finished_pipeline.store).version
    current = finished_pipeline.promote_second_release()
    port = reserve_port()
    with run_tls_proxy(tmp_path, port) as proxy:
        settings = {"AIRFLOW__API__BASE_URL": f"{proxy}{path}", "FORWARDED_ALLOW_IPS": "127.0.0.1"}
        airflow = AirflowInstallation(copy_migrated_home(tmp_path / "airflow"), finished_pipeline, settings)
        with run_api_server(airflow, port), launch_chromium() as browser:
            expect.set_options(timeout=60_000)
            page = browser.new_context(ignore_https_errors=True).new_page()
            errors = collect_errors(page)
            page.goto(f"{proxy}{path}/")
            page.fill("input[name=username]", "admin")
            page.fill("input[type=password]", airflow.read_password("admin"))
            page.click("button[type=submit]")
            page.get_by_role("link", name="Releases").click()
            use_page(page.frame_locator("iframe"), current, earlier)
            (frame,) = page.main_frame.child_frames
            assert urlsplit(frame.url).path == f"{path}/fmnist/"
            assert frame.url.startswith(proxy)
            assert errors == []
    entry = require_champion(finished_pipeline.store)
    assert (entry.version, entry.action, entry.actor) == (earlier, "rollback", "admin")


@pytest.mark.integration
def test_the_proxy_hides_internal_paths_and_reports_if_airflow_is_down(tmp_path: Path) -> None:
    with run_tls_proxy(tmp_path, reserve_port()) as proxy:
        for path, body, status in (
            ("/fmnist/", None, 502),
            ("/execution/health", None, 404),
            ("/airflow/execution/health", None, 404),
            ("/fmnist/rollback", bytes(7 << 20), 413),
        ):
            with pytest.raises(HTTPError) as refused:
                urlopen(Request(f"{proxy}{path}", body), context=UNVERIFIED)  # noqa: S310
            with refused.value as response:
                assert response.code == status, path
                assert response.headers["Strict-Transport-Security"] == "max-age=31536000"
                assert ("API server does not respond" in response.read().decode()) == (status == 502)
