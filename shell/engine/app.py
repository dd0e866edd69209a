"""The HTTP face of the engine: routes, whose request it is, and errors as replies."""

import asyncio
import contextlib
import hmac
import io
import logging
import tarfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from datetime import UTC, datetime
from typing import Any

from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cookbook_fx.errors import ConfigurationError, CookbookError, DataError, ServiceError
from shell.engine import wire
from shell.engine.checkpoints import Checkpoint, CheckpointPath, NoSuchCheckpoint, parse_path
from shell.engine.futures import Done, Failed
from shell.engine.requests import Submission
from shell.engine.service import Busy, Service
from shell.engine.sessions import Finished, Unknown
from shell.engine.tokens import Signer
from shell.hub.adapters import ADAPTER_CONFIG, adapter_files

log = logging.getLogger(__name__)
Handler = Callable[[Service, Request], Awaitable[Response]]

_PREFIX = "/api/v1"

# A batch as the user made it arrives as one request, and is packed as a whole.
_CLIENT_CONFIG = {
    # SDKs before 0.38 would do these the way of earlier ones.
    "proto_write_fwdbwd": True,
    "fwd_via_fwdbwd": True,
    "create_model_via_load_weights": True,
    "fwdbwd_max_chunk_len": 1_000_000,
    "fwdbwd_max_chunk_bytes_count": 200_000_000,
    "fwdbwd_dispatch_bytes_semaphore_size": 2_000_000_000,
}
# A sample that nobody waits for any more need not be finished.
_DYNAMIC_CONFIG = {"refresh_interval_sec": 86_400, "sample_cancel_enabled": True}
_TOKEN_SECONDS = 3600.0
# These are asked for without a key: a probe, and files under signed addresses.
_OPEN = (f"{_PREFIX}/healthz", f"{_PREFIX}/downloads/")


class TooLarge(ServiceError):
    """A request body beyond what the engine reads."""


class RequireKey:
    """Finds out whose request it is; answers 401 if it is nobody's.

    Args:
        app: what answers the others, with the owner's name in the scope.
        keys: of each owner, by name.
        signer: of the tokens that may stand for a key.
    """

    def __init__(self, app: ASGIApp, keys: Mapping[str, str], signer: Signer) -> None:
        self._app = app
        self._keys = {name: key.encode() for name, key in keys.items()}
        self._signer = signer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and not scope["path"].startswith(_OPEN):
            owner = self._owner(Headers(scope=scope).get("x-api-key", ""))
            if owner is None:
                refusal = _json(
                    {
                        "detail": "wrong or missing API key: send the engine's key in X-API-Key "
                        "(the SDK reads it from TINKER_API_KEY)"
                    },
                    status=401,
                )
                # So the SDK knows that a token, if it was one, is to be replaced.
                refusal.headers["WWW-Authenticate"] = 'Bearer error="invalid_token"'
                await refusal(scope, receive, send)
                return
            scope["owner"] = owner
        await self._app(scope, receive, send)

    def _owner(self, given: str) -> str | None:
        # Every key is compared, and each in constant time.
        matches = [
            name for name, key in self._keys.items() if hmac.compare_digest(given.encode(), key)
        ]
        if not matches and given.startswith("eyJ"):
            with contextlib.suppress(Unknown):
                claims = self._signer.read(given)
                matches = [claims["sub"]] if claims["use"] == "key" else []
        return matches[0] if matches else None


def make_app(start: Callable[[], Mapping[str, Service]], *, keys: Mapping[str, str]) -> ASGIApp:
    """The ASGI application.

    Args:
        start: makes the services by the names of their owners; called on the event loop that
            serves them.
        keys: what the clients of each owner must send.
    """
    signer = Signer()

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        services = start()
        app.state.services = services
        app.state.signer = signer
        try:
            async with asyncio.TaskGroup() as upkeep:
                tasks = [upkeep.create_task(service.maintain()) for service in services.values()]
                yield
                for task in tasks:
                    task.cancel()
        finally:
            for service in services.values():
                await service.stop()

    app = Starlette(
        routes=[
            Route(f"{_PREFIX}/healthz", _healthz),
            Route(f"{_PREFIX}/downloads/{{token}}/{{name}}", _download),
            *(
                Route(_PREFIX + path, _endpoint(handler), methods=[method])
                for method, path, handler in _ROUTES
            ),
        ],
        lifespan=lifespan,
        exception_handlers={404: _no_route, 405: _no_route, Exception: _internal_error},
    )
    return RequireKey(app, keys, signer)


