"""The OpenAI surface: HttpBody in, HttpBody out, as raw bytes."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeAlias, TypeVar

import grpc
import grpc.aio
from google.api.httpbody_pb2 import HttpBody
from google.protobuf.message import DecodeError
from uplion.inference.v1.sampling_pb2 import TokenUsage
from uplion.openai.v1.openai_service_pb2 import GetModelRequest

from common import names, telemetry
from common.deltas import Delta
from common.error_dialects import error_body, error_headers
from common.errors import Reason, UplionError
from common.identity import Identity
from common.operations import Dialect
from router import openai_frames as frames
from router.dispatch.jobs import Operation
from router.dispatch.records import Record
from router.dispatch.routing_table import RoutingTable
from router.front import Context, Front, caller, internal_error, write
from router.settings import RouterSettings
from router.surfaces.openai.parse import OpenAIRequest, parse_chat, parse_completion, parse_embedding

logger = logging.getLogger(__name__)

SERVICE = "uplion.openai.v1.OpenAIService"

MessageT = TypeVar("MessageT", HttpBody, GetModelRequest)
Parse = Callable[[bytes, Identity], OpenAIRequest]
Handler: TypeAlias = "Callable[[bytes, Context], Awaitable[None]]"


class _Stream:
    """A Sink of server-sent events."""

    def __init__(self, context: Context, record: Record, written: frames.StreamFrames) -> None:
        self._context = context
        self._record = record
        self._frames = written
        self.begun = False

    async def deltas(self, deltas: Sequence[Delta]) -> None:
        await self._write(self._frames.deltas(deltas, self._record.budget_cut))

    async def keep_alive(self) -> None:
        await self._write(frames.KEEP_ALIVE)

    async def end(self, usage: TokenUsage) -> None:
        await self._write(self._frames.end(usage))

    async def fail(self, error: UplionError) -> None:
        await self._write(frames.error_frame(error))

    async def _write(self, data: bytes) -> None:
        content_type = "" if self.begun else frames.CONTENT_STREAM
        self.begun = True
        await write(self._context, frames.http_body(data, content_type))


class OpenAIService:
    """POST /v1/chat/completions, /v1/completions, /v1/embeddings; GET /v1/models and /v1/models/{id}."""

    def __init__(self, front: Front, models: RoutingTable, settings: RouterSettings) -> None:
        self._front = front
        self._models = models
        self._settings = settings

    def register(self, server: grpc.aio.Server) -> None:
        """Adds the service with identity serialisers: a frame is never wrapped in a message object."""
        handlers: dict[str, Handler] = {
            "CreateChatCompletion": self.create_chat_completion,
            "CreateCompletion": self.create_completion,
            "CreateEmbedding": self.create_embedding,
            "ListModels": self.list_models,
            "GetModel": self.get_model,
        }
        methods: dict[str, grpc.RpcMethodHandler[bytes, bytes]] = {
            name: grpc.unary_stream_rpc_method_handler(handler) for name, handler in handlers.items()
        }
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, methods),))

    async def create_chat_completion(self, data: bytes, context: Context) -> None:
        await self._infer(Operation.CHAT, parse_chat, data, context)

    async def create_completion(self, data: bytes, context: Context) -> None:
        await self._infer(Operation.COMPLETION, parse_completion, data, context)

    async def create_embedding(self, data: bytes, context: Context) -> None:
        await self._infer(Operation.EMBEDDING, parse_embedding, data, context)

    async def list_models(self, data: bytes, context: Context) -> None:
        try:
            caller(context)
            routes = self._models.snapshot.routes.values()
            body = frames.model_list_json(sorted((route.name, route.created) for route in routes))
            await write(context, frames.http_body(body, frames.CONTENT_JSON))
        except UplionError as error:
            await _answer_error(context, error)

    async def get_model(self, data: bytes, context: Context) -> None:
        try:
            caller(context)
            route = self._models.snapshot.route(_parsed(GetModelRequest, data).model)
            body = frames.model_json(route.name, route.created)
            await write(context, frames.http_body(body, frames.CONTENT_JSON))
        except UplionError as error:
            await _answer_error(context, error)

    async def _infer(self, operation: Operation, parse: Parse, data: bytes, context: Context) -> None:
        try:
            identity = caller(context)
        except UplionError as error:
            await _answer_error(context, error)
            return
        record = Record(identity, operation, "openai")
        self._front.begin(record)
        outcome: UplionError | None = None
        try:
            with telemetry.span(f"router.{operation.value}"):
                outcome = await self._answer(parse, data, context, record)
        except asyncio.CancelledError:
            outcome = UplionError(Reason.CANCELLED, "The client closed the connection.")
            raise
        finally:
            self._front.end(record, outcome)

    async def _answer(self, parse: Parse, data: bytes, context: Context, record: Record) -> UplionError | None:
        """Answers the call; returns what it was refused or failed with, once the client knows."""
        stream: _Stream | None = None
        try:
            if len(data) > self._settings.request_bytes:
                raise UplionError(Reason.PAYLOAD_TOO_LARGE, "The request body is too large.")
            request = parse(_parsed(HttpBody, data).data, record.identity)
            record.stream = request.stream
            if request.stream:
                stream = _Stream(context, record, _stream_frames(request))
                await self._front.relay(request.job, record, context, stream)
            else:
                await self._answer_whole(request, record, context)
        except UplionError as problem:
            error = problem
        except Exception:  # the RPC boundary: this surface answers even our own bugs in OpenAI's form
            logger.exception("request failed")
            error = internal_error()
        else:
            return None
        if error.reason is not Reason.CANCELLED:
            try:
                if stream is not None and stream.begun:
                    await stream.fail(error)
                else:
                    # What a worker made until its time was over is billed: no SDK is to try that again unasked.
                    timed_out = error.reason is Reason.DEADLINE_EXCEEDED and record.attempt.offered_at is not None
                    await _answer_error(context, error, retry=not timed_out)
            except UplionError as gone:  # the client left without waiting for the bad news
                logger.debug("error could not be delivered", extra={"problem": gone.message})
        return error

    async def _answer_whole(self, request: OpenAIRequest, record: Record, context: Context) -> None:
        job = request.job
        answer = await self._front.collect(job, record, context)
        if job.operation is Operation.EMBEDDING:
            body = frames.embedding_list(job.model, answer, base64=request.base64)
        else:
            identity = job.identity
            body = frames.whole_generation(
                job.operation,
                identity.request_id,
                job.model,
                identity.tier,
                int(time.time()),
                answer,
                record.budget_cut,
            )
        await write(context, frames.http_body(body, frames.CONTENT_JSON))


def _stream_frames(request: OpenAIRequest) -> frames.StreamFrames:
    job = request.job
    return frames.StreamFrames(
        job.operation,
        job.identity.request_id,
        job.model,
        job.identity.tier,
        int(time.time()),
        choices=job.choices,
        include_usage=request.include_usage,
    )


def _parsed(kind: type[MessageT], data: bytes) -> MessageT:
    try:
        return kind.FromString(data)
    except DecodeError:
        raise UplionError(Reason.INVALID_REQUEST, "The request is not a valid message.") from None


async def _answer_error(context: Context, error: UplionError, *, retry: bool = True) -> None:
    """A non-200 answer: the edge makes the header the HTTP status, the body is OpenAI's error object."""
    headers = {names.HEADER_STATUS: str(error.reason.http_status), **error_headers(error)}
    if not retry:
        headers["x-should-retry"] = "false"
    await context.send_initial_metadata(tuple(headers.items()))
    await write(context, frames.http_body(error_body(Dialect.OPENAI, error, ""), frames.CONTENT_JSON))
