"""`make cluster`, `make run-cluster`, `make cluster-down`: the services of docker-compose.yaml without containers.

Everything lies below `$FMNIST_HOME/cluster` and listens on loopback. Postgres and Redis are those of the machine,
MinIO is the one that `include/minio` finds.
"""

from __future__ import annotations

import argparse
import os
import sys
from contextlib import suppress
from pathlib import Path

from tests.support.cluster.commands import run_on_cluster, start_cluster, stop_cluster
from tests.support.cluster.declaration import DeclarationError
from tests.support.cluster.supervision import ClusterError


def main() -> None:
    """Read the command line and do what it says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path(os.environ["FMNIST_HOME"]).resolve() / "cluster")
    commands = parser.add_subparsers(required=True)
    starting = commands.add_parser("up")
    starting.add_argument("--workers", type=int, default=2)
    starting.add_argument("--port", type=int, default=8080)
    starting.set_defaults(does=lambda given: start_cluster(given.folder, given.workers, given.port))
    commands.add_parser("down").set_defaults(does=lambda given: stop_cluster(given.folder))
    running = commands.add_parser("run")
    running.add_argument("parameters")
    running.set_defaults(does=lambda given: run_on_cluster(given.folder, given.parameters))
    given = parser.parse_args()
    with suppress(KeyboardInterrupt):
        try:
            given.does(given)
        except (ClusterError, DeclarationError) as error:
            sys.exit(f"cluster: {error}")


if __name__ == "__main__":
    main()
