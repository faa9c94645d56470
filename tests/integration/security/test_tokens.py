"""Row S3: every forged token is refused; rotation, an issuer that is away, and what the issuers file may say."""

import asyncio
import warnings
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing, suppress
from dataclasses import replace
from typing import Any

import msgspec
import pytest
from joserfc.jwk import OctKey, RSAKey, generate_key

from authz.credentials import issuers
from authz.credentials.issuer_keys import FetchError, FetchIntervals, fetch_keys
from authz.credentials.tokens import Tokens
from common.errors import Reason, UplionError
from stack.ports import free_port
from tests.integration.security.forged_tokens import forged
from tests.kit.issuer import Issuer, running_issuer
from tests.kit.until import until

FAST = FetchIntervals(refresh=60.0, again=0.05, wait=20.0, fetch=20.0)


@pytest.fixture(scope="module")
def shared() -> Iterator[Issuer]:
    with running_issuer() as found:
        yield found


def trusting(url: str, **changes: Any) -> issuers.Issuer:
    return msgspec.structs.replace(
        issuers.Issuer(
            issuer=url,
            audiences=("uplion", "other"),
            algorithms=("RS256", "PS256", "ES256", "EdDSA", "Ed25519"),
            account=issuers.Source(claim=("org", "id")),
            project=issuers.Source(claim="project"),
            scopes=issuers.Source(claim="scope", allowed=("inference",)),
            authorized_parties=("app",),
        ),
        **changes,
    )


@asynccontextmanager
async def verifying(url: str, intervals: FetchIntervals = FAST, **changes: Any) -> AsyncIterator[Tokens]:
    tokens = Tokens([trusting(url, **changes)], b"pepper", intervals)
    running = asyncio.create_task(tokens.run())
    yield tokens
    running.cancel()
    await asyncio.wait([running])


@pytest.fixture
async def tokens(shared: Issuer) -> AsyncIterator[Tokens]:
    async with verifying(shared.url) as found:
        yield found


async def refusal(tokens: Tokens, text: str) -> UplionError:
    with pytest.raises(UplionError) as found:
        await tokens.verify(text)
    assert text not in found.value.message
    return found.value


async def test_a_token_says_who_what_and_until_when(shared: Issuer, tokens: Tokens) -> None:
    found = await tokens.verify(shared.token(project="p1", exp=4_000_000_000))
    assert (found.account, found.project, found.scopes) == (
        "acme",
        "p1",
        frozenset({"inference"}),
    )  # `admin` is not allowed
    assert found.expire_seconds == 4_000_000_000
    assert found.subject_id.startswith("tok_")
    assert len(found.subject_id) == 16
    assert "person" not in found.subject_id
    assert (await tokens.verify(shared.token())).subject_id == found.subject_id
    assert (await tokens.verify(shared.token(sub="other"))).subject_id != found.subject_id


@pytest.mark.parametrize("algorithm", ["RS256", "PS256", "ES256", "Ed25519", "EdDSA"])
async def test_each_algorithm(algorithm: str) -> None:
    with running_issuer() as issuer:
        issuer.rotate("k", algorithm.replace("EdDSA", "Ed25519"))
        issuer.published[0].pop("alg")
        async with verifying(issuer.url) as tokens:
            key = issuer.key.as_dict(private=True)
            key.pop("alg")
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # joserfc's, where it signs with a name that is deprecated
                text = issuer.token(type(issuer.key).import_key(key), algorithm=algorithm)
            assert (await tokens.verify(text)).account == "acme"


async def test_every_forged_token_is_refused_and_a_good_one_is_not(shared: Issuer, tokens: Tokens) -> None:
    await tokens.verify(shared.token())
    for name, text in forged(shared).items():
        found = await refusal(tokens, text)
        assert found.reason is Reason.INVALID_API_KEY, name
    await tokens.verify(shared.token())
    assert not [path for path in shared.requests if "evil" in path]


