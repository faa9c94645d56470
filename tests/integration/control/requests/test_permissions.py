"""Who may call what, for every method that the contract has: a new one without an answer here fails."""

import grpc
import grpc.aio
import pytest
from google.protobuf.field_mask_pb2 import FieldMask
from uplion.control.v1.account_pb2 import CreateAccountRequest, ListAccountsRequest, ResourceState, UpdateAccountRequest
from uplion.control.v1.key_pb2 import (
    CreateKeyRequest,
    ListKeysRequest,
    RevokeKeyRequest,
    RotateKeyRequest,
    UpdateKeyRequest,
)
from uplion.control.v1.project_pb2 import CreateProjectRequest

from common import admin_api, names
from common.errors import Reason
from edge.descriptors import CONTROL_SERVICES
from tests.integration.control.conftest import by
from tests.integration.control.services.test_requests import write
from tests.kit.admin_methods import aimed, every_method

READ, WRITE, ADMIN = names.SCOPE_ADMIN_READ, names.SCOPE_ADMIN_WRITE, names.SCOPE_ADMIN
# Written down a second time, on purpose: a scope that was changed by accident in proto/ is found here.
SCOPES = {
    READ: {
        *("GetAccount", "ListAccounts", "ListAlerts", "GetKey", "ListKeys", "ExportLedger", "ListLedgerKeys"),
        "GetOpenAPI",
        *(
            "GetOpenAPI",
            "ListPrices",
            "GetProject",
            "ListProjects",
            "GetRequest",
            "GetStatement",
            "ExportUsage",
            "QueryUsage",
        ),
    },
    WRITE: {
        *("UpdateAccount", "CreateKey", "DeleteKey", "RevokeKey", "RotateKey", "UpdateKey"),
        *("CreateProject", "UpdateProject"),
    },
    ADMIN: {
        *("CreateAccount", "EraseAccount", "ApplyModel", "DeleteModel", "ListModels", "CreatePrice"),
        *("GetReconciliation", "RunReconciliation", "QueryMargin"),
    },
}
SCOPE_OF = {method: scope for scope, methods in SCOPES.items() for method in methods}
REFUSED = (Reason.PERMISSION_DENIED, Reason.NOT_FOUND)


@pytest.fixture
async def tenants(control, database):
    """Two accounts, each with a project, a key of it, a request in the ledger, and a word its objects alone hold."""
    made = {}
    for name in ("a", "b"):
        labels = {"word": f"canary-{name}"}
        account = await control.call(control.accounts.CreateAccount, CreateAccountRequest(name=name, labels=labels))
        project = await control.call(
            control.projects.CreateProject,
            CreateProjectRequest(account=account.account.id, name=name, labels=labels),
        )
        key = await control.call(control.keys.CreateKey, CreateKeyRequest(project=project.project.id, labels=labels))
        await write(database, f"request-{name}", 1, account=account.account.id)
        made[name] = {
            "account": account.account.id,
            "project": project.project.id,
            "key": key.key.id,
            "request_id": f"request-{name}",
        }
    return made


def test_every_method_of_the_contract_has_its_scope_and_its_door():
    methods = every_method()
    assert {each.path: SCOPE_OF[each.name] for each in methods} == admin_api.scopes()
    assert len(methods) == len(SCOPE_OF)
    assert {f"uplion.control.v1.{each.service}" for each in methods} == set(CONTROL_SERVICES)


@pytest.mark.parametrize("metadata", [(), ((names.HEADER_ACCOUNT, "default"),), ((names.HEADER_KEY, "k"),)])
async def test_no_method_answers_a_call_that_did_not_pass_the_gateway(control, metadata):
    for method in every_method():
        refused = await control.refusal(method.on(control.channel.bare), method.request(), metadata)
        assert refused.reason is Reason.PERMISSION_DENIED, method


async def test_a_method_is_for_its_scopes_and_for_no_others(control, tenants):
    """The least scope that is enough, and everything that is not; also for objects of the caller's own."""
    for method in every_method():
        need = SCOPE_OF[method.name]
        for scope in {"", names.SCOPE_INFERENCE, READ, WRITE} - {need}:
            caller = by(scope, account=tenants["a"]["account"])
            refused = await control.refusal(method.on(control.channel), aimed(method, tenants["a"]), caller)
            assert (refused.reason, refused.facts["scope"]) == (Reason.PERMISSION_DENIED, need), (method, scope)


async def test_an_accounts_admin_does_not_reach_another_account(control, tenants, database):
    """S2: every method, aimed at another tenant's objects."""
    before = await snapshot(database)
    caller = by(READ, WRITE, names.SCOPE_INFERENCE, account=tenants["a"]["account"])
    for method in every_method():
        request = aimed(method, tenants["b"])
        if request.ByteSize():  # else it cannot name anything
            refused = await control.refusal(method.on(control.channel), request, caller)
            assert refused.reason in REFUSED, (method, refused.message)
        for account in ("", tenants["a"]["account"]):
            ids = tenants["b"] | {"account": account}
            try:
                answer = await control.call(method.on(control.channel), aimed(method, ids), caller)
            except grpc.aio.AioRpcError as problem:
                answer = problem.details()
            assert "canary-b" not in str(answer), method
    assert await snapshot(database) == before


async def snapshot(database):
    """What there is of tenant b, and how many objects in all but the caller's own."""
    found = {}
    for table in ("accounts", "projects", "keys"):
        rows = await database.fetch(f"SELECT * FROM {table} WHERE labels ->> 'word' = 'canary-b'")
        found[table] = [tuple(row) for row in rows]
    return found


