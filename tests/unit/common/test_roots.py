"""Roots: one head can be proven without the others, and any other head cannot."""

from hashlib import sha256

from hypothesis import given
from hypothesis import strategies as st

from common import roots
from common.roots import Head


def heads(count):
    return [Head(f"acc{number:03}", number + 1, sha256(bytes([number])).digest()) for number in range(count)]


def test_the_hashes_are_those_of_rfc_6962():
    one, two, three = (roots.leaf(head) for head in heads(3))
    assert one == sha256(b"\x00acc000\x001\x00" + sha256(b"\x00").digest()).digest()
    pair = sha256(b"\x01" + one + two).digest()
    assert roots.root([one, two]) == pair
    assert roots.root([one, two, three]) == sha256(b"\x01" + pair + three).digest()
    assert roots.root([]) == sha256(b"").digest()


@given(st.integers(1, 70), st.data())
def test_a_path_leads_from_its_head_to_the_root_and_from_no_other(count, data):
    leaves = [roots.leaf(head) for head in heads(count)]
    index = data.draw(st.integers(0, count - 1))
    steps = roots.path(leaves, index)
    assert roots.follow(leaves[index], steps) == roots.root(leaves)
    assert len(steps) <= (count - 1).bit_length()
    stranger = roots.leaf(Head("acc000", 99, bytes(32)))
    assert roots.follow(stranger, steps) != roots.root(leaves)
