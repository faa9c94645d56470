"""Keys as they change over the real admin API: updated, rotated, used, deleted."""

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.field_mask_pb2 import FieldMask
from uplion.control.v1.account_pb2 import CreateAccountRequest, ResourceState
from uplion.control.v1.key_pb2 import (
    CreateKeyRequest,
    DeleteKeyRequest,
    GetKeyRequest,
    RevokeKeyRequest,
    RotateKeyRequest,
    UpdateKeyRequest,
)
from uplion.control.v1.limit_pb2 import Limit, LimitMeasure

from common import names
from common.errors import Reason
from credentials import api_keys
from tests.kit.until import until

SUSPENDED = ResourceState.RESOURCE_STATE_SUSPENDED
MAY: dict[str, Any] = {
    "scopes": ["inference"],
    "limits": [Limit(measure=LimitMeasure.LIMIT_MEASURE_CONCURRENCY, amount=4)],
    "labels": {"a": "b"},
    "models": ["llama-*", "org/model"],
    "tiers": ["fast", "default"],
    "networks": ["10.0.0.0/8", "2001:db8::/32"],
}


@pytest.fixture
async def key(control):
    """A key of an account of its own that has everything."""
    account = (await control.call(control.accounts.CreateAccount, CreateAccountRequest(name="Team"))).account.id
    request = CreateKeyRequest(account=account, name="n", **MAY)
    request.expire_time.FromDatetime(datetime.now(UTC) + timedelta(days=30))
    return (await control.call(control.keys.CreateKey, request)).key


async def show(control, key_id):
    return (await control.call(control.keys.GetKey, GetKeyRequest(id=key_id))).key


def may(key):
    return {name: dict(value) if name == "labels" else list(value) for name in MAY for value in [getattr(key, name)]}


async def test_what_a_key_may_do_comes_back_as_given(control, key):
    assert may(key) == MAY
    assert await show(control, key.id) == key


async def test_an_update_changes_what_it_names_empties_what_its_mask_names_and_is_announced(control, key, bus):
    heard = await bus.subscribe(names.SUBJECT_INVALIDATE)
    await bus.flush()
    changed = await control.call(control.keys.UpdateKey, UpdateKeyRequest(id=key.id, networks=["::1"], state=SUSPENDED))
    assert (await heard.next_msg(30)).data == f"key:{key.id}".encode()
    await heard.unsubscribe()
    assert may(changed.key) == MAY | {"networks": ["::1/128"]}
    assert changed.key.state == SUSPENDED
    everything = await control.call(
        control.keys.UpdateKey,
        UpdateKeyRequest(id=key.id, state=ResourceState.RESOURCE_STATE_ACTIVE, update_mask=FieldMask(paths=["*"])),
    )
    assert may(everything.key) == {name: {} if name == "labels" else [] for name in MAY} | {"scopes": ["inference"]}
    assert not everything.key.HasField("expire_time")


async def test_a_rotated_key_overlaps_with_one_that_may_do_the_same(control, key, bus):
    """K3: the old key goes on until the overlap is over."""
    heard = await bus.subscribe(names.SUBJECT_INVALIDATE)
    await bus.flush()
    made = await control.call(control.keys.RotateKey, RotateKeyRequest(id=key.id, overlap=Duration(seconds=3600)))
    assert (await heard.next_msg(30)).data == f"key:{key.id}".encode()
    await heard.unsubscribe()
    assert api_keys.parse(made.secret).id == made.key.id != key.id
    assert may(made.key) == MAY
    assert (made.key.account, made.key.name, made.key.expire_time) == (key.account, "n", key.expire_time)
    assert made.replaced.successor == made.key.id
    left = made.replaced.expire_time.ToDatetime(tzinfo=UTC) - datetime.now(UTC)
    assert timedelta(minutes=58) < left <= timedelta(hours=1)
    assert await show(control, key.id) == made.replaced
    refused = await control.refusal(control.keys.RotateKey, RotateKeyRequest(id=key.id))
    assert (refused.reason, refused.param) == (Reason.INVALID_REQUEST, "id")


async def test_without_an_overlap_the_old_key_ends_at_once_and_an_earlier_expiry_stays(control, key):
    made = await control.call(control.keys.RotateKey, RotateKeyRequest(id=key.id))
    assert made.replaced.expire_time.ToDatetime(tzinfo=UTC) <= datetime.now(UTC)
    renewed = RotateKeyRequest(id=made.key.id, overlap=Duration(seconds=86400 * 365))
    renewed.expire_time.FromDatetime(datetime.now(UTC) + timedelta(days=400))
    again = await control.call(control.keys.RotateKey, renewed)
    assert again.replaced.expire_time == made.key.expire_time  # a rotation makes no key live longer
    assert abs(again.key.expire_time.ToNanoseconds() - renewed.expire_time.ToNanoseconds()) < 1000


