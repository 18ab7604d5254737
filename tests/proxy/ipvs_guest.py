"""What IPVS does with real packets: run inside User-Mode Linux by ``test_ipvs.py``, answers in one line."""

from __future__ import annotations

import collections
import ipaddress
import random
import socket
import threading
import time
from typing import Any

from pycni.errors import KernelError
from pycni.kernel.ipset import Ipset
from pycni.kernel.ipvs import Ipvs
from pycni.model.family import Family
from pycni.model.kube import SCTP
from pycni.model.service import Verdict
from pycni.reconcile.ledger import Ledger
from pycni.wire import ipvs as wire
from pycni.wire.ipset import TYPES, Member, SetSpec, member_text
from pycni.wire.ipvs import DestKey, DestSpec, ServiceKey, ServiceSpec
from tests.proxy.ipvs_world import (
    NODE,
    OUT,
    PODS,
    PORT,
    TCP,
    UDP,
    Kind,
    Options,
    Proxy,
    Servers,
    ask,
    ask_udp,
    build,
    connect,
    frontend,
    inside,
    packed,
    pool,
    run,
    until,
    who,
)
from tests.proxy.uml_boot import answer

VIP, VIP6 = "10.96.0.1", "fd00:96::1"
EXTERNAL, EXTERNAL6 = "192.168.9.1", "2001:db8:9::1"
ALL = "a b c"
servers = Servers()
build(servers)


def cluster_ip() -> Any:
    """Both families: sources kept, outsiders and the node masqueraded, hairpin, same bridge, another node's pod."""
    proxy = Proxy()
    found: dict[str, Any] = {}
    for family, vip in ((4, VIP), (6, VIP6)):
        proxy.serve(
            frontend(vip, 80, pool("a", family=family)), frontend(vip, 81, pool("far", family=family))
        )
        found[str(family)] = {
            "pod on the same bridge": ask("b", vip, 80),
            "itself": ask("a", vip, 80),
            "outsider": ask("out", vip, 80),
            "the node": ask("node", vip, 80),
            "pod to another node": ask("b", vip, 81),
            "outsider to another node": ask("out", vip, 81),
            "other port": ask("b", vip, 82),
            "other port, the node": ask("node", vip, 82),
            "other port, outsider": ask("out", vip, 82),
            "no such address": ask("b", "10.96.9.9" if family == 4 else "fd00:96::99", 80, wait=0.7),
        }
    found["left"] = proxy.left()
    proxy.close()
    return found


def verdicts() -> Any:
    proxy = Proxy()
    proxy.serve(
        frontend(VIP, 80, pool("")),
        frontend(VIP, 81, pool("", empty=Verdict.DROP)),
        frontend(VIP, 53, pool(""), protocol=UDP),
        frontend("", 30080, pool(""), Kind.NODE_PORT, family=4),
        frontend(
            "",
            30081,
            pool("", empty=Verdict.DROP),
            Kind.NODE_PORT,
            inside=pool("a"),
            local_only=True,
            family=4,
        ),
        frontend(VIP6, 80, pool("")),
        frontend(VIP6, 81, pool("", empty=Verdict.DROP)),
        frontend("", 30080, pool(""), Kind.NODE_PORT, family=6),
    )
    found = {}
    for space in ("b", "out", "node"):
        found[space] = {
            "reject": ask(space, VIP, 80),
            "drop": ask(space, VIP, 81, wait=0.7),
            "reject udp": ask_udp(space, VIP, 53),
            "reject 6": ask(space, VIP6, 80),
            "drop 6": ask(space, VIP6, 81, wait=0.7),
            "node port": ask(space, NODE[4], 30080),
            "node port 6": ask(space, NODE[6], 30080),
            "node port local": who(ask(space, NODE[4], 30081, wait=0.7)),
        }
    proxy.serve()
    proxy.close()
    return found


