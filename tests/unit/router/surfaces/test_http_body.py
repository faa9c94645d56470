"""HttpBody messages, written by hand."""

import pytest
from google.api.httpbody_pb2 import HttpBody

from router.surfaces.http_body import http_body


@pytest.mark.parametrize("size", [0, 1, 127, 128, 300, 16_384, 3_000_000])
@pytest.mark.parametrize("kind", ["", "text/event-stream"])
def test_http_body_is_what_protobuf_would_write(size: int, kind: str) -> None:
    data = b"x" * size
    body = HttpBody.FromString(http_body(data, kind))
    assert (body.content_type, body.data) == (kind, data)
