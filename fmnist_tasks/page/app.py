"""The page as a FastAPI app: its routes, and which error is which answer.

Who is signed in, and who may change the champion, is asked of what the app is mounted in: a mounted app inherits no
authentication, so every route here has the first of the two dependencies, and those that change something the second.
"""

from __future__ import annotations

import io
import logging
import re
from asyncio import Semaphore, wait_for
from collections.abc import Callable
from functools import cache
from typing import Annotated, Any, Literal, TypeVar

from anyio import CapacityLimiter, to_thread
from fastapi import Depends, FastAPI, Form, HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, RedirectResponse
from fastapi.templating import Jinja2Templates
from jinja2 import pass_context
from jinja2.runtime import Context

from fmnist_tasks import errors, service, withdrawal
from fmnist_tasks.announcement import announce_champion
from fmnist_tasks.page.asking import Oracle
from fmnist_tasks.page.charts import line_chart
from fmnist_tasks.page.defence import Guard, as_report, from_here
from fmnist_tasks.page.runbook import render_runbook
from fmnist_tasks.page.shelf import Shelf
from fmnist_tasks.registry import releases
from fmnist_tasks.registry.blobs import get_verified
from fmnist_tasks.registry.runs import run_key
from fmnist_tasks.registry.signing import Document
from fmnist_tasks.registry.store import open_store
from fmnist_tasks.settings import DAG_ID, INCLUDE, LONGEST_REASON, read_store_uri
from fmnist_tasks.templates import environment
from fmnist_tasks.text import make_printable

T = TypeVar("T")

log = logging.getLogger(__name__)

