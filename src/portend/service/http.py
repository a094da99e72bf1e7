"""The local HTTP interface of an agent: samples in and answers out (on the source), health and metrics (on all).

It asks nobody who they are, so it is on the loopback interface only, and refuses what a web page of another origin
could make a browser send. Whoever is slow, or wants too much, is refused, and others go on: there are times for headers
and bodies, numbers of connections and of bodies that come in, of which the oldest goes for the next, and a number of
samples that take long to decode.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Hashable
from importlib.metadata import version as package_version
from typing import Any, Final, Protocol

from aiohttp import web

from portend.address import Address, is_loopback
from portend.errors import DataError, DeploymentError
from portend.service.intake import SAMPLE_ID, Answer, Intake
from portend.service.metrics import Metrics

__all__ = ["answer_json", "openapi", "serve_http"]

_READ_S: Final = 30.0  # for a body
_HEADERS_S: Final = 10.0  # for the head of a request, and between two requests
_MOST_BODIES: Final = 32  # that come in at once
_MOST_CONNECTIONS: Final = 256  # beside those whose samples are in the book
_ORIGIN: Final = "Origin"
_STATUS: Final = {"sample": 422, "deadline": 504, "timeout": 504, "stopped": 503, "error": 500}


def answer_json(answer: Answer) -> dict[str, Any]:
    """Return an answer as people read it: ``confidence`` is 1 minus the score; ``exit`` counts partitions from 1."""
    common = {"id": answer.id, "latency_ms": round(1e3 * answer.latency_s, 3), "attempts": answer.attempts}
    if answer.failed:
        return common | {"failed": answer.failed, "reason": answer.reason}
    return common | {
        "label": answer.label,
        "confidence": round(1 - answer.score, 6),
        "exit": answer.exit_index + 1,
        "plan": answer.plan & 0xFF,
    }


def openapi() -> dict[str, Any]:
    """Return the description of the interface (OpenAPI 3.1)."""
    error = {"type": "object", "properties": {"error": {"type": "string"}}}

    def response(text: str, schema: dict[str, Any]) -> dict[str, Any]:
        return {"description": text, "content": {"application/json": {"schema": schema}}}

    number, text, whole = {"type": "number"}, {"type": "string"}, {"type": "integer"}
    answer = {
        "type": "object",
        "required": ["id", "label", "confidence", "exit", "latency_ms"],
        "properties": {
            "id": text,
            "label": whole | {"description": "Number of the class."},
            "confidence": number | {"description": "1 minus the score of the exit that answered; 1 is sure."},
            "exit": whole | {"description": "Partition at which the sample left, from 1 on."},
            "latency_ms": number | {"description": "From acceptance to answer."},
            "attempts": whole | {"description": "How often the sample was sent."},
            "plan": whole
            | {"description": "Place of the plan that gave the answer in its release; 0 is the wanted one."},
        },
    }
    failed = {"type": "object", "properties": {"id": text, "failed": text, "reason": text}}
    return {
        "openapi": "3.1.0",
        "info": {"title": "Portend agent", "version": package_version("portend")},
        "paths": {
            "/v1/samples": {
                "post": {
                    "summary": "Classify one sample.",
                    "parameters": [
                        {
                            "name": "id",
                            "in": "query",
                            "schema": text | {"pattern": f"^{SAMPLE_ID.pattern}$"},
                            "description": "Names the sample; the same id and bytes again give the same answer. A "
                            "sample that failed is tried again.",
                        }
                    ],
                    "requestBody": {
                        "required": True,
                        "content": {
                            kind: {"schema": {"type": "string", "format": "binary"}}
                            for kind in ("image/*", "audio/*", "application/octet-stream")
                        },
                    },
                    "responses": {
                        "200": response("The answer.", answer),
                        "400": response("There is no such id, or no bytes.", error),
                        "403": response("Called by another name than that of this machine, or by a web page.", error),
                        "408": response("The sample did not come in time.", error),
                        "409": response("Another sample has this id.", error),
                        "413": response("The sample is too large.", error),
                        "415": response("The body is compressed.", error),
                        "422": response("The bytes are no sample that the network takes.", failed),
                        "500": response("A tier could not run it.", failed),
                        "503": response(
                            "All places are taken (Retry-After says when to try again), or no source.", error
                        ),
                        "504": response("It was not answered in time.", failed),
                    },
                }
            },
            "/health": {
                "get": {
                    "summary": "How this agent does.",
                    "responses": {
                        "200": response("It can do its part.", {"type": "object"}),
                        "503": response(
                            "It runs nothing, or has no plan whose tiers are all there.", {"type": "object"}
                        ),
                    },
                }
            },
            "/metrics": {
                "get": {
                    "summary": "Metrics for Prometheus.",
                    "responses": {"200": {"description": "Text format.", "content": {"text/plain": {}}}},
                }
            },
            "/openapi.json": {
                "get": {"summary": "This document.", "responses": {"200": response("OpenAPI 3.1.", {"type": "object"})}}
            },
        },
    }


class Served(Protocol):
    """What the interface asks of an agent's source (``portend.service.source.Source``)."""

    intake: Intake
    metrics: Metrics
    stopped: bool

    def check(self) -> object: ...
    def is_crowded(self, encoded: bytes) -> bool: ...
    def offer(self, sample_id: str, encoded: bytes, to: Hashable, deliver: Callable[[Answer], None]) -> str: ...


