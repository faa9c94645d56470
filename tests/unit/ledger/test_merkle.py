"""Roots: one head can be proven without the others, and any other head cannot."""

from hashlib import sha256

from hypothesis import given
from hypothesis import strategies as st

from ledger import merkle
from ledger.merkle import Head


def heads(count):
    return [Head(f"acc{number:03}", number + 1, sha256(bytes([number])).digest()) for number in range(count)]


def test_the_hashes_are_those_of_rfc_6962():
    one, two, three = (merkle.leaf(head) for head in heads(3))
    assert one == sha256(b"\x00acc000\x001\x00" + sha256(b"\x00").digest()).digest()
    pair = sha256(b"\x01" + one + two).digest()
    assert merkle.root([one, two]) == pair
    assert merkle.root([one, two, three]) == sha256(b"\x01" + pair + three).digest()
    assert merkle.root([]) == sha256(b"").digest()


@given(st.integers(1, 70), st.data())
def test_a_path_leads_from_its_head_to_the_root_and_from_no_other(count, data):
    leaves = [merkle.leaf(head) for head in heads(count)]
    index = data.draw(st.integers(0, count - 1))
    steps = merkle.path(leaves, index)
    assert merkle.follow(leaves[index], steps) == merkle.root(leaves)
    assert len(steps) <= (count - 1).bit_length()
    stranger = merkle.leaf(Head("acc000", 99, bytes(32)))
    assert merkle.follow(stranger, steps) != merkle.root(leaves)
