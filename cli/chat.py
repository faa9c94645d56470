"""`uplion chat`: talks to a model over the OpenAI surface and shows the answer as it comes."""

import http.client
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field

from cli.output import CommandError, JsonObject, print_json

_TIMEOUT_SECONDS = 600.0
_EVENT = b"data: "


@dataclass(slots=True)
class Answer:
    """One streamed answer, complete once its pieces have been read."""

    text: str = ""
    finish_reason: str | None = None
    usage: JsonObject = field(default_factory=dict)
    request_id: str = ""


class Conversation:
    """The messages so far, and the model and endpoint."""

    def __init__(self, address: str, key: str, model: str, system: str | None = None) -> None:
        self._address, self._key = address, key
        self.model = model
        self._messages = [{"role": "system", "content": system}] if system else []

    def ask(self, text: str, answer: Answer) -> Iterator[str]:
        """The pieces of the answer, which is then added to the messages. Raises CommandError."""
        self._messages.append({"role": "user", "content": text})
        body = {
            "model": self.model,
            "messages": self._messages,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        try:
            yield from self._stream(json.dumps(body), answer)
        except (OSError, http.client.HTTPException) as problem:
            raise CommandError(f"the connection broke: {problem or type(problem).__name__}") from problem
        self._messages.append({"role": "assistant", "content": answer.text})

    def _stream(self, body: str, answer: Answer) -> Iterator[str]:
        connection = http.client.HTTPConnection(self._address, timeout=_TIMEOUT_SECONDS)
        try:
            headers = {"authorization": f"Bearer {self._key}", "content-type": "application/json"}
            connection.request("POST", "/v1/chat/completions", body, headers)
            response = connection.getresponse()
            answer.request_id = response.headers.get("x-request-id", "")
            if response.status != 200:
                raise CommandError(_complaint(response.status, response.read()))
            for line in response:
                if line.startswith(_EVENT) and (data := line[len(_EVENT) :].strip()) != b"[DONE]":
                    yield from _pieces(json.loads(data), answer)
        finally:
            connection.close()
        if answer.finish_reason is None:
            raise CommandError("the answer ended before it was complete")


def _pieces(chunk: JsonObject, answer: Answer) -> Iterator[str]:
    if "error" in chunk:
        raise CommandError(str(chunk["error"].get("message", "the answer failed")))
    answer.usage = chunk.get("usage") or answer.usage
    for choice in chunk.get("choices", ()):
        answer.finish_reason = choice.get("finish_reason") or answer.finish_reason
        if piece := choice["delta"].get("content"):
            answer.text += piece
            yield piece


def _complaint(status: int, body: bytes) -> str:
    try:
        return str(json.loads(body)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return f"HTTP {status}: {body.decode(errors='replace')[:300]}"


def available_models(address: str, key: str) -> list[str]:
    """The names of the models that are served."""
    connection = http.client.HTTPConnection(address, timeout=10.0)
    try:
        connection.request("GET", "/v1/models", headers={"authorization": f"Bearer {key}"})
        response = connection.getresponse()
        body = response.read()
    except (OSError, http.client.HTTPException) as problem:
        raise CommandError(f"the models cannot be listed: {problem}") from problem
    finally:
        connection.close()
    if response.status != 200:
        raise CommandError(_complaint(response.status, body))
    return [str(model["id"]) for model in json.loads(body)["data"]]


def say(conversation: Conversation, text: str, *, as_json: bool) -> None:
    """Asks once and prints the answer as it comes; as one object with --json."""
    answer = Answer()
    for piece in conversation.ask(text, answer):
        if not as_json:
            sys.stdout.write(piece)
            sys.stdout.flush()
    if as_json:
        print_json(
            {
                "model": conversation.model,
                "content": answer.text,
                "finish_reason": answer.finish_reason,
                "usage": answer.usage,
                "request_id": answer.request_id,
            }
        )
    else:
        print(flush=True)


def talk(conversation: Conversation, *, as_json: bool) -> None:
    """A conversation, line by line, until the input ends."""
    interactive = sys.stdin.isatty()
    if interactive:
        print(f"Talking to {conversation.model}. End with Ctrl-D.", file=sys.stderr)
    while True:
        try:
            text = input("> " if interactive else "").strip()
        except EOFError:
            return
        if not text:
            continue
        try:
            say(conversation, text, as_json=as_json)
        except CommandError as problem:
            if not interactive:
                raise
            print(f"uplion: {problem}", file=sys.stderr)
