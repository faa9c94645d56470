"""Addresses, durations and other small values in the types of envoy-data-plane."""

from datetime import timedelta
from ipaddress import ip_address

import betterproto2
from envoy_data_plane.envoy.config.core.v3 import (
    Address,
    HeaderValue,
    HeaderValueOption,
    Pipe,
    SocketAddress,
    TypedExtensionConfig,
)
from envoy_data_plane.envoy.config.core.v3 import HeaderValueOptionHeaderAppendAction as AppendAction
from envoy_data_plane.google.protobuf import Any

UNIX = "unix:"


def extension(name: str, message: betterproto2.Message) -> TypedExtensionConfig:
    return TypedExtensionConfig(name=name, typed_config=Any.pack(message))


def seconds(value: float) -> timedelta:
    return timedelta(seconds=value)


def split(address: str) -> tuple[str, int]:
    """`host:port` in parts; an IPv6 host is written in brackets."""
    host, _, port = address.rpartition(":")
    if not host or not (port.isascii() and port.isdigit()) or int(port) > 65535:
        raise ValueError(f"{address!r} is not host:port")
    return host.removeprefix("[").removesuffix("]"), int(port)


def is_ip(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


def is_socket(address: str) -> bool:
    return address.startswith(UNIX)


def address(text: str) -> Address:
    """`host:port` or `unix:/path`; a socket that Envoy itself makes can be used by its own user alone."""
    if is_socket(text):
        return Address(pipe=Pipe(path=text.removeprefix(UNIX), mode=0o600))
    host, port = split(text)
    return Address(socket_address=SocketAddress(address=host, port_value=port))


def if_absent(name: str, value: str) -> HeaderValueOption:
    return HeaderValueOption(header=HeaderValue(key=name, value=value), append_action=AppendAction.ADD_IF_ABSENT)
