"""The admin API as the descriptors have it."""

import re

import pytest

from common import admin_api


def test_every_service_is_found_with_the_files_it_is_made_of():
    assert [service.name for service in admin_api.services()][:3] == ["AccountService", "AlertService", "KeyService"]
    assert len({service.file.name for service in admin_api.services()}) == len(admin_api.services())


def test_every_method_declares_a_scope():
    paths = {f"/{service.full_name}/{method.name}" for service in admin_api.services() for method in service.methods}
    assert set(admin_api.scopes()) == paths
    assert set(admin_api.scopes().values()) == {"admin:read", "admin:write", "admin"}


def test_every_method_is_found_by_its_http_path():
    for route in admin_api.routes():
        for value in ("k", "a.b-c_d", "2026-11", "a:b"):
            filled = re.sub(r"\{\w+\}", value, route.path)
            for each in (filled, f"{filled}?page_size=1&x=/y:z"):
                assert admin_api.find(route.verb, each) == route, each
        assert admin_api.find("POST", route.rpc) is None
    assert {route.rpc for route in admin_api.routes()} == set(admin_api.scopes())


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/"),
        ("GET", ""),
        ("PUT", "/admin/v1/keys/k"),
        ("GET", "/admin/v1/keys/k/more"),
        ("POST", "/admin/v1/keys/k"),
        ("GET", "/v1/models"),
        ("POST", "/uplion.control.v1.KeyService/NoSuch"),
        ("POST", "/uplion.openai.v1.OpenAIService/CreateChatCompletion"),
    ],
)
def test_what_is_no_method_is_not_found(method, path):
    assert admin_api.find(method, path) is None
