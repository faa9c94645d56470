"""Every field of every admin method with values that no client should send: each is refused, or does no harm."""

import grpc
import grpc.aio
import pytest
from google.protobuf.descriptor import FieldDescriptor

from tests.kit.admin_methods import aimed, every_method

TEXTS = (
    "\0",
    "a\0b",
    "a\nb",
    "\x7f",
    "\x85",
    "x" * 300,
    "x" * 100_000,
    "\u202e",
    "'; DROP TABLE keys; --",
    "%s%n{0}",
    "../..",
)
NUMBERS = {
    FieldDescriptor.TYPE_INT32: (-1, -(1 << 31), (1 << 31) - 1),
    FieldDescriptor.TYPE_UINT64: (0, 1 << 53, 1 << 63, (1 << 64) - 1),
    FieldDescriptor.TYPE_ENUM: (0, 99, -1, (1 << 31) - 1),
    FieldDescriptor.TYPE_BOOL: (True,),
}
MOMENTS = ((0, 0), (-62135596800, 0), (253402300799, 999999999), (1 << 62, 0), (-(1 << 62), 0), (0, -1), (0, 1 << 30))
OURS = (grpc.StatusCode.INTERNAL, grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.UNKNOWN)


def filled(message, depth=0):
    """Changes of one field each, as functions: also of the fields of messages in it."""
    for field in message.DESCRIPTOR.fields:
        kind = field.message_type
        if kind is not None and kind.GetOptions().map_entry:
            for text in TEXTS:
                yield lambda m, f=field.name, t=text: getattr(m, f).update({t: "v"})
                yield lambda m, f=field.name, t=text: getattr(m, f).update({"n": t})
            yield lambda m, f=field.name: getattr(m, f).update({str(n): "" for n in range(51)})
        elif kind is not None and kind.name == "Struct":
            yield lambda m, f=field.name: getattr(m, f).update({"a\0": "b\0", "metadata": {"name": "a\0b"}})
        elif kind is not None and kind.name == "FieldMask":
            for text in TEXTS:
                yield lambda m, f=field.name, t=text: getattr(m, f).paths.append(t)
        elif kind is not None and kind.name in ("Timestamp", "Duration"):
            for seconds, nanos in MOMENTS:
                yield lambda m, f=field.name, s=seconds, n=nanos: set_moment(getattr(m, f), s, n)
        elif kind is not None and depth < 3:
            inner = getattr(message, field.name)
            sample = inner.add() if field.is_repeated else inner
            for change in list(filled(sample, depth + 1)):
                if field.is_repeated:
                    yield lambda m, f=field.name, c=change: c(getattr(m, f).add())
                else:
                    yield lambda m, f=field.name, c=change: c(getattr(m, f))
            message.ClearField(field.name)
        else:
            for value in TEXTS if field.type == FieldDescriptor.TYPE_STRING else NUMBERS[field.type]:
                if field.is_repeated:
                    yield lambda m, f=field.name, v=value: getattr(m, f).append(v)
                else:
                    yield lambda m, f=field.name, v=value: setattr(m, f, v)


def set_moment(value, seconds, nanos):
    value.seconds, value.nanos = seconds, nanos


@pytest.mark.parametrize("method", every_method(), ids=lambda method: method.name)
async def test_no_value_of_a_field_is_our_failure(control, method):
    ids = dict.fromkeys(("account", "project", "key", "request_id"), "default")
    for change in filled(method.request()):
        request = aimed(method, ids)
        change(request)
        try:
            await control.call(method.on(control.channel), request)
        except grpc.aio.AioRpcError as problem:
            assert problem.code() not in OURS, (request, problem)
