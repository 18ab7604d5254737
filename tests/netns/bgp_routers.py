"""FRR and GoBGP as routers of the fabric, each in a namespace, asked in their own words."""

from __future__ import annotations

import contextlib
import ipaddress
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from pycni.kernel import netns as namespaces
from tests.netns.bgp_nodes import Switch, execute

ROUTE = "203.0.113.0/24"
"""What every router announces."""
FRR = Path("/usr/lib/frr")


class Seen(NamedTuple):
    """A route as a router has it."""

    as_path: tuple[int, ...]
    communities: frozenset[str]
    next_hop: str
    stale: bool = False


class Fabric(Protocol):
    """One router."""

    number: int
    asn: int
    where: str

    def routes(self) -> dict[str, Seen]:
        """What it has from the node."""

    def up(self) -> bool:
        """Whether its session with the node is established."""


class Frr:
    """FRR's bgpd, alone: no route of it goes to a kernel."""

    def __init__(
        self, switch: Switch, number: int, folder: Path, node: int, asn: int, password: str = ""
    ) -> None:
        self.number, self.asn = number, asn
        self.where = switch.join(number)
        self._folder = folder / f"frr{number}"
        self._folder.mkdir(mode=0o755)
        self._node = f"192.0.2.{node}"
        secret = f"neighbor {self._node} password {password}" if password else ""
        (self._folder / "bgpd.conf").write_text(
            f"""
            router bgp {asn}
             bgp router-id 192.0.2.{number}
             no bgp ebgp-requires-policy
             no bgp network import-check
             bgp graceful-restart
             timers bgp 3 9
             neighbor {self._node} remote-as 64512
             neighbor {self._node} timers connect 1
             {secret}
             address-family ipv4 unicast
              network {ROUTE}
              neighbor {self._node} activate
             exit-address-family
             address-family ipv6 unicast
              neighbor {self._node} activate
             exit-address-family
            """
        )
        self.process = subprocess.Popen(
            [*namespaces.exec_prefix(self.where), FRR / "bgpd", "-f", self._folder / "bgpd.conf", "-Z", "-S",
             "-i", self._folder / "bgpd.pid", "--vty_socket", self._folder, "-P", "0", "--log", "stdout",
             "--log-level", "warnings"],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip

    def show(self, words: str) -> Any:
        """What it says, as JSON; {} while it says nothing."""
        with contextlib.suppress(json.JSONDecodeError):
            return json.loads(_vtysh(self.where, self._folder, "bgpd", f"show {words} json"))
        return {}

    def up(self) -> bool:
        """Its session is established."""
        found = self.show(f"bgp neighbors {self._node}").get(self._node, {})
        return found.get("bgpState") == "Established"

    def routes(self) -> dict[str, Seen]:
        """Of both families."""
        found = {}
        for family in ("ipv4", "ipv6"):
            for prefix in self.show(f"bgp {family} unicast").get("routes", {}):
                for path in self.show(f"bgp {family} unicast {prefix}").get("paths", ()):
                    if path.get("peer", {}).get("peerId") == self._node:
                        found[prefix] = _frr_path(path)
        return found


def _frr_path(path: dict[str, Any]) -> Seen:
    words = path.get("aspath", {}).get("string", "")
    hops = [hop["ip"] for hop in path.get("nexthops", ()) if hop.get("scope", "global") == "global"]
    return Seen(
        tuple(int(word) for word in words.split() if word.isdigit()),
        frozenset(path.get("community", {}).get("list", ())),
        hops[0] if hops else "",
        bool(path.get("stale")),
    )


class FrrOspf:
    """FRR's zebra, ospfd and ospf6d: a neighbour for OSPF of both families, with routes in its kernel."""

    def __init__(self, switch: Switch, number: int, password: str) -> None:
        self.where = switch.join(number)
        # These run as their own user, who has no way into the tests' folders.
        self._folder = Path(tempfile.mkdtemp(prefix=f"pyt{os.getpid()}-"))
        shutil.chown(self._folder, "frr", "frr")
        for words in ("203.0.113.1/24", "2001:db8:203::1/64"):
            execute(self.where, f"ip address add {words} dev lo")
        conf = {
            "zebra": "",
            "ospfd": f"""
                interface eth0
                 ip ospf hello-interval 1
                 ip ospf dead-interval 4
                 ip ospf authentication message-digest
                 ip ospf message-digest-key 1 md5 {password}
                router ospf
                 ospf router-id 192.0.2.{number}
                 network 192.0.2.0/24 area 0
                 network 203.0.113.0/24 area 0
                """,
            "ospf6d": f"""
                interface eth0
                 ipv6 ospf6 area 0
                 ipv6 ospf6 hello-interval 1
                 ipv6 ospf6 dead-interval 4
                interface lo
                 ipv6 ospf6 area 0
                router ospf6
                 ospf6 router-id 192.0.2.{number}
                """,
        }
        self.processes = [self._start(name, text) for name, text in conf.items()]

    def _start(self, name: str, text: str) -> subprocess.Popen[bytes]:
        file = self._folder / f"{name}.conf"
        file.write_text(text)
        return subprocess.Popen(
            [*namespaces.exec_prefix(self.where), FRR / name, "-f", file, "-i", self._folder / f"{name}.pid",
             "-z", self._folder / "zserv.api", "--vty_socket", self._folder, "-P", "0"],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip

    def neighbours(self) -> str:
        """What ospfd says of its neighbours."""
        return _vtysh(self.where, self._folder, "ospfd", "show ip ospf neighbor")

    def routes(self) -> set[str]:
        """Destinations OSPF brought into its kernel."""
        return {
            line.split()[0]
            for family in ("-4", "-6")
            for line in execute(self.where, f"ip {family} route show proto ospf").splitlines()
            if line and not line.startswith(("\t", " "))
        }

    def end(self) -> None:
        """Kill all of it."""
        for process in self.processes:
            process.kill()
            process.wait()
        shutil.rmtree(self._folder)


def _vtysh(where: str, folder: Path, daemon: str, words: str) -> str:
    done = subprocess.run(
        [*namespaces.exec_prefix(where), "vtysh", "--vty_socket", folder, "-d", daemon, "-c", words],
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout


class GoBgp:
    """GoBGP, which has no kernel either."""

    def __init__(
        self, switch: Switch, number: int, folder: Path, node: int, asn: int, password: str = ""
    ) -> None:
        self.number, self.asn = number, asn
        self.where = switch.join(number)
        self._node = f"192.0.2.{node}"
        secret = f'auth-password = "{password}"' if password else ""
        families = "".join(
            f"""
            [[neighbors.afi-safis]]
              [neighbors.afi-safis.config]
                afi-safi-name = "{name}-unicast"
              [neighbors.afi-safis.mp-graceful-restart.config]
                enabled = true
            """
            for name in ("ipv4", "ipv6")
        )
        conf = folder / f"gobgp{number}.toml"
        conf.write_text(
            f"""
            [global.config]
              as = {asn}
              router-id = "192.0.2.{number}"
            [[neighbors]]
              [neighbors.config]
                neighbor-address = "{self._node}"
                peer-as = 64512
                {secret}
              [neighbors.timers.config]
                connect-retry = 1
              [neighbors.graceful-restart.config]
                enabled = true
                restart-time = 5
              {families}
            """
        )
        self.process = subprocess.Popen(
            [
                *namespaces.exec_prefix(self.where),
                "gobgpd",
                "-f",
                conf,
                "--api-hosts",
                "127.0.0.1:50051",
                "-l",
                "error",
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        self._announced = False

    def ask(self, words: str) -> Any:
        """What it says, as JSON; None while it says nothing."""
        done = subprocess.run(
            [*namespaces.exec_prefix(self.where), "gobgp", *words.split(), "-j"],
            capture_output=True,
            text=True,
            check=False,
        )
        with contextlib.suppress(json.JSONDecodeError):
            return json.loads(done.stdout)
        return None

    def up(self) -> bool:
        """Its session is established; it announces its route then."""
        found = self.ask(f"neighbor {self._node}") or {}
        if found.get("state", {}).get("session_state") not in {6, "ESTABLISHED"}:
            return False
        if not self._announced:
            subprocess.run(
                [
                    *namespaces.exec_prefix(self.where),
                    "gobgp",
                    "global",
                    "rib",
                    "add",
                    ROUTE,
                    "origin",
                    "igp",
                ],
                check=True,
            )
            self._announced = True
        return True

    def routes(self) -> dict[str, Seen]:
        """Of both families."""
        found = {}
        for family in ("ipv4", "ipv6"):
            for prefix, paths in (self.ask(f"neighbor {self._node} adj-in -a {family}") or {}).items():
                found[prefix] = _gobgp_path(paths[0])
        return found


def _gobgp_path(path: dict[str, Any]) -> Seen:
    as_path: tuple[int, ...] = ()
    communities: frozenset[str] = frozenset()
    hop = ""
    for attribute in path["attrs"]:
        if attribute["type"] == 2:
            as_path = tuple(number for part in attribute["as_paths"] for number in part["asns"])
        elif attribute["type"] == 8:
            communities = frozenset(_community(number) for number in attribute["communities"])
        elif attribute["type"] in {3, 14}:
            hop = attribute["nexthop"]
    return Seen(as_path, communities, str(ipaddress.ip_address(hop)), bool(path.get("stale")))


def _community(number: int) -> str:
    return f"{number >> 16}:{number & 0xFFFF}"


@contextlib.contextmanager
def running(make: Callable[[], list[Any]]) -> Iterator[list[Any]]:
    """Routers, killed at the end."""
    made = make()
    try:
        yield made
    finally:
        for item in made:
            # The pid is that of the program itself: nsenter has become it.
            with contextlib.suppress(ProcessLookupError):
                os.kill(item.process.pid, 9)
            item.process.wait()
