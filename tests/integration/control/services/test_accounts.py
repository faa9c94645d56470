"""Accounts over the real admin API."""

import asyncio
import uuid

from google.protobuf.field_mask_pb2 import FieldMask
from uplion.control.v1.account_pb2 import (
    CreateAccountRequest,
    ListAccountsRequest,
    ResourceState,
    UpdateAccountRequest,
)
from uplion.control.v1.limit_pb2 import Limit, LimitMeasure, LimitPeriod

from common import names
from common.errors import Reason

PER_MINUTE = Limit(measure=LimitMeasure.LIMIT_MEASURE_REQUESTS, period=LimitPeriod.LIMIT_PERIOD_MINUTE, amount=7)
BUDGET = Limit(
    measure=LimitMeasure.LIMIT_MEASURE_COST,
    period=LimitPeriod.LIMIT_PERIOD_MONTH,
    amount=25_000_000,
    model="org/model",
    currency="USD",
    shadow=True,
)


async def test_a_retried_creation_returns_the_first_account(control):
    request = CreateAccountRequest(name="Team", request_id=str(uuid.uuid4()), limits=[PER_MINUTE, BUDGET])
    answers = await asyncio.gather(*(control.call(control.accounts.CreateAccount, request) for _ in range(5)))
    assert len({answer.account.id for answer in answers}) == 1
    account = answers[0].account
    assert (account.name, account.state) == ("Team", ResourceState.RESOURCE_STATE_ACTIVE)
    assert list(account.limits) == [PER_MINUTE, BUDGET]


async def test_pages_hold_every_account_once_oldest_first(control):
    made = [
        (await control.call(control.accounts.CreateAccount, CreateAccountRequest(name=f"a{number}"))).account.id
        for number in range(4)
    ]
    first = await control.call(control.accounts.ListAccounts, ListAccountsRequest(page_size=3))
    second = await control.call(
        control.accounts.ListAccounts, ListAccountsRequest(page_size=3, page_token=first.next_page_token)
    )
    assert [account.id for account in [*first.accounts, *second.accounts]] == made
    assert not second.next_page_token


async def test_an_update_changes_what_it_names_and_is_announced(control, bus):
    made = await control.call(control.accounts.CreateAccount, CreateAccountRequest(name="Team", limits=[PER_MINUTE]))
    heard = await bus.subscribe(names.SUBJECT_INVALIDATE)
    await bus.flush()
    suspended = await control.call(
        control.accounts.UpdateAccount,
        UpdateAccountRequest(id=made.account.id, state=ResourceState.RESOURCE_STATE_SUSPENDED),
    )
    assert suspended.account.state == ResourceState.RESOURCE_STATE_SUSPENDED
    assert list(suspended.account.limits) == [PER_MINUTE]
    assert (await heard.next_msg(2)).data == f"account:{made.account.id}".encode()
    await heard.unsubscribe()
    unlimited = await control.call(
        control.accounts.UpdateAccount,
        UpdateAccountRequest(id=made.account.id, update_mask=FieldMask(paths=["limits"])),
    )
    assert unlimited.account.state == ResourceState.RESOURCE_STATE_SUSPENDED
    assert not unlimited.account.limits


async def test_every_wrong_field_is_named(control):
    active = ResourceState.RESOURCE_STATE_ACTIVE
    masked = UpdateAccountRequest(id="x", update_mask=FieldMask(paths=["id"]))
    revoked = UpdateAccountRequest(id="x", state=ResourceState.RESOURCE_STATE_REVOKED)
    unknown = UpdateAccountRequest(id="x", state=99)  # type: ignore[arg-type]
    cases = [
        (control.accounts.CreateAccount, CreateAccountRequest(), Reason.INVALID_REQUEST, "name"),
        (control.accounts.CreateAccount, CreateAccountRequest(name="x" * 101), Reason.INVALID_REQUEST, "name"),
        (control.accounts.CreateAccount, CreateAccountRequest(name="a\x07b"), Reason.INVALID_REQUEST, "name"),
        (control.accounts.UpdateAccount, UpdateAccountRequest(), Reason.INVALID_REQUEST, "id"),
        (control.accounts.UpdateAccount, UpdateAccountRequest(id="nobody", state=active), Reason.NOT_FOUND, "id"),
        (control.accounts.UpdateAccount, UpdateAccountRequest(id="x"), Reason.INVALID_REQUEST, "update_mask"),
        (control.accounts.UpdateAccount, masked, Reason.INVALID_REQUEST, "update_mask"),
        (control.accounts.UpdateAccount, revoked, Reason.INVALID_REQUEST, "state"),
        (control.accounts.UpdateAccount, unknown, Reason.INVALID_REQUEST, "state"),
        (control.accounts.ListAccounts, ListAccountsRequest(page_token="x"), Reason.INVALID_REQUEST, "page_token"),
    ]
    for method, request, reason, param in cases:
        refused = await control.refusal(method, request)
        assert (refused.reason, refused.param) == (reason, param)
