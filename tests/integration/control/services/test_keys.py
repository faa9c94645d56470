"""Keys over the real admin API: shown once, stored as a digest, ended everywhere."""

import asyncio
import json
from datetime import UTC, datetime, timedelta

from uplion.control.v1.account_pb2 import CreateAccountRequest, ResourceState
from uplion.control.v1.key_pb2 import CreateKeyRequest, ListKeysRequest, RevokeKeyRequest
from uplion.control.v1.limit_pb2 import Limit, LimitMeasure, LimitPeriod

from common import names
from common.errors import Reason
from credentials import api_keys

BUDGET = Limit(measure=LimitMeasure.LIMIT_MEASURE_TOKENS, period=LimitPeriod.LIMIT_PERIOD_LIFE, amount=1 << 50)


async def new_account(control, name="Team"):
    response = await control.call(control.accounts.CreateAccount, CreateAccountRequest(name=name))
    return response.account.id


async def new_key(control, account, **fields):
    return await control.call(control.keys.CreateKey, CreateKeyRequest(account=account, **fields))


async def test_a_created_key_is_well_formed_and_its_digest_is_stored_with_the_peppers_id(control, database, settings):
    account = await new_account(control)
    made = await new_key(control, account, name=" laptop ", limits=[BUDGET])
    parsed = api_keys.parse(made.secret)
    row = await database.fetchrow("SELECT * FROM keys WHERE id = $1", made.key.id)
    assert parsed.id == made.key.id
    pepper_id, _, pepper = settings.peppers[0].partition(":")
    assert row["digest"] == api_keys.digest(parsed.secret, pepper.encode())
    assert row["pepper_id"] == made.key.pepper_id == pepper_id
    assert json.loads(row["limits"]) == [{"measure": "tokens", "period": "life", "amount": 1 << 50}]
    assert (made.key.name, list(made.key.scopes), made.key.last_four) == ("laptop", ["inference"], parsed.secret[-4:])
    assert made.key.state == ResourceState.RESOURCE_STATE_ACTIVE
    assert list(made.key.limits) == [BUDGET]
    assert abs(made.key.create_time.ToDatetime(tzinfo=UTC) - datetime.now(UTC)) < timedelta(seconds=20)


async def test_the_secret_is_in_no_table_and_in_no_later_answer(control, database):
    """K6: a dump of the database opens no door."""
    account = await new_account(control)
    made = await new_key(control, account)
    secret = api_keys.parse(made.secret).secret
    listed = await control.call(control.keys.ListKeys, ListKeysRequest(account=account))
    revoked = await control.call(control.keys.RevokeKey, RevokeKeyRequest(id=made.key.id))
    dump = ""
    for table in await database.fetch("SELECT tablename FROM pg_tables WHERE schemaname = 'public'"):
        dump += repr(await database.fetch(f'SELECT * FROM "{table[0]}"'))
    assert made.key.id in dump
    assert secret not in dump + str(listed) + str(revoked)


async def test_a_revoked_key_is_announced_and_stays_revoked(control, bus):
    account = await new_account(control)
    made = await new_key(control, account)
    heard = await bus.subscribe(names.SUBJECT_INVALIDATE)
    await bus.flush()
    first = await control.call(control.keys.RevokeKey, RevokeKeyRequest(id=made.key.id))
    second = await control.call(control.keys.RevokeKey, RevokeKeyRequest(id=made.key.id))
    assert (await heard.next_msg(2)).data == f"key:{made.key.id}".encode()
    await heard.unsubscribe()
    assert first.key.state == second.key.state == ResourceState.RESOURCE_STATE_REVOKED


