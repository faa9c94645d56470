"""The text of a limit: what `--limit` takes is what the tables show."""

import pytest

from cli import limit_text
from cli.output import CommandError
from ledger.limits import Limit


@pytest.mark.parametrize(
    ("text", "limit"),
    [
        ("requests/minute=100", Limit("requests", "minute", 100)),
        ("tokens/day=1000000", Limit("tokens", "day", 1_000_000)),
        ("cost/month/USD=25", Limit("cost", "month", 25_000_000, currency="USD")),
        ("cost/day/EUR/org/model-1=0.000001", Limit("cost", "day", 1, model="org/model-1", currency="EUR")),
        ("tokens/life/llama-3=5000", Limit("tokens", "life", 5000, model="llama-3")),
        ("concurrency=4", Limit("concurrency", "", 4)),
        ("shadow:concurrency/a=b=0", Limit("concurrency", "", 0, model="a=b", shadow=True)),
    ],
)
def test_a_limit_is_read_and_written_alike(text, limit):
    assert limit_text.parse(text) == limit
    assert limit_text.write(limit) == text
    read = limit_text.messages([text])
    assert read is not None
    assert limit_text.texts(read) == [text]


def test_money_may_have_zeros_at_its_end():
    assert limit_text.parse("cost/month/USD=25.00").amount == 25_000_000


@pytest.mark.parametrize(
    "text",
    [
        *("", "tokens", "tokens=5", "tokens/day", "tokens/day=", "tokens/day=x", "tokens/day=-1", "tokens/day=1.5"),
        *("tokens/day=nan", "tokens/day=1e400", "tokens/week=1", "cost/day=5", "cost/day/usd=5", "requests/day=5"),
        *("cost/day/USD=0.0000001", "watch:tokens/day=5", "tokens/day=9007199254740992"),
    ],
)
def test_what_is_no_limit_is_refused_with_the_text(text):
    with pytest.raises(CommandError) as caught:
        limit_text.parse(text)
    assert repr(text) in str(caught.value)


def test_the_shell_completes_every_form():
    assert "cost/month/USD=" in limit_text.complete("")
    assert limit_text.complete("tokens/m") == ["tokens/minute=", "tokens/month="]
    assert limit_text.complete("shadow:con") == ["shadow:concurrency="]
