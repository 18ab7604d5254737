"""The bytes by which elements of nftables sets are added and deleted."""

import pytest

from pycni.wire.netlink import parse_attrs, split, text
from pycni.wire.nftset import element_batch

ADD_ONE = bytes.fromhex(
    # batch begin, sequence 6
    "14000000 1000 0100 06000000 00000000 00 00 000a"
    # NFT_MSG_NEWSETELEM, create and ack, sequence 7: table t, set s
    "38000000 0c0a 0504 07000000 00000000 01 00 0000 0600 0100 74000000 0600 0200 73000000"
    # elements > element > key > value 192.0.2.1
    "1400 0380 1000 0180 0c00 0180 0800 0100 c0000201"
    # batch end, sequence 8
    "14000000 1100 0100 08000000 00000000 00 00 000a"
)


def test_one_element_is_these_bytes():
    assert element_batch(add=True, table="t", name="s", keys=[bytes([192, 0, 2, 1])], seq=7) == ADD_ONE


def test_a_batch_has_its_edges_and_every_key_in_order():
    keys = [number.to_bytes(16, "big") for number in range(1000)]
    begin, elements, end = split(
        element_batch(add=False, table="pycni_fabric", name="vtep6", keys=keys, seq=9)
    )
    assert (begin.kind, elements.kind, end.kind) == (16, 10 << 8 | 14, 17)
    assert (begin.seq, elements.seq, end.seq) == (8, 9, 10)
    attrs = parse_attrs(elements.payload, 4)
    assert (text(attrs[1]), text(attrs[2])) == ("pycni_fabric", "vtep6")
    size = len(attrs[3]) // len(keys)
    items = [attrs[3][start : start + size] for start in range(0, len(attrs[3]), size)]
    assert [parse_attrs(parse_attrs(parse_attrs(item)[1])[1])[1] for item in items] == keys


@pytest.mark.parametrize("count", [0, 1001])
def test_too_few_and_too_many_elements_are_refused(count):
    with pytest.raises(ValueError, match=r"expected 1\.\.1000"):
        element_batch(add=True, table="t", name="s", keys=[b"1234"] * count, seq=1)
