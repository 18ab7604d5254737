"""What works from one host: its node and pods with all others, Services, policies. Prints a table; exits with 1 if anything fails.

Life: the address book says who is where (``pods.py``); checks start here, with real packets, and are answered by the servers of
every host. The outcome also goes to ``verify.json``, from where it is collected.
"""

from __future__ import annotations

import contextlib
import socket
import sys
import time
from collections.abc import Callable, Iterator

import msgspec
from pods import (
    EXTERNAL,
    NODE_PORT,
    PORT,
    SERVICE,
    STATE,
    Page,
    Pod,
    book,
    families,
    host,
    hosts_here,
    load,
    mtu_here,
    namespace,
    setting,
    underlay,
)

from pycni.errors import PycniError
from pycni.kernel import netns as kernel_netns
from pycni.lab.matrix import Matrix, plan
from pycni.lab.probe import Prober
from pycni.lab.report import grid, verdict
from pycni.lab.stations import Host, Inside
from pycni.model.family import Family

PATIENCE_S, DENIED_S = 60.0, 3.0
PROBE_S = 15.0


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One claim and what became of it."""

    host: str
    check: str
    ok: bool
    detail: str


def main() -> int:
    """All checks."""
    pages = book()
    rows = [_matrix(pages)]
    with Inside() as inside:
        if setting("PYCNI_PROXY") != "none":
            rows += list(_services(pages, inside))
        if setting("PYCNI_POLICY") != "none":
            rows.append(_policies(pages, inside))
    (STATE / "verify.json").write_bytes(msgspec.json.encode(rows))
    for row in rows:
        print(f"{'ok  ' if row.ok else 'FAIL'}  {row.host:<7} {row.check:<22} {row.detail}")
    return 0 if all(row.ok for row in rows) else 1


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


def ask(inside: Inside, place: str, address: str, port: int, timeout: float) -> str:
    """Who answers: the pod's name; "" when nobody does in time."""

    def connect() -> str:
        with socket.create_connection((address, port), timeout=timeout) as sock:
            return sock.makefile().readline().split(" ")[0].strip()

    with contextlib.suppress(OSError, PycniError):
        return inside(kernel_netns.path(place) if place else "", connect)
    return ""


def within(seconds: float, condition: Callable[[], bool]) -> bool:
    """Whether it comes true."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


def _services(pages: dict[str, Page], inside: Inside) -> Iterator[Row]:
    """Every open pod is behind the Service, from here by each of its addresses."""
    wanted = {pod.name for page in pages.values() for pod in page.pods if not pod.closed}
    mine = [pod for pod in load() if not pod.closed]
    some = next((name for name in pages if name != host()), host())
    places = [("pod", namespace(mine[0].name))] if mine else []
    ways = {
        "ClusterIP": [(SERVICE[family], 80) for family in families()],
        "external IP": [(EXTERNAL[family], 80) for family in families()],
        "node port": [(address, NODE_PORT) for address in underlay()[some].values()],
    }
    for label, targets in ways.items():
        for kind, place in [*places, ("node", "")]:
            seen: dict[str, int] = {}
            for address, port in targets:
                found: set[str] = set()

                def all_seen(address: str = address, port: int = port, found: set[str] = found) -> bool:
                    name = ask(inside, place, address, port, 5.0)
                    if name:
                        found.add(name)
                        seen[name] = seen.get(name, 0) + 1
                    return found == wanted

                ok = within(PATIENCE_S, all_seen)
                if not ok:
                    break
            counts = " ".join(f"{name}:{count}" for name, count in sorted(seen.items()))
            yield Row(host=host(), check=f"{label} from {kind}", ok=ok, detail=counts or "no answer")


def _policies(pages: dict[str, Page], inside: Inside) -> Row:
    """Closed pods answer those in front and nobody else, wherever they are."""
    wrong, allowed, denied = [], 0, 0
    mine: list[Pod] = [pod for pod in load() if not pod.closed]
    targets = [pod for page in pages.values() for pod in page.pods if pod.closed]
    for pod in mine:
        for target in targets:
            for ip in target.ips:
                place = namespace(pod.name)
                if pod.labels["role"] == "front":
                    ok = within(
                        PATIENCE_S, lambda p=place, i=ip, t=target: ask(inside, p, i, PORT, 5.0) == t.name
                    )
                    allowed += ok
                else:
                    ok = within(PATIENCE_S, lambda p=place, i=ip: not ask(inside, p, i, PORT, DENIED_S))
                    denied += ok
                if not ok:
                    wrong.append(f"{pod.name} -> {target.name} {ip}")
    detail = f"{allowed} connections allowed, {denied} denied" + "".join(f"; WRONG {item}" for item in wrong)
    return Row(host=host(), check="policies", ok=not wrong and bool(allowed), detail=detail)


if __name__ == "__main__":
    sys.exit(main())
