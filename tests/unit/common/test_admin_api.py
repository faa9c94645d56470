"""The admin API as the descriptors have it."""

from common import admin_api


def test_every_service_is_found_with_the_files_it_is_made_of():
    assert [service.name for service in admin_api.services()][:3] == ["AccountService", "AlertService", "KeyService"]
    assert len({service.file.name for service in admin_api.services()}) == len(admin_api.services())


def test_every_method_declares_a_scope():
    paths = {f"/{service.full_name}/{method.name}" for service in admin_api.services() for method in service.methods}
    assert set(admin_api.scopes()) == paths
    assert set(admin_api.scopes().values()) == {"admin:read", "admin:write", "admin"}
