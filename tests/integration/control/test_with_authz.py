"""control and the real authz together: what control says of a key is what happens to its requests."""

import json
from contextlib import AsyncExitStack
from dataclasses import replace
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from uplion.control.v1.account_pb2 import CreateAccountRequest, ResourceState, UpdateAccountRequest
from uplion.control.v1.key_pb2 import (
    CreateKeyRequest,
    ListKeysRequest,
    RevokeKeyRequest,
    RotateKeyRequest,
    UpdateKeyRequest,
)
from uplion.control.v1.key_service_pb2_grpc import KeyServiceStub
from uplion.control.v1.project_pb2 import CreateProjectRequest, UpdateProjectRequest

from authz.settings import AuthzSettings
from common.names import HEADER_REQUEST_ID, LISTENER_ADMIN
from credentials import api_keys
from tests.integration.authz.conftest import running
from tests.kit.until import until

OLD, NEW = "1:pepper of the past", "2:pepper of the tests"
ACTIVE, SUSPENDED = ResourceState.RESOURCE_STATE_ACTIVE, ResourceState.RESOURCE_STATE_SUSPENDED
_LATER = Duration(seconds=3600)


@pytest.fixture
def authz_settings(settings, redis_url):
    """As control's; a change is seen because it is announced, not because time passes."""
    return AuthzSettings(
        postgres_url=settings.postgres_url,
        redis_url=redis_url,
        nats_url=settings.nats_url,
        peppers=settings.peppers,
        proof_keys=settings.proof_keys,
        limits_seconds=30.0,
        lookup_seconds=30.0,
        key_ttl_seconds=600.0,
        unknown_ttl_seconds=600.0,
    )


async def becomes(authz, text, status):
    """Waits until the key is answered so."""

    async def answered():
        return (await authz.check(text)).status == status

    await until(answered)


async def test_keys_under_an_old_and_a_new_pepper_work_while_both_are_known(
    settings, authz_settings, start_control, database
):
    """K3: a new pepper is put first, keys are rotated at leisure, then the old one is taken away."""
    async with start_control(replace(settings, peppers=(OLD,))) as control:
        account = await _account(control)
        first, second = [
            await control.call(control.keys.CreateKey, CreateKeyRequest(account=account)) for _ in range(2)
        ]
    async with (
        start_control(replace(settings, peppers=(NEW, OLD))) as control,
        running(replace(authz_settings, peppers=(OLD, NEW)), database) as authz,
    ):
        made = await control.call(control.keys.CreateKey, CreateKeyRequest(account=account))
        rotated = await control.call(control.keys.RotateKey, RotateKeyRequest(id=first.key.id, overlap=_LATER))
        assert [each.key.pepper_id for each in (first, second, made, rotated)] == ["1", "1", "2", "2"]
        for each in (first, second, made, rotated):
            assert (await authz.check(each.secret)).status == 200
    async with running(replace(authz_settings, peppers=(NEW,)), database) as authz:
        answers = [(await authz.check(each.secret)).status for each in (first, second, made, rotated)]
    assert answers == [401, 401, 200, 200]


async def test_a_proof_key_is_replaced_without_a_refused_call_and_the_old_one_proves_nothing_then(
    settings, authz_settings, start_control, database, tmp_path
):
    """In the steps of docs/identity.md: at each of them, old processes and restarted ones serve beside each other."""
    old, new = "1:" + "o" * 32, "2:" + "n" * 32
    bootstrap = replace(settings, bootstrap_file=tmp_path / "keys.json")
    async with AsyncExitStack() as stack:
        controls = {}
        for name, keys in {"old": (old,), "both": (old, new), "new": (new,)}.items():
            controls[name] = await stack.enter_async_context(start_control(replace(bootstrap, proof_keys=keys)))
        authzs = {}
        for name, keys in {"old": (old,), "both": (old, new), "first": (new, old), "new": (new,)}.items():
            authzs[name] = await stack.enter_async_context(running(replace(authz_settings, proof_keys=keys), database))
        key = json.loads(bootstrap.bootstrap_file.read_text())["admin_key"]
        beside = [  # authzs and controls that run at the same time
            (("old",), ("old", "both")),
            (("old", "both"), ("both",)),
            (("both", "first"), ("both",)),
            (("first", "new"), ("both", "new")),
        ]
        answered = [
            await _list_keys(authzs[each], controls[control], key)
            for makers, verifiers in beside
            for each in makers
            for control in verifiers
            for _ in range(20)
        ]
        assert set(answered) == {grpc.StatusCode.OK}
        for maker, verifier in (("old", "new"), ("both", "new"), ("new", "old"), ("first", "old")):
            assert await _list_keys(authzs[maker], controls[verifier], key) is grpc.StatusCode.PERMISSION_DENIED


async def _list_keys(authz, control, key):
    """The status of a call that authz checks and control serves, as the edge passes it on."""
    admitted = await authz.check(key, listener=LISTENER_ADMIN, method="GET", path="/admin/v1/keys")
    assert admitted.status == 200
    metadata = (*admitted.headers.items(), (HEADER_REQUEST_ID, admitted.request_id))
    call = KeyServiceStub(control.channel.bare).ListKeys(ListKeysRequest(), metadata=metadata, timeout=60)
    return await call.code()


async def test_every_change_of_a_key_its_project_and_its_account_reaches_authz(control, authz_settings, database):
    account = await _account(control)
    project = (
        await control.call(control.projects.CreateProject, CreateProjectRequest(account=account, name="P"))
    ).project.id
    made = await control.call(control.keys.CreateKey, CreateKeyRequest(project=project))
    changes: list[Any] = [
        (control.keys.UpdateKey, UpdateKeyRequest(id=made.key.id)),
        (control.projects.UpdateProject, UpdateProjectRequest(id=project)),
        (control.accounts.UpdateAccount, UpdateAccountRequest(id=account)),
    ]
    async with running(authz_settings, database) as authz:
        assert (await authz.check(made.secret)).status == 200
        for method, request in changes:
            for state, status in ((SUSPENDED, 401), (ACTIVE, 200)):
                request.state = state
                await control.call(method, request)
                await becomes(authz, made.secret, status)
        await control.call(control.keys.UpdateKey, UpdateKeyRequest(id=made.key.id, models=["another"]))
        await becomes(authz, made.secret, 403)
        rotated = await control.call(control.keys.RotateKey, RotateKeyRequest(id=made.key.id))
        await becomes(authz, made.secret, 401)
        assert (await authz.check(rotated.secret, model="another")).status == 200
        await control.call(control.keys.RevokeKey, RevokeKeyRequest(id=rotated.key.id))
        await becomes(authz, rotated.secret, 401)


async def test_the_public_test_key_is_refused_even_if_somebody_stored_it(control, authz_settings, settings, database):
    made = await control.call(control.keys.CreateKey, CreateKeyRequest(account=await _account(control)))
    known = api_keys.parse(api_keys.TEST_KEY)
    pepper = settings.peppers[0].partition(":")[2].encode()
    await database.execute(
        "UPDATE keys SET id = $2, digest = $3 WHERE id = $1",
        made.key.id,
        known.id,
        api_keys.digest(known.secret, pepper),
    )
    async with running(authz_settings, database) as authz:
        assert (await authz.check(api_keys.TEST_KEY)).status == 401


async def _account(control):
    return (await control.call(control.accounts.CreateAccount, CreateAccountRequest(name="Team"))).account.id
