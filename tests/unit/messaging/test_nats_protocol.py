"""Our reading end against nats-py's own parser: the same bytes, however cut, say the same."""

import asyncio
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from nats.errors import ProtocolError
from nats.protocol.parser import Parser

from messaging.nats_protocol import Wire, new_client
from messaging.pull import Message

STATUS = b"NATS/1.0 408 Request Timeout\r\nNats-Pending-Messages: 3\r\nNats-Pending-Bytes: 0\r\n\r\n"


class Heard:
    """A client that writes down what its parser tells it."""

    def __init__(self):
        self.told = []

    async def _process_msg(self, sid, subject, reply, payload, header):
        self.told.append(("message", sid, subject, reply, payload, header or b""))

    async def _process_ping(self):
        self.told.append("ping")

    async def _process_pong(self):
        self.told.append("pong")

    async def _process_err(self, text):
        self.told.append(("error", text))

    async def _process_info(self, info):
        self.told.append(("info", info))


word = st.text("abcXYZ._-$", min_size=1, max_size=12).map(str.encode)


@st.composite
def message(draw):
    subject, reply, payload = draw(word), draw(st.just(b"") | word), draw(st.binary(max_size=300))
    header = draw(st.sampled_from([b"", b"NATS/1.0\r\n\r\n", b"NATS/1.0\r\na: b\r\nNats-Msg-Id: x.1\r\n\r\n", STATUS]))
    numbers = [len(header), len(header) + len(payload)] if header else [len(payload)]
    words = [b"HMSG" if header else b"MSG", subject, b"%d" % draw(st.integers(1, 12)), reply]
    line = b" ".join([each for each in words if each] + [b"%d" % number for number in numbers])
    return line + b"\r\n" + header + payload + b"\r\n"


control = st.sampled_from(
    [b"PING\r\n", b"PONG\r\n", b"+OK\r\n", b"-ERR 'Unknown Thing'\r\n", b'INFO {"server_id": "x", "ldm": true}\r\n']
)


def parsed(make, pieces):
    heard = Heard()
    parser = make(heard)

    async def feed():
        for piece in pieces:
            await parser.parse(piece)

    asyncio.run(feed())
    return heard.told, parser


@given(st.lists(message() | control, max_size=12).map(b"".join), st.data())
def test_it_hears_what_nats_py_hears_however_the_bytes_are_cut(stream, data):
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=8)))
    pieces = [stream[start:end] for start, end in pairwise([0, *cuts, len(stream)])]
    expected, _ = parsed(Parser, [stream])
    told, _ = parsed(Wire, pieces)
    assert told == expected


@pytest.mark.parametrize("noise", [b"NOTHING AT ALL\r\n", b"x" * 5000])
def test_what_no_server_sends_is_an_error(noise):
    with pytest.raises(ProtocolError):
        parsed(Wire, [noise])


def test_a_diverted_subscription_is_handed_over_unread_and_others_are_not():
    client, wire = new_client()
    parser: Any = client._ps
    assert parser is wire
    heard: Any = Heard()
    taken: list[Any] = []
    wire._client = heard

    class Subscription:
        _id = 7

    async def feed():
        lines = b"HMSG in 7 $JS.ACK.a.b.1.2.3.4.5 12 15\r\nNATS/1.0\r\n\r\nabc\r\nMSG in 70 0\r\n\r\n"
        subscription: Any = Subscription()
        wire.divert(subscription, lambda *message: taken.append(message))
        await wire.parse(lines)
        wire.restore(subscription)
        await wire.parse(lines)

    asyncio.run(feed())
    assert taken == [(b"in", b"$JS.ACK.a.b.1.2.3.4.5", b"NATS/1.0\r\n\r\n", b"abc")]
    assert [told[1] for told in heard.told] == [70, 7, 70]


def test_a_message_reads_its_headers_and_numbers_when_asked():
    header = b"NATS/1.0\r\ntraceparent: 00-a-b-01\r\nNats-Msg-Id:r.1\r\n\r\n"
    for reply, deliveries in (
        (b"$JS.ACK.USAGE.billing.1.7.8.1700000000000000000.5", 1),
        (b"$JS.ACK.USAGE.billing.12.7.8.1700000000000000000.5", 12),
        (b"$JS.ACK.domain.hash.USAGE.billing.1.7.8.1700000000000000000.5.random", 1),
    ):
        client: Any = None
        made = Message(client, b"usage.m", reply, header, b"data")
        assert made.headers == {"traceparent": "00-a-b-01", "Nats-Msg-Id": "r.1"}
        assert (made.metadata.sequence.stream, made.metadata.num_pending, made.delivery_count) == (7, 5, deliveries)
