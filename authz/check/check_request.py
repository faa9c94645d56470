"""Reads Envoy's CheckRequest: which operation is called, for which model, and how large its answer may become."""

from collections.abc import Mapping

from envoy.service.auth.v3 import external_auth_pb2 as auth

from authz.credentials.request_credential import credential
from authz.request_facts import RequestFacts
from common import admin_api, names, operations
from common.errors import Reason, UplionError
from common.operations import OPENAI_MAX_CHOICES, BodyFacts, Kind, Operation

_MODEL_CHARACTERS = 256
_MAX_OUTPUT_TOKENS = 1 << 30
_BYTES_PER_TOKEN = 3  # of JSON; low, so that an estimate is seldom below the true count


def request_facts(request: auth.CheckRequest, listener: str) -> RequestFacts:
    """The facts of one check; `listener` names the edge's listener. Raises INVALID_API_KEY or INVALID_REQUEST."""
    http = request.attributes.request.http
    headers = http.headers
    key_text = credential(headers)
    operation = operations.find(http.method, http.path)
    rpc = called_method(listener, http.method, http.path, operation)
    kind = Kind.READING if operation is None else operation.kind
    input_tokens, output_tokens, choices, tier = 0, None, 1, ""
    if operation is not None and operation.reserves:
        input_tokens = estimated_input_tokens(headers.get("content-length"), http.size)
        found = request.attributes.metadata_context.filter_metadata
        if (facts := operation.facts) is not None and operations.FACTS_NAMESPACE in found:
            fields = found[operations.FACTS_NAMESPACE].fields
            if facts.tier in fields:
                tier = fields[facts.tier].string_value
            if kind is Kind.GENERATION:
                asked = (*facts.output_tokens, facts.choices)
                numbers = {name: fields[name].number_value for name in asked if name in fields}
                output_tokens = wanted_output_tokens(facts, numbers, _MAX_OUTPUT_TOKENS)
                choices = wanted_choices(facts, numbers)
    return RequestFacts(
        listener=listener,
        key_text=key_text,
        kind=kind,
        model=checked_model(headers.get(names.HEADER_MODEL, "")),
        input_tokens=input_tokens,
        output_tokens=output_tokens,
        choices=choices,
        request_id=headers.get(names.HEADER_REQUEST_ID, ""),
        client=client_address(headers),
        rpc=rpc,
        tier=tier,
    )


def called_method(listener: str, method: str, path: str, operation: Operation | None) -> str:
    """The gRPC path of what the edge will call for this request, which its proof of identity is good for.

    What is neither an operation's HTTP path nor an admin method's is a gRPC path itself, of a method or of none.
    """
    if listener == names.LISTENER_ADMIN:
        route = admin_api.find(method, path)
        return path if route is None else route.rpc
    return path if operation is None else operation.rpc


def checked_model(model: str) -> str:
    """The model's name, if a header can carry it; raises INVALID_REQUEST."""
    if model and (len(model) > _MODEL_CHARACTERS or not (model.isascii() and model.isprintable())):
        raise UplionError(
            Reason.INVALID_REQUEST,
            f"A model's name has at most {_MODEL_CHARACTERS} printable characters.",
            param="model",
        )
    return model


def estimated_input_tokens(content_length: str | None, size_bytes: int) -> int:
    """At least 1: from the declared length, or from the size that Envoy counted."""
    if (
        content_length is not None
        and content_length.isascii()
        and content_length.isdigit()
        and len(content_length) < 12
    ):
        size_bytes = int(content_length)
    return max(1, size_bytes // _BYTES_PER_TOKEN)


def wanted_output_tokens(facts: BodyFacts, found: Mapping[str, float], most: int) -> int | None:
    """The first valid one of the dialect's fields; None where there is none: the router refuses what is invalid.

    `found` is what the edge read: the fields' numbers, 0 where there was something else.
    """
    for name in facts.output_tokens:
        value = found.get(name)
        if value is not None and value >= 1:
            return int(min(value, most))
    return None


def wanted_choices(facts: BodyFacts, found: Mapping[str, float]) -> int:
    value = found.get(facts.choices, 1.0)
    return int(min(max(value, 1.0), OPENAI_MAX_CHOICES)) if value == value else 1


def client_address(headers: Mapping[str, str]) -> str:
    """The client's IP address as the edge saw it, without a port; empty where the edge does not set it.

    Envoy writes this header itself and drops a client's copy; it counts the edge's trusted hops. (The check's
    `source.address` is who connected to Envoy: the load balancer, where there is one.)
    """
    return headers.get(names.HEADER_CLIENT, "")
