"""Rows I1, I3, I4, I5: no body, header or name breaks a process; each gets a typed answer from the real services."""

import gzip
import json
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest

from tests.kit.gateway import Gateway

NATIVE = "/uplion.inference.v1.InferenceService/Chat"
MESSAGES = b'"messages":[{"role":"user","content":"x"}]'


def said(more: bytes) -> bytes:
    """A good chat body with something more in it."""
    return b'{"model":"m",' + MESSAGES + b"," + more + b"}"


def test_a_good_body_of_a_model_nobody_has_is_404(platform: Gateway) -> None:
    """The yardstick of the bodies below: what passes every check but the last."""
    assert platform.chat(said(b'"x":1')).error["code"] == "model_not_found"


BODIES = {
    "I3: a name's bytes": b'{"model":"\xff\xfe",' + MESSAGES + b"}",
    "I3: a cut UTF-8 sequence": b'{"model":"\xc3",' + MESSAGES + b"}",
    "I3: content": b'{"model":"m","messages":[{"role":"user","content":"\xff"}]}',
    "I3: tool arguments": b'{"model":"m","messages":[{"role":"assistant","tool_calls":[{"id":"a","type":"function",'
    b'"function":{"name":"f","arguments":"\xf0\x28\x8c\x28"}}]}]}',
    "I3: a field's name": said(b'"\xff":1'),
    "I3: two byte order marks": b"\xef\xbb\xbf\xef\xbb\xbf" + said(b'"x":1'),
    "I3: UTF-16": said(b'"x":1').decode().encode("utf-16"),
    "I3: a name that is not ASCII": '{"model":"é",'.encode() + MESSAGES + b"}",
    "I3: a NUL in the name": b'{"model":"m\\u0000",' + MESSAGES + b"}",
    "I3: a line break in the name": b'{"model":"m\\r\\nx-uplion-account: a",' + MESSAGES + b"}",
    "I4: depth 100": said(b'"x":' + b"[" * 100 + b"]" * 100),
    "I4: depth 1,000": said(b'"x":' + b'{"a":' * 1000 + b"1" + b"}" * 1000),
    "I4: depth 100,000": said(b'"x":' + b"[" * 100_000 + b"]" * 100_000),
    "I4: depth 100,000, never closed": b'{"a":' * 100_000,
    "I4: as many keys as a body holds": b"{" + b",".join(b'"%d":1' % number for number in range(95_000)) + b"}",
    "I4: the model twice": b'{"model":"m","model":"n",' + MESSAGES + b"}",
    "I4: the same model twice": b'{"model":"m","model":"m",' + MESSAGES + b"}",
    "I4: the model twice, once in disguise": b'{"model":"m","mod\\u0065l":"m",' + MESSAGES + b"}",
    "I4: a limit twice": said(b'"max_tokens":1,"max_tokens":100000'),
    "I4: a limit twice, once in disguise": said(b'"max_tokens":1,"\\u006dax_tokens":100000'),
    "I4: choices twice": said(b'"n":1,"n":8'),
    "I4: NaN": said(b'"temperature":NaN'),
    "I4: infinity": said(b'"temperature":1e999'),
    "I4: minus infinity": said(b'"temperature":-Infinity'),
    "I4: an integer of 400 digits": said(b'"max_tokens":' + b"9" * 400),
    "I4: a stranger's integer of 400 digits": said(b'"x":' + b"9" * 400),
    "I4: an integer of 400,000 digits": said(b'"seed":' + b"9" * 400_000),
    "I4: a lone surrogate": b'{"model":"m","messages":[{"role":"user","content":"\\ud800"}]}',
    "I4: a lone surrogate in the name": b'{"model":"\\udfff",' + MESSAGES + b"}",
    "I4: surrogates in the wrong order": b'{"model":"m","messages":[{"role":"user","content":"\\udc00\\ud800"}]}',
    "I4: a name 5,000 letters long": b'{"model":"' + b"m" * 5000 + b'",' + MESSAGES + b"}",
    "I4: a list": b"[" + said(b'"x":1') + b"]",
    "I4: nothing": b"",
    "I4: a number": b"7",
    "I4: text behind": said(b'"x":1') + b"{}",
}


@pytest.mark.parametrize("name", BODIES)
def test_a_hostile_body_is_400_soon_and_everything_goes_on(platform: Gateway, name: str) -> None:
    began = time.monotonic()
    reply = platform.chat(BODIES[name])
    assert time.monotonic() - began < 20  # 100 ms on a quiet machine: a bomb would take minutes
    assert (reply.status, reply.error["type"]) == (400, "invalid_request_error")
    assert reply.headers["x-should-retry"] == "false"
    assert platform.alive()


