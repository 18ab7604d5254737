"""FRR and GoBGP as routers of the fabric, each in a namespace, asked in their own words."""

from __future__ import annotations

import contextlib
import ipaddress
import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from pycni.kernel import netns as namespaces
from tests.netns.bgp_nodes import Switch

ROUTE = "203.0.113.0/24"
"""What every router announces."""
FRR = Path("/usr/lib/frr")


class Seen(NamedTuple):
    """A route as a router has it."""

    as_path: tuple[int, ...]
    communities: frozenset[str]
    next_hop: str
    stale: bool = False
    originator: str = ""
    clusters: tuple[str, ...] = ()
    large: frozenset[str] = frozenset()


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
    """FRR's bgpd; alone no route of it goes to a kernel."""

    def __init__(
        self,
        switch: Switch,
        number: int,
        _folder: Path,
        node: int | str | Sequence[int],
        asn: int,
        password: str = "",
        *,
        networks: Sequence[str] = (ROUTE,),
        each: str = "",
        kernel: Sequence[str] = (),
        hold: int = 9,
        more: str = "",
        where: str = "",
    ) -> None:
        """``where``: a namespace that is there already.

        ``each``: more lines for every node, of which ``{node}`` is the address, ``{family}`` those within a family.

        ``kernel``: daemons besides, zebra first; ``more``: lines within ``router bgp``.
        """
        self.number, self.asn = number, asn
        self.where = where or switch.join(number)
        # It runs as its own user, who has no way into the tests' folders.
        self._folder = Path(tempfile.mkdtemp(prefix=f"pyt{os.getpid()}-"))
        shutil.chown(self._folder, "frr", "frr")
        numbers = (node,) if isinstance(node, int | str) else node
        nodes = [item if isinstance(item, str) else f"192.0.2.{item}" for item in numbers]
        self._node = nodes[0]
        self._kernel = kernel
        sessions, families = (
            [],
            {
                family: [f"network {item}" for item in networks if (":" in item) is (family == "ipv6")]
                for family in ("ipv4", "ipv6")
            },
        )
        for address in nodes:
            sessions += [f"neighbor {address} remote-as 64512", f"neighbor {address} timers connect 1"]
            sessions += [f"neighbor {address} password {password}"] if password else []
            for line in filter(None, each.format(node=address).splitlines()):
                words = line.strip().removeprefix("family ")
                for where in families.values() if line.strip().startswith("family ") else [sessions]:
                    where.append(words)
            for lines in families.values():
                lines.append(f"neighbor {address} activate")
        (self._folder / "bgpd.conf").write_text(
            "\n".join(
                [
                    f"router bgp {asn}",
                    f"bgp router-id 192.0.2.{number}",
                    "no bgp ebgp-requires-policy",
                    "no bgp network import-check",
                    "bgp graceful-restart",
                    f"timers bgp {hold // 3} {hold}",
                    more,
                    *sessions,
                ]
                + [
                    line
                    for family, lines in families.items()
                    for line in (f"address-family {family} unicast", *lines, "exit-address-family")
                ]
            )
            + "\n"
        )
        self.others = []
        for name in kernel:
            self.others.append(self._start(name))
            # Who comes before zebra looks for it again after ten seconds only.
            while not (self._folder / "zserv.api").exists():
                assert self.others[0].poll() is None, "zebra has ended"
                time.sleep(0.02)
        self.process = self.begin()

    def begin(self) -> subprocess.Popen[bytes]:
        """Start bgpd."""
        self.process = self._start("bgpd", *(() if self._kernel else ("-Z",)))
        return self.process

    def _start(self, name: str, *words: str) -> subprocess.Popen[bytes]:
        conf = self._folder / f"{name}.conf"
        conf.touch()
        shutil.chown(conf, "frr", "frr")
        return subprocess.Popen(
            [*namespaces.exec_prefix(self.where), FRR / name, "-f", conf, *words,
             "-i", self._folder / f"{name}.pid", "-z", self._folder / "zserv.api",
             *(("--bfdctl", self._folder / "bfdd.sock") if name == "bfdd" else ()),
             "--vty_socket", self._folder, "-P", "0", "--log", "stdout", "--log-level", "warnings"],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip

    def clean(self) -> None:
        """Remove its files."""
        shutil.rmtree(self._folder)

    def show(self, words: str) -> Any:
        """What it says, as JSON; {} while it says nothing."""
        with contextlib.suppress(json.JSONDecodeError):
            return json.loads(vtysh(self.where, self._folder, "bgpd", f"show {words} json"))
        return {}

    def up(self, node: int | None = None) -> bool:
        """Its session is established."""
        address = self._node if node is None else f"192.0.2.{node}"
        found = self.show(f"bgp neighbors {address}").get(address, {})
        return found.get("bgpState") == "Established"

    def routes(self, node: int | None = None) -> dict[str, Seen]:
        """Of both families."""
        address = self._node if node is None else f"192.0.2.{node}"
        found = {}
        for family in ("ipv4", "ipv6"):
            for prefix in self.show(f"bgp {family} unicast").get("routes", {}):
                for path in self.show(f"bgp {family} unicast {prefix}").get("paths", ()):
                    if path.get("peer", {}).get("peerId") == address:
                        found[prefix] = _frr_path(path)
        return found

    def knows(self, prefix: str) -> bool:
        """Whether it has a route, from whomever."""
        family = "ipv6" if ":" in prefix else "ipv4"
        return prefix in self.show(f"bgp {family} unicast").get("routes", {})

    def bfd(self) -> str:
        """State of its BFD session with the node."""
        with contextlib.suppress(json.JSONDecodeError):
            for item in json.loads(vtysh(self.where, self._folder, "bfdd", "show bfd peers json")):
                if item.get("peer") == self._node:
                    return str(item.get("status", ""))
        return ""

    def count(self) -> int:
        """How many IPv4 routes it has from the node."""
        peers = self.show("bgp ipv4 unicast summary").get("peers", {})
        return int(peers.get(self._node, {}).get("pfxRcd", 0))


def _frr_path(path: dict[str, Any]) -> Seen:
    words = path.get("aspath", {}).get("string", "")
    hops = [hop["ip"] for hop in path.get("nexthops", ()) if hop.get("scope", "global") == "global"]
    return Seen(
        tuple(int(word) for word in words.split() if word.isdigit()),
        frozenset(path.get("community", {}).get("list", ())),
        hops[0] if hops else "",
        bool(path.get("stale")),
        path.get("originatorId", ""),
        tuple(path.get("clusterList", {}).get("list", ())),
        frozenset(path.get("largeCommunity", {}).get("list", ())),
    )


def vtysh(where: str, folder: Path, daemon: str, words: str) -> str:
    """What a daemon of FRR says."""
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
        self,
        switch: Switch,
        number: int,
        folder: Path,
        node: int | Sequence[int],
        asn: int,
        password: str = "",
        *,
        network: str = ROUTE,
        cluster: str = "",
        where: str = "",
    ) -> None:
        """``where``: a namespace that is there already.

        ``cluster``: the nodes are its route reflector's clients, in this cluster."""
        self.number, self.asn = number, asn
        self.where = where or switch.join(number)
        nodes = self._nodes = (node,) if isinstance(node, int) else tuple(node)
        self._node = f"192.0.2.{nodes[0]}"
        self._network = network
        secret = f'auth-password = "{password}"' if password else ""
        reflector = (
            f"""
              [neighbors.route-reflector.config]
                route-reflector-client = true
                route-reflector-cluster-id = "{cluster}"
            """
            if cluster
            else ""
        )
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
        sessions = "".join(
            f"""
            [[neighbors]]
              [neighbors.config]
                neighbor-address = "192.0.2.{item}"
                peer-as = 64512
                admin-down = true
                {secret}
              [neighbors.timers.config]
                connect-retry = 1
                idle-hold-time-after-reset = 1
              [neighbors.graceful-restart.config]
                enabled = true
                restart-time = 5
              {reflector}
              {families}
            """
            for item in nodes
        )
        self._conf = folder / f"gobgp{number}.toml"
        self._conf.write_text(
            f"""
            [global.config]
              as = {asn}
              router-id = "192.0.2.{number}"
            {sessions}
            """
        )
        self.process = self.begin()

    def begin(self, *words: str) -> subprocess.Popen[bytes]:
        """Start it; ``-r``: it says that it has been there before."""
        self.process = subprocess.Popen(
            [*namespaces.exec_prefix(self.where), "gobgpd", "-f", self._conf, "--api-hosts", "127.0.0.1:50051",
             "-l", "error", *words],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        # Sessions last: a router that restarts says after its first routes that these were all.
        self._do(f"global rib add {self._network} origin igp")
        for node in self._nodes:
            self._do(f"neighbor 192.0.2.{node} enable")
        return self.process

    def _do(self, words: str) -> None:
        """As soon as it takes commands."""
        command = [*namespaces.exec_prefix(self.where), "gobgp", *words.split()]
        while subprocess.run(command, capture_output=True, check=False).returncode:
            assert self.process.poll() is None, "GoBGP has ended"

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

    def up(self, node: int | None = None) -> bool:
        """Its session is established."""
        found = self.ask(f"neighbor {self._node if node is None else f'192.0.2.{node}'}") or {}
        return found.get("state", {}).get("session_state") in {6, "ESTABLISHED"}

    def routes(self, node: int | None = None) -> dict[str, Seen]:
        """Of both families."""
        address = self._node if node is None else f"192.0.2.{node}"
        found = {}
        for family in ("ipv4", "ipv6"):
            for prefix, paths in (self.ask(f"neighbor {address} adj-in -a {family}") or {}).items():
                found[prefix] = _gobgp_path(paths[0])
        return found

    def count(self) -> int:
        """How many IPv4 routes it has from the node."""
        families = (self.ask(f"neighbor {self._node}") or {}).get("afi_safis", ())
        return sum(
            int(item["state"].get("received", 0))
            for item in families
            if item["state"].get("family", {}).get("afi") == 1
        )


def _gobgp_path(path: dict[str, Any]) -> Seen:
    as_path: tuple[int, ...] = ()
    communities: frozenset[str] = frozenset()
    hop = originator = ""
    clusters: tuple[str, ...] = ()
    for attribute in path["attrs"]:
        if attribute["type"] == 2:
            as_path = tuple(number for part in attribute["as_paths"] for number in part["asns"])
        elif attribute["type"] == 8:
            communities = frozenset(_community(number) for number in attribute["communities"])
        elif attribute["type"] in {3, 14}:
            hop = attribute["nexthop"]
        elif attribute["type"] == 9:
            originator = attribute["value"]
        elif attribute["type"] == 10:
            clusters = tuple(attribute["value"])
    stale = bool(path.get("stale"))
    return Seen(as_path, communities, str(ipaddress.ip_address(hop)), stale, originator, clusters)


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
            for process in (item.process, *getattr(item, "others", ())):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process.pid, 9)
                process.wait()
            if isinstance(item, Frr):
                item.clean()
