"""The HTTP server of packaged models: protocols, limits, health and metrics around `ServedModel`."""

import asyncio
import hmac
import json
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response, StreamingResponse
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lib.core.cli import UserError
from lib.serving import protocols
from lib.serving.protocols import RequestError
from lib.serving.worker import BusyError, ServedModel

_PAGE = Path(__file__).with_name("page.html")
_SECURITY = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline';"
    " connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}
_MOST_DROPPED = 16  # times the largest body
_OPEN = ("/health",)  # without an API key


@dataclass(frozen=True)
class Limits:
    """What a request may take. body: bytes. seconds: until it is answered, and until its body is there."""

    body: int = 1 << 20
    seconds: float = 60.0


class BodySizeError(Exception):
    """A body is larger than the server takes."""


class LimitedBody:
    """ASGI middleware: refuses bodies that are too large, and those that do not arrive in time (`TimeoutError`)."""

    def __init__(self, app: ASGIApp, limits: Limits) -> None:
        self.app, self.limits = app, limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        deadline, size, is_whole = time.monotonic() + self.limits.seconds, 0, False

        async def receive_limited() -> Message:
            nonlocal size, is_whole
            while True:
                if is_whole:  # from now on only the client's leaving is awaited
                    return await receive()
                message = await asyncio.wait_for(receive(), max(0.0, deadline - time.monotonic()))
                is_whole = not message.get("more_body", False)
                size += len(message.get("body", b""))
                if size <= self.limits.body:
                    return message
                # A client hears the answer only when it has sent its body, so a little more is read and dropped.
                if is_whole or size > _MOST_DROPPED * self.limits.body:
                    raise BodySizeError

        return await self.app(scope, receive_limited, send)


class Guard:
    """ASGI middleware: asks for the API key, counts requests, and adds headers that keep the page to itself."""

    def __init__(self, app: ASGIApp, meter: "Meter", api_key: str | None, routes: set[str]) -> None:
        self.app, self.meter, self.api_key, self.routes = app, meter, api_key, routes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        began, status, path = time.monotonic(), 500, scope["path"]

        async def send_guarded(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message).update(_SECURITY)
            await send(message)

        try:
            if self.api_key and path not in _OPEN and not _is_authorized(Headers(scope=scope), self.api_key):
                refusal = refuse("the API key is missing or wrong", 401, {"WWW-Authenticate": "Bearer"})
                return await refusal(scope, receive, send_guarded)
            await self.app(scope, receive, send_guarded)
        finally:
            self.meter.count(path if path in self.routes else "other", status, time.monotonic() - began)


def build_app(models: Mapping[str, ServedModel], limits: Limits, api_key: str | None, hosts: list[str]) -> FastAPI:
    """Return the application. hosts: names by which it may be addressed; `*` for any."""

    @asynccontextmanager
    async def close_models(_: FastAPI) -> AsyncIterator[None]:
        yield
        for model in models.values():
            await asyncio.to_thread(model.close)

    app = FastAPI(title="slmflow", lifespan=close_models, docs_url=None, redoc_url=None, openapi_url=None)
    meter = Meter(models)
    _add_errors(app, limits)
    _add_pages(app, models, meter)
    _add_questions(app, models, limits)
    routes = {str(getattr(route, "path", "")) for route in app.routes}
    app.add_middleware(LimitedBody, limits=limits)
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=hosts)
    app.add_middleware(Guard, meter=meter, api_key=api_key, routes=routes)  # the last one comes first
    return app


class Meter:
    """Prometheus metrics of one server."""

    def __init__(self, models: Mapping[str, ServedModel]) -> None:
        self.registry = CollectorRegistry()
        names = ["route", "status"]
        self._requests = Counter("slmflow_requests_total", "Requests answered.", names, registry=self.registry)
        self._seconds = Histogram("slmflow_request_seconds", "Time of an answer.", ["route"], registry=self.registry)
        waiting = Gauge("slmflow_waiting_rows", "Rows that wait for a model.", ["model"], registry=self.registry)
        for name, model in models.items():
            waiting.labels(name).set_function(model.count_waiting)

    def count(self, route: str, status: int, seconds: float) -> None:
        self._requests.labels(route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)


