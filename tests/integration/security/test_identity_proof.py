"""Row S7 at router and control: whoever reaches their ports is a stranger, unless authz made the headers of the call.

Every method of the contract is tried; a new service fails here until it is said who serves it.
"""

import asyncio
import socket
import uuid
from collections.abc import Iterator
from typing import Any

import grpc
import grpc.aio
import h2.config
import h2.connection
import h2.events
import pytest
from google.protobuf import descriptor_pool
from uplion.billing.v1.usage_event_pb2 import UsageEvent
from uplion.control.v1.key_pb2 import CreateKeyRequest

from common import names
from common.errors import Reason, from_rpc_error
from common.identity import IDENTITY_HEADERS
from credentials.identity_proof import LIFE_SECONDS, IdentityProofs
from messaging.bus import connect_bus
from tests.kit.gateway import Gateway
from tests.kit.platform import REPOSITORY
from tests.kit.proof import PROOF_KEYS, Metadata, proven
from tests.kit.until import until

ADMIN = (("x-uplion-account", "default"), ("x-uplion-key", "aaaaaaaaaaaa"), ("x-uplion-scopes", "admin"))
PAYER = (
    ("x-uplion-account", "default"),
    ("x-uplion-key", "aaaaaaaaaaaa"),
    ("x-uplion-reservation", "00000000-0"),
    ("x-uplion-model", "forged"),
    ("x-uplion-tier", "default"),
    ("x-uplion-limits", "deadline_seconds=600"),
)
CREATE_KEY = "/uplion.control.v1.KeyService/CreateKey"
CHAT = "/uplion.openai.v1.OpenAIService/CreateChatCompletion"
SECRET = PROOF_KEYS[0].partition(":")[2].encode()
SERVERS = {
    "uplion.control.v1": "control",
    "uplion.inference.v1": "router",
    "uplion.openai.v1": "router",
    "uplion.dispatch.v1": "worker",  # tests/integration/inference/test_strangers.py
}


def methods() -> list[tuple[str, str]]:
    """Who serves it, and its path, of every method of the contract."""
    found = []
    for path in sorted(REPOSITORY.glob("proto/uplion/*/v1/*_service.proto")):
        name = str(path.relative_to(REPOSITORY / "proto"))
        __import__(name.removesuffix(".proto").replace("/", ".") + "_pb2")
        file: Any = descriptor_pool.Default().FindFileByName(name)
        for service in file.services_by_name.values():
            found += [(SERVERS[file.package], f"/{service.full_name}/{method.name}") for method in service.methods]
    return found


HERE = [each for each in methods() if each[0] != "worker"]


def headers(method: str) -> Metadata:
    return ADMIN if ".control." in method else PAYER


def other(good: Metadata, name: str, value: str) -> Metadata:
    return tuple((each, value if each == name else old) for each, old in good)


def forgeries(method: str) -> Iterator[tuple[str, Metadata]]:
    """Everything that is no proof for a call of this method, and what is wrong with it."""
    good = proven(method, (*headers(method), (names.HEADER_REQUEST_ID, "11111111-1111-1111-1111-111111111111")))
    proof = dict(good)[names.HEADER_PROOF]
    key_id, expiry, mac = proof.split(".")
    later = IdentityProofs({key_id: SECRET}, lambda: int(expiry) - 2 * LIFE_SECONDS - 1)
    yield "no header at all", ()
    yield "no proof", tuple(pair for pair in good if pair[0] != names.HEADER_PROOF)
    yield "a proof for another method", proven("/uplion.control.v1.KeyService/Other", headers(method))
    yield "a proof for a method with another case", proven(method.lower(), headers(method))
    for name in (*IDENTITY_HEADERS, names.HEADER_REQUEST_ID):
        yield f"another {name}", other(good, name, "forged-by-a-stranger")
        yield (
            f"an empty {name}",
            other(other(good, name, "x"), name, "") if dict(good)[name] else other(good, name, " "),
        )
        yield f"no {name}", tuple(pair for pair in good if pair[0] != name)
        yield f"two of {name}", (*good, (name, dict(good)[name]))
        yield f"another {name} before it", ((name, "forged-by-a-stranger"), *good)
    yield "two proofs", (*good, (names.HEADER_PROOF, proof))
    yield "an expired proof", proven(method, headers(method), later)
    yield "an unknown key", proven(method, headers(method), IdentityProofs({"strangers": SECRET}))
    yield "another secret", proven(method, headers(method), IdentityProofs({key_id: b"s" * 32}))
    for what, text in {
        "a proof that is cut off": f"{key_id}.{expiry}.{mac[:-2]}",
        "half a proof": f"{key_id}.{expiry}.{mac[:16]}",
        "a proof without its MAC": f"{key_id}.{expiry}.",
        "a proof in capitals": f"{key_id}.{expiry}.{mac.upper()}",
        "a proof of which more follows": f"{proof}00",
        "a proof with another expiry": f"{key_id}.{int(expiry) + 1}.{mac}",
        "an expiry in another form": f"{key_id}.0{expiry}.{mac}",
        "no parts": "x",
        "nothing": "",
        "much": "x" * 8000,
    }.items():
        yield what, other(good, names.HEADER_PROOF, text)


