"""Registering the admin API's services."""

import grpc.aio
import pytest
from uplion.control.v1.key_service_pb2_grpc import KeyServiceServicer

from control.registration import register


async def test_a_service_of_the_contract_that_is_not_given_is_an_error():
    with pytest.raises(RuntimeError, match="AccountService"):
        register(grpc.aio.server(), [KeyServiceServicer()])  # type: ignore[abstract]
