"""Projects over the real admin API."""

import asyncio
import uuid

from google.protobuf.field_mask_pb2 import FieldMask
from uplion.control.v1.account_pb2 import CreateAccountRequest, ResourceState
from uplion.control.v1.key_pb2 import CreateKeyRequest, ListKeysRequest
from uplion.control.v1.limit_pb2 import Limit, LimitMeasure
from uplion.control.v1.project_pb2 import (
    CreateProjectRequest,
    GetProjectRequest,
    ListProjectsRequest,
    UpdateProjectRequest,
)

from common import names
from common.errors import Reason
from tests.integration.control.conftest import by

AT_ONCE = Limit(measure=LimitMeasure.LIMIT_MEASURE_CONCURRENCY, amount=4)


async def new_account(control):
    return (await control.call(control.accounts.CreateAccount, CreateAccountRequest(name="Team"))).account.id


async def test_a_retried_creation_returns_the_first_project_and_another_accounts_is_not_told(control):
    account, other = await new_account(control), await new_account(control)
    request = CreateProjectRequest(account=account, name="P", request_id=str(uuid.uuid4()), limits=[AT_ONCE])
    answers = await asyncio.gather(*(control.call(control.projects.CreateProject, request) for _ in range(5)))
    assert len({answer.project.id for answer in answers}) == 1
    assert (answers[0].project.account, list(answers[0].project.limits)) == (account, [AT_ONCE])
    request.account = other
    refused = await control.refusal(control.projects.CreateProject, request)
    assert (refused.reason, refused.param) == (Reason.ALREADY_EXISTS, "request_id")


async def test_an_update_changes_what_it_names_and_is_announced_for_the_account(control, bus):
    account = await new_account(control)
    made = await control.call(
        control.projects.CreateProject,
        CreateProjectRequest(account=account, name="P", labels={"a": "b"}, limits=[AT_ONCE]),
    )
    heard = await bus.subscribe(names.SUBJECT_INVALIDATE)
    await bus.flush()
    suspended = await control.call(
        control.projects.UpdateProject,
        UpdateProjectRequest(id=made.project.id, state=ResourceState.RESOURCE_STATE_SUSPENDED),
    )
    assert (await heard.next_msg(30)).data == f"account:{account}".encode()
    await heard.unsubscribe()
    made.project.state = ResourceState.RESOURCE_STATE_SUSPENDED
    assert suspended.project == made.project
    emptied = await control.call(
        control.projects.UpdateProject,
        UpdateProjectRequest(id=made.project.id, name="Q", update_mask=FieldMask(paths=["labels", "limits", "name"])),
    )
    assert (emptied.project.name, dict(emptied.project.labels), list(emptied.project.limits)) == ("Q", {}, [])
    found = await control.call(control.projects.GetProject, GetProjectRequest(id=made.project.id))
    assert found.project == emptied.project


async def test_pages_hold_every_project_of_an_account_once(control):
    account, other = await new_account(control), await new_account(control)
    made = [
        (await control.call(control.projects.CreateProject, CreateProjectRequest(account=account, name=f"p{number}")))
        for number in range(3)
    ]
    await control.call(control.projects.CreateProject, CreateProjectRequest(account=other, name="x"))
    found, token = [], ""
    for _ in range(2):
        request = ListProjectsRequest(account=account, page_size=2, page_token=token)
        page = await control.call(control.projects.ListProjects, request)
        found += [project.id for project in page.projects]
        token = page.next_page_token
    assert (found, token) == ([each.project.id for each in made], "")


async def test_a_key_of_a_project_is_of_its_account(control):
    account, other = await new_account(control), await new_account(control)
    project = (
        await control.call(control.projects.CreateProject, CreateProjectRequest(account=account, name="P"))
    ).project.id
    key = (await control.call(control.keys.CreateKey, CreateKeyRequest(project=project))).key
    assert (key.account, key.project) == (account, project)
    listed = await control.call(control.keys.ListKeys, ListKeysRequest(project=project))
    assert [each.id for each in listed.keys] == [key.id]
    for request in (CreateKeyRequest(account=other, project=project), CreateKeyRequest(project="prj_nobody")):
        refused = await control.refusal(control.keys.CreateKey, request)
        assert (refused.reason, refused.param) == (Reason.NOT_FOUND, "project")
    foreign = by(names.SCOPE_ADMIN_WRITE, account=other)
    refused = await control.refusal(control.keys.CreateKey, CreateKeyRequest(project=project), foreign)
    assert (refused.reason, refused.param) == (Reason.NOT_FOUND, "project")


async def test_every_wrong_field_is_named(control):
    many = {f"l{number}": "" for number in range(51)}
    cases = [
        (control.projects.CreateProject, CreateProjectRequest(), Reason.INVALID_REQUEST, "name"),
        (control.projects.CreateProject, CreateProjectRequest(name="x", account="no"), Reason.NOT_FOUND, "account"),
        (control.projects.CreateProject, CreateProjectRequest(name="x", labels=many), Reason.INVALID_REQUEST, "labels"),
        (
            control.projects.CreateProject,
            CreateProjectRequest(name="x", labels={"": "x"}),
            Reason.INVALID_REQUEST,
            "labels",
        ),
        (control.projects.GetProject, GetProjectRequest(), Reason.INVALID_REQUEST, "id"),
        (control.projects.GetProject, GetProjectRequest(id="nobody"), Reason.NOT_FOUND, "id"),
        (control.projects.UpdateProject, UpdateProjectRequest(id="nobody", name="x"), Reason.NOT_FOUND, "id"),
        (control.projects.UpdateProject, UpdateProjectRequest(id="x"), Reason.INVALID_REQUEST, "update_mask"),
    ]
    for method, request, reason, param in cases:
        refused = await control.refusal(method, request)
        assert (refused.reason, refused.param) == (reason, param), request
