"""Row S7 at a worker: it runs a ticket for the router that published it, and does nothing for anybody else."""

from typing import Any

import grpc
import grpc.aio
import pytest
from uplion.dispatch.v1 import worker_service_pb2

from common.errors import from_rpc_error
from common.identity import IDENTITY_HEADERS
from tests.kit.proof import proven

METHODS = [
    f"/{service.full_name}/{method.name}"
    for service in worker_service_pb2.DESCRIPTOR.services_by_name.values()
    for method in service.methods
]


async def answer(channel: Any, method: str, message: bytes, metadata: Any = ()) -> Any:
    """The status of a call, and how many messages came before it."""
    call = channel.unary_stream(method)(message, metadata=metadata, timeout=60)
    count = 0
    try:
        async for _ in call:
            count += 1
    except grpc.aio.AioRpcError as problem:
        assert "Traceback" not in from_rpc_error(problem).message
        return problem.code(), count
    return grpc.StatusCode.OK, count


@pytest.mark.parametrize("method", METHODS)
async def test_every_method_wants_the_proof_of_an_offered_ticket(start_worker: Any, method: str) -> None:
    """What a caller says of itself counts for nothing here, be it proven or not."""
    router = (await start_worker()).router
    request = router.chat(max_output_tokens=3)
    offer, _ = await router.offer(request.ticket)
    proof = request.ticket.proof
    assert len(proof) == 16
    identity = proven(method, [(name, "acme") for name in IDENTITY_HEADERS])
    async with grpc.aio.insecure_channel(offer.address) as channel:
        for shown in (b"", proof[:-1], proof + b"\0", proof[::-1], bytes(16), proof.hex().encode()):
            request.ticket.proof = shown
            for metadata in ((), identity):
                refused = await answer(channel, method, request.SerializeToString(), metadata)
                assert refused == (grpc.StatusCode.FAILED_PRECONDITION, 0), shown
        for message in (b"", b"\xff", router.chat().SerializeToString()):
            code, count = await answer(channel, method, message, identity)
            assert code in (grpc.StatusCode.FAILED_PRECONDITION, grpc.StatusCode.INVALID_ARGUMENT)
            assert count == 0
        # The strangers took nothing away from the router that has the proof; and it is good once.
        request.ticket.proof = proof
        code, count = await answer(channel, method, request.SerializeToString())
        assert (code, count > 0) == (grpc.StatusCode.OK, True)
        assert (await answer(channel, method, request.SerializeToString())) == (grpc.StatusCode.FAILED_PRECONDITION, 0)
    assert (await router.usage(request.ticket.request_id)).usage.output_tokens == 3
    await router.settled()


async def test_each_attempt_of_a_request_has_a_proof_of_its_own(start_worker: Any) -> None:
    router = (await start_worker()).router
    first = router.ticket()
    second = router.ticket(first.request_id, 2)
    offer, _ = await router.offer(second)
    request = router.chat(ticket=second)
    request.ticket.proof = first.proof
    async with grpc.aio.insecure_channel(offer.address) as channel:
        code, _ = await answer(channel, METHODS[0], request.SerializeToString())
    assert code is grpc.StatusCode.FAILED_PRECONDITION


async def test_a_ticket_of_the_version_before_has_no_proof_and_is_run_without(start_worker: Any) -> None:
    router = (await start_worker()).router
    ticket = router.ticket()
    ticket.ClearField("proof")
    events = await router.run(router.chat(ticket=ticket, max_output_tokens=2))
    assert events[-1].usage.output_tokens == 2
