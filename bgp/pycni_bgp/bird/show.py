"""What ``birdc`` answers to ``show protocols all`` and ``show route all``, read. Pure.

The format is for people (BIRD's nest/proto.c, nest/rt-table.c and proto/bgp/attrs.c); lines nobody knows are skipped, a
number or address that does not read as one is a ValueError, which means that BIRD speaks differently from what is
expected here.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Iterator

from pycni_bgp.bird.config import address_of
from pycni_bgp.engine import Adjacency, Route, Session
from pycni_bgp.model import ORIGINS, Attributes, Origin, Prefix, prefix

_PROTOCOL = re.compile(r"(n[0-9a-f]{8}|n[0-9a-f]{32})\s+BGP\s+\S+\s+\S+\s+(\S+)")
_STATE = re.compile(r"\s+BGP state:\s+(\S+)")
_ERROR = re.compile(r"\s+Last error:\s+(.+)")
_ROUTES = re.compile(r"\s+Routes:\s+(\d+) imported,(?: \d+ filtered,)? (\d+) exported")
_ROUTE = re.compile(r"(\S+)?\s+\S+ \[(n[0-9a-f]+) \S+(?: from (\S+))?\] (\*)?")
_OTHER = re.compile(r"\S*\s+\S+ \[\S+ ")
_ATTRIBUTE = re.compile(r"\tBGP\.(\w+):\s?(.*)")


def sessions(text: str) -> list[Session]:
    """Of ``show protocols all``."""
    found: list[Session] = []
    for line in text.splitlines():
        if match := _PROTOCOL.match(line):
            address = address_of(match[1])
            assert address is not None, "the pattern has checked its length"
            found.append(Session(address, "Idle", since=match[2]))
            continue
        if not line.strip():
            continue
        if not line.startswith(" ") and not line.startswith("\t"):
            found.append(Session(b"", ""))
        if not found or not found[-1].address:
            continue
        last = found[-1]
        if match := _STATE.match(line):
            found[-1] = last._replace(state=match[1])
        elif match := _ERROR.match(line):
            found[-1] = last._replace(error=match[1].strip())
        elif match := _ROUTES.match(line):
            found[-1] = last._replace(
                imported=last.imported + int(match[1]), exported=last.exported + int(match[2])
            )
    return [item for item in found if item.address]


def adjacencies(text: str) -> list[Adjacency]:
    """Of ``show ospf neighbors``."""
    found = []
    for line in text.splitlines():
        words = line.split()
        if len(words) == 6 and words[1].isdigit():
            found.append(Adjacency(ipaddress.ip_address(words[0]).packed, words[2], words[4], words[5]))
    return found


def routes(text: str) -> list[Route]:
    """Of ``show route all``: those learned by BGP."""
    return list(_routes(text.splitlines()))


def _routes(lines: Iterable[str]) -> Iterator[Route]:
    current: Prefix | None = None
    head: tuple[bytes, bool] | None = None
    attributes: dict[str, str] = {}
    for line in [*lines, "0.0.0.0/0 end [end "]:
        if not line.startswith("\t") and (line.startswith(" ") or _OTHER.match(line)):
            if head is not None and current is not None:
                yield Route(head[0], current, _attributes(attributes), head[1])
            head, attributes = None, {}
            first = line.split(" ", 1)[0]
            if first and first != "Table":
                current = prefix(first)
            match = _ROUTE.match(line)
            neighbour = address_of(match[2]) if match else None
            if match and neighbour is not None:
                head = (neighbour, bool(match[4]))
        elif head is not None and (match := _ATTRIBUTE.match(line)):
            attributes[match[1]] = match[2].strip()


def _attributes(found: dict[str, str]) -> Attributes:
    origin: Origin = next(
        (name for name in ORIGINS if found.get("origin", "").lower().startswith(name)), "incomplete"
    )
    hop = found.get("next_hop", "").split(" ")[0]
    return Attributes(
        next_hop=ipaddress.ip_address(hop).packed if hop else b"",
        as_path=tuple(int(item) for item in re.findall(r"\d+", found.get("as_path", ""))),
        origin=origin,
        local_pref=int(found["local_pref"]) if "local_pref" in found else None,
        med=int(found["med"]) if "med" in found else None,
        communities=(
            *_communities(found.get("community", "")),
            *_communities(found.get("large_community", "")),
        ),
        originator=ipaddress.ip_address(found["originator_id"]).packed if "originator_id" in found else b"",
        clusters=tuple(ipaddress.ip_address(item).packed for item in found.get("cluster_list", "").split()),
    )


def _communities(text: str) -> Iterator[str]:
    for item in re.findall(r"\(([^)]*)\)", text):
        yield ":".join(part.strip() for part in item.split(","))
