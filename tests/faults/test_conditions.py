"""A slow store, a long queue."""

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
when = datetime.fromisoformat


def test_a_store_that_is_slow_and_fails_every_tenth_time(cluster: FaultCluster, record_property: Record) -> None:
    chance = random.Random(0)  # noqa: S311 - no secret

    def choose_fault(request: Request) -> Fault:
        return Fault(status=503) if chance.random() < 0.1 else Fault(delay=0.5)

    with Proxy(cluster.store.endpoint, cluster.address).serve() as proxy:
        proxy.choose_fault = choose_fault
        cluster.start_worker(store=f"s3://fmnist?endpoint={proxy.endpoint}")
        began = time.monotonic()
        run_id = cluster.trigger_run()
        assert cluster.wait_for_end(run_id, 1200) == "success"
        took, asked = time.monotonic() - began, len(proxy.requests)
    cluster.check_only_release(run_id)
    record_property("shown", f"{asked} requests of half a second, one in ten answered 503: {took:.0f} s")


def test_two_runs_at_once_and_twenty_more_go_one_after_the_other(
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
    found = sorted((cluster.api.read_run(DAG_ID, run_id) for run_id in runs), key=lambda run: when(run["start_date"]))
    for earlier, later in itertools.pairwise(found):
        assert when(earlier["end_date"]) <= when(later["start_date"])
    history = champion.history(cluster.store)
    assert [entry.sequence for entry in history] == list(range(1, len(history) + 1))
    assert {entry.write_id for entry in history} <= set(runs)
    record_property("shown", f"{len(runs)} runs, one at a time, {len(history)} champions without a gap")
