"""What supervisord holds up ends with it."""

from __future__ import annotations

from pathlib import Path

import psutil
from programs import Program
from supervision import Supervisor

# As a worker of Celery that is told to end while a task is on its way to it: the task is a session of its own.
BEGINS_AS_IT_ENDS = """\
#!/usr/bin/env bash
trap 'setsid sleep 987 & sleep 1; exit' TERM
touch {folder}/ready
while true; do sleep 0.1; done
"""


def test_a_process_that_is_begun_while_everything_stops_is_stopped_too(tmp_path: Path) -> None:
    script, health = tmp_path / "program", tmp_path / "health"
    script.write_text(BEGINS_AS_IT_ENDS.format(folder=tmp_path))
    health.write_text(f"#!/usr/bin/env bash\ntest -e {tmp_path}/ready\n")
    for file in (script, health):
        file.chmod(0o755)
    supervisor = Supervisor(tmp_path)
    program = Program("late", script, health, (), "TERM")
    supervisor.begin([program])
    supervisor.start_all([program])
    assert supervisor.end()
    assert [process for process in psutil.process_iter() if of(process, tmp_path)] == []
    assert not supervisor.end()


def of(process: psutil.Process, folder: Path) -> bool:
    try:
        return process.cwd() == str(folder)
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return False
