"""A kernel whose nftables lacks the family inet: pods are served, and that is told once."""

from __future__ import annotations

import errno
import ipaddress
import logging

import pytest

from pycni.agent.firewall import Firewall, FirewallPlan
from pycni.backends.masq import Masquerade, VxlanGuard
from pycni.errors import KernelError
from pycni.model.family import Family

MASQUERADE = Masquerade(
    cluster=ipaddress.ip_network("10.244.0.0/16"), own=ipaddress.ip_network("10.244.1.0/24")
)
FIRST = FirewallPlan(masquerade=(MASQUERADE,))
WHOLE = FirewallPlan(masquerade=(MASQUERADE,), guard=VxlanGuard(vni=1, port=8472, families=(Family.V4,)))
PEERS = [bytes([10, 0, 0, n]) for n in range(150)]


class Kernel:
    """nft on a kernel that refuses every transaction."""

    def __init__(self, number: int, *, inet: bool) -> None:
        self.number, self.inet = number, inet
        self.tried = 0

    def run(self, _text: str) -> None:
        self.tried += 1
        raise KernelError(self.number, "nft transaction")

    def knows(self, family: str) -> bool:
        assert family == "inet"
        return self.inet

    def exists(self, _family: str, _table: str) -> bool:
        return False


class NoElements:
    def __getattr__(self, name: str) -> object:
        raise AssertionError(f"{name}: there is no set")


def firewall(kernel: Kernel) -> Firewall:
    return Firewall(kernel, NoElements())  # type: ignore[arg-type]


def test_everything_works_without_the_table_and_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    kernel = Kernel(errno.EOPNOTSUPP, inet=False)
    wall = firewall(kernel)
    with caplog.at_level(logging.WARNING):
        wall.put(FIRST, ())
        assert wall.intact()
        wall.put(WHOLE, PEERS[:1])
        wall.admit(PEERS[:3])
        wall.admit(PEERS)
        wall.dismiss(PEERS[:2])
        assert wall.intact()
    assert (wall.plan, wall.peers) == (WHOLE, frozenset(PEERS[2:]))
    (told,) = [record.getMessage() for record in caplog.records]
    assert "no family inet (NF_TABLES_INET)" in told
    assert "VXLAN is accepted from any sender" in told
    assert kernel.tried == 2, "elements of a table that is not there are not tried"


@pytest.mark.parametrize(
    ("number", "inet"),
    [
        pytest.param(errno.EOPNOTSUPP, True, id="something in the table is missing, not the family"),
        pytest.param(errno.EPERM, False, id="not permitted"),
    ],
)
def test_other_refusals_are_errors_as_ever(number: int, inet: bool, caplog: pytest.LogCaptureFixture) -> None:
    wall = firewall(Kernel(number, inet=inet))
    with pytest.raises(KernelError):
        wall.put(WHOLE, PEERS[:1])
    assert not wall.intact()
    assert caplog.records == []
