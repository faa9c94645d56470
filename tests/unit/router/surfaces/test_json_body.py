"""How a schema refuses what does not fit it: the field's name, and what it should be."""

from typing import Annotated, Any

import msgspec
import pytest
from msgspec import Meta

from common.errors import Reason, UplionError
from router.surfaces.json_body import Schema, json_object


class Inner(msgspec.Struct):
    text: str = ""
    size: Annotated[int, Meta(ge=1)] = 1


class Outer(msgspec.Struct):
    share: Annotated[float, Meta(gt=0, le=1)] = 1.0
    count: Annotated[int, Meta(ge=1, le=8)] | None = None
    flag: bool = False
    inner: Inner | None = None
    items: list[Inner] | None = None
    kind: str | list[str] = ""


SCHEMA = Schema(Outer, texts={"kind": "must be a kind"}, params={"items[]": "{}.text"}, prefix="a.")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"share": 0}, "'a.share' must be greater than 0 and at most 1."),
        ({"share": float("nan")}, "'a.share' must be greater than 0 and at most 1."),
        ({"share": 10**400}, "'a.share' must be greater than 0 and at most 1."),
        ({"share": "x"}, "'a.share' must be a number."),
        ({"count": 9}, "'a.count' must be from 1 to 8."),
        ({"count": 1.0}, "'a.count' must be an integer."),
        ({"count": True}, "'a.count' must be an integer."),
        ({"flag": 1}, "'a.flag' must be a boolean."),
        ({"inner": []}, "'a.inner' must be an object."),
        ({"inner": {"size": 0}}, "'a.inner.size' must be at least 1."),
        ({"items": {}}, "'a.items' must be an array."),
        ({"items": [{}, {"size": "x"}]}, "'a.items[1].size' must be an integer."),
        ({"items": [{}, {"text": None}]}, "'a.items[1].text' must be a string."),
        ({"items": [{}, 5]}, "'a.items[1].text' must be an object."),
        ({"kind": 5}, "'a.kind' must be a kind."),
    ],
)
def test_what_does_not_fit_is_refused_by_its_name(given: dict[str, Any], message: str) -> None:
    with pytest.raises(UplionError) as caught:
        SCHEMA.convert(given)
    assert (caught.value.reason, caught.value.message) == (Reason.INVALID_REQUEST, message)
    assert caught.value.param == message.split("'")[1]


def test_null_is_as_good_as_absent_and_what_is_unknown_is_let_through() -> None:
    given = {"share": None, "flag": None, "other": {"a": [1]}}
    assert SCHEMA.convert(given) == Outer()
    assert given == {"share": None, "flag": None, "other": {"a": [1]}}


def test_one_byte_order_mark_is_ignored() -> None:
    """As the edge's own parser does: what is read differently would be limited differently."""
    mark = b"\xef\xbb\xbf"
    assert json_object(mark + b'{"model": "m"}', ("model",)) == {"model": "m"}
    for data in (mark * 2 + b"{}", b" " + mark + b"{}", b"{}" + mark, '{"model": "m"}'.encode("utf-16"), mark):
        with pytest.raises(UplionError) as refusal:
            json_object(data, ("model",))
        assert refusal.value.reason is Reason.INVALID_REQUEST
    with pytest.raises(UplionError, match="more than once"):
        json_object(mark + b'{"model": "m", "model": "n"}', ("model",))