def test_a_word_of_ours_may_well_be_in_nested_places(platform: Gateway) -> None:
    """What looks for doubled fields must not take these for them."""
    schema = b'"tools":[{"type":"function","function":{"name":"f","parameters":{"model":{"n":{"model":1}}}}}]'
    for more in (b'"x":"model","y":["model","n"]', b'"metadata":{"model":"a","n":"b"}', b'"y":"caf\\u00e9 \\u0041"'):
        assert platform.chat(said(more)).status == 404
    assert platform.chat(said(schema)).error["param"] != "model"


def test_i4_a_million_keys_are_more_than_a_body_may_hold(platform: Gateway) -> None:
    body = b"{" + b",".join(b'"%d":1' % number for number in range(1_000_000)) + b"}"
    assert platform.chat(body).error["code"] == "payload_too_large"
    assert platform.alive()


@pytest.mark.parametrize(
    "line", [b"x-a: \xff\xfe", b"user-agent: \xc3\x28", b"content-type: \xff", b"traceparent: \xff"]
)
def test_i3_a_header_that_is_not_utf8_changes_nothing(platform: Gateway, line: bytes) -> None:
    key = platform.keys["api_key"].encode()
    head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nconnection: close\r\nauthorization: Bearer " + key
    body = said(b'"x":1')
    answer = platform.raw(head + b"\r\ncontent-length: %d\r\n" % len(body) + line + b"\r\n\r\n" + body)
    assert answer[9:12] in {b"404", b"400"}, answer
    assert b'"error"' in answer


@pytest.mark.parametrize("path", ["%ff", "%c3%28", "%00", "a%0d%0ab", "%ed%a0%80", "x" * 5000])
def test_i3_a_model_in_a_path_is_utf8_or_400(platform: Gateway, path: str) -> None:
    reply = platform.ask("GET", f"/v1/models/{path}")
    assert (reply.status, reply.error["type"]) in {(400, "invalid_request_error"), (404, "invalid_request_error")}


def peak_megabytes(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) // 1024


def test_i1_ten_megabytes_are_413_and_held_by_nobody(platform: Gateway) -> None:
    pids = [each.process.pid for each in (platform.edge, platform.authz, platform.others)]
    before = [peak_megabytes(pid) for pid in pids]
    body = b'{"model":"m","x":"' + b"x" * (10 << 20) + b'"}'
    with ThreadPoolExecutor(5) as pool:
        replies = list(pool.map(platform.chat, [body] * 5))
    assert [reply.error["code"] for reply in replies] == ["payload_too_large"] * 5
    grown = [peak_megabytes(pid) - least for pid, least in zip(pids, before, strict=True)]
    assert max(grown) < 20, grown


@pytest.mark.parametrize("encoding", ["gzip", "zstd", "deflate", "identity, gzip"])
def test_i5_a_compressed_body_is_refused_by_name(platform: Gateway, encoding: str) -> None:
    bomb = gzip.compress(bytes(20 << 20))
    reply = platform.chat(bomb, {"content-encoding": encoding})
    assert (reply.status, reply.error["code"]) == (415, "unsupported_content_encoding")


def test_i5_a_compressed_native_message_never_reaches_a_server_that_would_inflate_it(platform: Gateway) -> None:
    before = peak_megabytes(platform.others.process.pid)
    metadata = (("authorization", f"Bearer {platform.keys['api_key']}"), ("x-uplion-model", "m"))
    for compression in (grpc.Compression.Gzip, grpc.Compression.Deflate):
        with platform.channel() as channel, pytest.raises(grpc.RpcError) as refusal:
            channel.unary_unary(NATIVE)(bytes(64 << 20), metadata=metadata, compression=compression, timeout=60)
        error: Any = refusal.value
        assert error.code() is grpc.StatusCode.UNIMPLEMENTED
        assert error.details() == "Compressed requests are not taken: send the body as it is."
    assert peak_megabytes(platform.others.process.pid) - before < 20
    with platform.channel() as channel, pytest.raises(grpc.RpcError) as refusal:
        channel.unary_unary(NATIVE)(b"", metadata=metadata, timeout=60)
    assert refusal.value.code() is grpc.StatusCode.INVALID_ARGUMENT  # without compression it gets to the router


def test_whatever_the_router_refuses_authz_has_judged_by_the_same_model(platform: Gateway) -> None:
    """Row I3: where Envoy's JSON reader and the router's see different names, the request goes nowhere."""
    for body in (b'{"model":"m","n":' + b"9" * 400 + b"," + MESSAGES + b"}", b'{"model":"m",' + MESSAGES + b',"x":1}}'):
        reply = platform.chat(body, {"x-uplion-model": "other"})
        assert reply.status == 400
    native = (("authorization", f"Bearer {platform.keys['api_key']}"), ("x-uplion-model", "other"))
    with platform.channel() as channel, pytest.raises(grpc.RpcError) as refusal:
        channel.unary_unary(NATIVE)(json.dumps({"model": "m"}).encode(), metadata=native, timeout=60)
    assert refusal.value.code() is grpc.StatusCode.INVALID_ARGUMENT
