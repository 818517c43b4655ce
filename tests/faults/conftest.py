from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.fault_cluster import FaultCluster, run_fault_cluster
from tests.support.requirements import FAKETIME, HOST_PROGRAMS, HOSTS, MINIO, POSTGRES, REDIS, require

IMAGES = (400, 200)  # synthetic training and test images


@pytest.fixture(scope="package")
def shared_cluster() -> Iterator[FaultCluster]:
    """A cluster with stores and Airflow, and no worker."""
    # First, since building MinIO may need the Internet, which the cluster's network cannot reach.
    require(HOSTS, HOST_PROGRAMS, FAKETIME, POSTGRES, REDIS, MINIO)
    with run_fault_cluster(*IMAGES) as cluster:
        yield cluster
        if cluster.spare_worker:
            cluster.spare_worker.unplug()


@pytest.fixture
def cluster(shared_cluster: FaultCluster) -> Iterator[FaultCluster]:
    """The shared cluster with an empty store, and no worker except a spare one."""
    shared_cluster.empty_store()
    yield shared_cluster
    shared_cluster.release_workers()
