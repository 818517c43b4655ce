"""Alerts by e-mail and Apprise, delivered at least once through each channel.

`callbacks` and `watch` find what to report, `events` defines the kinds of alerts, `message` renders them, `outbox`
stores them until they are delivered, and `channels` delivers them.
"""

from fmnist_tasks.alerts.callbacks import alert_approval_request, alert_run_timeout, alert_task_failure
from fmnist_tasks.alerts.events import Alert
from fmnist_tasks.alerts.sending import deliver_due_alerts, find_airflow_address, send_alert

__all__ = [
    "Alert",
    "alert_approval_request",
    "alert_run_timeout",
    "alert_task_failure",
    "deliver_due_alerts",
    "find_airflow_address",
    "send_alert",
]
