"""Waiting until agents have a change of the lab's objects in their kernels.

Life: ``Objects.write`` numbers a change; ``await_policies`` asks every running agent's control socket whether its
policies are that far, which the agent answers as soon as they are (``policy/settled``).
"""

from __future__ import annotations

import socket
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from pycni.lab.node import LabNode

PATIENCE_S = 10.0
SLACK_S = 2.0
"""For the answer to come when the agent's own patience has ended."""
SOCKET = "agent.sock"


def await_policies(nodes: Sequence[LabNode], number: int, patience: float) -> list[str]:
    """Wait for all of them; returns which are not that far, with why, one line each."""
    with ThreadPoolExecutor(max(1, len(nodes))) as pool:
        answers = pool.map(lambda node: _ask(node, number, patience), nodes)
        return [
            f"policies on {node.name} are not up to date: {answer}"
            for node, answer in zip(nodes, answers, strict=True)
            if answer
        ]


def _ask(node: LabNode, number: int, patience: float) -> str:
    """What is wrong, "" when the node is that far."""
    target = f"/policies/settled?generation={number}&patience={patience:g}"
    try:
        status, body = control(node, target, patience + SLACK_S)
    except OSError as exc:
        return f"its agent does not answer: {exc.strerror or exc}"
    return "" if status == 200 else body.strip()


def control(node: LabNode, target: str, timeout: float) -> tuple[int, str]:
    """What an agent's control socket answers: status and body. The node's files have to be this machine's.

    Raises OSError.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.settimeout(timeout)
        sock.connect(str(Path(node.socket).with_name(SOCKET)))
        sock.sendall(f"GET {target} HTTP/1.1\r\nHost: agent\r\nConnection: close\r\n\r\n".encode())
        answer = b""
        while chunk := sock.recv(65536):
            answer += chunk
    head, _line, body = answer.partition(b"\r\n\r\n")
    words = head.split(None, 2)
    if len(words) < 2 or not words[1].isdigit():
        raise ConnectionError("no HTTP answer")
    return int(words[1]), body.decode(errors="replace")
