"""Asking agents over their control sockets, which root alone may use: the one of this node, or those of a lab's nodes.

Life: a command makes its ``Agent``s by ``agents(args)`` (arguments: ``add_arguments``) and asks each by ``fetch`` or
listens by ``lines``. A lab's node of namespaces has its socket here; where a node has a kernel of its own the question
is asked over there, by this module run as a program: ``python -m pycni.cli_agent SOCKET TARGET``.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pycni.errors import PycniError

if TYPE_CHECKING:
    from pycni.lab.run import Lab

SOCKET = "/run/pycni/agent.sock"
TIMEOUT_S = 20.0
_LABS = "/run/pycni-lab"


class AgentError(PycniError):
    """The agent does not answer (``status`` 0), or says no (its HTTP status)."""

    def __init__(self, text: str, status: int = 0, reason: str = "") -> None:
        self.status = status
        self.reason = reason or text
        """The agent's own words."""
        super().__init__(text)


@dataclass(frozen=True)
class Agent:
    """One agent that can be asked."""

    node: str
    """"" while only the agent itself knows."""
    path: str
    """Its socket."""
    over_there: Sequence[str] = ()
    """Words before a command that is run where the socket is; none: here."""

    def fetch(self, target: str) -> bytes:
        """Body of the answer. Raises AgentError."""
        if not self.over_there:
            return fetch(self.path, target)
        try:
            done = subprocess.run(
                self._words(target), capture_output=True, text=True, check=False, timeout=TIMEOUT_S * 2
            )
        except subprocess.TimeoutExpired as exc:
            raise AgentError(f"{self.node} does not answer within {exc.timeout:g} s") from exc
        if done.returncode:
            raise _told(done.stderr) or AgentError(f"{self.node} does not answer")
        return done.stdout.encode()

    def lines(self, target: str) -> Iterator[bytes]:
        """Lines of an answer that goes on, until the agent or the caller ends it. Raises AgentError."""
        if not self.over_there:
            yield from lines(self.path, target)
            return
        with subprocess.Popen(self._words(target), stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            assert process.stdout is not None
            assert process.stderr is not None
            try:
                yield from process.stdout
                complaint = process.stderr.read().decode(errors="replace")
                error = _told(complaint) if process.wait() else None
                if error is not None:
                    raise error
            finally:
                process.terminate()

    def _words(self, target: str) -> list[str]:
        root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
        return [
            *self.over_there,
            *("env", f"PYTHONPATH={root}", sys.executable, "-P", "-m", "pycni.cli_agent", self.path, target),
        ]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Which agents: by default the one of this node."""
    parser.add_argument("--name", default="", metavar="LAB", help="ask the agents of a lab's nodes")
    parser.add_argument("--node", default="", help="ask the agent of this node of the lab only")
    parser.add_argument("--socket", default=SOCKET, help=f"the agent's control socket (default: {SOCKET})")


def agents(args: argparse.Namespace) -> list[Agent]:
    """The agents to ask. Raises LabError for a lab or node there is not."""
    if not args.name and not args.node:
        return [Agent("", args.socket)]
    from pycni.lab import glance  # noqa: PLC0415 - most calls are for no lab

    name = args.name or "default"
    sockets = glance.sockets(name, os.path.basename(SOCKET))
    if sockets is not None and (not args.node or args.node in sockets):
        return [Agent(node, path) for node, path in sockets.items() if args.node in {"", node}]
    from pycni.lab.run import Lab  # noqa: PLC0415 - takes longer than asking

    lab = Lab.open(name)
    nodes = [args.node] if args.node else list(lab.record.nodes)
    return [of_lab(lab, node) for node in nodes]


def of_lab(lab: Lab, node: str) -> Agent:
    """The agent of a lab's node. Raises LabError."""
    path = os.path.join(os.path.dirname(lab.node(node).socket), os.path.basename(SOCKET))
    # A node with a kernel of its own is asked over there.
    return Agent(node, path, () if lab.spec.driver == "netns" else lab.exec_argv(node, []))


def fetch(path: str, target: str, kind: str = "agent") -> bytes:
    """Body of the agent's answer. Raises AgentError; ``kind`` says of whom there is none."""
    try:
        with closing(_Answer(path, target)) as answer:
            _check(answer, path, target)
            return answer.read()
    except OSError as exc:
        raise _unreachable(path, exc, kind) from exc


def lines(path: str, target: str) -> Iterator[bytes]:
    """Lines of an answer as they come. Raises AgentError."""
    try:
        with closing(_Answer(path, target)) as answer:
            _check(answer, path, target)
            yield from answer.lines()
    except OSError as exc:
        raise _unreachable(path, exc) from exc


def _check(answer: _Answer, path: str, target: str) -> None:
    """Raise AgentError for an answer that is none."""
    if answer.status == 200:
        return
    text = answer.read().decode(errors="replace").strip()
    if answer.status == 404 and text.startswith("there are "):
        # The server's own words: no component of this agent answers such questions.
        what = target.partition("?")[0]
        raise AgentError(f"the agent at {path} does not run what answers {what} (setting components)", 404)
    raise AgentError(f"the agent at {path} answers {answer.status}: {text}", answer.status, text)


def _unreachable(path: str, exc: OSError, kind: str = "agent") -> AgentError:
    reason = exc.strerror or str(exc)
    hint = " (a lab's agents are asked with --name LAB)" if path == SOCKET and os.path.isdir(_LABS) else ""
    return AgentError(f"no {kind} answers at {path}: {reason}{hint}")


class _Answer:
    """What an agent's server (``agent.httpd``) says to one GET; the connection is for that alone.

    Not http.client's: importing that takes as long as all the rest of ``pycnictl status``.
    """

    def __init__(self, path: str, target: str) -> None:
        """Ask, and read the head of the answer. Raises OSError."""
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            self._socket.settimeout(TIMEOUT_S)
            self._socket.connect(path)
            self._socket.sendall(
                f"GET {target} HTTP/1.1\r\nHost: agent\r\nConnection: close\r\n\r\n".encode()
            )
            self._file = self._socket.makefile("rb")
            words = self._file.readline().split(None, 2)
            if len(words) < 2 or not words[0].startswith(b"HTTP/1.") or not words[1].isdigit():
                raise ConnectionError("what it says is no answer")
            self.status = int(words[1])
            self._length: int | None = None
            while (line := self._file.readline()).strip():
                name, _, value = line.partition(b":")
                if name.strip().lower() == b"content-length":
                    self._length = int(value)
        except BaseException:
            self._socket.close()
            raise

    def read(self) -> bytes:
        """The whole body. Raises OSError when it is cut off."""
        body = self._file.read()
        if self._length is not None and len(body) < self._length:
            raise ConnectionError("its answer is cut off")
        return body

    def lines(self) -> Iterator[bytes]:
        """The body line by line as it comes, however long that takes."""
        self._socket.settimeout(None)
        yield from self._file

    def close(self) -> None:
        """Hang up."""
        self._file.close()
        self._socket.close()


def _told(complaint: str) -> AgentError | None:
    """What ``_main`` said on standard error over there, or whatever else stands there."""
    last = (complaint.strip().splitlines() or [""])[-1]
    status, _, text = last.partition(" ")
    if status.isdigit():
        return AgentError(text, int(status), text.partition(f" answers {status}: ")[2])
    return AgentError(complaint.strip()) if last else None


def _main() -> int:
    """The body of one answer, raw, as it comes; an error is its status and text on standard error."""
    try:
        for line in lines(sys.argv[1], sys.argv[2]):
            sys.stdout.buffer.write(line)
            sys.stdout.buffer.flush()
    except AgentError as exc:
        with contextlib.suppress(BrokenPipeError):
            print(exc.status, exc, file=sys.stderr)
        return 1
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


if __name__ == "__main__":
    sys.exit(_main())
