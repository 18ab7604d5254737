"""Names of tables as they come and go, asked for by one socket that is kept."""

from __future__ import annotations

import errno
import os

import pytest

from pycni.errors import KernelError
from pycni.kernel import netns
from pycni.kernel.nft import Nft
from pycni.kernel.nft_names import TableNames, tables


@pytest.fixture
def space():
    name = f"pyt{os.getpid()}n"
    netns.create(name)
    fd = netns.open_netns(netns.path(name))
    try:
        yield fd
    finally:
        os.close(fd)
        netns.delete(name)


def test_names_are_those_of_the_moment(space):
    def story():
        names = TableNames()
        with Nft() as nft:
            assert names.read() == []
            for text in ("add table inet a; add table ip b", "delete table inet a", "add table bridge c"):
                nft.run(text)
                assert sorted(names.read()) == sorted(tables())
            assert sorted(names.read()) == [("bridge", "c"), ("ip", "b")]
        names.close()
        assert sorted(names.read()) == [("bridge", "c"), ("ip", "b")], "it opens another one"
        names.close()
        names.close()

    netns.run_in(space, story)


@pytest.mark.parametrize(
    ("error", "lacking"),
    [
        (KernelError(errno.EOPNOTSUPP, "list nft tables"), True),
        (OSError(errno.EPROTONOSUPPORT, "no netfilter"), True),
        (KernelError(errno.ENOBUFS, "list nft tables"), False),
    ],
    ids=["no nftables", "no netfilter", "trouble"],
)
def test_a_kernel_without_nftables_has_no_tables(space, monkeypatch, error, lacking):
    def refuse(*_args):
        raise error

    def story():
        names = TableNames()
        with monkeypatch.context() as patch:
            patch.setattr("pycni.kernel.nft_names._asked", refuse)
            if lacking:
                assert names.read() == []
            else:
                with pytest.raises(KernelError):
                    names.read()
        assert names.read() == [], "the next look has a socket of its own"
        names.close()

    netns.run_in(space, story)
