"""The nodes of a cluster, asked through their agents: this node's by its control socket, the others by TLS.

Life: ``of_agent`` asks the local agent who the others are and how they are met; ``gather`` asks all of them at once
what they know of a question. Who does not answer is told (``World.silent``) and delays nobody for longer than a
connection may take. In a large cluster only those nodes are asked that the question can be about.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from ipaddress import ip_address, ip_network
from typing import Any, NamedTuple
from urllib.parse import urlencode

from pycni.errors import ConfigError, PycniError
from pycni.kernel.linkcounts import LinkCount
from pycni.model.kube import ENDPOINT_SLICE, POD
from pycni.model.space import NodePart, PodPlace
from pycni.trace.cluster import NodeTerms
from pycni.trace.join import join
from pycni.trace.pick import EVERYTHING, Ends, ends
from pycni.tracing import speech
from pycni.tracing.ask import AskError, Door, Secure, context, said
from pycni.tracing.eyes import Gathered
from pycni.tracing.remote import RemoteNode
from pycni.tracing.speech import Means, Peer, Peers

AT_ONCE = 32
ALL = 16
"""Nodes; of more only those concerned are asked."""


class Far(NamedTuple):
    """A node and how its agent is asked."""

    peer: Peer
    door: Door


class Found(NamedTuple):
    """What one agent says, or why it says nothing."""

    part: NodePart | None
    terms: NodeTerms
    objects: Mapping[str, Mapping[str, Any]]
    reason: str = ""


class Picked:
    """Objects of several agents, the first one's where several have the same."""

    def __init__(self, found: Sequence[Mapping[str, Mapping[str, Any]]]) -> None:
        self._held: dict[str, dict[str, Any]] = {}
        for objects in found:
            for kind, items in objects.items():
                held = self._held.setdefault(kind, {})
                for key, item in items.items():
                    held.setdefault(key, item)

    def of(self, kind: str) -> Mapping[str, Any]:
        """By key."""
        return self._held.get(kind, {})


class ClusterEyes:
    """See ``eyes.Eyes``."""

    def __init__(self, doors: Sequence[Far], words: Sequence[str], others: Sequence[Far] = ()) -> None:
        """``words``: the ends as typed. ``doors``: asked in any case; ``others``: when they may be concerned."""
        self.doors, self._others, self._words = list(doors), list(others), tuple(words)
        self._nodes: dict[str, RemoteNode] = {}

    def gather(self) -> Gathered:
        """See ``eyes.Eyes``. Raises AskError when nobody answers."""
        fars, others = self.doors, self._others
        if len(others) <= ALL:
            fars, others = [*fars, *others], []
        found = self._ask(fars)
        if others:
            meant = concerned(
                [far.peer for far in others], ends(self._words), Picked([item.objects for item in found])
            )
            some = [far for far in others if far.peer in meant] if meant is not None else others
            fars, found = [*fars, *some], [*found, *self._ask(some)]
        if all(item.part is None for item in found):
            raise AskError("; ".join(item.reason for item in found) or "there is nobody to ask")
        parts, terms, silent = [], {}, {}
        objects = Picked([item.objects for item in found])
        for far, item in zip(fars, found, strict=True):
            if item.part is None:
                silent[far.peer.name] = item.reason
                parts.append(_silent(far.peer, objects))
                continue
            parts.append(item.part)
            terms[item.part.name] = item.terms
            self._nodes[item.part.name] = RemoteNode(item.part.name, far.door, self._words)
        trouble = "" if any(part.wanted for part in parts) else "no agent has a plan of its own yet"
        return Gathered(join(parts, silent), objects, terms, trouble)

    @property
    def nodes(self) -> Mapping[str, RemoteNode]:
        """See ``eyes.Eyes``: those that answered."""
        return self._nodes

    def everything(self) -> Picked:
        """All objects one agent holds, the first that answers. Raises AskError, ConfigError."""
        query = f"{speech.OBJECTS}?{urlencode({'end': EVERYTHING})}"
        reasons = []
        for far in (*self.doors, *self._others):
            try:
                return Picked([speech.read_objects(far.door.get(query))])
            except AskError as error:
                reasons.append(str(error))
        raise AskError("; ".join(reasons) or "there is nobody to ask")

    def counts(self) -> dict[str, LinkCount]:
        """Of interfaces of the nodes that answer, by ``NODE/DEVICE``."""

        def one(far: Far) -> dict[str, LinkCount]:
            try:
                told = speech.read(far.door.get(speech.COUNTERS), dict[str, LinkCount])
            except (AskError, ConfigError):
                return {}  # who looks at the world is told why
            return {f"{far.peer.name}/{name}": count for name, count in told.items()}

        fars = [*self.doors, *self._others]
        with ThreadPoolExecutor(max(min(len(fars), AT_ONCE), 1)) as pool:
            return {key: count for found in pool.map(one, fars) for key, count in found.items()}

    def _ask(self, fars: Sequence[Far]) -> list[Found]:
        if len(fars) == 1:
            return [self._told(fars[0])]
        with ThreadPoolExecutor(max(min(len(fars), AT_ONCE), 1)) as pool:
            return list(pool.map(self._told, fars))

    def _told(self, far: Far) -> Found:
        try:
            return Found(*speech.read_told(far.door.get(speech.state_query(self._words))))
        except (AskError, ConfigError) as error:
            return Found(None, NodeTerms(), {}, str(error))


