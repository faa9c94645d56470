"""A small service of its own stands on common.lifecycle here, as every real one does."""

import asyncio
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from google.rpc.error_details_pb2 import ErrorInfo
from google.rpc.status_pb2 import Status
from uplion.control.v1 import usage_pb2, usage_service_pb2_grpc

from common.errors import STATUS_DETAILS_METADATA, Reason, UplionError, from_rpc_error
from rpc.server import grpc_server

CANARY = "canary-in-the-exception-text"


class _Usage(usage_service_pb2_grpc.UsageServiceServicer):
    async def QueryUsage(self, request: usage_pb2.QueryUsageRequest, context: object) -> usage_pb2.QueryUsageResponse:  # noqa: N802
        if request.account == "crash":
            raise ValueError(CANARY)
        if request.account == "refuse":
            raise UplionError(Reason.RATE_LIMIT_EXCEEDED, "Too fast.", param="account", retry_after_seconds=2, limit=5)
        if request.account == "slow":
            await asyncio.sleep(0.5)
        return usage_pb2.QueryUsageResponse(rows=[usage_pb2.UsageRow(group="all")])


@pytest.fixture
async def stub() -> AsyncIterator[usage_service_pb2_grpc.UsageServiceStub]:
    def register(server: grpc.aio.Server) -> None:
        usage_service_pb2_grpc.add_UsageServiceServicer_to_server(_Usage(), server)  # type: ignore[abstract]

    async with (
        grpc_server("127.0.0.1:0", register) as address,
        grpc.aio.insecure_channel(address) as channel,
    ):
        yield usage_service_pb2_grpc.UsageServiceStub(channel)


async def test_an_unknown_exception_tells_the_client_its_request_id_and_nothing_else(stub, caplog) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.QueryUsage(
            usage_pb2.QueryUsageRequest(account="crash"), metadata=(("x-request-id", "req-7"),), timeout=60
        )
    assert caught.value.code() is grpc.StatusCode.INTERNAL
    assert caught.value.details() == "Internal error; request req-7."
    assert CANARY not in repr(caught.value.trailing_metadata())
    assert CANARY in caplog.text  # the log has the whole story


async def test_a_message_that_is_none_is_the_callers_fault(caplog) -> None:
    def register(server: grpc.aio.Server) -> None:
        usage_service_pb2_grpc.add_UsageServiceServicer_to_server(_Usage(), server)  # type: ignore[abstract]

    async with (
        grpc_server("127.0.0.1:0", register) as address,
        grpc.aio.insecure_channel(address) as channel,
    ):
        call: Any = channel.unary_unary("/uplion.control.v1.UsageService/QueryUsage")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call(b"\xff\xff", timeout=60)
    assert from_rpc_error(caught.value).reason is Reason.INVALID_REQUEST
    assert "DecodeError" not in str(caught.value.details())


async def test_an_error_of_ours_arrives_whole(stub) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.QueryUsage(usage_pb2.QueryUsageRequest(account="refuse"), timeout=60)
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    details = dict(list(caught.value.trailing_metadata()))[STATUS_DETAILS_METADATA]
    info = ErrorInfo()
    assert Status.FromString(details).details[0].Unpack(info)
    assert info.reason == "RATE_LIMIT_EXCEEDED"
    error = from_rpc_error(caught.value)
    assert (error.reason, error.message, error.param, error.retry_after_seconds, error.facts) == (
        Reason.RATE_LIMIT_EXCEEDED,
        "Too fast.",
        "account",
        2,
        {"limit": "5"},
    )


PROGRAM = textwrap.dedent("""
    import asyncio, os, sys
    from common.lifecycle import ProcessSettings, run
    from common.settings import load
    from rpc.server import grpc_server
    from tests_lifecycle import register

    kind = sys.argv[1]
    serving = asyncio.Event()
    starts = 0

    async def good(stop, ready):
        async with grpc_server("127.0.0.1:0", register, grace_seconds=600) as address:
            ready(address)
            serving.set()
            await stop.wait()

    async def bad(stop, ready):
        global starts
        await serving.wait()
        starts += 1
        if kind == "fails at its start":
            raise RuntimeError("it broke")
        ready(f"start-{starts}")
        if starts < 3:
            raise RuntimeError("it broke")
        await stop.wait()

    async def alone(stop, ready):
        async with grpc_server("127.0.0.1:0", register, grace_seconds=600) as address:
            ready(address)
            await asyncio.sleep(1.0)
            raise RuntimeError("it broke")

    services = {"good": {"good": good}, "alone": {"good": alone}}.get(kind, {"good": good, "bad": bad})
    sys.exit(run(services, load(ProcessSettings, os.environ)))
""")


