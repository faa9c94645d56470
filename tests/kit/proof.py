"""Calls of router and control past the edge, with the identity that authz would have proven."""

import uuid
from collections.abc import Callable, Iterable
from typing import Any

from common import names
from common.identity import IDENTITY_HEADERS
from credentials.identity_proof import IdentityProofs

PROOF_KEYS = ("tests:a secret of the tests that is long enough to be one",)
PROOFS = IdentityProofs.of(PROOF_KEYS)

Metadata = tuple[tuple[str, str], ...]


def proven(method: str, metadata: Iterable[tuple[str, str]], proofs: IdentityProofs = PROOFS) -> Metadata:
    """As the edge passes on what authz answered: every identity header, the request id and the proof for the method."""
    given = dict(metadata)
    request_id = given.pop(names.HEADER_REQUEST_ID, "") or str(uuid.uuid4())
    headers = [(name, given.pop(name, "")) for name in IDENTITY_HEADERS]
    proof = proofs.make(method, request_id, headers)
    return (*headers, (names.HEADER_REQUEST_ID, request_id), (names.HEADER_PROOF, proof), *given.items())


class ProvenChannel:
    """A channel whose calls carry a proof for whatever identity headers they have; calls without any have none."""

    def __init__(self, channel: Any, proofs: IdentityProofs = PROOFS) -> None:
        self.bare = channel  # for calls as a stranger makes them
        self._proofs = proofs

    def __getattr__(self, name: str) -> Callable[..., Any]:
        make = getattr(self.bare, name)  # unary_unary, unary_stream, stream_stream

        def of(method: str, *serializers: Any, **options: Any) -> Callable[..., Any]:
            call = make(method, *serializers, **options)

            def proving(*requests: Any, metadata: Iterable[tuple[str, str]] = (), **how: Any) -> Any:
                headers = tuple(metadata)
                if any(name in IDENTITY_HEADERS for name, _ in headers):
                    headers = proven(method, headers, self._proofs)
                return call(*requests, metadata=headers, **how)

            return proving

        return of
