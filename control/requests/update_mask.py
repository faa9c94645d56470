"""What an Update request changes (AIP-134): the fields its mask names, or without a mask those that are set."""

from collections.abc import Collection
from typing import Protocol

from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.message import Message

from control.requests.fields import invalid

_EVERY = "*"


class Update(Protocol):
    """A request with a mask beside its fields."""

    @property
    def update_mask(self) -> FieldMask: ...


def changed(request: Update, updatable: Collection[str]) -> set[str]:
    """Those of `updatable` that change; raises INVALID_REQUEST for a mask that names another, or when none does."""
    paths = set(request.update_mask.paths)
    if unknown := sorted(paths.difference(updatable, [_EVERY])):
        raise invalid("update_mask", f"{unknown[0][:40]!r} is not one of {', '.join(sorted(updatable))}")
    if _EVERY in paths:
        return set(updatable)
    if not paths:
        assert isinstance(request, Message)
        paths = {field.name for field, _ in request.ListFields()}.intersection(updatable)
    if not paths:
        raise invalid("update_mask", f"nothing is to change: set one of {', '.join(sorted(updatable))}")
    return paths