@contextlib.asynccontextmanager
async def serve_http(source: Served, status: Callable[[], dict[str, Any]], host: str, port: int) -> AsyncIterator[None]:
    """Serve the interface on a loopback address within the context.

    Args:
        status: says how the agent does, as JSON values.

    Raises:
        DeploymentError: the address is in use.
    """
    doors = _Doors(source)
    app = web.Application(middlewares=[doors.busy, _local_only])
    app.add_routes(
        [
            web.post("/v1/samples", lambda request: _sample(source, doors, request)),
            web.get("/health", lambda request: _health(source, status(), request)),
            web.get("/metrics", lambda request: _metrics(source, request)),
            web.get("/openapi.json", _openapi),
        ]
    )
    runner = web.AppRunner(
        app, access_log=None, handle_signals=False, shutdown_timeout=2.0, keepalive_timeout=_HEADERS_S,
        lingering_time=2.0, auto_decompress=False,
    )  # fmt: skip
    await runner.setup()
    try:
        assert runner.server is not None
        doors.open(runner.server)
        try:
            server = await asyncio.get_running_loop().create_server(doors, host, port)
        except OSError as error:
            raise DeploymentError(f"{Address(host, port)} cannot be used ({error}); choose another --http") from None
        watch = asyncio.create_task(doors.watch())
        try:
            yield
        finally:
            watch.cancel()
            server.close()
    finally:
        await runner.cleanup()


