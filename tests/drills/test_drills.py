"""The line on workers that share nothing but the network, and what happens when parts of it are taken away.

All runs are of profile `quick` on 800 made images. The store is empty at the beginning of each drill.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable

import psutil
import pytest
from airflow_home import until
from drill import Drill
from proxy import Harm, Proxy, Request

from fmnist_tasks.registry import champion
from fmnist_tasks.registry.releases import read_manifest
from fmnist_tasks.settings import DAG_ID

pytestmark = pytest.mark.slow
IMAGES = (800, 300)  # to train and to test on

Record = Callable[[str, object], None]


def one_release(drill: Drill, run_id: str) -> dict:
    """The manifest of the only release, which the run made and promoted once."""
    releases, log = drill.outcome()
    assert len(releases) == 1
    assert log == releases
    manifest = read_manifest(drill.store, releases[0])
    assert manifest["run_id"] == run_id
    return manifest


def begun(drill: Drill, run_id: str, step: str = "train") -> str:
    """Wait until a step is under way; the worker that it is on."""
    until(lambda: drill.tasks(run_id).get(step, {}).get("state") == "running")
    return str(drill.tasks(run_id)[step]["hostname"])


def test_each_task_on_another_worker_than_the_one_before_gives_the_model_of_one_machine(
    drill: Drill, record_property: Record
) -> None:
    alone = drill.worker()
    run_id = drill.begin()
    assert drill.ended(run_id) == "success"
    assert {task["hostname"] for task in drill.ran(run_id)} == {alone.name}
    on_one = one_release(drill, run_id)["files"]["model.h5"]["sha256"]
    drill.clear()
    drill.take_away(alone)

    even, odd = (
        drill.worker({"AIRFLOW__OPERATORS__DEFAULT_QUEUE": "even"}),
        drill.worker({"AIRFLOW__OPERATORS__DEFAULT_QUEUE": "odd"}),
    )
    run_id = drill.begin()
    assert drill.ended(run_id) == "success"
    hosts = [task["hostname"] for task in sorted(drill.ran(run_id), key=lambda task: task["start_date"])]
    assert hosts == [(even, odd)[number % 2].name for number in range(len(hosts))]
    assert len(hosts) == 14
    assert one_release(drill, run_id)["files"]["model.h5"]["sha256"] == on_one
    record_property("shown", f"{len(hosts)} tasks, two workers by turns, model {on_one[:12]} as on one")


@pytest.mark.parametrize(
    ("step", "checkpoints"),
    [
        ("train", 1),
        pytest.param("train", 0, marks=pytest.mark.drill),
        pytest.param("train", 3, marks=pytest.mark.drill),
        pytest.param("fine_tune", 0, marks=pytest.mark.drill),
        pytest.param("fine_tune", 1, marks=pytest.mark.drill),
    ],
)
def test_a_worker_that_dies_in_training_costs_one_epoch_at_most(
    drill: Drill, step: str, checkpoints: int, record_property: Record
) -> None:
    workers = {worker.name: worker for worker in (drill.worker(), drill.worker())}
    run_id = drill.begin()
    dead = begun(drill, run_id, step)
    until(lambda: drill.epochs(run_id, step) >= checkpoints, every=0.02)
    workers[dead].kill()
    kept = drill.epochs(run_id, step)
    assert drill.ended(run_id) == "success"
    task = drill.tasks(run_id)[step]
    assert (task["hostname"] != dead, task["try_number"]) == (True, 2)
    again = drill.task_log(run_id, step, 2)
    resumed = f"{kept:06d}" in again if kept else "going on from" not in again
    assert resumed, again
    one_release(drill, run_id)
    assert drill.alerts(run_id) == ["champion changed"]
    record_property("shown", f"killed in {step} after {kept} kept epochs, which the other worker went on from")


@pytest.mark.drill
def test_a_worker_that_is_cut_off_for_two_minutes_and_comes_back_changes_nothing_twice(
    drill: Drill, record_property: Record
) -> None:
    workers = {worker.name: worker for worker in (drill.worker(), drill.worker())}
    run_id = drill.begin()
    lost = workers[begun(drill, run_id)]
    lost.reach(False)
    cut = time.monotonic()
    state = drill.ended(run_id)
    time.sleep(max(0, cut + 120 - time.monotonic()))  # the drill asks for two minutes
    lost.reach(True)
    assert state == "success"
    until(lambda: not lost.tasks())  # its own copy of the training has heard that it is no longer wanted
    task = drill.tasks(run_id)["train"]
    one_release(drill, run_id)
    assert drill.alerts(run_id) == ["champion changed"]
    record_property(
        "shown", f"training in its {task['try_number']}. try on the other worker, one release, one promotion"
    )


def test_every_part_of_airflow_may_die_in_a_run(drill: Drill, record_property: Record) -> None:
    drill.worker()
    run_id = drill.begin()
    begun(drill, run_id, "ingest")
    back = {}
    for name in ("scheduler", "dag-processor", "api-server", "triggerer"):
        began = time.monotonic()
        killed = drill.supervisor.pid(name)
        for process in [*psutil.Process(killed).children(recursive=True), psutil.Process(killed)]:
            process.kill()
        until(lambda name=name, killed=killed: drill.supervisor.pid(name) not in {0, killed})
        drill.well(name)
        back[name] = f"{name} back after {time.monotonic() - began:.0f} s"
    assert drill.ended(run_id) == "success"
    one_release(drill, run_id)
    record_property("shown", ", ".join(back.values()))


@pytest.mark.drill
@pytest.mark.parametrize(("store", "seconds"), [("postgres", 60), ("redis", 60), ("minio", 120)])
def test_a_store_may_be_away_for_a_while(drill: Drill, store: str, seconds: int, record_property: Record) -> None:
    drill.worker()
    run_id = drill.begin()
    begun(drill, run_id)
    drill.supervisor.stop(store)
    time.sleep(seconds)  # the drill asks for so many
    drill.supervisor.start(store)
    drill.well(store)
    assert drill.ended(run_id) == "success"
    one_release(drill, run_id)
    tries = {name: task["try_number"] for name, task in drill.tasks(run_id).items() if task["try_number"] > 1}
    record_property("shown", f"{store} away for {seconds} s while training; tried again: {tries or 'nothing'}")


@pytest.mark.drill
def test_a_store_that_is_slow_and_fails_every_tenth_time(drill: Drill, record_property: Record) -> None:
    chance = random.Random(0)  # noqa: S311 - no secret

    def harm(request: Request) -> Harm:
        return Harm(status=503) if chance.random() < 0.1 else Harm(delay=0.5)

    with Proxy(drill.store.endpoint, drill.address).running() as proxy:
        proxy.harm = harm
        drill.worker(store=f"s3://fmnist?endpoint={proxy.endpoint}")
        began = time.monotonic()
        run_id = drill.begin()
        assert drill.ended(run_id, 1200) == "success"
        took, asked = time.monotonic() - began, len(proxy.requests)
    one_release(drill, run_id)
    record_property("shown", f"{asked} requests of half a second, one in ten answered 503: {took:.0f} s")


@pytest.mark.drill
def test_a_clock_that_is_ten_minutes_ahead_never_puts_champions_into_a_wrong_order(
    drill: Drill, record_property: Record
) -> None:
    early = drill.worker(wrapper="faketime -f +10m")
    first = drill.begin()
    state = drill.ended(first)
    drill.take_away(early)
    drill.worker()
    second = drill.begin(seed=1, force=True)
    assert drill.ended(second) == "success"
    history = champion.history(drill.store)
    assert [entry.write_id for entry in history] == ([first, second] if state == "success" else [second])
    assert champion.champion(drill.store) == history[-1]
    record_property("shown", f"the run on it ended {state}; {len(history)} champions in the order of their runs")


@pytest.mark.drill
def test_two_runs_at_once_and_twenty_more_go_one_after_the_other(drill: Drill, record_property: Record) -> None:
    drill.worker()
    drill.worker()
    runs = [drill.begin(), drill.begin(seed=1, force=True), *(drill.begin(seed=1) for _ in range(20))]
    at_once = 0
    while (states := [drill.api.state(DAG_ID, run_id) for run_id in runs]).count("success") < len(runs):
        assert "failed" not in states
        at_once = max(at_once, len(drill.api.running(DAG_ID)))
        time.sleep(0.5)
    assert at_once == 1
    history = champion.history(drill.store)
    assert [entry.sequence for entry in history] == list(range(1, len(history) + 1))
    assert {entry.write_id for entry in history} <= set(runs)
    record_property("shown", f"{len(runs)} runs, one at a time, {len(history)} champions without a gap")


@pytest.mark.drill
def test_a_worker_whose_disk_is_full_says_so_and_another_does_it(drill: Drill, record_property: Record) -> None:
    full = drill.worker(disk="200m")
    run_id = drill.begin()
    begun(drill, run_id, "validate_data")
    full.fill()
    failed = until(lambda: [task for task in drill.tasks(run_id).values() if task["state"] == "up_for_retry"])[0]
    step = failed["task_id"].rpartition(".")[2]
    assert "No space left on device" in drill.log(full).read_text() + drill.task_log(run_id, step, 1)
    drill.take_away(full)
    drill.worker()
    assert drill.ended(run_id) == "success"
    one_release(drill, run_id)
    assert drill.alerts(run_id) == ["champion changed"]
    record_property("shown", f"{step} failed on it, said why, and was done by another")
