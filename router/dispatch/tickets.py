"""Tickets out, offers in: how a request finds a worker with a free slot.

One NATS subscription serves the whole router. A ticket's JetStream acknowledgement and the offers for it arrive on
subjects under it, so waiting for both at once costs one future and one timer, and no task.
"""

import asyncio
import json
import logging
import secrets
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from itertools import count
from typing import Protocol

import nats.errors
from google.protobuf.message import DecodeError
from nats.js import api
from uplion.dispatch.v1.ticket_pb2 import Caller, Offer, Ticket

from common import names, telemetry
from common.errors import Reason, UplionError
from common.lifecycle import not_cancelled
from messaging.bus import Bus
from messaging.connection import Connection
from router.dispatch.accounting.attempts import Attempt
from router.dispatch.jobs import Job
from router.dispatch.lost_tickets import Whereabouts
from router.dispatch.routing_table import RoutingTable
from router.settings import RouterSettings

logger = logging.getLogger(__name__)

_BROKER_RETRY_SECONDS = 1.0
_LOADING_RETRY_SECONDS = 5.0
_OVERLOAD_RETRY_SECONDS = 2.0
_ACK = "ack"
_DELETE = f"$JS.API.STREAM.MSG.DELETE.{names.STREAM_TASKS}"
_PROOF_BYTES = 16
_RECONNECT_POLL_SECONDS = 0.25


@dataclass(frozen=True, slots=True)
class Accepted:
    """An accepted offer; the worker expects a Run on `address` within two seconds."""

    ticket: Ticket
    worker_id: str
    address: str
    refusal_subject: str
    receipt_subject: str  # empty: the worker wants no receipt


class OfferObserver(Protocol):
    """What is to be informed of offers."""

    def unexpected_offer(self, attempt_id: str) -> None:
        """A worker offers to run an attempt whose ticket does not wait here any more."""

    def receipt_missing(self, request_id: str, attempt: int, subject: str) -> None:
        """A worker's run has ended, and what the client was given of it is not known there."""


class _Waiting:
    """One published ticket without an accepted offer. Times are the loop's."""

    __slots__ = (
        "accepted",
        "acknowledged",
        "deadline",
        "loading_until",
        "number",
        "publish_until",
        "queue_until",
        "ticket",
        "timer",
        "whereabouts",
    )

    def __init__(self, number: str, ticket: Ticket, now: float, deadline: float, settings: RouterSettings) -> None:
        self.number = number
        self.ticket = ticket
        self.whereabouts = Whereabouts(ticket.model, ticket.lane, now)
        self.accepted: asyncio.Future[Accepted] = asyncio.get_running_loop().create_future()
        self.acknowledged = False
        self.deadline = deadline
        self.publish_until = now + settings.publish_seconds
        self.loading_until = now + settings.model_loading_seconds
        self.queue_until = now + settings.queue_seconds
        self.timer: asyncio.TimerHandle | None = None

    def fail(self, error: UplionError) -> None:
        if not self.accepted.done():
            self.accepted.set_exception(error)