class _Doors:
    """Who may take how long, and who has to go for others: connections, and bodies that come in."""

    def __init__(self, source: Served) -> None:
        self._source = source
        self._waiting: dict[web.RequestHandler, float] = {}  # connections that owe the head of a request, since
        self._bodies: dict[asyncio.Timeout, None] = {}

    def open(self, server: web.Server) -> None:
        """Say who serves connections."""
        self._server = server

    def __call__(self) -> web.RequestHandler:
        """Take a connection; beyond the most there may be, the one that has kept waiting longest goes."""
        limits = self._source.intake.limits
        if len(self._server.connections) >= _MOST_CONNECTIONS + limits.window + limits.waiting and self._waiting:
            self._hang_up(next(iter(self._waiting)))
        connection = self._server()
        self._waiting[connection] = time.monotonic()
        return connection

    def _hang_up(self, connection: web.RequestHandler) -> None:
        del self._waiting[connection]
        connection.force_close()

    async def watch(self) -> None:
        """Hang up on those that take too long for a request's head."""
        while True:
            await asyncio.sleep(1.0)
            late = time.monotonic() - _HEADERS_S
            for connection in [each for each, since in self._waiting.items() if since < late]:
                self._hang_up(connection)

    @web.middleware
    async def busy(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        """Note that a connection's request is being answered."""
        self._waiting.pop(request.protocol, None)
        try:
            return await handler(request)
        finally:
            if request.transport is not None:
                self._waiting[request.protocol] = time.monotonic()

    @contextlib.asynccontextmanager
    async def body(self) -> AsyncIterator[None]:
        """Give a body its time within the context; where too many come in, the oldest has none left (TimeoutError)."""
        if len(self._bodies) >= _MOST_BODIES:
            oldest = next(iter(self._bodies))
            del self._bodies[oldest]
            if not oldest.expired():
                oldest.reschedule(asyncio.get_running_loop().time())
        async with asyncio.timeout(_READ_S) as patience:
            self._bodies[patience] = None
            try:
                yield
            finally:
                self._bodies.pop(patience, None)


@web.middleware
async def _local_only(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    """Refuse what a page of another site could make a browser send here."""
    host = request.host.rpartition(":")[0] if request.host.rpartition(":")[2].isdecimal() else request.host
    if _ORIGIN in request.headers or not is_loopback(host):
        return _error(403, "only programs of this machine are served; call it by 127.0.0.1, without an Origin")
    return await handler(request)


def _error(status: int, message: str, **headers: str) -> web.Response:
    return web.json_response({"error": message}, status=status, headers=headers)


async def _sample(source: Served, doors: _Doors, request: web.Request) -> web.Response:
    try:
        source.check()
    except DeploymentError as error:
        return _error(503, str(error))
    most = source.intake.limits.sample_bytes
    if request.headers.get("Content-Encoding", "identity").lower() != "identity":
        return _error(
            415, "a sample is sent as it is, without a Content-Encoding; it may be a compressed format itself"
        )
    if request.content_length is not None and request.content_length > most:
        return _error(413, f"a sample has at most {most} bytes, but this one has {request.content_length}")
    if source.intake.full:
        source.metrics.refused.inc()
        return _full()
    try:
        async with doors.body():
            body = await _body(request, most)
    except TimeoutError:
        return _error(408, f"the sample did not come within {_READ_S:g} s, or others came meanwhile")
    except ValueError as error:
        return _error(413, str(error))
    answered: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()

    def deliver(answer: Answer) -> None:
        if not answered.done():
            answered.set_result(answer)

    sample = request.query.get("id", uuid.uuid4().hex)
    try:
        source.check()
        if source.is_crowded(body):
            source.metrics.refused.inc()
            return _full()
        reception = source.offer(sample, body, answered, deliver)
    except DataError as error:
        return _error(400, str(error))
    except DeploymentError as error:
        return _error(503, str(error))
    if reception == "other":
        return _error(409, f"another sample has the id {sample!r} already; give this one its own")
    if reception == "full":
        return _full()
    try:
        answer = await answered
    finally:
        source.intake.forget(sample, answered)
    return web.json_response(answer_json(answer), status=_STATUS[answer.failed] if answer.failed else 200)


def _full() -> web.Response:
    return _error(503, "all places are taken; try again", **{"Retry-After": "1"})


async def _body(request: web.Request, most: int) -> bytes:
    """The body, of which no more than ``most`` bytes are ever held; ValueError if it is longer."""
    parts = bytearray()
    async for part in request.content.iter_chunked(1 << 16):
        parts += part
        if len(parts) > most:
            raise ValueError(f"a sample has at most {most} bytes, but this one has more")
    return bytes(parts)


async def _health(source: Served, status: dict[str, Any], _: web.Request) -> web.Response:
    fine = status["plan"] is not None if status["source"] else bool(status["versions"])
    return web.json_response(status, status=200 if fine and not source.stopped else 503)


async def _metrics(source: Served, _: web.Request) -> web.Response:
    return web.Response(body=source.metrics.page(), content_type="text/plain", charset="utf-8")


async def _openapi(_: web.Request) -> web.Response:
    return web.Response(text=json.dumps(openapi()), content_type="application/json")
