"""IPVS with real packets, in User-Mode Linux; the guests' program is ``ipvs_guest``."""

from __future__ import annotations

import pytest

from pycni.kernel import netns
from pycni_proxy import ipvs
from tests.proxy.uml_boot import boot

pytestmark = [pytest.mark.root, pytest.mark.timeout(240)]
ONE = "cluster_ip verdicts outside addresses balancing direct"
TWO = "maglev graceful hammer ownership laws codec"


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    """Two guests at a time: each has a processor of its own."""
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(2) as pool:
        runs = [
            pool.submit(boot, tmp_path_factory.mktemp("ipvs"), f"tests.proxy.ipvs_guest {parts}", timeout=200)
            for parts in (ONE, TWO)
        ]
        return {**runs[0].result(), **runs[1].result()}


@pytest.fixture
def answer(answers, request):
    found = answers[request.param]
    assert "failed" not in found, found["failed"]
    return found


def of(part):
    return pytest.mark.parametrize("answer", [part], indirect=True, ids=[part])


FAMILIES = {
    "4": {
        "gateway": "10.244.1.1",
        "b": "10.244.1.6",
        "out": "192.168.0.77",
        "d": "10.244.1.8",
        "far": "10.244.2.1",
    },
    "6": {
        "gateway": "fd01:0:0:1::1",
        "b": "fd01:0:0:1::6",
        "out": "2001:db8::77",
        "d": "fd01:0:0:1::8",
        "far": "fd01:0:0:2::1",
    },
}


@of("cluster_ip")
@pytest.mark.parametrize("family", FAMILIES)
def test_a_cluster_ip_keeps_pods_sources_and_masquerades_others_and_hairpins(answer, family):
    world = FAMILIES[family]
    assert answer[family] == {
        "pod on the same bridge": f"a {world['b']}",
        "itself": f"a {world['gateway']}",
        "outsider": f"a {world['gateway']}",
        "the node": f"a {world['gateway']}",
        "pod to another node": f"far {world['b']}",
        "outsider to another node": f"far {world['far']}",
        "other port": "refused",
        "other port, the node": "refused",
        "other port, outsider": "refused",
        "no such address": "silence",
    }


@of("cluster_ip")
def test_what_was_programmed_reads_back_without_difference(answer):
    assert answer["left"] == []


@of("verdicts")
@pytest.mark.parametrize("space", ["b", "out", "node"])
def test_nobody_anywhere_is_refused_and_nobody_here_is_silence(answer, space):
    assert answer[space] == {
        "reject": "refused",
        "drop": "silence",
        "reject udp": "refused",
        "reject 6": "refused",
        "drop 6": "silence",
        "node port": "refused",
        "node port 6": "refused",
        "node port local": "silence" if space == "out" else "a",
    }


@of("outside")
@pytest.mark.parametrize("family", FAMILIES)
def test_policies_ranges_and_the_short_cut_from_inside(answer, family):
    world = FAMILIES[family]
    masked = f"a {world['gateway']}"
    assert answer[family] == {
        # node port, its Local twin, external, its Local twin, LB of a range, of another range, of none, UDP node port
        "out": [
            masked,
            f"a {world['out']}",
            masked,
            f"a {world['out']}",
            masked,
            "silence",
            "silence",
            masked,
        ],
        "b": [
            masked,
            f"far {world['b']}",
            masked,
            f"far {world['b']}",
            "silence",
            "silence",
            "silence",
            masked,
        ],
        "node": [
            masked,
            f"far {world['far']}",
            masked,
            f"far {world['far']}",
            masked,
            "silence",
            "silence",
            masked,
        ],
    }


@of("outside")
def test_the_nodes_own_ports_are_reached_at_its_address_and_at_no_virtual_one(answer):
    assert answer["a port of the node itself, at the node's address"] == "the"
    assert answer["a port of the node itself, at a virtual address"] == "refused"


@of("addresses")
def test_node_ports_follow_the_nodes_addresses_inside_the_ranges(answer):
    assert answer == {"primary": "a", "not in range": "refused", "new, before a look": "refused", "new": "a"}


@of("balancing")
@pytest.mark.parametrize("vip", ["10.96.0.1", "fd00:96::1"])
def test_rr_takes_turns_exactly(answer, vip):
    turns = answer[f"rr {vip}"]
    assert sorted(turns[:3]) == ["a", "b", "c"]
    assert turns == turns[:3] * 4


@of("balancing")
def test_lc_follows_open_connections(answer):
    assert answer["lc held"] == [3, 3, 3]
    assert answer["lc after b's were closed"] == ["b", "b", "b"]


@of("balancing")
def test_sh_sticks_by_source_and_dh_by_destination(answer):
    assert [len(pods) for pods in answer["sh"].values()] == [1] * 5
    assert len({pods[0] for pods in answer["sh"].values()}) > 1
    assert len(answer["dh"]) == 1


@of("balancing")
def test_affinity_holds_a_client_until_its_target_goes(answer):
    assert [len(pods) for pods in answer["affinity"].values()] == [1, 1, 1]
    assert answer["affinity moves from a target that goes"] == [True, 1]


