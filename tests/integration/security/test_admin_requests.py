"""What an admin method does not know it refuses by name, over HTTP and gRPC; every method of the contract is tried."""

import difflib
import json
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import grpc
import pytest
from google.protobuf.descriptor import FieldDescriptor

from common import admin_api
from common.admin_api import Route
from tests.kit.admin_methods import Method, every_method
from tests.kit.envoy import Reply
from tests.kit.gateway import Gateway

JSON = {"content-type": "application/json"}
ROUTES = {route.rpc: route for route in admin_api.routes()}
METHODS = [pytest.param(method, ROUTES[method.path], id=method.name) for method in every_method()]
WRITING = [param for param in METHODS if param.values[1].takes_body]  # type: ignore[union-attr]
OTHERS = [param for param in METHODS if not param.values[1].takes_body]  # type: ignore[union-attr]
TEXTS = {"google.protobuf.Timestamp", "google.protobuf.Duration", "google.protobuf.FieldMask"}

NO_OBJECTS = (
    *(b"{", b"nonsense", b"\xff\xfe", b"[]", b"[{}]", b'"text"', b"1", b"null", b"{} {}", b"{'a': 1}", b'{"a": 1,}'),
    *(b"[" * 200_000, b'{"a":' * 100_000, b'{"a": ' + b"9" * 5000 + b"}", "{}".encode("utf-16")),
)


def called(platform: Gateway, route: Route, body: Any = None, *, query: str = "", **headers: str) -> Reply:
    """A call whose path names things that may exist."""
    path = route.path
    for name in route.variables:
        path = path.replace(f"{{{name}}}", "2026-11" if name == "month" else "default")
    data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
    shown = {**(JSON if data is not None else {}), **{name.replace("_", "-"): text for name, text in headers.items()}}
    return platform.ask(
        route.verb, path + (f"?{query}" if query else ""), data, shown, port=platform.admin, key="admin_key"
    )


def refused(reply: Reply, param: str | None, *, words: str = "") -> None:
    assert reply.status == 400, (reply.status, reply.body)
    assert reply.error["type"] == "invalid_request_error"
    assert reply.error["param"] == param
    assert reply.headers["x-request-id"]
    assert reply.headers["x-should-retry"] == "false"
    assert words in reply.error["message"], reply.error


@pytest.fixture
def traceless(platform: Gateway) -> Iterator[None]:
    """Nothing is written by a test."""
    tables = ("accounts", "projects", "prices", "(SELECT to_jsonb(keys) - 'last_used_time' FROM keys)")
    query = "SELECT " + ", ".join(
        f"(SELECT array_agg(found::text ORDER BY found::text) FROM {table} AS found) AS t{number}"
        for number, table in enumerate(tables)
    )
    before = platform.sql(query)
    yield
    assert platform.sql(query) == before


pytestmark = pytest.mark.usefixtures("traceless")


@pytest.mark.parametrize(("method", "route"), METHODS)
def test_a_query_parameter_that_is_none_is_named(platform: Gateway, method: Method, route: Route) -> None:
    body: Any = {} if route.takes_body else None
    refused(called(platform, route, body, query="nope=1"), "nope", words="there is no such query parameter")
    for name in ("data", "content_type", "extensions", "nope.nope", ""):
        refused(called(platform, route, body, query=f"{name}=YQ=="), name)
    for field in method.request.DESCRIPTOR.fields:
        if route.takes_body or field.name in route.variables:
            refused(called(platform, route, body, query=f"{field.name}=1"), field.name)


@pytest.mark.parametrize(("method", "route"), METHODS)
def test_a_query_that_is_no_text_is_400(platform: Gateway, method: Method, route: Route) -> None:
    reply = called(platform, route, {} if route.takes_body else None, query="a=%ff%fe")
    refused(reply, None, words="UTF-8")
    many = "&".join(f"a{number}=" for number in range(300))
    refused(called(platform, route, {} if route.takes_body else None, query=many), None)


@pytest.mark.parametrize(("method", "route"), OTHERS)
def test_a_misspelled_or_repeated_parameter_is_named(platform: Gateway, method: Method, route: Route) -> None:
    for field in method.request.DESCRIPTOR.fields:
        if field.name in route.variables:
            continue
        assert field.message_type is None or field.message_type.full_name in TEXTS, f"{field.full_name} fits no query"
        wrong = field.name.replace("_", "") + "x"
        refused(called(platform, route, query=f"{wrong}=1"), wrong, words=f"did you mean {field.name}?")
        value = quote(example(field))
        if not field.is_repeated:
            twice = f"{field.name}={value}&{field.json_name}={value}"
            refused(called(platform, route, query=twice), field.json_name, words="twice")
        for text in unreadable(field):
            refused(called(platform, route, query=f"{field.name}={quote(text)}"), field.name)


