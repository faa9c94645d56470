"""Adds the admin API's services to a gRPC server: each that the contract has, once."""

import sys
from collections.abc import Iterable

import grpc.aio

from common import admin_api


def register(server: grpc.aio.Server, servicers: Iterable[object]) -> None:
    """Raises RuntimeError when a service of the contract is missing or given twice."""
    registered = []
    for servicer in servicers:
        base = next(each for each in type(servicer).__mro__ if each.__module__.endswith("_pb2_grpc"))
        getattr(sys.modules[base.__module__], f"add_{base.__name__}_to_server")(servicer, server)
        registered.append(f"{admin_api.PACKAGE}.{base.__name__.removesuffix('Servicer')}")
    wanted = [service.full_name for service in admin_api.services()]
    if sorted(registered) != wanted:
        raise RuntimeError(f"the contract has the services {wanted}, and these were given: {sorted(registered)}")
