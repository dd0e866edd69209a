"""The HTTP face of the engine: routes, the key check, and errors as replies."""

import asyncio
import contextlib
import hmac
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime
from typing import Any

from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from cookbook_fx.errors import ConfigurationError, CookbookError, DataError
from shell.engine import wire
from shell.engine.checkpoints import Checkpoint, CheckpointPath, NoSuchCheckpoint, parse_path
from shell.engine.futures import Done, Failed
from shell.engine.requests import Submission
from shell.engine.service import Busy, Service
from shell.engine.sessions import Finished, Unknown

log = logging.getLogger(__name__)
Handler = Callable[[Service, Request], Awaitable[Response]]

_PREFIX = "/api/v1"

# A batch as the user made it arrives as one request, and is packed as a whole.
_CLIENT_CONFIG = {
    "fwdbwd_max_chunk_len": 1_000_000,
    "fwdbwd_max_chunk_bytes_count": 1_000_000_000,
    "fwdbwd_dispatch_bytes_semaphore_size": 2_000_000_000,
}
_DYNAMIC_CONFIG = {"refresh_interval_sec": 86_400}


class RequireKey:
    """Answers 401 to every request without the key, except the readiness probe."""

    def __init__(self, app: ASGIApp, api_key: str) -> None:
        self._app = app
        self._key = api_key.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] != f"{_PREFIX}/healthz":
            given = Headers(scope=scope).get("x-api-key", "").encode()
            if not hmac.compare_digest(given, self._key):
                refusal = _json(
                    {
                        "detail": "wrong or missing API key: send the engine's key in X-API-Key "
                        "(the SDK reads it from TINKER_API_KEY)"
                    },
                    status=401,
                )
                await refusal(scope, receive, send)
                return
        await self._app(scope, receive, send)


def make_app(start: Callable[[], Service], *, api_key: str) -> ASGIApp:
    """The ASGI application.

    Args:
        start: makes the service; called on the event loop that serves it.
        api_key: what clients must send.
    """

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        service = start()
        app.state.service = service
        upkeep = asyncio.create_task(service.maintain())
        try:
            yield
        finally:
            upkeep.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await upkeep
            await service.stop()

    app = Starlette(
        routes=[
            Route(_PREFIX + path, _endpoint(handler), methods=[method])
            for method, path, handler in _ROUTES
        ],
        lifespan=lifespan,
        exception_handlers={404: _no_route, 405: _no_route, Exception: _internal_error},
    )
    return RequireKey(app, api_key)


def _json(values: Any, *, status: int = 200) -> Response:
    # What failed here for no fault of the request fails again; the SDK would try for minutes.
    headers = {"x-should-retry": "false"} if status == 500 else None
    return Response(
        wire.json_bytes(values), status_code=status, media_type=wire.JSON, headers=headers
    )


def _endpoint(handler: Handler) -> Callable[[Request], Awaitable[Response]]:
    async def endpoint(request: Request) -> Response:
        try:
            return await handler(request.app.state.service, request)
        except CookbookError as error:
            return _json({"detail": str(error)}, status=_status(error))

    return endpoint


def _status(error: CookbookError) -> int:
    match error:
        case Unknown() | NoSuchCheckpoint():
            return 404
        case Finished():
            return 410
        case Busy():
            return 429
        case ConfigurationError() | DataError():
            return 400
        case _:
            return 500


async def _no_route(request: Request, error: Exception) -> Response:
    status = getattr(error, "status_code", 404)
    detail = f"this engine has no {request.method} {request.url.path}"
    return _json({"detail": detail}, status=status)


async def _internal_error(request: Request, error: Exception) -> Response:
    # The server logs the traceback. A client polls again at once and for ever on a 5xx here.
    message = f"{type(error).__name__}: {error}"
    if request.url.path.endswith("/retrieve_future"):
        failed = Failed(message=message, category="server")
        return Response(wire.failure_bytes(failed), media_type=wire.JSON)
    return _json({"detail": message}, status=500)


# --- service ------------------------------------------------------------------------------------


async def _healthz(service: Service, request: Request) -> Response:
    return _json({"status": "ok"})


