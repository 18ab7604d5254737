"""The proxy component among fake data planes: what it waits for, in which order it works, what it says of itself."""

from __future__ import annotations

import asyncio
import json
import logging

import pytest

from pycni.model.family import Family
from pycni.model.kube import ENDPOINT_SLICE, NODE, SERVICE, ServicePortSpec
from pycni.model.podnet import PodNetwork
from tests.unit.proxy_fakes import FakePlane, World, refused
from tests.unit.service_world import ep, net, pack, piece, service

WEB, ENDS = service(), piece(ep("10.244.1.5"), ep("10.244.2.5", "n2"))


def addresses(kernel):
    return sorted({target.address for item in kernel.values() for target in item.pool.targets})


@pytest.mark.parametrize("missing", [SERVICE, ENDPOINT_SLICE, NODE])
def test_nothing_is_touched_before_everything_was_listed(missing):
    world = World()
    world.kernel["left"] = "from an earlier life"
    world.put(WEB, ENDS)

    async def scenario(world):
        for kind in {SERVICE, ENDPOINT_SLICE, NODE} - {missing}:
            world.store.mark_listed(kind)
        await world.until(lambda: missing in world.red)
        await asyncio.sleep(0.05)
        assert world.journal == []
        assert world.kernel == {"left": "from an earlier life"}
        assert world.red == f"no listing of {missing} yet"
        world.store.mark_listed(missing)
        await world.until(lambda: not world.red)
        assert addresses(world.kernel) == [pack("10.244.1.5"), pack("10.244.2.5")]
        assert "left" not in world.kernel

    world.run(scenario)


def test_a_restart_reads_back_and_changes_nothing_that_is_right():
    world = World()
    world.list_all([WEB], [ENDS])

    async def scenario(world):
        await world.until(lambda: not world.red)

    world.run(scenario)
    world.journal.clear()
    world.component = None
    world.run(scenario)
    assert world.journal == ["nftables: read"]
    assert world.planes["nftables"].open == 0
    assert world.kernel, "a stopped agent leaves its services"


def test_a_change_costs_no_reading_back_and_many_at_once_are_one_batch():
    world = World()
    world.list_all([WEB], [ENDS])

    async def scenario(world):
        await world.until(lambda: not world.red)
        world.journal.clear()
        world.put(piece(ep("10.244.1.6")))
        await world.until(lambda: addresses(world.kernel) == [pack("10.244.1.6")])
        assert world.journal == ["nftables: 1 rows"]
        world.journal.clear()
        for number in range(20):
            name = f"s{number}"
            world.put(service(name, cluster_ips=(f"10.96.1.{number}",)))
        await world.until(lambda: len(world.kernel) == 21)
        assert world.journal == ["nftables: 20 rows"]

    world.run(scenario)


def test_a_change_is_in_the_kernel_within_milliseconds():
    world = World()
    world.list_all([WEB], [ENDS])
    took = []

    async def scenario(world):
        await world.until(lambda: not world.red)
        for number in range(20):
            world.put(piece(ep(f"10.244.3.{number + 1}")))
            wanted = [pack(f"10.244.3.{number + 1}")]
            await world.until(lambda wanted=wanted: addresses(world.kernel) == wanted)
            await world.until(lambda: world.component.history.of("default/web").took_s >= 0)
            took.append(world.component.history.of("default/web").took_s)

    world.run(scenario)
    assert sorted(took)[10] < 1


def test_a_failure_is_red_with_its_reason_and_the_next_pass_looks_at_everything():
    world = World()
    world.list_all([WEB], [ENDS])

    async def scenario(world):
        await world.until(lambda: not world.red)
        world.journal.clear()
        world.planes["nftables"].fail = [refused(), refused()]
        seen = []
        world.health.subscribe(lambda: seen.append(world.red))
        world.put(piece(ep("10.244.1.7")))
        await world.until(lambda: addresses(world.kernel) == [pack("10.244.1.7")])
        await world.until(lambda: not world.red)
        assert seen[0] == "1 passes failed, the last: add rule x: ENOSPC (no room)"
        assert world.journal == ["nftables: read", "nftables: read", "nftables: 1 rows"]
        assert world.registry.expose().count("pycni_proxy_pass_failures_total 2\n") == 1

    world.run(scenario)


