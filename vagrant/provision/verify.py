"""What works from one host: its node and pods with all others, Services, policies, by real packets.

Life: the address book says who is where (``pods.py``); checks start here and are answered by the servers of every host.
A row for each is printed, and written to ``verify.json``, from where it is collected. Exits with 1 if anything fails.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import selectors
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import groupby
from typing import Any, NamedTuple

import msgspec
from pods import (
    EXTERNAL,
    NODE_PORT,
    OUTSIDE_PORT,
    PORT,
    SERVICE,
    STATE,
    Page,
    book,
    etcdctl,
    families,
    host,
    hosts_here,
    load,
    mtu_here,
    namespace,
    setting,
    underlay,
)

from pycni.kernel import netns as kernel_netns
from pycni.lab.matrix import Matrix, plan
from pycni.lab.probe import Prober
from pycni.lab.report import grid, verdict
from pycni.lab.stations import Host, Inside
from pycni.model.family import Family

PATIENCE_S = 90.0
TRACE_PATIENCE_S = 240.0
"""A trace watches for a second where a packet should come by; on a host that is emulated and busy it may be later."""
ANSWER_S, DENIED_S = 10.0, 3.0
"""Seconds an answer may take; seconds of silence that mean no."""
PROBE_S = 15.0
KINDS = {"vxlan": "vxlan", "ipip": "ipip", "wireguard": "wireguard"}
"""Devices of backends, by their kind in the kernel."""
BATCH = 8
"""Connections at once."""


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One claim and what became of it."""

    host: str
    check: str
    ok: bool
    detail: str


def main() -> int:
    """All checks."""
    pages = book()
    rows = [_kernel(), _matrix(pages)]
    with Inside() as inside:
        rows += list(_sources(pages, inside))
        if setting("PYCNI_PROXY") != "none":
            rows += list(_services(pages, inside))
        if setting("PYCNI_POLICY") != "none":
            rows.append(_policies(pages, inside))
    rows += list(_traces(pages))
    (STATE / "verify.json").write_bytes(msgspec.json.encode(rows))
    for row in rows:
        print(f"{'ok  ' if row.ok else 'FAIL'}  {row.host:<7} {row.check:<22} {row.detail}")
    return 0 if all(row.ok for row in rows) else 1


def _kernel() -> Row:
    """What carries, serves and judges is in this kernel, and not something that stepped in for it."""
    backend = json.loads(etcdctl("get", "--print-value-only", "/coreos.com/network/config"))["Backend"][
        "Type"
    ]
    tables = {line.split()[-1] for line in said("nft", "list", "tables").splitlines()}
    links = json.loads(said("ip", "-d", "-j", "link", "show"))
    kinds = {
        (link.get("linkinfo") or {}).get("info_kind"): link["ifname"] for link in links if link.get("ifalias")
    }
    found, missing = [os.uname().release], []
    if backend in KINDS:
        (found if KINDS[backend] in kinds else missing).append(
            f"device {kinds.get(KINDS[backend], KINDS[backend])}"
        )
    if setting("PYCNI_PROXY") == "ipvs":
        servers = sum(line.startswith(("TCP", "UDP", "FWM")) for line in said("ipvsadm", "-Ln").splitlines())
        (found if servers else missing).append(f"{servers} virtual servers")
    wanted = {
        "pycni_proxy": setting("PYCNI_PROXY") == "nftables",
        "pycni_policy": setting("PYCNI_POLICY") != "none",
    }
    missing += [f"table {name}" for name, there in wanted.items() if there and name not in tables]
    found += [f"table {name}" for name in sorted(tables) if name.startswith("pycni_")]
    detail = ", ".join(found) + "".join(f"; MISSING {item}" for item in missing)
    return Row(host=host(), check=f"kernel, {backend}", ok=not missing, detail=detail)


def said(*words: str) -> str:
    """A program's output; nothing when it fails."""
    return subprocess.run(words, capture_output=True, text=True, check=False).stdout


