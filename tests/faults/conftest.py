from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.fault_cluster import FaultCluster, run_fault_cluster
from tests.support.requirements import FAKETIME, HOST_PROGRAMS, HOSTS, MINIO, POSTGRES, REDIS, require

IMAGES = (400, 200)  # synthetic ones to train and to test on


@pytest.fixture(scope="package")
def shared_cluster() -> Iterator[FaultCluster]:
    """Stores and Airflow without a worker."""
    require(HOSTS, HOST_PROGRAMS, FAKETIME, POSTGRES, REDIS, MINIO)  # now: inside there is no way to packages
    with run_fault_cluster(*IMAGES) as made:
        yield made
        if made.spare_worker:
            made.spare_worker.unplug()


@pytest.fixture
def cluster(shared_cluster: FaultCluster) -> Iterator[FaultCluster]:
    """The cluster with an empty store and no worker but a spare one."""
    shared_cluster.empty_store()
    yield shared_cluster
    shared_cluster.release_workers()
