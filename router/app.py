"""The wiring of the router."""

import asyncio
import logging
from functools import partial

import grpc.aio

from common.lifecycle import Ready, forever
from credentials.identity_proof import IdentityProofs
from messaging.bus import connect_bus
from messaging.inbox import Inbox
from messaging.outbox import Outbox
from router.dispatch.accounting.attempt_registry import AttemptRegistry
from router.dispatch.accounting.receipts import Receipts
from router.dispatch.accounting.releases import Releases
from router.dispatch.dispatcher import Dispatcher
from router.dispatch.liveness import Liveness
from router.dispatch.lost_tickets import LostTickets
from router.dispatch.routing_table import RoutingTable
from router.dispatch.tickets import Tickets
from router.dispatch.unstarted_calls import UnstartedCalls
from router.dispatch.worker_channels import WorkerChannels
from router.settings import RouterSettings
from router.surfaces.arrivals import Arrivals
from router.surfaces.base import CallLifecycle
from router.surfaces.native.service import NativeService
from router.surfaces.openai.service import OpenAIService
from router.surfaces.relay import Relay
from rpc.identity import IdentityInterceptor
from rpc.server import grpc_server

logger = logging.getLogger(__name__)

_USAGE_DRAIN_SECONDS = 5.0
_REQUEST_MARGIN_BYTES = 1 << 20  # above it gRPC itself refuses, without the form clients expect


async def main(settings: RouterSettings, stop: asyncio.Event, ready: Ready) -> None:
    """Serves until `stop` is set, then drains."""
    proofs = IdentityProofs.of(settings.proof_keys)
    async with (
        connect_bus(settings.nats_url, "router") as bus,
        WorkerChannels.open(settings.listen) as workers,
        Inbox.open(bus) as inbox,
        Outbox.open(
            bus, inbox, settings.spool_dir, spool_bytes=settings.spool_bytes, capacity=settings.usage_pending
        ) as outbox,
    ):
        await bus.ensure_streams()
        releases, arrivals = Releases(bus.send, inbox), Arrivals(bus)
        models = RoutingTable(bus)
        receipts = Receipts(bus, settings.usage_remembered)
        attempts = AttemptRegistry(outbox, models, receipts, settings.usage_remembered)
        models.observe(attempts)
        liveness = Liveness(bus, settings.worker_silent_seconds)
        models.on_heartbeat(liveness.heard)
        async with (
            Tickets.open(bus, models, settings, attempts) as tickets,
            forever(
                {
                    "send usage": outbox.run,
                    "watch models": models.run,
                    "restore the queue": partial(tickets.restore_queue, bus),
                    "look for lost tickets": LostTickets(bus, tickets.waiting, tickets.publish_anew).run,
                    "announce arrivals": arrivals.run,
                    "free slots": releases.run,
                    "report streams": receipts.run,
                    "judge workers": liveness.run,
                    "close idle channels": partial(workers.close_idle, models),
                }
            ),
        ):
            await models.ready.wait()
            dispatcher = Dispatcher(tickets, workers, models, attempts, liveness, settings)
            lifecycle = CallLifecycle(attempts, releases, arrivals)
            relay = Relay(dispatcher, releases, settings)

            def register(server: grpc.aio.Server) -> None:
                OpenAIService(lifecycle, relay, models, settings).register(server)
                NativeService(lifecycle, relay, models).register(server)

            async with grpc_server(
                settings.listen,
                register,
                drain_seconds=settings.drain_seconds,
                grace_seconds=settings.grace_seconds,
                interceptors=(IdentityInterceptor(proofs), UnstartedCalls(lifecycle.end_unstarted)),
                options=(
                    ("grpc.max_receive_message_length", settings.request_bytes + _REQUEST_MARGIN_BYTES),
                    ("grpc.max_send_message_length", -1),
                ),
            ) as address:
                ready(address)
                await stop.wait()
            await outbox.drain(_USAGE_DRAIN_SECONDS)
