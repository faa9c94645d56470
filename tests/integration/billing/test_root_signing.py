"""The ledger proves itself: what is exported verifies offline, and whatever is changed in it is found."""

import copy
import json
import time
from datetime import UTC, date, datetime, timedelta

import asyncpg
import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from billing.duties.root_signing import RootSigner, signing_key
from billing.entry import Arrival, decode
from billing.store import LedgerWriter
from cli.ledger_verification import verify
from control.stores.ledger_export import LedgerExport, write
from ledger import merkle

SECRET = "a secret of the tests, long enough to be one"
TODAY = datetime.now(UTC).date()
FIRST = TODAY - timedelta(days=3)


@pytest.fixture
async def signed(harness):
    """Three accounts, three days of links, signed; and one link of today that is not yet."""
    ledger = LedgerWriter(harness.database)
    ticket_time = Timestamp()  # all rows are of the month in which the first link was recorded
    ticket_time.FromDatetime(today() - timedelta(days=3))
    number = 0
    for days in (3, 2, 2, 1, 0):
        for account in ("acc-a", "acc-b", "acc-ü"):
            if account == "acc-b" and days == 3:
                continue
            fields = {"account": account, "project": "p", "ticket_time": ticket_time}
            events = [harness.event(number + one, **fields) for one in range(3)]
            number += 3
            await ledger.record([decode(event.SerializeToString(), Arrival(time.time_ns(), None)) for event in events])
        if days:
            await harness.database.execute(
                "UPDATE ledger_chain SET record_time = $1 WHERE record_time > now() - interval '1 hour'",
                today() - timedelta(days=days) + timedelta(hours=12),
            )
    keeper = RootSigner(harness.database, signing_key(SECRET))
    assert await keeper.sign(today()) == [FIRST, FIRST + timedelta(days=1)]  # yesterday may not be settled yet
    assert await keeper.sign(today() + timedelta(minutes=10)) == [TODAY - timedelta(days=1)]
    assert await keeper.sign(today() + timedelta(minutes=20)) == []
    return harness


def today():
    return datetime.combine(TODAY, datetime.min.time(), UTC)


async def export(harness, account=None):
    lines = [line async for part in LedgerExport(harness.database).lines(account) for line in part]
    return [json.loads(text) for text in write(lines).splitlines()]


def check(lines, *keys):
    return verify((json.dumps(line) for line in lines), keys)


def public_key(secret=SECRET):
    return signing_key(secret).public_key().public_bytes_raw()


async def test_an_export_verifies_whole_or_of_one_account(signed):
    whole = check(await export(signed), public_key())
    assert whole.problems == []
    assert (whole.accounts, whole.links, whole.rows, whole.roots) == (3, 14, 42, 3)
    assert (whole.unsigned_links, whole.signed_until) == (3, str(TODAY - timedelta(days=1)))
    assert whole.keys == [merkle.key_id(public_key())]
    one = check(await export(signed, "acc-b"), public_key())
    assert (one.problems, one.links, one.rows, one.unsigned_links) == ([], 4, 12, 1)
    assert '"acc-a"' not in json.dumps(await export(signed, "acc-b"))
    assert check(await export(signed, "nobody")).problems == []


def lines_of(lines, kind):
    return [line for line in lines if line["type"] == kind]


def change_value(column):
    def change(lines):
        row = lines_of(lines, "row")[4]
        columns = lines[0]["columns"]
        row["values"][columns.index(column)] = "7"

    return change


def remove(kind, index):
    return lambda lines: lines.remove(lines_of(lines, kind)[index])


def swap(kind, one, other):
    def change(lines):
        first, second = lines_of(lines, kind)[one], lines_of(lines, kind)[other]
        a, b = lines.index(first), lines.index(second)
        lines[a], lines[b] = lines[b], lines[a]

    return change


def rewrite_the_last_link(lines):
    """A forger who knows how chains are computed: row, count, digest and all that follows are consistent."""
    from ledger import hash_chain

    links = [line for line in lines_of(lines, "link") if line["account"] == "acc-b"]
    previous = bytes(32)
    for link in links:
        rows = [row for row in lines_of(lines, "row") if (row["account"], row["link"]) == ("acc-b", link["link"])]
        if link["link"] == 1:
            rows[0]["values"][13] = "1"
        link["previous"] = previous.hex()
        previous = hash_chain.digest(previous, ["".join(f"{value}\0" for value in row["values"]) for row in rows])
        link["digest"] = previous.hex()


def cut_off(lines):
    """The newest link of an account and its rows never were."""
    del lines[lines.index(lines_of(lines, "link")[3]) : lines.index(lines_of(lines, "link")[5])]