async def test_the_same_methods_answer_about_the_callers_own(control, tenants):
    """The refusals above are for whose the objects are, not for how they were asked for."""
    caller = by(READ, WRITE, account=tenants["a"]["account"])
    answered = set()
    for method in every_method():
        if SCOPE_OF[method.name] == READ:
            answer = await control.call(method.on(control.channel), aimed(method, tenants["a"]), caller)
            answered |= {method.name} if "canary-a" in str(answer) else set()
    assert answered == {"GetAccount", "ListAccounts", "GetKey", "ListKeys", "GetProject", "ListProjects"}


async def test_lists_hold_the_callers_own_alone(control, tenants):
    caller = by(READ, account=tenants["a"]["account"])
    accounts = await control.call(control.accounts.ListAccounts, ListAccountsRequest(), caller)
    assert [account.id for account in accounts.accounts] == [tenants["a"]["account"]]
    keys = await control.call(control.keys.ListKeys, ListKeysRequest(), caller)
    assert [key.id for key in keys.keys] == [tenants["a"]["key"]]


async def test_what_an_account_may_spend_is_the_operators_to_say(control, tenants):
    own = tenants["a"]["account"]
    caller = by(WRITE, account=own)
    renamed = await control.call(control.accounts.UpdateAccount, UpdateAccountRequest(id=own, name="Mine"), caller)
    assert renamed.account.name == "Mine"
    for field in ("limits", "state"):
        request = UpdateAccountRequest(
            id=own, state=ResourceState.RESOURCE_STATE_ACTIVE, update_mask=FieldMask(paths=[field])
        )
        refused = await control.refusal(control.accounts.UpdateAccount, request, caller)
        assert (refused.reason, refused.param) == (Reason.PERMISSION_DENIED, field)


async def test_only_the_operator_grants_admin_and_has_such_keys(control, tenants):
    own = tenants["a"]["account"]
    caller = by(READ, WRITE, account=own)
    mine = await control.call(control.keys.CreateKey, CreateKeyRequest(scopes=[WRITE, READ]), caller)
    assert mine.key.account == own
    refused = await control.refusal(control.keys.CreateKey, CreateKeyRequest(scopes=[ADMIN]), caller)
    assert (refused.reason, refused.param) == (Reason.PERMISSION_DENIED, "scopes")
    operators = await control.call(control.keys.CreateKey, CreateKeyRequest(account=own, scopes=[ADMIN]))
    for method, request in (
        (control.keys.RotateKey, RotateKeyRequest(id=operators.key.id)),
        (control.keys.RevokeKey, RevokeKeyRequest(id=operators.key.id)),
    ):
        assert (await control.refusal(method, request, caller)).reason is Reason.NOT_FOUND
    listed = await control.call(control.keys.ListKeys, ListKeysRequest(), caller)
    assert operators.key.id not in [key.id for key in listed.keys]
    everything = await control.call(control.keys.ListKeys, ListKeysRequest(account=own))
    assert operators.key.id in [key.id for key in everything.keys]


@pytest.mark.parametrize("held", [(WRITE,), (READ, WRITE), (WRITE, names.SCOPE_INFERENCE)], ids=" ".join)
async def test_nobody_grants_a_scope_that_it_has_not(control, tenants, database, held):
    """By no method that makes or changes a key; "inference" goes with every right to make keys."""
    caller = by(*held, account=tenants["a"]["account"])
    for asked in ({READ}, {WRITE}, {READ, WRITE}, {ADMIN}, {names.SCOPE_INFERENCE}, {READ, names.SCOPE_INFERENCE}):
        request = CreateKeyRequest(scopes=asked, project=tenants["a"]["project"])
        if asked <= {*held, names.SCOPE_INFERENCE}:
            made = await control.call(control.keys.CreateKey, request, caller)
            assert set(made.key.scopes) == asked
        else:
            refused = await control.refusal(control.keys.CreateKey, request, caller)
            assert (refused.reason, refused.param) == (Reason.PERMISSION_DENIED, "scopes")
    others = by(ADMIN)
    for scopes in ([READ], [READ, WRITE], [WRITE], [names.SCOPE_INFERENCE]):
        request = CreateKeyRequest(scopes=scopes, account=tenants["a"]["account"])
        key = (await control.call(control.keys.CreateKey, request, others)).key
        change = UpdateKeyRequest(id=key.id, name="taken", update_mask=FieldMask(paths=["name", "expire_time"]))
        if {*scopes} <= {*held, names.SCOPE_INFERENCE}:
            await control.call(control.keys.UpdateKey, change, caller)
            new = await control.call(control.keys.RotateKey, RotateKeyRequest(id=key.id), caller)
            assert list(new.key.scopes) == scopes
            continue
        before = await database.fetch("SELECT * FROM keys ORDER BY id")
        for method, denied in (
            (control.keys.UpdateKey, change),
            (control.keys.UpdateKey, UpdateKeyRequest(id=key.id, state=ResourceState.RESOURCE_STATE_ACTIVE)),
            (control.keys.RotateKey, RotateKeyRequest(id=key.id)),
        ):
            refused = await control.refusal(method, denied, caller)
            assert (refused.reason, refused.param) == (Reason.PERMISSION_DENIED, "id"), scopes
        assert await database.fetch("SELECT * FROM keys ORDER BY id") == before
        await control.call(control.keys.RevokeKey, RevokeKeyRequest(id=key.id), caller)  # to end one is always possible
