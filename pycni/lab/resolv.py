"""How a command in a pod finds the lab's DNS: its own /etc/resolv.conf in a mount namespace of its own.

Life: ``write`` puts a file per Kubernetes namespace into a node's folder; ``words`` wraps a command so that it sees
this file in place of the machine's, which itself is not touched (what `ip netns exec` does with /etc/netns).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pycni.lab.node import LabNode

_SCRIPT = """\
if mount --bind "$0" /etc/resolv.conf; then exec "$@"; fi
echo "no /etc/resolv.conf to put the lab's over: names are not resolved" >&2
exec "$@"
"""


def file(node: LabNode, namespace: str) -> Path:
    """The resolv.conf of pods of a Kubernetes namespace on a node."""
    return node.folder / "resolv" / f"{namespace}.conf"


def write(node: LabNode, namespace: str, text: str) -> None:
    """Put it there."""
    target = file(node, namespace)
    if target.exists():
        return
    target.parent.mkdir(exist_ok=True)
    target.write_text(text)


def words(node: LabNode, namespace: str, argv: Sequence[str]) -> list[str]:
    """The command with the lab's resolv.conf; as it is in a lab without DNS."""
    target = file(node, namespace)
    if not target.exists():
        return list(argv)
    return ["unshare", "--mount", "--propagation", "private", "sh", "-c", _SCRIPT, str(target), *argv]
