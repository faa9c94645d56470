"""Every measure of a limit, on a real Valkey: what passes, what is capped, what is refused, and what comes back."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest

from authz.limits.limiter import Grant
from authz.limits.refusals import LimitError
from billing.reservations.settlement import connect_settlement
from billing.rollups import Balance, Totals
from common import names
from common.errors import Reason
from common.operations import Kind
from tests.integration.authz.harness import Harness, harness
from tests.integration.authz.rules import at_once, cost, requests, tokens
from tests.kit.until import until


@pytest.fixture
async def world(redis_url: str) -> AsyncIterator[Harness]:
    async with harness(redis_url) as made:
        yield made


async def refused(world: Harness, record: Any, **question: Any) -> LimitError:
    with pytest.raises(LimitError) as refusal:
        await world.admit(record, **question)
    return refusal.value


async def passed(world: Harness, record: Any, at_once: int, **question: Any) -> list[Grant]:
    found = await asyncio.gather(*(world.admit(record, **question) for _ in range(at_once)), return_exceptions=True)
    assert all(isinstance(each, Grant | LimitError) for each in found)
    return [each for each in found if isinstance(each, Grant)]


async def test_of_many_at_once_exactly_what_fits_passes_each_measure_at_each_level(world: Harness) -> None:
    world.price("m", 2.0, 8.0, request=0.001)  # a request of 100 + 10 tokens: 200 + 80 + 1000 millionths
    for limit in (requests(100), tokens(11_000), tokens(11_000, "minute"), cost(0.128), at_once(100)):
        for level in ("account", "project", "key"):
            limits: dict[str, Any] = {"project_limits": [limit]} if level == "project" else {"key_limits": [limit]}
            world.account += "x"
            record = world.record(limit) if level == "account" else world.record(project="p", **limits)
            assert len(await passed(world, record, 120)) == 100, (limit, level)


async def test_settled_use_never_exceeds_a_budget_of_tokens_or_money(world: Harness) -> None:
    """A thousand streams of open length, each of which uses all it may."""
    world.price("m", 2.5, 10.0)
    record = world.record(tokens(33_333), cost(0.3))
    granted = await passed(world, record, 1000, output=None)
    used = [(100, grant.max_output_tokens or 0) for grant in granted]
    assert min(output for _, output in used) >= 1
    assert sum(sum(each) for each in used) <= 33_333
    assert sum(each[0] * 2.5 + each[1] * 10.0 for each in used) <= 300_000
    assert sum(each[0] * 2.5 + (each[1] + 1) * 10.0 for each in used) > 300_000 - 1_500  # and leaves little unused


async def test_a_limit_for_one_model_is_no_matter_to_others(world: Harness) -> None:
    record = world.record(requests(1, model="big"), tokens(110, model="big"))
    assert (await world.admit(record, model="big")).max_output_tokens == 10
    assert (await refused(world, record, model="big")).facts["rule"] == "account/requests/minute/big"
    assert (await refused(world, record, model="big", size=110)).facts["rule"] == "account/tokens/life/big"
    for _ in range(3):
        assert (await world.admit(record, model="small")).max_output_tokens is None


async def test_a_projects_limit_counts_all_its_keys_and_nobody_elses(world: Harness) -> None:
    ours = [world.record(key=key, project="p", project_limits=[requests(2)]) for key in ("k1", "k2")]
    other = world.record(key="k3", project="q", project_limits=[requests(2)])
    for record in ours:
        await world.admit(record)
    for record in ours:
        error = await refused(world, record)
        assert (error.facts["rule"], error.facts["level"]) == ("project/requests/minute", "project")
    await world.admit(other)


async def test_the_tightest_rule_caps_and_is_named(world: Harness) -> None:
    world.price("m", 1.0, 2.0)
    record = world.record(tokens(10_000), cost(0.0007, "day"), key_limits=[tokens(5_000, "minute")])
    grant = await world.admit(record, output=4_000)  # 700 - 100 = 600 millionths, at 2 a token
    assert (grant.max_output_tokens, grant.capped_by) == (300, "account/cost/day/USD")
    grant = await world.admit(world.record(tokens(10_000), key_limits=[tokens(5_000, "minute")]), output=300)
    assert (grant.max_output_tokens, grant.capped_by) == (300, "")  # it is what was asked for
    assert grant.rate_limits.tokens is not None
    assert grant.rate_limits.tokens.rule.name == "key/tokens/minute"
    assert grant.rate_limits.tokens.remaining == 5_000 - 2 * 400


async def test_money_counts_only_what_is_priced_in_its_currency(world: Harness) -> None:
    world.price("dollars", 0.0, 1.0)
    world.price("euros", 0.0, 1.0, currency="EUR")
    record = world.record(cost(0.00001))  # 10 tokens
    assert (await world.admit(record, model="euros", output=50)).max_output_tokens is None
    assert (await world.admit(record, model="unpriced", output=50)).max_output_tokens is None
    assert (await world.admit(record, model="dollars", output=50)).max_output_tokens == 10
    error = await refused(world, record, model="dollars")
    assert error.reason is Reason.RATE_LIMIT_EXCEEDED
    assert "0.00001 USD" in error.message


async def test_a_budget_is_spent_only_when_what_runs_cannot_give_back_enough(world: Harness) -> None:
    record = world.record(tokens(220))
    running = [await world.admit(record), await world.admit(record)]
    reserved = await refused(world, record)
    assert (reserved.reason, reserved.retry_after_seconds) == (Reason.RATE_LIMIT_EXCEEDED, 1.0)
    assert (reserved.facts["rule"], reserved.facts["remaining"]) == ("account/tokens/life", 0)
    too_large = await refused(world, record, size=220)  # and a token of output
    assert (too_large.reason, too_large.retry_after_seconds) == (Reason.INSUFFICIENT_QUOTA, None)
    await settle(world, running[:1], {("a", "", "life"): 110})
    assert (await refused(world, record, size=109)).reason is Reason.RATE_LIMIT_EXCEEDED
    assert (await refused(world, record, size=110)).reason is Reason.INSUFFICIENT_QUOTA
    await settle(world, running[1:], {("a", "", "life"): 119}, used=9)
    await world.admit(record)


async def test_a_day_begins_anew_and_a_month_and_a_life_do_not(world: Harness) -> None:
    world.now[0] = 1_795_305_595.0  # 2026-11-21, five seconds before midnight UTC
    record = world.record(tokens(220, "day"), tokens(550, "month"), tokens(1_000))
    yesterday = [await world.admit(record), await world.admit(record)]
    error = await refused(world, record, size=220)
    assert error.facts["rule"] == "account/tokens/day"
    assert error.facts["clears_at"] == "2026-11-22T00:00:00.000Z"
    world.now[0] += 10
    assert (await refused(world, record)).facts["period"] == "day"  # what runs over midnight counts until it is settled
    await settle(world, yesterday, {("a", "", "2026-11-21"): 220, ("a", "", "2026-11"): 220, ("a", "", "life"): 220})
    today = [await world.admit(record), await world.admit(record)]
    await settle(world, today, {("a", "", "2026-11-22"): 220, ("a", "", "2026-11"): 440, ("a", "", "life"): 440})
    world.now[0] += 86_400
    grant = await world.admit(record)
    assert grant.rate_limits.tokens is not None
    assert grant.rate_limits.tokens.rule.limit.period == "month"
    assert (await refused(world, record)).facts["rule"] == "account/tokens/month"


async def settle(world: Harness, grants: list[Grant], totals: dict[tuple[str, str, str], int], used: int = 110) -> None:
    """As billing does once it has committed."""
    for (scope, model, period), total in totals.items():
        world.ledger.used_totals[scope, model, period, ""] = total
    async with connect_settlement(world.redis_url) as settlement:
        await settlement.settle(
            [_Entry(world.account, grant.reservation, (used, 0, 0, 0, 0)) for grant in grants],  # type: ignore[misc]
            Totals({Balance(world.account, *where): total for where, total in totals.items()}),
        )


class _Entry(msgspec.Struct):
    """What settlement reads of a ledger entry."""

    account: str
    reservation: str
    tokens: tuple[int, ...]  # by class
    last: bool = True


async def test_tokens_of_a_minute_that_were_not_used_are_there_again_after_settlement(world: Harness) -> None:
    record = world.record(tokens(1_000, "minute"))
    first = await world.admit(record, output=900)
    error = await refused(world, record)
    assert error.reason is Reason.RATE_LIMIT_EXCEEDED
    assert error.retry_after_seconds is not None
    assert 30 < error.retry_after_seconds <= 61
    await settle(world, [first], {}, used=150)
    second = await world.admit(record, output=None)
    assert (second.max_output_tokens, second.capped_by) == (750, "account/tokens/minute")


async def test_a_place_among_so_many_at_once_is_free_again_by_release_or_by_settlement(world: Harness) -> None:
    record = world.record(at_once(2))
    first, second = await world.admit(record), await world.admit(record)
    assert first.holds_slot
    error = await refused(world, record)
    assert (error.reason, error.retry_after_seconds) == (Reason.RATE_LIMIT_EXCEEDED, 1.0)
    for _ in range(2):  # told twice, freed once
        await world.counter_writes.send("", {world.account: [("free", first.reservation)]})
    third = await world.admit(record)
    await refused(world, record)
    await settle(world, [first, second], {})  # the first is free already
    await world.admit(record)
    await refused(world, record)
    await settle(world, [third], {})
    await world.admit(record)


async def test_reading_counts_as_a_request_and_takes_nothing_else(world: Harness) -> None:
    record = world.record(requests(3), tokens(50), at_once(1))
    for _ in range(3):
        grant = await world.admit(record, kind=Kind.READING)
        assert (grant.reservation, grant.holds_slot, grant.deadline_seconds) == ("", False, None)
    assert (await refused(world, record, kind=Kind.READING)).facts["rule"] == "account/requests/minute"


async def test_an_embedding_is_never_capped_and_needs_room_for_its_input(world: Harness) -> None:
    record = world.record(tokens(250))
    for _ in range(2):
        assert (await world.admit(record, kind=Kind.EMBEDDING)).max_output_tokens is None
    await refused(world, record, kind=Kind.EMBEDDING)


async def test_a_rule_in_shadow_decides_and_refuses_nothing(world: Harness) -> None:
    record = world.record(requests(1, shadow=True), tokens(150, shadow=True), tokens(10_000))
    assert (await world.admit(record, output=100)).shadows == ()  # 50 tokens would have been room enough
    grant = await world.admit(record, output=100)
    assert grant.max_output_tokens == 100
    assert {error.facts["measure"] for error in grant.shadows} == {"requests", "tokens"}
    assert grant.rate_limits.requests is None


async def test_a_changed_amount_applies_to_what_was_counted_before(world: Harness) -> None:
    for _ in range(5):
        await world.admit(world.record(requests(5), tokens(10_000)))
    await refused(world, world.record(requests(4), tokens(10_000)))
    grant = await world.admit(world.record(requests(7), tokens(1_000)))
    assert grant.rate_limits.requests is not None
    assert grant.rate_limits.tokens is not None
    assert (grant.rate_limits.requests.remaining, grant.rate_limits.tokens.remaining) == (1, 1_000 - 6 * 110)


async def test_use_that_is_settled_while_it_is_loaded_is_not_missed(world: Harness) -> None:
    """Billing commits and settles between authz's mark and its read, or between its read and its second call."""
    for moment in ("before the read", "after the read"):
        world.account += "y"
        read = world.ledger.used

        async def used(account: str, wanted: Any, moment: str = moment, read: Any = read) -> list[int]:
            if moment == "before the read":
                await settle(world, [], {("a", "", "life"): 700})
                return await read(account, wanted)
            found = await read(account, wanted)
            await settle(world, [], {("a", "", "life"): 700})
            return found

        world.ledger.used_totals[("a", "", "life", "")] = 300
        world.ledger.used = used  # type: ignore[method-assign]
        grant = await world.admit(world.record(tokens(1_000)))
        world.ledger.used = read  # type: ignore[method-assign]
        assert grant.rate_limits.tokens is not None
        assert grant.rate_limits.tokens.remaining == 1_000 - 700 - 110


async def test_a_check_whose_caller_left_holds_nothing(world: Harness) -> None:
    """The edge's own timeout ends a check that Valkey may have counted."""
    record = world.record(at_once(1_000))
    await world.admit(record)
    admitted = 1
    for turns in range(40):
        checking = asyncio.create_task(world.admit(record))
        for _ in range(turns % 10):
            await asyncio.sleep(0)
        checking.cancel()
        admitted += not isinstance((await asyncio.gather(checking, return_exceptions=True))[0], BaseException)
    assert admitted < 40

    async def only_admitted() -> bool:
        return int(await world.valkey.call("ZCARD", names.reservations_key(world.account))) == admitted

    await until(only_admitted)


async def test_nothing_is_left_behind_once_all_is_settled(world: Harness) -> None:
    record = world.record(tokens(10_000), at_once(10), key_limits=[tokens(5_000, "day")])
    grants = [await world.admit(record) for _ in range(5)]
    await settle(world, grants, {})
    held = await world.valkey.call("HKEYS", names.reserved_key(world.account))
    assert held == [b"since"]
    assert await world.valkey.call("EXISTS", names.reservation_amounts_key(world.account)) == 0
    assert await world.valkey.call("EXISTS", names.reservations_key(world.account)) == 0
