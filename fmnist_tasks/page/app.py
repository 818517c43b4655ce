"""The Releases page as a FastAPI app: routes, and the HTTP status of each error.

A mounted app inherits no authentication, so whoever mounts it supplies two dependencies: `signed_in` for every route,
and `may_edit` for routes that change something.
"""

from __future__ import annotations

import logging
import re
from asyncio import Semaphore, wait_for
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from tempfile import TemporaryFile
from typing import Annotated, Any, Literal, TypeVar

from anyio import CapacityLimiter, to_thread
from fastapi import Depends, FastAPI, Form, HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, RedirectResponse
from fastapi.templating import Jinja2Templates
from jinja2 import pass_context
from jinja2.runtime import Context
from starlette.types import Receive, Scope, Send

from fmnist_tasks import errors
from fmnist_tasks.announcement import announce_champion
from fmnist_tasks.data.declaration import Declaration, load_declaration
from fmnist_tasks.data.review import list_review_images, record_decisions
from fmnist_tasks.data.submission import make_key, put_new_file
from fmnist_tasks.page.activity import Schedule, list_quarantine, read_last_run
from fmnist_tasks.page.inference import ChampionPredictor
from fmnist_tasks.page.release_cache import ReleaseCache, ReleaseRow
from fmnist_tasks.page.review import PAGE_SIZE, read_review_page
from fmnist_tasks.page.runbook import render_runbook
from fmnist_tasks.page.security import MAX_BATCH_BYTES, SecurityMiddleware, require_same_origin, respond_with_report
from fmnist_tasks.registry import releases
from fmnist_tasks.registry.blobs import get_verified
from fmnist_tasks.registry.releases import SignedManifest
from fmnist_tasks.registry.stores import open_default_store
from fmnist_tasks.run_report import read_run, render_run
from fmnist_tasks.serving import withdrawal
from fmnist_tasks.serving.rollback import roll_back
from fmnist_tasks.settings import (
    INCLUDE,
    MAX_REASON_LENGTH,
    Settings,
    find_dataset,
    find_page,
    list_datasets,
    name_command,
    name_dag,
    name_run_command,
)
from fmnist_tasks.templates import make_environment
from fmnist_tasks.text import make_printable

T = TypeVar("T")

log = logging.getLogger(__name__)

_FOLDER = INCLUDE / "page"
_STATIC = {  # by name: file below include/page, and media type
    "style.css": ("style.css", "text/css"),
    "script.js": ("script.js", "text/javascript"),
    "charts.js": ("charts.js", "text/javascript"),
    "review.js": ("review.js", "text/javascript"),
    "submit.js": ("submit.js", "text/javascript"),
    "uPlot.js": ("vendor/uPlot.iife.min.js", "text/javascript"),
    "uPlot.css": ("vendor/uPlot.min.css", "text/css"),
}
_MAX_UPLOADS = 8  # images being received, waiting or being classified at once, of at most 5 MiB each
_UPLOAD_SECONDS = 60.0  # time limit for receiving an image
_MAX_BATCHES, _BATCH_SECONDS = 2, 600.0  # batches being received at once, and the time limit of each
_MAX_RENDERS = 1  # images being decoded, or reports being rendered, at once; an image takes up to 950 MiB
_NAME = re.compile(r"(?!\.{1,2}$)[A-Za-z0-9_.~:+-]{1,250}")  # of a release or run
_MEDIA_TYPES = {
    "png": "image/png",
    "md": "text/plain; charset=utf-8",
    "h5": "application/x-hdf5",
    "json": "application/json",
}
_STATUS = {
    errors.MissingError: 404,
    errors.SettingsError: 400,
    errors.DataError: 422,
    errors.ConflictError: 409,
    errors.RejectedError: 409,
    errors.StoreError: 503,
}


@dataclass(frozen=True)
class Access:
    """What the process that mounts the page supplies.

    `signed_in` and `may_edit` raise 401 or 403; `may_edit` returns the name of the user. `read_schedule` returns the
    last and next run of the DAG with an ID.
    """

    signed_in: Callable[..., Any]
    may_edit: Callable[..., Any]
    read_schedule: Callable[[str], Schedule]


class Capacity:
    """How much all datasets together may do at once."""

    def __init__(self) -> None:
        self.uploads = Semaphore(_MAX_UPLOADS)
        self.batches = Semaphore(_MAX_BATCHES)
        self.renders = CapacityLimiter(_MAX_RENDERS)


