"""An erased account is an id: nothing says any more who it was, and everything that was counted stays."""

from uplion.control.v1.account_pb2 import (
    CreateAccountRequest,
    EraseAccountRequest,
    ResourceState,
    UpdateAccountRequest,
)
from uplion.control.v1.key_pb2 import CreateKeyRequest
from uplion.control.v1.project_pb2 import CreateProjectRequest
from uplion.control.v1.statement_pb2 import GetStatementRequest
from uplion.control.v1.statement_service_pb2_grpc import StatementServiceStub

from common import names
from common.errors import Reason
from tests.integration.control.conftest import CALLER, by
from tests.integration.control.services.test_requests import write

CANARY = "Erika Mustermann"
COUNTED = ("usage_events", "usage_hourly", "ledger_chain", "balances")


async def everything(database):
    """Every row of every table, as text."""
    tables = await database.fetch(
        "SELECT relname FROM pg_class WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace"
    )
    return {
        table["relname"]: [row[0] for row in await database.fetch(f'SELECT t::text FROM "{table["relname"]}" AS t')]
        for table in tables
    }


async def test_nothing_says_who_it_was_and_what_was_counted_stays(control, database, bus):
    labels = {"who": CANARY}
    created = await control.call(
        control.accounts.CreateAccount,
        CreateAccountRequest(name=CANARY, labels=labels, request_id=f"{CANARY} 1"),
    )
    account = created.account.id
    project = await control.call(
        control.projects.CreateProject, CreateProjectRequest(account=account, name=CANARY, labels=labels)
    )
    key = (
        await control.call(
            control.keys.CreateKey,
            CreateKeyRequest(
                project=project.project.id, name=CANARY, labels=labels, networks=["192.0.2.77/32"], request_id=CANARY
            ),
        )
    ).key.id
    await write(database, "request-1", 1, account=account)
    await database.execute(
        "INSERT INTO usage_hourly (hour, account, key, model, currency, requests, input_tokens, cached_tokens,"
        " output_tokens, reasoning_tokens, cost) VALUES ('2026-11-01', $1, $2, 'm', 'EUR', 1, 2, 0, 3, 0, 4)",
        account,
        key,
    )
    before = await everything(database)
    assert CANARY in str(before)
    heard = await bus.subscribe(names.SUBJECT_INVALIDATE)
    await bus.flush()

    erased = (await control.call(control.accounts.EraseAccount, EraseAccountRequest(id=account))).account

    assert (erased.id, erased.name, erased.state) == (account, "erased", ResourceState.RESOURCE_STATE_SUSPENDED)
    assert erased.HasField("erase_time")
    after = await everything(database)
    for canary in (CANARY, "192.0.2.77"):
        assert canary not in str(after)
    assert {table: after[table] for table in before if table.startswith(COUNTED)} == {
        table: before[table] for table in before if table.startswith(COUNTED)
    }
    row = await database.fetchrow("SELECT * FROM keys WHERE id = $1", key)
    assert (row["state"], row["digest"], row["last_four"]) == ("revoked", bytes(32), "")
    told = {(await heard.next_msg(timeout=20)).data.decode() for _ in range(2)}
    assert told == {f"account:{account}", f"key:{key}"}
    statement = await control.call(
        StatementServiceStub(control.channel).GetStatement, GetStatementRequest(account=account, month="2026-11")
    )
    assert [total.cost for total in statement.statement.totals] == ["4"]
    again = (await control.call(control.accounts.EraseAccount, EraseAccountRequest(id=account))).account
    assert again == erased


async def test_an_erased_account_is_nobody_for_ever_and_nobody_erases_itself(control):
    created = await control.call(control.accounts.CreateAccount, CreateAccountRequest(name="a"))
    request = EraseAccountRequest(id=created.account.id)
    own = by(names.SCOPE_ADMIN, account=created.account.id)
    refused = await control.refusal(control.accounts.EraseAccount, request, own)
    assert (refused.reason, refused.param) == (Reason.INVALID_REQUEST, "id")
    await control.call(control.accounts.EraseAccount, request, CALLER)
    for change in ({"state": ResourceState.RESOURCE_STATE_ACTIVE}, {"name": "b"}):
        wake = UpdateAccountRequest(id=created.account.id, **change)
        assert (await control.refusal(control.accounts.UpdateAccount, wake)).reason is Reason.NOT_FOUND
    nobody = EraseAccountRequest(id="acc_nobody")
    assert (await control.refusal(control.accounts.EraseAccount, nobody)).reason is Reason.NOT_FOUND
