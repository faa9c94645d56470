"""The bodies of OpenAI requests: every field that is taken with its type and range, and those that are not built yet.

Null is as good as absent. A field that no schema declares is let through, unless it is one of OpenAI's that is not
built: those are refused by name, but for values that ask for nothing.
"""

from collections.abc import Callable, Mapping
from typing import Annotated, Any, Final, Literal

from msgspec import Meta, Struct

from common.operations import OPENAI_MAX_CHOICES
from common.sampling import MAX_STOP_CHARACTERS, MAX_STOPS, SharedSampling
from router.surfaces.json_body import Schema
from router.surfaces.requests import BAD_ROLE, MAX_NAME_CHARACTERS

MAX_PARTS: Final = 4096
MAX_INPUT_TOKENS: Final = 300_000  # given as token arrays: OpenAI's own bound for embeddings
MAX_TOKEN_ID: Final = (1 << 32) - 1
BAD_STOP_COUNT: Final = f"may hold at most {MAX_STOPS} strings"
BAD_STOP_SIZE: Final = f"must hold strings of 1 to {MAX_STOP_CHARACTERS} characters"

_OutputTokens = Annotated[int, Meta(ge=1, le=1 << 24)]


class ContentPart(Struct):
    """A part of a message."""

    type: str | None = None
    text: str | None = None  # of a text part


class Message(Struct):
    """One turn of a conversation."""

    role: str = ""
    content: str | list[ContentPart] | None = None
    name: Annotated[str, Meta(max_length=MAX_NAME_CHARACTERS)] | None = None
    tool_calls: Any = None  # not built, as the next two
    function_call: Any = None
    audio: Any = None


class StreamOptions(Struct):
    """How a streamed answer is written."""

    include_usage: bool | None = None


class GenerationBody(SharedSampling, frozen=True, kw_only=True):
    """What chats and completions have in common."""

    model: str = ""
    max_tokens: _OutputTokens | None = None
    n: Annotated[int, Meta(ge=1, le=OPENAI_MAX_CHOICES)] | None = None
    stop: str | list[str] | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    user: str = ""  # taken, but it changes nothing here; as the next two
    store: bool = False
    metadata: dict[str, Any] | None = None


class ChatBody(GenerationBody, frozen=True, kw_only=True):
    """The body of POST /v1/chat/completions."""

    messages: list[Message] | None = None
    max_completion_tokens: _OutputTokens | None = None


class CompletionBody(GenerationBody, frozen=True, kw_only=True):
    """The body of POST /v1/completions."""

    prompt: Any = None  # a text, or an array of token ids
    best_of: Annotated[int, Meta(ge=1, le=20)] | None = None


class EmbeddingBody(Struct, frozen=True, kw_only=True):
    """The body of POST /v1/embeddings."""

    model: str = ""
    input: Any = None  # a text, an array of texts, an array of token ids, or an array of such arrays
    encoding_format: Literal["float", "base64"] = "float"
    user: str = ""


_WRONG_TYPE: Final = "has the wrong type"
_GENERATION_TEXTS: Final = {
    "stop": "must be a string or an array of strings",
    "stop[]": "must be a string or an array of strings",
    "user": _WRONG_TYPE,
    "store": _WRONG_TYPE,
    "metadata": _WRONG_TYPE,
}
_GENERATION_PARAMS: Final = {"stop[]": "stop", "stream_options.include_usage": "include_usage"}

CHAT: Final = Schema(
    ChatBody,
    texts={
        **_GENERATION_TEXTS,
        "messages": "must be an array with at least one message",
        "messages[].role": BAD_ROLE,
        "messages[].content": "must be a string or an array of text parts",
        "messages[].content[]": "must be a string",
        "messages[].name": f"must be a string of at most {MAX_NAME_CHARACTERS} characters",
    },
    params={**_GENERATION_PARAMS, "messages[].content[]": "{}.type"},
)
COMPLETION: Final = Schema(CompletionBody, texts=_GENERATION_TEXTS, params=_GENERATION_PARAMS)
EMBEDDING: Final = Schema(EmbeddingBody, texts={"encoding_format": "must be float or base64", "user": _WRONG_TYPE})

# --- Fields of OpenAI's that are not built, each with the values that ask for nothing -------------------------------


def _is_empty(value: object) -> bool:
    return value in ([], {}, "", False)


def _is_zero(value: object) -> bool:
    return value is False or (type(value) is int and value == 0)


def _never(value: object) -> bool:
    return False


Unbuilt = Mapping[str, Callable[[object], bool]]

CHAT_UNBUILT: Final[Unbuilt] = {
    "tools": _is_empty,
    "tool_choice": lambda value: value in ("none", "auto"),
    "parallel_tool_calls": lambda value: isinstance(value, bool),
    "functions": _is_empty,
    "function_call": lambda value: value in ("none", "auto"),
    "response_format": lambda value: isinstance(value, dict) and value.get("type") == "text",
    "logprobs": _is_zero,
    "top_logprobs": _is_zero,
    "logit_bias": _is_empty,
    "modalities": lambda value: bool(value == ["text"]),
    "audio": _never,
    "prediction": _never,
    "web_search_options": _never,
}
COMPLETION_UNBUILT: Final[Unbuilt] = {
    "suffix": _is_empty,
    "echo": _is_zero,
    "logprobs": lambda value: value is False,
    "logit_bias": _is_empty,
}
EMBEDDING_UNBUILT: Final[Unbuilt] = {"dimensions": _never}
