"""`make cluster`, `make run-cluster`, `make cluster-down`: the services of docker-compose.yaml without containers.

All files are below `$FMNIST_HOME/cluster`, and all services listen on loopback. Postgres and Redis must be installed;
`include/minio` finds or builds MinIO.
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
    """Run the command on the command line; exits with an error message if it fails."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path(os.environ["FMNIST_HOME"]).resolve() / "cluster")
    commands = parser.add_subparsers(required=True)
    up = commands.add_parser("up", help="start the cluster")
    up.add_argument("--workers", type=int, default=2)
    up.add_argument("--port", type=int, default=8080)
    up.set_defaults(run=lambda options: start_cluster(options.folder, options.workers, options.port))
    down = commands.add_parser("down", help="stop the cluster; data stays")
    down.set_defaults(run=lambda options: stop_cluster(options.folder))
    run = commands.add_parser("run", help="run the pipeline on the cluster")
    run.add_argument("parameters", help="parameters of the run, as JSON")
    run.set_defaults(run=lambda options: run_on_cluster(options.folder, options.parameters))
    options = parser.parse_args()
    with suppress(KeyboardInterrupt):
        try:
            options.run(options)
        except (ClusterError, DeclarationError) as error:
            sys.exit(f"cluster: {error}")


if __name__ == "__main__":
    main()
