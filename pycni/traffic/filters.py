"""Which flows somebody wants to see. Pure.

words    each must fit: a verdict, a protocol, ``:80`` (either port), an address or a network (either end, translated
         too), else a name, whole or with ``*``, with or without its namespace (pods, nodes, services, policies)
options  of one kind any, of several kinds all
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from fnmatch import fnmatchcase
from functools import lru_cache
from ipaddress import ip_address, ip_network

from pycni.errors import PycniError
from pycni.model.family import Address, Network
from pycni.traffic.model import VERDICTS, Flow

Fits = Callable[[Flow], bool]
_PROTOCOLS = ("TCP", "UDP", "SCTP", "ICMP", "ICMPV6")


class FilterError(PycniError):
    """A filter that makes no sense."""

    usage = True


def make(
    words: Sequence[str] = (),
    *,
    pods: Sequence[str] = (),
    services: Sequence[str] = (),
    verdicts: Sequence[str] = (),
    protocols: Sequence[str] = (),
    ports: Sequence[int] = (),
    addresses: Sequence[str] = (),
) -> Fits:
    """Whether a flow is wanted. Raises FilterError."""
    fits = [_word(word) for word in words]
    if pods:
        fits.append(_any(_names(pods, _pods)))
    if services:
        fits.append(_any(_names(services, _services)))
    if verdicts:
        fits.append(lambda flow: flow.verdict in verdicts)
    if protocols:
        wanted = {item.upper() for item in protocols}
        fits.append(lambda flow: flow.protocol.upper() in wanted)
    if ports:
        fits.append(_any([_port(port) for port in ports]))
    if addresses:
        fits.append(_any([_address(_network(item)) for item in addresses]))
    return lambda flow: all(fit(flow) for fit in fits)


def _any(some: Sequence[Fits]) -> Fits:
    return lambda flow: any(fit(flow) for fit in some)


def _word(word: str) -> Fits:
    if word in VERDICTS:
        return lambda flow: flow.verdict == word
    if word.upper() in _PROTOCOLS:
        return lambda flow: flow.protocol.upper() == word.upper()
    if word.startswith(":") and word[1:].isdigit():
        return _port(int(word[1:]))
    try:
        return _address(ip_network(word, strict=False))
    except ValueError:
        pass
    if not word or any(char.isspace() for char in word):
        raise FilterError(f"filter {word!r}: a verdict, protocol, :PORT, address, network or name is meant")
    return _name(word, _everybody)


def _names(words: Iterable[str], whose: Callable[[Flow], tuple[str, ...]]) -> list[Fits]:
    return [_name(word, whose) for word in words]


def _name(pattern: str, whose: Callable[[Flow], tuple[str, ...]]) -> Fits:
    if not pattern:
        raise FilterError("a filter's name is empty")
    whole = "/" in pattern

    def fits(flow: Flow) -> bool:
        return any(
            fnmatchcase(name, pattern) or (not whole and fnmatchcase(name.rpartition("/")[2], pattern))
            for name in whose(flow)
            if name
        )

    return fits


def _pods(flow: Flow) -> tuple[str, ...]:
    return flow.source_name, flow.destination_name, flow.translated_name


def _services(flow: Flow) -> tuple[str, ...]:
    return flow.service, *flow.via.split("|")


def _everybody(flow: Flow) -> tuple[str, ...]:
    return (*_pods(flow), *_services(flow), flow.policy, flow.policy.partition(" ")[2])


def _port(port: int) -> Fits:
    return lambda flow: port in {flow.port, flow.source_port, flow.translated_port}


def _network(text: str) -> Network:
    try:
        return ip_network(text, strict=False)
    except ValueError as error:
        raise FilterError(f"address {text!r}: an address or a network is meant") from error


def _address(net: Network) -> Fits:
    def within(text: str) -> bool:
        if not text:
            return False
        address = _parsed(text)
        return address.version == net.version and address in net

    return lambda flow: any(
        map(within, (flow.source, flow.destination, flow.translated_source, flow.translated_destination))
    )


@lru_cache(4096)
def _parsed(text: str) -> Address:
    return ip_address(text)
