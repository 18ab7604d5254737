"""How many denied packets does one processor get rid of: XDP's bare drop, ours, and the policies of nftables?

One thread sends real frames (BPF_PROG_TEST_RUN on live frames, redirected into a veth); the other end's NAPI receives
them on the same processor, so what is measured is the processor's time for making, moving and dropping a packet, the
same making and moving for all. That time is read from the scheduler, this thread's and ksoftirqd's, so that a busy
machine falsifies little. Variants alternate; figures are medians.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest

from bench.plots import curves
from bench.rows import row
from bench.size import sized
from pycni.kernel import bpf, bpf_build
from pycni.policy import nft
from pycni.policy.engine import PolicyEngine
from pycni.policy.xdp.driver import FUNCTION
from tests.netns import bpf_run
from tests.netns import frames as f
from tests.netns.fabric_nodes import run
from tests.netns.policy_rig import block, policy, rule, web
from tests.netns.test_policy_xdp_law import CLOSED, PEER, POD_IP, bare, shop
from tests.netns.xdp_rig import LOCAL, Judge, Wire, ifindex, plain, vxlan, wire

ROUNDS, PACKETS, SLOW_PACKETS = sized(40, 6), 250_000, 30_000
HAS_FRAGS = 1 << 5
SOURCE = """
static long (*redirect)(u32, u64) = (void *)23;
static u32 (*prandom)(void) = (void *)7;
int bare(struct xdp_md *ctx) { return XDP_DROP; }
int pass(struct xdp_md *ctx) { return XDP_PASS; }
/* The stack counts hops down in frames that come again: they get back what the first one had (at: its IP header). */
static __attribute__((always_inline)) void renew(struct xdp_md *ctx, u32 at, u16 sum) {
    u8 *ip = (void *)(long)ctx->data + at;
    if ((void *)(ip + 20) > (void *)(long)ctx->data_end)
        return;
    ip[8] = 64;
    *(u16 *)(ip + 10) = sum;
}
int plain(struct xdp_md *ctx) {
    renew(ctx, 14, SUM_PLAIN);
    return redirect(FAR, 0);
}
int vxlan(struct xdp_md *ctx) {
    renew(ctx, 14, SUM_OUTER);
    renew(ctx, 64, SUM_PLAIN);
    return redirect(FAR, 0);
}
int same(struct xdp_md *ctx) { return redirect(FAR, 0); }
/* Every packet from somebody else; sums are not looked at by what is measured so. */
int many(struct xdp_md *ctx) {
    void *data = (void *)(long)ctx->data;
    if (data + 34 <= (void *)(long)ctx->data_end)
        *(u32 *)(data + 26) = (prandom() & 0x00ffffff) << 8 | 10;
    return redirect(FAR, 0);
}
"""


class Variant(NamedTuple):
    """What receives, what is sent."""

    program: int
    frame: bytes
    sender: int
    count: int = PACKETS


class Meter:
    """Processor time per packet."""

    def __init__(self, made: Wire, link: int) -> None:
        self._made, self._link = made, link
        self._far = ifindex(made, "far")
        self._cpu = max(os.sched_getaffinity(0))
        self._helper = next(
            pid for pid in os.listdir("/proc") if pid.isdigit() and _comm(pid) == f"ksoftirqd/{self._cpu}"
        )

    def measure(self, variant: Variant) -> float:
        """Nanoseconds per packet."""
        bpf.update_link(self._link, variant.program)
        before, received = self._spent(), self._received()
        # Interfaces are those of the calling thread's namespace.
        self._made.inside(lambda: bpf_run.send(variant.sender, variant.frame, variant.count, self._far))
        spent = self._spent() - before
        deadline = time.monotonic() + 5
        while self._received() - received < variant.count and time.monotonic() < deadline:
            time.sleep(0.001)
        assert self._received() - received >= variant.count * 0.99, (
            "packets were lost before they were received"
        )
        return spent / variant.count

    def _spent(self) -> int:
        return time.thread_time_ns() + int(_read(f"/proc/{self._helper}/schedstat").split()[0])

    def _received(self) -> int:
        lines = self._made.inside(lambda: _read("/proc/thread-self/net/dev")).splitlines()
        return next(int(line.split()[2]) for line in lines if line.lstrip().startswith("eth0:"))


def _comm(pid: str) -> str:
    try:
        return _read(f"/proc/{pid}/comm").strip()
    except OSError:
        return ""


def _read(file: str) -> str:
    with open(file, encoding="ascii") as text:
        return text.read()


@pytest.fixture
def made() -> Iterator[Wire]:
    affinity = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(affinity)})
    try:
        with wire() as found:
            _stack(found)
            yield found
    finally:
        os.sched_setaffinity(0, affinity)


def _stack(made: Wire) -> None:
    """A way through the stack to the pod, for nftables."""
    switches = (
        "ipv4.ip_forward=1 ipv4.conf.all.rp_filter=0 ipv4.conf.default.rp_filter=0 ipv4.conf.eth0.rp_filter=0"
    )
    run(made.name, "sysctl -qw " + " ".join(f"net.{item}" for item in switches.split()))
    for command in (
        "ip link set vx4 address 02:00:00:00:00:0a up",
        "sysctl -qw net.ipv4.conf.vx4.rp_filter=0",
        f"ip addr add {LOCAL[4]}/24 dev eth0",
        "ip route add 192.0.2.0/24 dev eth0",
        "ip link add pod type veth peer name inpod",
        "ip link set pod up",
        "ip link set inpod up",
        f"ip route add {POD_IP[4]} dev pod",
        f"ip neigh add {POD_IP[4]} lladdr 02:00:00:00:00:77 dev pod",
    ):
        run(made.name, command)


@pytest.fixture
def programs(made: Wire) -> Iterator[Callable[[str], int]]:
    far = ifindex(made, "far")
    flags = [f"-DFAR={far}"]
    for name, kind in (("PLAIN", "plain"), ("OUTER", "VXLAN")):
        flags.append(f"-DSUM_{name}={int.from_bytes(PACKETS_OF[kind]()[24:26], 'little')}")
    code = bpf_build.build(SOURCE, ["bare", "pass", "plain", "vxlan", "same", "many"], flags)
    loaded = {
        name: bpf.load_program(bpf.XDP, body, attach_type=bpf.XDP_ATTACH, name=name, flags=HAS_FRAGS)
        for name, body in code.items()
    }
    # veth takes redirected frames where it has a program itself.
    link = made.inside(lambda: bpf.create_link(loaded["pass"], far, bpf.XDP_ATTACH))
    yield loaded.__getitem__
    bpf.close_all([link, *loaded.values()])


PACKETS_OF = {
    "plain": lambda: plain(bare(4, f.TCP, f.tcp(80))),
    "block": lambda: plain(f.ip(PEER[4], BLOCK_POD, f.TCP, f.tcp(80))),
    "IPv6": lambda: plain(bare(6, f.TCP, f.tcp(80))),
    "VXLAN": lambda: vxlan(bare(4, f.TCP, f.tcp(80))),
}
BLOCK_POD = POD_IP[4][:-1] + "3"
OPEN_BLOCK = policy("shop/block", web(app="web"), ingress=(rule(block("192.0.0.0/8", "192.0.2.0/28")),))
QUESTIONS = {
    # ours, what it is compared with, question, target
    ("ours plain", "bare plain"): ("XDP: pod denied everything", ">= 0.8"),
    ("ours block", "bare block"): ("XDP: source outside a block", ">= 0.8"),
    ("ours IPv6", "bare IPv6"): ("XDP: the same over IPv6", ">= 0.8"),
    ("ours VXLAN", "bare VXLAN"): ("XDP: inside VXLAN", ">= 0.8"),
    ("ours plain, many", "bare plain, many"): ("XDP: each packet from another source", ">= 0.8"),
    ("ours block, many", "bare block, many"): ("XDP: each from another source outside a block", ""),
    ("ours plain", "nft plain"): ("XDP beside nftables", ">= 2.0"),
    ("ours VXLAN", "nft VXLAN"): ("XDP beside nftables, inside VXLAN", ">= 2.0"),
}


def test_denied_packets_per_processor(benchmark: Any, made: Wire, programs: Callable[[str], int]) -> None:
    objects = shop(CLOSED, OPEN_BLOCK)
    engine = PolicyEngine("n1", made.inside(nft.make))
    path = made.path("native")
    judge = Judge(path)
    try:
        judge.sync(objects)
        engine.sync(objects)
        folder = path._programs.folder
        ours = bpf.get(os.path.join(folder, "programs", FUNCTION))
        link = bpf.get(os.path.join(folder, "links", f"if{ifindex(made)}"))
        try:
            variants = _variants(programs, ours)
            for name, variant in variants.items():
                said = bpf_run.run(variant.program, variant.frame)[0]
                assert said == (bpf_run.XDP_PASS if name.startswith("nft") else bpf_run.XDP_DROP), name
            meter = Meter(made, link)
            found = benchmark.pedantic(lambda: _measure(meter, variants), rounds=1)
        finally:
            bpf.close_all([ours, link])
        expected = sum(variant.count for name, variant in variants.items() if name.startswith("nft")) * ROUNDS
        denied = sum(item.packets for item in engine.plane.driver.denied())
        assert denied >= expected * 0.99, "nftables has not dropped what it was sent"
    finally:
        judge.close()
        engine.plane.driver.close()
    _tell(found)


def _variants(programs: Callable[[str], int], ours: int) -> dict[str, Variant]:
    many = programs("many")
    found = {}
    for kind, make in PACKETS_OF.items():
        # As long as the shortest frame on a wire.
        frame = make().ljust(60, b"\0")
        same = programs({"plain": "plain", "VXLAN": "vxlan"}.get(kind, "same"))
        found[f"bare {kind}"] = Variant(programs("bare"), frame, same)
        found[f"ours {kind}"] = Variant(ours, frame, same)
        if kind in {"plain", "block"}:
            found[f"bare {kind}, many"] = Variant(programs("bare"), frame, many)
            found[f"ours {kind}, many"] = Variant(ours, frame, many)
        if kind in {"plain", "VXLAN"}:
            found[f"nft {kind}"] = Variant(programs("pass"), frame, same, SLOW_PACKETS)
    return found


def _measure(meter: Meter, variants: dict[str, Variant]) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(ROUNDS):
        for name, variant in variants.items():
            found[name].append(meter.measure(variant))
    return found


def _tell(found: dict[str, list[float]]) -> None:
    medians = {name: statistics.median(values) for name, values in found.items()}
    for (one, other), (question, target) in QUESTIONS.items():
        ratios = [theirs / mine for mine, theirs in zip(found[one], found[other], strict=True)]
        row(
            f"{question} (packets per CPU second)",
            _rate(medians[one]),
            _rate(medians[other]),
            statistics.median(ratios),
            target,
            better="more",
            ratios=ratios,
        )
    series = {
        name: [(number + 1, 1e3 / value) for number, value in enumerate(values)]
        for name, values in found.items()
        if "many" not in name
    }
    curves(
        "policy-xdp",
        "denied packets dropped by one processor, which makes and moves them too",
        ("round", "million packets per second of CPU time"),
        series,
        logarithmic=False,
    )


def _rate(nanoseconds: float) -> str:
    return f"{1e3 / nanoseconds:.2f} M/s ({nanoseconds:.0f} ns)"