@pytest.mark.parametrize(
    "changes",
    [
        {"exp_in": -50},
        {"nbf_in": 50},
        {"iat_in": 50},
        {"nbf": None},
        {"iat": None},
        {"aud": ["someone", "other"]},
        {"azp": None, "client_id": "app"},
        {"exp": 10**400},
    ],
)
async def test_clocks_may_differ_by_a_minute_and_some_claims_may_be_missing(
    shared: Issuer, tokens: Tokens, changes: dict[str, Any]
) -> None:
    now = shared.claims()["iat"]
    changes = {
        name.removesuffix("_in"): now + value if name.endswith("_in") else value for name, value in changes.items()
    }
    assert (await tokens.verify(shared.token(**changes))).account == "acme"


async def test_scopes_and_constant_accounts(shared: Issuer) -> None:
    async with verifying(
        shared.url,
        account=issuers.Source(value="fixed"),
        project=None,
        scopes=issuers.Source(claim="roles", allowed=("admin:read",)),
    ) as tokens:
        found = await tokens.verify(shared.token(roles=["admin:read", "admin", 7]))
        assert (found.account, found.project, found.scopes) == ("fixed", "", frozenset({"admin:read"}))
        assert (await tokens.verify(shared.token())).scopes == frozenset()
    async with verifying(shared.url, account=issuers.Source(claim=("org", "id"), allowed=("other",))) as tokens:
        await refusal(tokens, shared.token())


async def test_a_rotated_key_is_found_and_the_old_one_is_forgotten() -> None:
    with running_issuer() as issuer:
        async with verifying(issuer.url, replace(FAST, again=0.0)) as tokens:
            old = issuer.token()
            await tokens.verify(old)
            issuer.rotate("second")
            assert (await tokens.verify(issuer.token())).account == "acme"
            assert (await refusal(tokens, old)).reason is Reason.INVALID_API_KEY


async def test_an_issuer_that_answered_is_left_alone_for_a_while() -> None:
    with running_issuer() as issuer:
        async with verifying(issuer.url) as tokens:
            await tokens.verify(issuer.token())
            await asyncio.sleep(10 * FAST.again)  # no event follows a fetch that is not made
            assert issuer.requests.count("/keys") == 1


async def test_unknown_keys_make_nobody_ask_the_issuer_often() -> None:
    with running_issuer() as issuer:
        async with verifying(issuer.url, FetchIntervals(again=3600.0, wait=20.0, fetch=20.0)) as tokens:
            await tokens.verify(issuer.token())
            burst = FetchIntervals().burst
            for number in range(50):
                found = await refusal(tokens, issuer.token(header={"kid": f"k{number}"}))
                if number < burst - 1:
                    assert found.reason is Reason.INVALID_API_KEY
                else:  # the issuer may have made it since it was asked last
                    assert found.reason is Reason.UNAVAILABLE
                    assert 3000 < (found.retry_after_seconds or 0) <= 3600
            assert issuer.requests.count("/keys") == burst
            await tokens.verify(issuer.token())


async def test_of_two_rotations_in_a_row_the_second_is_never_a_bad_key() -> None:
    """Where no fetch is allowed between them, nobody can tell; then one comes by itself."""
    with running_issuer() as issuer:
        async with verifying(issuer.url, FetchIntervals(again=0.5, burst=1, wait=0.01, fetch=20.0)) as tokens:
            await until_verified(tokens, issuer.token(), None)
            for name in ("second", "third", "fourth"):
                issuer.rotate(name)
                answers: set[Reason | None] = set()
                while None not in answers:
                    answers.add(await outcome(tokens, issuer.token()))
                    await asyncio.sleep(0.01)
                assert answers <= {None, Reason.UNAVAILABLE}
            unknown = issuer.token(header={"kid": "never"})
            await until_verified(tokens, unknown, Reason.INVALID_API_KEY)
            assert await outcome(tokens, unknown) is Reason.INVALID_API_KEY


async def until_verified(tokens: Tokens, text: str, wanted: Reason | None) -> None:
    """Asks until the token is refused for this reason; None: until it is not."""

    async def verified() -> bool:
        return await outcome(tokens, text) is wanted

    await until(verified)


async def outcome(tokens: Tokens, text: str) -> Reason | None:
    try:
        await tokens.verify(text)
    except UplionError as error:
        return error.reason
    return None