@pytest.mark.parametrize(("method", "route"), OTHERS)
def test_a_method_without_a_body_takes_none(platform: Gateway, method: Method, route: Route) -> None:
    for body in (b"{}", b'{"id": "x"}', b"x"):
        refused(called(platform, route, body), None, words="takes no body")


@pytest.mark.parametrize(("method", "route"), WRITING)
def test_a_field_that_is_none_is_named_by_its_path(platform: Gateway, method: Method, route: Route) -> None:
    for path, body, near in misspelled(method.request.DESCRIPTOR):
        refused(called(platform, route, body), path, words=f"did you mean {near}?")
    refused(called(platform, route, {"nope_nope_nope": 1}), "nope_nope_nope", words="there is no such field")
    refused(called(platform, route, b'{"\\ud800": 1}'), "\\ud800", words="there is no such field")
    refused(called(platform, route, b'{"a\\u0000\\n\\"b": 1}'), 'a\0\n"b')
    long = called(platform, route, {"x" * 100_000: 1})
    assert (long.status, len(long.body) < 2000) == (400, True)


@pytest.mark.parametrize(("method", "route"), WRITING)
def test_a_value_of_another_type_is_named_by_its_path(platform: Gateway, method: Method, route: Route) -> None:
    for path, body in mistyped(method.request.DESCRIPTOR):
        refused(called(platform, route, body), path)


@pytest.mark.parametrize(("method", "route"), WRITING)
def test_a_field_that_is_given_twice_is_named(platform: Gateway, method: Method, route: Route) -> None:
    for field in method.request.DESCRIPTOR.fields:
        value = json.dumps(sample(field))
        text = f'{{"{field.name}": {value}, "{field.name}": {value}}}'.encode()
        refused(called(platform, route, text), field.name, words="twice")
        if field.json_name != field.name:
            text = f'{{"{field.name}": {value}, "{field.json_name}": {value}}}'.encode()
            refused(called(platform, route, text), field.json_name, words="twice")
    for name in route.variables:
        refused(called(platform, route, {name: "another"}), name, words="in the path")


@pytest.mark.parametrize(("method", "route"), WRITING)
def test_what_is_no_json_object_is_400(platform: Gateway, method: Method, route: Route) -> None:
    began = time.monotonic()
    for body in NO_OBJECTS:
        refused(called(platform, route, body), None, words="body")
    assert time.monotonic() - began < 30  # a tenth of a second alone


@pytest.mark.parametrize(("method", "route"), WRITING)
def test_another_content_type_is_named(platform: Gateway, method: Method, route: Route) -> None:
    for media in ("text/plain", "application/x-www-form-urlencoded", "application/xml", "multipart/form-data"):
        refused(called(platform, route, b"{}", content_type=media), "content-type", words="application/json")


@pytest.mark.parametrize(("method", "route"), METHODS)
def test_a_path_that_is_none_is_404_and_another_verb_405(platform: Gateway, method: Method, route: Route) -> None:
    path = route.path.replace("{month}", "2026-11")
    for name in route.variables:
        path = path.replace(f"{{{name}}}", "default")
    for wrong in (f"{path}/", f"{path}/nope/nope", f"{path}:nope/x"):
        reply = platform.ask(route.verb, wrong, None, port=platform.admin, key="admin_key")
        assert (reply.status, reply.error["code"]) == (404, "not_found"), wrong
        assert reply.headers["x-request-id"]
    for verb in ("PUT", "OPTIONS", "PROPFIND"):
        reply = platform.ask(verb, path, None, port=platform.admin, key="admin_key")
        assert (reply.status, reply.error["code"]) == (405, "method_not_allowed"), verb
        assert route.verb in reply.headers["allow"].split(", ")