async def _client_config(service: Service, request: Request) -> Response:
    return _json(_CLIENT_CONFIG)


async def _dynamic_config(service: Service, request: Request) -> Response:
    return _json(_DYNAMIC_CONFIG)


async def _capabilities(service: Service, request: Request) -> Response:
    context = service.base.weights.config.max_position_embeddings
    return _json(
        {
            "supported_models": [
                {
                    "model_name": name,
                    "max_context_length": context,
                    "trainable": True,
                    "sampleable": True,
                }
                for name in service.base.names
            ]
        }
    )


async def _telemetry(service: Service, request: Request) -> Response:
    # Read and dropped: nobody here wants it, and it can contain keys.
    await request.body()
    return _json({"status": "accepted"})


async def _create_session(service: Service, request: Request) -> Response:
    session_id = service.create_session(wire.create_session(await request.body()))
    return _json({"type": "create_session", "session_id": session_id})


async def _heartbeat(service: Service, request: Request) -> Response:
    given = wire.fields(await request.body(), where="session_heartbeat")
    service.sessions.session(given.text("session_id"))
    return _json({"type": "session_heartbeat"})


async def _finish_session(service: Service, request: Request) -> Response:
    session = service.sessions.session(request.path_params["session_id"])
    service.finish_session(session.session_id, "was closed by its client")
    return Response(status_code=204)


async def _list_sessions(service: Service, request: Request) -> Response:
    return _json({"sessions": [session.session_id for session in service.sessions.sessions()]})


async def _get_session(service: Service, request: Request) -> Response:
    session = service.sessions.session(request.path_params["session_id"])
    return _json(
        _present(
            training_run_ids=session.model_ids,
            sampler_ids=session.sampler_ids,
            user_metadata=session.user_metadata,
            display_name=session.display_name,
        )
    )


# --- training -----------------------------------------------------------------------------------


async def _create_model(service: Service, request: Request) -> Response:
    request_id, model_id = service.create_model(wire.create_model(await request.body()))
    return _json({"request_id": request_id, "model_id": model_id})


async def _load_weights(service: Service, request: Request) -> Response:
    asked = wire.load_weights(await request.body())
    if isinstance(asked, Submission):
        return _promise(service.submit(asked), asked.model_id)
    return _promise(*service.create_model_from_state(asked))


async def _get_info(service: Service, request: Request) -> Response:
    given = wire.fields(await request.body(), where="get_info")
    model = service.sessions.model(given.text("model_id"))
    return _json(
        _present(
            type="get_info",
            model_id=model.model_id,
            model_data={
                "arch": "llama",
                "model_name": model.base_model,
                # The SDK hands this to transformers, for which a directory will do.
                "tokenizer_id": str(service.base.directory),
            },
            is_lora=True,
            lora_rank=None if model.lora is None else model.lora.rank,
            model_name=model.base_model,
            optimizer_config={"type": "adamw"},
        )
    )


async def _forward_backward(service: Service, request: Request) -> Response:
    submission = wire.forward_backward(
        await request.body(), content_encoding=request.headers.get("content-encoding", "")
    )
    return _promise(service.submit(submission), submission.model_id)


def _submit(decode: Callable[[bytes], Submission]) -> Handler:
    async def handler(service: Service, request: Request) -> Response:
        submission = decode(await request.body())
        return _promise(service.submit(submission), submission.model_id)

    return handler


def _promise(request_id: str, model_id: str) -> Response:
    return _json({"request_id": request_id, "model_id": model_id})


async def _retrieve_future(service: Service, request: Request) -> Response:
    given = wire.fields(await request.body(), where="retrieve_future")
    request_id = given.text("request_id")
    outcome = await service.retrieve(request_id)
    match outcome:
        case Done(body=body, media_type=media_type):
            return Response(body, media_type=media_type)
        case Failed():
            return Response(wire.failure_bytes(outcome), media_type=wire.JSON)
        case None:
            pending = {"type": "try_again", "request_id": request_id, "queue_state": "active"}
            return _json(pending, status=408)


