"""Verifies an exported ledger offline, from the file and, where it is given, the public key."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from cli.output import JsonObject
from ledger import hash_chain, merkle
from ledger.merkle import Head

_MOST_PROBLEMS = 1_000
_DAY = timedelta(days=1)
# An event may come that late, so a link recorded as long after the oldest month began may have rows of dropped months.
_LATE = timedelta(days=7)


@dataclass
class Report:
    """The content of a file in figures, and its problems."""

    account: str | None = None  # None: all
    accounts: int = 0
    links: int = 0
    rows: int = 0
    dropped_links: int = 0  # rows gone with their month: proven by their digest alone
    rows_from: str | None = None  # the first month whose rows are there; None: all
    roots: int = 0
    signed_until: str | None = None  # the last day whose root is signed
    unsigned_links: int = 0  # recorded after that day: chained, but not signed yet
    keys: list[str] = field(default_factory=list)  # that signed
    problems: list[str] = field(default_factory=list)

    def problem(self, sentence: str) -> None:
        """Records a problem, up to a maximum number."""
        if len(self.problems) < _MOST_PROBLEMS:
            self.problems.append(sentence)


@dataclass
class _Link:
    account: str
    number: int
    previous: bytes
    digest: bytes
    rows: int
    record_time: datetime
    texts: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        return f"account {self.account}, link {self.number}"


def verify(lines: Iterable[str], public_keys: Sequence[bytes] = ()) -> Report:
    """Reads a file from its first line to its last. Without public keys, those in the file are trusted."""
    verifier = _Verifier(public_keys)
    for number, line in enumerate(lines, start=1):
        try:
            verifier.take(json.loads(line))
        except (ValueError, KeyError, TypeError, AttributeError, ArithmeticError, RecursionError) as problem:
            verifier.report.problem(f"line {number} cannot be read: {type(problem).__name__}")
    verifier.finish()
    return verifier.report


class _Verifier:
    def __init__(self, public_keys: Sequence[bytes]) -> None:
        self.report = Report()
        self._pinned = bool(public_keys)
        self._keys = {merkle.key_id(public_key): public_key for public_key in public_keys}
        self._link: _Link | None = None
        self._heads: dict[str, _Link] = {}  # the last link of each account so far
        # By day of recording, the last link of each account on it: what roots are made from.
        self._days: dict[date, dict[str, Head]] = {}
        self._digests: dict[int, str] = {}  # by link, of the one account that the file is about
        self._current: dict[str, Head] = {}
        self._rows_until: datetime | None = None  # links before may lack rows
        self._started = False
        self._root: tuple[date, str] | None = None
        self._proven: Head | None = None  # the account's head in the newest root

    def take(self, line: JsonObject) -> None:
        if not self._started and line["type"] != "ledger":
            raise ValueError("the first line is not that of a ledger")
        {
            "ledger": self._take_ledger,
            "key": self._take_key,
            "link": self._take_link,
            "row": self._take_row,
            "root": self._take_root,
        }[line["type"]](line)

    def finish(self) -> None:
        self._close_link()
        if not self._started:
            self.report.problem("this is no exported ledger")
        if self._root is not None:
            self.report.signed_until = str(self._root[0])
            if (
                self.report.account is not None
                and self._proven is None
                and min(self._days, default=date.max) <= self._root[0]
            ):
                self.report.problem(f"root of {self._root[0]}: nothing shows that the account's chain is in it")
        signed = [self._proven] if self._proven else list(self._current.values())
        self.report.unsigned_links = max(0, self.report.links - sum(head.link for head in signed))

    def _take_ledger(self, line: JsonObject) -> None:
        if self._started or line["version"] != 1 or not hash_chain.is_header(line["columns"]):
            raise ValueError("not a version that this command knows")
        self._started = True
        self.report.account = line["account"]
        if line["rows_from"] is not None:
            self.report.rows_from = line["rows_from"]
            self._rows_until = datetime.fromisoformat(f"{line['rows_from']}T00:00:00+00:00") + _LATE

    def _take_key(self, line: JsonObject) -> None:
        public_key = bytes.fromhex(line["public_key"])
        if not self._pinned:
            self._keys[merkle.key_id(public_key)] = public_key

    def _take_link(self, line: JsonObject) -> None:
        self._close_link()
        self._link = link = _Link(
            str(line["account"]),
            int(line["link"]),
            bytes.fromhex(line["previous"]),
            bytes.fromhex(line["digest"]),
            int(line["rows"]),
            datetime.fromisoformat(line["record_time"]),
        )
        if self.report.account is not None and link.account != self.report.account:
            self.report.problem(f"{link.name}: belongs to another account than the file")
        before = self._heads.get(link.account)
        expected, previous = (before.number + 1, before.digest) if before else (1, hash_chain.FIRST_PREVIOUS)
        if link.number != expected:
            self.report.problem(f"{link.name}: link {expected} should be here")
        elif link.previous != previous:
            self.report.problem(f"{link.name}: does not follow the link before it")

    def _take_row(self, line: JsonObject) -> None:
        link = self._link
        if link is None or (link.account, link.number) != (line["account"], line["link"]):
            self.report.problem(f"account {line['account']}, link {line['link']}: a row is not behind its link")
            return
        values = [str(value) for value in line["values"]]
        if not hash_chain.is_row(values):
            self.report.problem(f"{link.name}: a row has not the columns of a row")
        link.texts.append("".join(f"{value}\0" for value in values))

    def _close_link(self) -> None:
        """Compares a link's digest with that of its rows, all of which were read."""
        link, self._link = self._link, None
        if link is None:
            return
        self.report.links += 1
        self.report.rows += len(link.texts)
        if len(link.texts) < link.rows and self._rows_until is not None and link.record_time < self._rows_until:
            self.report.dropped_links += 1
        elif len(link.texts) != link.rows:
            self.report.problem(f"{link.name}: {link.rows} rows were chained, {len(link.texts)} are here")
        elif hash_chain.digest(link.previous, link.texts) != link.digest:
            self.report.problem(f"{link.name}: the rows are not those that were chained")
        self.report.accounts += link.account not in self._heads
        self._heads[link.account] = link
        head = Head(link.account, link.number, link.digest)
        self._days.setdefault(link.record_time.date(), {})[link.account] = head
        if self.report.account is not None:
            self._digests[link.number] = link.digest.hex()

    def _take_root(self, line: JsonObject) -> None:
        self._close_link()
        day, value = date.fromisoformat(line["day"]), bytes.fromhex(line["root"])
        self.report.roots += 1
        self._check_signature(day, value, line)
        if self._root is not None and (day != self._root[0] + _DAY or line["previous"] != self._root[1]):
            self.report.problem(f"root of {day}: does not follow the root of {self._root[0]}")
        self._root = day, line["root"]
        if self.report.account is None:
            self._check_whole(day, value, int(line["accounts"]))
            return
        self._proven = None
        if line.get("proof") is not None:
            self._check_proof(day, value, self.report.account, line["proof"])

    def _check_signature(self, day: date, value: bytes, line: JsonObject) -> None:
        public_key = self._keys.get(line["key"])
        if public_key is None:
            self.report.problem(f"root of {day}: signed by the key {line['key']}, which is not the one it should be")
            return
        if line["key"] not in self.report.keys:
            self.report.keys.append(line["key"])
        signed = merkle.message(day, int(line["accounts"]), value, bytes.fromhex(line["previous"]))
        try:
            Ed25519PublicKey.from_public_bytes(public_key).verify(bytes.fromhex(line["signature"]), signed)
        except InvalidSignature:
            self.report.problem(f"root of {day}: the signature is not that of the key {line['key']}")

    def _check_whole(self, day: date, value: bytes, accounts: int) -> None:
        """Computes the root again, from the heads of all accounts."""
        for recorded in sorted(each for each in self._days if each <= day):
            for account, head in self._days.pop(recorded).items():
                if account not in self._current or head.link > self._current[account].link:
                    self._current[account] = head
        heads = [self._current[account] for account in sorted(self._current)]
        if len(heads) != accounts or merkle.root([merkle.leaf(head) for head in heads]) != value:
            self.report.problem(f"root of {day}: is not that of the chains here")

    def _check_proof(self, day: date, value: bytes, account: str, proof: JsonObject) -> None:
        head = Head(account, int(proof["link"]), bytes.fromhex(proof["digest"]))
        steps = [(str(side), bytes.fromhex(other)) for side, other in proof["path"]]
        if self._digests.get(head.link) != head.digest.hex():
            self.report.problem(f"root of {day}: link {head.link} is not the one that was signed")
        elif merkle.follow(merkle.leaf(head), steps) != value:
            self.report.problem(f"root of {day}: does not hold the account's link {head.link}")
        self._proven = head
