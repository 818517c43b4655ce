"""A server process with the Releases page: `python -m tests.support.page_server PORT UPLOAD_SECONDS`.

The header `x-user` is the user. An upload may take UPLOAD_SECONDS.
"""

from __future__ import annotations

import sys
from typing import Annotated

import uvicorn
from fastapi import Header, HTTPException

from fmnist_tasks.page import activity, app


def require_user(x_user: Annotated[str, Header()] = "") -> str:
    """Return the user in the header; status 401 without one."""
    if not x_user:
        raise HTTPException(401)
    return x_user


if __name__ == "__main__":
    app._UPLOAD_SECONDS = float(sys.argv[2])
    uvicorn.run(
        app.create_app(app.Access(require_user, require_user, lambda _: activity.Schedule())),
        host="127.0.0.1",
        port=int(sys.argv[1]),
        log_level="warning",
    )