class Tickets:
    """Publishes tickets and accepts the first offer for each. Made by `open`."""

    def __init__(
        self, connection: Connection, models: RoutingTable, settings: RouterSettings, observer: OfferObserver
    ) -> None:
        self._connection = connection
        self._models = models
        self._settings = settings
        self._observer = observer
        self._loop = asyncio.get_running_loop()
        self._prefix = f"offers.{connection.new_inbox().rpartition('.')[2]}"
        self._numbers = count(1)
        self._waiting: dict[str, _Waiting] = {}

    @classmethod
    @asynccontextmanager
    async def open(
        cls, connection: Connection, models: RoutingTable, settings: RouterSettings, observer: OfferObserver
    ) -> AsyncIterator["Tickets"]:
        """Takes offers while the block runs."""
        tickets = cls(connection, models, settings, observer)
        async with connection.diverted(f"{tickets._prefix}.>", tickets._arrived):
            yield tickets

    async def offer(self, job: Job, attempt: Attempt, deadline: float) -> Accepted:
        """Publishes the attempt's ticket and waits for its first offer.

        Raises UNAVAILABLE within a second when JetStream does not take the ticket, MODEL_LOADING or OVERLOADED when no
        worker takes it in time, DEADLINE_EXCEEDED at `deadline` (the loop's clock). Cancelled or failed, the ticket is
        taken back: later offers for it are refused.
        """
        number = str(next(self._numbers))
        now = self._loop.time()
        ticket = _ticket(job, attempt.number, deadline - now, f"{self._prefix}.{number}")
        waiting = _Waiting(number, ticket, now, deadline, self._settings)
        self._waiting[number] = waiting
        attempt.queued(ticket.publish_time.ToNanoseconds())
        self._look(waiting)
        try:
            self._publish(waiting)
            accepted = await waiting.accepted
        except BaseException:
            await self._take_back(waiting)
            raise
        finally:
            if waiting.timer is not None:
                waiting.timer.cancel()
            del self._waiting[number]
        attempt.offered(accepted.worker_id, accepted.receipt_subject)
        return accepted

    def _publish(self, waiting: _Waiting) -> None:
        ticket, publications = waiting.ticket, waiting.whereabouts.publications
        if not self._connection.connected:  # nats-py would buffer it, and the caller would wait in vain
            raise _broker_away()
        headers = telemetry.outgoing()
        message_id = names.attempt_id(ticket.request_id, ticket.attempt)
        headers[api.Header.MSG_ID] = message_id if publications == 1 else f"{message_id}+{publications}"
        headers[api.Header.EXPECTED_STREAM] = names.STREAM_TASKS
        try:
            self._connection.send(
                names.task_subject(ticket.model, ticket.lane),
                ticket.SerializeToString(),
                f"{self._prefix}.{waiting.number}.{_ACK}",
                headers,
            )
        except (nats.errors.Error, ConnectionError) as problem:
            raise _broker_away() from problem

    async def _publish_again(self) -> None:
        """Publishes every waiting ticket once more: a stream in memory dies with its server. Ids prevent duplicates."""
        for waiting in self.waiting():
            try:
                self._publish(waiting)
            except UplionError as error:
                waiting.fail(error)

    def waiting(self) -> list[_Waiting]:
        """The tickets that the queue has, and that no worker has offered to run."""
        return [each for each in self._waiting.values() if each.acknowledged and not each.accepted.done()]

    def publish_anew(self, waiting: _Waiting) -> None:
        """A ticket that its worker lost: another worker gets it. Should the first one offer to run it after all, then
        whose offer comes first has the attempt, and the other one is refused.
        """
        where = waiting.whereabouts
        if waiting.accepted.done() or not self._connection.connected:
            return
        lost = where.sequence
        where.published_at, where.delivered_at, where.sequence = self._loop.time(), None, 0
        where.publications += 1
        try:
            self._publish(waiting)
            self._connection.send(_DELETE, _deletion(lost))
        except (UplionError, nats.errors.Error, ConnectionError) as problem:
            logger.warning("a lost ticket was not published anew", extra={"problem": repr(problem)})

    async def restore_queue(self, bus: Bus) -> None:
        """After each reconnect, ensures that the streams exist and hold the waiting tickets; never returns."""
        seen = bus.reconnects
        while not_cancelled():
            await asyncio.sleep(_RECONNECT_POLL_SECONDS)
            if seen == (now := bus.reconnects):
                continue
            try:
                await bus.ensure_streams()
                await self._publish_again()
                seen = now
            except (nats.errors.Error, TimeoutError) as problem:
                logger.warning("the queue cannot be restored yet", extra={"problem": repr(problem)})

    async def _take_back(self, waiting: _Waiting) -> None:
        """Refuses the offer if one was accepted; else deletes the ticket, so that it does not count as backlog."""
        if not self._connection.connected:
            return
        accepted = waiting.accepted
        with suppress(nats.errors.Error, ConnectionError):
            if accepted.done() and not accepted.cancelled() and accepted.exception() is None:
                if subject := accepted.result().refusal_subject:
                    await self._connection.publish_core(subject, b"")
            elif waiting.whereabouts.sequence:
                await self._connection.publish_core(_DELETE, _deletion(waiting.whereabouts.sequence))

    def _look(self, waiting: _Waiting) -> None:
        """The timer's callback: fails a ticket that has waited too long, or sets the timer to its next limit."""
        now = self._loop.time()
        served = self._serving(waiting.ticket.model)
        if not waiting.acknowledged and now >= waiting.publish_until:
            waiting.fail(_broker_away())
        elif now >= waiting.deadline:
            waiting.fail(UplionError(Reason.DEADLINE_EXCEEDED, "The request's time ran out while it was queued."))
        elif not served and now >= min(waiting.loading_until, waiting.queue_until):
            message = f"The model '{waiting.ticket.model}' has no running worker yet."
            waiting.fail(UplionError(Reason.MODEL_LOADING, message, retry_after_seconds=_LOADING_RETRY_SECONDS))
        elif now >= waiting.queue_until:
            message = "Every worker of this model is busy."
            waiting.fail(UplionError(Reason.OVERLOADED, message, retry_after_seconds=_OVERLOAD_RETRY_SECONDS))
        else:
            moments = (waiting.publish_until, waiting.loading_until, waiting.queue_until, waiting.deadline)
            waiting.timer = self._loop.call_at(min(at for at in moments if at > now), self._look, waiting)

    def _serving(self, model: str) -> bool:
        route = self._models.snapshot.routes.get(model)
        return route is not None and route.workers > 0

    def _arrived(self, subject: bytes, reply: bytes, _: bytes, payload: bytes) -> None:
        try:
            number, _dot, rest = subject[len(self._prefix) + 1 :].decode().partition(".")
            waiting = self._waiting.get(number)
            if rest == _ACK:
                if waiting is not None:
                    self._acknowledge(waiting, payload)
            elif not self._accept(waiting, payload, reply.decode()) and reply:
                self._connection.send(reply.decode(), b"")
        except (nats.errors.Error, ConnectionError) as problem:
            logger.warning("an offer could not be refused", extra={"problem": repr(problem)})

    def _acknowledge(self, waiting: _Waiting, data: bytes) -> None:
        try:
            answer = json.loads(data) if data else {}
            waiting.whereabouts.sequence = answer["seq"]
        except (ValueError, KeyError, TypeError):
            logger.error("JetStream refused a ticket", extra={"answer": data[:300].decode("utf-8", "replace")})
            waiting.fail(_broker_away())
            return
        known, waiting.acknowledged = waiting.acknowledged, True
        if (
            answer.get("duplicate") and not known
        ):  # this id was queued before, with another reply subject: no offer will reach us
            waiting.whereabouts.sequence = 0
            waiting.fail(UplionError(Reason.ALREADY_EXISTS, "A request with this id is already running."))

    def _accept(self, waiting: _Waiting | None, data: bytes, refusal_subject: str) -> bool:
        try:
            offer = Offer.FromString(data)
        except DecodeError:
            logger.error("an offer is not valid")
            return False
        if offer.ended:
            self._observer.receipt_missing(offer.request_id, offer.attempt, offer.receipt_subject)
            return True  # answered by a receipt, or not yet
        if waiting is None:
            self._observer.unexpected_offer(names.attempt_id(offer.request_id, offer.attempt))
            return False
        if waiting.accepted.done():
            return False
        ticket = waiting.ticket
        if offer.request_id != ticket.request_id or offer.attempt != ticket.attempt:
            return False
        accepted = Accepted(ticket, offer.worker_id, offer.address, refusal_subject, offer.receipt_subject)
        waiting.accepted.set_result(accepted)
        return True


def _deletion(sequence: int) -> bytes:
    return json.dumps({"seq": sequence, "no_erase": True}).encode()


def _broker_away() -> UplionError:
    return UplionError(
        Reason.UNAVAILABLE, "Requests cannot be queued right now.", retry_after_seconds=_BROKER_RETRY_SECONDS
    )


def _ticket(job: Job, attempt: int, seconds: float, reply_subject: str) -> Ticket:
    identity = job.identity
    ticket = Ticket(
        request_id=identity.request_id,
        attempt=attempt,
        caller=Caller(
            account=identity.account,
            project=identity.project,
            key=identity.key,
            reservation=identity.reservation,
            tier=identity.tier,
        ),
        model=job.model,
        lane=job.lane,
        estimated_tokens=job.estimated_tokens,
        reply_subject=reply_subject,
        proof=secrets.token_bytes(_PROOF_BYTES),
    )
    now = time.time_ns()
    ticket.publish_time.FromNanoseconds(now)
    ticket.deadline.FromNanoseconds(now + int(seconds * 1e9))
    return ticket
