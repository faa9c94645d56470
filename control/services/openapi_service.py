"""OpenAPIService: the admin API's own description, as `make proto` generated it."""

from importlib.resources import files
from typing import TYPE_CHECKING

from google.api.httpbody_pb2 import HttpBody
from uplion.control.v1 import openapi_service_pb2, openapi_service_pb2_grpc

if TYPE_CHECKING:
    from control.requests.caller import Context


class OpenAPIService(openapi_service_pb2_grpc.OpenAPIServiceServicer):
    """Serves one file, read once."""

    def __init__(self) -> None:
        document = files("uplion.control.v1").joinpath("openapi.json").read_bytes()
        self._answer = HttpBody(content_type="application/json", data=document)

    async def GetOpenAPI(self, request: openapi_service_pb2.GetOpenAPIRequest, context: "Context") -> HttpBody:
        return self._answer
