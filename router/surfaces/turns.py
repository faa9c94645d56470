"""Turns: how much of the router's work on running streams fits into one turn of its event loop.

A new call is accepted once in a turn (grpc.aio asks for one at a time), so a turn in which every one of 1,000 streams
writes is a third of a second in which nobody gets in. What does not fit waits for the next turns, in order, and what
its engine makes meanwhile is merged.
"""

import asyncio
from collections import deque

_PER_TURN = 8  # parts of streams, of 50 to 100 us each


class Turns:
    """Of one event loop."""

    def __init__(self, per_turn: int = _PER_TURN) -> None:
        self._loop = asyncio.get_running_loop()
        self._per_turn = per_turn
        self._left = per_turn
        self._counting = False  # the next turn is awaited
        self._waiting: deque[asyncio.Future[None]] = deque()

    async def enter(self) -> None:
        """Returns at once while there is room in this turn, else in a later one."""
        if not self._counting:
            self._counting = True
            self._loop.call_soon(self._next)
        if self._left > 0 and not self._waiting:
            self._left -= 1
            return
        place: asyncio.Future[None] = self._loop.create_future()
        self._waiting.append(place)
        await place

    def _next(self) -> None:
        self._left = self._per_turn
        waiting = self._waiting
        while waiting and self._left > 0:
            place = waiting.popleft()
            if not place.done():  # cancelled with its stream
                place.set_result(None)
                self._left -= 1
        self._counting = bool(waiting) or self._left < self._per_turn
        if self._counting:
            self._loop.call_soon(self._next)
