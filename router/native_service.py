"""The native surface, uplion.inference.v1.InferenceService. Errors are raised; the interceptor translates them."""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import grpc.aio
from uplion.inference.v1 import chat_pb2, completion_pb2, embedding_pb2, inference_service_pb2_grpc, model_pb2
from uplion.inference.v1.sampling_pb2 import FINISH_REASON_STOP, TokenUsage

from common import telemetry
from common.deltas import Delta
from common.errors import Reason, UplionError
from common.identity import Identity
from router.answers import Answer
from router.dispatch.jobs import Job, Operation
from router.dispatch.records import Record
from router.dispatch.routing_table import RoutingTable
from router.front import Context, Front, Sink, caller, internal_error, write
from router.openai_frames import floats
from router.surfaces.native.parse import chat_job, completion_job, embedding_job

_PAGE = 100
_MAX_PAGE = 1000


class _Sink:
    """A Sink of typed messages."""

    def __init__(self, context: Context, record: Record) -> None:
        self._context = context
        self.record = record
        self.request_id = record.identity.request_id

    async def keep_alive(self) -> None:
        """HTTP/2 pings keep a native stream alive."""

    async def send(self, message: object) -> None:
        await write(self._context, message)


class _ChatSink(_Sink):
    async def deltas(self, deltas: Sequence[Delta]) -> None:
        messages = [
            chat_pb2.ChatDelta(index=delta.index, content=delta.text, finish_reason=delta.finish_reason)
            for delta in deltas
        ]
        await self.send(chat_pb2.ChatStreamResponse(request_id=self.request_id, deltas=messages))

    async def end(self, usage: TokenUsage) -> None:
        await self.send(
            chat_pb2.ChatStreamResponse(request_id=self.request_id, usage=usage, budget_cut=self.record.budget_cut)
        )


class _CompletionSink(_Sink):
    async def deltas(self, deltas: Sequence[Delta]) -> None:
        choices = [
            completion_pb2.CompletionChoice(index=delta.index, text=delta.text, finish_reason=delta.finish_reason)
            for delta in deltas
        ]
        await self.send(completion_pb2.CompletionStreamResponse(request_id=self.request_id, choices=choices))

    async def end(self, usage: TokenUsage) -> None:
        await self.send(
            completion_pb2.CompletionStreamResponse(
                request_id=self.request_id, usage=usage, budget_cut=self.record.budget_cut
            )
        )


class NativeService(inference_service_pb2_grpc.InferenceServiceServicer):
    """Typed chats, completions, embeddings and models."""

    def __init__(self, front: Front, models: RoutingTable) -> None:
        self._front = front
        self._models = models

    def register(self, server: grpc.aio.Server) -> None:
        inference_service_pb2_grpc.add_InferenceServiceServicer_to_server(self, server)

    async def Chat(self, request: chat_pb2.ChatRequest, context: Context) -> chat_pb2.ChatResponse:
        record, answer = await self._whole(Operation.CHAT, lambda identity: chat_job(request, identity), context)
        choices = [
            chat_pb2.ChatChoice(
                index=delta.index,
                message=chat_pb2.ChatMessage(role="assistant", content=delta.text),
                finish_reason=delta.finish_reason or FINISH_REASON_STOP,
            )
            for delta in answer.choices()
        ]
        return chat_pb2.ChatResponse(
            request_id=record.identity.request_id,
            model=record.model,
            choices=choices,
            usage=answer.usage,
            budget_cut=record.budget_cut,
        )

    # grpc.aio also takes a coroutine that writes; the generated types know generators only.
    async def ChatStream(  # type: ignore[override]
        self, request: chat_pb2.ChatStreamRequest, context: Context
    ) -> None:
        await self._stream(Operation.CHAT, lambda identity: chat_job(request, identity), context, _ChatSink)

    async def Completion(
        self, request: completion_pb2.CompletionRequest, context: Context
    ) -> completion_pb2.CompletionResponse:
        record, answer = await self._whole(
            Operation.COMPLETION, lambda identity: completion_job(request, identity), context
        )
        choices = [
            completion_pb2.CompletionChoice(
                index=delta.index, text=delta.text, finish_reason=delta.finish_reason or FINISH_REASON_STOP
            )
            for delta in answer.choices()
        ]
        return completion_pb2.CompletionResponse(
            request_id=record.identity.request_id,
            model=record.model,
            choices=choices,
            usage=answer.usage,
            budget_cut=record.budget_cut,
        )

    # grpc.aio also takes a coroutine that writes; the generated types know generators only.
    async def CompletionStream(  # type: ignore[override]
        self, request: completion_pb2.CompletionStreamRequest, context: Context
    ) -> None:
        await self._stream(
            Operation.COMPLETION, lambda identity: completion_job(request, identity), context, _CompletionSink
        )

    async def Embed(self, request: embedding_pb2.EmbedRequest, context: Context) -> embedding_pb2.EmbedResponse:
        record, answer = await self._whole(
            Operation.EMBEDDING, lambda identity: embedding_job(request, identity), context
        )
        vectors = [embedding_pb2.Embedding(index=index, values=floats(raw)) for index, raw in enumerate(answer.vectors)]
        return embedding_pb2.EmbedResponse(
            request_id=record.identity.request_id, model=record.model, embeddings=vectors, usage=answer.usage
        )

    async def ListModels(self, request: model_pb2.ListModelsRequest, context: Context) -> model_pb2.ListModelsResponse:
        caller(context)
        if request.page_size < 0:
            raise UplionError(Reason.INVALID_REQUEST, "'page_size' must not be negative.", param="page_size")
        size = min(request.page_size or _PAGE, _MAX_PAGE)
        routes = self._models.snapshot.routes
        # The token is the last name of the page before: pages stay right while models come and go.
        names = sorted(name for name in routes if name > request.page_token)
        response = model_pb2.ListModelsResponse(next_page_token=names[size - 1] if len(names) > size else "")
        for name in names[:size]:
            route = routes[name]
            model = response.models.add(name=name, context_tokens=route.context_tokens)
            model.create_time.FromSeconds(route.created)
        return response

    async def _whole(
        self, operation: Operation, make: Callable[[Identity], Job], context: Context
    ) -> tuple[Record, Answer]:
        with self._recorded(operation, context) as record:
            return record, await self._front.collect(make(record.identity), record, context)

    async def _stream(
        self,
        operation: Operation,
        make: Callable[[Identity], Job],
        context: Context,
        sink: Callable[[Context, Record], Sink],
    ) -> None:
        with self._recorded(operation, context) as record:
            record.stream = True
            job = make(record.identity)
            await self._front.relay(job, record, context, sink(context, record))

    @contextmanager
    def _recorded(self, operation: Operation, context: Context) -> Iterator[Record]:
        record = Record(caller(context), operation, "native")
        self._front.begin(record)
        outcome: UplionError | None = None
        try:
            with telemetry.span(f"router.{operation.value}"):
                yield record
        except UplionError as error:
            outcome = error
            raise
        except asyncio.CancelledError:
            outcome = UplionError(Reason.CANCELLED, "The client closed the connection.")
            raise
        except BaseException:
            outcome = internal_error()
            raise
        finally:
            self._front.end(record, outcome)
