"""The document: each admin method with an HTTP annotation as an operation, with its scope, fields and errors."""

import re
from collections.abc import Mapping
from typing import TypeAlias

from google.protobuf.descriptor import FieldDescriptor, ServiceDescriptor

from common import admin_api, names
from common.admin_api import Route
from common.errors import Reason
from control.openapi.schemas import Json, Schema, Schemas, is_required

Operation: TypeAlias = dict[str, Json]

_TITLE = "Uplion admin API"
_ABOUT = (
    "Accounts, projects, keys, models, prices, usage and the ledger of an Uplion platform, at its admin address. gRPC"
    " clients call the same methods as `uplion.control.v1`. Requests may have names in camelCase too, and 64-bit"
    " integers as numbers; anything else that is not in this document is refused by name. Answers have the form that is"
    " given here. A client must ignore fields that it does not know."
)
_BYTES = "google.api.HttpBody"
# Why an admin call is refused or fails: by the services, or by the gateway in front of them.
_REASONS = (
    Reason.INVALID_REQUEST,
    Reason.INVALID_API_KEY,
    Reason.PERMISSION_DENIED,
    Reason.NOT_FOUND,
    Reason.ALREADY_EXISTS,
    Reason.PAYLOAD_TOO_LARGE,
    Reason.RATE_LIMIT_EXCEEDED,
    Reason.INTERNAL,
    Reason.UNAVAILABLE,
    Reason.DEADLINE_EXCEEDED,
)
_ERROR: Schema = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string", "description": "For people; its words may change."},
                "type": {"type": "string", "description": "The kind of error, as OpenAI's API has it."},
                "param": {
                    "type": ["string", "null"],
                    "description": "The field that is wrong; null when `message` alone names it.",
                },
                "code": {"type": ["string", "null"], "description": "For programs; it does not change."},
            },
        }
    },
}
_SECURITY: Schema = {
    "bearer": {
        "type": "http",
        "scheme": "bearer",
        "description": "A key with an admin scope. The roles of an operation name the least scope that it needs;"
        f' "{names.SCOPE_ADMIN}" is enough for every one.',
    },
    "x-api-key": {"type": "apiKey", "in": "header", "name": "x-api-key", "description": "The same key."},
}


def document(comments: Mapping[str, str]) -> Schema:
    """The whole document; `comments` by full name, as control.openapi.comments reads them."""
    schemas = Schemas(comments)
    paths: dict[str, dict[str, Json]] = {}
    for service in admin_api.services():
        for method in service.methods:
            route = admin_api.route(method)
            paths.setdefault(route.path, {})[route.verb.lower()] = _operation(route, schemas, comments)
    return {
        "openapi": "3.1.0",
        "info": {"title": _TITLE, "version": "v1", "description": _ABOUT},
        "servers": [{"url": "/"}],
        "tags": [
            {"name": _tag(service), "description": comments.get(service.full_name, "")}
            for service in admin_api.services()
        ],
        "paths": dict(sorted(paths.items())),
        "components": {
            "schemas": dict(sorted({**schemas.components, "Error": _ERROR}.items())),
            "responses": _errors(),
            "securitySchemes": _SECURITY,
        },
    }


def _operation(route: Route, schemas: Schemas, comments: Mapping[str, str]) -> Operation:
    method, in_path = route.method, route.variables
    text = comments[method.full_name]
    scope = admin_api.required(method)
    fields = list(method.input_type.fields)
    parameters = [_parameter(field, "path", schemas) for field in fields if field.name in in_path]
    operation: Operation = {
        "operationId": method.name,
        "tags": [_tag(method.containing_service)],
        "summary": re.split(r"(?<=\.) ", text)[0].removesuffix("."),
        "description": text,
        "security": [{scheme: [scope]} for scheme in _SECURITY],
    }
    if route.takes_body:
        body = schemas.request(method.input_type, in_path)
        operation["requestBody"] = {
            "required": any(map(is_required, fields)),
            "content": {"application/json": {"schema": body}},
        }
    else:
        parameters += [_parameter(field, "query", schemas) for field in fields if field.name not in in_path]
    if parameters:
        operation["parameters"] = parameters
    answer: Json = {"*/*": {}}  # bytes with a content type of their own
    if method.output_type.full_name != _BYTES:
        answer = {"application/json": {"schema": schemas.response(method.output_type)}}
    errors: dict[str, Json] = {
        str(reason.http_status): {"$ref": f"#/components/responses/{reason.name}"} for reason in _REASONS
    }
    ok: Json = {"description": comments.get(method.output_type.full_name, "The file."), "content": answer}
    operation["responses"] = errors | {"200": ok}
    return operation


def _parameter(field: FieldDescriptor, place: str, schemas: Schemas) -> Schema:
    schema = schemas.field(field, written=False)
    description = schema.pop("description", "")
    required = place == "path" or is_required(field)
    return {"name": field.name, "in": place, "required": required, "description": description, "schema": schema}


def _errors() -> Schema:
    """A response for each reason, named as clients of gRPC know it; each reason here has a status of its own."""
    content: Json = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    return {
        reason.name: {
            "description": f"`{reason.value.code}`. "
            + ("The same call may work later." if reason.value.retry else "The same call fails again."),
            "content": content,
        }
        for reason in _REASONS
    }


def _tag(service: ServiceDescriptor) -> str:
    name: str = service.name
    return name.removesuffix("Service")
