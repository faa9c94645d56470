"""The output of one request: what its engine generated and its reader has not taken, and the counts of all of it."""

import asyncio
import time

from uplion.inference.v1.sampling_pb2 import FINISH_REASON_UNSPECIFIED, FinishReason

from common.deltas import Delta, Deltas


class Output:
    """Passes a request's deltas from its engine to one reader; deltas that the reader has not taken are merged.

    The engine calls `begin`, `add` and `end` (or `fail`) on the event loop, once for each step; the reader awaits
    `take`. The memory that waiting deltas use is bounded by the request's token limit.
    """

    __slots__ = (
        "_changed",
        "_deltas",
        "_ended",
        "cached_tokens",
        "compute_seconds",
        "ended",
        "error",
        "finish_reason",
        "first_token_seconds",
        "input_tokens",
        "output_tokens",
    )

    def __init__(self) -> None:
        self._deltas = Deltas()
        self._changed: asyncio.Future[None] | None = None
        self._ended: asyncio.Future[None] | None = None
        self.first_token_seconds = 0.0  # monotonic; 0: none yet
        self.input_tokens = 0
        self.cached_tokens = 0
        self.output_tokens = 0
        self.compute_seconds: float | None = None  # this request's share of the engine's time; None: not known
        self.finish_reason: FinishReason.ValueType = FINISH_REASON_UNSPECIFIED  # of the first choice
        self.ended = False
        self.error: Exception | None = None

    def begin(self, input_tokens: int, cached_tokens: int = 0) -> None:
        """Sets the counts of the prompt; a later call may correct them."""
        self.input_tokens, self.cached_tokens = input_tokens, cached_tokens

    def add(self, delta: Delta) -> None:
        """Takes a delta over. Its text is exactly that of its token ids, except where a stop text ended it."""
        self.output_tokens += len(delta.token_ids)
        if not self.first_token_seconds:
            self.first_token_seconds = time.monotonic()
        if delta.finish_reason and delta.index == 0:
            self.finish_reason = delta.finish_reason
        self._deltas.add(delta)
        self._wake()

    def end(self) -> None:
        """Every choice has its finish reason."""
        self.ended = True
        self._wake()
        _resolve(self._ended)

    def fail(self, error: Exception) -> None:
        """The engine cannot complete this request. Ignored after the end."""
        if not self.ended:
            self.error = error
            self.end()

    async def take(self) -> list[Delta]:
        """What is new since the last call, at most one delta for each choice; an empty list only after the end.

        Raises the error that the engine failed with.
        """
        while not self._deltas and not self.ended:
            self._changed = asyncio.get_running_loop().create_future()
            await self._changed
        if self._deltas:
            return self._deltas.take()
        if self.error is not None:
            raise self.error
        return []

    async def ended_within(self, seconds: float | None) -> None:
        """Waits for the end, but no longer than this; None: as long as it takes."""
        if self.ended:
            return
        loop = asyncio.get_running_loop()
        self._ended = loop.create_future()
        timer = None if seconds is None else loop.call_later(seconds, _resolve, self._ended)
        try:
            await self._ended
        finally:
            if timer is not None:
                timer.cancel()

    @property
    def drained(self) -> bool:
        """It ended without an error, and the reader has taken all of it."""
        return self.ended and self.error is None and not self._deltas

    def _wake(self) -> None:
        _resolve(self._changed)


def _resolve(future: asyncio.Future[None] | None) -> None:
    if future is not None and not future.done():
        future.set_result(None)