@pytest.mark.parametrize(("method", "route"), METHODS)
def test_a_grpc_message_with_a_field_that_is_none_is_refused(platform: Gateway, method: Method, route: Route) -> None:
    kind = method.request.DESCRIPTOR
    wires: list[tuple[str | None, bytes, str]] = [
        (None, b"\xfa\x7d\x01x", f"no field 2015 in {kind.name}")
    ]  # field 2015, a text
    for field in kind.fields:
        wires.append((field.name, tagged(field.number, 5) + b"abcd", "another type"))  # 32 bits: no request has such
        inner = field.message_type
        if inner is not None and field.is_repeated and not inner.GetOptions().map_entry:
            wires.append((f"{field.name}[1]", repeated(field), "no field 2015"))
        elif inner is not None and not field.is_repeated:
            wires.append((field.name, tagged(field.number, 2) + b"\x04\xfa\x7d\x01x", "no field 2015"))
    key = platform.keys["admin_key"]
    with grpc.insecure_channel(f"127.0.0.1:{platform.admin}") as channel:
        for param, wire, words in wires:
            make: Any = channel.unary_stream  # also for one answer: the wire is the same
            answer = make(method.path)(wire, metadata=(("authorization", f"Bearer {key}"),), timeout=60)
            with pytest.raises(grpc.RpcError) as caught:
                list(answer)
            error: Any = caught.value
            assert error.code() is grpc.StatusCode.INVALID_ARGUMENT, (wire, error)
            assert words in error.details()
            assert (param or kind.name) in error.details()


def test_a_large_body_is_refused_at_once(platform: Gateway) -> None:
    route = ROUTES["/uplion.control.v1.KeyService/CreateKey"]
    began = time.monotonic()
    reply = called(platform, route, {"name": "x" * (1 << 20)})
    assert (reply.status, reply.error["code"]) == (413, "payload_too_large")
    bodies: tuple[Any, ...] = (
        {"models": ["a"] * 100_000},
        {"labels": {str(n): "" for n in range(40_000)}},
        {"limits": [{}] * 100_000},
    )
    for body in bodies:
        assert called(platform, route, body).status == 400
    assert time.monotonic() - began < 10  # half a second alone


CODES = ("ABC", "usd", "US", "USDT", "U$D", "EURO", "XXX", "BGN", "", "\u0130QD", " USD")


@pytest.mark.parametrize("code", CODES)
def test_a_currency_is_one_of_iso_4217(platform: Gateway, code: str) -> None:
    rates = {"input_per_million_tokens": "1", "output_per_million_tokens": "1"}
    price = {"model": "m", "currency": code, "rates": rates}
    refused(called(platform, ROUTES["/uplion.control.v1.PriceService/CreatePrice"], price), "currency")
    limit = {"measure": "LIMIT_MEASURE_COST", "period": "LIMIT_PERIOD_DAY", "amount": 1, "currency": code}
    for service in ("Key", "Project", "Account"):
        for verb in ("Create", "Update"):
            route = ROUTES[f"/uplion.control.v1.{service}Service/{verb}{service}"]
            refused(called(platform, route, {"name": "n", "limits": [limit]}), "limits[0].currency")


def tagged(number: int, wire_type: int) -> bytes:
    value = number << 3 | wire_type
    return bytes((value,)) if value < 0x80 else bytes((value & 0x7F | 0x80, value >> 7))


def repeated(field: Any) -> bytes:
    """An empty element, and one with an unknown field."""
    tag = tagged(field.number, 2)
    return tag + b"\x00" + tag + b"\x04\xfa\x7d\x01x"


def kind_of(field: Any) -> str:
    return field.message_type.full_name if field.message_type is not None else ""


def is_map(field: Any) -> bool:
    return field.message_type is not None and bool(field.message_type.GetOptions().map_entry)


def example(field: Any) -> str:
    """A text that a query may give the field."""
    if kind_of(field) == "google.protobuf.Timestamp":
        return "2026-11-01T00:00:00Z"
    if field.enum_type is not None:
        return str(field.enum_type.values[0].name)
    return "true" if field.type == FieldDescriptor.TYPE_BOOL else "1"


def unreadable(field: Any) -> list[str]:
    if kind_of(field) or field.enum_type is not None or field.type == FieldDescriptor.TYPE_BOOL:
        return ["", "nope", "99999", "-1", "True"]
    if field.type == FieldDescriptor.TYPE_STRING:
        return ["a\0b", "a\nb"] if field.name != "page_token" else ["%%%", "AA"]
    return ["", "nope", "1.5", "9" * 400, str(1 << 63), "1_0", "٣"]


