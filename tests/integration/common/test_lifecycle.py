"""A small service of its own stands on common.lifecycle here, as every real one does."""

import asyncio
import signal
import socket
import subprocess
import sys
import textwrap
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

    serving = asyncio.Event()

    async def good(stop, ready):
        async with grpc_server("127.0.0.1:0", register, grace_seconds=15) as address:
            ready(address)
            serving.set()
            await stop.wait()

    async def bad(stop, ready):
        await serving.wait()
        raise RuntimeError("it broke")

    services = {"good": good} if sys.argv[1] == "good" else {"good": good, "bad": bad}
    sys.exit(run(services, load(ProcessSettings, os.environ)))
""")


def _start(tmp_path: Path, kind: str) -> tuple[subprocess.Popen[str], str]:
    (tmp_path / "program.py").write_text(PROGRAM)
    (tmp_path / "tests_lifecycle.py").write_text(
        textwrap.dedent("""
        import asyncio
        from uplion.control.v1 import usage_pb2, usage_service_pb2_grpc

        class Usage(usage_service_pb2_grpc.UsageServiceServicer):
            async def QueryUsage(self, request, context):
                await context.send_initial_metadata(())
                await asyncio.sleep(0.5)
                return usage_pb2.QueryUsageResponse()

        def register(server):
            usage_service_pb2_grpc.add_UsageServiceServicer_to_server(Usage(), server)
        """)
    )
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
        path = str(tmp_path / "notify")
        notify.bind(path)
        notify.settimeout(60)
        process = subprocess.Popen(
            [sys.executable, str(tmp_path / "program.py"), kind],
            env={"NOTIFY_SOCKET": path, "PATH": "/usr/bin"},
            stdout=subprocess.PIPE,
            text=True,
        )
        message = notify.recv(1024).decode()
    assert message.startswith("READY=1\nSTATUS=good 127.0.0.1:")
    return process, message.rpartition(" ")[2]


async def test_sigterm_lets_the_running_call_finish_and_ends_with_zero(tmp_path: Path) -> None:
    process, address = await asyncio.to_thread(_start, tmp_path, "good")
    async with grpc.aio.insecure_channel(address) as channel:
        call = usage_service_pb2_grpc.UsageServiceStub(channel).QueryUsage(usage_pb2.QueryUsageRequest(), timeout=60)
        await call.initial_metadata()
        process.send_signal(signal.SIGTERM)
        await call
    assert await asyncio.to_thread(process.wait, 60) == 0
    assert process.stdout is not None
    process.stdout.close()


async def test_a_service_that_crashes_ends_the_process_with_one(tmp_path: Path) -> None:
    process, _ = await asyncio.to_thread(_start, tmp_path, "bad")
    output, _ = await asyncio.to_thread(process.communicate, None, 60)
    assert process.returncode == 1
    assert "it broke" in output