async def test_a_repeated_request_id_makes_one_key_and_says_so(control, database):
    account = await new_account(control)
    request = CreateKeyRequest(account=account, request_id=f"once for {account}")
    answers = await asyncio.gather(
        *(control.call(control.keys.CreateKey, request) for _ in range(5)), return_exceptions=True
    )
    assert sum(not isinstance(answer, Exception) for answer in answers) == 1
    refused = await control.refusal(control.keys.CreateKey, request)
    assert (refused.reason, refused.param) == (Reason.ALREADY_EXISTS, "request_id")
    assert await database.fetchval("SELECT count(*) FROM keys WHERE account = $1", account) == 1


async def test_a_key_needs_an_account_that_exists(control):
    refused = await control.refusal(control.keys.CreateKey, CreateKeyRequest(account="acc_nobody"))
    assert (refused.reason, refused.param) == (Reason.NOT_FOUND, "account")


async def test_every_wrong_field_is_named(control):
    account = await new_account(control)
    past, far = CreateKeyRequest(account=account), CreateKeyRequest(account=account)
    past.expire_time.FromDatetime(datetime.now(UTC) - timedelta(seconds=1))
    far.expire_time.seconds = 1 << 60
    wrong = {
        "name": CreateKeyRequest(account=account, name="x" * 101),
        "scopes": CreateKeyRequest(account=account, scopes=["inference", "root"]),
        "account": CreateKeyRequest(account="a\0b"),
        "request_id": CreateKeyRequest(account=account, request_id="r" * 101),
        "limits[1].measure": CreateKeyRequest(account=account, limits=[BUDGET, Limit(amount=5)]),
    }
    for param, request in [*wrong.items(), ("expire_time", past), ("expire_time", far)]:
        refused = await control.refusal(control.keys.CreateKey, request)
        assert (refused.reason, refused.param) == (Reason.INVALID_REQUEST, param)
    refused = await control.refusal(control.keys.RevokeKey, RevokeKeyRequest())
    assert (refused.reason, refused.param) == (Reason.INVALID_REQUEST, "id")
    refused = await control.refusal(control.keys.RevokeKey, RevokeKeyRequest(id="nothing"))
    assert (refused.reason, refused.param) == (Reason.NOT_FOUND, "id")


async def test_expiry_and_scopes_come_back_as_given(control):
    account = await new_account(control)
    request = CreateKeyRequest(account=account, scopes=["inference", "admin", "inference"])
    request.expire_time.FromDatetime(datetime.now(UTC) + timedelta(days=1))
    made = await control.call(control.keys.CreateKey, request)
    listed = await control.call(control.keys.ListKeys, ListKeysRequest(account=account))
    assert list(made.key.scopes) == ["admin", "inference"]
    assert abs(listed.keys[0].expire_time.ToNanoseconds() - request.expire_time.ToNanoseconds()) < 1000
    assert listed.keys[0] == made.key


async def test_pages_hold_every_key_once_oldest_first(control):
    account, other = await new_account(control), await new_account(control, "Other")
    made = [(await new_key(control, account, name=f"k{number}")).key.id for number in range(5)]
    await new_key(control, other)
    found, token = [], ""
    for _ in range(3):
        page = await control.call(
            control.keys.ListKeys, ListKeysRequest(account=account, page_size=2, page_token=token)
        )
        found += [key.id for key in page.keys]
        token = page.next_page_token
    assert (found, token) == (made, "")
    everything = await control.call(control.keys.ListKeys, ListKeysRequest())
    assert len(everything.keys) == 6


async def test_a_wrong_page_is_refused_by_field(control):
    for token in ("nonsense!", "AAAA", "MTIzIHg\u00e9", "OTk5OTk5OTk5OTk5OTk5OTk5OTk5OTkgeA"):
        refused = await control.refusal(control.keys.ListKeys, ListKeysRequest(page_token=token))
        assert (refused.reason, refused.param) == (Reason.INVALID_REQUEST, "page_token")
    refused = await control.refusal(control.keys.ListKeys, ListKeysRequest(page_size=-1))
    assert (refused.reason, refused.param) == (Reason.INVALID_REQUEST, "page_size")