@of("maglev")
def test_mh_moves_at_most_two_in_n_flows(answer):
    print("\nflows by target, four and three of them:", answer["before"], answer["after"])
    assert answer["stable"]
    assert answer["moved"] <= 2 * answer["flows"] / 4
    assert answer["moved"] == answer["before"]["c"]
    assert set(answer["after"]) == {"a", "b", "far"}
    assert answer["with ports"] > 1, "flag-2 hashes the port, too"


@of("graceful")
def test_a_removed_target_drains_before_it_goes(answer):
    assert answer["weights after removal"] == {"a": 0, "b": 1}
    assert answer["what a full pass would change"] == []
    assert answer["new connections"] == ["b"]
    assert answer["the open connection"] == "a still there?"
    assert answer["wait while draining"] <= 5
    assert answer["still draining"] == {"a": 0, "b": 1}
    assert answer["added back"] == {"a": 1, "b": 1}
    assert answer["terminating"] == {"a": 0, "b": 1}
    assert answer["idle target after a look"] == 1


@of("graceful")
def test_a_restart_goes_on_draining_and_the_grace_period_ends_it(answer):
    assert answer["after a restart"] == {"a": 0, "b": 1}
    assert answer["nothing else to do"] == []
    assert answer["the open connection after a restart"] == "a and now?"
    assert answer["after the grace period"] == {"b": 1}


@of("graceful")
def test_a_last_target_that_drains_serves_old_connections_only(answer):
    assert answer["only draining: new"] == ["refused", "refused"]
    assert answer["only draining: old"] == "b and I?"


@of("graceful")
def test_a_udp_client_is_sent_on_at_once(answer):
    assert answer["udp"] == ["a", "b"]


@of("hammer")
def test_no_connection_fails_through_a_hundred_replacements(answer):
    assert answer["failures"] == 0, answer
    assert answer["n"] > 100
    assert answer["served by"] == ["a", "b", "c"]


@of("direct")
@pytest.mark.parametrize("family", FAMILIES)
def test_direct_return_shows_the_pod_its_client_and_takes_room_for_the_tunnel(answer, family):
    world = FAMILIES[family]
    found = {name[2:]: value for name, value in answer.items() if name.startswith(family)}
    node = "192.168.0.1" if family == "4" else "2001:db8::1"
    assert found == {
        "outsider": [f"a {world['out']}"] * 2 + [f"b {world['out']}"] * 2,
        "counted": [4, True],
        "pod": [f"a {world['d']}", f"b {world['d']}"],
        "node": [f"a {node}", f"b {node}"],
        "left": [],
        "tunnels": [1, 1, 0],
        # 1,500 less two IP headers, TCP's and its timestamps.
        "mss": 1500 - (40 if family == "4" else 80) - 32,
        "gone": [0, 0],
    }
    assert answer["rules left"] is False


@of("ownership")
def test_a_restart_adopts_what_is_ours_and_repairs_it(answer):
    assert answer["changes after a restart"] == 0
    assert answer["damage seen"]
    assert answer["damage repaired"] == []


@of("ownership")
def test_nothing_of_others_is_touched_when_everything_of_ours_goes(answer):
    assert answer["removed"] > 5
    assert answer["removed again"] == []
    assert answer["their servers"] == ["TCP 10.96.0.1:99", "TCP 192.168.0.1:70", "fwmark 0x7 ipv4"]
    assert answer["their real servers"] == [1, 1, 1]
    assert answer["sets left"] == ["OTHERS"]
    assert answer["rules left"] == ["-A INPUT -s 9.9.9.9/32 -j DROP"]


@of("laws")
def test_incremental_is_from_scratch_is_read_back_is_what_the_tools_list(answer):
    assert answer == {"wrong": [], "from scratch": True, "compiled only": [], "tools only": [], "empty": ""}


@of("codec")
def test_the_kernels_tools_print_what_we_sent_and_we_read_what_they_made(answer):
    for name in ("printed", "read", "made by ipvsadm, read"):
        assert answer[name] is True, name
    assert answer["refused"] == answer["missing ones"] == []
    assert answer["thresholds"] == ["50", "20"]
    assert answer["timeouts"] == ["901", "120", "302"]
    assert answer["unknown scheduler"] == ["put virtual server -A -f 9 -s nosuch: ENOENT"]


@of("codec")
def test_sets_of_every_kind_come_back_as_they_were_sent(answer):
    sets = dict(answer["sets"])
    assert sets.pop("swap ipv4") == "add TEST-SWAP 10.0.0.1,tcp:80"
    assert sets.pop("swap ipv6") == "add TEST-SWAP fd00::1,tcp:80"
    assert sets.pop("other kind") == "create set TEST-MANY hash:ip ipv4: EEXIST"
    assert sets.pop("3000 members") is True
    assert len(sets) == 12
    assert all(found == [True, True] for found in sets.values()), sets


def test_a_kernel_without_ipvs_is_told_in_one_line():
    """This machine's own: in a namespace of the test's, where nothing is there to remove either."""
    import os
    import threading

    name = f"pyt{os.getpid()}-ipvs"
    netns.create(name)
    found = {}

    def look():
        netns.setns(fd, name)
        found["missing"], found["leftovers"] = ipvs.missing(), ipvs.leftovers()

    fd = netns.open_netns(netns.path(name))
    try:
        thread = threading.Thread(target=look)
        thread.start()
        thread.join()
    finally:
        os.close(fd)
        netns.delete(name)
    assert found == {"missing": "the kernel has no IPVS (module ip_vs)", "leftovers": []}
