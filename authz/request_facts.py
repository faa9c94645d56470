"""The facts of a request that its check depends on, without Envoy's types."""

import msgspec

from common.operations import Kind


class RequestFacts(msgspec.Struct, frozen=True):
    """One request. (A dataclass of that size takes 2 us more on every check.)"""

    listener: str
    key_text: str
    kind: Kind
    model: str
    input_tokens: int  # an estimate; 0 where nothing is generated
    output_tokens: int | None  # of one choice, as the request limits them; None: it does not
    choices: int
    request_id: str
    client: str = ""  # its IP address; empty: not known
    rpc: str = ""  # the path of the gRPC method that the edge calls for it, as "/package.Service/Method"
    tier: str = ""  # the service tier that it wants; empty: any
