"""Row I11: whatever bytes a gRPC caller sends, it gets a typed status, and no process minds."""

import asyncio
import random
import socket
import struct
from typing import Any

import grpc
import grpc.aio
import h2.config
import h2.connection
import h2.events
import h2.exceptions
import pytest
from uplion.inference.v1 import inference_service_pb2

from tests.kit.gateway import Gateway

_SERVICE = inference_service_pb2.DESCRIPTOR.services_by_name["InferenceService"]
_NATIVE = f"/{_SERVICE.full_name}/"
_SEED = 20261121
_CASES = 1500
# What a request can be told. INTERNAL and UNKNOWN would mean that something of ours broke.
_TYPED = {
    grpc.StatusCode.OK,
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.UNIMPLEMENTED,
}


def hostile_messages() -> list[tuple[str, bytes]]:
    """Method and message: noise, and good messages with a few bytes changed, cut off or doubled."""
    noise = random.Random(_SEED)
    found = []
    for number in range(_CASES):
        method = _SERVICE.methods[number % len(_SERVICE.methods)]
        if number % 3 == 0:
            found.append((method.name, noise.randbytes(noise.randrange(400))))
            continue
        message = bytearray(b"\x0a\x01m\x12\x05\x08\x02\x12\x01x" + noise.randbytes(noise.randrange(40)))
        for _ in range(noise.randrange(1, 6)):
            place = noise.randrange(len(message))
            message[place : place + noise.randrange(3)] = noise.randbytes(noise.randrange(4)) or b"\xff"
        found.append((method.name, bytes(message)))
    return found


async def test_random_messages_get_a_typed_status(platform: Gateway) -> None:
    metadata = (("authorization", f"Bearer {platform.keys['api_key']}"), ("x-uplion-model", "m"))
    waiting = asyncio.Semaphore(16)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{platform.public}") as channel:

        async def ask(method: str, message: bytes) -> tuple[grpc.StatusCode, str]:
            async with waiting:
                opened: Any = channel.unary_unary(_NATIVE + method)
                call = opened(message, metadata=metadata, timeout=60)
                return await call.code(), await call.details()

        cases = hostile_messages()
        answers = await asyncio.gather(*(ask(*case) for case in cases))
    for case, (code, details) in zip(cases, answers, strict=True):
        assert code in _TYPED, (_SEED, case, code, details)
        assert not any(word in details for word in ("Traceback", "Exception", "Error(", ".py")), (case, details)
    assert platform.alive()


@pytest.mark.parametrize("method", ["Nope", "chat", "Chat/", "", "../../grpc.health.v1.Health/Check"])
def test_an_unknown_method_is_unimplemented(platform: Gateway, method: str) -> None:
    metadata = (("authorization", f"Bearer {platform.keys['api_key']}"),)
    with platform.channel() as channel, pytest.raises(grpc.RpcError) as refusal:
        channel.unary_unary(_NATIVE + method)(b"", metadata=metadata, timeout=60)
    assert refusal.value.code() is grpc.StatusCode.UNIMPLEMENTED


def spoken(platform: Gateway, headers: list[tuple[str, str]], data: bytes, *, end: bool = True) -> dict[str, str]:
    """One HTTP/2 request as it is; the headers and trailers of the answer, empty when the connection was cut."""
    config = h2.config.H2Configuration(header_encoding="utf-8", validate_outbound_headers=False)
    connection = h2.connection.H2Connection(config)
    connection.initiate_connection()
    pseudo = [(":method", "POST"), (":path", f"{_NATIVE}Chat"), (":scheme", "http"), (":authority", "x")]
    key = ("authorization", f"Bearer {platform.keys['api_key']}")
    connection.send_headers(1, [*pseudo, key, *headers])
    connection.send_data(1, data, end_stream=end)
    found: dict[str, str] = {}
    with socket.create_connection(("127.0.0.1", platform.public), timeout=60) as wire:
        while True:
            wire.sendall(connection.data_to_send())
            received = wire.recv(65536)
            if not received:
                return found
            for event in connection.receive_data(received):
                if isinstance(event, h2.events.ResponseReceived | h2.events.TrailersReceived):
                    found |= {str(name): str(value) for name, value in event.headers}
                elif isinstance(event, h2.events.StreamEnded | h2.events.StreamReset | h2.events.ConnectionTerminated):
                    return found


GRPC = [("content-type", "application/grpc"), ("te", "trailers"), ("x-uplion-model", "m")]


@pytest.mark.parametrize(
    "frame",
    [
        b"",
        b"\x00",
        b"\x00\x00\x00\x00",
        struct.pack(">BI", 0, 100) + b"short",
        struct.pack(">BI", 1, 5) + b"aaaaa",  # said to be compressed, with nothing saying how
        struct.pack(">BI", 7, 5) + b"aaaaa",
        struct.pack(">BI", 0, 0xFFFFFFFF) + b"x",
        struct.pack(">BI", 0, 2) + b"xx" + struct.pack(">BI", 0, 2) + b"xx",
        b"\xff" * 1000,
    ],
)
def test_a_frame_that_is_none_gets_a_status_or_an_end(platform: Gateway, frame: bytes) -> None:
    found = spoken(platform, GRPC, frame)
    assert found.get("grpc-status", "0") != "0" or found.get(":status", "") != "200", found
    assert "Traceback" not in found.get("grpc-message", "")
    assert platform.alive()


@pytest.mark.parametrize(
    "content_type",
    ["application/json", "text/plain", "application/grpc-web", "application/grpc+json", "application/grpcx"],
)
def test_another_content_type_is_refused(platform: Gateway, content_type: str) -> None:
    found = spoken(platform, [("content-type", content_type), ("te", "trailers")], b"\x00\x00\x00\x00\x00")
    assert found[":status"] in {"404", "415"} or found["grpc-status"] not in {"0", "2", "13"}, found


@pytest.mark.parametrize("size", [8_000, 14_000, 17_000, 24_000, 40_000, 100_000])
def test_large_metadata_are_taken_or_refused_and_break_nothing(platform: Gateway, size: int) -> None:
    found = spoken(platform, [*GRPC, ("x-big", "b" * size)], b"\x00\x00\x00\x00\x00")
    if size > 64_000:  # of one header, which HTTP/2's codec does not take
        assert found.get("grpc-status", "3") == "3", found
    elif size > 32_000:
        assert found["grpc-status"] == "3", found
    else:
        assert found["grpc-status"] in {str(code.value[0]) for code in _TYPED}, (size, found)
    reply = platform.ask("GET", "/v1/models", None, {"x-big": "b" * size})
    assert reply.status == (200 if size < 32_000 else 431), reply
    assert platform.alive()


def test_noise_on_the_socket_ends_the_connection_and_nothing_else(platform: Gateway) -> None:
    noise = random.Random(_SEED)
    starts: list[Any] = [b"", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"GET / HTTP/1.1\r\n", b"\x16\x03\x01"]
    for number in range(120):
        with socket.create_connection(("127.0.0.1", platform.public), timeout=60) as wire:
            wire.sendall(starts[number % len(starts)] + noise.randbytes(noise.randrange(1, 600)))
            wire.shutdown(socket.SHUT_WR)
            try:
                while answer := wire.recv(65536):
                    assert b"Traceback" not in answer
            except ConnectionResetError:
                pass
    assert platform.alive()
