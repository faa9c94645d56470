"""The public keys of an issuer: fetched in the background, and kept while the issuer does not answer."""

import asyncio
import contextlib
import json
import logging
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import httpx2
from joserfc.jwk import ECKey, Key, OKPKey, RSAKey, import_key

from authz.credentials.issuers import Issuer, is_safe
from common.errors import Reason, UplionError

logger = logging.getLogger(__name__)

_MOST_BYTES = 256 << 10
_MOST_KEYS = 100
_LEAST_RSA_BITS = 2048
_MOST_WANTED = 4096
_HEADERS = {"accept": "application/json", "accept-encoding": "identity", "user-agent": "uplion"}


class FetchError(Exception):
    """The issuer did not answer, or not with a usable key set."""


@dataclass(frozen=True, slots=True)
class FetchIntervals:
    """How often an issuer's keys are fetched, and how long a check waits for them (seconds)."""

    refresh: float = 300.0
    again: float = 10.0  # one fetch in so long, however many unknown key ids come; and after one that failed
    burst: int = 5  # fetches that unknown key ids may cause at once, where the last ones are long ago
    wait: float = 0.1  # a check waits so long for a key that is not known yet
    fetch: float = 5.0
    trusted: float = 86_400.0  # while the issuer does not answer


class IssuerKeys:
    """Keys by id. `run` must be running."""

    def __init__(self, issuer: Issuer, intervals: FetchIntervals, clock: Callable[[], float] = time.monotonic) -> None:
        self._issuer = issuer
        self._intervals = intervals
        self._clock = clock
        self._keys: dict[str, Key] = {}
        self._fetched: float | None = None  # when the keys were fetched last
        self._began = 0.0  # when that fetch began: it knows nothing of what was published later
        self._spent_until = 0.0  # each fetch adds `again`
        self._allowed_at = 0.0  # the next fetch, if a token asks for it
        self._wanted: dict[int, float] = {}  # hash of an unknown key id -> when a token named it first
        self._asked = asyncio.Event()
        self._round = asyncio.Event()  # of the fetch that comes next

    async def key(self, key_id: str) -> Key | None:
        """The key; None: the issuer has no such key; raises UNAVAILABLE while that cannot be told.

        A fetch tells of an unknown id only if it began after a token named it: the issuer may have rotated since.
        """
        found = self._known(key_id)
        if found is not None:
            return found
        now = self._clock()
        since = self._first_wanted(key_id, now)
        if self._fetched is not None and self._began >= since and now - self._fetched < self._intervals.again:
            return None
        self._asked.set()  # the next fetch comes as soon as one is allowed
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._intervals.wait):
                while self._clock() >= self._allowed_at:
                    await self._round.wait()
                    found = self._known(key_id)
                    if found is not None or (self._fetched is not None and self._began >= since):
                        return found
        raise UplionError(
            Reason.UNAVAILABLE,
            "The token's issuer cannot be asked for its key at the moment. Try again.",
            retry_after_seconds=max(1.0, self._allowed_at - self._clock()),
        )

    def _first_wanted(self, key_id: str, now: float) -> float:
        """Of bounded size: an id that a flood of others displaced is as good as new, and waits for one fetch more."""
        place = hash(key_id)
        if place not in self._wanted and len(self._wanted) >= _MOST_WANTED:
            del self._wanted[next(iter(self._wanted))]
        return self._wanted.setdefault(place, now)

    async def run(self) -> None:
        """Fetches until cancelled: at once, then at intervals, and sooner when a token names an unknown key."""
        while True:
            self._asked.clear()
            began = self._clock()
            fetched = await self._fetch()
            ended = self._clock()
            self._spent_until = max(self._spent_until, ended) + self._intervals.again
            self._allowed_at = ended + self._intervals.again
            if fetched is not None:
                self._allowed_at = self._spent_until - (self._intervals.burst - 1) * self._intervals.again
                self._keys, self._fetched, self._began = fetched, ended, began
                for key_id in fetched:
                    self._wanted.pop(hash(key_id), None)
            self._round.set()
            self._round = asyncio.Event()
            if fetched is not None:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self._intervals.refresh):
                        await self._asked.wait()
            await asyncio.sleep(self._allowed_at - self._clock())

    async def _fetch(self) -> dict[str, Key] | None:
        try:
            return await fetch_keys(self._issuer, self._intervals.fetch)
        except Exception as problem:  # the task boundary: another party's answer; known keys stay in use
            reason = str(problem) if isinstance(problem, FetchError) else repr(problem)
            logger.warning(
                "an issuer's keys were not fetched", extra={"issuer": self._issuer.issuer, "problem": reason}
            )
            return None

    def _known(self, key_id: str) -> Key | None:
        if self._fetched is None or self._clock() - self._fetched > self._intervals.trusted:
            return None
        return self._keys.get(key_id)


