"""The page as a FastAPI app: its routes, and which error is which answer.

Who is signed in, and who may change the champion, is asked of what the app is mounted in: a mounted app inherits no
authentication, so every route here has the first of the two dependencies, and those that change something the second.
"""

from __future__ import annotations

import io
import logging
from collections.abc import Awaitable, Callable
from functools import cache
from typing import Annotated, Any, Literal

from fastapi import Depends, FastAPI, Form, HTTPException, Request, Response
from fastapi.responses import JSONResponse, RedirectResponse
from fastapi.templating import Jinja2Templates
from starlette.concurrency import run_in_threadpool

from fmnist_tasks import errors, service, withdrawal
from fmnist_tasks.announcement import announce_champion
from fmnist_tasks.page.asking import Oracle
from fmnist_tasks.page.charts import line_chart
from fmnist_tasks.page.defence import as_report, bounded_body, from_here, guarded
from fmnist_tasks.page.runbook import render_runbook
from fmnist_tasks.page.shelf import Shelf
from fmnist_tasks.registry import releases
from fmnist_tasks.registry.blobs import get_verified
from fmnist_tasks.registry.runs import run_key
from fmnist_tasks.registry.store import open_store
from fmnist_tasks.settings import DAG_ID, INCLUDE, LONGEST_REASON, read_store_uri
from fmnist_tasks.templates import environment

log = logging.getLogger(__name__)

_FOLDER = INCLUDE / "page"
_STATIC = {"style.css": "text/css", "script.js": "text/javascript"}
_LARGEST_UPLOAD = 5 << 20  # bytes of an image
_SERVED = {"png": "image/png", "md": "text/plain; charset=utf-8", "h5": "application/x-hdf5"}
_STATUS = {
    errors.MissingError: 404,
    errors.SettingsError: 400,
    errors.DataError: 422,
    errors.ConflictError: 409,
    errors.RejectedError: 409,
    errors.StoreError: 503,
}


