"""The agent's side of pycnictl status, ipam and dump: what differs, what is remembered, what may be released."""

import asyncio
import logging
from collections.abc import Iterator
from ipaddress import ip_address, ip_network
from pathlib import Path
from types import SimpleNamespace

import msgspec
import pytest

from pycni.agent import status_dump
from pycni.agent.health import REMEMBERED, Health
from pycni.agent.httpd import Response
from pycni.agent.settings import Given, resolve
from pycni.agent.status import peers, shown
from pycni.agent.status_dump import Dumper, difference, section, tables
from pycni.agent.status_ipam import Attached, IpamRoutes, RefusedError, release
from pycni.agent.status_log import KEPT, NOT_READY, Recent
from pycni.agent.status_model import Dump, IpamStatus
from pycni.agent.vtep_probe import PeerProbe
from pycni.backends.base import Refusal
from pycni.model.fabric import FabricState, VxlanLink
from pycni.model.family import Family
from pycni.model.lease import Lease, LeaseAttrs
from tests.unit.test_collect_runs import Node

NFT = (
    "table inet t {\n"
    "\tset a {\n"
    "\t\telements = { 10.0.0.1,\n"
    "\t\t\t     10.0.0.2 }\n"
    "\t}\n"
    "\tset b {\n"
    "\t\telements = { 10.0.0.1 }\n"
    "\t}\n"
    "}"
)


@pytest.mark.parametrize(
    ("desired", "actual", "missing", "extra"),
    [
        ("x\ny", "y\nx", (), ()),
        ("x\nx", "x", ("x",), ()),
        (NFT, NFT.replace("10.0.0.1,\n\t\t\t     ", ""), ("table inet t set a: 10.0.0.1",), ()),
        (NFT, NFT.replace("{ 10.0.0.1 }", "{ 10.0.0.1, 10.0.0.9 }"), (), ("table inet t set b: 10.0.0.9",)),
        (
            NFT,
            NFT.replace("set b", "set c"),
            ("table inet t: set b {", "table inet t set b: 10.0.0.1"),
            ("table inet t: set c {", "table inet t set c: 10.0.0.1"),
        ),
    ],
    ids=["order", "twice", "element in one of two sets", "element added", "set renamed"],
)
def test_difference_names_lines_by_their_block(desired, actual, missing, extra):
    assert difference(desired.split("\n"), actual.split("\n")) == (missing, extra)


def test_a_table_that_cannot_be_put_into_words_is_told_not_raised():
    def text(found):
        return [found["t"][1]]

    found = tables("services", "nft", text, {"t": {1: "row"}}, {"t": {}})
    assert found.desired == ("row",)
    assert found.notes == ("what the kernel has cannot be put into words: KeyError(1)", "1 rows of t differ")
    assert not found.same


def test_rows_that_differ_in_what_lines_do_not_show_are_counted():
    found = tables("services", "nft", lambda _tables: ["same"], {"t": {1: "a"}}, {"t": {1: "b"}})
    assert found.notes == ("1 rows of t differ",)
    assert tables("services", "nft", lambda _tables: ["same"], {"t": {1: "a"}}, {"t": {1: "a"}}).same


def link(mac: bytes) -> FabricState:
    made = VxlanLink(name="flannel.1", vni=1, port=8472, parent="eth0", local=b"\1\2\3\4", mac=mac, mtu=1450)
    return FabricState(links={"flannel.1": made})


def test_a_changed_mac_of_the_vtep_is_a_difference():
    found = section(
        "fabric", "kernel", *map(status_dump.fabric_lines, (link(bytes(6)), link(b"\2" + bytes(5))))
    )
    assert found.missing == ("link flannel.1 address 00:00:00:00:00:00 nolearning dev eth0 local 1.2.3.4",)
    assert len(found.extra) == 1


