"""A fabric of a few real nodes for tests of their life: namespaces on one bridge, etcd, real pycnid processes.

Node n has 192.0.2.n and 2001:db8::n on eth0 and one pod that was attached by the real CNI executable. etcd runs in
the fabric's own namespace, beside the bridge. Everything is gone after ``close``; only processes started here are
signalled.
"""

from __future__ import annotations

import base64
import contextlib
import itertools
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from ipaddress import ip_network
from pathlib import Path
from typing import Any, Self, TypeVar

import pytest

from pycni.kernel import netns
from pycni.lab import etcd
from pycni.lab.inside import http
from pycni.lab.traffic import Traffic, TrafficReport

ROOT = Path(__file__).resolve().parents[2]
PREFIX = "/coreos.com/network"
CNI_CONF = {
    "cniVersion": "1.1.0",
    "name": "net",
    "type": "pycni",
    "isGateway": True,
    "isDefaultGateway": True,
}
ETCD_HOST = {"4": "192.0.2.250", "6": "2001:db8::fa"}
CLUSTER = {"4": ("10.5.0.0/16", "10.5."), "6": ("fd00:5::/48", "fd00:5:")}
_NUMBERS = itertools.count()
T = TypeVar("T")
PATIENCE_S = 15.0


def sh(where: str, command: str, *, ok: bool = True) -> str:
    """Output of a shell command inside a namespace."""
    done = subprocess.run(
        [*netns.exec_prefix(where), "sh", "-c", command],
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )
    if ok and done.returncode:
        raise AssertionError(f"{command}: {done.stderr}{done.stdout}")
    return done.stdout


def until(check: Callable[[], T], what: object = "", seconds: float = 5.0) -> T:
    """Wait until ``check`` gives something true and return it; ``what`` (called if it can be) tells what is missing.

    ``seconds`` is what it should take on a calm machine; a busy one gets ``PATIENCE_S``, less than a routine resync.
    """
    limit = max(seconds, PATIENCE_S)
    end = time.monotonic() + limit
    while not (found := check()):
        if time.monotonic() > end:
            raise AssertionError(f"not within {limit} s: {what() if callable(what) else what}")
        time.sleep(0.005)
    return found


def took(check: Callable[[], object], what: object = "", seconds: float = 5.0) -> float:
    """Seconds until ``check`` gave something true."""
    start = time.monotonic()
    until(check, what, seconds)
    return time.monotonic() - start


