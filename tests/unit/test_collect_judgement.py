"""Who is taken for gone: the judgement on endpoints and reservations, and two misses before anything is removed."""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import ip_address, ip_interface

import msgspec
import pytest

from pycni.ipam.audit import audit, rows
from pycni.ipam.collect import (
    Cached,
    Held,
    Judged,
    Miss,
    Subject,
    Sweep,
    Verdict,
    View,
    invalid,
    judge_endpoint,
    judge_reservation,
    needs_depth,
    newest_by_inode,
    sweep,
    unclaimed,
)
from pycni.model.endpoint import Endpoint, Owner

ALIVE, GONE, UNKNOWN = Verdict.ALIVE, Verdict.GONE, Verdict.UNKNOWN
NOW_BOOT, OLD_BOOT = "boot-now", "boot-before"
PATH = "/run/netns/cni-1"
DIR = "/var/lib/cni/networks"


def endpoint(container: str = "abc", **fields: object) -> Endpoint:
    base = {
        "network": "net",
        "container_id": container,
        "ifname": "eth0",
        "state": "ready",
        "netns": PATH,
        "netns_inode": 100,
        "boot_id": NOW_BOOT,
        "host_ifname": "veth1",
        "addresses": (ip_interface("10.1.2.3/24"),),
        "data_dir": DIR,
        "created": 50.0,
    }
    return Endpoint(**(base | fields))  # type: ignore[arg-type]


def held(address: str = "10.1.2.3", container: str = "abc", ifname: str = "eth0") -> Held:
    return Held(DIR, ip_address(address), Owner("net", container, ifname))


def view(**fields: object) -> View:
    """A view of a node on which nothing lives, everything visible."""
    base = {"boot_id": NOW_BOOT, "complete": True, "cache_readable": True}
    return View(**(base | fields))  # type: ignore[arg-type]


ADDRESS = frozenset({ip_address("10.1.2.3")})

ENDPOINTS = [
    # this boot
    pytest.param({}, {}, GONE, id="nothing of it is there"),
    pytest.param({}, {"links": {"veth1"}}, ALIVE, id="link alone"),
    pytest.param({}, {"links": {"veth1"}, "complete": False}, ALIVE, id="link alone, from a blind container"),
    pytest.param(
        {}, {"complete": False}, GONE, id="no link, from a blind container: the kernel took it with its peer"
    ),
    pytest.param({"host_ifname": ""}, {"complete": False}, UNKNOWN, id="no link recorded, blind"),
    pytest.param({}, {"paths": {PATH: 100}}, ALIVE, id="path leads to its namespace, link deleted by hand"),
    pytest.param({}, {"paths": {PATH: 101}}, GONE, id="path leads to another namespace"),
    pytest.param({}, {"inodes": {100}, "addresses": ADDRESS}, ALIVE, id="a process holds its namespace"),
    pytest.param({}, {"inodes": {100}, "complete": False}, ALIVE, id="inode seen, addresses not"),
    pytest.param({}, {"inodes": {100}}, GONE, id="the number was given to a namespace without its address"),
    pytest.param({"addresses": ()}, {"inodes": {100}}, ALIVE, id="layer 2 only: the number has to do"),
    pytest.param({"netns_inode": 0}, {"paths": {PATH: 7}}, ALIVE, id="inode never recorded, path there"),
    pytest.param({"netns_inode": 0}, {}, GONE, id="inode never recorded, path gone"),
    pytest.param(
        {"state": "pending"}, {"paths": {PATH: 100}}, ALIVE, id="ADD interrupted, pod there: DEL will come"
    ),
    pytest.param({"state": "pending"}, {}, GONE, id="ADD interrupted, pod gone"),
    pytest.param({"state": "dying"}, {"paths": {PATH: 100}, "links": {"veth1"}}, GONE, id="DEL interrupted"),
    # another boot
    pytest.param({"boot_id": OLD_BOOT}, {}, GONE, id="reboot"),
    pytest.param({"boot_id": OLD_BOOT}, {"complete": False}, GONE, id="reboot, blind"),
    pytest.param(
        {"boot_id": OLD_BOOT}, {"inodes": {100}, "addresses": ADDRESS}, GONE, id="reboot: a new pod's number"
    ),
    pytest.param(
        {"boot_id": OLD_BOOT}, {"paths": {PATH: 101}}, GONE, id="reboot: another namespace at the path"
    ),
    pytest.param(
        {"boot_id": OLD_BOOT}, {"paths": {PATH: 100}}, ALIVE, id="other boot id, yet its namespace is there"
    ),
    pytest.param(
        {"boot_id": OLD_BOOT}, {"links": {"veth1"}}, ALIVE, id="other boot id, yet its link is there"
    ),
    pytest.param(
        {"boot_id": OLD_BOOT, "netns_inode": 0}, {"paths": {PATH: 7}}, GONE, id="reboot: path without inode"
    ),
    pytest.param(
        {"boot_id": ""}, {"paths": {PATH: 100}}, ALIVE, id="boot id never recorded, namespace there"
    ),
]


