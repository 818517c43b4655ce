"""A pytest plugin for runs that measure coverage: `-p tests.support.traced_threads`.

On CPython 3.11 a thread may not begin if coverage starts tracing it while another thread runs an audit hook. Exceptions
in a thread that has begun are reported otherwise, and still fail the test.
"""

from __future__ import annotations

import pytest


def pytest_configure(config: pytest.Config) -> None:
    """Ignore the warning about such a thread.

    The dot stands for a colon, which would end this part of the filter; newer versions of Python write none.
    """
    message = r"Exception ignored in thread started by.? <bound method Thread\._bootstrap "
    config.addinivalue_line("filterwarnings", f"ignore:{message}:pytest.PytestUnraisableExceptionWarning")
