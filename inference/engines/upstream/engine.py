"""The engine `openai`: a model behind an OpenAI-compatible API, called once for each request."""

import asyncio
import logging
import re
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from urllib.parse import urlsplit

import httpx2
import msgspec

from common.errors import Reason, UplionError
from common.settings import SettingsError
from inference.engines.engine import Capability, Chat, EngineStats, Generation, Prompt, Text, Tokens, Vectors
from inference.engines.output import Output
from inference.engines.upstream.answer import Answer, Usage, upstream_failed
from inference.engines.upstream.sse import SseReader, SseTooLongError
from inference.engines.vectors import unit_vector

logger = logging.getLogger(__name__)

_CONNECT_SECONDS = 10.0
_LONGEST_ANSWER_BYTES = 64 * 1024 * 1024
_LONGEST_ERROR_BYTES = 64 * 1024
_SHOWN_CHARACTERS = 300
_SECONDS = re.compile(r"[0-9]{1,9}")
_LONGEST_RETRY_SECONDS = 3600
_CHARACTERS_PER_TOKEN = 4  # an estimate, until the upstream has counted


class _Embedding(msgspec.Struct):
    index: int
    embedding: list[float]


class _Embeddings(msgspec.Struct):
    data: list[_Embedding]
    usage: Usage | None = None


class _Error(msgspec.Struct):
    message: str


class _ErrorBody(msgspec.Struct):
    error: _Error


_decode_embeddings = msgspec.json.Decoder(_Embeddings, strict=False).decode
_decode_error = msgspec.json.Decoder(_ErrorBody, strict=False).decode


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
        """Never returns: an upstream that is away fails requests, not the worker."""
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
        body: dict[str, object] = {"model": self._model, "input": texts or tokens, "encoding_format": "float"}
        try:
            async with self._post("embeddings", body) as response:
                answer = _decode_embeddings(await _read(response, _LONGEST_ANSWER_BYTES))
        except msgspec.DecodeError as problem:
            raise upstream_failed("sent no embeddings") from problem
        if len(answer.data) != len(inputs):
            raise upstream_failed(f"sent {len(answer.data)} embeddings for {len(inputs)} inputs")
        values = [unit_vector(row.embedding) for row in sorted(answer.data, key=lambda row: row.index)]
        counted = answer.usage.prompt_tokens if answer.usage is not None else None
        return Vectors(values, sum(map(_estimate, inputs)) if counted is None else counted)

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
        answer = Answer(output, generation.sampling.choices)
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
            output.fail(upstream_failed("sent more than an answer can be"))
        except Exception:  # a task boundary: without this the request would wait for ever
            logger.exception("upstream request failed")
            output.fail(upstream_failed("could not be understood"))

    def _body(self, generation: Generation) -> dict[str, object]:
        prompt = generation.prompt
        body: dict[str, object] = {"model": self._model, "stream": True, "stream_options": {"include_usage": True}}
        if isinstance(prompt, Chat):
            body["messages"] = list(prompt.messages)
        else:
            body["prompt"] = prompt.text if isinstance(prompt, Text) else list(prompt.ids)
        names = {"choices": "n", "max_output_tokens": self._limit_field}
        body.update((names.get(name, name), value) for name, value in generation.sampling.changed().items())
        return body

    @asynccontextmanager
    async def _post(self, path: str, body: dict[str, object]) -> AsyncIterator[httpx2.Response]:
        """A 200 answer whose body is not read yet; everything else raises."""
        headers = {"accept-encoding": "identity"}  # a compressed stream may be delayed, or expand without bound
        try:
            async with self._client.stream("POST", path, json=body, headers=headers) as response:
                if response.status_code != httpx2.codes.OK:
                    raise await _status_error(response)
                yield response
        except httpx2.TimeoutException as problem:
            raise upstream_failed("did not answer in time") from problem
        except httpx2.HTTPError as problem:
            raise upstream_failed("cannot be reached or broke off") from problem


async def _status_error(response: httpx2.Response) -> UplionError:
    """The error for a status other than 200."""
    status = response.status_code
    if status == httpx2.codes.TOO_MANY_REQUESTS:
        after = response.headers.get("retry-after", "")
        seconds = min(int(after), _LONGEST_RETRY_SECONDS) if _SECONDS.fullmatch(after) else None
        return UplionError(Reason.OVERLOADED, "The model's upstream is overloaded.", retry_after_seconds=seconds)
    if status in (httpx2.codes.BAD_REQUEST, httpx2.codes.UNPROCESSABLE_CONTENT):
        message = "no reason given"
        with suppress(msgspec.DecodeError, UplionError):  # the status alone has to do
            message = _decode_error(await _read(response, _LONGEST_ERROR_BYTES)).error.message[:_SHOWN_CHARACTERS]
        return UplionError(Reason.INVALID_REQUEST, f"The model's upstream refuses the request: {message}")
    logger.warning("upstream refused", extra={"status": status})
    return UplionError(Reason.UPSTREAM_FAILED, "The model's upstream failed.", upstream_status=status)


async def _read(response: httpx2.Response, most_bytes: int) -> bytes:
    body = b""
    async for chunk in response.aiter_raw():
        body += chunk
        if len(body) > most_bytes:
            raise upstream_failed("sent more than an answer can be")
    return body


def _estimate(prompt: Prompt) -> int:
    if isinstance(prompt, Tokens):
        return len(prompt.ids)
    text = prompt.text if isinstance(prompt, Text) else "".join(str(part.get("content")) for part in prompt.messages)
    return 1 + len(text) // _CHARACTERS_PER_TOKEN