def refuse(said: str, status: int, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """Return an error as OpenAI's clients read it."""
    kind = "invalid_request_error" if status < 500 else "server_error"
    error = {"message": said, "type": kind, "param": None, "code": None}
    return JSONResponse({"error": error}, status, dict(headers or {}))


def _add_errors(app: FastAPI, limits: Limits) -> None:
    @app.exception_handler(BodySizeError)
    async def _large(_: Request, error: BodySizeError) -> Response:
        return refuse(f"the body has more than {limits.body} bytes", 413, {"Connection": "close"})

    @app.exception_handler(ClientDisconnect)
    async def _gone(_: Request, error: ClientDisconnect) -> Response:
        return refuse("the body did not arrive", 400)

    @app.exception_handler(RequestError)
    async def _refused(_: Request, error: RequestError) -> Response:
        return refuse(str(error), 400)

    @app.exception_handler(UserError)  # of a row that is no input for this model
    async def _unusable(_: Request, error: UserError) -> Response:
        return refuse(str(error), 400)

    @app.exception_handler(BusyError)
    async def _busy(_: Request, error: BusyError) -> Response:
        return refuse("too many rows are waiting; ask again later", 429, {"Retry-After": "1"})

    @app.exception_handler(TimeoutError)
    async def _late(_: Request, error: TimeoutError) -> Response:
        return refuse("body or answer took too long", 504)


def _is_authorized(headers: Headers, api_key: str) -> bool:
    given = headers.get("authorization", "").removeprefix("Bearer ")
    return hmac.compare_digest(given.encode(), api_key.encode())


def _add_pages(app: FastAPI, models: Mapping[str, ServedModel], meter: Meter) -> None:
    @app.get("/")
    async def _page() -> Response:
        return HTMLResponse(_PAGE.read_text(encoding="utf-8"))

    @app.get("/health")
    async def _health() -> Response:
        return JSONResponse({"status": "ok", "models": list(models)})

    @app.get("/metrics")
    async def _metrics() -> Response:
        return PlainTextResponse(generate_latest(meter.registry).decode(), media_type=CONTENT_TYPE_LATEST)

    @app.get("/v1/models")
    async def _models() -> Response:
        return JSONResponse({"object": "list", "data": [_describe(model) for model in models.values()]})


def _describe(model: ServedModel) -> dict[str, Any]:
    """Return a model as OpenAI lists it, and what it may be asked."""
    template = model.template
    facts: dict[str, Any] = {"task": template["task"], "columns": template["columns"]}
    if model.is_classifier:
        facts |= {"question": protocols.describe_question(template), "labels": template["labels"]}
        facts |= {"threshold": template["threshold"]} if "threshold" in template else {}
    return {"id": model.name, "object": "model", "created": 0, "owned_by": "slmflow", "slmflow": facts}


def _add_questions(app: FastAPI, models: Mapping[str, ServedModel], limits: Limits) -> None:
    def choose(body: Mapping[str, Any], *, only_labels: bool = False) -> ServedModel:
        name = str(body.get("model") or (next(iter(models)) if len(models) == 1 else None))
        if name not in models:
            raise RequestError(f"there is no model {name!r}; these are served: {', '.join(models)}")
        model = models[name]
        if only_labels and not model.is_classifier:
            raise RequestError(f"{name} answers with free text: ask /v1/chat/completions")
        return model

    async def decide(model: ServedModel, row: dict[str, Any]) -> tuple[dict[str, Any], int]:
        """Return the answer to a row, and the tokens of its prompt."""
        prompt = model.render_prompt(row)
        (answer,) = await asyncio.wait_for(model.classify([prompt]), limits.seconds)
        return answer, len(model.tokenizer.encode(prompt))

    @app.post("/v1/chat/completions")
    async def _chat(request: Request) -> Response:
        body = await read_body(request)
        model = choose(body)
        row = protocols.read_chat(body, model.template)
        if model.is_classifier:
            answer, tokens = await decide(model, row)
            if body.get("stream"):
                return _stream_events(_stream_label(model.name, answer["label"]))
            return JSONResponse(protocols.build_completion(model.name, answer, count_usage(tokens, 1)))
        prompt = model.render_prompt(row)
        pieces = model.stream(prompt)
        first = await asyncio.wait_for(anext(pieces), limits.seconds)  # errors come before the head is sent
        if body.get("stream"):
            return _stream_events(_stream_text(model.name, first, pieces))
        async with asyncio.timeout(limits.seconds):
            parts = [first, *[piece async for piece in pieces]]
        text, stopped = "".join(text for text, _ in parts), parts[-1][1]
        usage = count_usage(len(model.tokenizer.encode(prompt)), len(model.tokenizer.encode(text)))
        return JSONResponse(protocols.build_completion(model.name, {"answer": text, "stopped": stopped}, usage))

    def add_protocol(path: str, read: Callable[..., Any], build: Callable[..., Any]) -> None:
        @app.post(path)
        async def _answer(request: Request) -> Response:
            body = await read_body(request)
            model = choose(body, only_labels=True)
            row, asked = read(body, model.template)
            answer, tokens = await decide(model, row)
            return JSONResponse(build(model.name, asked, answer, tokens))

    add_protocol("/v1/decisions", protocols.read_decisions, protocols.build_decisions)
    add_protocol("/v1/systemone", protocols.read_system_one, protocols.build_system_one)

    @app.post("/classify")
    async def _classify(request: Request) -> Response:
        body = await read_body(request)
        model = choose(body, only_labels=True)
        rows = protocols.read_rows(body, model.template)
        prompts = [model.render_prompt(row, f"inputs[{place}]") for place, row in enumerate(rows)]
        answers = await asyncio.wait_for(model.classify(prompts), limits.seconds)
        return JSONResponse({"model": model.name, "answers": answers})


async def read_body(request: Request) -> dict[str, Any]:
    """Return the JSON object of a request. Raises `RequestError`."""
    if request.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
        raise RequestError("send JSON, with the header content-type: application/json")
    try:
        body = json.loads(await request.body())
    except (ValueError, RecursionError):
        raise RequestError("the body is not JSON") from None
    if not isinstance(body, dict):
        raise RequestError("the body must be a JSON object")
    return body


def count_usage(prompt: int, completion: int) -> dict[str, int]:
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


def _stream_events(events: AsyncIterator[dict[str, Any]]) -> StreamingResponse:
    async def lines() -> AsyncIterator[str]:
        async for event in events:
            yield f"data: {json.dumps(event, ensure_ascii=False)}\n\n"
        yield "data: [DONE]\n\n"

    return StreamingResponse(lines(), media_type="text/event-stream")


async def _stream_label(model: str, label: str) -> AsyncIterator[dict[str, Any]]:
    head = protocols.build_chunk_head(model)
    yield protocols.build_chunk(head, {"role": "assistant", "content": label})
    yield protocols.build_chunk(head, {}, "stop")


async def _stream_text(
    model: str, first: tuple[str, bool | None], pieces: AsyncIterator[tuple[str, bool | None]]
) -> AsyncIterator[dict[str, Any]]:
    head = protocols.build_chunk_head(model)
    last = first
    yield protocols.build_chunk(head, {"role": "assistant", "content": first[0]})
    async for piece in pieces:
        last = piece
        if piece[0]:
            yield protocols.build_chunk(head, {"content": piece[0]})
    yield protocols.build_chunk(head, {}, "stop" if last[1] else "length")