def _matrix(pages: dict[str, Page]) -> Row:
    """Pings small and large, TCP, UDP, from this node and its pods to everybody."""
    mine = hosts_here(load(), mtu_here())
    others = [
        Host(pod.name, "", {_family(ip): ip for ip in pod.ips}, page.mtu, page.node)
        for page in pages.values()
        for pod in page.pods
        if page.node != host() and not pod.closed
    ]
    everybody = [
        Host(name, "", underlay()[name], page.mtu, name) for name, page in pages.items() if name != host()
    ]
    stations, pods = [mine[0], *everybody], [*mine[1:], *others]
    here = {item.name for item in mine}
    checks = [check for check in plan(stations, pods) if check.source in here]
    started = time.monotonic()
    with Prober(mine, PROBE_S) as prober:
        for page in pages.values():
            if page.node != host():
                prober.meet(page.doors)
        reasons = prober.run(checks)
    matrix = Matrix(
        nodes=tuple(item.name for item in stations),
        pods=tuple((item.name, item.node) for item in pods),
        reasons=reasons,
        seconds=time.monotonic() - started,
    )
    lines = grid(matrix).splitlines()
    # Only what starts here was asked here.
    numbered = {str(number): item.name for number, item in enumerate([*stations, *pods], 1)}
    print(
        "\n".join(line for line in lines if numbered.get(line.split()[0], host()) in here or line is lines[0])
    )
    print(verdict(matrix))
    return Row(
        host=host(),
        check="matrix",
        ok=matrix.ok,
        detail=f"{len(checks) - len(matrix.failed())} of {len(checks)} checks: ping, mtu, tcp, udp; MTU {mtu_here()}",
    )


def _family(ip: str) -> Family:
    return Family.V6 if ":" in ip else Family.V4


class Question(NamedTuple):
    """A connection to try: from a namespace of this host ("": the node) to an address and port."""

    place: str
    address: str
    port: int


def ask(inside: Inside, questions: Sequence[Question], seconds: float) -> list[str]:
    """Who answers each, all asked at once: the pod's name, "" where nobody does in time."""
    return [line.partition(" ")[0] for line in lines_of(inside, questions, seconds)]


def lines_of(inside: Inside, questions: Sequence[Question], seconds: float) -> list[str]:
    """The line each is answered by, all asked at once; "" where nobody answers in time."""
    with contextlib.ExitStack() as stack:
        poll = stack.enter_context(selectors.DefaultSelector())
        answers = [""] * len(questions)
        for number, question in enumerate(questions):
            family = socket.AF_INET6 if ":" in question.address else socket.AF_INET
            path = kernel_netns.path(question.place) if question.place else ""
            sock = stack.enter_context(inside(path, partial(socket.socket, family, socket.SOCK_STREAM)))
            sock.setblocking(False)
            if sock.connect_ex((question.address, question.port)) in {0, errno.EINPROGRESS}:
                poll.register(sock, selectors.EVENT_READ, number)
        deadline = time.monotonic() + seconds
        while poll.get_map() and (left := deadline - time.monotonic()) > 0:
            for key, _ in poll.select(left):
                assert isinstance(key.fileobj, socket.socket)
                with contextlib.suppress(OSError):  # refused or reset: no answer
                    # A line is far smaller than a segment.
                    answers[key.data] = key.fileobj.recv(4096).decode().strip()
                poll.unregister(key.fileobj)
        return answers


def _sources(pages: dict[str, Page], inside: Inside) -> Iterator[Row]:
    """By which address a pod of this host is seen: outside by its node's, by pods of other hosts by its own."""
    mine = next(pod for pod in load() if not pod.closed)
    there = next((page for name, page in pages.items() if name != host()), pages[host()])
    pod = [item for item in there.pods if not item.closed][-1]
    own, far = ({_family(ip): ip for ip in item.ips} for item in (mine, pod))
    place = namespace(mine.name)
    ways = {
        "seen by a pod": {Question(place, far[family], PORT): f"{pod.name} {own[family]}" for family in own}
    }
    if "router" in underlay():
        outside, node = underlay()["router"], underlay()[host()]
        ways["seen outside (NAT)"] = {
            Question(place, outside[item], OUTSIDE_PORT): node[item] for item in own
        }
    for label, expected in ways.items():
        answers = _right(expected, inside, ANSWER_S)
        text = ", ".join(
            f"{question.address} sees {own[_family(question.address)]} as {answer.split()[-1] if answer else 'nobody'}"
            for question, answer in answers.items()
        )
        yield Row(host=host(), check=label, ok=answers == expected, detail=text)


