"""The credential that a request carries."""

import pytest

from authz.credentials.request_credential import credential
from common.errors import Reason, UplionError

KEY = "upl_live_0123456789ab_" + "x" * 49


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"authorization": KEY},
        {"authorization": f"Basic {KEY}"},
        {"authorization": "Bearer "},
        {"authorization": "Bearer"},
        {"authorization": f"Bearer {'x' * 16_384}"},
        {"authorization": "Bearer ké"},
        {"authorization": "Bearer    "},
        {"authorization": f"Bearer\t{KEY}"},
        {"authorization": f" Bearer {KEY}"},
        {"authorization": f"Bearer{KEY}"},
        {"authorization": f"Bearer x {KEY}", "x-api-key": KEY},
        {"authorization": f"Bearer {KEY}", "x-api-key": KEY + "y"},
        {"x-api-key": KEY, "api-key": "other"},
        {"x-api-key": ""},
    ],
)
def test_anything_but_one_clear_key_is_refused(headers: dict[str, str]) -> None:
    with pytest.raises(UplionError) as refusal:
        credential(headers)
    assert refusal.value.reason is Reason.INVALID_API_KEY
    assert KEY not in refusal.value.message


def test_the_same_key_in_two_headers_is_one_key() -> None:
    assert credential({"authorization": f"Bearer {KEY}", "x-api-key": KEY}) == KEY


@pytest.mark.parametrize("head", ["Bearer ", "Bearer  ", "bearer      ", "BEARER "])
@pytest.mark.parametrize("tail", ["", " ", "   "])
def test_one_blank_or_more_follow_the_scheme(head: str, tail: str) -> None:
    assert credential({"authorization": f"{head}{KEY}{tail}", "api-key": KEY}) == KEY
