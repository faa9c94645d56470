"""The fields of a key that grant or restrict its use, validated and as the database has them."""

import re
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from ipaddress import IPv4Network, IPv6Network, ip_network

from google.protobuf.timestamp_pb2 import Timestamp

from common import names
from common.errors import Reason, UplionError
from control.requests import fields
from control.requests.caller import Caller

_MOST = 100
_GLOB_CHARACTERS = 253
_TIER = re.compile(r"[a-z0-9]([a-z0-9_-]{0,38}[a-z0-9])?")
SCOPES = (names.SCOPE_INFERENCE, names.SCOPE_ADMIN_READ, names.SCOPE_ADMIN_WRITE, names.SCOPE_ADMIN)


def scopes(asked: Iterable[str], caller: Caller) -> list[str]:
    """Sorted, each once; inference alone when none is asked for. PERMISSION_DENIED for one that the caller lacks."""
    chosen = set(asked)
    for scope in chosen.difference(SCOPES):
        raise fields.invalid("scopes", f"{scope[:40]!r} is not one of {', '.join(SCOPES)}")
    grantable = SCOPES if caller.grantable is None else caller.grantable
    if missing := sorted(chosen.difference(grantable)):
        raise UplionError(
            Reason.PERMISSION_DENIED,
            f'To grant "{missing[0]}" needs a key that has it.',
            param="scopes",
            scope=missing[0],
        )
    return sorted(chosen) or [names.SCOPE_INFERENCE]


def models(asked: Sequence[str]) -> list[str]:
    """Globs of model names."""
    return [fields.text("models", glob, least=1, most=_GLOB_CHARACTERS) for glob in _distinct("models", asked)]


def tiers(asked: Sequence[str]) -> list[str]:
    """Names of tiers; the first is the default."""
    for tier in asked:
        if not _TIER.fullmatch(tier):
            raise fields.invalid("tiers", f"{tier[:40]!r} is no name of a tier")
    return _distinct("tiers", asked)


def networks(asked: Sequence[str]) -> list[IPv4Network | IPv6Network]:
    """Networks; an address is a network of one."""
    try:
        return [ip_network(network) for network in _distinct("networks", asked)]
    except ValueError as problem:
        raise fields.invalid("networks", str(problem)[:200]) from None


def expire_time(value: Timestamp) -> datetime:
    """A time in the future."""
    moment = fields.moment("expire_time", value)
    if moment <= datetime.now(UTC):
        raise fields.invalid("expire_time", "must be in the future")
    return moment


def _distinct(param: str, asked: Sequence[str]) -> list[str]:
    """Each once, in the given order."""
    if len(asked) > _MOST:
        raise fields.invalid(param, f"must be at most {_MOST}")
    return list(dict.fromkeys(asked))