def create_app(access: Access) -> FastAPI:
    """Create the page of the default dataset; below `datasets/NAME/`, it has the pages of the others.

    Its `state.read_ahead()` reads what the pages show, so that the first response need not wait for it.
    """
    capacity = Capacity()
    app = _create_dataset_app("", access, capacity)
    app.add_middleware(SecurityMiddleware)
    app.mount("/datasets/{dataset}", DatasetPages(lambda dataset: _create_dataset_app(dataset, access, capacity)))
    return app


class DatasetPages:
    """An ASGI app that passes each request to the page of the dataset in its path, which it creates on demand."""

    def __init__(self, create: Callable[[str], FastAPI]) -> None:
        self._create = create
        self._apps: dict[str, FastAPI] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Respond with 404 for a dataset that does not exist, or no longer does."""
        name = scope["path_params"]["dataset"]
        if name not in list_datasets():
            raise HTTPException(404, "there is no dataset of this name")
        app = self._apps.get(name) or self._apps.setdefault(name, self._create(name))
        await app(scope, receive, send)


def _create_dataset_app(dataset: str, access: Access, capacity: Capacity) -> FastAPI:
    signed_in, may_edit = access.signed_in, access.may_edit
    app = FastAPI(title="Releases", dependencies=[Depends(signed_in)], docs_url=None, redoc_url=None, openapi_url=None)
    uploads, renders = capacity.uploads, capacity.renders

    @cache
    def get_releases() -> ReleaseCache:
        return ReleaseCache(open_default_store(dataset))

    @cache
    def get_predictor() -> ChampionPredictor:
        return ChampionPredictor(get_releases().store)

    def open_manifest(version: str) -> SignedManifest:
        return releases.open_manifest(get_releases().store, require_name("release", version), get_releases().read_log())

    def read_declared() -> Declaration:
        return load_declaration(Settings.from_environment(), dataset)

    def describe_signature(signed_by: str | None) -> str:
        return get_releases().store.keys.describe(signed_by)

    def add_context(request: Request) -> dict[str, Any]:
        return {"pages": list_pages(dataset, request), "describe_signature": describe_signature}

    # Datasets share the environment, so what differs between them is not among its globals.
    render = Jinja2Templates(env=make_environment(_FOLDER), context_processors=[add_context])
    render.env.globals["url_for"] = _build_path_in_template

    def read_ahead() -> None:
        try:
            get_releases().read_releases()
            get_releases().read_log()
            list_review_images(get_releases().store)
        except errors.FmnistError as error:
            log.warning("cannot read the store ahead; the first request reads it: %s", error)

    app.state.read_ahead = read_ahead

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

    async def run_limited(function: Callable[[], T]) -> T:
        return await to_thread.run_sync(function, limiter=renders)

    @app.get("/")
    def overview(request: Request) -> Response:
        (rows, faults), champion_log = get_releases().read_releases(), get_releases().read_log()
        champion = champion_log.champion
        if fault := releases.find_missing_champion(get_releases().store, champion_log):
            faults.append(fault)
        schedule = access.read_schedule(name_dag(dataset))
        content = {
            "rows": rows[::-1],
            "faults": faults,
            "entries": champion_log.entries[::-1],
            "withdrawn": champion_log.withdrawn,
            "champion": champion,
            "champion_row": next((row for row in rows if champion and row.version == champion.version), None),
            "dag_url": f"{'../' * find_page(dataset).count('/', 1)}dags/{name_dag(dataset)}",
            "dag_id": name_dag(dataset),
            "run_command": name_run_command(dataset),
            "schedule": schedule,
            "last_run": read_last_run(get_releases().store, schedule),
            "quarantine": list_quarantine(get_releases().store),
            "charts": build_charts(rows),
        }
        return render.TemplateResponse(request, "overview.html", content)

    @app.get("/releases/{version}")
    def release(request: Request, version: str) -> Response:
        signed = open_manifest(version)
        manifest = signed.manifest
        champion_log = get_releases().read_log()
        content = {
            "manifest": manifest,
            "signed_by": signed.signed_by,
            "champion": champion_log.champion,
            "withdrawn": champion_log.withdrawn.get(version),
            "entries": [entry for entry in champion_log.entries if version in {entry.version, entry.replaces}],
            "others": [row for row in get_releases().read_releases()[0] if row.version != version][::-1],
            "pictures": {
                name.removeprefix("figures/").removesuffix(".png"): name
                for name in manifest.files
                if name.startswith("figures/")
            },
        }
        return render.TemplateResponse(request, "release.html", content)

    @app.get("/releases/{version}/{name:path}")
    def file(request: Request, version: str, name: str) -> Response:
        signed = open_manifest(version)
        reference = signed.manifest.files.get(name)
        if reference is None and name != "manifest.json":
            raise errors.MissingError(f"release {version} has no file {name}")
        sha256 = reference.sha256 if reference else signed.sha256
        headers = {"ETag": f'"{sha256}"', "Cache-Control": "private, max-age=31536000, immutable"}
        if request.headers.get("if-none-match") == headers["ETag"]:
            return Response(status_code=304, headers=headers)
        content = get_verified(get_releases().store, reference) if reference else signed.data
        if name.endswith(".html"):
            return respond_with_report(content)
        return Response(content, media_type=_MEDIA_TYPES[name.rpartition(".")[2]], headers=headers)

    @app.get("/runs/{run_id}")
    async def run(run_id: str) -> Response:
        require_name("run", run_id)

        def render_report() -> bytes:
            recorded = read_run(get_releases().store, run_id)
            if recorded.records or recorded.faults:
                return render_run(get_releases().store, run_id, recorded)
            raise errors.MissingError(f"there is no run {run_id}")

        return respond_with_report(await run_limited(render_report))

    @app.get("/dags/{dag_id}/runs/{run_id}")
    def run_of_dag(request: Request, dag_id: str, run_id: str) -> Response:
        name = find_dataset(dag_id)
        if name is None:
            raise errors.MissingError(f"runs of {require_name('DAG', dag_id)} have no report")
        path = build_path(request, "run", run_id=require_name("run", run_id))
        return RedirectResponse(path.replace("/runs/", f"/datasets/{name}/runs/", 1) if name else path)

    @app.get("/compare")
    def compare(request: Request, a: str, b: str) -> Response:
        pair = [open_manifest(version).manifest for version in (a, b)]
        return render.TemplateResponse(request, "compare.html", {"pair": pair})

    @app.post("/rollback", dependencies=[Depends(require_same_origin)])
    def rollback(
        request: Request,
        version: Annotated[str, Form()],
        reason: Annotated[str, Form(max_length=MAX_REASON_LENGTH)],
        after: Annotated[int | None, Form()] = None,
        user: str = Depends(may_edit),
    ) -> Response:
        require_name("release", version)
        store = get_releases().store
        announce_champion(roll_back(store, version, reason, actor=user, after=after), store.dataset)
        return RedirectResponse(build_path(request, "overview"), status_code=303)

    @app.post("/withdrawals/{action}", dependencies=[Depends(require_same_origin)])
    def change_withdrawal(
        request: Request,
        action: Literal["withdraw", "restore"],
        version: Annotated[str, Form()],
        reason: Annotated[str, Form(max_length=MAX_REASON_LENGTH)],
        user: str = Depends(may_edit),
    ) -> Response:
        require_name("release", version)
        change = withdrawal.withdraw if action == "withdraw" else withdrawal.restore
        change(get_releases().store, version, reason, actor=user)
        return RedirectResponse(build_path(request, "release", version=version), status_code=303)

    @app.get("/submit")
    def submit(request: Request) -> Response:
        declared = read_declared()
        content = {
            "dataset": dataset,
            "title": declared.title,
            "classes": declared.classes,
            "image_format": declared.image_format,
            "limit": MAX_BATCH_BYTES >> 20,
        }
        return render.TemplateResponse(request, "submit.html", content)

    @app.post("/submit", dependencies=[Depends(require_same_origin), Depends(may_edit)])
    async def submit_batch(request: Request, name: str) -> dict[str, str]:
        key = make_key(name)
        if capacity.batches.locked():
            raise HTTPException(503, "too many batches at once; retry in a minute", {"Retry-After": "60"})
        async with capacity.batches:
            with TemporaryFile() as file:  # on disk

                async def receive() -> None:
                    async for chunk in request.stream():
                        file.write(chunk)

                try:
                    await wait_for(receive(), _BATCH_SECONDS)
                except TimeoutError as error:
                    command = name_command(dataset, "submit")
                    message = f"the batch was not received within {_BATCH_SECONDS:.0f} seconds; use {command}"
                    raise HTTPException(408, message) from error
                await to_thread.run_sync(put_new_file, get_releases().store, key, file)
        return {"key": key}

    @app.get("/review")
    def review(request: Request, number: int = 1, decided: bool = False) -> Response:
        classes = read_declared().classes
        page = read_review_page(get_releases().store, classes, number, decided=decided)
        content = {"page": page, "classes": classes, "decided": decided}
        return render.TemplateResponse(request, "review.html", content)

    @app.post("/review", dependencies=[Depends(require_same_origin)])
    def decide_images(
        request: Request,
        action: Annotated[Literal["keep", "relabel", "drop"], Form()],
        ids: Annotated[list[str], Form(default_factory=list, max_length=PAGE_SIZE)],
        label: Annotated[int | None, Form()] = None,
        user: str = Depends(may_edit),
    ) -> Response:
        record_decisions(get_releases().store, read_declared().classes, ids, action, label, by=user)
        return RedirectResponse(build_path(request, "review"), status_code=303)

    @app.get("/try")
    def try_it(request: Request) -> Response:
        champion = get_releases().read_log().champion
        content = {"champion": champion, "manifest": open_manifest(champion.version).manifest if champion else None}
        return render.TemplateResponse(request, "try.html", content)

    @app.get("/try/examples")
    async def classify_examples() -> list[dict[str, Any]]:
        return await run_limited(lambda: get_predictor().predict_examples())

    @app.post("/try/image", dependencies=[Depends(require_same_origin)])
    async def classify_upload(request: Request, invert: bool = False) -> dict[str, Any]:
        if uploads.locked():
            raise HTTPException(503, "too many images at once; retry in a few seconds", {"Retry-After": "5"})
        async with uploads:
            try:
                upload = await wait_for(request.body(), _UPLOAD_SECONDS)
            except TimeoutError as error:
                raise HTTPException(408, f"the image was not received within {_UPLOAD_SECONDS:.0f} seconds") from error
            return await run_limited(lambda: get_predictor().predict_upload(upload, invert=invert))

    @app.get("/runbook")
    def runbook(request: Request) -> Response:
        return render.TemplateResponse(request, "runbook.html", {"content": render_runbook()})

    @app.get("/static/{name}")
    def static(name: str) -> Response:
        if name not in _STATIC:
            raise HTTPException(404)
        path, media_type = _STATIC[name]
        return Response((_FOLDER / path).read_bytes(), media_type=media_type)

    return app


def build_charts(rows: list[ReleaseRow]) -> list[dict[str, Any]]:
    """The charts for charts.js: times (s since 1970), values, labels and thresholds of releases, oldest first."""
    rows_with_drift = [row for row in rows if row.drift is not None]
    charts = [
        _build_chart(
            "Test accuracy of each release",
            "test accuracy, %",
            rows,
            [100 * row.accuracy for row in rows],
            [100 * row.min_accuracy for row in rows],
        ),
        _build_chart(
            "Data drift of each release (0: same distribution, 1: no overlap)",
            "drift",
            rows_with_drift,
            [row.drift for row in rows_with_drift],
        ),
    ]
    return [chart for chart in charts if chart["values"]]


def _build_chart(
    title: str, axis: str, rows: list[ReleaseRow], values: Sequence[float | None], thresholds: list[float] | None = None
) -> dict[str, Any]:
    times = [int(datetime.fromisoformat(row.created).timestamp()) for row in rows]
    labels = [row.version for row in rows]
    return {"title": title, "axis": axis, "times": times, "values": values, "labels": labels, "thresholds": thresholds}


def require_name(kind: str, name: str) -> str:
    """The name of a release or run. Raises :class:`MissingError` if it is not a valid name."""
    if not _NAME.fullmatch(name):
        raise errors.MissingError(f"there is no {kind} of this name: names have up to 250 letters, digits and _.~:+-")
    return name


def list_pages(dataset: str, request: Request) -> list[tuple[str, str, bool]]:
    """The pages of all datasets: a name, the path, and whether it is the current one; empty if there is only one."""
    names = list_datasets()
    root = build_path(request, "overview").removesuffix(find_page(dataset).removeprefix("/fmnist/"))
    pages = [(name, f"{root}{find_page(name).removeprefix('/fmnist/')}", name == dataset) for name in names]
    return [(_find_default_name(), root, not dataset), *pages] if names else []


def _find_default_name() -> str:
    try:
        return load_declaration(Settings.from_environment(), "").name
    except errors.FmnistError:  # the pages of the other datasets do not need it
        return "default"


def build_path(request: Request, name: str, /, **parts: Any) -> str:
    """The path of a route, without scheme and host, which behind a proxy the server does not know."""
    return f"{request.scope['root_path'].rstrip('/')}{request.app.url_path_for(name, **parts)}"


@pass_context
def _build_path_in_template(context: Context, name: str, /, **parts: Any) -> str:
    return build_path(context["request"], name, **parts)
