"""The catalogue of public operations: each call a client can make, once, with what edge, authz and router must know.

A new operation is a method in proto/ and an entry here; routes, body facts, reservations and the watch over calls whose
handler never began follow from it. The admin API's operations are not listed: they follow from its descriptors.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from types import MappingProxyType
from typing import Final

GRPC_CONTENT_TYPE: Final = re.compile(r"application/grpc(\+.*)?")  # as Envoy decides it; gRPC-Web's is another
_VARIABLE = re.compile(r"\{([^}]*)\}")
FACTS_NAMESPACE = "uplion.request"  # of Envoy's dynamic metadata; its keys are the names in `BodyFacts`


class Kind(Enum):
    """What an operation costs."""

    GENERATION = "generation"  # input and output tokens
    EMBEDDING = "embedding"  # input tokens
    READING = "reading"  # nothing


class Capability(Enum):
    """What a model must be able to do; the value is the word in usage events and metrics."""

    CHAT = "chat"
    COMPLETION = "completion"
    EMBEDDING = "embedding"


class Dialect(Enum):
    """Whose form requests, answers and errors have; the value is the word in metrics."""

    OPENAI = "openai"
    ANTHROPIC = "anthropic"
    NATIVE = "native"  # typed messages and gRPC statuses


@dataclass(frozen=True, slots=True)
class BodyFacts:
    """The top-level fields of a JSON body that the edge reads for authz; empty where a dialect has no such field."""

    model: str = "model"
    output_tokens: tuple[str, ...] = ()  # most tokens of one choice; the first that is given counts
    choices: str = ""
    tier: str = ""

    @property
    def names(self) -> tuple[str, ...]:
        """All of them."""
        return tuple(name for name in (*self.read_again, self.tier) if name)

    @property
    def read_again(self) -> tuple[str, ...]:
        """Those that the router reads too: one given twice could mean another thing to each."""
        return tuple(name for name in (self.model, *self.output_tokens, self.choices) if name)


@dataclass(frozen=True, slots=True)
class Operation:
    """One public call."""

    rpc: str  # as gRPC writes it: "/package.Service/Method"
    dialect: Dialect
    kind: Kind
    capability: Capability | None = None  # None: no model is run
    method: str = "POST"  # of the HTTP request
    path: str = ""  # of the HTTP request, as google.api.http writes it; empty: it is called by gRPC only
    facts: BodyFacts | None = None  # None: the edge does not read the body; gRPC callers send `x-uplion-model`

    @property
    def service(self) -> str:
        """The full name of its gRPC service."""
        return self.rpc[1:].rpartition("/")[0]

    @property
    def rpc_name(self) -> str:
        """The name of its gRPC method within the service."""
        return self.rpc.rpartition("/")[2]

    @property
    def pattern(self) -> str:
        """The paths with variables that it is called by, as a regular expression; empty: there is one path only."""
        if "{" not in self.path:
            return ""
        parts = _VARIABLE.split(self.path)  # every other one is what stands between the braces
        variables = [".*" if variable.endswith("=**") else "[^/]+" for variable in parts[1::2]]
        return "".join(re.escape(text) + variable for text, variable in zip(parts[::2], [*variables, ""], strict=True))

    @property
    def name(self) -> str:
        """A short name of the route: its dialect and path, with `*` for variables."""
        return self.dialect.value + _VARIABLE.sub("*", self.path or self.rpc)

    @property
    def reserves(self) -> bool:
        """Whether authz reserves for it, so that each admitted call owes a usage event."""
        return self.kind is not Kind.READING


OPENAI_MAX_CHOICES: Final = 128  # of one request: OpenAI's own bound
OPENAI_FACTS = BodyFacts(output_tokens=("max_completion_tokens", "max_tokens"), choices="n", tier="service_tier")


def _openai(method: str, path: str, kind: Kind, capability: Capability) -> Operation:
    rpc = f"{_OPENAI}{method}"
    return Operation(rpc, Dialect.OPENAI, kind, capability, path=path, facts=OPENAI_FACTS)


def _native(method: str, kind: Kind, capability: Capability | None = None) -> Operation:
    return Operation(f"{_NATIVE}{method}", Dialect.NATIVE, kind, capability)


_OPENAI = "/uplion.openai.v1.OpenAIService/"
_NATIVE = "/uplion.inference.v1.InferenceService/"

OPERATIONS = (
    _openai("CreateChatCompletion", "/v1/chat/completions", Kind.GENERATION, Capability.CHAT),
    _openai("CreateCompletion", "/v1/completions", Kind.GENERATION, Capability.COMPLETION),
    _openai("CreateEmbedding", "/v1/embeddings", Kind.EMBEDDING, Capability.EMBEDDING),
    Operation(f"{_OPENAI}ListModels", Dialect.OPENAI, Kind.READING, method="GET", path="/v1/models"),
    Operation(f"{_OPENAI}GetModel", Dialect.OPENAI, Kind.READING, method="GET", path="/v1/models/{model=**}"),
    _native("Chat", Kind.GENERATION, Capability.CHAT),
    _native("ChatStream", Kind.GENERATION, Capability.CHAT),
    _native("Completion", Kind.GENERATION, Capability.COMPLETION),
    _native("CompletionStream", Kind.GENERATION, Capability.COMPLETION),
    _native("Embed", Kind.EMBEDDING, Capability.EMBEDDING),
    _native("ListModels", Kind.READING),
)

BY_RPC: Mapping[str, Operation] = MappingProxyType({operation.rpc: operation for operation in OPERATIONS})
_BY_PATH = {(operation.method, operation.path or operation.rpc): operation for operation in OPERATIONS}
_BY_HTTP_PATH = {(operation.method, operation.path): operation for operation in OPERATIONS if operation.path}
_PATTERNS = tuple((re.compile(operation.pattern), operation) for operation in OPERATIONS if operation.pattern)


def error_dialect(operation: Operation | None, content_type: str) -> Dialect:
    """In whose form a caller reads errors: gRPC's where it speaks gRPC; OpenAI's where nothing says otherwise."""
    if GRPC_CONTENT_TYPE.fullmatch(content_type):
        return Dialect.NATIVE
    return operation.dialect if operation is not None and operation.path else Dialect.OPENAI


def find(method: str, path: str) -> Operation | None:
    """The operation that an HTTP request asks for (a gRPC call is one too); None: none of these, as the admin API.

    In a path of HTTP, slashes at the end count for nothing, as for the edge's transcoder.
    """
    path = path.partition("?")[0]
    found = _BY_PATH.get((method, path)) or _BY_HTTP_PATH.get((method, path.rstrip("/")))
    if found is not None:
        return found
    for pattern, operation in _PATTERNS:
        if method == operation.method and pattern.fullmatch(path):
            return operation
    return None
