"""Long work in short pieces: authz and router may share this event loop, and must not wait for a whole batch."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import TypeVar

T = TypeVar("T")
_ITEMS = 250  # 2 to 5 ms of work


async def slices(items: Sequence[T]) -> AsyncIterator[Sequence[T]]:
    """The items in order, a few at a time; whatever else is ready runs in between."""
    for start in range(0, len(items), _ITEMS):
        yield items[start : start + _ITEMS]
        await asyncio.sleep(0)
