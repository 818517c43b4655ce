"""Airflow local settings: like a Celery worker, the scheduler imports the libraries once for the tasks that it forks.

Airflow reads this file as `$AIRFLOW_HOME/config/airflow_local_settings.py`.
"""

import sys

if sys.argv[1:2] == ["scheduler"]:
    import fmnist_tasks.preload  # noqa: F401