def of_agent(local: Door, words: Sequence[str]) -> ClusterEyes:
    """The eyes of the cluster this node is in. Raises AskError: this node's agent does not answer."""
    known: Peers = speech.read(local.get(speech.PEERS), Peers)
    own = Far(Peer(name=known.node, addresses=()), local)
    if known.means is None:
        reason = "the local agent has no trace-listen: it does not know how others are asked"
        return ClusterEyes([own], words, [Far(peer, _closed(peer, reason)) for peer in known.peers])
    try:
        secure, token = met(known.means), _token(known.means.token_file)
    except (OSError, PycniError) as exc:
        text = said(exc) if isinstance(exc, OSError) else str(exc)
        raise AskError(f"what is needed to ask other nodes cannot be read: {text}") from exc
    return ClusterEyes([own], words, [far(peer, secure, token) for peer in known.peers])


def far(peer: Peer, secure: Secure, token: str = "") -> Far:
    """A node met by TLS."""
    return Far(peer, Door(peer.name, secure.dial(peer.addresses), token))


def met(means: Means) -> Secure:
    """How agents are met. Raises OSError (also ssl.SSLError)."""
    try:
        made = context(means.authority, means.certificate, means.key)
    except FileNotFoundError as exc:
        names = ", ".join(filter(None, (means.authority, means.certificate, means.key)))
        raise FileNotFoundError(exc.errno, f"{names}: {exc.strerror}") from exc
    return Secure(made, means.port, means.server_name)


def concerned(peers: Sequence[Peer], asked: Ends, objects: Picked) -> set[Peer] | None:
    """Nodes that a question can be about; None: that cannot be told, all."""
    addresses = set(asked.addresses)
    for item in objects.of(ENDPOINT_SLICE).values():
        addresses |= {end.address for end in item.endpoints}
    for pod in objects.of(POD).values():
        addresses |= set(pod.ips)
    known = {name for key in objects.of(POD) for name in (key, key.rpartition("/")[2])}
    known |= {item.service.rpartition("/")[2] for item in objects.of(ENDPOINT_SLICE).values()}
    known |= {item.service for item in objects.of(ENDPOINT_SLICE).values()}
    found = {peer for peer in peers if peer.name in asked.names or addresses & set(peer.addresses)}
    known |= {peer.name for peer in found}
    for peer in peers:
        nets = [ip_network(item) for item in peer.subnets]
        if any(ip_address(item) in net for item in addresses for net in nets):
            found.add(peer)
    # Each end is a name or an address; a name nobody here has is somebody else's pod, or a node.
    plain = {name.partition(":")[0] for name in asked.names}
    return None if plain - known else found


def _silent(peer: Peer, objects: Picked) -> NodePart:
    """What others know of a node: where it is, and who is on it."""
    nets = [ip_network(item) for item in peer.subnets]
    pods = [
        PodPlace(name=key, node=peer.name, addresses=tuple(ip_address(item).packed for item in pod.ips))
        for key, pod in objects.of(POD).items()
        if not pod.host_network
        and (pod.node == peer.name or any(ip_address(item) in net for item in pod.ips for net in nets))
    ]
    addresses = tuple(ip_address(item).packed for item in peer.addresses)
    return NodePart(name=peer.name, addresses=addresses, pods=tuple(pods))


def _closed(peer: Peer, reason: str) -> Door:
    def dial(_timeout_s: float) -> Any:
        raise OSError(0, reason)

    return Door(peer.name, dial)


def _token(path: str) -> str:
    if not path:
        return ""
    with open(path, encoding="ascii") as file:
        return file.read(65536).strip()
