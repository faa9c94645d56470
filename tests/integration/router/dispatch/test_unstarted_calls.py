"""What authz admitted is always accounted for: one last usage event and one release, whatever became of the request."""

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio
from google.api import annotations_pb2
from google.api.httpbody_pb2 import HttpBody
from uplion.billing.v1 import usage_event_pb2 as billing
from uplion.dispatch.v1 import run_pb2
from uplion.inference.v1 import chat_pb2, completion_pb2, embedding_pb2, inference_service_pb2
from uplion.openai.v1 import openai_service_pb2

from common import operations
from common.names import KV_MODELS, SUBJECT_RELEASE, token
from tests.integration.router.conftest import MANIFEST
from tests.kit.scripted_worker import hello, word
from tests.kit.until import until

_OPENAI = "/uplion.openai.v1.OpenAIService/"
_NATIVE = "/uplion.inference.v1.InferenceService/"
METHODS = {operation.rpc: operation for operation in operations.OPERATIONS if operation.reserves}
_UNREADABLE = b"\xff\xff\xff"
_WAIT_SECONDS = 30.0
_HELLO: Any = [{"role": "user", "content": "hi"}]


def refusals(model: str, idle: str) -> dict[str, tuple[str, bytes, str]]:
    """Every way to be refused: its name -> method, message, and the model that authz read."""
    inputs: dict[str, dict[str, Any]] = {
        "CreateChatCompletion": {"messages": _HELLO},
        "CreateCompletion": {"prompt": "hi"},
        "CreateEmbedding": {"input": "hi"},
    }
    cases: dict[str, tuple[str, bytes, str]] = {}
    for method, given in inputs.items():
        name = next(iter(given))
        bodies: dict[str, tuple[Any, str]] = {
            "no object": ([], model),
            "no model": (given, model),
            "model no text": ({"model": 1, **given}, model),
            "another model than admitted": ({"model": "other", **given}, model),
            "unknown model": ({"model": "no-such", **given}, "no-such"),
            "no input": ({"model": model}, model),
            "input of a wrong type": ({"model": model, name: 5}, model),
            "field of a wrong type": ({"model": model, **given, "user": 5}, model),
            "too deep": ({"model": model, **given, "x": json.loads("[" * 70 + "]" * 70)}, model),
            "no worker": ({"model": idle, **given}, idle),
        }
        if method != "CreateEmbedding":
            bodies["unbuilt field"] = ({"model": model, **given, "logprobs": 3}, model)
            bodies["out of range"] = ({"model": model, **given, "temperature": 9}, model)
            bodies["no worker, streamed"] = ({"model": idle, "stream": True, **given}, idle)
            bodies["unknown model, streamed"] = ({"model": "no-such", "stream": True, **given}, "no-such")
        else:
            bodies["not what the model can"] = ({"model": model, **given}, model)
            bodies["unbuilt field"] = ({"model": model, **given, "dimensions": 3}, model)
        for what, (body, admitted) in bodies.items():
            cases[f"{method}: {what}"] = (_OPENAI + method, _http(json.dumps(body).encode()), admitted)
        cases[f"{method}: no JSON"] = (_OPENAI + method, _http(b"{"), model)
        cases[f"{method}: unreadable"] = (_OPENAI + method, _UNREADABLE, model)
    cases["too large"] = (f"{_OPENAI}CreateChatCompletion", _http(b"x" * ((4 << 20) + 1)), model)
    for kind, request in (
        ("Chat", chat_pb2.ChatRequest(messages=_HELLO)),
        ("ChatStream", chat_pb2.ChatStreamRequest(messages=_HELLO)),
        ("Completion", completion_pb2.CompletionRequest(prompt="hi")),
        ("CompletionStream", completion_pb2.CompletionStreamRequest(prompt="hi")),
        ("Embed", embedding_pb2.EmbedRequest(inputs=["hi"])),
    ):
        for what, named, admitted in (
            ("no model", "", model),
            ("another model than admitted", "other", model),
            ("unknown model", "no-such", "no-such"),
            ("no worker", idle, idle),
        ):
            request.model = named
            cases[f"{kind}: {what}"] = (_NATIVE + kind, request.SerializeToString(), admitted)
        cases[f"{kind}: no input"] = (_NATIVE + kind, type(request)(model=model).SerializeToString(), model)
        cases[f"{kind}: unreadable"] = (_NATIVE + kind, _UNREADABLE, model)
    return cases


def _http(data: bytes) -> bytes:
    return HttpBody(content_type="application/json", data=data).SerializeToString()


def _chat(model: str, **fields: Any) -> bytes:
    return _http(json.dumps({"model": model, "messages": _HELLO, **fields}).encode())


