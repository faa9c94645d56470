"""Answers written by hand are the ones that protobuf would write."""

from envoy.service.auth.v3 import external_auth_pb2 as auth
from hypothesis import given
from hypothesis import strategies as st

from authz.check.authorizer import Admission
from authz.check.check_response import admitted
from authz.limits.rate_limit_status import LimitStatus, RateLimitStatus
from common.identity import Identity
from ledger.limits import Limit, Rule
from tests.kit.proof import PROOFS

words = st.text(max_size=300)
counts = st.integers(0, 1 << 53)


@given(words, words, words, st.none() | counts, counts, st.floats(0, 1e6))
def test_every_header_arrives(account: str, key: str, model: str, cap: int | None, amount: int, reset: float) -> None:
    identity = Identity(account, key, "r-1", model, "default", cap, 600.0, "id", "prj", "key/tokens/day", True)
    requests = LimitStatus(Rule("account", account, Limit("requests", "minute", amount)), amount, reset)
    tokens = LimitStatus(Rule("key", key, Limit("tokens", "life", amount)), 7, None)
    data = admitted(Admission(identity, RateLimitStatus(requests, tokens)), "/p.S/M", PROOFS)
    response = auth.CheckResponse.FromString(data)
    assert response.HasField("status")
    assert response.status.code == 0
    ok = response.ok_response
    *headers, (name, proof) = [(option.header.key, option.header.value) for option in ok.headers]
    assert headers == identity.to_headers()
    assert (name, len(proof.split(".")[-1])) == ("x-uplion-proof", 32)
    assert all(option.append_action == 2 and option.keep_empty_value for option in ok.headers)
    assert list(ok.headers_to_remove) == ["authorization", "x-api-key", "api-key"]
    told = {option.header.key: option.header.value for option in ok.response_headers_to_add}
    assert told.keys() == {
        "x-ratelimit-limit-requests",
        "x-ratelimit-remaining-requests",
        "x-ratelimit-reset-requests",
        "x-ratelimit-limit-tokens",
        "x-ratelimit-remaining-tokens",
    }
    assert told["x-ratelimit-limit-requests"] == str(amount)
    assert all(option.append_action == 2 for option in ok.response_headers_to_add)
    assert auth.CheckResponse.FromString(response.SerializeToString()) == response
