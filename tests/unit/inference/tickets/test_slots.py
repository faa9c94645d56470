"""Slots: what occupies one, and how a ticket is settled."""

import asyncio
from typing import Any

import pytest
from uplion.billing.v1.usage_event_pb2 import UsageEvent
from uplion.dispatch.v1.ticket_pb2 import Ticket

from inference.tickets.held import HeldTicket, TicketState
from inference.tickets.slots import SlotManager


class FakeOutbox:
    """Keeps events until `store` is called."""

    def __init__(self):
        self.blocked = False
        self.events = []

    def put(self, event, on_safe=None, *, traceparent=""):
        self.events.append((event, on_safe))

    def store(self):
        for _, on_safe in self.events:
            on_safe()
        self.events.clear()


class FakeDelivery:
    """Keeps its acknowledgement until `confirm` is called."""

    payload, traceparent, delivery_count = b"", "", 1

    def __init__(self):
        self.on_end = None
        self.given_back_seconds = None

    def acknowledge(self, on_end):
        self.on_end = on_end

    async def give_back(self, delay_seconds=0.0):
        self.given_back_seconds = delay_seconds


class FakeOffer:
    """Knows whether it was closed."""

    closed = False

    def close(self):
        self.closed = True


PROOF = bytes(range(16))


def ticket(request_id: str = "r", attempt: int = 1, proof: bytes = PROOF) -> Ticket:
    return Ticket(request_id=request_id, attempt=attempt, proof=proof)


def held_in(slots: SlotManager, request_id: str = "r", attempt: int = 1, proof: bytes = PROOF) -> Any:
    delivery: Any = FakeDelivery()
    held = HeldTicket(ticket(request_id, attempt, proof), delivery, offer=FakeOffer())
    slots.hold(held)
    return held


async def test_a_ticket_is_acknowledged_once_its_event_is_stored():
    outbox = FakeOutbox()
    slots = SlotManager(2, outbox)
    held = held_in(slots)
    offer = held.offer
    assert (slots.free, slots.busy, held.state) == (1, 1, TicketState.OFFERED)
    claimed: Any = slots.claim(ticket())
    assert claimed is held
    assert (slots.free, held.state, offer.closed) == (1, TicketState.RUNNING, True)
    assert slots.claim(ticket()) is None, "a run is opened once"
    slots.settle(held, UsageEvent())
    slots.settle(held, UsageEvent())
    assert (slots.free, slots.busy, held.state) == (2, 0, TicketState.SETTLING)
    assert slots.holds(held.ticket), "a second delivery of it is not another ticket"
    assert (len(outbox.events), held.delivery.on_end) == (1, None)
    outbox.store()
    assert slots.freed.is_set()
    held.delivery.on_end()
    assert held.state is TicketState.RELEASED
    assert not slots.holds(held.ticket)
    await slots.settled(0.0)


def test_without_an_event_it_is_acknowledged_at_once():
    slots = SlotManager(1, FakeOutbox())
    held = held_in(slots)
    slots.settle(held, None)
    assert held.delivery.on_end is not None


async def test_an_offer_that_is_given_back_cannot_be_run():
    slots = SlotManager(1, FakeOutbox())
    held = held_in(slots)
    offer = held.offer
    await slots.give_back(held, 1.0)
    assert (held.delivery.given_back_seconds, offer.closed, slots.free) == (1.0, True, 1)
    assert slots.claim(ticket()) is None


def test_no_slot_is_free_while_draining_or_while_usage_cannot_be_stored():
    outbox = FakeOutbox()
    slots = SlotManager(3, outbox)
    outbox.blocked = True
    assert (slots.free, slots.blocked) == (0, True)
    outbox.blocked = False
    slots.draining = True
    assert (slots.free, slots.busy) == (0, 0)


def test_unsettled_tickets_beyond_the_slots_occupy_slots():
    outbox = FakeOutbox()
    slots = SlotManager(2, outbox)
    settling = []
    for number in range(6):
        held = held_in(slots, str(number))
        slots.settle(held, UsageEvent())
        settling.append(held)
    assert slots.free == 0, "two slots, and two more than twice as many are unsettled"
    outbox.store()
    slots.freed.clear()
    settling[0].delivery.on_end()
    assert slots.free == 1
    assert slots.freed.is_set()


def test_a_run_that_waits_for_its_receipt_is_unsettled_and_counted_once():
    outbox = FakeOutbox()
    slots = SlotManager(1, outbox)
    held = held_in(slots)
    slots.claim(held.ticket)
    slots.deliver(held, UsageEvent())
    assert (slots.busy, slots.free, outbox.events) == (0, 1, [])
    assert slots.freed.is_set()
    slots.settle(held, UsageEvent())
    assert (slots.busy, slots.free, len(outbox.events)) == (0, 1, 1)
    outbox.store()
    held.delivery.on_end()
    assert held.state is TicketState.RELEASED
    assert slots.find("r.1") is None


def test_an_attempt_that_ran_here_supersedes_the_older_ones():
    slots = SlotManager(2, FakeOutbox())
    held_in(slots, "r", 2)
    assert not slots.superseded(Ticket(request_id="r", attempt=2)), "it was offered, and did not run"
    assert slots.claim(ticket("r", 2))
    assert slots.superseded(Ticket(request_id="r", attempt=1))
    assert slots.superseded(Ticket(request_id="r", attempt=2))
    assert not slots.superseded(Ticket(request_id="r", attempt=3))


async def test_idle_waits_for_the_last_run(caplog):
    slots = SlotManager(1, FakeOutbox())
    held = held_in(slots)
    await slots.idle(0.0)
    assert "outlive the drain" in caplog.text
    waiting = asyncio.ensure_future(slots.idle(60.0))
    await asyncio.sleep(0)
    assert not waiting.done()
    slots.settle(held, None)
    await waiting


def test_a_state_is_never_entered_twice():
    delivery: Any = FakeDelivery()
    held = HeldTicket(Ticket(request_id="r", attempt=1), delivery)
    held.enter(TicketState.SETTLING)
    with pytest.raises(AssertionError, match="settling cannot become running"):
        held.enter(TicketState.RUNNING)


@pytest.mark.parametrize("shown", [b"", PROOF[:-1], PROOF + b"\0", bytes(16), PROOF[::-1]])
def test_a_ticket_is_run_for_who_shows_its_proof_alone(shown):
    slots = SlotManager(1, FakeOutbox())
    held = held_in(slots)
    assert slots.claim(ticket(proof=shown)) is None
    assert held.state is TicketState.OFFERED, "a stranger takes nothing away"
    assert slots.claim(ticket()) is held


def test_a_ticket_of_a_router_that_knew_no_proof_is_run_without():
    slots = SlotManager(1, FakeOutbox())
    held = held_in(slots, proof=b"")
    assert slots.claim(ticket()) is None
    assert slots.claim(ticket(proof=b"")) is held
