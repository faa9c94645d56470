"""ProjectService: creates, reads and changes the projects of accounts."""

import json
from typing import TYPE_CHECKING

from uplion.control.v1 import project_pb2, project_service_pb2_grpc
from uplion.control.v1.project_pb2 import Project

from control.invalidation import Invalidations
from control.requests import fields, limit_fields, paging
from control.requests.caller import Caller
from control.requests.update_mask import changed
from control.services.account_service import ACCOUNT_DEFAULT, NAME_CHARACTERS, new_id
from control.stores.projects import ProjectStore

if TYPE_CHECKING:
    import asyncpg

    from control.requests.caller import Context

_UPDATABLE = ("name", "labels", "state", "limits")


class ProjectService(project_service_pb2_grpc.ProjectServiceServicer):
    """Projects in Postgres; a change reaches every authz at once, as a change of the account."""

    def __init__(self, store: ProjectStore, invalidations: Invalidations) -> None:
        self._store = store
        self._invalidations = invalidations

    async def CreateProject(
        self, request: project_pb2.CreateProjectRequest, context: "Context"
    ) -> project_pb2.CreateProjectResponse:
        row = await self._store.create(
            new_id("prj"),
            fields.account(request.account, Caller.current()) or ACCOUNT_DEFAULT,
            fields.text("name", request.name.strip(), least=1, most=NAME_CHARACTERS),
            fields.labels(request.labels),
            limit_fields.checked(request.limits),
            fields.request_id(request.request_id),
        )
        return project_pb2.CreateProjectResponse(project=_project(row))

    async def GetProject(
        self, request: project_pb2.GetProjectRequest, context: "Context"
    ) -> project_pb2.GetProjectResponse:
        row = await self._store.one(fields.identifier(request.id), Caller.current().within)
        return project_pb2.GetProjectResponse(project=_project(row))

    async def ListProjects(
        self, request: project_pb2.ListProjectsRequest, context: "Context"
    ) -> project_pb2.ListProjectsResponse:
        size = paging.page_size(request.page_size)
        rows = await self._store.page(
            fields.account(request.account, Caller.current()),
            size + 1,
            paging.read_position(request.page_token),
        )
        return project_pb2.ListProjectsResponse(
            projects=[_project(row) for row in rows[:size]], next_page_token=paging.next_page(rows, size)
        )

    async def UpdateProject(
        self, request: project_pb2.UpdateProjectRequest, context: "Context"
    ) -> project_pb2.UpdateProjectResponse:
        row = await self._store.update(fields.identifier(request.id), Caller.current().within, _changes(request))
        await self._invalidations.account(row["account"])
        return project_pb2.UpdateProjectResponse(project=_project(row))


def _changes(request: project_pb2.UpdateProjectRequest) -> dict[str, object]:
    """Columns and their new values."""
    changes: dict[str, object] = {}
    for field in changed(request, _UPDATABLE):
        if field == "name":
            changes[field] = fields.text("name", request.name.strip(), least=1, most=NAME_CHARACTERS)
        elif field == "labels":
            changes[field] = fields.labels(request.labels)
        elif field == "state":
            changes[field] = fields.state(request.state)
        else:
            changes[field] = limit_fields.checked(request.limits)
    return changes


def _project(row: "asyncpg.Record") -> Project:
    return Project(
        id=row["id"],
        account=row["account"],
        name=row["name"],
        labels=json.loads(row["labels"]),
        state=fields.STATES[row["state"]],
        limits=limit_fields.shown(row["limits"]),
        create_time=row["create_time"],
    )
