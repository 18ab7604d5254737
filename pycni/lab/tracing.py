"""A lab's nodes as a trace sees them: looked at directly, whether their agents live or not, or through the agents.

Nodes that are namespaces are read and watched from here, guests by their command servers (``uml_trace``). ``by_agents``
does as in a cluster: over TLS where the lab has it (``lab up --trace-tls``), else over the agents' control sockets.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from functools import partial
from socket import SOCK_CLOEXEC, SOCK_STREAM, socket
from typing import TYPE_CHECKING, cast

from pycni.kernel.capture import Enter
from pycni.lab import netns, topology, trace_tls
from pycni.lab.inside_trace import enter
from pycni.lab.node import LabNode
from pycni.lab.run import Lab
from pycni.lab.topology import LabError
from pycni.lab.trace_world import gather, namespaces
from pycni.lab.uml_trace import GuestNode
from pycni.tracing.ask import Door, Secure, context, unix
from pycni.tracing.cluster import ClusterEyes, Far, far
from pycni.tracing.eyes import Gathered, NodeEyes
from pycni.tracing.local import LocalNode
from pycni.tracing.speech import Peer

if TYPE_CHECKING:
    from pycni.lab.uml import UmlDriver

SOCKET = "agent.sock"


class LabEyes:
    """See ``tracing.eyes.Eyes``."""

    def __init__(self, lab: Lab) -> None:
        self._lab = lab

    def gather(self) -> Gathered:
        """See ``tracing.eyes.Eyes``. Raises LabError, KernelError."""
        return gather(self._lab)

    @property
    def nodes(self) -> Mapping[str, NodeEyes]:
        """See ``tracing.eyes.Eyes``."""
        pods = [pod for pod in self._lab.pods() if pod.network == "cluster"]
        found: dict[str, NodeEyes] = {}
        for node in self._lab.nodes():
            spaces = namespaces(node, pods)
            if self._lab.spec.driver == "uml":
                found[node.name] = GuestNode(node.name, cast("UmlDriver", node.driver), spaces)
            else:
                entered: dict[str, Enter] = {name: enter(where) for name, where in spaces.items()}
                # Policies by eBPF have no rules that could be traced: their agent tells what they deny.
                fast = self._lab.spec.policy == "ebpf"
                found[node.name] = LocalNode(node.name, entered, _door(node) if fast else None)
        return found


def _door(node: LabNode) -> Door:
    """To a node's agent, by its control socket."""
    return Door(node.name, unix(os.path.join(os.path.dirname(node.socket), SOCKET)))


def by_agents(lab: Lab, words: Sequence[str]) -> ClusterEyes:
    """A lab as a cluster is seen. ``words``: the ends of the trace, as typed. Raises LabError."""
    spec = lab.spec
    peers = {
        node.name: Peer(name=node.name, addresses=tuple(str(item.ip) for item in node.addresses.values()))
        for node in lab.nodes()
    }
    if not spec.trace_tls:
        if spec.driver != "netns":
            raise LabError("--by-agents: guests' agents are asked by TLS: lab up --trace-tls", usage=True)
        return ClusterEyes([Far(peers[node.name], _door(node)) for node in lab.nodes()], words)
    files = trace_tls.client(lab.state.folder)
    fabric = topology.fabric_namespace(spec.name)

    def plug(family: int) -> socket:
        return netns.inside(fabric, partial(socket, family, SOCK_STREAM | SOCK_CLOEXEC))

    secure = Secure(context(files.authority, files.certificate, files.key), trace_tls.PORT, make=plug)
    return ClusterEyes([far(peer, secure) for peer in peers.values()], words)
