"""The doctor in namespaces of its own: what it reads, what it sets, and that all of it can be taken back."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from ipaddress import ip_interface
from pathlib import Path
from typing import Any

import pytest

from pycni.doctor.model import Change
from pycni.errors import ConfigError
from pycni.kernel import ethtool, hostfacts, netns, pathmtu, switchset, sysctl

ROOT = Path(__file__).parents[2]
Inside = Callable[[Callable[[], Any]], Any]
FORWARD = "net.ipv4.ip_forward"
LONG = "net.netfilter.nf_conntrack_tcp_timeout_established"


def run(space: str, *words: str) -> None:
    done = subprocess.run([*netns.exec_prefix(space), *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def doctor(space: str, *words: str) -> tuple[int, dict[str, Any]]:
    done = subprocess.run(
        [*netns.exec_prefix(space), sys.executable, "-P", "-m", "pycni.cli", "doctor", "--json", *words],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout)


def in_space(space: str, function: Callable[[], Any]) -> Any:
    fd = netns.open_netns(netns.path(space))
    try:
        return netns.run_in(fd, function)
    finally:
        os.close(fd)


@pytest.fixture
def inside(netns: str) -> Inside:
    return lambda function: in_space(netns, function)


@pytest.fixture
def spoiled(netns: str) -> Iterator[str]:
    """A namespace with a bad value of every kind a namespace has for itself."""
    run(
        netns,
        "sh",
        "-ec",
        """
        ip link set lo up
        ip link add eth0 type veth peer name far
        ip addr add 192.0.2.1/24 dev eth0
        ip link set eth0 up; ip link set far up
        ip route add default via 192.0.2.254
        ip link add flannel.1 type vxlan id 1 dstport 8472 local 192.0.2.1 nolearning
        ip link set flannel.1 mtu 1500 up
        sysctl -qw net.ipv4.conf.eth0.rp_filter=1 net.core.somaxconn=100
        sysctl -qw net.ipv4.ip_local_port_range='1024 65000'
        sysctl -qw net.ipv4.conf.eth0.forwarding=0 net.ipv4.conf.far.forwarding=1
        iptables-legacy -t nat -N KUBE-SERVICES; nft add table ip nat
        nft add table inet firewalld
        nft 'add chain inet firewalld f { type filter hook forward priority 10; policy drop; }'
        """,
    )
    file = in_space(netns, switchset.place)
    try:
        yield netns
        assert not os.path.exists(file), "the record is left"
    finally:
        Path(file).unlink(missing_ok=True)


def switches(space: str) -> dict[str, str]:
    """All switches below net of a namespace that can be read, but counters."""
    text = subprocess.run(
        [*netns.exec_prefix(space), "sysctl", "-ae", "--pattern", r"^net\."],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    values = dict(line.split(" = ", 1) for line in text.splitlines() if " = " in line)
    moving = ("_count", "fs.", "stable_secret", "tcp_fastopen_key")
    return {name: value for name, value in values.items() if not name.endswith(moving)}


def test_what_fix_sets_undo_puts_back_to_the_last_switch(spoiled: str, tmp_path: Path) -> None:
    words = ("--net-dir", str(tmp_path))
    machine = {
        name: sysctl.get(name)
        for name in (FORWARD, LONG, "net.core.somaxconn", "net.ipv4.conf.all.rp_filter")
    }
    before = switches(spoiled)
    code, found = doctor(spoiled, *words)
    assert code == 1
    checks = {item["check"]: item for item in found["findings"]}
    levels = {
        "forwarding-off": "warning",
        "mtu-overlay": "error",
        "firewalld": "warning",
        "kube-proxy": "info",
        "iptables-mix": "warning",
    }
    assert {name: checks[name]["level"] for name in levels} == levels
    fixable = {item["check"] for item in found["findings"] if item["fixable"]}
    assert {
        "forwarding-off",
        "rp-filter-strict",
        "somaxconn-small",
        "ports-overlap",
        "conntrack-timeouts",
    } <= fixable
    assert switches(spoiled) == before, "looking changes nothing"

    code, found = doctor(spoiled, "--fix", *words)
    assert (code, found["trouble"]) == (1, [])
    assert {item["check"] for item in found["findings"]}.isdisjoint(fixable)
    during = switches(spoiled)
    assert (during[FORWARD], during["net.ipv4.conf.eth0.rp_filter"], during["net.core.somaxconn"]) == (
        "1",
        "2",
        "4096",
    )
    assert during["net.ipv4.conf.eth0.forwarding"] == "1", "the kernel sets it along with ip_forward"
    assert doctor(spoiled, "--fix", *words)[1]["fixed"] == [], "a second time there is nothing to set"

    code, done = doctor(spoiled, "--undo")
    assert (code, done["kept"], done["trouble"]) == (0, [], [])
    assert {item["name"] for item in done["undone"]} == {item["name"] for item in found["fixed"]}
    assert switches(spoiled) == before
    assert doctor(spoiled, "--undo") == (0, {"ok": True, "undone": [], "kept": [], "trouble": []})
    assert {name: sysctl.get(name) for name in machine} == machine, "the machine's own namespace is as it was"


def test_machine_wide_switches_are_never_set_from_a_namespace(inside: Inside) -> None:
    facts = inside(lambda: hostfacts.read(peers=()))
    assert facts.first is False
    assert facts.writable.isdisjoint({"net.netfilter.nf_conntrack_max", "fs.inotify.max_user_instances"})
    assert FORWARD in facts.writable
    assert inside(hostfacts.machine).keys().isdisjoint({"net.ipv4.neigh.default.gc_thresh1"})
    assert "net.ipv4.neigh.default.gc_thresh1" in hostfacts.machine()


def test_a_value_somebody_has_set_since_is_left(inside: Inside, tmp_path: Path) -> None:
    file = str(tmp_path / "record")
    somaxconn = "net.core.somaxconn"
    was = inside(lambda: sysctl.get(somaxconn))
    made = inside(
        lambda: switchset.apply(
            [Change(somaxconn, was, "5000"), Change(FORWARD, "0", "1"), Change(LONG, "", "77")], file
        )
    )
    assert [item.name for item in made.done] == [somaxconn, FORWARD, LONG]
    inside(lambda: sysctl.put(somaxconn, 6000))
    undone = inside(lambda: switchset.undo(file))
    assert undone.kept == (Change(somaxconn, "6000", was),)
    assert {item.name for item in undone.done} == {FORWARD, LONG}
    assert inside(lambda: sysctl.get(somaxconn)) == "6000"
    assert not os.path.exists(file)


def test_the_oldest_value_is_put_back_after_several_fixes(inside: Inside, tmp_path: Path) -> None:
    file = str(tmp_path / "record")
    was = inside(lambda: sysctl.get(LONG))
    for value in ("100", "200"):
        inside(lambda value=value: switchset.apply([Change(LONG, "", value)], file))
    assert inside(lambda: switchset.undo(file)).done == (Change(LONG, "200", was),)
    assert inside(lambda: sysctl.get(LONG)) == was


def test_what_cannot_be_set_is_told_and_stops_nothing(inside: Inside, tmp_path: Path) -> None:
    file = str(tmp_path / "record")
    bad = [Change("net.core.somaxconn", "", "many"), Change("net.no.such", "", "1"), Change(LONG, "", "100")]
    made = inside(lambda: switchset.apply(bad, file))
    assert [item.name for item in made.done] == [LONG]
    assert [text.split(":")[0] for text in made.trouble] == [
        "set sysctl to many net.core.somaxconn", "read sysctl net.no.such"
    ]  # fmt: skip
    assert len(inside(lambda: switchset.undo(file)).done) == 1


def test_a_fix_that_was_cut_off_can_be_taken_back(inside: Inside, tmp_path: Path, monkeypatch: Any) -> None:
    file, put = str(tmp_path / "record"), sysctl.put
    was = inside(lambda: sysctl.get(LONG))

    def killed(name: str, value: str | int) -> bool:
        put(name, value)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(sysctl, "put", killed)
        with pytest.raises(KeyboardInterrupt):
            inside(lambda: switchset.apply([Change(LONG, "", "100")], file))
    assert inside(lambda: sysctl.get(LONG)) == "100"
    assert inside(lambda: switchset.undo(file)).done == (Change(LONG, "100", was),)
    assert inside(lambda: sysctl.get(LONG)) == was


def test_a_record_nobody_can_read_is_named(inside: Inside, tmp_path: Path) -> None:
    file = tmp_path / "record"
    file.write_text("{")
    with pytest.raises(ConfigError, match=str(file)):
        inside(lambda: switchset.undo(str(file)))
    assert file.exists()


def test_records_of_namespaces_do_not_meet(netns_factory: Callable[[], str]) -> None:
    places = {in_space(netns_factory(), switchset.place) for _ in range(2)} | {switchset.place()}
    assert len(places) == 3


def test_pings_tell_which_sizes_pass(netns_factory: Callable[[], str]) -> None:
    """A switch between two nodes that takes less than they do: a bridge whose ports are smaller."""
    one, two, between = (netns_factory() for _ in range(3))
    nets = ("192.0.2.{}/24", "2001:db8::{}/64")
    run(between, "sh", "-ec", "ip link add br0 type bridge; ip link set br0 up")
    for at, space in enumerate((one, two), 1):
        link = f"ip link add p{at} mtu 1400 type veth peer name eth0 netns {space}"
        run(between, "sh", "-ec", f"{link}; ip link set p{at} master br0 up")
        addresses = "; ".join(f"ip addr add {net.format(at)} dev eth0 nodad" for net in nets)
        run(space, "sh", "-ec", f"ip link set eth0 mtu 1500 up; {addresses}")
    there, nobody = ([packed(net.format(n)) for net in nets] for n in (2, 9))

    def all_answer() -> bool:
        return all(in_space(one, lambda: pathmtu.answered(there, (pathmtu.SMALL,), 0.2)).values())

    # Ports forward once their carrier is seen, which the kernel does when it has time.
    assert any(all_answer() for _ in range(100))
    answers = in_space(one, lambda: pathmtu.answered([*there, *nobody], (pathmtu.SMALL, 1400, 1401, 1500)))
    assert answers == {
        **dict.fromkeys(there, frozenset((pathmtu.SMALL, 1400))),
        **dict.fromkeys(nobody, frozenset()),
    }


def packed(text: str) -> bytes:
    return ip_interface(text).ip.packed


def test_offloads_and_drivers_are_read_as_ethtool_shows_them(netns: str, inside: Inside) -> None:
    run(netns, "ip", "link", "add", "v0", "type", "veth", "peer", "name", "v1")
    run(netns, "ethtool", "-K", "v0", "gro", "on", "tso", "off")
    found = inside(lambda: ethtool.features("v0", ("rx-gro", "tx-tcp-segmentation", "rx-lro", "nonsense")))
    assert found == {"rx-gro": True, "tx-tcp-segmentation": False}
    assert inside(lambda: ethtool.driver("v0")) == "veth"
    assert inside(lambda: ethtool.driver("lo")) == ""


def test_the_table_is_for_people(spoiled: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [*netns.exec_prefix(spoiled), sys.executable, "-P", "-m", "pycni.cli", "doctor", "--net-dir", str(tmp_path)],
        capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stdout.splitlines()[0].split() == ["LEVEL", "CHECK", "WHAT"]
    assert "fix*    sysctl -w net.ipv4.ip_forward=1" in done.stdout
    assert "\033" not in done.stdout