async def test_a_key_is_rotated_once_however_often_it_is_asked_at_once(control, key, database):
    answers = await asyncio.gather(
        *(control.call(control.keys.RotateKey, RotateKeyRequest(id=key.id)) for _ in range(5)), return_exceptions=True
    )
    assert sum(not isinstance(answer, Exception) for answer in answers) == 1
    assert await database.fetchval("SELECT count(*) FROM keys WHERE account = $1", key.account) == 2


async def test_what_does_not_work_is_neither_rotated_nor_changed(control, key, database):
    await control.call(control.keys.UpdateKey, UpdateKeyRequest(id=key.id, state=SUSPENDED))
    refused = await control.refusal(control.keys.RotateKey, RotateKeyRequest(id=key.id))
    assert (refused.reason, "suspended" in refused.message) == (Reason.INVALID_REQUEST, True)
    await control.call(control.keys.UpdateKey, UpdateKeyRequest(id=key.id, state=ResourceState.RESOURCE_STATE_ACTIVE))
    await database.execute("UPDATE keys SET expire_time = now() - interval '1 s' WHERE id = $1", key.id)
    refused = await control.refusal(control.keys.RotateKey, RotateKeyRequest(id=key.id))
    assert (refused.reason, "expired" in refused.message) == (Reason.INVALID_REQUEST, True)
    await control.call(control.keys.RevokeKey, RevokeKeyRequest(id=key.id))
    refused = await control.refusal(control.keys.UpdateKey, UpdateKeyRequest(id=key.id, name="x"))
    assert (refused.reason, refused.param) == (Reason.INVALID_REQUEST, "id")


async def test_only_what_works_no_more_is_deleted(control, key, database):
    refused = await control.refusal(control.keys.DeleteKey, DeleteKeyRequest(id=key.id))
    assert (refused.reason, refused.param) == (Reason.INVALID_REQUEST, "id")
    successor = (await control.call(control.keys.RotateKey, RotateKeyRequest(id=key.id))).key
    await control.call(control.keys.RevokeKey, RevokeKeyRequest(id=successor.id))
    await control.call(control.keys.DeleteKey, DeleteKeyRequest(id=successor.id))
    assert (await show(control, key.id)).successor == ""
    await control.call(control.keys.DeleteKey, DeleteKeyRequest(id=key.id))  # it has expired
    refused = await control.refusal(control.keys.DeleteKey, DeleteKeyRequest(id=key.id))
    assert (refused.reason, refused.param) == (Reason.NOT_FOUND, "id")
    assert await database.fetchval("SELECT count(*) FROM keys") == 0


async def test_last_use_is_noted_from_what_authz_says(control, key, bus):
    before = datetime.now(UTC) - timedelta(seconds=1)

    async def noted():
        # Published again and again: no event says when control has subscribed.
        await bus.publish_core(names.SUBJECT_LAST_USED, f"stranger0000 {key.id} nonsense\xff".encode("latin-1"))
        return (await show(control, key.id)).HasField("last_used_time")

    await until(noted)
    assert before < (await show(control, key.id)).last_used_time.ToDatetime(tzinfo=UTC) <= datetime.now(UTC)


async def test_every_wrong_field_is_named(control, key):
    past = UpdateKeyRequest(id=key.id)
    past.expire_time.FromDatetime(datetime.now(UTC) - timedelta(seconds=1))
    wrong = {
        "networks": UpdateKeyRequest(id=key.id, networks=["10.0.0.1/8"]),
        "models": UpdateKeyRequest(id=key.id, models=[""]),
        "tiers": UpdateKeyRequest(id=key.id, tiers=["Not A Tier"]),
        "state": UpdateKeyRequest(id=key.id, state=ResourceState.RESOURCE_STATE_REVOKED),
        "expire_time": past,
        "update_mask": UpdateKeyRequest(id=key.id, update_mask=FieldMask(paths=["scopes"])),
    }
    for param, request in wrong.items():
        refused = await control.refusal(control.keys.UpdateKey, request)
        assert (refused.reason, refused.param) == (Reason.INVALID_REQUEST, param)
    for overlap in (Duration(seconds=-1), Duration(seconds=86400 * 400)):
        refused = await control.refusal(control.keys.RotateKey, RotateKeyRequest(id=key.id, overlap=overlap))
        assert (refused.reason, refused.param) == (Reason.INVALID_REQUEST, "overlap")
