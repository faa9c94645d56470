"""Accounts, projects and keys over the admin API, as commands use them."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import datetime, timedelta
from typing import Any, TypeVar

from uplion.control.v1 import account_pb2, key_pb2, project_pb2
from uplion.control.v1.account_pb2 import Account, ResourceState
from uplion.control.v1.account_service_pb2_grpc import AccountServiceStub
from uplion.control.v1.key_pb2 import Key
from uplion.control.v1.key_service_pb2_grpc import KeyServiceStub
from uplion.control.v1.limit_pb2 import Limit
from uplion.control.v1.project_pb2 import Project
from uplion.control.v1.project_service_pb2_grpc import ProjectServiceStub

from cli import limit_text
from cli.client.connection import Admin, shown_time
from cli.output import JsonObject

Update = TypeVar("Update", account_pb2.UpdateAccountRequest, project_pb2.UpdateProjectRequest, key_pb2.UpdateKeyRequest)

ACTIVE, SUSPENDED = ResourceState.RESOURCE_STATE_ACTIVE, ResourceState.RESOURCE_STATE_SUSPENDED


@dataclass(frozen=True, slots=True, kw_only=True)
class Desired:
    """The desired fields of an account, project or key. None leaves a field unchanged, an empty value clears it."""

    account: str | None = None
    project: str | None = None
    name: str | None = None
    labels: Mapping[str, str] | None = None
    state: ResourceState.ValueType | None = None
    scopes: Sequence[str] | None = None
    limits: Sequence[Limit] | None = None
    models: Sequence[str] | None = None
    tiers: Sequence[str] | None = None
    networks: Sequence[str] | None = None
    expire_time: datetime | None = None

    def values(self) -> JsonObject:
        """The fields that are set."""
        every = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in every.items() if value is not None}


def create_account(api: Admin, desired: Desired) -> JsonObject:
    """The new account."""
    request = account_pb2.CreateAccountRequest(**desired.values())
    return shown(api.call(api.stub(AccountServiceStub).CreateAccount, request).account)


def accounts(api: Admin) -> Iterator[JsonObject]:
    """All accounts, oldest first."""
    for page in api.pages(api.stub(AccountServiceStub).ListAccounts, account_pb2.ListAccountsRequest()):
        yield from map(shown, page.accounts)


def account(api: Admin, account_id: str) -> JsonObject:
    """One account."""
    return shown(
        api.call(api.stub(AccountServiceStub).GetAccount, account_pb2.GetAccountRequest(id=account_id)).account
    )


def update_account(api: Admin, account_id: str, desired: Desired, clear: Sequence[str] = ()) -> JsonObject:
    """The changed account."""
    request = _update(account_pb2.UpdateAccountRequest(id=account_id, **desired.values()), desired, clear)
    return shown(api.call(api.stub(AccountServiceStub).UpdateAccount, request).account)


def erase_account(api: Admin, account_id: str) -> JsonObject:
    """The erased account."""
    return shown(
        api.call(api.stub(AccountServiceStub).EraseAccount, account_pb2.EraseAccountRequest(id=account_id)).account
    )


def create_project(api: Admin, desired: Desired) -> JsonObject:
    """The new project."""
    request = project_pb2.CreateProjectRequest(**desired.values())
    return shown(api.call(api.stub(ProjectServiceStub).CreateProject, request).project)


def projects(api: Admin, account_id: str) -> Iterator[JsonObject]:
    """All projects, oldest first; of one account, or of all."""
    request = project_pb2.ListProjectsRequest(account=account_id)
    for page in api.pages(api.stub(ProjectServiceStub).ListProjects, request):
        yield from map(shown, page.projects)


def project(api: Admin, project_id: str) -> JsonObject:
    """One project."""
    return shown(
        api.call(api.stub(ProjectServiceStub).GetProject, project_pb2.GetProjectRequest(id=project_id)).project
    )


def update_project(api: Admin, project_id: str, desired: Desired, clear: Sequence[str] = ()) -> JsonObject:
    """The changed project."""
    request = _update(project_pb2.UpdateProjectRequest(id=project_id, **desired.values()), desired, clear)
    return shown(api.call(api.stub(ProjectServiceStub).UpdateProject, request).project)


def create_key(api: Admin, desired: Desired) -> JsonObject:
    """The new key; the only time that it is shown."""
    response = api.call(api.stub(KeyServiceStub).CreateKey, key_pb2.CreateKeyRequest(**desired.values()))
    return {**shown(response.key), "key": response.secret}


def keys(api: Admin, account_id: str = "", project_id: str = "") -> Iterator[JsonObject]:
    """All keys, oldest first; of one account or project, or of all."""
    request = key_pb2.ListKeysRequest(account=account_id, project=project_id)
    for page in api.pages(api.stub(KeyServiceStub).ListKeys, request):
        yield from map(shown, page.keys)


def key(api: Admin, key_id: str) -> JsonObject:
    """One key."""
    request = key_pb2.GetKeyRequest(id=key_id)
    return shown(api.call(api.stub(KeyServiceStub).GetKey, request).key)


def update_key(api: Admin, key_id: str, desired: Desired, clear: Sequence[str] = ()) -> JsonObject:
    """The changed key."""
    request = _update(key_pb2.UpdateKeyRequest(id=key_id, **desired.values()), desired, clear)
    return shown(api.call(api.stub(KeyServiceStub).UpdateKey, request).key)


def rotate_key(api: Admin, key_id: str, overlap: timedelta) -> JsonObject:
    """The new key, the only time that it is shown, and the replaced key."""
    request = key_pb2.RotateKeyRequest(id=key_id)
    request.overlap.FromTimedelta(overlap)
    response = api.call(api.stub(KeyServiceStub).RotateKey, request)
    return {**shown(response.key), "key": response.secret, "replaced": shown(response.replaced)}


def revoke_key(api: Admin, key_id: str) -> JsonObject:
    """The revoked key."""
    request = key_pb2.RevokeKeyRequest(id=key_id)
    return shown(api.call(api.stub(KeyServiceStub).RevokeKey, request).key)


def delete_key(api: Admin, key_id: str) -> None:
    """Removes a key."""
    api.call(api.stub(KeyServiceStub).DeleteKey, key_pb2.DeleteKeyRequest(id=key_id))


def shown(thing: Account | Project | Key) -> JsonObject:
    """Every field of it as JSON has it; times are RFC 3339, limits are as --limit takes them."""
    return {field.name: _shown(thing, field.name) for field in thing.DESCRIPTOR.fields}


def _shown(thing: Any, name: str) -> Any:
    if name.endswith("_time"):
        return shown_time(thing, name)
    if name == "state":
        return ResourceState.Name(thing.state).removeprefix("RESOURCE_STATE_").lower()
    if name == "limits":
        return limit_text.texts(thing.limits)
    value = getattr(thing, name)
    if name == "labels":
        return dict(sorted(value.items()))
    return value if isinstance(value, str) else list(value)


def _update(request: Update, desired: Desired, clear: Sequence[str]) -> Update:
    """Sets the update mask, so that an empty value clears its field."""
    request.update_mask.paths.extend(sorted({*desired.values(), *clear}))
    return request
