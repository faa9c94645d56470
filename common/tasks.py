"""Tasks that end when they are told to."""

import asyncio


def not_cancelled() -> bool:
    """For the head of a loop that runs until it is cancelled: True, or CancelledError if somebody swallowed that.

    asyncio.wait_for of Python 3.11 does when a cancellation meets the result it waits for (python/cpython#86296), and
    the clients of NATS and Redis use it: a loop that merely goes on would never end.
    """
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError
    return True


async def sleep_unless_cancelled(seconds: float) -> None:
    """The long sleep of such a loop after its work, which may have swallowed the cancellation: none if it did."""
    not_cancelled()
    await asyncio.sleep(seconds)