# --- sampling -----------------------------------------------------------------------------------


async def _create_sampling_session(service: Service, request: Request) -> Response:
    asked = wire.create_sampling_session(await request.body())
    sampler_id = await service.create_sampling_session(asked)
    return _json({"type": "create_sampling_session", "sampling_session_id": sampler_id})


async def _get_sampler(service: Service, request: Request) -> Response:
    sampler = service.sessions.sampler(request.path_params["sampler_id"])
    return _json(
        {
            "sampler_id": sampler.sampler_id,
            "base_model": sampler.base_model,
            "model_path": sampler.model_path,
        }
    )


async def _sample(service: Service, request: Request) -> Response:
    request_id, sequence_ids = service.sample(wire.sample_request(await request.body()))
    return _json({"request_id": request_id, "sample_sequence_ids": sequence_ids})


# --- checkpoints --------------------------------------------------------------------------------


async def _weights_info(service: Service, request: Request) -> Response:
    given = wire.fields(await request.body(), where="weights_info")
    checkpoint = service.store.find(parse_path(given.text("tinker_path")))
    lora = checkpoint.lora
    return _json(
        {
            "base_model": checkpoint.base_model,
            "is_lora": True,
            "lora_rank": lora.rank,
            "train_unembed": lora.train_unembed,
            "train_mlp": lora.train_mlp,
            "train_attn": lora.train_attn,
            "optimizer_config": {"type": "adamw"},
        }
    )


async def _list_training_runs(service: Service, request: Request) -> Response:
    by_model: dict[str, list[Checkpoint]] = {
        model.model_id: [] for model in service.sessions.models()
    }
    for checkpoint in await asyncio.to_thread(service.store.list):
        by_model.setdefault(checkpoint.path.model_id, []).append(checkpoint)
    page, cursor = _page(list(by_model), request)
    runs = [_training_run(service, model_id, by_model[model_id]) for model_id in page]
    return _json({"training_runs": runs, "cursor": cursor})


async def _get_training_run(service: Service, request: Request) -> Response:
    model_id = request.path_params["model_id"]
    checkpoints = await asyncio.to_thread(service.store.list, model_id)
    if not checkpoints and service.sessions.find_model(model_id) is None:
        raise Unknown(f"there is no training run {model_id}")
    return _json(_training_run(service, model_id, list(checkpoints)))


def _training_run(service: Service, model_id: str, checkpoints: list[Checkpoint]) -> Any:
    model = service.sessions.find_model(model_id)
    lora = model.lora if model is not None else checkpoints[-1].lora
    saved = {c.path.segment: _checkpoint(c) for c in checkpoints}
    last_request = checkpoints[-1].saved_at if model is None else model.last_request_at
    return _present(
        training_run_id=model_id,
        base_model=model.base_model if model is not None else checkpoints[-1].base_model,
        model_owner="local",
        is_lora=True,
        lora_rank=None if lora is None else lora.rank,
        last_request_time=_iso(last_request),
        last_checkpoint=saved.get("weights"),
        last_sampler_checkpoint=saved.get("sampler_weights"),
        user_metadata=None if model is None else model.user_metadata,
    )


async def _list_checkpoints(service: Service, request: Request) -> Response:
    model_id = request.path_params.get("model_id")
    found = await asyncio.to_thread(service.store.list, model_id)
    page, cursor = (found, None) if model_id is not None else _page(found, request)
    return _json(_present(checkpoints=[_checkpoint(c) for c in page], cursor=cursor))


async def _delete_checkpoint(service: Service, request: Request) -> Response:
    await asyncio.to_thread(service.store.delete, _path(request))
    return Response(status_code=204)


async def _set_ttl(service: Service, request: Request) -> Response:
    given = wire.fields(await request.body(), where="ttl")
    ttl_seconds = given.maybe_integer("ttl_seconds")
    await asyncio.to_thread(service.store.set_ttl, _path(request), ttl_seconds)
    return Response(status_code=204)


async def _bare_checkpoint_id(service: Service, request: Request) -> Response:
    raise DataError(
        "a checkpoint id is SEGMENT/NAME, for example weights/step-10; "
        f"got {request.path_params['name']!r}"
    )