def _view(fields: Mapping[str, object]) -> View:
    return view(
        **{key: frozenset(value) if isinstance(value, set) else value for key, value in fields.items()}
    )


@pytest.mark.parametrize(("of", "seen", "expected"), ENDPOINTS)
def test_an_endpoint_is_judged(
    of: Mapping[str, object], seen: Mapping[str, object], expected: Verdict
) -> None:
    judged = judge_endpoint(endpoint(**of), _view(seen))
    assert judged.verdict is expected, judged.why
    assert judged.why


def test_a_number_recorded_later_by_another_container_is_no_sign_of_the_first() -> None:
    first, later = endpoint("first"), endpoint("later", created=60.0, host_ifname="veth2")
    second_network = endpoint("later", network="other", created=61.0)
    newest = newest_by_inode([first, later], NOW_BOOT)
    seen = view(inodes=frozenset({100}), addresses=ADDRESS)
    assert judge_endpoint(first, seen, newest) == Judged(GONE, "net:[100] is container later's namespace now")
    assert judge_endpoint(later, seen, newest).verdict is ALIVE
    assert judge_endpoint(later, seen, newest_by_inode([later, second_network], NOW_BOOT)).verdict is ALIVE
    of_old_boot = msgspec.structs.replace(later, boot_id=OLD_BOOT)
    assert newest_by_inode([first, of_old_boot], NOW_BOOT) == {100: first}


def cached(owner: Owner | None = None, **fields: object) -> dict[Owner, Cached]:
    owner = owner or Owner("net", "abc", "eth0")
    return {owner: Cached(owner=owner, **fields)}  # type: ignore[arg-type]


BARE = [
    pytest.param(held(), {"addresses": ADDRESS}, ALIVE, id="a namespace has the address"),
    pytest.param(
        held(), {"addresses": ADDRESS, "complete": False, "cache_readable": False}, ALIVE, id="so, half blind"
    ),
    pytest.param(held(), {}, GONE, id="no record, nobody has the address"),
    pytest.param(held(), {"complete": False}, UNKNOWN, id="no record, namespaces hidden"),
    pytest.param(held(), {"cache_readable": False}, UNKNOWN, id="records hidden"),
    pytest.param(
        held(), {"cached": cached(netns=PATH), "paths": {PATH: 5}}, ALIVE, id="record leads to a namespace"
    ),
    pytest.param(held(), {"cached": cached(netns=PATH)}, GONE, id="record leads nowhere"),
    pytest.param(
        held(), {"cached": cached(netns=PATH), "complete": False}, UNKNOWN, id="record leads nowhere we see"
    ),
    pytest.param(
        held(),
        {"cached": cached(netns=PATH, host_links=("veth9",)), "links": {"veth9"}},
        ALIVE,
        id="record's host link is there",
    ),
    pytest.param(
        held(),
        {"cached": cached(netns=PATH, host_links=("veth9",)), "complete": False},
        GONE,
        id="record's namespace and link are gone, blind",
    ),
    pytest.param(held(), {"cached": cached()}, UNKNOWN, id="old or spoilt record"),
    pytest.param(
        held(),
        {"cached": cached(Owner("net", "abc", "net1"), netns=PATH), "paths": {PATH: 5}},
        GONE,
        id="another interface's record is not its",
    ),
    pytest.param(held(container="", ifname=""), {}, GONE, id="torn, nobody has the address"),
    pytest.param(held(container="", ifname=""), {"complete": False}, UNKNOWN, id="torn, blind"),
    pytest.param(
        held(container="", ifname=""), {"addresses": ADDRESS}, ALIVE, id="torn, somebody has the address"
    ),
    pytest.param(
        held(container="", ifname=""),
        {"cached": cached(netns=PATH, addresses=(ip_address("10.1.2.3"),)), "paths": {PATH: 5}},
        ALIVE,
        id="torn, a record tells whose it is",
    ),
    pytest.param(
        held(ifname=""),
        {"cached": cached(netns=PATH, addresses=(ip_address("10.1.2.3"),)), "paths": {PATH: 5}},
        ALIVE,
        id="no interface in the file: any record of the container with the address",
    ),
]


