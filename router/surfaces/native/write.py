"""Native answers: typed messages, whole or as a stream."""

from collections.abc import Sequence

from uplion.inference.v1 import chat_pb2, completion_pb2, embedding_pb2
from uplion.inference.v1.sampling_pb2 import FINISH_REASON_STOP, TokenUsage

from common.deltas import Delta
from router.dispatch.records import Record
from router.surfaces.base import Context, write
from router.surfaces.response_buffers import WholeAnswer, floats


class _Sink:
    """A Sink of typed messages."""

    def __init__(self, context: Context, record: Record) -> None:
        self._context = context
        self._record = record
        self._request_id = record.identity.request_id

    async def keep_alive(self) -> None:
        """HTTP/2 pings keep a native stream alive."""

    async def _send(self, message: object) -> None:
        await write(self._context, message)


class ChatSink(_Sink):
    """Writes a chat as it is made."""

    async def deltas(self, deltas: Sequence[Delta]) -> None:
        messages = [
            chat_pb2.ChatDelta(index=delta.index, content=delta.text, finish_reason=delta.finish_reason)
            for delta in deltas
        ]
        await self._send(chat_pb2.ChatStreamResponse(request_id=self._request_id, deltas=messages))

    async def end(self, usage: TokenUsage) -> None:
        cut = self._record.budget_cut
        await self._send(chat_pb2.ChatStreamResponse(request_id=self._request_id, usage=usage, budget_cut=cut))


class CompletionSink(_Sink):
    """Writes a completion as it is made."""

    async def deltas(self, deltas: Sequence[Delta]) -> None:
        choices = [
            completion_pb2.CompletionChoice(index=delta.index, text=delta.text, finish_reason=delta.finish_reason)
            for delta in deltas
        ]
        await self._send(completion_pb2.CompletionStreamResponse(request_id=self._request_id, choices=choices))

    async def end(self, usage: TokenUsage) -> None:
        cut = self._record.budget_cut
        await self._send(
            completion_pb2.CompletionStreamResponse(request_id=self._request_id, usage=usage, budget_cut=cut)
        )


def chat_response(record: Record, answer: WholeAnswer) -> chat_pb2.ChatResponse:
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


def completion_response(record: Record, answer: WholeAnswer) -> completion_pb2.CompletionResponse:
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


def embed_response(record: Record, answer: WholeAnswer) -> embedding_pb2.EmbedResponse:
    vectors = [embedding_pb2.Embedding(index=index, values=floats(raw)) for index, raw in enumerate(answer.vectors)]
    return embedding_pb2.EmbedResponse(
        request_id=record.identity.request_id, model=record.model, embeddings=vectors, usage=answer.usage
    )