def outside() -> Any:
    """Node ports, external and load balancer addresses: both policies, source ranges, the short cut from inside."""
    proxy = Proxy()
    found: dict[str, Any] = {}
    for family, external in ((4, EXTERNAL), (6, EXTERNAL6)):
        here, both = pool("a", family=family), pool("far", family=family)
        near = ipaddress.ip_network("192.168.0.0/24" if family == 4 else "2001:db8::/64")
        away = ipaddress.ip_network("172.16.0.0/12" if family == 4 else "2600::/16")
        proxy.serve(
            frontend("", 30080, here, Kind.NODE_PORT, family=family),
            frontend("", 30081, here, Kind.NODE_PORT, inside=both, local_only=True, family=family),
            frontend(external, 80, here, Kind.EXTERNAL_IP),
            frontend(external, 81, here, Kind.EXTERNAL_IP, inside=both, local_only=True),
            frontend(external, 82, here, Kind.LOAD_BALANCER, source_ranges=(near,)),
            frontend(external, 83, here, Kind.LOAD_BALANCER, source_ranges=(away,)),
            frontend(external, 84, here, Kind.LOAD_BALANCER, source_ranges=()),
            frontend("", 30053, here, Kind.NODE_PORT, family=family, protocol=UDP),
        )
        node = NODE[family]
        found[str(family)] = {
            space: [
                ask(space, node, 30080),
                ask(space, node, 30081),
                ask(space, external, 80),
                ask(space, external, 81),
                ask(space, external, 82, wait=0.7),
                ask(space, external, 83, wait=0.7),
                ask(space, external, 84, wait=0.7),
                ask_udp(space, node, 30053),
            ]
            for space in ("out", "b", "node")
        }
    servers.listen("node", "the node's own", 8099)
    found["a port of the node itself, at the node's address"] = who(ask("out", NODE[4], 8099))
    found["a port of the node itself, at a virtual address"] = ask("out", EXTERNAL6, 8099)
    proxy.serve()
    proxy.close()
    return found


def balancing() -> Any:
    proxy = Proxy()
    found: dict[str, Any] = {}

    def scheduled(name: str, pods: str = ALL, vip: str = VIP, **more) -> None:
        proxy.serve(
            frontend(
                vip, 80, pool(pods, family=6 if ":" in vip else 4), options=Options(scheduler=name, **more)
            )
        )

    for vip in (VIP, VIP6):
        scheduled("rr", vip=vip)
        found[f"rr {vip}"] = [who(ask("d", vip, 80)) for _ in range(12)]
    scheduled("lc")
    held = [connect("d", VIP, 80) for _ in range(9)]
    by_pod = collections.defaultdict(list)
    for sock, said in held:
        by_pod[who(said)].append(sock)
    found["lc held"] = sorted(len(socks) for socks in by_pod.values())
    for sock in by_pod["b"]:
        sock.close()
    key = ServiceKey(Family.V4, packed(VIP), 6, 80)
    table = Ipvs()
    until(lambda: any(d.active == 0 for d in table.dests(key)))
    # Closed connections count a 256th of an open one (ip_vs_lc.c): b is the least loaded for the next three.
    found["lc after b's were closed"] = [who(ask_and_hold(held, "d", VIP, 80)) for _ in range(3)]
    for sock, _ in held:
        sock.close()
    scheduled("sh")
    found["sh"] = {
        pod: sorted({who(ask(pod, VIP, 80)) for _ in range(6)}) for pod in ("a", "b", "c", "d", "out")
    }
    scheduled("dh")
    found["dh"] = sorted({who(ask(pod, VIP, 80)) for pod in ("a", "b", "c", "d", "out") for _ in range(2)})
    proxy.serve(frontend(VIP, 80, pool(ALL), options=Options(affinity_s=600)))
    found["affinity"] = {pod: sorted({who(ask(pod, VIP, 80)) for _ in range(6)}) for pod in ("c", "d", "out")}
    stuck = found["affinity"]["d"][0]
    proxy.serve(
        frontend(
            VIP, 80, pool(" ".join(p for p in ALL.split() if p != stuck)), options=Options(affinity_s=600)
        )
    )
    after = {who(ask("d", VIP, 80)) for _ in range(6)}
    found["affinity moves from a target that goes"] = [stuck not in after, len(after)]
    table.close()
    proxy.serve()
    proxy.close()
    return found


def ask_and_hold(held: list[Any], *where: Any) -> str:
    pair = connect(*where)
    held.append(pair)
    return pair[1]