@pytest.mark.parametrize(("which", "seen", "expected"), BARE)
def test_a_reservation_without_endpoint_is_judged(
    which: Held, seen: Mapping[str, object], expected: Verdict
) -> None:
    judged = judge_reservation(which, _view(seen))
    assert judged.verdict is expected, judged.why


def test_endpoints_answer_for_reservations_by_owner_and_by_address() -> None:
    mine, torn_but_mine = held(), held(container="", ifname="")
    leftover, strange = held("10.1.2.9"), held("10.1.2.8", "stranger")
    assert unclaimed([mine, torn_but_mine, leftover, strange], [endpoint()]) == (strange,)


class Sweeps:
    """Sweeps one after another with the misses carried on."""

    def __init__(self) -> None:
        self.misses: Mapping[Subject, Miss] = {}

    def __call__(self, now: float, *endpoints: Endpoint, seen: View | None = None, **more: object) -> Sweep:
        reservations = more.get("reservations", ())
        done = sweep(
            reservations,  # type: ignore[arg-type]
            endpoints,
            seen or view(),
            busy=more.get("busy", ()),  # type: ignore[arg-type]
            misses=self.misses,
            now=now,
        )
        self.misses = done.misses
        return done


def test_an_endpoint_is_removed_at_its_second_miss_after_the_grace() -> None:
    run = Sweeps()
    assert run(0, endpoint()).endpoints == ()
    assert run(10, endpoint()).endpoints == (), "two misses, too close together"
    assert [gone.endpoint for gone in run(30, endpoint()).endpoints] == [endpoint()]


@pytest.mark.parametrize(
    ("between", "busy"),
    [
        pytest.param({"links": {"veth1"}}, (), id="seen alive"),
        pytest.param({}, (endpoint().owner,), id="being worked on"),
    ],
)
def test_a_sign_of_life_starts_the_count_anew(between: Mapping[str, object], busy: tuple[Owner, ...]) -> None:
    run = Sweeps()
    run(0, endpoint())
    assert run(60, endpoint(), seen=_view(between), busy=busy).endpoints == ()
    assert run(120, endpoint()).endpoints == ()
    assert len(run(180, endpoint()).endpoints) == 1


@pytest.mark.parametrize(
    "again",
    [
        pytest.param(endpoint(created=51.0), id="attached again"),
        pytest.param(endpoint(netns_inode=101), id="another namespace"),
        pytest.param(endpoint(boot_id="third"), id="another boot"),
        pytest.param(endpoint(state="dying"), id="another state"),
    ],
)
def test_two_misses_are_of_the_very_same_attachment(again: Endpoint) -> None:
    run = Sweeps()
    run(0, endpoint())
    assert run(60, again).endpoints == ()


def test_an_owner_being_worked_on_is_never_removed() -> None:
    run = Sweeps()
    for now in range(0, 600, 60):
        done = run(
            now,
            endpoint(),
            busy=[endpoint().owner, held(container="x").owner],
            reservations=[held(container="x")],
        )
        assert done[:3] == ((), (), ())


def test_reservations_wait_longer_than_endpoints() -> None:
    run, lonely = Sweeps(), held(container="x")
    for now in range(0, 300, 60):
        assert run(now, reservations=[lonely]).reservations == ()
    assert [gone.held for gone in run(300, reservations=[lonely]).reservations] == [lonely]


def test_a_reservation_of_a_removed_endpoint_is_left_to_the_removal() -> None:
    run = Sweeps()
    for now in (0, 400):
        done = run(now, endpoint(), reservations=[held()])
    assert len(done.endpoints) == 1
    assert done.reservations == ()


def test_after_a_reboot_nobody_is_spared_or_taken_by_number() -> None:
    """Numbers start over: the new pods have those of the old ones. Live pods stay, old ones go, each exactly once."""
    old = [
        endpoint(f"old{n}", boot_id=OLD_BOOT, netns_inode=100 + n, netns=f"/run/o{n}", host_ifname="")
        for n in range(3)
    ]
    new = [
        endpoint(f"new{n}", netns_inode=100 + n, netns=f"/run/n{n}", host_ifname="", created=90.0)
        for n in range(3)
    ]
    seen = view(
        paths={f"/run/n{n}": 100 + n for n in range(3)}, inodes=frozenset({100, 101, 102}), addresses=ADDRESS
    )
    run = Sweeps()
    assert run(0, *old, *new, seen=seen).endpoints == ()
    assert {gone.endpoint.container_id for gone in run(60, *old, *new, seen=seen).endpoints} == {
        "old0",
        "old1",
        "old2",
    }


