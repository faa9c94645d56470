"""What authz knows of the request that a check is about. Pure, and without Envoy's types."""

import msgspec

from common.operations import Kind


class RequestFacts(msgspec.Struct, frozen=True):
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
