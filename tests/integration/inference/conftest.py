"""Starts workers in this process, with a fake router."""

import asyncio
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from inference import app
from inference.settings import InferenceSettings
from tests.kit.fake_router import WAIT_SECONDS, StartWorker, Worker, fake_router, manifest_file
from tests.kit.until import until


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine may take longer to open a run than a router has time to."""
    monkeypatch.setattr("inference.tickets.intake.OFFER_SECONDS", 20.0)


@pytest.fixture
async def start_worker_at(tmp_path: Path) -> AsyncIterator[Callable[..., Awaitable[Worker]]]:
    """Starts a worker of a fresh model at a NATS, with a spool or without; keywords are its manifest's spec."""
    async with asyncio.TaskGroup() as tasks:
        workers: list[tuple[Worker, Any]] = []

        async def start(nats_url: str, spool: Path | None, model: str = "", **spec: Any) -> Worker:
            model = model or f"m{uuid.uuid4().hex[:8]}"
            manifest = manifest_file(tmp_path, model, **spec)
            settings = InferenceSettings(manifest, nats_url, drain_grace_seconds=15.0, spool_dir=spool)
            stop = asyncio.Event()
            task = tasks.create_task(app.main(settings, stop, lambda address: None))
            context = fake_router(nats_url, model)
            worker = Worker(await context.__aenter__(), stop, task)
            workers.append((worker, context))

            async def registered() -> bool:
                if task.done():
                    task.result()
                return await worker.router.worker() is not None

            await until(registered, WAIT_SECONDS * 3)
            return worker

        yield start
        for worker, context in workers:
            worker.stop.set()
            if not worker.task.done():
                await worker.ended()
            await context.__aexit__(None, None, None)


@pytest.fixture
def start_worker(nats_url: str, start_worker_at: Callable[..., Awaitable[Worker]]) -> StartWorker:
    """Starts a worker of a fresh model; keywords are its manifest's spec."""
    return partial(start_worker_at, nats_url, None)