def maglev() -> Any:
    """Many sources over four targets, before and after one of them goes."""
    proxy = Proxy()
    everybody = "a b c far"
    run("ip -n out addr add 192.168.0.100/24 dev eth0")
    sources = [f"192.168.0.{number}" for number in range(100, 220)]
    for source in sources[1:]:
        run(f"ip -n out addr add {source}/24 dev eth0")
    wanted = Options(scheduler="mh")
    ports = Options(scheduler="mh", sched_flags=("flag-2",))
    proxy.serve(frontend(VIP, 80, pool(everybody), options=wanted))
    before = {source: who(ask("out", VIP, 80, source=source)) for source in sources}
    again = {source: who(ask("out", VIP, 80, source=source)) for source in sources}
    proxy.serve(frontend(VIP, 80, pool("a b far"), options=wanted))
    after = {source: who(ask("out", VIP, 80, source=source)) for source in sources}
    until(lambda: proxy.driver.poll() is None or not proxy.driver._drains, 5)
    proxy.serve(frontend(VIP, 80, pool(everybody), options=ports))
    spread = {who(ask("out", VIP, 80, source=sources[0])) for _ in range(30)}
    proxy.serve()
    proxy.close()
    return {
        "stable": before == again,
        "before": collections.Counter(before.values()),
        "after": collections.Counter(after.values()),
        "moved": sum(before[source] != after[source] for source in sources),
        "moved though its target stayed": sum(
            before[source] != after[source] for source in sources if before[source] != "c"
        ),
        "flows": len(sources),
        "with ports": len(spread),
    }


