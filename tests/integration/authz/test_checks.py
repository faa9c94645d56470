"""authz's answers, end to end: keys from Postgres, limits in Valkey, revocation over NATS."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import pytest

from authz.settings import AuthzSettings
from credentials import api_keys
from tests.integration.authz.rules import requests, tokens
from tests.kit.until import until

Announce = Callable[[str], Awaitable[None]]


async def test_a_known_key_is_admitted_with_identity_headers_and_its_credential_removed(authz: Any) -> None:
    await authz.add_account()
    key = await authz.add_key()
    answer = await authz.check(key.text, model="a/b")
    assert answer.status == 200
    assert answer.headers["x-uplion-account"] == authz.account
    assert answer.headers["x-uplion-key"] == key.id
    assert answer.headers["x-uplion-model"] == "a/b"
    assert answer.headers["x-uplion-reservation"]
    assert answer.limits == {"holds_slot": "1"}  # by default a key and an account have only so many at once
    assert answer.headers.keys() == {
        f"x-uplion-{name}"
        for name in ("account", "key", "project", "scopes", "reservation", "model", "tier", "limits", "proof")
    }
    assert all(option.append_action == 2 for option in answer.response.ok_response.headers)
    assert set(answer.response.ok_response.headers_to_remove) == {"authorization", "x-api-key", "api-key"}
    assert answer.told == {}


async def test_reading_reserves_nothing(authz: Any) -> None:
    await authz.add_account()
    key = await authz.add_key()
    answer = await authz.check(key.text, method="GET", path="/v1/models")
    assert answer.status == 200
    assert answer.headers["x-uplion-reservation"] == ""


@pytest.mark.parametrize(
    ("name", "prefix"), [("authorization", "Bearer "), ("authorization", "bearer "), ("x-api-key", ""), ("api-key", "")]
)
async def test_each_way_to_show_a_key_works(authz: Any, name: str, prefix: str) -> None:
    await authz.add_account()
    key = await authz.add_key()
    assert (await authz.check(headers={name: prefix + key.text})).status == 200


async def test_wrong_secrets_unknown_ids_and_the_public_test_key_are_401(authz: Any) -> None:
    await authz.add_account()
    key = await authz.add_key()
    wrong_secret = api_keys.ApiKey("live", key.id, "A" * 43).text
    for text in (wrong_secret, api_keys.generate().text, api_keys.TEST_KEY, "", "nonsense"):
        answer = await authz.check(text)
        assert (answer.status, answer.code) == (401, "invalid_api_key"), text
        assert answer.headers["x-should-retry"] == "false"
    assert (await authz.check(None)).status == 401


async def test_scopes_keep_the_two_doors_apart(authz: Any) -> None:
    await authz.add_account()
    user, admin = await authz.add_key(), await authz.add_key(scopes=("admin",))
    assert (await authz.check(user.text, listener="admin", path="/admin/v1/keys", method="GET")).status == 403
    assert (await authz.check(admin.text)).status == 403
    assert (await authz.check(admin.text, listener="admin", path="/admin/v1/keys", method="GET")).status == 200
    for listener in (None, "", "elsewhere"):
        assert (await authz.check(user.text, listener=listener)).status == 403


async def test_the_request_limit_admits_exactly_its_number_and_says_when_to_come_back(authz: Any) -> None:
    await authz.add_account(requests(100))
    key = await authz.add_key(requests(5))
    answers = [await authz.check(key.text) for _ in range(7)]
    assert [answer.status for answer in answers] == [200] * 5 + [429] * 2
    assert answers[0].told["x-ratelimit-limit-requests"] == "5"
    assert [answer.told["x-ratelimit-remaining-requests"] for answer in answers[:5]] == ["4", "3", "2", "1", "0"]
    refused = answers[5]
    assert refused.code == "rate_limit_exceeded"
    assert 30_000 < int(refused.headers["retry-after-ms"]) <= 61_000
    assert int(refused.headers["retry-after"]) == -(-int(refused.headers["retry-after-ms"]) // 1000)
    assert refused.headers["x-should-retry"] == "true"


async def test_a_thousand_at_once_with_room_for_a_hundred_admits_exactly_a_hundred(authz: Any) -> None:
    await authz.add_account(requests(100))
    key = await authz.add_key()
    answers = await asyncio.gather(*(authz.check(key.text) for _ in range(1000)))
    assert sorted(answer.status for answer in answers) == [200] * 100 + [429] * 900


async def test_a_small_rest_caps_the_answer_and_a_budget_that_is_only_reserved_is_worth_a_retry(authz: Any) -> None:
    await authz.add_account(tokens(1000))
    key = await authz.add_key()
    first = await authz.check(key.text, size=300, facts={"max_tokens": 700})  # 100 in + 700 out
    assert first.status == 200
    assert first.limits == {"max_output_tokens": "700", "holds_slot": "1"}
    assert first.told["x-ratelimit-remaining-tokens"] == "200"
    second = await authz.check(key.text, size=300, facts={"max_tokens": 700})
    capped = {"max_output_tokens": "100", "capped_by": "account/tokens/life"}
    assert second.limits == {**capped, "holds_slot": "1"}
    third = await authz.check(key.text, size=300, facts={"max_tokens": 1})
    assert (third.status, third.code) == (429, "rate_limit_exceeded")
    assert (third.headers["x-should-retry"], third.headers["retry-after"]) == ("true", "1")
    assert "until requests that run now give back" in third.error_text


async def test_several_choices_share_the_rest(authz: Any) -> None:
    await authz.add_account(tokens(1000))
    key = await authz.add_key()
    answer = await authz.check(key.text, size=300, facts={"max_completion_tokens": 500, "n": 3})
    assert answer.limits["max_output_tokens"] == "300"
    assert answer.told["x-ratelimit-remaining-tokens"] == "0"


async def test_an_answer_of_open_length_may_use_what_is_reserved_and_no_more(authz: Any) -> None:
    await authz.add_account(tokens(10_000))
    key = await authz.add_key()
    answer = await authz.check(key.text, size=300)
    assert answer.limits["max_output_tokens"] == "1024"
    assert answer.told["x-ratelimit-remaining-tokens"] == str(10_000 - 100 - 1024)


async def test_what_was_used_before_is_loaded_from_the_ledger(authz: Any) -> None:
    await authz.add_account(tokens(1000))
    key = await authz.add_key(tokens(900))
    await authz.use("a", 400)
    await authz.use(f"k:{key.id}", 400)
    answer = await authz.check(key.text, size=300, facts={"max_tokens": 10})
    assert answer.told["x-ratelimit-limit-tokens"] == "900"
    assert answer.told["x-ratelimit-remaining-tokens"] == str(900 - 400 - 110)


async def test_a_quota_race_never_overspends(authz: Any) -> None:
    await authz.add_account(tokens(100 * 110))
    key = await authz.add_key()
    answers = await asyncio.gather(*(authz.check(key.text, size=300, facts={"max_tokens": 10}) for _ in range(500)))
    assert sum(answer.status == 200 for answer in answers) == 100
    assert {answer.status for answer in answers} == {200, 429}


async def test_an_unsettled_reservation_is_given_back(start: Any, settings: AuthzSettings) -> None:
    async with start(settings, deadline_seconds=0.02, reservation_seconds=0.02) as authz:
        await authz.add_account(tokens(200))
        key = await authz.add_key()
        assert (await authz.check(key.text, size=300, facts={"max_tokens": 100})).status == 200

        async def admitted() -> Any:
            answer = await authz.check(key.text, size=300, facts={"max_tokens": 100})
            return answer if answer.status == 200 else None

        answer = await until(admitted)
        assert answer.told["x-ratelimit-remaining-tokens"] == "0"


async def test_a_revoked_key_stops_long_before_its_record_is_a_minute_old(authz: Any, announce: Announce) -> None:
    await authz.add_account()
    key = await authz.add_key()
    assert (await authz.check(key.text)).status == 200
    await authz.database.execute("UPDATE keys SET state = 'revoked' WHERE id = $1", key.id)
    assert (await authz.check(key.text)).status == 200  # believed until told otherwise
    await announce(f"key:{key.id}")
    await authz.until_status(key.text, 401, 30)


async def test_a_suspended_account_stops_all_its_keys(authz: Any, announce: Announce) -> None:
    await authz.add_account()
    found = [await authz.add_key(), await authz.add_key()]
    for key in found:
        assert (await authz.check(key.text)).status == 200
    await authz.database.execute("UPDATE accounts SET state = 'suspended' WHERE id = $1", authz.account)
    await announce(f"account:{authz.account}")
    async with asyncio.timeout(30):
        for key in found:
            await authz.until_status(key.text, 401, 30)


async def test_a_key_ends_at_its_expiry_without_a_lookup(authz: Any) -> None:
    await authz.add_account()
    for seconds in (0.5, 2.0, 8.0):
        key = await authz.add_key(expires_in=seconds)
        if (first := await authz.check(key.text)).status == 200:  # a busy machine may be too late for a short one
            break
    assert first.status == 200
    await authz.until_status(key.text, 401, 30)


async def test_a_new_key_made_after_it_was_refused_works_once_announced(authz: Any, announce: Announce) -> None:
    await authz.add_account()
    key = await authz.add_key()
    await authz.database.execute("UPDATE keys SET id = 'ABCDEFGHIJKL' WHERE id = $1", key.id)
    assert (await authz.check(key.text)).status == 401
    await authz.database.execute("UPDATE keys SET id = $1 WHERE id = 'ABCDEFGHIJKL'", key.id)
    await announce(f"key:{key.id}")
    await authz.until_status(key.text, 200, 30)


async def test_two_authz_share_one_limit_and_one_shelf(start: Any, authz: Any, settings: AuthzSettings) -> None:
    async with start(settings) as other:
        await authz.add_account(requests(10))
        key = await authz.add_key()
        answers = [await each.check(key.text) for _ in range(10) for each in (authz, other)]
        assert sum(answer.status == 200 for answer in answers) == 10


async def test_native_denials_carry_a_grpc_status_with_details(authz: Any) -> None:
    answer = await authz.check(
        "nonsense", path="/uplion.inference.v1.InferenceService/Chat", headers={"content-type": "application/grpc"}
    )
    assert answer.headers["grpc-status"] == str(grpc.StatusCode.UNAUTHENTICATED.value[0])
    assert answer.headers["grpc-status-details-bin"]
    assert answer.response.denied_response.body == "The key is not valid."


@pytest.mark.parametrize("model", ["a\nb", "é", "x" * 300, "a\x00b"])
async def test_a_model_name_that_could_not_travel_in_a_header_is_400(authz: Any, model: str) -> None:
    await authz.add_account()
    key = await authz.add_key()
    answer = await authz.check(key.text, model=model)
    assert (answer.status, answer.code) == (400, "invalid_value")
