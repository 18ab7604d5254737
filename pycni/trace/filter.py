"""Which live traffic is meant, in words. Pure.

    tcp port 80            icmp            udp dst port 53 and host 10.96.0.10            new

Words are joined by ``and``, which may be left out: ``tcp``, ``udp``, ``icmp``; ``port N`` and ``host ADDRESS``, with
``src`` or ``dst`` in front for one end; ``new`` for connections that begin while one looks. They are about packets as
they leave the asker's socket, before any translation.
"""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import ip_address
from typing import NamedTuple

from pycni.model.family import show
from pycni.trace.model import ICMP, ICMPV6, TCP, UDP, Flow
from pycni.trace.question import QuestionError

_PROTOCOLS = {"tcp": TCP, "udp": UDP, "icmp": ICMP}


class Filter(NamedTuple):
    """What was asked for, as words say it."""

    protocol: int = 0
    """TCP, UDP or ICMP (of both families); 0: any of them."""
    ports: tuple[tuple[str, int], ...] = ()
    """Which end ("src", "dst", "" for either) and number; all have to fit."""
    hosts: tuple[tuple[str, bytes], ...] = ()
    new: bool = False

    def fits(self, flow: Flow) -> bool:
        """Whether packets of a flow are meant."""
        protocol = ICMP if flow.protocol == ICMPV6 else flow.protocol
        if protocol not in _PROTOCOLS.values() or self.protocol not in {0, protocol}:
            return False
        ends = {"src": (flow.source_port,), "dst": (flow.destination_port,)}
        sides = {"src": (flow.source,), "dst": (flow.destination,)}
        return all(
            number in (ends[end] if end else (*ends["src"], *ends["dst"])) for end, number in self.ports
        ) and all(
            address in (sides[end] if end else (*sides["src"], *sides["dst"])) for end, address in self.hosts
        )


def parse(text: str) -> Filter:
    """What the words ask for. Raises QuestionError naming the word that is wrong."""
    words = [word for word in text.lower().split() if word != "and"]
    protocol, new = 0, False
    ports: list[tuple[str, int]] = []
    hosts: list[tuple[str, bytes]] = []
    at = 0
    while at < len(words):
        word = words[at]
        if word in _PROTOCOLS:
            if protocol not in {0, _PROTOCOLS[word]}:
                raise QuestionError(f"--live {text!r}: no packet is of two protocols")
            protocol = _PROTOCOLS[word]
        elif word == "new":
            new = True
        else:
            end = word if word in {"src", "dst"} else ""
            at += bool(end)
            what, value = ([*words[at : at + 2], "", ""])[:2]
            if what == "port" and value.isdecimal() and 0 < int(value) < 65536:
                ports.append((end, int(value)))
            elif what == "host":
                hosts.append((end, _address(text, value)))
            else:
                shown = " ".join(words[at - bool(end) : at + 2])
                raise QuestionError(
                    f"--live {text!r}: {shown!r}: expected tcp, udp, icmp, new, [src|dst] port N"
                    " or [src|dst] host ADDRESS"
                )
            at += 1
        at += 1
    if ports and protocol == ICMP:
        raise QuestionError(f"--live {text!r}: ICMP has no ports")
    return Filter(protocol, tuple(ports), tuple(hosts), new)


def _address(text: str, value: str) -> bytes:
    try:
        return ip_address(value).packed
    except ValueError as exc:
        raise QuestionError(f"--live {text!r}: {value!r} is no address") from exc


def words(wanted: Filter) -> str:
    """The filter in its own language."""
    return " and ".join(_words(wanted)) or "anything"


def _words(wanted: Filter) -> Iterator[str]:
    for name, number in _PROTOCOLS.items():
        if number == wanted.protocol:
            yield name
    for end, port in wanted.ports:
        yield f"{end} port {port}".strip()
    for end, host in wanted.hosts:
        yield f"{end} host {show(host)}".strip()
    if wanted.new:
        yield "new"
