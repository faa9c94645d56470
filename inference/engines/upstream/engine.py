"""The engine `openai`: a model that an OpenAI-compatible upstream runs for us."""

import array
import asyncio
import json
import logging
import math
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlsplit

import httpx2
from uplion.inference.v1.sampling_pb2 import FINISH_REASON_LENGTH, FINISH_REASON_STOP, FINISH_REASON_UNSPECIFIED

from common.deltas import Delta
from common.errors import Reason, UplionError
from common.settings import SettingsError
from inference.engines.engine import (
    Capability,
    Chat,
    EngineStats,
    Generation,
    Output,
    Prompt,
    Text,
    Tokens,
    Vectors,
)
from inference.engines.upstream.sse import SseReader, SseTooLongError

logger = logging.getLogger(__name__)

_CONNECT_SECONDS = 10.0
_LONGEST_ANSWER_BYTES = 64 * 1024 * 1024
_LONGEST_ERROR_BYTES = 64 * 1024
_SHOWN_CHARACTERS = 300
_CHARACTERS_PER_TOKEN = 4  # until the upstream says how many there were
_DONE = "[DONE]"


class UpstreamEngine:
    """Each request is one streamed HTTP call."""

    provider = "openai"
    capabilities = frozenset({Capability.CHAT, Capability.COMPLETION, Capability.EMBEDDING})

    def __init__(
        self, *, model: str, url: str, key: str, slots: int, context_tokens: int | None, timeout_seconds: float
    ) -> None:
        if urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).netloc:
            raise SettingsError([f"UPLION_UPSTREAM_URL={url!r} must be the http(s) base URL of the upstream"])
        self._model = model
        self.context_tokens = context_tokens or 0
        self._limit_field = "max_completion_tokens" if urlsplit(url).hostname == "api.openai.com" else "max_tokens"
        self._client = httpx2.AsyncClient(
            base_url=url.rstrip("/") + "/",
            headers={"authorization": f"Bearer {key}"} if key else {},
            timeout=httpx2.Timeout(timeout_seconds, connect=_CONNECT_SECONDS),
            limits=httpx2.Limits(max_connections=slots, max_keepalive_connections=slots),
            follow_redirects=False,
        )
        # Not a TaskGroup: requests outlive the call that starts them and end with `cancel` or `close`.
        self._tasks: dict[str, asyncio.Task[None]] = {}

    async def start(self) -> None:
        """Nothing to load; whether the upstream answers is seen with the first request."""

    async def failure(self) -> Exception:
        """An upstream that is away fails requests, not the worker."""
        failed: asyncio.Future[Exception] = asyncio.get_running_loop().create_future()
        return await failed

    async def generate(self, generation: Generation, output: Output) -> None:
        if generation.resume:
            raise UplionError(Reason.WORKER_LOST, "An upstream cannot go on from an earlier attempt.")
        output.begin(_estimate(generation.prompt))
        task = asyncio.get_running_loop().create_task(
            self._stream(generation, output), name=f"upstream {generation.id}"
        )
        self._tasks[generation.id] = task
        task.add_done_callback(lambda _: self._tasks.pop(generation.id, None))

    async def embed(self, attempt_id: str, inputs: Sequence[Text | Tokens]) -> Vectors:
        texts = [item.text for item in inputs if isinstance(item, Text)]
        tokens = [list(item.ids) for item in inputs if isinstance(item, Tokens)]
        if texts and tokens:
            raise UplionError(Reason.INVALID_REQUEST, "Give texts or token arrays, not both.", param="input")
        body = {"model": self._model, "input": texts or tokens, "encoding_format": "float"}
        try:
            async with self._post("embeddings", body) as response:
                answer = json.loads(await _read(response, _LONGEST_ANSWER_BYTES))
            rows = sorted(answer["data"], key=lambda row: int(row["index"]))
            values = [_unit(row["embedding"]) for row in rows]
            counted = int(answer.get("usage", {}).get("prompt_tokens", sum(map(_estimate, inputs))))
        except (ValueError, KeyError, TypeError, AttributeError) as problem:
            raise _failed("sent no embeddings") from problem
        if len(values) != len(inputs):
            raise _failed(f"sent {len(values)} embeddings for {len(inputs)} inputs")
        return Vectors(values, counted)

    def cancel(self, attempt_id: str) -> None:
        task = self._tasks.pop(attempt_id, None)
        if task is not None:
            task.cancel()

    def stats(self) -> EngineStats:
        return EngineStats(running=len(self._tasks))

    async def close(self) -> None:
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._client.aclose()

    async def _stream(self, generation: Generation, output: Output) -> None:
        chat = isinstance(generation.prompt, Chat)
        answer = _Answer(output, generation.sampling.choices)
        reader = SseReader()
        try:
            async with self._post("chat/completions" if chat else "completions", self._body(generation)) as response:
                received = 0
                async for chunk in response.aiter_raw():
                    received += len(chunk)
                    if received > _LONGEST_ANSWER_BYTES:
                        raise SseTooLongError
                    for data in reader.push(chunk):
                        answer.take(data)
                    if answer.done:
                        break
                for data in reader.end():
                    answer.take(data)
            answer.finish()
        except UplionError as error:
            output.fail(error)
        except SseTooLongError:
            output.fail(_failed("sent more than an answer can be"))
        except Exception:  # a task boundary: the request must hear of it
            logger.exception("upstream request failed")
            output.fail(_failed("could not be understood"))

    def _body(self, generation: Generation) -> dict[str, Any]:
        prompt = generation.prompt
        body: dict[str, Any] = {"model": self._model, "stream": True, "stream_options": {"include_usage": True}}
        if isinstance(prompt, Chat):
            body["messages"] = list(prompt.messages)
        else:
            body["prompt"] = prompt.text if isinstance(prompt, Text) else list(prompt.ids)
        names = {"choices": "n", "max_output_tokens": self._limit_field}
        body.update((names.get(name, name), value) for name, value in generation.sampling.changed().items())
        return body

    @asynccontextmanager
    async def _post(self, path: str, body: dict[str, Any]) -> AsyncIterator[httpx2.Response]:
        """A 200 answer whose body is not read yet; everything else raises."""
        headers = {"accept-encoding": "identity"}  # a compressed stream could be delayed, or a bomb
        try:
            async with self._client.stream("POST", path, json=body, headers=headers) as response:
                if response.status_code != httpx2.codes.OK:
                    raise await _refusal(response)
                yield response
        except httpx2.TimeoutException as problem:
            raise _failed("did not answer in time") from problem
        except httpx2.HTTPError as problem:
            raise _failed("cannot be reached or broke off") from problem