def _json(values: Any, *, status: int = 200) -> Response:
    # What failed here for no fault of the request fails again; the SDK would try for minutes.
    headers = {"x-should-retry": "false"} if status == 500 else None
    return Response(
        wire.json_bytes(values), status_code=status, media_type=wire.JSON, headers=headers
    )


def _endpoint(handler: Handler) -> Callable[[Request], Awaitable[Response]]:
    async def endpoint(request: Request) -> Response:
        service: Service = request.app.state.services[request.scope["owner"]]
        bounded = Request(request.scope, _bounded(request.receive, service.limits.max_body_bytes))
        try:
            return await handler(service, bounded)
        except CookbookError as error:
            return _refusal(error)

    return endpoint


def _bounded(receive: Receive, most: int) -> Receive:
    read = 0

    async def bounded() -> Message:
        nonlocal read
        message = await receive()
        read += len(message.get("body", b""))
        if read > most:
            raise TooLarge(f"a request body may have {most} bytes, and this has more; split it")
        return message

    return bounded


def _refusal(error: CookbookError) -> Response:
    reply = _json({"detail": str(error)}, status=_status(error))
    if isinstance(error, Busy):
        reply.headers["Retry-After"] = "1"
    return reply


def _status(error: CookbookError) -> int:
    match error:
        case Unknown() | NoSuchCheckpoint():
            return 404
        case Finished():
            return 410
        case TooLarge():
            return 413
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


async def _healthz(request: Request) -> Response:
    return _json({"status": "ok"})


async def _token(service: Service, request: Request) -> Response:
    claims = {"use": "key", "sub": request.scope["owner"]}
    token = request.app.state.signer.sign(claims, seconds=_TOKEN_SECONDS)
    return _json({"jwt": token})


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


async def _join_sampling_session(service: Service, request: Request) -> Response:
    given = wire.fields(await request.body(), where="join_sampling_session")
    number = service.join_sampler(given.text("sampling_session_id"))
    return _json({"type": "join_sampling_session", "client_counter": number})


async def _retrieve_futures(service: Service, request: Request) -> Response:
    asked = wire.retrieve_futures(await request.body())
    completions = await service.completions(asked)
    return _json(wire.completions(completions, cursor=asked.cursor))


async def _cancel_future(service: Service, request: Request) -> Response:
    given = wire.fields(await request.body(), where="cancel_future")
    service.cancel(given.text("request_id"))
    return Response(status_code=204)


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
    accessible = request.query_params.get("access_scope") == "accessible"
    for checkpoint in await asyncio.to_thread(service.store.list, accessible=accessible):
        by_model.setdefault(checkpoint.path.model_id, []).append(checkpoint)
    page, cursor = _page(list(by_model), request)
    runs = [_training_run(service, model_id, by_model[model_id]) for model_id in page]
    return _json({"training_runs": runs, "cursor": cursor})


async def _get_training_run(service: Service, request: Request) -> Response:
    model_id = request.path_params["model_id"]
    accessible = request.query_params.get("access_scope") == "accessible"
    checkpoints = await asyncio.to_thread(service.store.list, model_id, accessible=accessible)
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
        model_owner=checkpoints[-1].owner if model is None else service.store.owner,
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


def _publish(*, public: bool) -> Handler:
    async def handler(service: Service, request: Request) -> Response:
        await asyncio.to_thread(service.store.publish, _path(request), public=public)
        return Response(status_code=204)

    return handler


