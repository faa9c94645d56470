"""ProjectService: the parts of an account."""

import json
from typing import TYPE_CHECKING, Any

import grpc.aio
from uplion.control.v1 import project_pb2, project_service_pb2_grpc
from uplion.control.v1.project_pb2 import Project

from control import limits, requests
from control.accounts import ACCOUNT_DEFAULT, NAME_CHARACTERS, new_id
from control.invalidation import Invalidations
from control.store import Store
from control.updates import changed

if TYPE_CHECKING:
    import asyncpg

    Context = grpc.aio.ServicerContext[Any, Any]

_UPDATABLE = ("name", "labels", "state", "limits")


class ProjectService(project_service_pb2_grpc.ProjectServiceServicer):
    """Projects in Postgres; a change reaches every authz at once, as a change of the account."""

    def __init__(self, store: Store, invalidations: Invalidations) -> None:
        self._store = store
        self._invalidations = invalidations

    async def CreateProject(  # noqa: N802  # the contract's name
        self, request: project_pb2.CreateProjectRequest, context: "Context"
    ) -> project_pb2.CreateProjectResponse:
        row = await self._store.create_project(
            new_id("prj"),
            requests.account(request.account, requests.caller(context)) or ACCOUNT_DEFAULT,
            requests.text("name", request.name.strip(), least=1, most=NAME_CHARACTERS),
            requests.labels(request.labels),
            limits.checked(request.limits),
            requests.request_id(request.request_id),
        )
        return project_pb2.CreateProjectResponse(project=_project(row))

    async def GetProject(  # noqa: N802  # the contract's name
        self, request: project_pb2.GetProjectRequest, context: "Context"
    ) -> project_pb2.GetProjectResponse:
        row = await self._store.project(requests.identifier(request.id), requests.caller(context).within)
        return project_pb2.GetProjectResponse(project=_project(row))

    async def ListProjects(  # noqa: N802  # the contract's name
        self, request: project_pb2.ListProjectsRequest, context: "Context"
    ) -> project_pb2.ListProjectsResponse:
        size = requests.page_size(request.page_size)
        rows = await self._store.list_projects(
            requests.account(request.account, requests.caller(context)),
            size + 1,
            requests.read_position(request.page_token),
        )
        return project_pb2.ListProjectsResponse(
            projects=[_project(row) for row in rows[:size]], next_page_token=requests.next_page(rows, size)
        )

    async def UpdateProject(  # noqa: N802  # the contract's name
        self, request: project_pb2.UpdateProjectRequest, context: "Context"
    ) -> project_pb2.UpdateProjectResponse:
        row = await self._store.update_project(
            requests.identifier(request.id), requests.caller(context).within, _changes(request)
        )
        await self._invalidations.account(row["account"])
        return project_pb2.UpdateProjectResponse(project=_project(row))


def _changes(request: project_pb2.UpdateProjectRequest) -> dict[str, object]:
    """Columns and their new values."""
    changes: dict[str, object] = {}
    for field in changed(request, _UPDATABLE):
        if field == "name":
            changes[field] = requests.text("name", request.name.strip(), least=1, most=NAME_CHARACTERS)
        elif field == "labels":
            changes[field] = requests.labels(request.labels)
        elif field == "state":
            changes[field] = requests.state(request.state)
        else:
            changes[field] = limits.checked(request.limits)
    return changes


def _project(row: "asyncpg.Record") -> Project:
    return Project(
        id=row["id"],
        account=row["account"],
        name=row["name"],
        labels=json.loads(row["labels"]),
        state=requests.STATES[row["state"]],
        limits=limits.shown(row["limits"]),
        create_time=row["create_time"],
    )