def test_an_address_of_a_running_endpoint_without_file_is_reported_lost_at_the_second_look() -> None:
    run, seen = Sweeps(), view(links=frozenset({"veth1"}))
    assert run(0, endpoint(), seen=seen).lost == ()
    assert [(one.endpoint, str(one.address)) for one in run(60, endpoint(), seen=seen).lost] == [
        (endpoint(), "10.1.2.3")
    ]
    run = Sweeps()
    for now in (0, 60):
        assert run(now, endpoint(), seen=seen, reservations=[held()]).lost == ()
        assert run(now, endpoint(data_dir=""), seen=seen).lost == (), "another plugin's address"
        assert run(now, endpoint(state="pending"), seen=seen).lost == ()
        assert run(now, endpoint()).lost == (), "gone: to be removed, not reserved"


@pytest.mark.parametrize(
    ("endpoints", "reservations", "seen", "expected"),
    [
        pytest.param([endpoint()], [], {"links": {"veth1"}, "complete": False}, False, id="all linked"),
        pytest.param(
            [endpoint()], [], {"paths": {PATH: 100}, "complete": False}, False, id="all at their paths"
        ),
        pytest.param([endpoint()], [], {"complete": False}, True, id="one not found"),
        pytest.param([endpoint(state="dying")], [], {"complete": False}, False, id="dying is clear"),
        pytest.param([], [held()], {"complete": False}, True, id="a lonely reservation"),
        pytest.param(
            [],
            [held()],
            {"cached": cached(netns=PATH), "paths": {PATH: 5}, "complete": False},
            False,
            id="recorded",
        ),
    ],
)
def test_everything_is_looked_at_only_in_doubt(
    endpoints: list[Endpoint], reservations: list[Held], seen: Mapping[str, object], expected: bool
) -> None:
    assert needs_depth(reservations, endpoints, _view(seen)) is expected


def test_the_audit_names_every_irregularity() -> None:
    endpoints = [
        endpoint("live", host_ifname="vlive"),
        endpoint("twin", host_ifname="vtwin", addresses=(ip_interface("10.1.2.3/24"),)),
        endpoint("dead", host_ifname="vdead", addresses=(ip_interface("10.1.2.4/24"),)),
        endpoint("lost", host_ifname="vlost", addresses=(ip_interface("10.1.2.5/24"),)),
        endpoint("busy", host_ifname="vbusy", addresses=(ip_interface("10.1.2.6/24"),)),
    ]
    reservations = [
        held(container="live"),
        held("10.1.2.4", "dead"),
        held("10.1.2.8", "gone"),
        held("10.1.2.9", "old"),
    ]
    seen = _view({"links": {"vlive", "vtwin", "vlost"}, "cached": cached(Owner("net", "old", "eth0"))})
    found = audit(reservations, endpoints, seen, busy=[Owner("net", "busy", "eth0")])
    assert [(one.kind, one.container_id, one.address) for one in found] == [
        ("duplicate", "twin", "10.1.2.3"),
        ("leaked-endpoint", "dead", "10.1.2.4"),
        ("leaked-reservation", "gone", "10.1.2.8"),
        ("unverified-reservation", "old", "10.1.2.9"),
        ("unreserved", "lost", "10.1.2.5"),
    ]
    assert all(one.why for one in found)
    assert msgspec.json.encode(found)


def test_rows_show_every_reservation_with_its_pod_in_order() -> None:
    reservations = [held("10.1.2.10", "x"), held("10.1.2.9", "", ""), held("10.1.2.3")]
    shown = rows(reservations, [endpoint(pod_name="web", pod_namespace="shop")])
    assert [(row.address, row.state, row.pod_name) for row in shown] == [
        ("10.1.2.3", "ready", "web"),
        ("10.1.2.9", "torn", ""),
        ("10.1.2.10", "unrecorded", ""),
    ]


def test_gc_takes_what_the_runtime_no_longer_names_and_nothing_else() -> None:
    owners = [
        Owner("net", "kept", "eth0"),
        Owner("net", "kept", "net1"),
        Owner("net", "gone", "eth0"),
        Owner("net", "gone", "eth0"),
        Owner("net", "busy", "eth0"),
        Owner("net", "old", ""),
        Owner("net", "", ""),
        Owner("other", "gone", "eth0"),
    ]
    found = invalid("net", owners, [("kept", "eth0")], busy=[Owner("net", "busy", "eth0")])
    assert found == (Owner("net", "kept", "net1"), Owner("net", "gone", "eth0"))