def sample(field: Any) -> Any:
    """A value of the field's type."""
    if is_map(field):
        return {"a": "b"}
    if kind_of(field) in TEXTS:
        return {"Timestamp": "2099-11-01T00:00:00Z", "Duration": "1s", "FieldMask": "name"}[field.message_type.name]
    single: Any = {} if kind_of(field) else "1"
    if field.enum_type is not None:
        single = field.enum_type.values[0].name
    return [single] if field.is_repeated else single


def inside(kind: Any) -> Iterator[tuple[str, Any, Any]]:
    """The message and those in it, by their paths, and how a body holds one of them."""
    yield "", kind, lambda value: value
    for field in kind.fields:
        if field.message_type is None or is_map(field) or kind_of(field).startswith("google."):
            continue
        for path, inner, hold in inside(field.message_type):
            name, rest = field.name, f".{path}" if path else ""
            if field.is_repeated:
                yield f"{name}[1]{rest}", inner, lambda value, name=name, hold=hold: {name: [{}, hold(value)]}
            else:
                yield f"{name}{rest}", inner, lambda value, name=name, hold=hold: {name: hold(value)}


def misspelled(kind: Any) -> Iterator[tuple[str, Any, str]]:
    """Paths of fields that do not exist, bodies with them, and what was meant."""
    for path, inner, hold in inside(kind):
        for field in inner.fields:
            for wrong in {field.name[:-1], field.name + "s", field.name.replace("_", "-")} - set(inner.fields_by_name):
                if len(wrong) > 3:
                    near = closest(wrong, inner)
                    yield f"{path}.{wrong}".lstrip("."), hold({wrong: sample(field)}), near


def closest(wrong: str, kind: Any) -> str:
    return difflib.get_close_matches(wrong, [field.name for field in kind.fields], 1)[0]


def mistyped(kind: Any) -> Iterator[tuple[str, Any]]:
    """Paths of fields, and bodies in which they have values of other types."""
    for path, inner, hold in inside(kind):
        for field in inner.fields:
            where = f"{path}.{field.name}".lstrip(".")
            bad: list[Any] = [None]
            if is_map(field):
                yield f"{where}.a", hold({field.name: {"a": 1}})
                yield f"{where}.a", hold({field.name: {"a": None}})
                yield f"{where}.\\udfff", hold({field.name: {"\udfff": "a"}})
                yield f"{where}.a", hold({field.name: {"a": "\ud800"}})
                bad += [[], "text", 1, [["a", "b"]]]
            elif field.is_repeated:
                bad += [{}, 1, "text", {"0": 1}, ["a"] * 2000]
                for wrong in (None, 1.5, [], True, *(["text"] if kind_of(field) else [{}, "\udfff"])):
                    yield f"{where}[0]", hold({field.name: [wrong]})
            elif kind_of(field) == "google.protobuf.Struct":
                bad += ["text", [], 1]
                yield f"{where}.a", hold({field.name: {"a": float("nan")}})
                yield f"{where}.a.b", hold({field.name: {"a": {"b": 10**400}}})
                yield f"{where}.a[0]", hold({field.name: {"a": ["\ud800"]}})
                yield f"{where}{'.a' * 50}"[:100] + "…", hold({field.name: nested(60)})
            elif kind_of(field) in TEXTS:
                bad += [1, {}, [], True, "nonsense" if field.message_type.name != "FieldMask" else "a b", "\ud800"]
                if field.message_type.name == "Timestamp":
                    bad += ["2026-13-01T00:00:00Z", "10000-01-01T00:00:00Z", "2026-11-01", "2026-11-01T00:00:00", ""]
                if field.message_type.name == "Duration":
                    bad += ["1", "s", "999999999999999s", "-1e5s", ""]
            elif kind_of(field):
                bad += [[], "text", 1, True]
            elif field.enum_type is not None:
                bad += ["NOPE", 77, -1, 1.0, True, {}, [], "", field.enum_type.values[1].name.lower()]
            elif field.type == FieldDescriptor.TYPE_STRING:
                bad += [1, 1.5, True, {}, [], "\ud800", ["a"]]
            elif field.type == FieldDescriptor.TYPE_BOOL:
                bad += [1, 0, "true", "", {}, []]
            else:
                bad += ["x", "", " 1", "1_0", 1.5, -1, True, {}, [], 1 << 64, 10**400, float("nan"), float("inf"), "٣"]
            for value in bad:
                yield where, hold({field.name: value})


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = {"a": value}
    return value