async def _external_weights_urls(service: Service, request: Request) -> Response:
    model_id, name = request.path_params["model_id"], request.path_params["name"]
    path = parse_path(f"tinker://{model_id}/external_weights/{name}")
    checkpoint = await asyncio.to_thread(service.store.find, path)
    address, expires = _signed(request, checkpoint)
    urls = {name: f"{address}/{name}" for name in _ADAPTER_FILES}
    return _json({"urls": urls, "expires": _iso(expires)})


async def _archive_url(service: Service, request: Request) -> Response:
    """Where SDKs before 0.38 download a checkpoint from, as one file."""
    checkpoint = await asyncio.to_thread(service.store.find, _path(request))
    address, expires = _signed(request, checkpoint)
    return _json({"url": f"{address}/{_ARCHIVE}", "expires": _iso(expires)})


def _signed(request: Request, checkpoint: Checkpoint) -> tuple[str, float]:
    """An address that the files of a checkpoint are under for a while, and until when."""
    claims = {"use": "download", "sub": request.scope["owner"], "path": str(checkpoint.path)}
    token = request.app.state.signer.sign(claims, seconds=_TOKEN_SECONDS)
    return f"{request.base_url}{_PREFIX[1:]}/downloads/{token}", time.time() + _TOKEN_SECONDS


async def _download(request: Request) -> Response:
    token, name = request.path_params["token"], request.path_params["name"]
    try:
        claims = request.app.state.signer.read(token)
        if claims["use"] != "download" or name not in (*_ADAPTER_FILES, _ARCHIVE):
            raise Unknown(f"there is no file {name}")
        service: Service = request.app.state.services[claims["sub"]]
        content = await asyncio.to_thread(_file, service, parse_path(claims["path"]), name)
    except CookbookError as error:
        return _refusal(error)
    return Response(content, media_type="application/octet-stream")


def _file(service: Service, path: CheckpointPath, name: str) -> bytes:
    adapter = service.store.load_adapter(service.store.find(path))
    files = adapter_files(adapter, base_model=service.base.tokenizer_name)
    if name != _ARCHIVE:
        return files[name]
    archive = io.BytesIO()
    # The marker is what the SDK takes for the end of a whole archive.
    with tarfile.open(fileobj=archive, mode="w") as tar:
        for member, content in {**files, "checkpoint_complete": b""}.items():
            described = tarfile.TarInfo(member)
            described.size = len(content)
            tar.addfile(described, io.BytesIO(content))
    return archive.getvalue()


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
        checkpoint_type=_CHECKPOINT_TYPES[segment],
        time=_iso(checkpoint.saved_at),
        tinker_path=str(checkpoint.path),
        size_bytes=checkpoint.size_bytes,
        public=checkpoint.public,
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


_ADAPTER_FILES = (ADAPTER_CONFIG, "adapter_model.safetensors")
_ARCHIVE = "checkpoint.tar"
_CHECKPOINT_TYPES = {
    "weights": "training",
    "sampler_weights": "sampler",
    "external_weights": "external",
}
_CHECKPOINT = "/training_runs/{model_id}/checkpoints/{segment}/{name}"

_ROUTES: tuple[tuple[str, str, Handler], ...] = (
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
    ("POST", f"{_CHECKPOINT}/publish", _publish(public=True)),
    ("DELETE", f"{_CHECKPOINT}/publish", _publish(public=False)),
    (
        "GET",
        "/training_runs/{model_id}/checkpoints/external_weights/{name}/external_weights_urls",
        _external_weights_urls,
    ),
    ("GET", f"{_CHECKPOINT}/archive", _archive_url),
    ("POST", "/save_weights_external", _submit(wire.save_weights_external)),
    ("POST", "/retrieve_futures", _retrieve_futures),
    ("POST", "/join_sampling_session", _join_sampling_session),
    ("POST", "/cancel_future", _cancel_future),
    ("POST", "/auth/token", _token),
    # The SDK asks for it only if client/config says so; without, it computes the loss itself.
    ("POST", "/create_custom_loss", _not_offered),
)
