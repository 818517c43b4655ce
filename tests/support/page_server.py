"""The registry page in a server process of its own, for whoever sends the header `x-user`: python -m … PORT SECONDS.

An upload may take that many seconds.
"""

from __future__ import annotations

import sys
from typing import Annotated

import uvicorn
from fastapi import Header, HTTPException

from fmnist_tasks.page import app


def require_user(x_user: Annotated[str, Header()] = "") -> str:
    """The user; 401 for a stranger."""
    if not x_user:
        raise HTTPException(401)
    return x_user


if __name__ == "__main__":
    app._UPLOAD_SECONDS = float(sys.argv[2])
    uvicorn.run(
        app.create_app(require_user, require_user), host="127.0.0.1", port=int(sys.argv[1]), log_level="warning"
    )