def _right(expected: Mapping[Question, str], inside: Inside, seconds: float) -> dict[Question, str]:
    """The answers, once they are those expected, or when patience ends."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        answers = dict(zip(expected, lines_of(inside, list(expected), seconds), strict=True))
        if answers == expected or time.monotonic() > deadline:
            return answers


def _services(pages: dict[str, Page], inside: Inside) -> Iterator[Row]:
    """Every open pod is behind the Service, from here by each of its addresses."""
    wanted = {pod.name for page in pages.values() for pod in page.pods if not pod.closed}
    mine = [pod for pod in load() if not pod.closed]
    some = next((name for name in pages if name != host()), host())
    ways = {
        "ClusterIP": [(SERVICE[family], 80) for family in families()],
        "external IP": [(EXTERNAL[family], 80) for family in families()],
        "node port": [(address, NODE_PORT) for address in underlay()[some].values()],
    }
    for label, targets in ways.items():
        for kind, place in (("pod", namespace(mine[0].name)), ("node", "")):
            counts: Counter[str] = Counter()
            missing = set()
            for address, port in targets:
                seen = _all_of(wanted, inside, Question(place, address, port))
                counts += seen
                missing |= {f"{name} by {address}" for name in wanted - seen.keys()}
            detail = " ".join(f"{name}:{count}" for name, count in sorted(counts.items()))
            lack = "".join(f"; MISSING {item}" for item in sorted(missing))
            yield Row(host=host(), check=f"{label} from {kind}", ok=not missing, detail=detail + lack)


def _all_of(wanted: set[str], inside: Inside, question: Question) -> Counter[str]:
    """Who answered how often, until everybody has or patience ends."""
    seen: Counter[str] = Counter()
    deadline = time.monotonic() + PATIENCE_S
    while not wanted <= seen.keys() and time.monotonic() < deadline:
        seen += Counter(filter(None, ask(inside, [question] * BATCH, ANSWER_S)))
    return seen


def _policies(pages: dict[str, Page], inside: Inside) -> Row:
    """Closed pods answer those in front and nobody else, wherever they are."""
    expected = {
        Question(namespace(pod.name), ip, PORT): target.name if pod.labels["role"] == "front" else ""
        for pod in load()
        if not pod.closed
        for page in pages.values()
        for target in page.pods
        if target.closed
        for ip in target.ips
    }
    deadline = time.monotonic() + PATIENCE_S
    while True:
        answers = dict(zip(expected, ask(inside, list(expected), DENIED_S), strict=True))
        wrong = [question for question, answer in answers.items() if answer != expected[question]]
        if not wrong or time.monotonic() > deadline:
            break
    allowed = sum(map(bool, expected.values()))
    detail = f"{allowed} connections allowed, {len(expected) - allowed} denied"
    detail += "".join(f"; WRONG {item.place} -> {item.address}" for item in wrong)
    return Row(host=host(), check="policies", ok=not wrong and bool(allowed), detail=detail)


def _traces(pages: dict[str, Page]) -> Iterator[Row]:
    """``pycnictl trace`` to the next host's pods: this agent asks that one, so hops of both are known."""
    names = list(pages)
    peer = names[(names.index(host()) + 1) % len(names)]
    if peer == host():
        return
    mine = next(pod for pod in load() if not pod.closed)
    open_, closed = ([pod for pod in pages[peer].pods if pod.closed is flag] for flag in (False, True))
    yield _trace("trace to pod", mine.name, f"{open_[0].name}:{PORT}", lambda found: _whole(found, peer))
    if setting("PYCNI_PROXY") != "none":
        yield _trace("trace to Service", mine.name, "web:80", lambda found: bool(found["ok"]))
    own = next((pod for pod in load() if pod.closed), None)
    if own is not None and closed:

        def denied(found: dict[str, Any]) -> bool:
            fault = found["fault"] or {}
            return not found["ok"] and fault.get("node") == peer and "closed" in fault["cause"]

        yield _trace("trace, denied", own.name, f"{closed[0].name}:{PORT}", denied)


def _whole(found: dict[str, Any], peer: str) -> bool:
    return bool(found["ok"]) and {host(), peer} <= {hop["node"] for hop in found["hops"]}


def _trace(check: str, source: str, target: str, right: Callable[[dict[str, Any]], bool]) -> Row:
    """Again for a while: an agent that has just started, or is busy, may take its time."""
    deadline = time.monotonic() + TRACE_PATIENCE_S
    while True:
        words = ["pycnictl", "trace", source, target, "--json"]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        found: dict[str, Any] = json.loads(done.stdout) if done.stdout.startswith("{") else {}
        if found and right(found):
            return Row(host=host(), check=check, ok=True, detail=_told(source, target, found))
        if time.monotonic() > deadline:
            text = _told(source, target, found) if found else done.stderr.strip()[-300:]
            return Row(host=host(), check=check, ok=False, detail=text)


def _told(source: str, target: str, found: dict[str, Any]) -> str:
    hops = "; ".join(f"{len(list(group))} hops on {node}" for node, group in groupby(found["hops"], _node))
    fault = found["fault"]
    end = f"round trip {found['round_trip_us']:.0f} us" if found["round_trip_us"] else "no answer"
    why = f"; {fault['node']}: {fault['cause']}" if fault else ""
    return f"{source} -> {target}: {hops}; {end}{why}" + "".join(f"; {item}" for item in found["limits"])


def _node(hop: dict[str, Any]) -> str:
    return str(hop["node"])


if __name__ == "__main__":
    sys.exit(main())
