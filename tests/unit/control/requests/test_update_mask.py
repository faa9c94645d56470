"""Which fields an update changes."""

import pytest
from google.protobuf.field_mask_pb2 import FieldMask
from uplion.control.v1.account_pb2 import ResourceState, UpdateAccountRequest

from common.errors import Reason, UplionError
from control.requests.update_mask import changed

FIELDS = ("state", "limits")
ACTIVE = ResourceState.RESOURCE_STATE_ACTIVE


def update(*paths: str, **fields: object) -> UpdateAccountRequest:
    request = UpdateAccountRequest(id="a", **fields)  # type: ignore[arg-type]
    request.update_mask.CopyFrom(FieldMask(paths=paths))
    return request


@pytest.mark.parametrize(
    ("request_", "fields"),
    [
        (UpdateAccountRequest(id="a", state=ACTIVE), {"state"}),
        (update(state=ACTIVE), {"state"}),
        (update("limits", state=ACTIVE), {"limits"}),
        (update("limits", "limits"), {"limits"}),
        (update("*"), {"state", "limits"}),
    ],
)
def test_the_mask_decides_and_without_one_what_is_set(request_, fields):
    assert changed(request_, FIELDS) == fields


@pytest.mark.parametrize("request_", [update(), update("id"), update("limits.amount"), update("limits", "nothing")])
def test_a_mask_that_makes_no_sense_is_refused(request_):
    with pytest.raises(UplionError) as caught:
        changed(request_, FIELDS)
    assert (caught.value.reason, caught.value.param) == (Reason.INVALID_REQUEST, "update_mask")
