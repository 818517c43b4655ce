"""A slow store, and a long queue of runs."""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Callable
from datetime import datetime

import pytest

from fmnist_tasks.registry import champion
from fmnist_tasks.settings import DAG_ID
from tests.support.fault_cluster import FaultCluster
from tests.support.proxy import Fault, Proxy, Request

pytestmark = pytest.mark.exhaustive

Record = Callable[[str, object], None]
parse = datetime.fromisoformat


def test_a_run_succeeds_on_a_slow_store_that_fails_every_tenth_request(
    cluster: FaultCluster, record_property: Record
) -> None:
    generator = random.Random(0)  # noqa: S311 - not for secrets

    def choose_fault(request: Request) -> Fault:
        return Fault(status=503) if generator.random() < 0.1 else Fault(delay=0.5)

    with Proxy(cluster.store.endpoint, cluster.address).serve() as proxy:
        proxy.choose_fault = choose_fault
        cluster.start_worker(store=f"s3://fmnist?endpoint={proxy.endpoint}")
        start = time.monotonic()
        run_id = cluster.trigger_run()
        assert cluster.wait_for_end(run_id, 1200) == "success"
        seconds, requests = time.monotonic() - start, len(proxy.requests)
    cluster.check_only_release(run_id)
    record_property("summary", f"{requests} requests of half a second, one in ten failed with 503: {seconds:.0f} s")


def test_two_runs_at_once_and_twenty_more_run_one_after_the_other(
    cluster: FaultCluster, record_property: Record
) -> None:
    cluster.start_worker()
    cluster.start_worker()
    runs = [
        cluster.trigger_run(),
        cluster.trigger_run(seed=1, force=True),
        *(cluster.trigger_run(seed=1) for _ in range(20)),
    ]
    assert [cluster.wait_for_end(run_id) for run_id in runs] == ["success"] * len(runs)
    in_order = sorted(
        (cluster.api.read_run(DAG_ID, run_id) for run_id in runs), key=lambda run: parse(run["start_date"])
    )
    for earlier, later in itertools.pairwise(in_order):
        assert parse(earlier["end_date"]) <= parse(later["start_date"])
    history = champion.list_entries(cluster.store)
    assert [entry.sequence for entry in history] == list(range(1, len(history) + 1))
    assert {entry.write_id for entry in history} <= set(runs)
    record_property("summary", f"{len(runs)} runs, one at a time; {len(history)} champions without a gap")
