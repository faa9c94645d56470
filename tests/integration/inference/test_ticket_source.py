"""Any queue may stand behind a worker's ticket source: here a list of tickets in two lanes, one before the other."""

import asyncio
from contextlib import asynccontextmanager
from typing import Any

from common import names
from inference.tickets.intake import TicketIntake
from inference.tickets.jetstream_source import JetStreamSource
from inference.tickets.offers import Offers
from inference.tickets.receipts import Receipts
from inference.tickets.slots import SlotManager
from inference.usage_events import UsageRecorder
from messaging.inbox import Inbox
from tests.kit.fake_router import WAIT_SECONDS, fake_router


class StoredAtOnce:
    """A usage outbox whose events are safe as soon as they are put."""

    def __init__(self):
        self.blocked = False
        self.events = []

    def put(self, event, on_safe=None, *, traceparent=""):
        self.events.append(event)
        on_safe()


class ListedTicket:
    """A delivery that records how it was answered."""

    traceparent, delivery_count = "", 1

    def __init__(self, payload, answers):
        self.payload = payload
        self._answers = answers

    async def in_progress(self):
        self._answers.put_nowait((self.payload, "in progress"))

    def acknowledge(self, on_end):
        self._answers.put_nowait((self.payload, "acknowledged"))
        on_end()

    async def give_back(self, delay_seconds=0.0):
        self._answers.put_nowait((self.payload, "given back"))

    async def dead_letter(self, problem):
        self._answers.put_nowait((self.payload, "dead letter"))


class TwoLanes:
    """A ticket source: what is in the first lane goes before what is in the second."""

    def __init__(self):
        self.first, self.second = [], []
        self.answers: asyncio.Queue[Any] = asyncio.Queue()
        self._changed = asyncio.Condition()
        self._credit = 0
        self.largest_credit = 0

    async def put(self, lane, payload):
        async with self._changed:
            lane.append(payload)
            self._changed.notify_all()

    async def want(self, count):
        async with self._changed:
            self._credit = count
            self.largest_credit = max(self.largest_credit, count)
            self._changed.notify_all()

    async def next(self, timeout_seconds):
        try:
            async with asyncio.timeout(timeout_seconds), self._changed:
                await self._changed.wait_for(lambda: self._credit and (self.first or self.second))
        except TimeoutError:
            return None
        self._credit -= 1
        return ListedTicket((self.first or self.second).pop(0), self.answers)

    async def finish(self):
        return [ListedTicket(payload, self.answers) for payload in [*self.first, *self.second]]


@asynccontextmanager
async def intake_of(source, slots, router):
    async with Inbox.open(router.bus) as inbox, asyncio.TaskGroup() as tasks:
        usage = UsageRecorder(model=router.model, revision=1, provider="synthetic")
        offers = Offers(router.bus.send, inbox, worker_id="w", receipt_subject=router.bus.new_inbox())
        intake = TicketIntake(source, slots, offers, usage, Receipts(slots, offers))
        running = tasks.create_task(intake.run())
        yield intake
        running.cancel()


async def test_another_queue_serves_its_tickets_in_its_own_order(nats_url):
    source, outbox = TwoLanes(), StoredAtOnce()
    slots = SlotManager(1, outbox)
    async with fake_router(nats_url, "lanes") as router, asyncio.timeout(WAIT_SECONDS):
        tickets = [router.ticket() for _ in range(3)]
        offers = [asyncio.get_running_loop().create_future() for _ in tickets]
        router.offers = dict(zip([ticket.request_id for ticket in tickets], offers, strict=True))
        source.second += [tickets[0].SerializeToString(), b"\xff\xff not a ticket", tickets[1].SerializeToString()]
        async with intake_of(source, slots, router) as intake:
            await offers[0]
            held = slots.claim(tickets[0])
            assert held is not None
            await source.put(source.first, tickets[2].SerializeToString())
            assert not offers[2].done(), "the one slot is taken"
            slots.settle(held, None)
            assert await source.answers.get() == (held.delivery.payload, "acknowledged")
            _, message = await offers[2]
            assert not offers[1].done(), "the first lane goes first"
            await message.respond(b"")
            assert (await source.answers.get())[1] == "acknowledged"
            assert await source.answers.get() == (b"\xff\xff not a ticket", "dead letter")
            await offers[1]
            assert source.largest_credit == 1
            slots.draining = True
            source.second.append(router.ticket().SerializeToString())
            await intake.finish()
            assert (await source.answers.get())[1] == "given back"
    assert not outbox.events


async def test_an_acknowledgement_is_repeated_until_it_is_confirmed_or_given_up(nats_url, monkeypatch):
    monkeypatch.setattr("inference.tickets.jetstream_source._CONFIRM_SECONDS", 0.1)
    async with fake_router(nats_url, "acks") as router, Inbox.open(router.bus) as inbox:
        opening = JetStreamSource.open(router.bus, inbox, router.model, names.LANE_DEFAULT)
        async with opening as source, asyncio.timeout(WAIT_SECONDS):
            subject = router.bus.new_inbox()
            subscription = await router.bus.subscribe(subject)
            ended = asyncio.Event()
            source.acknowledge(subject, ended.set)
            await subscription.next_msg(WAIT_SECONDS)
            assert not ended.is_set()
            again = await subscription.next_msg(WAIT_SECONDS)
            await again.respond(b"")
            await ended.wait()
            given_up = asyncio.Event()
            source.acknowledge(subject, given_up.set)
            assert [(await subscription.next_msg(WAIT_SECONDS)).data for _ in range(3)] == [b"+ACK"] * 3
            await given_up.wait()