def graceful() -> Any:
    proxy = Proxy(grace_s=300.0)
    key = ServiceKey(Family.V4, packed(VIP), 6, 80)
    table = Ipvs()

    def weights() -> dict[str, int]:
        names = {packed(f"10.244.1.{number}"): name for name, number in PODS.items()}
        return {names[dest.key.address]: dest.spec.weight for dest in table.dests(key)}

    found: dict[str, Any] = {}
    proxy.serve(frontend(VIP, 80, pool("a b")))
    held: list[Any] = []
    while not any(who(said) == "a" for _, said in held):
        ask_and_hold(held, "d", VIP, 80)
    kept = next(sock for sock, said in held if who(said) == "a")
    for sock, _ in held:
        if sock is not kept:
            sock.close()
    proxy.serve(frontend(VIP, 80, pool("b")))
    found["weights after removal"] = weights()
    found["what a full pass would change"] = proxy.left()
    found["new connections"] = sorted({who(ask("d", VIP, 80)) for _ in range(6)})
    kept.send(b"still there?")
    found["the open connection"] = kept.recv(100).decode()
    found["wait while draining"] = proxy.driver.poll()
    found["still draining"] = weights()
    proxy.serve(frontend(VIP, 80, pool("a b")))
    found["added back"] = weights()
    proxy.serve(frontend(VIP, 80, pool("b", draining="a")))
    found["terminating"] = weights()
    proxy.serve(frontend(VIP, 80, pool("b")))
    restarted = Proxy(serving=proxy.served, grace_s=0.2)
    found["after a restart"] = weights()
    found["nothing else to do"] = restarted.left()
    kept.send(b"and now?")
    found["the open connection after a restart"] = kept.recv(100).decode()
    time.sleep(0.3)
    restarted.driver.poll()
    found["after the grace period"] = weights()
    kept.close()
    # A last target that is draining only: old connections live on, new ones are refused.
    sock, _ = connect("d", VIP, 80)
    restarted.serve(frontend(VIP, 80, pool("", draining="b")))
    found["only draining: new"] = [ask("d", VIP, 80), ask("node", VIP, 80)]
    sock.send(b"and I?")
    found["only draining: old"] = sock.recv(100).decode()
    sock.close()
    # Without connections a removed target goes at the next look, whatever the grace period.
    restarted.serve()
    proxy2 = Proxy(grace_s=300.0)
    proxy2.serve(frontend("10.96.0.7", 80, pool("a b")))
    other = ServiceKey(Family.V4, packed("10.96.0.7"), 6, 80)
    proxy2.serve(frontend("10.96.0.7", 80, pool("b")))
    proxy2.driver.poll()
    found["idle target after a look"] = len(table.dests(other))
    # UDP targets go at once: clients that keep their port are sent on.
    proxy2.serve(frontend("10.96.0.8", 53, pool("a"), protocol=UDP))
    udp = inside("d", lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
    udp.settimeout(0.5)
    udp.connect(("10.96.0.8", 53))
    udp.send(b"?")
    first = who(udp.recv(100).decode())
    proxy2.serve(frontend("10.96.0.8", 53, pool("b"), protocol=UDP))
    found["udp"] = [first, repeated(udp)]
    udp.close()
    proxy2.serve()
    for plane in (proxy2, restarted, proxy):
        plane.close()
    table.close()
    return found


def repeated(sock: socket.socket) -> str:
    """Who answers, when datagrams may be lost."""
    for _ in range(8):
        sock.send(b"?")
        try:
            return who(sock.recv(100).decode())
        except TimeoutError:
            continue
    return "nobody"


def direct() -> Any:
    """Direct server return: the client's address reaches the pod, the answer comes from the virtual address."""
    proxy = Proxy()
    found: dict[str, Any] = {}
    for family, external in ((4, EXTERNAL), (6, EXTERNAL6)):
        wanted = Options(scheduler="rr", dsr="tunnel")
        both = pool("a b", family=family)
        proxy.serve(frontend(external, PORT, both, Kind.EXTERNAL_IP, options=wanted))
        said = [ask("out", external, PORT) for _ in range(4)]
        found[f"{family} outsider"] = sorted(said)

        def counted(external: str = external) -> list[Any]:
            """The kernel adds its counters up every two seconds."""
            [count] = [c for key, c in proxy.driver.counters().items() if key.address == packed(external)]
            return [count.connections, count.packets_in > 0]

        until(lambda: counted()[0])
        found[f"{family} counted"] = counted()
        found[f"{family} pod"] = sorted({ask("d", external, PORT) for _ in range(2)})
        found[f"{family} node"] = sorted({ask("node", external, PORT) for _ in range(2)})
        found[f"{family} left"] = proxy.left()
        kind = "ipip" if family == 4 else "ip6tnl"
        found[f"{family} tunnels"] = [
            run(f"ip -n {pod} -o link show type {kind}").count("pycni-dsr") for pod in "abc"
        ]
        sock, _ = connect("out", external, PORT)
        # TCP_MAXSEG of the client: what the server announced, less its timestamps.
        found[f"{family} mss"] = sock.getsockopt(socket.IPPROTO_TCP, 2)
        sock.close()
        proxy.serve()
        found[f"{family} gone"] = [run(f"ip -n {pod} -o link show").count("pycni-dsr") for pod in "ab"]
    found["rules left"] = "lookup 78" in run("ip rule; ip -6 rule")
    proxy.close()
    return found


def hammer() -> Any:
    """A client that connects all the time while the target is replaced again and again."""
    proxy = Proxy()
    proxy.serve(frontend(VIP, 80, pool("a b")))
    stop = threading.Event()
    said: collections.Counter[str] = collections.Counter()

    def client() -> None:
        while not stop.is_set():
            said[who(ask("d", VIP, 80))] += 1

    threads = [threading.Thread(target=client) for _ in range(2)]
    for thread in threads:
        thread.start()
    for number in range(100):
        proxy.serve(frontend(VIP, 80, pool(("a b", "b c", "c a")[number % 3])))
        proxy.driver.poll()
        time.sleep(0.03)
    stop.set()
    for thread in threads:
        thread.join()
    proxy.serve()
    proxy.close()
    return {
        "failures": sum(said[word] for word in ("refused", "silence", "error")),
        "served by": sorted(said),
        "n": said.total(),
    }


def laws() -> Any:
    """After random changes, the kernel's read-back is what was compiled; so it is from scratch."""
    rng = random.Random(7)
    proxy = Proxy()
    wrong: list[str] = []
    for step in range(12):
        proxy.serve(*_some(rng))
        if left := proxy.left():
            wrong.append(f"step {step}: {left}")
    fresh = Ledger(proxy.compiler.tables, proxy.compiler.shared)
    fresh.put(proxy.compiler.common())
    fresh.put(proxy.compiler.rows(proxy.served))
    same = fresh.tables == proxy.ledger.tables
    text = {
        line for line in proxy.compiler.text(proxy.ledger.tables) if line.startswith(("-A -", "-a -", "add "))
    }
    tools = set(run("ipvsadm -Sn; ipset save").splitlines())
    kept = (
        "create ",
        "add PYCNI-NODE-IP",
        "add PYCNI-LOCAL-IP",
        "add PYCNI-6-NODE-IP",
        "add PYCNI-6-LOCAL-IP",
    )
    tools = {line.strip() for line in tools if not line.startswith(kept)}
    # Real servers that are drained are there, but not wanted.
    extra = {line for line in tools - text if not line.endswith("-w 0")}
    proxy.serve()
    empty = run("ipvsadm -Sn; ip -o addr show dev pycni-ipvs0")
    proxy.driver.remove()
    proxy.close()
    return {
        "wrong": wrong,
        "from scratch": same,
        "compiled only": sorted(text - tools),
        "tools only": sorted(extra),
        "empty": empty,
    }


def codec() -> Any:
    """Everything the codecs can say, as the kernel's own tools print it; and what the tools made, as we read it."""
    v4, v6 = Family.V4, Family.V6
    services = {
        ServiceKey(v4, packed("10.96.3.1"), TCP, 80): ServiceSpec(
            "mh", wire.PERSISTENT | wire.SCHED1 | wire.SCHED2, 9
        ),
        ServiceKey(v4, packed("10.96.3.1"), UDP, 53): ServiceSpec("wrr", wire.ONE_PACKET),
        ServiceKey(v4, packed("10.96.3.1"), SCTP, 9): ServiceSpec("rr", wire.PERSISTENT, 100, 24),
        ServiceKey(v6, packed("fd00:96::3"), TCP, 443): ServiceSpec(
            "sh", wire.SCHED2 | wire.PERSISTENT, 300, 64
        ),
        ServiceKey(v4, fwmark=0x7FFFFFFF): ServiceSpec("wlc"),
        ServiceKey(v6, fwmark=5): ServiceSpec("fo"),
    }
    methods = [
        DestSpec(7),
        DestSpec(0, wire.ROUTE),
        DestSpec(3, wire.TUNNEL),
        DestSpec(1, wire.TUNNEL, tunnel=wire.TUN_GUE, tunnel_port=6080),
        DestSpec(1, wire.TUNNEL, tunnel=wire.TUN_GRE),
    ]
    dests = {
        (key, DestKey(packed(f"fd01::{n}" if key.family is v6 else f"10.1.0.{n}"), key.port or 80)): spec
        for key in services
        for n, spec in enumerate(methods, 1)
    }
    table, sets = Ipvs(), Ipset()
    failed = table.put_services(list(services.items()))
    failed += table.put_dests([(service, key, spec) for (service, key), spec in dests.items()])
    lines = [wire.service_line(*item) for item in services.items()]
    lines += [wire.dest_line(service, key, spec) for (service, key), spec in dests.items()]
    printed = [line.strip() for line in run("ipvsadm -Sn").splitlines()]
    read = {info.key: info.spec for info in table.services()}
    read_dests = {(key, info.key): info.spec for key in services for info in table.dests(key)}
    run("ipvsadm -C && printf '%s\n' " + " ".join(f"'{line}'" for line in lines) + " | ipvsadm -R")
    theirs = {info.key: info.spec for info in table.services()}
    their_dests = {(key, info.key): info.spec for key in services for info in table.dests(key)}
    limits = DestSpec(2, upper=50, lower=20)
    service, dest = next(iter(dests))
    table.change_dests([(service, dest, limits)])
    threshold = run("ipvsadm -Ln --thresholds -t 10.96.3.1:80").split("10.1.0.1:80")[1].split()[:2]
    unknown = table.put_services([(ServiceKey(v4, fwmark=9), ServiceSpec("nosuch"))])
    missing = table.del_services([ServiceKey(v4, fwmark=99)]) + table.del_dests(
        [(service, DestKey(b"1234", 1))]
    )
    table.set_timeouts(wire.Timeouts(901, 0, 302))
    timeouts = run("ipvsadm -L --timeout").split(":")[1].split()
    run("ipvsadm -C")
    made: dict[str, Any] = {}
    for family, one, net in ((v4, "10.0.0.1", "10.2.0.0"), (v6, "fd00::1", "fd02::")):
        a, b = packed(one), packed(net)
        members = [
            Member(a),
            Member(a, TCP, 80),
            Member(a, UDP, 80, b),
            Member(a, SCTP, 80, b, 16),
            Member(b, TCP, 80, b"", 16),
            Member(port=30000),
        ]
        for number, (kind, member) in enumerate(zip(TYPES, members, strict=True)):
            name = f"TEST{family.bits}-{number}"
            sets.create(name, SetSpec(kind, family, marks=True))
            sets.add(name, {member: 0x40000001}, marks=True)
            sets.add(name, {member: 0x4F00AB02}, marks=True)
            found = sets.read(name)
            saved = run(f"ipset save {name}").splitlines()[1].strip()
            made[f"{kind} {family.label}"] = [
                saved == f"add {name} {member_text(member, 0x4F00AB02)}" or saved,
                found is not None and found.members == {member: 0x4F00AB02},
            ]
            sets.delete(name, [member, member])
            sets.add(name, {member: 0}, marks=False)
            if number == 1:
                sets.create("TEST-SWAP", SetSpec(kind, family, marks=True))
                sets.swap(name, "TEST-SWAP")
                made[f"swap {family.label}"] = run("ipset save TEST-SWAP").splitlines()[1].strip()
                sets.destroy("TEST-SWAP")
            sets.destroy(name)
            sets.destroy(name)
    sets.create("TEST-MANY", SetSpec(TYPES[1], v4))
    many = {Member((10 << 24 | n).to_bytes(4, "big"), TCP, 80): 0 for n in range(3000)}
    sets.add("TEST-MANY", many)
    made["3000 members"] = sets.read("TEST-MANY").members == many
    made["other kind"] = kernel_words(lambda: sets.create("TEST-MANY", SetSpec(TYPES[0], v4)))
    sets.destroy("TEST-MANY")
    table.close()
    sets.close()
    return {
        "refused": [str(error) for error in failed],
        "printed": sorted(printed) == sorted(lines) or [sorted(printed), sorted(lines)],
        "read": read == services and read_dests == dests,
        "made by ipvsadm, read": theirs == services and their_dests == dests,
        "thresholds": threshold,
        "unknown scheduler": [str(error) for error in unknown],
        "missing ones": missing,
        "timeouts": timeouts,
        "sets": made,
    }


def kernel_words(action: Any) -> str:
    try:
        action()
    except KernelError as exc:
        return str(exc)
    return "no error"


def _some(rng: random.Random) -> list[Any]:
    """Frontends of all kinds with random pools."""
    found = []
    for family in (4, 6):
        for number in range(8):
            if rng.random() < 0.4:
                continue
            names = [name for name in ("a", "b", "c", "far") if rng.random() < 0.5]
            gone = [name for name in ("a", "b") if name not in names and rng.random() < 0.3]
            kind = list(Kind)[number % 4]
            local = kind is not Kind.CLUSTER_IP and rng.random() < 0.5
            here = pool(
                " ".join(n for n in names if not local or n != "far"),
                family=family,
                draining=" ".join(gone),
                empty=rng.choice(list(Verdict)),
            )
            address = {
                Kind.CLUSTER_IP: f"{VIP6 if family == 6 else VIP}{number}",
                Kind.NODE_PORT: "",
                Kind.EXTERNAL_IP: f"{EXTERNAL6 if family == 6 else EXTERNAL}{number}",
                Kind.LOAD_BALANCER: f"{EXTERNAL6 if family == 6 else EXTERNAL}{number}",
            }[kind]
            port = 30000 + number if kind is Kind.NODE_PORT else 80
            ranges = None
            if kind is Kind.LOAD_BALANCER and rng.random() < 0.7:
                texts = ("192.168.0.0/24", "0.0.0.0/0") if family == 4 else ("2001:db8::/64", "::/0")
                ranges = tuple(ipaddress.ip_network(text) for text in texts if rng.random() < 0.7)
            options = Options(
                scheduler=rng.choice(("", "rr", "lc", "sh", "mh", "wrr", "dh")),
                affinity_s=rng.choice((0, 0, 600)),
            )
            found.append(
                frontend(
                    address,
                    port,
                    here,
                    kind,
                    family=family,
                    protocol=rng.choice((TCP, UDP, SCTP)),
                    inside=pool(" ".join(names), family=family) if local else None,
                    local_only=local,
                    source_ranges=ranges,
                    options=options,
                )
            )
    return found


def ownership() -> Any:
    """A restart adopts what is ours; servers, sets and rules of others stay, also when everything of ours goes."""
    table = Ipvs()
    theirs = [
        ServiceKey(Family.V4, packed(a), 6, p, m) for a, p, m in (("10.96.0.1", 99, 0), (NODE[4], 70, 0))
    ]
    theirs.append(ServiceKey(Family.V4, fwmark=7))
    for key in theirs:
        table.put_services([(key, ServiceSpec("wlc"))])
        table.put_dests([(key, DestKey(packed("10.9.9.9"), 1), DestSpec(5))])
    run("ipset create OTHERS hash:ip && ipset add OTHERS 9.9.9.9")
    run("iptables-legacy -A INPUT -s 9.9.9.9 -j DROP")
    first = Proxy()
    serving = (
        frontend(VIP, 80, pool("a b")),
        frontend("", 30080, pool("a"), Kind.NODE_PORT, inside=pool("b"), local_only=True, family=4),
        frontend(EXTERNAL, 80, pool("a", port=80), Kind.EXTERNAL_IP, options=Options(dsr="tunnel")),
        frontend(VIP6, 80, pool("a b", family=6)),
    )
    first.serve(*serving)
    first.close()
    again = Proxy(serving=serving)
    found: dict[str, Any] = {"changes after a restart": again.changed}
    run("ipvsadm -D -t 10.96.0.1:80; ip addr del 10.96.0.1/32 dev pycni-ipvs0; ipset flush KUBE-CLUSTER-IP")
    run("iptables-legacy -t nat -F PYCNI-SERVICES; iptables-legacy -t nat -D PREROUTING -j PYCNI-SERVICES")
    found["damage seen"] = len(again.left()) > 3
    again.full()
    found["damage repaired"] = again.left()
    found["removed"] = len(again.driver.remove())
    found["removed again"] = again.driver.remove()
    found["their servers"] = sorted(str(info.key) for info in table.services())
    found["their real servers"] = [len(table.dests(key)) for key in theirs]
    found["sets left"] = run("ipset list -n").split()
    saved = run("iptables-legacy-save; ip6tables-legacy-save; ip -o link")
    found["rules left"] = [
        line for line in saved.splitlines() if "PYCNI" in line or "pycni" in line or "9.9.9.9" in line
    ]
    table.del_services(theirs)
    table.close()
    run("ipset destroy OTHERS; iptables-legacy -D INPUT -s 9.9.9.9 -j DROP")
    again.close()
    return found


def addresses() -> Any:
    """Node ports follow the node's addresses inside the ranges."""
    import msgspec

    from tests.proxy.ipvs_world import FACTS

    ranges = (ipaddress.ip_network("192.168.0.0/16"), ipaddress.ip_network("2001:db8::/32"))
    proxy = Proxy(msgspec.structs.replace(FACTS, node_port_ranges=ranges))
    proxy.serve(frontend("", 30080, pool("a"), Kind.NODE_PORT, family=4))
    found = {"primary": who(ask("out", NODE[4], 30080)), "not in range": ask("b", "10.244.1.1", 30080)}
    run("ip addr add 192.168.0.2/24 dev up0")
    found["new, before a look"] = ask("out", "192.168.0.2", 30080)
    proxy.driver._next_addresses = 0.0
    proxy.driver.poll()
    found["new"] = who(ask("out", "192.168.0.2", 30080))
    run("ip addr del 192.168.0.2/24 dev up0")
    proxy.serve()
    proxy.driver.remove()
    proxy.close()
    return found


if __name__ == "__main__":
    answer(
        {
            "cluster_ip": cluster_ip,
            "verdicts": verdicts,
            "outside": outside,
            "balancing": balancing,
            "maglev": maglev,
            "graceful": graceful,
            "hammer": hammer,
            "laws": laws,
            "codec": codec,
            "direct": direct,
            "ownership": ownership,
            "addresses": addresses,
            "client": lambda: OUT,
        }
    )
