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

    service: str
    name: str
    request: type[Message]
    response: type[Message]

    @property
    def path(self) -> str:
        return f"/uplion.control.v1.{self.service}/{self.name}"

    def on(self, channel: Any) -> Any:
        """To be called on a channel."""
        return channel.unary_unary(
            self.path, request_serializer=self.request.SerializeToString, response_deserializer=self.response.FromString
        )


@cache
def every_method() -> tuple[Method, ...]:
    found = []
    for module in pkgutil.iter_modules(uplion.control.v1.__path__, "uplion.control.v1."):
        if module.name.endswith("_service_pb2"):
            for service in importlib.import_module(module.name).DESCRIPTOR.services_by_name.values():
                for method in service.methods:
                    request, response = GetMessageClass(method.input_type), GetMessageClass(method.output_type)
                    found.append(Method(service.name, method.name, request, response))
    return tuple(found)
