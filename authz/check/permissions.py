"""What a key may be used for: listeners, models, networks and tiers. Raises the error that the caller sees."""

from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

from authz.credentials.key_record import KeyRecord
from authz.request_facts import RequestFacts
from common import names
from common.admin_api import ADMIN_SCOPES
from common.errors import Reason, UplionError
from common.identity import models_pattern
from common.operations import Kind

_CACHED = 10_000


def check_listener(record: KeyRecord, listener: str) -> tuple[str, ...]:
    """The caller's scopes at the admin listener, where control checks each method's; empty at the public one."""
    if listener == names.LISTENER_PUBLIC:
        if names.SCOPE_INFERENCE in record.scopes:
            return ()
        raise _scope_missing(names.SCOPE_INFERENCE)
    if listener == names.LISTENER_ADMIN:
        found = tuple(scope for scope in ADMIN_SCOPES if scope in record.scopes)
        if found:
            return found
        raise _scope_missing(names.SCOPE_ADMIN)
    raise UplionError(Reason.PERMISSION_DENIED, "This call did not come through the gateway.")


def check_restrictions(record: KeyRecord, request: RequestFacts) -> None:
    """Networks and models. The router refuses a request whose body names another model than the edge read."""
    if record.networks and not _inside(record.networks, request.client):
        raise UplionError(Reason.PERMISSION_DENIED, "This key cannot be used from this network.", rule="networks")
    named = record.models and request.model and request.kind is not Kind.READING
    if named and not models_pattern(record.models).fullmatch(request.model):
        message = f'This key cannot be used for the model "{request.model}".'
        raise UplionError(Reason.MODEL_NOT_ALLOWED, message, param="model", rule="models")


def tier(record: KeyRecord, wanted: str) -> str:
    """The tier that serves a request: the wanted one of the key's tiers, or their first. Raises PERMISSION_DENIED.

    A key that lists none gets the default tier, whatever it wants: the answer says which tier served.
    """
    if not record.tiers:
        return names.TIER_DEFAULT
    if wanted in ("", "auto"):
        return record.tiers[0]
    if wanted not in record.tiers:
        message = f"This key cannot be used for the tier that was asked for, only for: {', '.join(record.tiers)}."
        raise UplionError(Reason.PERMISSION_DENIED, message, param="service_tier", rule="tiers")
    return wanted


def _scope_missing(scope: str) -> UplionError:
    return UplionError(Reason.PERMISSION_DENIED, f'This needs a key with the scope "{scope}".', scope=scope)


@lru_cache(_CACHED)
def _networks(networks: tuple[str, ...]) -> tuple[IPv4Network | IPv6Network, ...]:
    return tuple(ip_network(each, strict=False) for each in networks)


def _inside(networks: tuple[str, ...], client: str) -> bool:
    """A client whose address is not known is outside."""
    try:
        address: IPv4Address | IPv6Address = ip_address(client)
    except ValueError:
        return False
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    return any(address in network for network in _networks(networks))