def forge(lines):
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    stranger = Ed25519PrivateKey.generate()
    key = stranger.public_key().public_bytes_raw()
    previous = bytes(32)
    for line in lines_of(lines, "root"):
        value = bytes.fromhex(line["root"])
        signed_text = merkle.message(date.fromisoformat(line["day"]), line["accounts"], value, previous)
        line |= {"key": merkle.key_id(key), "signature": stranger.sign(signed_text).hex(), "previous": previous.hex()}
        previous = value
    lines.insert(1, {"type": "key", "id": merkle.key_id(key), "public_key": key.hex()})


def set_field(kind, index, **fields):
    return lambda lines: lines_of(lines, kind)[index].update(fields)


CHANGES = {
    "a number of a row": (change_value("input_tokens"), "link 2: the rows are not those"),
    "a cost": (change_value("cost"), "the rows are not those"),
    "a row is gone": (remove("row", 3), "3 rows were chained, 2 are here"),
    "rows in another order": (swap("row", 3, 4), "the rows are not those"),
    "a row at another link": (swap("row", 3, 8), "a row is not behind its link"),
    "a link is gone": (remove("link", 1), "link 2 should be here"),
    "links in another order": (swap("link", 1, 2), "should be here"),
    "a digest": (set_field("link", 2, digest="ab" * 32), "the rows are not those"),
    "a previous digest": (set_field("link", 2, previous="ab" * 32), "does not follow the link before it"),
    "a chain that was made anew": (rewrite_the_last_link, "root of"),
    "the end of a chain": (cut_off, "is not that of the chains here"),
    "the time of a link": (set_field("link", 0, record_time=f"{TODAY}T00:00:00.000000+00:00"), "is not that of"),
    "a root": (set_field("root", 1, root="ab" * 32), "the signature is not that of the key"),
    "a root's number of accounts": (set_field("root", 1, accounts=2), "the signature is not that of the key"),
    "a root is gone": (remove("root", 1), "does not follow the root of"),
    "roots signed by another key": (forge, "which is not the one it should be"),
    "a line of no sense": (lambda lines: lines.insert(5, {"type": "link"}), "line 6 cannot be read"),
    "rows said to be dropped": (
        lambda lines: (lines[0].update(rows_from=f"{TODAY - timedelta(days=30)}"), remove("row", 3)(lines)),
        "3 rows were chained, 2 are here",
    ),
}


async def test_every_change_is_found(signed):
    lines = await export(signed)
    for what, (change, sentence) in CHANGES.items():
        changed = copy.deepcopy(lines)
        change(changed)
        problems = check(changed, public_key()).problems
        assert any(sentence in problem for problem in problems), (what, problems)
    assert check([], public_key()).problems == ["this is no exported ledger"]


async def test_every_change_is_found_in_an_accounts_own_file_too(signed):
    lines = await export(signed, "acc-b")
    unproven = copy.deepcopy(lines)
    for line in lines_of(unproven, "root"):
        line.pop("proof", None)
    forged = copy.deepcopy(lines)
    rewrite_the_last_link(forged)
    short = [line for line in lines if line.get("link") not in (3, 4)]
    assert "nothing shows that the account's chain is in it" in str(check(unproven).problems)
    assert "is not the one that was signed" in str(check(forged).problems)
    assert "is not the one that was signed" in str(check(short).problems)
    other = copy.deepcopy(lines)
    for proof in [line["proof"] for line in lines_of(other, "root") if line.get("proof")]:
        proof["path"] = proof["path"][:-1]
    assert "does not hold the account's link" in str(check(other).problems)


async def test_what_was_changed_in_the_database_is_found(signed):
    await signed.database.execute("UPDATE usage_events SET output_tokens = 0 WHERE account = 'acc-a' AND link = 2")
    assert any("account acc-a, link 2" in problem for problem in check(await export(signed)).problems)
    with pytest.raises(asyncpg.RestrictViolationError):
        await signed.database.execute("UPDATE ledger_roots SET accounts = 1")


async def test_dropped_months_verify_by_their_digests_alone(signed):
    partition = f"usage_events_{FIRST:%Y_%m}"
    await signed.database.execute(f"DROP TABLE {partition}")
    next_month = (FIRST.replace(day=1) + timedelta(days=32)).replace(day=1)
    await signed.database.execute("SELECT ensure_usage_partition($1)", next_month)
    report = check(await export(signed), public_key())
    assert report.problems == []
    assert (report.rows, report.dropped_links, report.rows_from) == (0, 14, str(next_month))
