"""The rendered bootstrap: what must hold in the text itself, whatever Envoy does with it."""

import json
import os
import re
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from common.operations import OPERATIONS, BodyFacts, Capability, Dialect, Kind, Operation
from edge import template
from edge.settings import EdgeSettings

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # envoy-data-plane uses what pydantic has deprecated
    from edge.bootstrap import render
    from edge.building import split
    from edge.listeners import _all_but

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

SETTINGS = EdgeSettings(
    public_address="127.0.0.1:8080",
    admin_address="127.0.0.1:8081",
    envoy_admin_address="127.0.0.1:9901",
    authz_endpoints=("127.0.0.1:1", "[::1]:2"),
    router_endpoints=("127.0.0.1:3",),
    control_endpoints=("127.0.0.1:4",),
    access_log_path="/var/log/a",
    otlp_endpoint="127.0.0.1:4317",
)


@pytest.fixture(scope="module")
def text() -> str:
    return render(SETTINGS)


def manager(text: str, listener: str) -> Any:
    found = {each["name"]: each for each in json.loads(text)["staticResources"]["listeners"]}
    return found[listener]["filterChains"][0]["filters"][0]["typedConfig"]


@pytest.mark.parametrize("listener", ["public", "admin"])
def test_authz_fails_closed_on_every_route(text: str, listener: str) -> None:
    """Fail-open, and any per-route exception to ext_authz, would be a hole."""
    assert "failureModeAllow" not in text  # false, the default
    filters = [each["name"] for each in manager(text, listener)["httpFilters"]]
    assert filters.index("envoy.filters.http.ext_authz") < filters.index("envoy.filters.http.grpc_json_transcoder")
    for route in manager(text, listener)["routeConfig"]["virtualHosts"][0]["routes"]:
        assert "envoy.filters.http.ext_authz" not in route.get("typedPerFilterConfig", {})
        assert ("route" in route) != ("directResponse" in route)


def test_each_listener_reaches_its_own_service_only(text: str) -> None:
    for listener, cluster in (("public", "router"), ("admin", "control")):
        routes = manager(text, listener)["routeConfig"]["virtualHosts"][0]["routes"]
        assert {route["route"]["cluster"] for route in routes if "route" in route} == {cluster}
        assert routes[-1]["name"] == "refuse/404"
        assert routes[-1]["match"]["prefix"] == "/"


def test_a_new_entry_in_the_catalogue_is_all_that_a_route_needs() -> None:
    """Facts, dialect and path of an operation become the edge's."""
    new = Operation(
        "/uplion.openai.v1.OpenAIService/CreateChatCompletion",
        Dialect.ANTHROPIC,
        Kind.GENERATION,
        Capability.CHAT,
        path="/v1/messages",
        facts=BodyFacts(output_tokens=("max_tokens",)),
    )
    public = manager(render(SETTINGS, [*OPERATIONS, new]), "public")
    routes = {route["name"]: route for route in public["routeConfig"]["virtualHosts"][0]["routes"]}
    route = routes["anthropic/v1/messages"]
    assert route["match"]["path"] == "/v1/messages"
    rules = route["typedPerFilterConfig"]["envoy.filters.http.json_to_metadata"]["requestRules"]["rules"]
    assert [rule["onPresent"]["key"] for rule in rules] == ["model", "max_tokens"]
    formats = [mapper["bodyFormatOverride"] for mapper in public["localReplyConfig"]["mappers"]]
    objects = [each["jsonFormat"] for each in formats if "jsonFormat" in each]
    assert {"error"} in [set(each) for each in objects]
    assert {"type", "error", "request_id"} in [set(each) for each in objects]


def test_several_endpoints_and_ipv6(text: str) -> None:
    authz = next(each for each in json.loads(text)["staticResources"]["clusters"] if each["name"] == "authz")
    endpoints = authz["loadAssignment"]["endpoints"][0]["lbEndpoints"]
    addresses = [each["endpoint"]["address"]["socketAddress"] for each in endpoints]
    assert [(each["address"], each["portValue"]) for each in addresses] == [("127.0.0.1", 1), ("::1", 2)]


