"""The server: one model, a folder or each browser's uploads, and what answers requests."""

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import uvicorn
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse
from fastapi.staticfiles import StaticFiles

from adapterkit.system.lock import locked_folder
from adapterkit.web import api_page, interface, routes, training_routes
from adapterkit.web.draft_store import StaleError
from adapterkit.web.guards import check_reach, guards, server_folder
from adapterkit.web.model import Model
from adapterkit.web.predictions import Worker
from adapterkit.web.sessions import MAX_KEPT, NoRoomError, Sessions
from adapterkit.web.training_job import TrainingJob, load_trained
from adapterkit.web.worklist import OWN, WorkList
from adapterkit.web.workspace import Workspace

_STATIC = Path(__file__).parent / "static"


@dataclass(frozen=True)
class Service:
    """What a server serves.

    Attributes:
        model: with its adapters.
        about: what the page says about the model, in a sentence.
        folder: the work list of all browsers; None: each has its own uploads.
        annotator: who works on the folder.
        host: the address to listen at.
        port: a free one.
        token: what page and programs have to show; None: nothing, on the loopback alone.
        trusted: further names under which the server is reached.
        max_upload: bytes of a file that is uploaded.
        max_kept: bytes of all uploads.
        checkpoint: of the model, as `adapterkit train` takes it; None: the small one.
        group: what images of one patient share in their names, as `adapterkit train` takes it.
    """

    model: Model
    about: str = ""
    folder: Path | None = None
    annotator: str = ""
    host: str = "127.0.0.1"
    port: int = 7860
    token: str | None = None
    trusted: Sequence[str] = ()
    max_upload: int = 200 * 2**20
    max_kept: int = MAX_KEPT
    checkpoint: Path | None = None
    group: str | None = None


@contextmanager
def serving(service: Service) -> Iterator[str]:
    """Serves while the block runs.

    Raises:
        ValueError: others could reach it without a token, or the folder is not as expected.
        FolderLockedError: another server works on the folder.

    Yields:
        The page's address.
    """
    check_reach(service.host, service.token)
    with ExitStack() as stack:
        if service.folder is not None:
            own = service.folder / OWN
            own.mkdir(exist_ok=True)
            stack.enter_context(locked_folder(own))
        temporary = stack.enter_context(server_folder())
        app = stack.enter_context(application(service, temporary))
        config = uvicorn.Config(
            app,
            host=service.host,
            port=service.port,
            log_level="warning",
            lifespan="off",
            server_header=False,
            timeout_graceful_shutdown=2,
        )
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, daemon=True)
        thread.start()
        try:
            while not server.started:
                if not thread.is_alive():
                    raise OSError(f"cannot listen at {service.host}, port {service.port}")
                time.sleep(0.01)
            host = f"[{service.host}]" if ":" in service.host else service.host
            yield f"http://{host}:{service.port}/"
        finally:
            server.should_exit = True
            thread.join()


@contextmanager
def application(service: Service, temporary: Path) -> Iterator[FastAPI]:
    """The application, with what works in the background while the block runs.

    Args:
        service: what it serves.
        temporary: a folder for uploads.
    """

    def open_workspace(worklist: WorkList) -> Workspace:
        return Workspace(worklist, service.model, service.annotator)

    state = routes.State(
        model=service.model,
        about=service.about,
        sessions=Sessions(temporary, open_workspace, service.max_kept),
    )
    if service.folder is not None:
        load_trained(service.folder / OWN, service.model)
        state.workspace = open_workspace(WorkList(service.folder))
        state.worker = Worker(state.workspace.predictions, state.workspace.wanted)
        state.training = TrainingJob(
            state.workspace, service.model, service.checkpoint, service.group, state.wake
        )
    app = FastAPI(
        title="adapterkit",
        summary="Masks of medical images by Segment Anything models with adapters.",
        description="For demonstration and research. Not for clinical use.",
        docs_url=None,
        redoc_url=None,
        middleware=guards(service.host, service.trusted, service.max_upload, service.token),
    )
    app.state.it = state
    for each in (routes.router, training_routes.router, interface.router, api_page.router):
        # As they are: what is included is made anew at the first request, which quiets warnings for
        # all threads meanwhile.
        app.router.routes.extend(each.routes)
    app.mount("/static", StaticFiles(directory=_STATIC, check_dir=False), name="static")
    app.get("/", include_in_schema=False)(_index)
    _answer_errors(app)
    if state.worker is not None:
        state.worker.start()
    try:
        yield app
    finally:
        if state.worker is not None:
            state.worker.end()
        if state.training is not None:
            state.training.close()


def _index() -> FileResponse:
    return FileResponse(_STATIC / "index.html")


def _answer_errors(app: FastAPI) -> None:
    """Every refusal is JSON with a sentence."""

    @app.exception_handler(StaleError)
    def _(request: Request, error: StaleError) -> JSONResponse:
        return JSONResponse({"detail": str(error), "revision": error.revision}, 409)

    @app.exception_handler(KeyError)
    def _(request: Request, error: KeyError) -> JSONResponse:
        return JSONResponse({"detail": f"there is no image {error.args[0]!r}"}, 404)

    @app.exception_handler(ValueError)
    def _(request: Request, error: ValueError) -> JSONResponse:
        return JSONResponse({"detail": str(error)}, 400)

    @app.exception_handler(OSError)
    def _(request: Request, error: OSError) -> JSONResponse:
        return JSONResponse({"detail": str(error)}, 507 if isinstance(error, NoRoomError) else 500)

    @app.exception_handler(RequestValidationError)
    def _(request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        return JSONResponse({"detail": f"{where}: {first['msg']}"}, 422)
