"""Answers under construction: what a worker said so far, whole or not yet written to a slower reader."""

import asyncio
from typing import Final

from uplion.dispatch.v1.run_pb2 import RunEvent
from uplion.inference.v1.sampling_pb2 import FINISH_REASON_UNSPECIFIED, FinishReason, TokenUsage

from common.errors import UplionError

Piece = tuple[int, str, FinishReason.ValueType]  # choice, text, why it ended (unspecified: it has not)

_OPEN: Final = FINISH_REASON_UNSPECIFIED


class Answer:
    """Everything an answer consists of, collected until it is complete."""

    __slots__ = ("_ends", "_texts", "usage", "vectors")

    def __init__(self, choices: int) -> None:
        self._texts: list[list[str]] = [[] for _ in range(choices)]
        self._ends: list[FinishReason.ValueType] = [_OPEN] * choices
        self.vectors: list[bytes] = []
        self.usage = TokenUsage()

    def add(self, event: RunEvent) -> None:
        for delta in event.deltas:
            if delta.index >= len(self._texts):
                continue  # a worker that invents choices is not worth failing a request for
            if delta.text:
                self._texts[delta.index].append(delta.text)
            if delta.finish_reason:
                self._ends[delta.index] = delta.finish_reason
        if event.vectors:
            self.vectors += [vector.values for vector in event.vectors]
        if event.HasField("usage"):
            self.usage = event.usage

    def pieces(self) -> list[Piece]:
        """Every choice, whole."""
        return [(index, "".join(texts), self._ends[index]) for index, texts in enumerate(self._texts)]


class Unwritten:
    """What the engine made and the reader has not been sent: pieces of a choice are merged, never queued.

    One task puts, another takes; the putter waits once more than `limit` characters are unwritten, so a stream never
    holds more than that however slow its reader is.
    """

    def __init__(self, choices: int, limit: int) -> None:
        self._loop = asyncio.get_running_loop()
        self._choices = choices
        self._limit = limit
        self._size = 0
        self._texts: dict[int, list[str]] = {}
        self._ends: dict[int, FinishReason.ValueType] = {}
        self._reader: asyncio.Future[None] | None = None
        self._putter: asyncio.Future[None] | None = None
        self.usage: TokenUsage | None = None
        self.error: UplionError | None = None
        self.ended = False

    def put(self, event: RunEvent) -> None:
        for delta in event.deltas:
            index = delta.index
            if index >= self._choices:
                continue
            text = delta.text
            self._texts.setdefault(index, []).append(text)
            self._size += len(text)
            if delta.finish_reason:
                self._ends[index] = delta.finish_reason
        if event.HasField("usage"):
            self.usage = event.usage
        self.wake()

    def end(self, error: UplionError | None = None) -> None:
        """Nothing follows."""
        self.error = error
        self.ended = True
        self.wake()

    async def room(self) -> None:
        """Waits until the reader has caught up far enough."""
        while self._size > self._limit:
            self._putter = self._loop.create_future()
            await self._putter

    @property
    def is_full(self) -> bool:
        return self._size > self._limit

    def wake(self) -> None:
        """Lets the reader look: something was put, it all ended, or its clock ticked."""
        reader = self._reader
        if reader is not None and not reader.done():
            reader.set_result(None)

    async def wait(self) -> None:
        """Waits for the next wake, unless there is something to take already."""
        if self._texts or self.ended:
            return
        self._reader = self._loop.create_future()
        await self._reader

    def take(self) -> list[Piece]:
        """All that is unwritten, at most one piece for each choice."""
        if not self._texts:
            return []
        taken = [
            (index, texts[0] if len(texts) == 1 else "".join(texts), self._ends.get(index, _OPEN))
            for index, texts in self._texts.items()
        ]
        self._texts = {}
        self._size = 0
        putter = self._putter
        if putter is not None and not putter.done():
            putter.set_result(None)
        return taken
