"""What was reserved for a request that no router announces is given back; what one announces, and what may have been
announced, is kept."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import nats
import pytest

from common import names
from ledger.limits import Limit
from tests.integration.authz.rules import at_once, tokens
from tests.kit.until import until


@asynccontextmanager
async def router(nats_url: str, reservations: Callable[[], list[str]]) -> AsyncIterator[None]:
    """Announces these again and again, as a router that lives."""
    connection = await nats.connect(nats_url)

    async def announce() -> None:
        while True:
            await connection.publish(names.SUBJECT_ARRIVED, " ".join(reservations()).encode())
            await asyncio.sleep(0.2)

    task = asyncio.create_task(announce())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])
        await connection.close()


@pytest.mark.parametrize("limit", [at_once(2), tokens(2_000)])
async def test_what_no_router_announces_is_given_back_and_what_one_announces_is_kept(
    authz: Any, nats_url: str, limit: Limit
) -> None:
    await authz.add_account()
    lost, kept = [await authz.add_key(limit) for _ in range(2)]

    async def ask(key: Any) -> Any:
        return await authz.check(key.text, size=2700, facts={"max_tokens": 100.0})

    arrived: list[str] = []
    async with router(nats_url, lambda: arrived):
        answers = [await ask(key) for key in (kept, kept, lost, lost)]
        assert [each.status for each in answers] == [200] * 4
        arrived += [each.headers["x-uplion-reservation"] for each in answers[:2]]
        assert [(await ask(key)).status for key in (kept, lost)] == [429, 429]
        await authz.until_status(lost.text, 200)
        assert (await ask(kept)).status == 429


async def test_the_tokens_of_its_minute_come_back_as_well(authz: Any, nats_url: str) -> None:
    await authz.add_account()
    key = await authz.add_key(tokens(1_000, "minute"))
    asked: dict[str, Any] = {"size": 2700, "facts": {"max_tokens": 100.0}}
    async with router(nats_url, list):
        assert [(await authz.check(key.text, **asked)).status for _ in range(2)] == [200, 429]

        async def admitted() -> bool:
            return bool((await authz.check(key.text, **asked)).status == 200)

        await until(admitted, 30.0)  # by itself after 61 s
