"""Answers that are not complete yet: collected whole, or buffered until a slower client has been written to."""

import asyncio
from array import array

from uplion.inference.v1.sampling_pb2 import TokenUsage

from common.deltas import Delta, Deltas
from common.errors import UplionError
from router.dispatch.runs import AnswerEvent


class WholeAnswer:
    """Everything an answer consists of, collected until it is complete."""

    __slots__ = ("_choices", "_deltas", "usage", "vectors")

    def __init__(self, choices: int) -> None:
        self._choices = choices
        self._deltas = Deltas()
        for index in range(choices):
            self._deltas.add(Delta(index, [], []))
        self.vectors: list[bytes] = []
        self.usage = TokenUsage()

    def add(self, event: AnswerEvent) -> None:
        for delta in event.deltas:
            if delta.index < self._choices:  # a worker that invents choices is not worth failing a request for
                self._deltas.add(delta)
        self.vectors += event.vectors
        if event.usage is not None:
            self.usage = event.usage

    def choices(self) -> list[Delta]:
        """Every choice, whole, those without any event too."""
        choices = self._deltas.take()
        for delta in choices:
            self._deltas.add(delta)
        return choices


class StreamBuffer:
    """What the engine made and the reader has not been sent: deltas of a choice are merged, never queued.

    One task puts, another takes; the putter waits once more than `limit` characters are unwritten, so a stream never
    holds more than that however slow its reader is.
    """

    def __init__(self, choices: int, limit: int) -> None:
        self._loop = asyncio.get_running_loop()
        self._choices = choices
        self._limit = limit
        self._deltas = Deltas()
        self._reader: asyncio.Future[None] | None = None
        self._putter: asyncio.Future[None] | None = None
        self.usage: TokenUsage | None = None
        self.error: UplionError | None = None
        self.ended = False

    def put(self, event: AnswerEvent) -> None:
        for delta in event.deltas:
            if delta.index < self._choices:
                self._deltas.add(delta)
        if event.usage is not None:
            self.usage = event.usage
        self.wake()

    def end(self, error: UplionError | None = None) -> None:
        """Nothing follows."""
        self.error = error
        self.ended = True
        self.wake()

    async def room(self) -> None:
        """Waits until the reader has caught up far enough."""
        while self._deltas.size > self._limit:
            self._putter = self._loop.create_future()
            await self._putter

    @property
    def is_full(self) -> bool:
        return self._deltas.size > self._limit

    def wake(self) -> None:
        """Lets the reader look: something was put, it all ended, or its clock ticked."""
        reader = self._reader
        if reader is not None and not reader.done():
            reader.set_result(None)

    async def wait(self) -> None:
        """Waits for the next wake, unless there is something to take already."""
        if self._deltas or self.ended:
            return
        self._reader = self._loop.create_future()
        await self._reader

    def take(self) -> list[Delta]:
        """All that is unwritten, at most one delta for each choice."""
        taken = self._deltas.take()
        putter = self._putter
        if putter is not None and not putter.done():
            putter.set_result(None)
        return taken


def floats(raw: bytes) -> list[float]:
    """Little-endian float32 values, as workers send vectors (every platform we run on is little-endian)."""
    return array("f", raw).tolist()