def test_dump_asks_components_and_says_what_cannot_be_had():
    async def services(_query: str) -> Response:
        return status_dump.answer(lambda: [section("services", "nft", ["a"], ["a"])])

    async def policies(_query: str) -> Response:
        return Response(503, body="not programmed\n")

    async def ask(query: str) -> list[Dump]:
        others = {"/dump/services": services, "/dump/policies": policies, "/services": services}
        dumper = Dumper("n1", lambda: None, lambda: None, others)
        answer = await dumper.routes()["/dump"](query)
        assert answer.stream is not None, answer.body
        return [msgspec.json.decode(piece, type=Dump) async for piece in answer.stream()]

    found = asyncio.run(ask(""))
    assert [item.part for dump in found for item in dump.sections] == ["services"]
    assert {name for dump in found for name in dump.troubles} == {"fabric", "pods", "policies"}
    assert found[-1].troubles == {"policies": "not programmed"}
    assert len(asyncio.run(ask("part=services"))) == 1
    with pytest.raises(AssertionError, match="there are fabric, pods, services, policies"):
        asyncio.run(ask("part=nothing"))


# --- what is remembered ----------------------------------------------------------------------------------------------


@pytest.fixture
def recent() -> Iterator[tuple[Recent, logging.Logger]]:
    made, logger = Recent(), logging.getLogger("pycni.test-status")
    logger.addHandler(made)
    yield made, logger
    logger.removeHandler(made)


def test_repeated_warnings_are_counted_and_the_newest_come_first(recent):
    made, logger = recent
    for number in range(3):
        logger.warning("etcd is away")
        logger.error("peer %d", number)
    logger.info("well")
    found = [(item.text, item.count, item.level, item.area) for item in made.lines()]
    assert found[:2] == [("peer 2", 1, "error", "test-status"), ("etcd is away", 3, "warning", "test-status")]
    assert len(found) == 4


def test_only_so_many_different_lines_are_kept(recent):
    made, logger = recent
    for number in range(KEPT + 7):
        logger.warning("line %d\nof two", number)
    assert len(made.lines()) == KEPT
    assert made.lines()[0].text == f"line {KEPT + 6} of two"


def test_what_a_starting_agent_waits_for_is_no_complaint(recent):
    made, logger = recent
    logger.warning(NOT_READY, "starting")
    assert made.lines() == ()
    made.began = True
    logger.warning(NOT_READY, "etcd")
    assert [item.text for item in made.lines()] == ["not ready: etcd"]


def test_repairs_are_counted_by_part_beyond_those_remembered():
    health = Health()
    for number in range(REMEMBERED + 5):
        health.repaired("fabric", 2, f"route {number}")
    assert health.repaired_entries == {"fabric": 2 * (REMEMBERED + 5)}
    assert len(health.repairs) == REMEMBERED
    assert health.repairs[-1].what == f"route {REMEMBERED + 4}"


def test_settings_are_shown_without_the_password():
    words = {"etcd-username": "u", "etcd-password": "hunter2", "iface": "eth7"}
    found = shown(resolve([[Given(name, (word,), "flag") for name, word in words.items()]], "n1"))
    assert found["etcd-password"] == "(hidden)"
    assert found["iface"] == ["eth7"]
    assert "hunter2" not in str(found)
    assert msgspec.json.decode(msgspec.json.encode(found)) == found


def lease(third: int, six: bool = False) -> Lease:
    return Lease(
        subnet=ip_network(f"10.5.{third}.0/24"),
        subnet6=ip_network(f"fd00:5:0:{third}::/64") if six else None,
        attrs=LeaseAttrs(public_ip=ip_address(f"192.0.2.{third}"), backend_type="vxlan"),
    )


def test_peers_are_listed_by_subnet_with_what_the_probe_found_and_why_others_are_skipped() -> None:
    leases = {name: lease(number, six=True) for name, number in (("b", 10), ("a", 9))} | {"c": lease(11)}
    known = SimpleNamespace(
        compiler=SimpleNamespace(
            peers={
                ("b", Family.V4): None,
                ("b", Family.V6): None,
                ("a", Family.V4): None,
                ("gone", Family.V4): 0,
            },
            refusals={("c", Family.V4): Refusal("it overlaps")},
        )
    )
    probed = {
        ("b", Family.V4): PeerProbe(True, 0.00125, 90.0, 90.0),
        ("a", Family.V4): PeerProbe(False, None, 98.0, 40.0),
    }
    found = peers(known, leases, probed, 100.0)  # type: ignore[arg-type]
    assert [(item.lease, item.family, item.subnet) for item in found] == [
        ("a", "ipv4", "10.5.9.0/24"),
        ("b", "ipv4", "10.5.10.0/24"),
        ("c", "ipv4", "10.5.11.0/24"),
        ("b", "ipv6", "fd00:5:0:10::/64"),
    ]
    assert [(item.reachable, item.latency_ms, item.asked_s, item.answered_s) for item in found] == [
        (False, None, 2.0, 60.0),
        (True, 1.25, 10.0, 10.0),
        (None, None, None, None),
        (None, None, None, None),
    ]
    assert [item.refused for item in found] == ["", "", "it overlaps", ""]
    assert {item.public for item in found} == {"192.0.2.9", "192.0.2.10", "192.0.2.11"}


