"""The OpenAI surface: HttpBody in, HttpBody out, as raw bytes."""

import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import TypeAlias, TypeVar

import grpc
import grpc.aio
from google.api.httpbody_pb2 import HttpBody
from google.protobuf.message import DecodeError
from uplion.inference.v1.sampling_pb2 import TokenUsage
from uplion.openai.v1.openai_service_pb2 import GetModelRequest

from common.deltas import Delta
from common.errors import Reason, UplionError
from common.operations import OPERATIONS, Dialect, Operation
from router.dispatch.records import Record
from router.dispatch.routing_table import RoutingTable
from router.settings import RouterSettings
from router.surfaces.base import CallLifecycle, Context, write
from router.surfaces.http_body import CONTENT_STREAM, answer_error, answer_json, flush, http_body
from router.surfaces.openai import write as frames
from router.surfaces.openai.parse import PARSERS, OpenAIRequest
from router.surfaces.relay import Relay
from rpc.identity import caller

logger = logging.getLogger(__name__)

SERVICE = "uplion.openai.v1.OpenAIService"

MessageT = TypeVar("MessageT", HttpBody, GetModelRequest)
Handler: TypeAlias = "Callable[[Operation, bytes, Context], Awaitable[None]]"


class _Stream:
    """A Sink of server-sent events."""

    def __init__(self, context: Context, record: Record, written: frames.StreamFrames) -> None:
        self._context = context
        self._record = record
        self._frames = written
        self.begun = False

    async def deltas(self, deltas: Sequence[Delta]) -> None:
        await self.write(self._frames.deltas(deltas, self._record.budget_cut))

    async def keep_alive(self) -> None:
        await self.write(frames.KEEP_ALIVE)

    async def end(self, usage: TokenUsage) -> None:
        await self.write(self._frames.end(usage))

    async def write(self, data: bytes) -> None:
        content_type = "" if self.begun else CONTENT_STREAM
        self.begun = True
        await write(self._context, http_body(data, content_type))


class _Inference:
    """A call that runs a model."""

    def __init__(self, operation: Operation, data: bytes, context: Context, relay: Relay, request_bytes: int) -> None:
        self._operation = operation
        self._data = data
        self._context = context
        self._relay = relay
        self._request_bytes = request_bytes
        self._record: Record | None = None
        self._stream: _Stream | None = None

    async def answer(self, record: Record) -> None:
        self._record = record
        if len(self._data) > self._request_bytes:
            raise UplionError(Reason.PAYLOAD_TOO_LARGE, "The request body is too large.")
        parse = PARSERS[self._operation.rpc_name]
        request = parse(_parsed(HttpBody, self._data).data, record.identity)
        record.stream = request.stream
        if request.stream:
            self._stream = _Stream(self._context, record, _stream_frames(request))
            await self._relay.stream(request.job, record, self._context, self._stream)
        else:
            answer = await self._relay.collect(request.job, record, self._context)
            body = frames.whole_answer(request, answer, int(time.time()), record.budget_cut)
            await answer_json(self._context, body)
            await flush(self._context)  # what is accounted for as delivered must not die with this process

    async def refuse(self, error: UplionError) -> None:
        if error.reason is Reason.CANCELLED:
            return
        try:
            if self._stream is not None and self._stream.begun:
                await self._stream.write(frames.error_frame(error))
            else:
                # What a worker made until its time was over is billed: no SDK is to try that again unasked.
                record = self._record
                worked = record is not None and record.attempt.offered_at is not None
                timed_out = error.reason is Reason.DEADLINE_EXCEEDED and worked
                await answer_error(self._context, self._operation, error, retry=not timed_out)
        except UplionError as gone:  # the client left without waiting for the bad news
            logger.debug("error could not be delivered", extra={"problem": gone.message})


class OpenAIService:
    """Serves the operations of the catalogue that speak OpenAI's dialect."""

    def __init__(self, lifecycle: CallLifecycle, relay: Relay, models: RoutingTable, settings: RouterSettings) -> None:
        self._lifecycle = lifecycle
        self._relay = relay
        self._models = models
        self._settings = settings

    def register(self, server: grpc.aio.Server) -> None:
        """Adds the service with identity serialisers: a frame is never wrapped in a message object."""
        reading: dict[str, Handler] = {"ListModels": self._list_models, "GetModel": self._get_model}
        methods: dict[str, grpc.RpcMethodHandler[bytes, bytes]] = {}
        for operation in OPERATIONS:
            if operation.dialect is Dialect.OPENAI:
                name = operation.rpc_name
                handler = partial(self._infer if operation.reserves else reading[name], operation)
                methods[name] = grpc.unary_stream_rpc_method_handler(handler)
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, methods),))

    async def _infer(self, operation: Operation, data: bytes, context: Context) -> None:
        call = _Inference(operation, data, context, self._relay, self._settings.request_bytes)
        await self._lifecycle.serve(operation, context, call)

    async def _list_models(self, operation: Operation, data: bytes, context: Context) -> None:
        try:
            shown = self._models.snapshot.shown_to(caller())
            body = frames.model_list_json(sorted((route.name, route.created) for route in shown.routes.values()))
            await answer_json(context, body)
        except UplionError as error:
            await answer_error(context, operation, error)

    async def _get_model(self, operation: Operation, data: bytes, context: Context) -> None:
        try:
            route = self._models.snapshot.shown_to(caller()).route(_parsed(GetModelRequest, data).model)
            body = frames.model_json(route.name, route.created)
            await answer_json(context, body)
        except UplionError as error:
            await answer_error(context, operation, error)


def _stream_frames(request: OpenAIRequest) -> frames.StreamFrames:
    job = request.job
    return frames.StreamFrames(
        job.capability,
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