class _Program:
    """A process of such services, and what it announces."""

    def __init__(self, tmp_path: Path, kind: str) -> None:
        (tmp_path / "program.py").write_text(PROGRAM)
        (tmp_path / "tests_lifecycle.py").write_text(
            textwrap.dedent("""
            import asyncio
            from uplion.control.v1 import usage_pb2, usage_service_pb2_grpc

            class Usage(usage_service_pb2_grpc.UsageServiceServicer):
                async def QueryUsage(self, request, context):
                    await context.send_initial_metadata(())
                    await asyncio.sleep(float(request.account or 0.5))
                    return usage_pb2.QueryUsageResponse()

            def register(server):
                usage_service_pb2_grpc.add_UsageServiceServicer_to_server(Usage(), server)
            """)
        )
        self._notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        path = str(tmp_path / "notify")
        self._notify.bind(path)
        self._notify.settimeout(60)
        self.process = subprocess.Popen(
            [sys.executable, str(tmp_path / "program.py"), kind],
            env={"NOTIFY_SOCKET": path, "PATH": "/usr/bin"},
            stdout=subprocess.PIPE,
            text=True,
        )

    def announced(self, service: str) -> str:
        """The address of the service's next readiness."""
        while True:
            message = self._notify.recv(1024).decode()
            if message.startswith(f"READY=1\nSTATUS={service} "):
                return message.rpartition(" ")[2]

    async def ended(self) -> tuple[int, str]:
        """The exit code and the log."""
        output, _ = await asyncio.to_thread(self.process.communicate, None, 60)
        self._notify.close()
        return self.process.returncode, output


async def test_sigterm_lets_the_running_call_finish_and_ends_with_zero(tmp_path: Path) -> None:
    program = _Program(tmp_path, "good")
    address = await asyncio.to_thread(program.announced, "good")
    async with grpc.aio.insecure_channel(address) as channel:
        call = usage_service_pb2_grpc.UsageServiceStub(channel).QueryUsage(usage_pb2.QueryUsageRequest(), timeout=60)
        await call.initial_metadata()
        program.process.send_signal(signal.SIGTERM)
        await call
    assert (await program.ended())[0] == 0


async def test_a_service_that_fails_is_started_again_while_the_others_serve(tmp_path: Path) -> None:
    program = _Program(tmp_path, "fails twice")
    address = await asyncio.to_thread(program.announced, "good")
    async with grpc.aio.insecure_channel(address) as channel:
        stub = usage_service_pb2_grpc.UsageServiceStub(channel)
        call = stub.QueryUsage(usage_pb2.QueryUsageRequest(account="2"), timeout=60)
        await call.initial_metadata()
        found = [await asyncio.to_thread(program.announced, "bad") for _ in range(3)]
        assert found == ["start-1", "start-2", "start-3"]
        await call  # was not cut
        await stub.QueryUsage(usage_pb2.QueryUsageRequest(), timeout=60)
    program.process.send_signal(signal.SIGTERM)
    code, output = await program.ended()
    assert code == 0
    assert output.count('"service failed"') == 2


async def test_a_service_that_never_was_ready_ends_the_process_and_waits_for_no_long_stream(tmp_path: Path) -> None:
    """Settings, ports and schemas are an operator's to mend: a loop of restarts would hide them."""
    began = time.monotonic()
    program = _Program(tmp_path, "fails at its start")
    code, output = await program.ended()
    assert code == 1
    assert "it broke" in output
    assert time.monotonic() - began < 60


async def test_the_failure_of_a_service_alone_in_its_process_does_not_wait_for_its_longest_stream(
    tmp_path: Path,
) -> None:
    program = _Program(tmp_path, "alone")
    address = await asyncio.to_thread(program.announced, "good")
    async with grpc.aio.insecure_channel(address) as channel:
        call = usage_service_pb2_grpc.UsageServiceStub(channel).QueryUsage(
            usage_pb2.QueryUsageRequest(account="500"), timeout=600
        )
        await call.initial_metadata()
        with pytest.raises(grpc.aio.AioRpcError):
            await asyncio.wait_for(call, 60)
    code, output = await program.ended()
    assert code == 1
    assert "it broke" in output
