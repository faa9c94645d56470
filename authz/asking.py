"""What a check asks: the facts of one request, in our own words. Pure, and without Envoy's types."""

from collections.abc import Mapping

import msgspec

from common import names
from common.errors import Reason, UplionError
from common.operations import BodyFacts, Kind

_MODEL_CHARACTERS = 256
_MOST_CHOICES = 128
_BYTES_PER_TOKEN = 3  # of JSON; low enough that an estimate is seldom under the truth


class Question(msgspec.Struct, frozen=True):
    """One request as authz sees it. (A dataclass of that size costs 2 us more, on every check.)"""

    listener: str
    key_text: str
    kind: Kind
    model: str
    input_tokens: int  # an estimate; 0 where nothing is generated
    output_tokens: int | None  # of one choice, as the request says; None: it does not
    choices: int
    request_id: str
    client: str = ""  # its IP address; empty: not known
    tier: str = ""  # the one it asks for; empty: it does not


def checked_model(model: str) -> str:
    """The model's name as it may travel in a header; raises INVALID_REQUEST."""
    if model and (len(model) > _MODEL_CHARACTERS or not (model.isascii() and model.isprintable())):
        raise UplionError(
            Reason.INVALID_REQUEST,
            f"A model's name has at most {_MODEL_CHARACTERS} printable characters.",
            param="model",
        )
    return model


def estimated_input_tokens(content_length: str | None, size_bytes: int) -> int:
    """At least 1: from the declared length, or what Envoy counted."""
    if (
        content_length is not None
        and content_length.isascii()
        and content_length.isdigit()
        and len(content_length) < 12
    ):
        size_bytes = int(content_length)
    return max(1, size_bytes // _BYTES_PER_TOKEN)


def wanted_output_tokens(facts: BodyFacts, found: Mapping[str, float], most: int) -> int | None:
    """The first of the dialect's fields that says it; what makes no sense is left for the router to refuse.

    `found` is what the edge read: the fields' numbers, 0 where there was something else.
    """
    for name in facts.output_tokens:
        value = found.get(name)
        if value is not None and value >= 1:
            return int(min(value, most))
    return None


def wanted_choices(facts: BodyFacts, found: Mapping[str, float]) -> int:
    value = found.get(facts.choices, 1.0)
    return int(min(max(value, 1.0), _MOST_CHOICES)) if value == value else 1


def client_address(headers: Mapping[str, str]) -> str:
    """The client's IP address as the edge saw it, without a port; empty where the edge does not say.

    Envoy writes this header itself and drops a client's copy; it counts the edge's trusted hops. (The check's
    `source.address` is who connected to Envoy: the load balancer, where there is one.)
    """
    return headers.get(names.HEADER_CLIENT, "")
