"""Page sizes and page tokens of the admin API."""

from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from common.errors import Reason, UplionError
from control.requests import paging

MOMENTS = st.datetimes(min_value=datetime(1970, 1, 1), max_value=datetime(2200, 1, 1)).map(
    lambda moment: moment.replace(tzinfo=UTC)
)


@given(MOMENTS, st.text(alphabet="abcXYZ019_", min_size=1, max_size=30))
def test_a_page_token_brings_back_the_position(moment, identifier):
    token = paging.write_position(moment, identifier)
    assert paging.read_position(token) == paging.Position(moment, identifier)


@given(st.text(max_size=60))
def test_a_strangers_token_is_refused_and_never_an_accident(token):
    for read in (paging.read_position, paging.read_name):
        try:
            read(token)
        except UplionError as problem:
            assert (problem.reason, problem.param) == (Reason.INVALID_REQUEST, "page_token")


def test_page_sizes():
    assert [paging.page_size(asked) for asked in (0, 1, 1000, 5000)] == [100, 1, 1000, 1000]


def test_a_moment_before_the_epoch_is_a_position_too():
    early = datetime(1970, 1, 1, tzinfo=UTC) - timedelta(microseconds=1)
    assert paging.read_position(paging.write_position(early, "x")) == paging.Position(early, "x")
