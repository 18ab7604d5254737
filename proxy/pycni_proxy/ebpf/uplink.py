"""TCP from outside the node: programs on the interface it comes in by, and the connections they have taken.

Life of a connection: its first packet meets a row of ``outside`` on the uplink, a target is chosen as for sockets, and
two entries in ``conns`` (one for each direction) remember it until it is over; ``sweep`` removes them then. Behind the
program the kernel sees a connection from the client to the endpoint, so connection tracking and policy go by that;
where the source has to be hidden, the first packet carries the mark that has the nftables plane masquerade it.

Nothing is taken from nftables: a packet without an entry goes on to it, unless it opens a connection. For ``SETTLE_S``
after the programs came to an interface openings are only watched, because connection tracking may have seen the first
of several tries. Everything is in the folder of pins ``uplink``, beside the socket layer's, whose pools it uses.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from pycni.errors import PycniError
from pycni.kernel import bpf, bpf_build, bpf_places
from pycni.kernel.bpf_map import BpfMap, MapSpec
from pycni.kernel.bpf_object import Attachment, BpfObject, ProgramSpec, Source
from pycni.kernel.links import look_up
from pycni.kernel.netlink import NetlinkSocket
from pycni.model.service import NodeFacts
from pycni.reconcile.delta import diff
from pycni.wire import rtlink
from pycni_proxy.ebpf import layout, sources
from pycni_proxy.ebpf.layout import ANSWERED, FIN, LEFT, RESET, Conn

log = logging.getLogger("pycni.proxy.ebpf")

PART = "uplink"
OLDEST = (6, 6)
"""First kernel with links for programs on interfaces (tcx)."""
SETTLE_S = 8.0
"""Over the longest pause between the first four tries of a TCP connection (1, 2, 4 s)."""
SHORT_NS = 130 * 10**9
LONG_NS = (5 * 86400 + 60) * 10**9
"""As in uplink.c: how long connections are kept that were not answered, or are over; and open ones."""
PROGRAMS = (
    ProgramSpec("uplink_in", bpf.SCHED_CLS, bpf.TCX_INGRESS),
    ProgramSpec("uplink_out", bpf.SCHED_CLS, bpf.TCX_EGRESS),
)
_ETHERNET_BYTES = 6
_FIRST = bytes(4)


def source(cache: str) -> Source:
    """The programs and where their builds are kept."""
    parts = ("balance.c", "uplink.c")
    return Source("".join(Path(__file__).with_name(name).read_text() for name in parts), cache=cache)


class Uplink:
    """Programs on ``facts.uplink`` of the network namespace the calling thread is in."""

    def __init__(
        self,
        facts: NodeFacts,
        bpffs: str,
        cache: str,
        lent: Mapping[str, BpfMap],
        settle_s: float = SETTLE_S,
    ) -> None:
        """``lent``: the socket layer's maps. Attaches nothing. Raises KernelError, OSError."""
        self._facts = facts
        self._settle_ns = int(settle_s * 1e9)
        self.folder = bpf_places.folder(facts.name, PART, bpffs)
        shared = {name: lent[name] for name in layout.SHARED}
        specs = [MapSpec(*row) for row in layout.UPLINK_MAPS]
        self._object = BpfObject(self.folder, source(cache), specs, PROGRAMS, lent=shared)
        try:
            self.fresh = "outside" in self._object.fresh
            """No earlier life's frontends were found."""
            self.outside = self._object.maps["outside"]
            self.conns = self._object.maps["conns"]
            self._index = 0
            self._trouble = ""
            self._sock = NetlinkSocket()
        except BaseException:
            self._object.close()
            raise

    def attach(self, *, look: bool = True) -> None:
        """Have the programs run on the interface, when it is there, for the clients that routes say.

        What goes wrong is logged: nftables serves what the programs do not. ``look`` False: nothing is done when they
        were seen to run, or could not, before.
        """
        if not look and (self._index or self._trouble):
            return
        try:
            index = self._find()
            self._prepare(index)
            self._object.commit(
                [Attachment(item.function, item.function, index, index) for item in PROGRAMS] if index else []
            )
            self._index = index
            trouble = "" if index else f"there is no Ethernet interface {self._facts.uplink}"
        except (PycniError, OSError) as error:
            self._index = 0
            trouble = str(error)
        if trouble and trouble != self._trouble:
            log.warning("services for clients outside are left to nftables: %s", trouble)
        self._trouble = trouble

    def sweep(self) -> None:
        """Forget connections that are over. Raises KernelError."""
        entries = self.conns.items()
        now = time.monotonic_ns()
        for key in ended(entries, now):
            # Not one that began anew meanwhile.
            if self.conns.get(key) == entries[key]:
                self.conns.delete(key)

    def remove(self) -> list[str]:
        """Detach and unpin everything; connections that passed the programs break."""
        self._index = 0
        return self._object.detach()

    def close(self) -> None:
        """Release descriptors; the programs go on."""
        self._sock.close()
        self._object.close()

    def _find(self) -> int:
        """Index of the interface; 0 when it is not there or has no Ethernet header."""
        reply = look_up(self._sock, self._facts.uplink)
        link = rtlink.parse_link(reply) if reply is not None else None
        return link.ifindex if link is not None and len(link.mac) == _ETHERNET_BYTES else 0

    def _prepare(self, index: int) -> None:
        """What the programs go by, before they run."""
        rows = self._object.maps["sources"]
        wanted = sources.read(self._sock, index, self._facts.cluster_networks) if index else {}
        delta = diff(wanted, rows.items())
        # What is left out comes first: no client is served for a moment only.
        rows.update(dict(sorted({**delta.add, **delta.change}.items(), key=_value)))
        rows.remove(delta.remove)
        config = self._object.maps["config"]
        before = config.get(_FIRST) or bytes(16)
        start = int.from_bytes(before[:8], sys.byteorder)
        if int.from_bytes(before[12:], sys.byteorder) != index:
            start = time.monotonic_ns() + self._settle_ns
        config.put(_FIRST, layout.config(start, self._facts.masquerade_mark, index))


def _value(row: tuple[bytes, bytes]) -> bytes:
    return row[1]


def missing(cache: str) -> str:
    """Why this machine cannot run the programs; "" when it can."""
    item = source(cache)
    return bpf_build.lacking(OLDEST, item.text, [spec.function for spec in PROGRAMS], item.flags, cache)


def ended(entries: Mapping[bytes, bytes], now: int) -> list[bytes]:
    """Keys of the connections that are over, of all entries of ``conns``. Pure."""
    found = []
    # Connections first: what is left then are answers that no connection leads to any more.
    answers = {key for key in entries if key[37]}
    for key, raw in entries.items():
        if key[37]:
            continue
        conn = Conn.unpack(raw)
        if conn.flags & LEFT:
            if now - conn.used > SHORT_NS:
                found.append(key)
            continue
        back = key[:16] + conn.address + key[32:34] + conn.port + key[36:37] + b"\1\0\0"
        other = entries.get(back)
        if other is None or other[:18] != key[16:32] + key[34:36]:
            if now - conn.used > SHORT_NS:
                found.append(key)
            continue
        answers.discard(back)
        reply = Conn.unpack(other)
        flags = conn.flags | reply.flags
        open_ = reply.flags & ANSWERED and not flags & (FIN | RESET)
        if now - max(conn.used, reply.used) > (LONG_NS if open_ else SHORT_NS):
            found += [key, back]
    found += [key for key in answers if now - Conn.unpack(entries[key]).used > SHORT_NS]
    return found