# --- addresses -------------------------------------------------------------------------------------------------------


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    made = Node(tmp_path)
    yield made
    made.pools.close()
    made.endpoints.close()


def attached(node: Node) -> Attached:
    return Attached(node.endpoints, node.collector, None, lambda: None, node.remove)  # type: ignore[arg-type]


def address(endpoint) -> str:
    return str(endpoint.addresses[0].ip)


def test_an_address_whose_container_is_gone_is_released(node: Node) -> None:
    gone, there = node.add("gone", alive=False), node.add("there")
    done = release(attached(node), address(gone), "", force=False)
    assert done.container_id == "gone"
    assert done.how.startswith("leaked-endpoint: ")
    assert [row.container_id for row in node.collector.rows()] == [there.container_id]


def test_a_running_pod_keeps_its_address_unless_forced(node: Node) -> None:
    there = node.add("there")
    with pytest.raises(RefusedError, match="container there runs and has it; --force takes its network away"):
        release(attached(node), address(there), "", force=False)
    assert node.removed == []
    assert "has lost its network" in release(attached(node), address(there), "", force=True).how
    assert node.removed == ["there"]
    assert node.collector.rows() == ()


def test_a_reservation_nobody_has_a_record_of_is_released_once_it_is_known_to_be_unused(node: Node) -> None:
    lost = node.add("lost", alive=False)
    node.endpoints.remove(lost.owner)
    kinds = {item.kind for item in node.collector.audit()}
    assert kinds == {"leaked-reservation"}
    release(attached(node), address(lost), "", force=False)
    assert node.collector.rows() == ()


def test_one_that_is_being_worked_on_is_not_released_even_by_force(node: Node) -> None:
    busy = node.add("busy", alive=False)
    node.endpoints.remove(busy.owner)
    node.busy.add(busy.owner)
    with pytest.raises(RefusedError, match="is being attached or removed right now"):
        release(attached(node), address(busy), "", force=True)
    assert len(node.collector.rows()) == 1


def test_which_network_has_to_be_said_when_several_have_the_address(node: Node) -> None:
    first, second = node.add("one", alive=False), node.add("two", network="other", alive=False)
    assert address(first) == address(second)
    with pytest.raises(RefusedError, match="in networks net, other: say which"):
        release(attached(node), address(first), "", force=False)
    assert release(attached(node), address(first), "other", force=False).container_id == "two"


def test_an_address_nobody_has_cannot_be_released(node: Node) -> None:
    for asked in ("10.1.2.99", ""):
        with pytest.raises(RefusedError, match="is not reserved"):
            release(attached(node), asked, "", force=True)


def test_routes_answer_and_refuse(node: Node) -> None:
    there = node.add("there")
    routes = IpamRoutes("n1", lambda: attached(node)).routes()
    listed = asyncio.run(routes["/ipam"](""))
    assert [row.address for row in msgspec.json.decode(listed.body, type=IpamStatus).rows] == [address(there)]
    assert msgspec.json.decode(asyncio.run(routes["/ipam/check"]("")).body, type=IpamStatus).rows == ()
    refused = asyncio.run(routes["/ipam/release"](f"address={address(there)}"))
    assert (refused.status, "--force" in refused.body) == (400, True)
    assert asyncio.run(routes["/ipam/release"](f"address={address(there)}&force=1")).status == 200
    waiting = IpamRoutes("n1", lambda: None).routes()
    assert {asyncio.run(waiting[path]("")).status for path in waiting} == {503}
