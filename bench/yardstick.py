"""What this machine takes for one bare grpc.aio call: the unit that other machines' figures can be compared in.

docs/architecture.md's figures come from a machine where it is 105 to 115 us of server CPU.
"""

import asyncio
import multiprocessing
from multiprocessing.connection import Connection

import grpc
import grpc.aio
import uvloop

from bench import processes

_CALLS = 6000
_AT_ONCE = 16


def echo_cpu_us() -> float:
    """Server CPU of one unary echo, in microseconds."""
    ours, theirs = multiprocessing.Pipe()
    server = multiprocessing.get_context("spawn").Process(target=_serve_process, args=(theirs,), daemon=True)
    server.start()
    try:
        if not ours.poll(20):
            raise TimeoutError("the echo server did not start")
        return uvloop.run(_call(f"127.0.0.1:{ours.recv()}", server.pid or 0))
    finally:
        server.kill()
        server.join(10)


def _serve_process(pipe: Connection) -> None:
    uvloop.run(_serve(pipe))


async def _serve(pipe: Connection) -> None:
    async def echo(request: bytes, context: object) -> bytes:
        return request

    handler = grpc.unary_unary_rpc_method_handler(echo)
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("bench.Echo", {"Echo": handler}),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    pipe.send(port)
    await server.wait_for_termination()


async def _call(address: str, pid: int) -> float:
    async with grpc.aio.insecure_channel(address) as channel:
        echo = channel.unary_unary("/bench.Echo/Echo")
        await echo(b"", timeout=10)

        async def some() -> None:
            for _ in range(_CALLS // _AT_ONCE):
                await echo(b"x" * 100, timeout=10)

        before = processes.cpu_seconds(pid)
        await asyncio.gather(*(some() for _ in range(_AT_ONCE)))
        return (processes.cpu_seconds(pid) - before) / _CALLS * 1e6