def test_load_balancers_hear_of_a_failure_only_when_it_lasts(monkeypatch):
    world = World()
    world.list_all([WEB], [ENDS])

    async def scenario(world):
        report = None
        await world.until(lambda: not world.red)
        report = world.component.report
        now = [0.0]
        report._clock = lambda: now[0]
        world.planes["nftables"].fail = [refused()] * 10000
        world.put(piece(ep("10.244.1.7")))
        await world.until(lambda: world.red)
        assert report.well()
        now[0] = 31.0
        assert not report.well()
        world.planes["nftables"].fail = []
        await world.until(report.well)

    world.run(scenario)


def test_somebody_elses_change_is_found_by_the_periodic_look(monkeypatch):
    world = World()
    world.list_all([WEB], [ENDS])

    async def scenario(world):
        await world.until(lambda: not world.red)
        world.kernel.clear()
        world.component._full_at = float("-inf")
        world.component._runner.poke()
        await world.until(lambda: world.kernel)
        await world.until(lambda: "\npycni_proxy_repairs_total 1\n" in world.registry.expose())

    world.run(scenario)


def test_what_another_data_plane_left_goes_after_the_new_one_serves():
    ipvs = FakePlane("ipvs", [])
    world = World(planes=[ipvs])
    ipvs.kernel["old"] = 1
    world.list_all([WEB], [ENDS])

    async def scenario(world):
        await world.until(lambda: not world.red and not ipvs.kernel)

    world.run(scenario)
    assert world.journal == ["nftables: read", "nftables: 1 rows", "ipvs: removed 1"]


def test_leftovers_that_cannot_be_removed_are_red_and_tried_again():
    ipvs = FakePlane("ipvs", [])
    ipvs.leftover_error = refused("stuck")
    world = World(planes=[ipvs])
    world.list_all([WEB], [ENDS])

    async def scenario(world):
        await world.until(lambda: "stuck" in world.red)
        ipvs.leftover_error = None
        world.put(piece(ep("10.244.1.6")))
        await world.until(lambda: not world.red)

    world.run(scenario)