def create_app(signed_in: Callable[..., Any], may_edit: Callable[..., Any]) -> FastAPI:
    """The app; `signed_in` raises 401 or 403 for a stranger, `may_edit` gives the name of who may change things.

    Its `state.read_ahead()` reads what the first answer would otherwise have to wait for.
    """
    app = FastAPI(title="Releases", dependencies=[Depends(signed_in)], docs_url=None, redoc_url=None, openapi_url=None)
    render = Jinja2Templates(env=environment(_FOLDER))

    @cache
    def shelf() -> Shelf:
        return Shelf(open_store(read_store_uri()))

    @cache
    def oracle() -> Oracle:
        return Oracle(shelf().store)

    def read_ahead() -> None:
        try:
            shelf().releases()
            shelf().log()
        except errors.FmnistError as error:
            log.warning("the releases are read when somebody asks for them, not ahead: %s", error)

    app.state.read_ahead = read_ahead

    @app.middleware("http")
    async def guard(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
        return guarded(await call_next(request))

    @app.exception_handler(errors.FmnistError)
    def refuse(request: Request, error: Exception) -> Response:
        status = next((code for kind, code in _STATUS.items() if isinstance(error, kind)), 500)
        if "text/html" in request.headers.get("accept", ""):
            return render.TemplateResponse(request, "refused.html", {"reason": str(error)}, status_code=status)
        return JSONResponse({"detail": str(error)}, status)

    @app.get("/")
    def overview(request: Request) -> Response:
        (rows, faults), entries = shelf().releases(), shelf().log()
        champion = entries.champion
        content: dict[str, Any] = {
            "rows": rows[::-1],
            "faults": faults,
            "log": entries.entries[::-1],
            "withdrawn": entries.withdrawn,
            "champion": champion,
            "figures": next((row for row in rows if champion and row["version"] == champion.version), None),
            "dag_id": DAG_ID,
        }
        if rows:
            content["accuracy"] = line_chart(
                [row["accuracy"] for row in rows],
                [f"{row['version']}: {row['accuracy']:.2%}" for row in rows],
                ".2%",
                rows[-1]["accuracy_asked"],
            )
        if drifting := [row for row in rows if row["drift"] is not None]:
            content["drift"] = line_chart(
                [row["drift"] for row in drifting], [f"{row['version']}: {row['drift']:.3f}" for row in drifting], ".3f"
            )
        return render.TemplateResponse(request, "overview.html", content)

    @app.get("/releases/{version}")
    def release(request: Request, version: str) -> Response:
        manifest = releases.read_manifest(shelf().store, version)
        entries = shelf().log()
        content = {
            "manifest": manifest,
            "champion": entries.champion,
            "withdrawn": entries.withdrawn.get(version),
            "entries": [entry for entry in entries.entries if version in {entry.version, entry.replaces}],
            "others": [row["version"] for row in shelf().releases()[0] if row["version"] != version][::-1],
            "pictures": {
                name.removeprefix("figures/").removesuffix(".png"): name
                for name in manifest["files"]
                if name.startswith("figures/")
            },
        }
        return render.TemplateResponse(request, "release.html", content)

    @app.get("/releases/{version}/{name:path}")
    def file(request: Request, version: str, name: str) -> Response:
        manifest = releases.read_manifest(shelf().store, version)
        if name not in manifest["files"]:
            raise errors.MissingError(f"release {version} has no file {name}")
        reference = manifest["files"][name]
        kept = {"ETag": f'"{reference["sha256"]}"', "Cache-Control": "private, max-age=31536000, immutable"}
        if request.headers.get("if-none-match") == kept["ETag"]:
            return Response(status_code=304, headers=kept)
        content = get_verified(shelf().store, reference)
        if name.endswith(".html"):
            return as_report(content)
        return Response(content, media_type=_SERVED[name.rpartition(".")[2]], headers=kept)

    @app.get("/runs/{run_id}")
    def run(run_id: str) -> Response:
        return as_report(shelf().store.get(run_key(run_id, "report.html")))

    @app.get("/compare")
    def compare(request: Request, a: str, b: str) -> Response:
        pair = [releases.read_manifest(shelf().store, version) for version in (a, b)]
        return render.TemplateResponse(request, "compare.html", {"pair": pair})

    @app.post("/rollback", dependencies=[Depends(from_here)])
    def rollback(
        request: Request,
        version: Annotated[str, Form()],
        reason: Annotated[str, Form(max_length=LONGEST_REASON)],
        after: Annotated[int | None, Form()] = None,
        who: str = Depends(may_edit),
    ) -> Response:
        announce_champion(service.rollback(shelf().store, version, reason, actor=who, after=after))
        return RedirectResponse(request.url_for("overview"), status_code=303)

    @app.post("/withdrawals/{action}", dependencies=[Depends(from_here)])
    def decide(
        request: Request,
        action: Literal["withdraw", "restore"],
        version: Annotated[str, Form()],
        reason: Annotated[str, Form(max_length=LONGEST_REASON)],
        who: str = Depends(may_edit),
    ) -> Response:
        act = withdrawal.withdraw if action == "withdraw" else withdrawal.restore
        act(shelf().store, version, reason, actor=who)
        return RedirectResponse(request.url_for("release", version=version), status_code=303)

    @app.get("/try")
    def attempt(request: Request) -> Response:
        return render.TemplateResponse(request, "try.html", {"champion": shelf().log().champion})

    @app.get("/try/samples")
    def samples() -> list[dict[str, Any]]:
        return oracle().samples()

    @app.post("/try/image", dependencies=[Depends(from_here)])
    async def ask(request: Request) -> dict[str, Any]:
        upload = await bounded_body(request, _LARGEST_UPLOAD)

        def answer() -> dict[str, Any]:
            from fmnist_tasks.data.pictures import read_picture

            image = read_picture(io.BytesIO(upload), "the upload")
            return oracle().answers(image[None])[0]

        return await run_in_threadpool(answer)

    @app.get("/runbook")
    def runbook(request: Request) -> Response:
        return render.TemplateResponse(request, "runbook.html", {"content": render_runbook()})

    @app.get("/static/{name}")
    def static(name: str) -> Response:
        if name not in _STATIC:
            raise HTTPException(404)
        return Response((_FOLDER / name).read_bytes(), media_type=_STATIC[name])

    return app