class _Answer:
    """What the stream's events say, told to the output."""

    def __init__(self, output: Output, choices: int) -> None:
        self._output = output
        self._open = set(range(choices))
        self._counted = False
        self.done = False

    def take(self, data: str) -> None:
        if data.strip() == _DONE:
            self.done = True
            return
        try:
            event = json.loads(data)
        except ValueError as problem:
            raise _failed("sent an event that is not JSON") from problem
        if not isinstance(event, dict):
            raise _failed("sent an event that is no object")
        if event.get("error"):
            raise _failed("broke off with an error")
        for choice in event.get("choices") or ():
            self._choice(choice)
        if isinstance(event.get("usage"), dict):
            self._count(event["usage"])

    def finish(self) -> None:
        """The stream ended; one that only stopped has failed."""
        if self._open:
            raise _failed("broke off in the middle of the answer")
        self._output.end()

    def _choice(self, choice: dict[str, Any]) -> None:
        index = int(choice.get("index") or 0)
        delta = choice.get("delta") or {}
        text = choice.get("text") or delta.get("content") or ""
        reason = choice.get("finish_reason")
        finish_reason = FINISH_REASON_UNSPECIFIED
        if reason is not None:
            finish_reason = FINISH_REASON_LENGTH if reason == "length" else FINISH_REASON_STOP
        if index not in self._open or not (text or finish_reason):
            return
        if text and not self._counted:
            self._output.output_tokens += 1  # nearly: most upstreams send a token at a time
        if finish_reason:
            self._open.discard(index)
        self._output.add(Delta(index, [text] if text else [], [], finish_reason))

    def _count(self, usage: dict[str, Any]) -> None:
        self._counted = True
        details = usage.get("prompt_tokens_details") or {}
        self._output.begin(int(usage.get("prompt_tokens") or 0), int(details.get("cached_tokens") or 0))
        self._output.output_tokens = int(usage.get("completion_tokens") or 0)


def _failed(what: str) -> UplionError:
    return UplionError(Reason.UPSTREAM_FAILED, f"The model's upstream {what}.")


async def _refusal(response: httpx2.Response) -> UplionError:
    """What a status other than 200 means for our client."""
    status = response.status_code
    if status == httpx2.codes.TOO_MANY_REQUESTS:
        after = response.headers.get("retry-after", "")
        seconds = float(after) if after.isdigit() else None
        return UplionError(Reason.OVERLOADED, "The model's upstream is overloaded.", retry_after_seconds=seconds)
    if status in (httpx2.codes.BAD_REQUEST, httpx2.codes.UNPROCESSABLE_CONTENT):
        message = "no reason given"
        try:
            problem = json.loads(await _read(response, _LONGEST_ERROR_BYTES))
            message = str(problem["error"]["message"])[:_SHOWN_CHARACTERS]
        except (ValueError, KeyError, TypeError, UplionError):
            pass  # the status alone has to do
        return UplionError(Reason.INVALID_REQUEST, f"The model's upstream refuses the request: {message}")
    logger.warning("upstream refused", extra={"status": status})
    return UplionError(Reason.UPSTREAM_FAILED, "The model's upstream failed.", upstream_status=status)


async def _read(response: httpx2.Response, most_bytes: int) -> bytes:
    body = b""
    async for chunk in response.aiter_raw():
        body += chunk
        if len(body) > most_bytes:
            raise _failed("sent more than an answer can be")
    return body


def _estimate(prompt: Prompt) -> int:
    if isinstance(prompt, Tokens):
        return len(prompt.ids)
    text = prompt.text if isinstance(prompt, Text) else "".join(str(part.get("content")) for part in prompt.messages)
    return 1 + len(text) // _CHARACTERS_PER_TOKEN


def _unit(values: list[float]) -> bytes:
    length = math.sqrt(sum(value * value for value in values)) or 1.0
    unit = array.array("f", [value / length for value in values])
    if sys.byteorder == "big":
        unit.byteswap()
    return unit.tobytes()
