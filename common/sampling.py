"""How tokens are drawn: each sampling field once, with its type, its range and what unset means.

Surfaces check requests against these declarations and engines read the values, so a new field is one line here, one in
`uplion.inference.v1.Sampling` and what an engine makes of it. A field whose name differs between dialects is declared
in `Sampling`; its other names belong to the dialect.
"""

from typing import Annotated, Any

from msgspec import Meta, Struct
from msgspec.structs import asdict
from uplion.inference.v1 import sampling_pb2

MAX_CHOICES = 8
MAX_STOPS = 4
MAX_STOP_CHARACTERS = 1024

_INT64 = 1 << 63
_UINT32 = (1 << 32) - 1


class SharedSampling(Struct, frozen=True, kw_only=True):
    """The fields that have one name in every dialect."""

    temperature: Annotated[float, Meta(ge=0, le=2)] = 1.0  # 0 is greedy
    top_p: Annotated[float, Meta(gt=0, le=1)] = 1.0
    top_k: Annotated[int, Meta(ge=-1, le=_UINT32)] = 0  # 0 and -1: all tokens
    seed: Annotated[int, Meta(ge=-_INT64, le=_INT64 - 1)] | None = None  # None: a fresh draw
    frequency_penalty: Annotated[float, Meta(ge=-2, le=2)] = 0.0
    presence_penalty: Annotated[float, Meta(ge=-2, le=2)] = 0.0


SHARED_FIELDS = SharedSampling.__struct_fields__


class Sampling(SharedSampling, frozen=True, kw_only=True):
    """How the tokens of one request are drawn. Its ranges were checked by the router: engines may trust them."""

    max_output_tokens: Annotated[int, Meta(ge=1)] | None = None  # of one choice; None: what context and model allow
    stop: Annotated[
        tuple[Annotated[str, Meta(min_length=1, max_length=MAX_STOP_CHARACTERS)], ...], Meta(max_length=MAX_STOPS)
    ] = ()
    choices: Annotated[int, Meta(ge=1, le=MAX_CHOICES)] = 1

    @property
    def greedy(self) -> bool:
        """Whether the most likely token is always taken."""
        return self.temperature < 1e-5

    def changed(self) -> dict[str, Any]:
        """The fields that differ from what unset means, by name."""
        return {name: value for name, value in asdict(self).items() if value != getattr(_UNSET, name)}


_UNSET = Sampling()


def fields_set(message: sampling_pb2.Sampling) -> dict[str, Any]:
    """The fields of a message that are set, by name."""
    return {
        field.name: tuple(value) if field.name == "stop" else value  # the one that is repeated
        for field, value in message.ListFields()
    }


def from_message(message: sampling_pb2.Sampling) -> Sampling:
    """What a checked message says, without checking it again."""
    return Sampling(**fields_set(message))
