"""What Envoy refuses alone, before it costs a check: what cannot be a credential, and too many requests."""

import random
import string
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest
from google.rpc.error_details_pb2 import ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status

from authz.check.check_response import denied
from authz.credentials.request_credential import credential, refused
from common.errors import STATUS_DETAILS_METADATA, UplionError
from common.operations import Dialect
from credentials.api_keys import TEST_KEY, MalformedKeyError, generate, parse

NATIVE = "/uplion.inference.v1.InferenceService/Chat"
BAD: list[dict[str, str]] = [
    {},
    {"authorization": TEST_KEY},
    {"authorization": f"Basic {TEST_KEY}"},
    {"authorization": "Bearer"},
    {"authorization": f"Bearer{TEST_KEY}"},
    {"authorization": f"Bearer {TEST_KEY},Bearer {TEST_KEY}"},
    {"authorization": f"Bearer {TEST_KEY} x"},
    {"authorization": "Bearer a.b.c"},
    {"authorization": f"Bearer {'x' * 16_384}"},
    {"authorization": f"Bearer {TEST_KEY}", "x-api-key": "other"},
    {"x-api-key": "sk-something"},
    {"x-api-key": ""},
    {"api-key": TEST_KEY[:-1]},
    {"api-key": TEST_KEY + "0"},
    {"api-key": TEST_KEY.replace("upl_test_", "upl_toolongenv_")},
    {"api-key": TEST_KEY.replace("upl_test_", "upl_Test_")},
    {"api-key": TEST_KEY.replace("upl_test_0", "upl_test_-")},
]


def authz_says(headers: dict[str, str], *, grpc_call: bool = False) -> Any:
    """authz's own denial of these headers; None: the syntax is that of a key."""
    dialect = Dialect.NATIVE if grpc_call else Dialect.OPENAI
    try:
        parse(credential(headers))
    except MalformedKeyError:
        return denied(refused(), dialect, "").denied_response
    except UplionError as error:
        return denied(error, dialect, "").denied_response
    return None


@pytest.mark.parametrize("port", ["public", "admin"])
@pytest.mark.parametrize("headers", BAD)
def test_what_cannot_be_a_key_gets_authzs_own_401_without_a_check(
    edge: Any, headers: dict[str, str], port: str
) -> None:
    path = "/v1/models" if port == "public" else "/admin/v1/keys"
    reply = edge.request("GET", path, None, headers, port=getattr(edge, port), key=None)
    denial = authz_says(headers)
    assert reply.status == denial.status.code == 401
    assert reply.body.decode() == denial.body
    for option in denial.headers:
        assert reply.headers[option.header.key] == option.header.value
    assert edge.authz.checks == []


@pytest.mark.parametrize("headers", BAD)
def test_a_native_caller_gets_authzs_own_status_without_a_check(edge: Any, headers: dict[str, str]) -> None:
    with edge.channel(key=False) as channel, pytest.raises(grpc.RpcError) as refusal:
        channel.unary_unary(NATIVE)(b"", metadata=tuple(headers.items()), timeout=20)
    denial = authz_says(headers, grpc_call=True)
    assert refusal.value.code() is grpc.StatusCode.UNAUTHENTICATED
    assert refusal.value.details() == denial.body
    assert details(refusal.value)[0].reason == "INVALID_API_KEY"
    assert edge.authz.checks == []


def details(error: Any) -> list[Any]:
    status = Status.FromString(dict(error.trailing_metadata())[STATUS_DETAILS_METADATA])
    found: list[Any] = []
    for detail in status.details:
        for kind in (ErrorInfo, RetryInfo):
            message = kind()
            if detail.Unpack(message):
                found.append(message)
    return found


def test_the_edge_and_authz_agree_on_every_mangled_key(edge: Any) -> None:
    """Whatever authz's parser would take, its checksum aside, reaches authz; nothing else does."""
    generator = random.Random(20261121)
    alphabet = string.ascii_letters + string.digits + "_-. ,"
    for _ in range(300):
        text = list(generate().text)
        for _ in range(generator.randrange(3)):
            place = generator.randrange(len(text))
            text[place : place + generator.randrange(2)] = generator.choices(alphabet, k=generator.randrange(2))
        shown = {"authorization": f"Bearer {''.join(text)}".rstrip()}
        edge.authz.reset()
        reply = edge.request("GET", "/v1/models", None, shown, key=None)
        if edge.authz.checks:
            assert "".join(text)[:-6].isascii()
        else:
            denial = authz_says(shown)
            assert denial is not None, shown
            assert (reply.status, reply.body.decode()) == (401, denial.body), shown