_FOLDER = INCLUDE / "page"
_STATIC = {"style.css": "text/css", "script.js": "text/javascript"}
_MAX_UPLOADS = 8  # images that are received, wait or are answered; each has at most 5 MiB
_UPLOAD_SECONDS = 60.0  # in which an image has to be received
_MAX_DECODES = 2  # images that are decoded or drawn at once; each takes up to 82 MiB
_MAX_REPORT = 16 << 20  # bytes
_NAME = re.compile(r"(?!\.{1,2}$)[A-Za-z0-9_.~:+-]{1,250}")  # of a release or run
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
    render.env.globals["url_for"] = _build_path_in_template
    uploads, turns = Semaphore(_MAX_UPLOADS), CapacityLimiter(_MAX_DECODES)

    @cache
    def shelf() -> Shelf:
        return Shelf(open_store(read_store_uri()))

    @cache
    def oracle() -> Oracle:
        return Oracle(shelf().store)

    def open_manifest(version: str) -> Document:
        return releases.open_manifest(shelf().store, require_name("release", version), shelf().log())

    def describe_signature(signed_by: str | None) -> str:
        return shelf().store.keys.describe(signed_by)

    render.env.globals["describe_signature"] = describe_signature

    def read_ahead() -> None:
        try:
            shelf().releases()
            shelf().log()
        except errors.FmnistError as error:
            log.warning("the releases are read when somebody asks for them, not ahead: %s", error)

    app.state.read_ahead = read_ahead
    app.add_middleware(Guard)

    def refuse(request: Request, status: int, reason: str) -> Response:
        reason = make_printable(reason)
        if "text/html" in request.headers.get("accept", ""):
            return render.TemplateResponse(request, "refused.html", {"reason": reason}, status_code=status)
        return JSONResponse({"detail": reason}, status)

    @app.exception_handler(errors.FmnistError)
    def report_error(request: Request, error: Exception) -> Response:
        return refuse(
            request, next((code for kind, code in _STATUS.items() if isinstance(error, kind)), 500), str(error)
        )

    @app.exception_handler(RequestValidationError)
    def report_invalid_request(request: Request, error: RequestValidationError) -> Response:
        places = {fault["loc"][0] for fault in error.errors()}
        faults = "; ".join(f"{fault['loc'][-1]}: {fault['msg']}" for fault in error.errors())
        return refuse(request, 404 if "path" in places else 422, faults)

    async def take_turn(answer: Callable[[], T]) -> T:
        return await to_thread.run_sync(answer, limiter=turns)

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
        document = open_manifest(version)
        manifest = document.content
        entries = shelf().log()
        content = {
            "manifest": manifest,
            "signed_by": document.signed_by,
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
        manifest = open_manifest(version).content
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
        return as_report(shelf().store.get(run_key(require_name("run", run_id), "report.html"), _MAX_REPORT))

    @app.get("/compare")
    def compare(request: Request, a: str, b: str) -> Response:
        pair = [open_manifest(version).content for version in (a, b)]
        return render.TemplateResponse(request, "compare.html", {"pair": pair})

    @app.post("/rollback", dependencies=[Depends(from_here)])
    def rollback(
        request: Request,
        version: Annotated[str, Form()],
        reason: Annotated[str, Form(max_length=LONGEST_REASON)],
        after: Annotated[int | None, Form()] = None,
        who: str = Depends(may_edit),
    ) -> Response:
        require_name("release", version)
        announce_champion(service.rollback(shelf().store, version, reason, actor=who, after=after))
        return RedirectResponse(build_path(request, "overview"), status_code=303)

    @app.post("/withdrawals/{action}", dependencies=[Depends(from_here)])
    def decide(
        request: Request,
        action: Literal["withdraw", "restore"],
        version: Annotated[str, Form()],
        reason: Annotated[str, Form(max_length=LONGEST_REASON)],
        who: str = Depends(may_edit),
    ) -> Response:
        require_name("release", version)
        act = withdrawal.withdraw if action == "withdraw" else withdrawal.restore
        act(shelf().store, version, reason, actor=who)
        return RedirectResponse(build_path(request, "release", version=version), status_code=303)

    @app.get("/try")
    def attempt(request: Request) -> Response:
        return render.TemplateResponse(request, "try.html", {"champion": shelf().log().champion})

    @app.get("/try/samples")
    async def samples() -> list[dict[str, Any]]:
        return await take_turn(lambda: oracle().samples())

    @app.post("/try/image", dependencies=[Depends(from_here)])
    async def ask(request: Request) -> dict[str, Any]:
        if uploads.locked():
            raise HTTPException(503, "too many images at once; try again in a few seconds", {"Retry-After": "5"})
        async with uploads:
            try:
                upload = await wait_for(request.body(), _UPLOAD_SECONDS)
            except TimeoutError as error:
                raise HTTPException(408, f"the image was not received within {_UPLOAD_SECONDS:.0f} seconds") from error

            def answer() -> dict[str, Any]:
                from fmnist_tasks.data.pictures import read_picture

                image = read_picture(io.BytesIO(upload), "the upload")
                return oracle().answers(image[None])[0]

            return await take_turn(answer)

    @app.get("/runbook")
    def runbook(request: Request) -> Response:
        return render.TemplateResponse(request, "runbook.html", {"content": render_runbook()})

    @app.get("/static/{name}")
    def static(name: str) -> Response:
        if name not in _STATIC:
            raise HTTPException(404)
        return Response((_FOLDER / name).read_bytes(), media_type=_STATIC[name])

    return app


def require_name(kind: str, name: str) -> str:
    """The name of a release or run; raises :class:`MissingError` if none can be called so, whatever the store says."""
    if not _NAME.fullmatch(name):
        raise errors.MissingError(f"there is no {kind} of this name: names have up to 250 letters, digits and _.~:+-")
    return name


def build_path(request: Request, name: str, /, **parts: Any) -> str:
    """The address of a route, without scheme and host: only a proxy in front of the server knows those."""
    return f"{request.scope['root_path'].rstrip('/')}{request.app.url_path_for(name, **parts)}"


@pass_context
def _build_path_in_template(context: Context, name: str, /, **parts: Any) -> str:
    return build_path(context["request"], name, **parts)