async def test_an_issuer_that_goes_away_is_not_missed_and_a_new_key_waits_for_its_return() -> None:
    port = free_port()
    with running_issuer(port) as issuer:
        tokens = Tokens(
            [trusting(issuer.url)], b"pepper", FetchIntervals(refresh=0.05, again=0.05, wait=0.1, fetch=20.0)
        )
        running = asyncio.create_task(tokens.run())
        await until_verified(tokens, issuer.token(), None)
    known = issuer.token()
    issuer.rotate("second")
    await until_verified(tokens, issuer.token(), Reason.UNAVAILABLE)
    await tokens.verify(known)
    with running_issuer(port) as again:
        again.key, again.published = issuer.key, issuer.published
        await until_verified(tokens, again.token(), None)
    running.cancel()
    await asyncio.wait([running])


async def test_with_an_issuer_that_never_answered_nobody_can_tell() -> None:
    with running_issuer() as issuer:
        text = issuer.token()
    async with verifying(issuer.url, FetchIntervals(again=0.05, wait=0.2, fetch=20.0)) as tokens:
        found = await refusal(tokens, text)
        assert (found.reason, found.retry_after_seconds) == (Reason.UNAVAILABLE, 1)
        assert (await refusal(tokens, "a.b.c")).reason is Reason.INVALID_API_KEY  # that is no outage


@pytest.mark.parametrize(
    "misbehave",
    [
        lambda issuer: setattr(issuer, "discovery", {**issuer.discovery, "issuer": "https://evil.example"}),
        lambda issuer: setattr(issuer, "discovery", {**issuer.discovery, "jwks_uri": "http://example.com/keys"}),
        lambda issuer: setattr(issuer, "discovery", {**issuer.discovery, "jwks_uri": "file:///etc/passwd"}),
        lambda issuer: setattr(issuer, "discovery", {**issuer.discovery, "jwks_uri": 7}),
        lambda issuer: setattr(issuer, "discovery", ["x"]),
        lambda issuer: setattr(issuer, "redirect", f"{issuer.url}/keys"),
        lambda issuer: setattr(issuer, "raw", b"{"),
        lambda issuer: setattr(issuer, "raw", b"[" * 100_000),
        lambda issuer: setattr(issuer, "raw", b"{}" + b" " * (300 << 10)),
        lambda issuer: setattr(issuer, "raw", b'{"keys": 7}'),
        lambda issuer: setattr(issuer, "published", []),
        lambda issuer: setattr(
            issuer,
            "published",
            [7, {"kty": "XX", "kid": "a"}, {"kty": [], "kid": "b"}, {"kty": "RSA", "kid": "c", "n": 7, "e": []}],
        ),
        lambda issuer: setattr(issuer, "published", [{**issuer.published[0], "use": "enc"}]),
        lambda issuer: setattr(issuer, "published", [OctKey.generate_key(256, {"kid": "a"}).as_dict()]),
    ],
)
async def test_what_an_issuer_must_not_answer(misbehave: Any) -> None:
    with running_issuer() as issuer:
        misbehave(issuer)
        with pytest.raises(FetchError):
            await fetch_keys(trusting(issuer.url), 20.0)


@pytest.mark.filterwarnings("ignore::joserfc.errors.SecurityWarning")
async def test_short_keys_are_not_taken_and_good_ones_beside_them_are() -> None:
    with running_issuer() as issuer:
        weak = RSAKey.generate_key(1024, {"kid": "weak"}).as_dict(private=False)
        issuer.published += [weak, generate_key("EC", "P-256", {"kid": "good"}).as_dict(private=False)]
        assert (await fetch_keys(trusting(issuer.url), 20.0)).keys() == {"first", "good"}
        named = trusting(issuer.url, jwks_uri=f"{issuer.url}/keys")
        assert (await fetch_keys(named, 20.0)).keys() == {"first", "good"}


async def test_an_issuer_that_sends_its_answer_byte_by_byte_does_not_hold_a_fetch() -> None:
    hung_up = asyncio.Event()

    async def drip(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nx-slow: ")
        with closing(writer), suppress(ConnectionError):
            while not writer.is_closing():
                writer.write(b"x")
                await writer.drain()
                await asyncio.sleep(0.01)
        hung_up.set()

    server = await asyncio.start_server(drip, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        with pytest.raises(FetchError, match="too long"):
            await fetch_keys(trusting(f"http://127.0.0.1:{port}"), 0.5)
        await asyncio.wait_for(hung_up.wait(), 20)
