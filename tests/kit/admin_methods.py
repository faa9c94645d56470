"""Every method of the admin API, as the contract has it."""

import importlib
import pkgutil
from dataclasses import dataclass
from functools import cache
from typing import Any

import uplion.control.v1
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass


@dataclass(frozen=True)
class Method:
    """One method; `path` is what gRPC calls it."""

    descriptor: Any
    request: type[Message]
    response: type[Message]

    @property
    def service(self) -> str:
        return str(self.descriptor.containing_service.name)

    @property
    def name(self) -> str:
        return str(self.descriptor.name)

    @property
    def streams(self) -> bool:
        return bool(self.descriptor.server_streaming)

    @property
    def path(self) -> str:
        return f"/uplion.control.v1.{self.service}/{self.name}"

    def on(self, channel: Any) -> Any:
        """To be called on a channel; a stream is answered with the list of its messages."""
        make = channel.unary_stream if self.streams else channel.unary_unary
        call = make(
            self.path, request_serializer=self.request.SerializeToString, response_deserializer=self.response.FromString
        )

        async def whole(request: Message, **options: Any) -> list[Message]:
            return [message async for message in call(request, **options)]

        return whole if self.streams else call


@cache
def every_method() -> tuple[Method, ...]:
    found = []
    for module in pkgutil.iter_modules(uplion.control.v1.__path__, "uplion.control.v1."):
        if module.name.endswith("_service_pb2"):
            for service in importlib.import_module(module.name).DESCRIPTOR.services_by_name.values():
                for method in service.methods:
                    request, response = GetMessageClass(method.input_type), GetMessageClass(method.output_type)
                    found.append(Method(method, request, response))
    return tuple(found)


def aimed(method: Method, ids: dict[str, str]) -> Message:
    """A request about a tenant's objects: every field that can name one does."""
    request = method.request()
    values = {
        **ids,
        "id": ids.get(method.service.removesuffix("Service").lower(), ids["account"]),
        "name": "taken",
        "month": "2026-11",
    }
    if not method.name.startswith("Get"):
        del values["request_id"]  # elsewhere it makes a retry safe
    for name, value in values.items():
        if name in method.request.DESCRIPTOR.fields_by_name:
            setattr(request, name, value)
    return request