class Ledger:
    """All last usage events and all releases of a test's reservations."""

    def __init__(self, world: Any) -> None:
        self._world = world
        self.events: list[billing.UsageEvent] = []
        self.released: list[str] = []

    async def open(self) -> "Ledger":
        async def on_usage(message: Any) -> None:
            self.events.append(billing.UsageEvent.FromString(message.data))

        async def on_release(message: Any) -> None:
            for line in message.data.decode().split("\n"):
                account, _, reservation = line.partition(" ")
                assert account == "acme"
                self.released.append(reservation)

        await self._world.bus.subscribe("usage.>", cb=on_usage)
        await self._world.bus.subscribe(SUBJECT_RELEASE, cb=on_release)
        await self._world.bus.flush()
        return self

    def metadata(self, name: str, model: str) -> Any:
        """One admitted request that holds a slot; its id tells the events of other tests apart."""
        request_id = f"{self._world.model}-{name}"
        return self._world.client.metadata(
            model=model, request_id=request_id, reservation=request_id.replace(" ", "_"), holds_slot=True
        )

    async def accounts_for(self, requests: list[str]) -> dict[str, billing.UsageEvent]:
        """Each one's last event, by name; waits for them all, and for all releases."""
        ids = {f"{self._world.model}-{name}": name for name in requests}

        def found() -> dict[str, billing.UsageEvent]:
            return {ids[event.request_id]: event for event in self.events if event.last and event.request_id in ids}

        try:
            await until(lambda: len(found()) == len(ids) and len(set(self.released)) == len(ids), _WAIT_SECONDS)
        except AssertionError:
            unreleased = {name.replace(" ", "_") for name in ids} - set(self.released)
            raise AssertionError(f"no event: {set(requests) - set(found())}, no release: {unreleased}") from None
        assert Counter(self.released).most_common(1)[0][1] == 1
        # One attempt may be told of twice (by its worker, and by a router that thinks it dead): it has one key.
        last = {(event.request_id, event.attempt) for event in self.events if event.last}
        assert Counter(request_id for request_id, _ in last).most_common(1)[0][1] == 1
        return found()


async def _send(channel: grpc.aio.Channel, method: str, message: bytes, metadata: Any) -> None:
    """As Envoy does, and leaves the answer to others."""
    opened: Any = channel.unary_stream(method)
    call = opened(message, metadata=metadata, timeout=_WAIT_SECONDS)
    try:
        async for _ in call:
            pass
    except grpc.aio.AioRpcError:
        pass


async def test_every_refusal_ends_in_one_usage_event_and_one_release(start_world: Any) -> None:
    async with start_world(worker=False, model_loading_seconds=0.3) as world:
        await world.start_worker(capabilities=(1, 2))
        idle = f"{world.model}-idle"
        await (await world.bus.js.key_value(KV_MODELS)).put(token(idle), MANIFEST % idle.encode())
        ledger = await Ledger(world).open()
        cases = refusals(world.model, idle)
        await asyncio.gather(
            *(
                _send(world.client.channel, method, message, ledger.metadata(name, model))
                for name, (method, message, model) in cases.items()
            )
        )
        found = await ledger.accounts_for(list(cases))
        for name, event in found.items():
            assert event.status == billing.ATTEMPT_STATUS_REFUSED, name
            assert event.error_reason, name
            assert not event.usage.output_tokens, name
            assert event.operation, name


async def test_a_call_that_ends_before_its_message_came_is_accounted_for_too(world: Any) -> None:
    ledger = await Ledger(world).open()
    calls = []
    for method in METHODS:
        call = world.client.channel.stream_stream(method)(metadata=ledger.metadata(method, world.model))
        await call.wait_for_connection()
        calls.append(call)
    for call in calls:
        call.cancel()
    found = await ledger.accounts_for(list(METHODS))
    seen = {event.status for event in found.values()}  # what the gRPC library noticed first
    assert seen <= {billing.ATTEMPT_STATUS_CANCELLED, billing.ATTEMPT_STATUS_REFUSED}
    assert {name: event.operation for name, event in found.items()} == {
        name: operation.capability.value for name, operation in METHODS.items() if operation.capability
    }


async def test_a_slot_is_released_once_whatever_became_of_the_request(start_world: Any) -> None:
    async def moody(request: run_pb2.RunRequest, context: Any) -> AsyncIterator[run_pb2.RunEvent]:
        if request.ticket.request_id.endswith("lost"):
            await context.abort(grpc.StatusCode.UNAVAILABLE, "Socket closed")
        if request.ticket.request_id.endswith("left"):
            yield run_pb2.RunEvent(deltas=[word(0, "a", 1)])
            await asyncio.sleep(_WAIT_SECONDS)
        async for event in hello(request, context):
            yield event

    async with start_world(worker=False) as world:
        await world.start_worker(script=moody)
        ledger = await Ledger(world).open()
        method, channel = f"{_OPENAI}CreateChatCompletion", world.client.channel
        for name in ("answered", "lost"):
            await _send(channel, method, _chat(world.model, stream=True), ledger.metadata(name, world.model))
        left = channel.unary_stream(method)(
            _chat(world.model, stream=True), metadata=ledger.metadata("left", world.model)
        )
        await left.read()
        left.cancel()
        found = await ledger.accounts_for(["answered", "lost", "left"])
        assert {name: billing.AttemptStatus.Name(event.status) for name, event in found.items()} == {
            "answered": "ATTEMPT_STATUS_COMPLETED",
            "lost": "ATTEMPT_STATUS_WORKER_LOST",
            "left": "ATTEMPT_STATUS_CANCELLED",
        }


async def test_a_request_that_holds_no_slot_announces_nothing(world: Any) -> None:
    ledger = await Ledger(world).open()
    await world.client.post("CreateChatCompletion", b"{", request_id=f"{world.model}-none", holds_slot=False)
    await until(lambda: any(event.request_id == f"{world.model}-none" for event in ledger.events))
    await world.bus.flush()
    assert ledger.released == []


def test_every_method_that_authz_reserves_for_is_watched() -> None:
    native = inference_service_pb2.DESCRIPTOR.services_by_name["InferenceService"]
    reserved = {f"{_NATIVE}{method.name}" for method in native.methods if _reserves(f"{_NATIVE}{method.name}")}
    openai = openai_service_pb2.DESCRIPTOR.services_by_name["OpenAIService"]
    for method in openai.methods:
        rule = method.GetOptions().Extensions[annotations_pb2.http]
        if rule.post and _reserves(rule.post):
            reserved.add(f"{_OPENAI}{method.name}")
    assert reserved == set(METHODS)


def _reserves(path: str) -> bool:
    operation = operations.find("POST", path)
    return operation is not None and operation.reserves
