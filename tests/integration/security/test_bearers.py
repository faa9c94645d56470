"""Tokens as callers show them: through Envoy, judged by authz, under the limits of their account and project."""

import json
import time
import uuid
from typing import Any

import grpc
import pytest

from tests.integration.security.forged_tokens import forged
from tests.kit.gateway import Gateway
from tests.kit.until import until_sync

LIMITS = json.dumps([{"measure": "requests", "period": "minute", "amount": 3}])


def account(platform: Gateway, *, limits: str = "[]", state: str = "active") -> str:
    name = f"org-{uuid.uuid4().hex[:10]}"
    platform.sql("INSERT INTO accounts (id, name, limits, state) VALUES ($1, $1, $2, $3)", name, limits, state)
    return name


def project(platform: Gateway, owner: str, *, limits: str = "[]", state: str = "active") -> str:
    name = f"p-{uuid.uuid4().hex[:10]}"
    query = "INSERT INTO projects (id, account, name, limits, state) VALUES ($1, $2, $1, $3, $4)"
    platform.sql(query, name, owner, limits, state)
    return name


def ask(platform: Gateway, text: str, *, path: str = "/v1/models", port: int | None = None) -> Any:
    return platform.ask("GET", path, None, {"authorization": f"Bearer {text}"}, port=port)


def token(platform: Gateway, owner: str, **changes: Any) -> str:
    return platform.issuer.token(**{"org": {"id": owner}, "scope": "openid inference", **changes})


def test_a_token_of_an_account_opens_both_surfaces(platform: Gateway) -> None:
    owner = account(platform)
    text = token(platform, owner, project=project(platform, owner))
    assert ask(platform, text).status == 200
    with platform.channel() as channel:
        call: Any = channel.unary_unary("/uplion.inference.v1.InferenceService/ListModels")
        assert call(b"", metadata=(("authorization", f"Bearer {text}"),), timeout=60) is not None
        with pytest.raises(grpc.RpcError) as refusal:
            call(b"", metadata=(("authorization", f"Bearer {text}x"),), timeout=60)
    assert refusal.value.code() is grpc.StatusCode.UNAUTHENTICATED
    assert refusal.value.details() == "The token is not valid."


def test_a_token_of_nobody_we_know_is_401(platform: Gateway) -> None:
    owner, other = account(platform), account(platform)
    refused = [
        token(platform, "nobody"),
        token(platform, account(platform, state="suspended")),
        token(platform, owner, project="none"),
        token(platform, owner, project=project(platform, other)),
        token(platform, owner, project=project(platform, owner, state="suspended")),
        token(platform, owner, exp=int(time.time()) - 61),
    ]
    for text in refused:
        reply = ask(platform, text)
        assert (reply.status, reply.error["code"]) == (401, "invalid_api_key"), text
    assert ask(platform, refused[-1]).error["message"] == "The token has expired."


def test_scopes_open_one_door_each_and_an_accounts_own_things(platform: Gateway) -> None:
    owner = account(platform)
    inference, reading = token(platform, owner), token(platform, owner, scope="admin:read admin admin:write")
    assert ask(platform, inference, path="/admin/v1/keys", port=platform.admin).status == 403
    assert ask(platform, reading).status == 403
    assert ask(platform, token(platform, owner, scope="openid")).status == 403
    reply = ask(platform, reading, path="/admin/v1/keys", port=platform.admin)
    assert (reply.status, json.loads(reply.body)["keys"]) == (
        200,
        [],
    )  # the platform's first keys are another account's
    body = b'{"account":"%s","name":"n"}' % owner.encode()
    made = platform.ask("POST", "/admin/v1/keys", body, {"authorization": f"Bearer {reading}"}, port=platform.admin)
    assert made.status == 403  # `admin` and `admin:write` are not allowed to this issuer's tokens


@pytest.mark.parametrize("level", ["account", "project"])
def test_the_limits_of_account_and_project_hold_for_all_their_tokens(platform: Gateway, level: str) -> None:
    owner = account(platform, limits=LIMITS if level == "account" else "[]")
    name = project(platform, owner, limits=LIMITS if level == "project" else "[]")
    replies = [ask(platform, token(platform, owner, project=name, sub=f"s{number}")) for number in range(5)]
    assert [reply.status for reply in replies] == [200] * 3 + [429] * 2
    assert replies[0].headers["x-ratelimit-limit-requests"] == "3"
    assert replies[4].error["code"] == "rate_limit_exceeded"


def test_a_suspended_account_stops_its_tokens_at_once(platform: Gateway) -> None:
    owner = account(platform)
    text = token(platform, owner)
    assert ask(platform, text).status == 200
    body = b'{"state":"RESOURCE_STATE_SUSPENDED"}'
    path = f"/admin/v1/accounts/{owner}"
    assert platform.ask("PATCH", path, body, port=platform.admin, key="admin_key").status == 200
    until_sync(lambda: ask(platform, text).status == 401)


def test_s3_every_forged_token_is_401_and_leaves_no_trace(platform: Gateway) -> None:
    account_of_good = platform.issuer.claims()["org"]["id"]
    platform.sql("INSERT INTO accounts (id, name) VALUES ($1, $1) ON CONFLICT DO NOTHING", account_of_good)
    assert ask(platform, platform.issuer.token()).status == 200
    for name, text in forged(platform.issuer).items():
        reply = ask(platform, text)
        if reply.status == 503:  # by a key that the issuer might have added: once its keys were read again it is 401
            time.sleep(int(reply.headers["retry-after"]) + 1)
            reply = ask(platform, text)
        assert (reply.status, reply.error["code"]) == (401, "invalid_api_key"), name
        assert reply.error["message"] in {
            "The token is not valid.",
            "The token has expired.",
            "The key is not valid.",
        }, name
    logs = platform.logs()
    assert "person@example.com" not in logs
    assert platform.issuer.token().partition(".")[0] not in logs
