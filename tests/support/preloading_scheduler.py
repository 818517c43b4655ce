"""A setting of Airflow: the scheduler imports the libraries once for the tasks that it forks, as Celery's workers do.

Airflow reads this file where it lies in `$AIRFLOW_HOME/config/airflow_local_settings.py`.
"""

import sys

if sys.argv[1:2] == ["scheduler"]:
    import fmnist_tasks.preload  # noqa: F401