async def _not_offered(service: Service, request: Request) -> Response:
    raise ConfigurationError(
        f"this local engine does not offer {request.url.path.removeprefix(_PREFIX + '/')}"
    )


def _path(request: Request) -> CheckpointPath:
    parts = request.path_params
    return parse_path(f"tinker://{parts['model_id']}/{parts['segment']}/{parts['name']}")


def _checkpoint(checkpoint: Checkpoint) -> Any:
    segment, name = checkpoint.path.segment, checkpoint.path.name
    return _present(
        checkpoint_id=f"{segment}/{name}",
        checkpoint_type="training" if segment == "weights" else "sampler",
        time=_iso(checkpoint.saved_at),
        tinker_path=str(checkpoint.path),
        size_bytes=checkpoint.size_bytes,
        public=False,
        user_metadata=checkpoint.user_metadata,
        expires_at=None if checkpoint.expires_at is None else _iso(checkpoint.expires_at),
    )


def _page(items: Any, request: Request) -> tuple[Any, dict[str, int]]:
    try:
        limit = int(request.query_params.get("limit", "20"))
        offset = int(request.query_params.get("offset", "0"))
    except ValueError:
        raise DataError("limit and offset must be whole numbers") from None
    limit, offset = max(0, limit), max(0, offset)
    cursor = {"offset": offset, "limit": limit, "total_count": len(items)}
    return items[offset : offset + limit], cursor


def _present(**values: Any) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _iso(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat()


_CHECKPOINT = "/training_runs/{model_id}/checkpoints/{segment}/{name}"

_ROUTES: tuple[tuple[str, str, Handler], ...] = (
    ("GET", "/healthz", _healthz),
    ("POST", "/client/config", _client_config),
    ("POST", "/client/dynamic_config", _dynamic_config),
    ("GET", "/get_server_capabilities", _capabilities),
    ("POST", "/telemetry", _telemetry),
    ("POST", "/create_session", _create_session),
    ("POST", "/session_heartbeat", _heartbeat),
    ("POST", "/sessions/{session_id}/finish", _finish_session),
    ("GET", "/sessions", _list_sessions),
    ("GET", "/sessions/{session_id}", _get_session),
    ("POST", "/create_model", _create_model),
    ("POST", "/load_weights", _load_weights),
    ("POST", "/get_info", _get_info),
    ("POST", "/forward_backward", _forward_backward),
    ("POST", "/optim_step", _submit(wire.optim_step)),
    ("POST", "/save_weights", _submit(wire.save_weights)),
    ("POST", "/save_weights_for_sampler", _submit(wire.save_weights_for_sampler)),
    ("POST", "/retrieve_future", _retrieve_future),
    ("POST", "/create_sampling_session", _create_sampling_session),
    ("GET", "/samplers/{sampler_id}", _get_sampler),
    ("POST", "/asample", _sample),
    ("POST", "/weights_info", _weights_info),
    ("GET", "/training_runs", _list_training_runs),
    ("GET", "/training_runs/{model_id}", _get_training_run),
    ("GET", "/training_runs/{model_id}/checkpoints", _list_checkpoints),
    ("GET", "/checkpoints", _list_checkpoints),
    ("DELETE", _CHECKPOINT, _delete_checkpoint),
    ("PUT", f"{_CHECKPOINT}/ttl", _set_ttl),
    ("DELETE", "/training_runs/{model_id}/checkpoints/{name}", _bare_checkpoint_id),
    ("POST", f"{_CHECKPOINT}/publish", _not_offered),
    ("DELETE", f"{_CHECKPOINT}/publish", _not_offered),
    ("GET", f"{_CHECKPOINT}/external_weights_urls", _not_offered),
    ("POST", "/save_weights_external", _not_offered),
    ("POST", "/retrieve_futures", _not_offered),
    ("POST", "/join_sampling_session", _not_offered),
    ("POST", "/cancel_future", _not_offered),
    ("POST", "/create_custom_loss", _not_offered),
    ("POST", "/auth/token", _not_offered),
)
