"""The native surface, uplion.inference.v1.InferenceService. Errors are raised; the interceptor translates them."""

from collections.abc import Callable
from typing import Generic, NoReturn, TypeVar

import grpc.aio
from uplion.inference.v1 import chat_pb2, completion_pb2, embedding_pb2, inference_service_pb2_grpc, model_pb2

from common.errors import Reason, UplionError
from common.identity import Identity
from common.operations import OPERATIONS, Dialect
from router.dispatch.jobs import Job
from router.dispatch.records import Record
from router.dispatch.routing_table import RoutingTable
from router.surfaces.base import CallLifecycle, Context
from router.surfaces.native.parse import chat_job, completion_job, embedding_job
from router.surfaces.native.write import ChatSink, CompletionSink, chat_response, completion_response, embed_response
from router.surfaces.relay import Relay, Sink
from router.surfaces.response_buffers import WholeAnswer
from rpc.identity import caller

_PAGE = 100
_MAX_PAGE = 1000
_OPERATIONS = {operation.rpc_name: operation for operation in OPERATIONS if operation.dialect is Dialect.NATIVE}

MessageT = TypeVar("MessageT")
Parse = Callable[[Identity], Job]


class _Call:
    """A call that runs a model."""

    def __init__(self, parse: Parse, context: Context, relay: Relay) -> None:
        self._parse = parse
        self._context = context
        self._relay = relay

    async def refuse(self, error: UplionError) -> NoReturn:
        raise error


class _Whole(_Call, Generic[MessageT]):
    """One that is answered at once."""

    def __init__(
        self, parse: Parse, write: Callable[[Record, WholeAnswer], MessageT], context: Context, relay: Relay
    ) -> None:
        super().__init__(parse, context, relay)
        self._write = write

    async def answer(self, record: Record) -> MessageT:
        job = self._parse(record.identity)
        return self._write(record, await self._relay.collect(job, record, self._context))


class _Streamed(_Call):
    """One that is answered as the answer is made."""

    def __init__(self, parse: Parse, sink: Callable[[Context, Record], Sink], context: Context, relay: Relay) -> None:
        super().__init__(parse, context, relay)
        self._sink = sink

    async def answer(self, record: Record) -> None:
        record.stream = True
        job = self._parse(record.identity)
        await self._relay.stream(job, record, self._context, self._sink(self._context, record))


class NativeService(inference_service_pb2_grpc.InferenceServiceServicer):
    """Typed chats, completions, embeddings and models."""

    def __init__(self, lifecycle: CallLifecycle, relay: Relay, models: RoutingTable) -> None:
        self._lifecycle = lifecycle
        self._relay = relay
        self._models = models

    def register(self, server: grpc.aio.Server) -> None:
        inference_service_pb2_grpc.add_InferenceServiceServicer_to_server(self, server)

    async def Chat(self, request: chat_pb2.ChatRequest, context: Context) -> chat_pb2.ChatResponse:
        call = _Whole(lambda identity: chat_job(request, identity), chat_response, context, self._relay)
        return await self._lifecycle.serve(_OPERATIONS["Chat"], context, call)

    # grpc.aio also takes a coroutine that writes; the generated types know generators only.
    async def ChatStream(  # type: ignore[override]
        self, request: chat_pb2.ChatStreamRequest, context: Context
    ) -> None:
        call = _Streamed(lambda identity: chat_job(request, identity), ChatSink, context, self._relay)
        await self._lifecycle.serve(_OPERATIONS["ChatStream"], context, call)

    async def Completion(
        self, request: completion_pb2.CompletionRequest, context: Context
    ) -> completion_pb2.CompletionResponse:
        call = _Whole(lambda identity: completion_job(request, identity), completion_response, context, self._relay)
        return await self._lifecycle.serve(_OPERATIONS["Completion"], context, call)

    # grpc.aio also takes a coroutine that writes; the generated types know generators only.
    async def CompletionStream(  # type: ignore[override]
        self, request: completion_pb2.CompletionStreamRequest, context: Context
    ) -> None:
        call = _Streamed(lambda identity: completion_job(request, identity), CompletionSink, context, self._relay)
        await self._lifecycle.serve(_OPERATIONS["CompletionStream"], context, call)

    async def Embed(self, request: embedding_pb2.EmbedRequest, context: Context) -> embedding_pb2.EmbedResponse:
        call = _Whole(lambda identity: embedding_job(request, identity), embed_response, context, self._relay)
        return await self._lifecycle.serve(_OPERATIONS["Embed"], context, call)

    async def ListModels(self, request: model_pb2.ListModelsRequest, context: Context) -> model_pb2.ListModelsResponse:
        if request.page_size < 0:
            raise UplionError(Reason.INVALID_REQUEST, "'page_size' must not be negative.", param="page_size")
        size = min(request.page_size or _PAGE, _MAX_PAGE)
        routes = self._models.snapshot.shown_to(caller()).routes
        # The token is the last name of the page before: pages stay right while models come and go.
        names = sorted(name for name in routes if name > request.page_token)
        response = model_pb2.ListModelsResponse(next_page_token=names[size - 1] if len(names) > size else "")
        for name in names[:size]:
            route = routes[name]
            model = response.models.add(name=name, context_tokens=route.context_tokens)
            model.create_time.FromSeconds(route.created)
        return response
