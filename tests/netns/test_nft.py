"""The nftables wrapper and watch on the real kernel."""

import errno
import os
import select
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from pycni.errors import KernelError
from pycni.kernel import netns as namespaces
from pycni.kernel.nft import Nft
from pycni.kernel.nft_elements import NftElements
from pycni.kernel.nft_watch import NftWatch
from tests.netns.fabric_nodes import run

ROOT = Path(__file__).parents[2]


@pytest.fixture
def inside(netns):
    fd = namespaces.open_netns(namespaces.path(netns))
    yield lambda fn: namespaces.run_in(fd, fn)
    os.close(fd)


def test_a_context_stays_in_the_namespace_it_was_made_in(netns, inside):
    with inside(Nft) as nft:
        nft.run("add table inet here")
        assert nft.exists("inet", "here")
        assert not nft.exists("inet", "there")
    assert run(netns, "nft list tables") == "table inet here\n"


def test_what_families_the_kernel_has_is_found_out_without_leaving_anything(netns, inside):
    with inside(Nft) as nft:
        assert nft.knows("inet")
        assert nft.knows("bridge")
    assert run(netns, "nft list ruleset") == ""


def test_a_transaction_takes_effect_as_a_whole_or_not_at_all(inside):
    with inside(Nft) as nft:
        with pytest.raises(KernelError, match="ENOENT") as caught:
            nft.run("add table inet a\nadd rule inet a nochain accept")
        assert caught.value.errno == errno.ENOENT
        assert "add rule inet a nochain accept" in caught.value.detail
        assert nft.query("list tables") == ""


def test_what_nft_itself_refuses_is_einval_with_its_words(inside):
    with inside(Nft) as nft, pytest.raises(KernelError, match="syntax error") as caught:
        nft.run("no such thing")
    assert caught.value.errno == errno.EINVAL


def test_a_listing_has_no_counters_values(inside):
    with inside(Nft) as nft:
        nft.run(
            "add table inet t { chain c { counter accept ; } ; set s { type ipv4_addr ; elements = { 10.0.0.1 } ; } ; }"
        )
        listed = nft.listing("list table inet t")
        rule = next(item["rule"] for item in listed if "rule" in item)
        assert rule["expr"] == [{"counter": None}, {"accept": None}]
        assert next(item["set"]["elem"] for item in listed if "set" in item) == ["10.0.0.1"]
        assert nft.query("list tables") == "table inet t\n", "text output is back"


def test_threads_share_a_context(inside):
    errors = []
    with inside(Nft) as nft:
        nft.run("add table inet t { set s { type ipv4_addr ; } ; }")

        def work(number):
            try:
                for index in range(50):
                    nft.run(f"add element inet t s {{ 10.{number}.0.{index} }}")
            except KernelError as error:
                errors.append(error)

        threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert errors == []
        assert nft.query("list set inet t s").count("10.") == 200


LISTINGS = """
import sys, threading
from pycni.kernel.nft import Nft

sets = " ".join(f"set s{number} {{ type ipv4_addr . inet_service ; }} ;" for number in range(300))
table = "table inet t { " + sets + " ; }"
start = threading.Barrier(4)


def work():
    nft = Nft()
    start.wait()
    for _ in range(20):
        nft.listing("list table inet t")


Nft().run(table)
threads = [threading.Thread(target=work) for _ in range(4)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
"""


def test_contexts_of_several_threads_do_not_disturb_each_other(netns):
    """libnftables 1.0.6 ends the process by an assertion when two of them list as JSON at once."""
    words = [*namespaces.exec_prefix(netns), sys.executable, "-c", LISTINGS]
    done = subprocess.run(words, capture_output=True, text=True, check=False, cwd=ROOT)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_closed_context_says_so(inside):
    nft = inside(Nft)
    nft.close()
    with pytest.raises(KernelError, match="EBADF"):
        nft.run("add table inet t")


NAMED = {
    "table made": "add table inet mine",
    "chain made": "add chain inet mine c",
    "rule made": "add rule inet mine c accept",
    "set made": "add set inet mine s { type ipv4_addr ; }",
    "element made": "add element inet mine s { 10.0.0.1 }",
    "element deleted": "delete element inet mine s { 10.0.0.1 }",
    "all flushed": "flush ruleset",
}


def test_a_watch_tells_when_its_table_is_named_and_only_then(inside):
    with inside(Nft) as nft, inside(lambda: NftWatch(["mine"])) as watch:
        for what, command in NAMED.items():
            nft.run("add table inet other { chain x { counter ; } ; }")
            assert not watch.drain(), f"before {what}"
            nft.run(command)
            assert select.select([watch], [], [], 1)[0], what
            assert watch.drain(), what
        nft.run("add table inet other")
        assert not watch.drain()


def test_a_watch_passes_over_what_came_by_our_own_socket(inside):
    """What somebody else does to the same set at the same time is told."""
    with (
        inside(Nft) as nft,
        inside(NftElements) as ours,
        inside(NftElements) as other,
        inside(lambda: NftWatch(["mine"], lambda: ours.port)) as watch,
    ):
        nft.run("add table inet mine { set s { type ipv4_addr ; } ; }")
        assert watch.drain()
        ours.add("mine", "s", [b"\x0a\0\0\1", b"\x0a\0\0\2"])
        ours.delete("mine", "s", [b"\x0a\0\0\1"])
        assert not watch.drain()
        other.delete("mine", "s", [b"\x0a\0\0\2"])
        ours.add("mine", "s", [b"\x0a\0\0\3"])
        assert watch.drain()


def test_a_watch_that_lost_messages_counts_as_told(inside):
    with inside(Nft) as nft, inside(lambda: NftWatch(["mine"])) as watch:
        nft.run("add table inet other { set s { type ipv4_addr ; } ; }")
        for high in range(60):
            elements = ", ".join(f"10.{high}.{index >> 8}.{index & 255}" for index in range(1000))
            nft.run(f"add element inet other s {{ {elements} }}")
        assert watch.drain()
        assert not watch.drain()