class Node:
    """A namespace with eth0, an agent that is started as often as a test likes, and a pod."""

    def __init__(self, fabric: SmallFabric, number: int) -> None:
        self.fabric, self.number = fabric, number
        self.name = f"{fabric.prefix}n{number}"
        self.folder = fabric.folder / f"n{number}"
        self.folder.mkdir()
        self.log = self.folder / "agent.log"
        self.agent: subprocess.Popen[bytes] | None = None
        self.pod: dict[str, str] = {}
        """Family -> the pod's address."""
        self.pod_space = ""
        self.spaces: list[str] = []
        netns.create(self.name)
        self("ip link set lo up; sysctl -qw net.ipv6.conf.default.accept_dad=0")
        self.plug()

    def __call__(self, command: str, *, ok: bool = True) -> str:
        return sh(self.name, command, ok=ok)

    def plug(self, number: int | None = None) -> None:
        """Make eth0, as the node's or with another one's addresses."""
        port, there = f"p{self.number}", f"/run/netns/{self.name}"
        sh(self.fabric.switch, f"ip link del {port} 2>/dev/null", ok=False)
        sh(
            self.fabric.switch,
            f"ip link add {port} type veth peer name eth0 address 02:00:00:01:00:{self.number:02x} netns {there}"
            f" && ip link set {port} master br0 up",
        )
        for address in underlay(self.fabric.families, number or self.number):
            self(f"ip addr add {address} dev eth0" + (" nodad" if ":" in address else ""))
        self("ip link set eth0 up")

    def readdress(self, old: int, new: int) -> None:
        """Change the addresses of eth0."""
        for before, after in zip(
            underlay(self.fabric.families, old), underlay(self.fabric.families, new), strict=True
        ):
            nodad = " nodad" if ":" in after else ""
            self(f"ip addr del {before} dev eth0 && ip addr add {after} dev eth0{nodad}")

    # --- agent ----------------------------------------------------------------------------------------------

    def start(self, *flags: str) -> None:
        """Start the agent and return at once."""
        assert self.agent is None, "already running"
        words = {
            "etcd-endpoints": ",".join(self.fabric.endpoints),
            "iface": "eth0",
            "node-name": f"n{self.number}",
            "subnet-file": f"{self.folder}/subnet.env",
            "state-dir": f"{self.folder}/state",
            "cni-socket": f"{self.folder}/cni.sock",
            "ipam-data-dir": f"{self.folder}/ipam",
            "healthz-ip": "127.0.0.1",
            "healthz-port": "9999",
        }
        given = [f"--{name}={value}" for name, value in words.items()]
        with self.log.open("ab") as log:
            self.agent = subprocess.Popen(
                [
                    *netns.exec_prefix(self.name),
                    *[sys.executable, "-P", "-m", "pycni.agent.main", "run", "--ip-masq"],
                    *[*given, *self.fabric.flags, *flags],
                ],
                env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)},
                stdout=log,
                stderr=log,
            )

    def end(self, number: int = signal.SIGKILL) -> int:
        """Signal the agent and wait for its end; its exit code."""
        agent, self.agent = self.agent, None
        if agent is None:
            return 0
        if agent.poll() is None:
            agent.send_signal(number)
            agent.send_signal(signal.SIGCONT)
        return agent.wait(15)

    def health(self) -> str:
        """What /readyz says; "" when all is well."""
        try:
            status, body = http(self.name, "127.0.0.1", 9999, "/readyz")
        except OSError as error:
            return str(error)
        return "" if status == 200 else body.strip() or "not ready"

    def ready(self) -> bool:
        return not self.health()

    def metric(self, name: str) -> float:
        """The sum of a metric's samples."""
        lines = http(self.name, "127.0.0.1", 9999, "/metrics")[1].splitlines()
        return sum(float(line.split()[-1]) for line in lines if re.match(rf"{name}(\{{|\s)", line))

    def cpu(self) -> float:
        """Seconds of CPU the agent has used."""
        assert self.agent is not None
        fields = Path(f"/proc/{self.agent.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def wait_ready(self, seconds: float = 15.0) -> None:
        """Wait until the agent is ready; its log is in the failure."""

        def check() -> bool:
            assert self.agent is not None
            assert self.agent.poll() is None, self.said()[-3000:]
            return self.ready()

        until(check, lambda: f"{self.health()}\n{self.said()[-3000:]}", seconds)

    def said(self, since: int = 0) -> str:
        """The agent's log, of all its lives, from an offset."""
        return self.log.read_text()[since:] if self.log.exists() else ""

    # --- what is there --------------------------------------------------------------------------------------

    @property
    def subnets(self) -> list[str]:
        """This node's subnets, IPv4 first, as subnet.env says."""
        text = (self.folder / "subnet.env").read_text()
        found = re.findall(r"^FLANNEL(?:_IPV6)?_SUBNET=(\S+)$", text, re.MULTILINE)
        return [str(ip_network(value, strict=False)) for value in found]

    @property
    def key(self) -> str:
        """Name of this node's record."""
        return "subnets/" + record_name(self.subnets)

    def tables(self) -> list[str]:
        """Everything of ours as ip(8), bridge(8) show it, one sorted line per entry."""
        script = (
            "ip -4 route show proto 112; ip -6 route show proto 112\n"
            "for dev in flannel.1 flannel-v6.1 flannel.7; do\n"
            "ip -o link show dev $dev 2>/dev/null | grep -o 'flannel[^:]*:\\|mtu [0-9]*\\|[<,]UP[,>]\\|link/ether [^ ]*' | "
            "tr '\\n' ' ' | grep . || continue\n"
            "ip neigh show dev $dev nud permanent | sed s/^/$dev' neigh '/\n"
            "bridge fdb show dev $dev | sed s/^/$dev' fdb '/\n"
            "ip -o addr show dev $dev scope global | sed 's/^[0-9]*: //'\n"
            "echo; done"
        )
        return sorted(" ".join(line.split()) for line in self(script, ok=False).splitlines() if line)

    def has(self, *words: str) -> bool:
        """Whether each of the words is in the tables."""
        text = "\n".join(self.tables()) + "\n"
        return all(word in text for word in words)

    # --- pods -----------------------------------------------------------------------------------------------

    def cni(self, command: str, space: str, **conf: Any) -> dict[str, Any]:
        """Call the CNI executable for a namespace; its result."""
        done = subprocess.run(
            [*netns.exec_prefix(self.name), str(ROOT / "cni-bin" / "pycni")],
            input=json.dumps(CNI_CONF | conf).encode(),
            env={
                "PATH": os.environ["PATH"],
                "PYCNI_SOCKET": f"{self.folder}/cni.sock",
                "CNI_COMMAND": command,
                "CNI_CONTAINERID": space,
                "CNI_NETNS": netns.path(space),
                "CNI_IFNAME": "eth0",
                "CNI_PATH": "/usr/lib/cni",
            },
            capture_output=True,
            check=False,
            timeout=30,
        )
        assert done.returncode == 0, f"{command}: {done.stdout.decode()}{done.stderr.decode()}"
        found: dict[str, Any] = json.loads(done.stdout) if done.stdout.strip() else {}
        return found

    def new_space(self) -> str:
        """A namespace for a pod."""
        space = f"{self.name}pod{next(_NUMBERS)}"
        self.spaces.append(space)
        netns.create(space)
        sh(space, "ip link set lo up")
        return space

    def drop_space(self, space: str) -> None:
        """Remove a pod's namespace."""
        self.spaces.remove(space)
        netns.delete(space)

    def add_pod(self) -> None:
        """Attach this node's pod."""
        self.pod_space = self.new_space()
        ips = self.cni("ADD", self.pod_space)["ips"]
        found = [item["address"].partition("/")[0] for item in ips]
        self.pod = {"6" if ":" in address else "4": address for address in found}

    def drop_pod(self) -> None:
        """Detach and remove this node's pod."""
        self.cni("DEL", self.pod_space)
        self.drop_space(self.pod_space)
        self.pod, self.pod_space = {}, ""

    def reaches(self, other: Node, family: str = "", *, wait: float = 0.3) -> bool:
        """Whether this node's pod gets an answer from the other one's."""
        with Traffic(netns.path(self.pod_space), other.pod[family or self.fabric.families[0]]) as traffic:
            return traffic.wait_answered(1, wait)

    def close(self) -> None:
        self.end()
        for space in [*self.spaces]:
            self.drop_space(space)
        netns.delete(self.name)


def record_name(subnets: list[str]) -> str:
    """flannel's key of a node with these subnets."""
    parts = [subnet.replace("/", "-") for subnet in subnets]
    return "&".join(parts if "." in parts[0] else ["0.0.0.0-0", *parts])


def underlay(families: str, number: int) -> list[str]:
    """Underlay addresses of a node."""
    both = {"4": f"192.0.2.{number}/24", "6": f"2001:db8::{number:x}/64"}
    return [both[family] for family in families]


class Streams:
    """Several streams of pings at the same time."""

    def __init__(self, streams: list[Traffic]) -> None:
        self.all = streams
        self._exits = contextlib.ExitStack()

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as exits:
            for stream in self.all:
                exits.enter_context(stream)
            for stream in self.all:
                assert stream.wait_answered(3), "pods do not reach each other"
            self._exits = exits.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._exits.close()

    def reports(self) -> list[TrafficReport]:
        return [stream.report() for stream in self.all]

    def __str__(self) -> str:
        return "; ".join(
            f"{r.lost} of {r.sent} lost, longest gap {r.longest_gap * 1000:.0f} ms" for r in self.reports()
        )


class SmallFabric:
    """The bridge, etcd (``members`` of them), ``count`` nodes with ready agents and pods that reach each other."""

    def __init__(
        self,
        families: str = "4",
        kind: str = "vxlan",
        count: int = 2,
        *,
        members: int = 1,
        flags: tuple[str, ...] = (),
        **backend: Any,
    ) -> None:
        self.prefix = f"pyt{os.getpid()}s{next(_NUMBERS)}"
        self.families, self.kind, self.flags = families, kind, flags
        self.switch = f"{self.prefix}sw"
        self.nodes: list[Node] = []
        self.members: list[etcd.EtcdProcess] = []
        self._exits = contextlib.ExitStack()
        with contextlib.ExitStack() as exits:
            folder = "/dev/shm" if os.path.isdir("/dev/shm") else None
            self.folder = Path(exits.enter_context(tempfile.TemporaryDirectory(prefix="pyt", dir=folder)))
            exits.callback(netns.delete, self.switch)
            netns.create(self.switch)
            hosts = [f"{ETCD_HOST['4']}/24", f"{ETCD_HOST['6']}/64"]
            sh(
                self.switch,
                "sysctl -qw net.ipv6.conf.default.accept_dad=0; ip link set lo up; "
                "ip link add br0 type bridge; ip link set br0 up; "
                + "; ".join(f"ip addr add {host} dev br0" for host in hosts),
            )
            exits.callback(self._end_members)
            self._start_members(members)
            self.configure(**self._netconf(backend))
            exits.callback(self._close_nodes)
            for number in range(1, count + 1):
                self.nodes.append(Node(self, number))
            for node in self.nodes:
                node.start()
            self.settle()
            with ThreadPoolExecutor(2) as pool:
                list(pool.map(Node.add_pod, self.nodes))
            self._exits = exits.pop_all()

    def _netconf(self, backend: dict[str, Any]) -> dict[str, Any]:
        conf: dict[str, Any] = {"Backend": {"Type": self.kind, **backend}}
        if "4" in self.families:
            # What tests make up themselves lies behind: 10.5.100.0 and more.
            conf |= {"Network": CLUSTER["4"][0], "SubnetMin": "10.5.1.0", "SubnetMax": "10.5.90.0"}
        else:
            conf["EnableIPv4"] = False
        if "6" in self.families:
            conf |= {"EnableIPv6": True, "IPv6Network": CLUSTER["6"][0]}
            conf |= {"IPv6SubnetMin": "fd00:5:0:1::", "IPv6SubnetMax": "fd00:5:0:5a::"}
        return conf

    def close(self) -> None:
        """Remove everything."""
        self._exits.close()

    def _close_nodes(self) -> None:
        for node in self.nodes:
            node.close()

    def join(self, number: int, *flags: str) -> Node:
        """One more node, its agent starting."""
        node = Node(self, number)
        self.nodes.append(node)
        node.start(*flags)
        return node

    def leave(self, node: Node) -> None:
        """Switch a node off; its record stays."""
        self.nodes.remove(node)
        node.close()

    def missing(self) -> list[str]:
        """What keeps the fabric from being whole."""
        found = []
        for node in self.nodes:
            if node.agent is None:
                node.start()
            if reason := node.health():
                found.append(f"{node.name}: {reason}")
                continue
            tables = "\n".join(node.tables())
            for other in self.nodes:
                if other is not node and (other.folder / "subnet.env").exists():
                    found += [f"{node.name}: {net}" for net in other.subnets if f"{net} " not in tables]
        return found

    def settle(self, seconds: float = 15.0) -> None:
        """Have all agents running, ready and knowing each other."""

        def logs() -> str:
            return "\n".join([*self.missing(), *(node.said()[-1500:] for node in self.nodes)])

        until(lambda: not self.missing(), logs, seconds)

    def streams(self, one: Node, two: Node) -> Streams:
        """A ping every 5 ms from pod to pod, both ways, in every family."""
        return Streams(
            [
                Traffic(netns.path(here.pod_space), there.pod[family])
                for here, there in ((one, two), (two, one))
                for family in self.families
            ]
        )

    @contextlib.contextmanager
    def traffic(self) -> Iterator[Streams]:
        """Pings between the pods of the first two nodes; nothing may be lost."""
        streams = self.streams(*self.nodes[:2])
        with streams:
            yield streams
        assert [report.lost for report in streams.reports()] == [0] * len(streams.all), str(streams)

    # --- etcd -----------------------------------------------------------------------------------------------

    @property
    def endpoints(self) -> list[str]:
        return [member.endpoint for member in self.members]

    def _start_members(self, count: int) -> None:
        host = ETCD_HOST[self.families[0]]
        names = {f"m{n}": 2380 + n * 10 for n in range(count)}
        for n, (name, port) in enumerate(names.items()):
            options = etcd.EtcdOptions(
                data_dir=self.folder / f"etcd{n}",
                host=host,
                name=name,
                netns=netns.path(self.switch),
                client_port=2379 + n * 10,
                peer_port=port,
                members=names if count > 1 else {},
                extra=("--heartbeat-interval=20", "--election-timeout=200"),
            )
            self.members.append(etcd.start(options, wait=False))
        for member in self.members:
            etcd.wait_serving(member)

    def _end_members(self) -> None:
        for member in self.members:
            member.kill()

    def restart_etcd(self, *, empty: bool = False) -> None:
        """Start the only member again, on its data or on none."""
        (member,) = self.members
        if empty:
            subprocess.run(["rm", "-rf", str(member.options.data_dir)], check=True)
        self.members = [etcd.start(member.options)]

    def revive(self, index: int) -> None:
        """Start a member of a cluster again, on its data."""
        self.members[index] = etcd.start(self.members[index].options, wait=False)

    def call(self, action: str, *, member: int = -1, **fields: Any) -> dict[str, Any]:
        """A call of etcd's JSON gateway, at one member or any that is alive; repeated while nobody leads."""
        body = json.dumps(fields)
        deadline = time.monotonic() + 10
        while True:
            alive = [item for item in self.members if item.alive()] if member < 0 else [self.members[member]]
            options = alive[-1].options
            try:
                status, answer = http(self.switch, options.host, options.client_port, f"/v3/{action}", body)
            except OSError as error:
                status, answer = 503, str(error)
            if status == 200:
                break
            assert time.monotonic() < deadline, f"etcd {action} {fields}: {answer}"
            time.sleep(0.02)
        found: dict[str, Any] = json.loads(answer)
        return found

    def configure(self, **conf: Any) -> None:
        """Write the net-conf."""
        self.netconf = conf
        self.put("config", json.dumps(conf))

    def put(self, name: str, value: str | bytes, *, lease: int = 0) -> int:
        """Write a record below the prefix; the revision."""
        answer = self.call("kv/put", key=_64(f"{PREFIX}/{name}"), value=_64(value), lease=lease)
        return int(answer["header"]["revision"])

    def delete(self, name: str) -> None:
        """Delete a record below the prefix."""
        self.call("kv/deleterange", key=_64(f"{PREFIX}/{name}"))

    def get(self, name: str) -> dict[str, Any] | None:
        """A record's value, None without one."""
        found = self.get_raw(name)
        return None if found is None else json.loads(found)

    def get_raw(self, name: str) -> str | None:
        """A record's value as text, None without one."""
        found = self.call("kv/range", key=_64(f"{PREFIX}/{name}")).get("kvs", [])
        return base64.b64decode(found[0]["value"]).decode() if found else None

    def names(self) -> list[str]:
        """Names of all lease records."""
        start = f"{PREFIX}/subnets/"
        found = self.call("kv/range", key=_64(start), range_end=_64(start[:-1] + "0")).get("kvs", [])
        return sorted(base64.b64decode(item["key"]).decode().removeprefix(start) for item in found)


def ghost(fabric: SmallFabric, number: int, **changes: Any) -> tuple[str, dict[str, Any]]:
    """Key and value of the record of a node that does not exist."""
    value: dict[str, Any] = {"BackendType": fabric.kind}
    subnets = []
    if "4" in fabric.families:
        subnets.append(f"10.5.{number}.0/24")
        value["PublicIP"] = f"192.0.2.{number}"
        if fabric.kind == "vxlan":
            value["BackendData"] = {"VNI": 1, "VtepMAC": f"02:00:00:00:04:{number:02x}"}
    if "6" in fabric.families:
        subnets.append(f"fd00:5:0:{number:x}::/64")
        value["PublicIPv6"] = f"2001:db8::{number:x}"
        if fabric.kind == "vxlan":
            value["BackendV6Data"] = {"VNI": 1, "VtepMAC": f"02:00:00:00:06:{number:02x}"}
    return "subnets/" + record_name(subnets), value | changes


def udp(where: str, family: str) -> socket.socket:
    """A UDP socket of a namespace."""
    kind = socket.AF_INET6 if family == "6" else socket.AF_INET
    fd = netns.open_netns(netns.path(where))
    try:
        return netns.run_in(fd, lambda: socket.socket(kind, socket.SOCK_DGRAM))
    finally:
        os.close(fd)


def _64(text: str | bytes) -> str:
    return base64.b64encode(text.encode() if isinstance(text, str) else text).decode()


def fabrics(*params: str, **more: Any) -> Any:
    """A module's fixture ``shared``, once for each of the params, e.g. "46 vxlan"; without: tests name them."""

    def make(request: pytest.FixtureRequest) -> Iterator[SmallFabric]:
        families, kind = request.param.split()
        made = SmallFabric(families, kind, **more)
        yield made
        made.close()

    return pytest.fixture(scope="module", params=params or None, name="shared")(make)


@pytest.fixture
def fabric(shared: SmallFabric) -> SmallFabric:
    """The module's fabric, every agent running and knowing the others."""
    shared.settle()
    return shared