FALLBACKS = [
    ("ipvs is there", "auto", {}, "ipvs", ""),
    ("no ipvs", "auto", {"ipvs": "no IPVS in this kernel"}, "nftables", "nftables is the data plane: ipvs cannot run here (no IPVS in this kernel)"),
    ("ipvs wanted", "ipvs", {"ipvs": "no IPVS in this kernel"}, "nftables", "proxy-mode ipvs cannot run here (no IPVS in this kernel): nftables serves in its place"),
    ("nftables wanted", "nftables", {"nftables": "no tables"}, "ipvs", "proxy-mode nftables cannot run here (no tables): ipvs serves in its place"),
    ("ebpf wanted", "ebpf", {"ebpf": "no bcc"}, "nftables", "proxy-mode ebpf cannot run here (no bcc): nftables serves in its place"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("mode", "lacks", "serves", "note"), [c[1:] for c in FALLBACKS], ids=[c[0] for c in FALLBACKS]
)
def test_a_missing_data_plane_is_said_once_and_another_serves(mode, lacks, serves, note, caplog):
    made = [FakePlane(name, [], lacks=lacks.get(name, "")) for name in ("ipvs", "ebpf", "nftables")]
    world = World(f"--proxy-mode={mode}", planes=made)
    world.list_all([WEB], [ENDS])

    async def scenario(world):
        await world.until(lambda: not world.red)
        world.node(labels={"topology.kubernetes.io/zone": "b"})
        await world.until(lambda: len(world.planes[serves].made) == 2)
        answer = await world.component.routes()["/services"]("")
        assert json.loads(answer.body)["notes"] == ([note] if note else [])

    with caplog.at_level(logging.WARNING):
        world.run(scenario)
    assert [name for name, plane in world.planes.items() if plane.kernel] == [serves]
    assert [r.getMessage() for r in caplog.records if "cannot run" in r.getMessage()] == (
        [f"services: {note}"] if note else []
    )


def test_no_data_plane_at_all_is_red_with_all_reasons():
    world = World(
        "--proxy-mode=auto",
        planes=[FakePlane("ipvs", [], lacks="no A"), FakePlane("nftables", [], lacks="no B")],
    )
    world.list_all([WEB], [ENDS])

    async def scenario(world):
        await world.until(lambda: "no A" in world.red)
        assert "ipvs: no A; nftables: no B" in world.red

    world.run(scenario)


def test_a_service_the_first_plane_refuses_is_served_by_the_next():
    ebpf = FakePlane("ebpf", [], refuses=lambda item: "not by me" if item.key.port == 81 else "")
    world = World("--proxy-mode=ebpf", planes=[ebpf])
    ports = (ServicePortSpec(port=80, name="a"), ServicePortSpec(port=81, name="b"))
    world.list_all([service(ports=ports)], [])

    async def scenario(world):
        await world.until(lambda: not world.red)
        assert [key.port for key in ebpf.kernel] == [80]
        assert [key.port for key in world.kernel] == [81]
        answer = await world.component.routes()["/services"]("")
        [problem] = json.loads(answer.body)["services"][0]["problems"]
        assert "ebpf cannot: not by me; served by nftables" in problem

    world.run(scenario)


def test_other_facts_of_the_node_mean_new_planes_and_a_full_look():
    world = World()
    world.node()
    world.list_all([WEB], [ENDS])

    async def scenario(world):
        await world.until(lambda: not world.red)
        plane = world.planes["nftables"]
        world.journal.clear()
        world.node(labels={"topology.kubernetes.io/zone": "z9"})
        await world.until(lambda: len(plane.made) == 2)
        await world.until(lambda: world.journal)
        assert plane.made[-1].zone == "z9"
        assert world.journal == ["nftables: read"]
        assert plane.open == 1

    world.run(scenario)


def test_a_node_object_that_changes_nothing_here_costs_nothing():
    world = World()
    world.node()
    world.list_all([WEB], [ENDS])

    async def scenario(world):
        await world.until(lambda: not world.red)
        world.journal.clear()
        world.node(labels={"x": "y"})
        await asyncio.sleep(0.1)
        assert world.journal == []

    world.run(scenario)


def test_the_pod_network_of_the_same_agent_is_waited_for_and_kept():
    known = []
    world = World(podnet=lambda: known[-1] if known else None)
    settings = world.settings
    world.settings = type(settings)(
        **{name: getattr(settings, name) for name in settings.__struct_fields__} | {"cluster_cidr": ()}
    )
    world.list_all([WEB], [ENDS])

    async def scenario(world):
        await world.until(lambda: "pod network" in world.red)
        assert world.journal == []
        nets = (net("10.244.0.0/16"), net("fd00:244::/32"))
        known.append(PodNetwork(subnets=(), networks=nets, mtu=1400))
        await world.until(lambda: not world.red)
        [facts] = world.planes["nftables"].made
        assert facts.cluster_networks == nets
        assert facts.families == (Family.V4, Family.V6)
        known.append(None)
        world.put(piece(ep("10.244.1.9")))
        await world.until(lambda: addresses(world.kernel) == [pack("10.244.1.9")])
        assert len(world.planes["nftables"].made) == 1

    world.run(scenario)


def test_drivers_get_their_periodic_work_after_every_change():
    world = World()
    world.list_all([WEB], [ENDS])

    async def scenario(world):
        plane = world.planes["nftables"]
        await world.until(lambda: not world.red and plane.polls >= 1)
        before = plane.polls
        world.put(piece(ep("10.244.1.8")))
        await world.until(lambda: plane.polls > before)

    world.run(scenario)


@pytest.mark.parametrize(
    ("query", "names"),
    [
        ("", ["db", "web"]),
        ("name=web", ["web"]),
        ("name=default%2Fdb", ["db"]),
        ("name=x%2Fdb", []),
        ("namespace=other", []),
        ("namespace=default", ["db", "web"]),
    ],
)
def test_the_control_socket_tells_services_as_the_kernel_has_them(query, names):
    world = World()
    world.list_all([WEB, service("db", cluster_ips=("10.96.0.11",))], [ENDS])

    async def scenario(world):
        await world.until(lambda: not world.red)
        answer = json.loads((await world.component.routes()["/services"](query)).body)
        assert [item["name"] for item in answer["services"]] == names
        assert (answer["node"], answer["data_planes"], answer["trouble"]) == ("n1", ["nftables"], "")
        web = next((item for item in answer["services"] if item["name"] == "web"), None)
        if web:
            [frontend] = web["frontends"]
            assert [(e["address"], e["weight"], e["active"], e["local"]) for e in frontend["endpoints"]] == [
                ("10.244.1.5", 1, 3, True),
                ("10.244.2.5", 1, 3, False),
            ]
            assert (frontend["connections"], frontend["bytes_in"], frontend["packets_in"]) == (7, 2048, -1)
            assert web["programmed"] > 0
            assert web["latency_s"] >= 0

    world.run(scenario)


def test_the_answer_before_anything_is_programmed_says_what_is_waited_for():
    world = World()

    async def scenario(world):
        await world.until(lambda: "listing" in world.red)
        answer = json.loads((await world.component.routes()["/services"]("")).body)
        assert answer["services"] == []
        assert answer["trouble"].startswith("no listing of Service")

    world.run(scenario)