async def refused(channel: Any, method: str, metadata: Metadata, message: bytes = b"") -> str:
    """How a call ends: the reason and the sentence, or what it was answered."""
    call = channel.unary_stream(method)(message, metadata=metadata, timeout=60)
    try:
        return f"answered {[each async for each in call]!r}"
    except grpc.aio.AioRpcError as problem:
        error = from_rpc_error(problem)
        return f"{error.reason.name}: {error.message}"


STRANGER = f"{Reason.PERMISSION_DENIED.name}: This call did not come through the gateway."


def counted(platform: Gateway) -> list[Any]:
    """How many rows each table has."""
    tables = platform.sql("SELECT relname FROM pg_class WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace")
    return [(row[0], platform.sql(f'SELECT count(*) FROM "{row[0]}"')[0][0]) for row in tables]


def test_no_method_believes_a_stranger(platform: Gateway) -> None:
    async def run(service: str) -> list[tuple[str, str, str]]:
        found = []
        async with grpc.aio.insecure_channel(platform.others.addresses[service]) as channel:
            for _, method in (each for each in HERE if each[0] == service):
                for what, metadata in forgeries(method):
                    found.append((method, what, await refused(channel, method, metadata)))
                good = proven(method, headers(method))
                assert await refused(channel, method, good) != STRANGER, method  # that is how a call is made
        return found

    before = counted(platform)
    found = asyncio.run(run("router"))
    assert len(before) > 5
    assert counted(platform) == before
    found += asyncio.run(run("control"))
    assert [each for each in found if each[2] != STRANGER] == []
    assert {method for method, *_ in found} == {method for _, method in HERE}
    assert platform.alive()


def test_a_stranger_makes_no_operators_key(platform: Gateway) -> None:
    """The smallest input that did."""
    request = CreateKeyRequest(account="default", scopes=["admin"]).SerializeToString()
    before = platform.sql("SELECT id FROM keys ORDER BY id")

    async def run() -> str:
        async with grpc.aio.insecure_channel(platform.others.addresses["control"]) as channel:
            return await refused(channel, CREATE_KEY, (*ADMIN, (names.HEADER_REQUEST_ID, "x")), request)

    assert asyncio.run(run()) == STRANGER
    assert platform.sql("SELECT id FROM keys ORDER BY id") == before
    assert asyncio.run(_proven(platform, "control", CREATE_KEY, ADMIN, request)).startswith("answered [b")


def test_a_stranger_puts_no_row_in_a_ledger(platform: Gateway) -> None:
    """A call that the router takes ends in a usage event, whatever becomes of it; a stranger's call does not."""
    account = f"forged-{uuid.uuid4().hex}"
    metadata = other(PAYER, names.HEADER_ACCOUNT, account)
    events: list[str] = []

    async def on_usage(message: Any) -> None:
        event = UsageEvent.FromString(message.data)
        if event.account == account:
            events.append(event.request_id)

    async def run() -> None:
        async with (
            grpc.aio.insecure_channel(platform.others.addresses["router"]) as channel,
            connect_bus(platform.environment["NATS_URL"], "test") as bus,
        ):
            await bus.subscribe("usage.>", cb=on_usage)
            await bus.flush()
            for number in range(3):
                forged = (*metadata, (names.HEADER_REQUEST_ID, f"{account}-{number}"))
                assert await refused(channel, CHAT, forged) == STRANGER
            # One with a proof comes after them, so its event does too.
            last = (*metadata, (names.HEADER_REQUEST_ID, f"{account}-proven"))
            assert "answered" in await refused(channel, CHAT, proven(CHAT, last))
            await until(lambda: events)
            assert events == [f"{account}-proven"]

    asyncio.run(run())


async def _proven(platform: Gateway, service: str, method: str, metadata: Metadata, message: bytes) -> str:
    async with grpc.aio.insecure_channel(platform.others.addresses[service]) as channel:
        return await refused(channel, method, proven(method, metadata), message)


def test_health_needs_no_identity_and_tells_none(platform: Gateway) -> None:
    async def run(service: str) -> str:
        async with grpc.aio.insecure_channel(platform.others.addresses[service]) as channel:
            return await refused(channel, "/grpc.health.v1.Health/Check", ())

    for service in ("router", "control"):
        assert asyncio.run(run(service)) == r"answered [b'\x08\x01']"