async def fetch_keys(issuer: Issuer, seconds: float) -> dict[str, Key]:
    """The issuer's signing keys by id, fetched within `seconds`; raises FetchError."""
    try:
        async with asyncio.timeout(seconds):
            key_set = await _key_set(issuer)
            return await asyncio.to_thread(_signing_keys, key_set)
    except TimeoutError:
        raise FetchError("the answer took too long") from None


async def _key_set(issuer: Issuer) -> dict[str, object]:
    """The document at the issuer's `jwks_uri`, which its discovery document names where the issuers file does not."""
    plain = issuer.issuer.startswith("http://")  # then it is on this machine, and its keys may be, too
    url = issuer.jwks_uri
    if url is None:
        known = await _json(f"{issuer.issuer.rstrip('/')}/.well-known/openid-configuration")
        if known.get("issuer") != issuer.issuer:
            raise FetchError("the discovery document is another issuer's")
        found_url = known.get("jwks_uri")
        if not isinstance(found_url, str) or not is_safe(found_url, plain=plain):
            raise FetchError("the discovery document names no safe jwks_uri")
        url = found_url
    return await _json(url)


def _signing_keys(key_set: dict[str, object]) -> dict[str, Key]:
    """Those keys of a key set that could sign a token, by id; slow, so it runs in a thread."""
    keys = key_set.get("keys")
    if not isinstance(keys, list):
        raise FetchError("the answer is no key set")
    found = {key.kid: key for key in map(_key, keys[:_MOST_KEYS]) if key is not None and key.kid}
    if not found:
        raise FetchError("the key set holds no key that could sign a token")
    return found


def _key(data: Any) -> Key | None:
    """A public key for signatures; None for anything else, such as a shared secret."""
    try:
        if (
            data.get("use", "sig") != "sig"
            or data["kty"] not in ("RSA", "EC", "OKP")
            or not isinstance(data["kid"], str)
        ):
            return None
        key = import_key(data)
    except Exception as problem:  # joserfc's, cryptography's, and what an odd shape makes of either
        logger.warning("a key of an issuer is not understood", extra={"problem": type(problem).__name__})
        return None
    if not isinstance(key, RSAKey | ECKey | OKPKey):
        return None
    return None if isinstance(key, RSAKey) and key.raw_value.key_size < _LEAST_RSA_BITS else key


async def _json(url: str) -> dict[str, object]:
    """A small JSON object, over TLS that is verified; no redirect is followed, and plain http takes no proxy."""
    try:
        found = json.loads(await _body(url))
    except (httpx2.HTTPError, httpx2.InvalidURL, OSError, ValueError, RecursionError) as problem:
        raise FetchError(f"{url}: {problem!r}") from problem
    if not isinstance(found, dict):
        raise FetchError(f"{url}: no JSON object")
    return found


async def _body(url: str) -> bytes:
    """A successful response's body; the caller sets the deadline. Raises FetchError, httpx2.HTTPError and OSError."""
    tls = await asyncio.to_thread(ssl.create_default_context)  # reads the system's certificate authorities
    body = b""
    async with (
        httpx2.AsyncClient(
            verify=tls, proxy=_proxy(url), timeout=None, follow_redirects=False, trust_env=False
        ) as client,
        client.stream("GET", url, headers=_HEADERS) as response,
    ):
        if not response.is_success:
            raise FetchError(f"{url}: HTTP {response.status_code}")
        async for chunk in response.aiter_raw():
            body += chunk
            if len(body) > _MOST_BYTES:
                raise FetchError("the answer is too large")
    return body


def _proxy(url: str) -> str | None:
    """The environment's proxy for an https address, if it names one."""
    parts = urlsplit(url)
    proxy = getproxies().get(parts.scheme) if parts.scheme == "https" and not proxy_bypass(parts.netloc) else None
    return f"http://{proxy}" if proxy and "://" not in proxy else proxy