@pytest.fixture(scope="module")
def narrow(backends: Any, another_edge: Any) -> Iterator[Any]:
    """An Envoy behind one trusted proxy, that takes tokens, five requests at once from a client and forty in all."""
    envoy = another_edge(
        backends[3],
        backends[2],
        trusted_hops=1,
        tokens=True,
        client_requests_per_second=1,
        client_requests_burst=5,
        clients=100,
        requests_per_second=1,
        requests_burst=60,
    )
    yield envoy
    envoy.stop()


def test_too_many_requests_of_one_client_are_429_and_the_next_client_passes(edge: Any, narrow: Any) -> None:
    port = narrow.ports["public"]

    def ask(client: str) -> Any:
        return edge.request("GET", "/v1/models", None, {"x-forwarded-for": client}, port=port)

    def until_refused(client: Callable[[int], str]) -> Any:
        """A quick machine is refused at the sixth request; one that stalls for seconds gets a new allowance."""
        for number in range(200):
            checks = len(edge.authz.checks)
            reply = ask(client(number))
            if reply.status == 429:
                assert len(edge.authz.checks) == checks
                return reply
            assert reply.status == 200
        raise AssertionError("no request was refused")

    replies = [ask("10.0.0.1") for _ in range(5)]
    assert [reply.status for reply in replies] == [200] * 5
    reply = until_refused(lambda _: "10.0.0.1")
    assert (reply.error["type"], reply.error["code"]) == ("rate_limit_error", "rate_limit_exceeded")
    assert (reply.headers["retry-after"], reply.headers["retry-after-ms"]) == ("1", "1000")
    assert reply.headers["x-should-retry"] == "true"
    assert ask("10.0.0.2").status == 200
    assert ask("1.1.1.1, 10.0.0.3").status == 200
    until_refused(lambda number: f"6.6.6.{number}, 10.0.0.4")  # only the last counts
    until_refused(lambda number: f"2001:db8::{number}")  # one /64 is one client
    with edge.channel(port) as channel:
        refusal: Any = None
        for _ in range(200):
            if refusal is not None:
                break
            try:
                channel.unary_unary(NATIVE)(b"", metadata=(("x-forwarded-for", "10.0.0.5"),), timeout=20)
            except grpc.RpcError as error:
                refusal = error
    assert refusal.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    found = details(refusal)
    assert (found[0].reason, found[1].retry_delay.seconds) == ("RATE_LIMIT_EXCEEDED", 1)
    # And all of them together: the listener's own bucket.
    with ThreadPoolExecutor(8) as pool:
        statuses = list(pool.map(ask, [f"10.1.0.{number}" for number in range(150)]))
    assert [each.status for each in statuses].count(429) > 20


def test_a_client_address_is_envoys_own_word(edge: Any) -> None:
    """Row I6: only Envoy's own address of a client counts; without trusted hops it is the connection's peer."""
    edge.chat(None, {"x-forwarded-for": "6.6.6.6", "x-envoy-external-address": "6.6.6.6", "x-real-ip": "6.6.6.6"})
    assert edge.authz.checks[-1].attributes.request.http.headers["x-envoy-external-address"] == "127.0.0.1"
    assert edge.backend.calls[-1].all("x-envoy-external-address") == ["127.0.0.1"]


def test_behind_a_trusted_proxy_the_client_is_whom_the_proxy_names(edge: Any, narrow: Any) -> None:
    headers = {"x-forwarded-for": "6.6.6.6, 10.9.0.1", "x-envoy-external-address": "6.6.6.6"}
    edge.request("GET", "/admin/v1/keys", None, headers, port=narrow.ports["admin"])
    check = edge.authz.checks[-1].attributes
    assert check.request.http.headers["x-envoy-external-address"] == "10.9.0.1"
    assert check.source.address.socket_address.address == "127.0.0.1"  # the proxy: not to be used


def test_tokens_pass_to_authz_where_issuers_are_configured(edge: Any, narrow: Any) -> None:
    port = narrow.ports["admin"]

    def ask(text: str, number: int) -> int:
        headers = {"authorization": f"Bearer {text}", "x-forwarded-for": f"10.2.0.{number}"}
        return int(edge.request("GET", "/admin/v1/keys", None, headers, port=port, key=None).status)

    for number, text in enumerate(("eyJhbGciOiJSUzI1NiJ9.e30.AA-_", "a.b.c", f"{'a' * 4000}.b.c")):
        edge.authz.reset()
        ask(text, number)
        assert edge.authz.checks[-1].attributes.request.http.headers["authorization"] == f"Bearer {text}"
    edge.authz.reset()
    for number, text in enumerate(("a.b", "a.b.c.d", "a..c", ".b.c", "a.b.c=", "a.b.c, a.b.c", f"{'a' * 9000}.b.c")):
        assert ask(text, number) == 401, text
    assert edge.authz.checks == []