@pytest.mark.parametrize("method", ["/uplion.control.v1.KeyService/Nope", "/", "/x", "/grpc.health.v1.Health", "//"])
def test_a_stranger_learns_of_no_method(platform: Gateway, method: str) -> None:
    async def run(service: str) -> str:
        async with grpc.aio.insecure_channel(platform.others.addresses[service]) as channel:
            return await refused(channel, method, ADMIN)

    for service in ("router", "control"):
        assert asyncio.run(run(service)) == STRANGER


@pytest.mark.parametrize(
    "value",
    [
        b"\xff\xfe",
        "d\u00e9fault".encode(),
        b"default\x00",
        b"default\n",
        b"default\r\nx-uplion-scopes: admin",
        b"\x7f",
    ],
)
@pytest.mark.parametrize("name", ["x-uplion-account", "x-uplion-proof", "x-request-id", "x-uplion-limits"])
def test_bytes_that_are_no_text_harm_nobody(platform: Gateway, name: str, value: bytes) -> None:
    """No gRPC library would send them, so they come over bare HTTP/2."""
    good = dict(proven(CREATE_KEY, ADMIN))
    sent = [(each.encode(), value if each == name else text.encode()) for each, text in good.items()]
    before = platform.sql("SELECT count(*) FROM keys")
    status = _bare(platform.others.addresses["control"], CREATE_KEY, sent)
    assert status in (None, b"7"), status  # refused by the gRPC library, or as a stranger's
    assert platform.sql("SELECT count(*) FROM keys") == before
    assert asyncio.run(_proven(platform, "control", "/uplion.control.v1.KeyService/ListKeys", ADMIN, b"")) != STRANGER


def _bare(address: str, method: str, metadata: list[tuple[bytes, bytes]]) -> bytes | None:
    """The call's `grpc-status`; None: the stream or the connection was cut."""
    host, _, port = address.rpartition(":")
    state = h2.connection.H2Connection(
        h2.config.H2Configuration(
            header_encoding=None, validate_outbound_headers=False, normalize_outbound_headers=False
        )
    )
    with socket.create_connection((host, int(port)), timeout=60) as connection:
        state.initiate_connection()
        state.send_headers(
            1,
            [
                (b":method", b"POST"),
                (b":scheme", b"http"),
                (b":path", method.encode()),
                (b":authority", address.encode()),
                (b"te", b"trailers"),
                (b"content-type", b"application/grpc"),
                *metadata,
            ],
        )
        state.send_data(1, b"\0\0\0\0\0", end_stream=True)
        connection.sendall(state.data_to_send())
        while data := connection.recv(65536):
            for event in state.receive_data(data):
                if isinstance(event, h2.events.ResponseReceived | h2.events.TrailersReceived):
                    found = {bytes(each): bytes(text) for each, text in event.headers or ()}
                    if b"grpc-status" in found:
                        return found[b"grpc-status"]
                if isinstance(event, h2.events.StreamReset | h2.events.ConnectionTerminated):
                    return None
            connection.sendall(state.data_to_send())
    return None


@pytest.mark.parametrize(
    ("method", "path", "listener", "status"),
    [
        ("GET", "/v1/models", "public", 200),
        ("GET", "/v1/models/", "public", 200),
        ("GET", "/v1/models/none", "public", 404),
        ("GET", "/v1/models/org/none", "public", 404),
        ("GET", "/admin/v1/keys", "admin", 200),
        ("GET", "/admin/v1/keys?page_size=1", "admin", 200),
        ("GET", "/admin/v1/keys/none", "admin", 404),
        ("POST", "/admin/v1/keys/none:rotate", "admin", 404),
        ("GET", "/admin/v1/accounts/default", "admin", 200),
        ("GET", "/admin/v1/openapi.json", "admin", 200),
    ],
)
def test_through_the_edge_it_is_there(platform: Gateway, method: str, path: str, listener: str, status: int) -> None:
    """Also where the client sends headers of its own."""
    evil = {name: "evil" for name in (*IDENTITY_HEADERS, names.HEADER_PROOF) if name != names.HEADER_MODEL}
    key = platform.keys["admin_key" if listener == "admin" else "api_key"]
    for extra in ({}, {**evil, names.HEADER_REQUEST_ID: "evil"}):
        shown = {"authorization": f"Bearer {key}", "content-type": "application/json", **extra}
        body = b"{}" if method == "POST" else None
        reply = platform.ask(method, path, body, shown, port=getattr(platform, listener))
        assert reply.status == status, reply