def test_sockets_are_endpoints_too() -> None:
    """A cluster of sockets, or of sockets and numeric addresses, resolves no names."""
    mixed = json.loads(render(replace(SETTINGS, authz_endpoints=("unix:/run/uplion/authz-0", "127.0.0.1:2"))))
    authz = next(each for each in mixed["staticResources"]["clusters"] if each["name"] == "authz")
    endpoints = [each["endpoint"]["address"] for each in authz["loadAssignment"]["endpoints"][0]["lbEndpoints"]]
    assert endpoints[0]["pipe"]["path"] == "/run/uplion/authz-0"
    assert endpoints[1]["socketAddress"]["portValue"] == 2
    assert authz.get("type", "STATIC") == "STATIC"


@pytest.mark.parametrize("name", ["x-uplion-", "x-uplion-account", "x-uplion-m", "x-uplion-mode", "x-uplion-models"])
def test_the_pattern_of_stripped_headers_spares_one_name(name: str) -> None:
    pattern = re.compile(_all_but("x-uplion-", "x-uplion-model"))
    assert pattern.fullmatch(name)
    assert not pattern.fullmatch("x-uplion-model")
    assert not pattern.fullmatch("x-uplio")


def test_a_template_filled_in_is_what_would_be_rendered(text: str, tmp_path: Path) -> None:
    assert template.fill(SETTINGS, tmp_path, render) == text

    def never(_: EdgeSettings) -> str:
        raise AssertionError("rendered although a template was kept")

    sockets = replace(SETTINGS, envoy_admin_address="unix:/a", authz_endpoints=("unix:/b/c", "unix:/d"))
    assert template.fill(sockets, tmp_path, render) == render(sockets)
    others = replace(sockets, envoy_admin_address="unix:/e", authz_endpoints=("unix:/f", "unix:/g"))
    assert template.fill(others, tmp_path, never) == render(others)
    moved = replace(SETTINGS, public_address="127.0.0.1:1234", router_endpoints=("10.0.0.9:77",), access_log_path="/b")
    assert template.fill(moved, tmp_path, never) == render(moved)


def test_a_template_that_others_could_write_is_not_read(tmp_path: Path) -> None:
    template.fill(SETTINGS, tmp_path, lambda settings: '{"ours": 1}')
    (kept,) = tmp_path.iterdir()
    kept.write_text('{"theirs": 1}')
    kept.chmod(0o666)
    assert template.fill(SETTINGS, tmp_path, lambda settings: '{"ours": 1}') == '{\n "ours": 1\n}'
    assert kept.stat().st_mode & 0o077 == 0  # it is replaced
    assert template.fill(SETTINGS, tmp_path, lambda settings: "{}") == '{\n "ours": 1\n}'


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make another user's file")
def test_a_template_of_another_user_is_not_read(tmp_path: Path) -> None:
    template.fill(SETTINGS, tmp_path, lambda settings: '{"ours": 1}')
    (kept,) = tmp_path.iterdir()
    kept.write_text('{"theirs": 1}')
    os.chown(kept, 65534, 65534)
    assert template.fill(SETTINGS, tmp_path, lambda settings: '{"ours": 1}') == '{\n "ours": 1\n}'


def test_other_limits_make_another_template(tmp_path: Path) -> None:
    rendered: list[EdgeSettings] = []

    def remember(settings: EdgeSettings) -> str:
        rendered.append(settings)
        return "{}"

    template.fill(SETTINGS, tmp_path, remember)
    template.fill(replace(SETTINGS, max_body_bytes=1), tmp_path, remember)
    template.fill(replace(SETTINGS, authz_endpoints=("127.0.0.1:1",)), tmp_path, remember)
    template.fill(replace(SETTINGS, authz_endpoints=("127.0.0.1:9",)), tmp_path, remember)
    assert len(rendered) == 3


def test_names_take_the_long_way_and_an_unusable_folder_is_no_error(tmp_path: Path) -> None:
    named = replace(SETTINGS, router_endpoints=("router.uplion.svc:80",))
    assert template.fill(named, tmp_path, lambda settings: "rendered") == "rendered"
    blocked = tmp_path / "file"
    blocked.write_text("")
    assert template.fill(SETTINGS, blocked / "folder", lambda settings: '{"a": 1}') == '{\n "a": 1\n}'


@pytest.mark.parametrize("text", ["", "host", ":80", "host:", "host:x", "host:70000"])
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not host:port"):
        split(text)
