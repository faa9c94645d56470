"""Sending without waiting, over a real NATS."""

import asyncio
from typing import Any

import nats.errors
import pytest
from nats.js.api import Header

from messaging import nats_protocol
from messaging.bus import connect_bus
from messaging.inbox import Inbox
from tests.kit.until import until

_WAIT_SECONDS = 60.0


async def test_what_is_not_urgent_leaves_by_itself_and_in_order(nats_url: str) -> None:
    async with connect_bus(nats_url, "test") as bus:
        heard = await bus.subscribe("wire.test.>")
        await bus.flush()
        bus.send("wire.test.soon", b"1", "wire.answers", {"a": "b c", "d": "e\r\nf: g"}, now=False)
        bus.send("wire.test.soon", b"2", now=False)
        first, second = [await heard.next_msg(timeout=_WAIT_SECONDS) for _ in range(2)]
        assert (first.data, first.reply, first.headers) == (b"1", "wire.answers", {"a": "b c", "d": "e f: g"})
        assert (second.data, second.reply, second.headers) == (b"2", "", None)
        bus.send("wire.test.soon", b"3", now=False)
        bus.send("wire.test.now", b"")
        subjects = [(await heard.next_msg(timeout=_WAIT_SECONDS)).subject for _ in range(2)]
        assert subjects == ["wire.test.soon", "wire.test.now"]


async def test_a_header_of_nats_py_goes_by_its_name_so_that_a_stream_knows_duplicates(nats_url: str) -> None:
    """As tickets are published; formatted, the name would be "Header.MSG_ID", which no server knows."""
    async with connect_bus(nats_url, "test") as bus:
        heard = await bus.subscribe("wire.test.header")
        await bus.flush()
        bus.send("wire.test.header", b"", "", {Header.MSG_ID: "r.1", Header.EXPECTED_STREAM: "S"})
        assert (await heard.next_msg(_WAIT_SECONDS)).headers == {"Nats-Msg-Id": "r.1", "Nats-Expected-Stream": "S"}


async def test_what_nobody_listens_for_comes_back_as_an_answer(nats_url: str) -> None:
    async with connect_bus(nats_url, "test") as bus, Inbox.open(bus) as inbox:
        answers: asyncio.Queue[bool] = asyncio.Queue()
        bus.send("nobody.is.here", b"?", inbox.expect(lambda m: answers.put_nowait(m.no_responders)))
        assert await asyncio.wait_for(answers.get(), _WAIT_SECONDS)


async def test_what_is_sent_while_nats_is_away_waits_for_it_as_far_as_there_is_room(start_server: Any) -> None:
    server = await asyncio.to_thread(start_server, "nats")
    async with connect_bus(server.url, "test") as bus:
        heard = await bus.subscribe("wire.away")
        await bus.flush()
        await server.kill()
        await until(lambda: not bus.connected, _WAIT_SECONDS)  # nats-py has no event for it
        bus.send("wire.away", b"kept", now=False)
        for _ in range(15):
            bus.send("wire.filler", bytes(1 << 19))
        with pytest.raises(nats.errors.OutboundBufferLimitError):
            bus.send("wire.filler", bytes(1 << 20))
        await server.start()
        assert (await heard.next_msg(timeout=_WAIT_SECONDS)).data == b"kept"
        client = bus._client
    with pytest.raises(nats.errors.ConnectionClosedError):
        nats_protocol.send(client, "wire.away", b"")
